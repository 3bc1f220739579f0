"""The operator as a process: the only file that knows kopf.

Start-up waits for the CustomResourceDefinition and lists what is there. kopf then watches FineTuneJobs, and `watches`
their children; an event updates the store and puts the job's key into the queue, and the queue's workers reconcile.

kopf's own change handlers, timers and daemons are not used: each would put a finalizer or an annotation on every
object (docs/design/2026-11-23-watch-and-queue.md).
"""

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import kopf
import uvloop

from finetune_operator import names
from finetune_operator.accounting import gpu_seconds
from finetune_operator.api.status import ConditionStatus, ConditionType, Phase
from finetune_operator.cluster import Cluster
from finetune_operator.connection import Connection
from finetune_operator.endpoints import serving
from finetune_operator.errors import ApiError, DefinitionMissing
from finetune_operator.failure_table import FAILURES
from finetune_operator.logs import configure_logging
from finetune_operator.metrics import Metrics
from finetune_operator.names import ConditionReason
from finetune_operator.optional_kinds import OptionalKinds
from finetune_operator.queue import WorkQueue
from finetune_operator.reconcile import Reconciler
from finetune_operator.resources import CHILDREN, FINE_TUNE_JOBS, Resource
from finetune_operator.settings import Settings
from finetune_operator.store import Body, JobKey, Store
from finetune_operator.watches import Watches
from finetune_trainer.contract.termination import Reason

logger = logging.getLogger(__name__)

_START_RETRY_SECONDS = 3.0
_CHECK_SECONDS = 60.0
# For so long news wait that hardly anything follows from: with many jobs at once, more is heard until then.
_MOMENT_SECONDS = 3.0
# How kopf's watch of the jobs tries again; after two minutes of refusals it ends, and the operator with it.
_KOPF_RETRY_DELAYS_SECONDS = (0.5, 1.0, 2.0, 4.0, *(5.0,) * 24)


def run() -> None:
    """Run the operator until SIGTERM or SIGINT; end the process with 1 when it cannot go on.

    Raises:
        InvalidSettings: an environment variable is missing or wrong.
    """
    settings = Settings.from_environment(os.environ)
    configure_logging(settings)
    _collect_garbage_rarely()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except (ApiError, DefinitionMissing, OSError) as error:
        logger.error("Stopped: %s", error)  # noqa: TRY400 - the message is for a person
        sys.exit(1)


def _collect_garbage_rarely() -> None:
    """Look for cycles of objects less often: what comes from the API server has none, and is most of what there is.

    Python would look through the whole store again and again while it grows, which took a quarter of the time.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@dataclass
class Operator:
    """The running parts: what is known, what is to be looked at, and who looks at it."""

    settings: Settings
    cluster: Cluster
    metrics: Metrics
    store: Store = field(default_factory=Store)
    queue: WorkQueue[JobKey] = field(init=False)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the operator is to end."""
    closing: AsyncExitStack = field(default_factory=AsyncExitStack)
    """What has to be closed when the operator ends."""
    waits_for: str | None = "the API server"
    """What is missing before jobs can be worked on."""
    watches: Watches = field(init=False)
    optional_kinds: OptionalKinds = field(init=False)

    def __post_init__(self) -> None:
        self.optional_kinds = OptionalKinds(
            lambda resource: self.cluster.serves(resource, self.namespaces[0]), self.begin_to_follow, time.monotonic
        )
        reconciler = Reconciler(
            self.cluster,
            self.store,
            self.settings,
            self.metrics,
            lambda: datetime.now(UTC),
            self.optional_kinds.has,
        )
        self.queue = WorkQueue(reconciler.reconcile, self.tell_of_failure, num_workers=self.settings.num_workers)
        self.watches = Watches(
            self.cluster,
            self.store,
            self.namespaces,
            self.queue.add,
            lambda key: self.queue.add_after(key, _MOMENT_SECONDS),
        )
        self.metrics.watch_queue(lambda: len(self.queue), lambda: self.queue.num_working)
        self.metrics.watch_phases(self.phases)
        self.metrics.watch_storage(self.num_short_of_storage)
        self.metrics.expect(FAILURES, (Reason.SUCCEEDED, ConditionReason.SUSPENDED), gpu_seconds(None))

    @property
    def namespaces(self) -> tuple[str | None, ...]:
        """Namespaces to list; None stands for all of them."""
        return self.settings.watched_namespaces or (None,)

    async def begin_to_follow(self, resource: Resource) -> None:
        """Follow a kind of object that has just been found, and look at every job anew."""
        await self.watches.follow(resource)
        self.look_at_all()

    def look_at_all(self) -> None:
        """Have every job looked at."""
        for key in self.store.job_keys():
            self.queue.add(key)

    def phases(self) -> Iterator[str]:
        """Iterate over the phases of all jobs; one that was not looked at yet is pending."""
        return (job.get("status", {}).get("phase") or Phase.PENDING.value for job in self.store.jobs())

    def num_short_of_storage(self) -> int:
        """Return how many jobs will find a filesystem full before they are done, as last heard."""
        return sum(_is_short_of_storage(job) for job in self.store.jobs())

    def tell_of_failure(self, key: JobKey, error: Exception, retry_after_seconds: float) -> None:
        """Log why a job could not be looked at; a request that was not answered needs no traceback."""
        self.metrics.reconcile_errors.inc()
        where = {"namespace": key.namespace, "job": key.name, "retry_after_seconds": retry_after_seconds}
        if isinstance(error, ApiError):
            logger.warning("%s", error, extra=where)
        else:
            logger.error("Looking at the job failed", exc_info=error, extra=where)


def _is_short_of_storage(job: Body) -> bool:
    status = job.get("status", {})
    return status.get("completionTime") is None and any(
        (condition["type"], condition["status"]) == (ConditionType.STORAGE_PRESSURE, ConditionStatus.TRUE)
        for condition in status.get("conditions", ())
    )


async def serve(settings: Settings) -> None:
    """Run all parts of the operator until it is told to stop."""
    metrics = Metrics()
    cluster = Cluster(await Connection.open(os.environ, metrics), metrics)
    operator = Operator(settings, cluster, metrics)
    async with operator.closing as closing:
        closing.push_async_callback(cluster.close)
        await closing.enter_async_context(
            serving(metrics, lambda: operator.waits_for, settings.metrics_port, settings.probe_port)
        )
        if await _start(operator):
            await _work(operator)
    logger.info("Stopped")


async def _start(operator: Operator) -> bool:
    """Fill the store, as soon as the cluster lets us; return False when told to stop before that."""
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        # NB: kopf replaces these handlers with its own when it starts, and looks at the flag besides.
        asyncio.get_running_loop().add_signal_handler(signal_number, operator.stop.set)
    while not operator.stop.is_set():
        try:
            await operator.cluster.check_definition(operator.namespaces[0])
            await operator.watches.catch_up(FINE_TUNE_JOBS)
            await operator.optional_kinds.look_for_all()
            for resource in CHILDREN:
                await operator.watches.follow(resource)
        except (DefinitionMissing, ApiError) as error:
            if operator.waits_for != str(error):
                logger.warning("Waiting: %s", error)
            operator.waits_for = str(error)
            try:
                await asyncio.wait_for(operator.stop.wait(), _START_RETRY_SECONDS)
            except TimeoutError:
                continue
        else:
            operator.waits_for = None
            operator.metrics.ready.set(1)
            logger.info("Ready", extra={"jobs": len(operator.store.job_keys())})
            return True
    return False


async def _work(operator: Operator) -> None:
    """Work on jobs until kopf is told to stop, or something that all depends on is gone."""
    namespaces = operator.settings.watched_namespaces
    try:
        async with asyncio.TaskGroup() as tasks:
            for background in (operator.queue.run(), operator.watches.run(), _look_again(operator)):
                operator.closing.callback(tasks.create_task(background).cancel)
            # NB: the identity is for peering, which is off; kopf would ask for the name of the user, and a container's
            # user has none (https://github.com/nolar/kopf/blob/main/kopf/_core/engines/peering.py, detect_own_id).
            identity: Any = names.OPERATOR
            await kopf.operator(
                identity=identity,
                registry=_registry(operator),
                settings=_kopf_settings(),
                namespaces=namespaces,
                clusterwide=not namespaces,
                stop_flag=operator.stop,
            )
    except* DefinitionMissing as group:
        # A fresh start waits for the definition; the pod's restart policy makes that start.
        raise DefinitionMissing(f"{group.exceptions[0]} It was there when the operator started.") from None


async def _look_again(operator: Operator) -> None:
    """List everything and look at every job from time to time: a watch may have missed something.

    Seldom: no watch is known to, and at a thousand jobs it takes as much as minutes of ordinary silence.
    """
    resync_seconds = operator.settings.resync_interval_seconds
    loop = asyncio.get_running_loop()
    next_resync = loop.time() + resync_seconds
    while True:
        await asyncio.sleep(min(resync_seconds, _CHECK_SECONDS))
        try:
            # NB: kopf's watch ends for good when the definition goes, and says so in its log only.
            await operator.cluster.check_definition(operator.namespaces[0])
            await operator.optional_kinds.check()
            if loop.time() >= next_resync:
                for resource in (FINE_TUNE_JOBS, *operator.watches.followed):
                    await operator.watches.catch_up(resource)
                operator.look_at_all()
                next_resync = loop.time() + resync_seconds
        except ApiError as error:
            logger.warning("%s", error)


def _registry(operator: Operator) -> kopf.OperatorRegistry:
    """Return what kopf is to do: log in, and tell the store and the queue of every change of a FineTuneJob."""
    registry = kopf.OperatorRegistry()
    # NB: kopf's default login would import the synchronous client, 60 MB of memory.
    kopf.on.login(registry=registry)(_log_in)

    # NB: before it ends, kopf waits five seconds for every task that is left: those of our server, and its own that
    # waits for the flag.
    @kopf.on.cleanup(registry=registry)
    async def close(**_: Any) -> None:
        operator.stop.set()
        await operator.closing.aclose()

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def see(event: Any, **_: Any) -> None:
        if event["type"] == "DELETED":
            key = operator.store.forget(event["object"])
        else:
            change = operator.store.update(event["object"])
            key = None if change is None else change.key
        if key is not None:
            operator.queue.add(key)

    return registry


def _log_in(**arguments: Any) -> kopf.ConnectionInfo | None:
    service_account = None if os.environ.get("KUBECONFIG") else kopf.login_with_service_account(**arguments)
    if service_account is None:
        return kopf.login_with_kubeconfig(**arguments)
    # By address, as every client does: by name the operator could not start while the cluster's DNS is down.
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return replace(service_account, server=server)


def _kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    settings.networking.error_backoffs = _KOPF_RETRY_DELAYS_SECONDS
    return settings


class _NoDiffs(kopf.DiffBaseStorage):
    """Remembers nothing of objects: kopf would copy each of them at every event to compare it with the last."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return {}

    def store(self, **_: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """Remembers nothing of handlers: kopf would look for their progress in each object at every event."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence
