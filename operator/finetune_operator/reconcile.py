"""The story of one look at a job: plan, observe, decide, carry out, tell once if it changed.

Looking twice changes nothing, and while nothing changes, nothing is written.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from finetune_operator import observe
from finetune_operator.accounting import growth_between, wait_between
from finetune_operator.api.job import FineTuneJob
from finetune_operator.api.status import Activity, ConditionStatus, ConditionType, FineTuneJobStatus, Phase
from finetune_operator.causes import Trouble, is_pending_claim
from finetune_operator.claims import Claims
from finetune_operator.cluster import Cluster
from finetune_operator.cost import attempt_to_price
from finetune_operator.cost import growth_between as cost_growth
from finetune_operator.decide import (
    FIRST_QUESTION_SECONDS,
    Decision,
    Timing,
    ask_again_after_seconds,
    decide,
    name_taken,
    refuse,
    under_way,
)
from finetune_operator.errors import ApiError, ForeignObject, InvalidJob
from finetune_operator.events import events_between
from finetune_operator.metrics import Metrics
from finetune_operator.names import ConditionReason
from finetune_operator.observe import Observed
from finetune_operator.plan import Plan
from finetune_operator.plans import Plans
from finetune_operator.progress import Heard
from finetune_operator.settings import Settings
from finetune_operator.status import Moment, answer, is_finished
from finetune_operator.store import Body, JobKey, ObjectKey, Store
from finetune_operator.training_operator import why_backend_is_missing
from finetune_operator.turns import Turns
from finetune_operator.warning_events import Warnings

logger = logging.getLogger(__name__)

_CLAIM = "PersistentVolumeClaim"
# To the gangs of all jobs together: forty are each asked in the interval that was set, a thousand every four minutes.
_QUESTIONS_PER_SECOND = 4.0
_QUESTIONS_AT_ONCE = 16


class Reconciler:
    """Brings jobs one step further, one job at a time for each call.

    It remembers when rank 0 was last asked and when its turn is, the plan of a job that has not changed since, and the
    claims and warnings that were just found; to forget that costs a question, or a little time.
    """

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], datetime],
        has_kind: Callable[[str], Awaitable[bool]],
    ) -> None:
        """Know nothing of any job.

        Args:
            cluster: the API server.
            store: what was seen of the jobs.
            settings: what the administrator decided.
            metrics: the operator's own.
            clock: the time.
            has_kind: tells whether the cluster has a kind of object; one that it has is watched from then on.
        """
        self._cluster = cluster
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._has_kind = has_kind
        self._plans = Plans(settings)
        self._warnings = Warnings(cluster.warnings, clock)
        self._claims = Claims(lambda key, name: cluster.find(_CLAIM, key, name), clock)
        self._asked: dict[JobKey, datetime] = {}
        self._turns: Turns[JobKey] = Turns(_QUESTIONS_PER_SECOND, _QUESTIONS_AT_ONCE)

    async def reconcile(self, key: JobKey) -> float | None:
        """Take the job's next step; return after how many seconds to look again, or None to wait for a change.

        Raises:
            ApiError: the API server did not answer, or failed; nothing is lost by trying again.
            InvalidJob: the spec of a job that was accepted cannot be carried out by this version of the operator.
        """
        body = self._store.job(key)
        if body is None or body["metadata"].get("deletionTimestamp"):
            # What belonged to the job goes by its owner references.
            self._forget_questions(key)
            self._plans.forget(key)
            return None
        with self._metrics.reconcile_seconds.time():
            decision = await self._decide(key, body)
            obstacle = await self._make(key, decision)
            if obstacle is not None:
                decision = await self._decide(key, body, obstacle)
            if await self._tell(key, body, decision.status):
                await self._remove(key, body, decision)
        if decision.status.phase is Phase.RUNNING or is_finished(decision.status):
            self._plans.forget(key)  # it is looked at seldom from now on, and plans take memory
        return _earlier(decision.wake_after_seconds, self._turns.seconds_until(key, self._clock()))

    async def _decide(self, key: JobKey, body: Body, obstacle: Trouble | None = None) -> Decision:
        moment = Moment(self._clock(), body["metadata"].get("generation", 1))
        try:
            job = self._plans.job(key, body)
            if not is_finished(job.status):
                await self._see_claims_of_others(key, job)
            plan = self._plans.plan(key, body, observe.access_modes(self._store.children(key)))
        except InvalidJob as error:
            status = self._plans.status(key, body)
            if answer(status, ConditionType.ACCEPTED) is ConditionStatus.TRUE and not is_finished(status):
                # An older operator accepted it, and it may be training: that is no reason to give it up.
                raise
            return refuse(status, error.problems, moment)
        observed = await self._observe(key, plan, moment.now, obstacle)
        observed = replace(observed, nodes=await self._see_nodes(plan, observed))
        heard = await self._listen(key, plan, observed, moment.now)
        return decide(plan, observed, moment.now, self._timing_with_turn(key, plan, observed, moment.now), heard)

    def _timing(self) -> Timing:
        interval_seconds = max(self._settings.progress_interval_seconds, len(self._asked) / _QUESTIONS_PER_SECOND)
        return Timing(interval_seconds, self._settings.force_delete_seconds)

    def _timing_with_turn(self, key: JobKey, plan: Plan, observed: Observed, now: datetime) -> Timing:
        """Return the timing of a job that is not looked at for nothing before it is its turn to be asked."""
        attempt = under_way(plan.job.status)
        gang = observed.gangs.get(attempt.number, ()) if attempt is not None else ()
        if key not in self._asked and gang and all(job.running for job in gang):
            self._turns.reserve(key, now + timedelta(seconds=FIRST_QUESTION_SECONDS))
        return replace(self._timing(), turn_after_seconds=self._turns.seconds_until(key, now) or 0.0)

    async def _see_claims_of_others(self, key: JobKey, job: FineTuneJob) -> None:
        """Fetch the claims that the job names, until it is accepted and they are bound: no watch tells of them.

        A job that was refused for a claim goes on when that claim is made anew as it should be.
        """
        accepted = answer(job.status, ConditionType.ACCEPTED) is ConditionStatus.TRUE
        for storage in (job.spec.storage.shared, job.spec.storage.network):
            if storage is None or storage.claim_name is None:
                continue
            known = self._store.find(key, ObjectKey(_CLAIM, storage.claim_name))
            if accepted and known is not None and not is_pending_claim(known):
                continue
            find = self._claims.find_first if known is None else self._claims.find
            claim = await find(key, storage.claim_name)
            if claim is not None:
                self._store.see(claim, key)
            elif known is not None:
                self._store.forget(known, key)

    async def _observe(self, key: JobKey, plan: Plan, now: datetime, obstacle: Trouble | None) -> Observed:
        job_uid, children = plan.job.metadata.uid, self._store.children(key)
        if is_finished(plan.job.status):
            return observe.observe(job_uid, children, {}, now)
        asked = observe.questions(job_uid, children, now)
        warnings = await self._warnings.about(key.namespace, asked)
        observed = observe.observe(job_uid, children, warnings, now, obstacle=obstacle)
        return replace(observed, lacking=await self._what_is_lacking(plan))

    async def _what_is_lacking(self, plan: Plan) -> Trouble | None:
        """Ask whether the cluster has the kind of object that is to train; a back-end is called after its kind."""
        kind = plan.backend.value
        try:
            return None if await self._has_kind(kind) else why_backend_is_missing(kind)
        except ApiError as error:
            if not error.is_refusal:
                raise
            return Trouble(ConditionReason.REFUSED, f"{error} It is tried again by itself.")

    async def _see_nodes(self, plan: Plan, observed: Observed) -> tuple[Mapping[str, str], ...]:
        """Read the labels of the nodes on which a gang has come to run, where the price of a GPU differs by them.

        A price is settled once for an attempt, so a node is read once for each pod of it.
        """
        gang = observed.gangs.get(attempt_to_price(plan) or 0, ())
        if not gang or not all(job.running for job in gang):
            return ()
        nodes = [pod.node for job in gang for pod in job.pods if pod.node is not None]
        try:
            return tuple([await self._cluster.node_labels(node) for node in nodes])
        except ApiError as error:
            if not error.is_refusal:
                raise
            logger.warning(
                "%s The price of a GPU-hour follows from the job's nodeSelector instead. The chart grants it with "
                "pricing.gpuHour.byNodeLabel.",
                error,
                extra={"namespace": plan.namespace, "job": plan.name},
            )
            return ()

    async def _listen(self, key: JobKey, plan: Plan, observed: Observed, now: datetime) -> Heard | None:
        """Ask rank 0 how far it is, when the gang runs, it was not asked just now, and it is its turn among all."""
        status, last = plan.job.status, self._asked.get(key)
        if answer(status, ConditionType.RUNNING) is not ConditionStatus.TRUE or not status.attempts:
            self._forget_questions(key)
            return None
        if last is not None:
            # NB: a timer may fire a little early; half a second of grace keeps it from skipping a whole interval.
            interval_seconds = ask_again_after_seconds(plan.job, status, last, self._timing()) - 0.5
            if (now - last).total_seconds() < interval_seconds:
                return None
        if not self._turns.take(key, now):
            return None
        self._asked[key] = now
        gang = observed.gangs.get(status.attempts[-1].number, ())
        address = gang[0].pods[0].ip if gang and gang[0].pods else None
        return Heard(answers=False) if address is None else await self._cluster.read_progress(address)

    def _forget_questions(self, key: JobKey) -> None:
        self._asked.pop(key, None)
        self._turns.forget(key)

    async def _make(self, key: JobKey, decision: Decision) -> Trouble | None:
        """Apply objects; return why the API server refused one, which is told and tried again later."""
        job = self._store.job(key)
        if job is None:
            return None
        try:
            for manifest in decision.apply:
                self._store.see(await self._cluster.apply(manifest, job["metadata"]["uid"]))
        except ForeignObject as error:
            return name_taken(ObjectKey(error.kind, error.name))
        except ApiError as error:
            if not error.is_refusal:
                raise
            return Trouble(ConditionReason.REFUSED, f"{error} It is tried again by itself.")
        return None

    async def _remove(self, key: JobKey, body: Body, decision: Decision) -> None:
        """Delete objects, and the job itself when its time is over."""
        for child in decision.delete:
            await self._cluster.delete(child.key.kind, key.namespace, child.key.name, child.uid)
        for child in decision.force:
            await self._cluster.delete(child.key.kind, key.namespace, child.key.name, child.uid, by_force=True)
        if decision.delete_job:
            await self._cluster.delete_job(body)

    async def _tell(self, key: JobKey, body: Body, status: FineTuneJobStatus) -> bool:
        """Write the status and post the Events of what changed, nothing when nothing did; return whether it is told."""
        before = self._plans.status(key, body)
        if status == before:
            return True
        document = status_document(status)
        written = await self._cluster.write_status(key, body["metadata"]["uid"], document)
        if written is None:
            return False
        self._store.see(written)
        if (newest := self._store.job(key)) is not None:
            self._plans.told(key, newest, document, status)
        self._count(key.namespace, before, status)
        for event in events_between(before, status):
            logger.info(event.note, extra={"namespace": key.namespace, "job": key.name, "reason": event.reason})
            try:
                await self._cluster.post_event(body, event, self._clock())
            except ApiError as error:
                # The condition has said it already; an Event is a courtesy.
                logger.warning("Event lost: %s", error, extra={"namespace": key.namespace, "job": key.name})
        return True

    def _count(self, namespace: str, before: FineTuneJobStatus, after: FineTuneJobStatus) -> None:
        """Count what a status tells that the one before it did not; so each is counted once, whoever looks again."""
        for kind, seconds in growth_between(before.accounting, after.accounting).items():
            self._metrics.gpu_seconds.labels(kind).inc(seconds)
        if after.accounting is not None and (cost := after.accounting.cost) is not None:
            known_cost = before.accounting.cost if before.accounting is not None else None
            growth = {kind: float(amount) for kind, amount in cost_growth(known_cost, cost).items()}
            self._metrics.charge(namespace, cost.currency, growth)
        waited = wait_between(before.accounting, after.accounting)
        if waited is not None:
            queued = waited.activity is Activity.QUEUED
            (self._metrics.queue_seconds if queued else self._metrics.start_seconds).observe(waited.seconds)
        if is_finished(after) and not is_finished(before):
            if after.phase is Phase.SUCCEEDED:
                self._metrics.jobs_succeeded.inc()
            else:
                self._metrics.jobs_failed.labels(after.reason).inc()
        known = {attempt.number for attempt in before.attempts if attempt.ended is not None}
        for attempt in after.attempts:
            if attempt.ended is not None and attempt.number not in known:
                self._metrics.attempts.labels(attempt.reason).inc()


def _earlier(seconds: float | None, other_seconds: float | None) -> float | None:
    return min((found for found in (seconds, other_seconds) if found is not None), default=None)


def status_document(status: FineTuneJobStatus) -> dict[str, Any]:
    """Return the status as it is written to the API server."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)
