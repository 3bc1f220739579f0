"""Jobs and their plans, made anew only when what they rest on has changed.

Most looks at a job are for its children, which change more often than itself; to read the job and to plan it was a
quarter of the work of a look.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_operator.api.job import FineTuneJob
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.plan import ClaimAccessModes, Plan, make_plan
from finetune_operator.settings import Settings
from finetune_operator.store import Body, JobKey


@dataclass
class _Known:
    """A version of a job, and what was made of it."""

    body: Body
    job: FineTuneJob
    claim_access_modes: ClaimAccessModes | None = None
    plan: Plan | None = None

    def went_on(self, body: Body, status: FineTuneJobStatus) -> None:
        """Take over a later version, of which only the status differs."""
        self.body, self.job = body, self.job.with_status(status)
        if self.plan is not None:
            self.plan = self.plan.with_status(status)


class Plans:
    """Keeps the newest version of each job, and its plan."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[JobKey, _Known] = {}

    def job(self, key: JobKey, body: Body) -> FineTuneJob:
        """Return the job that an object of the store is.

        Raises:
            InvalidJob: with every problem and its field path.
        """
        known = self._known.get(key)
        if known is None or not _is_same_but_for_status(known.body, body):
            known = self._known[key] = _Known(body, FineTuneJob.parse(body))
        elif known.body.get("status") == body.get("status"):
            known.body = body
        else:
            known.went_on(body, FineTuneJobStatus.model_validate(body.get("status") or {}))
        return known.job

    def plan(self, key: JobKey, body: Body, claim_access_modes: ClaimAccessModes) -> Plan:
        """Return the plan of a job.

        Raises:
            InvalidJob: the job cannot be carried out as it is.
        """
        job = self.job(key, body)
        known = self._known[key]
        if known.plan is None or known.claim_access_modes != claim_access_modes:
            known.plan = make_plan(job, self._settings, claim_access_modes)
            known.claim_access_modes = claim_access_modes
        return known.plan

    def status(self, key: JobKey, body: Body) -> FineTuneJobStatus:
        """Return what was told of a job so far, whether or not the rest of it can be read."""
        known = self._known.get(key)
        if known is not None and known.body is body:
            return known.job.status
        return FineTuneJobStatus.model_validate(body.get("status") or {})

    def told(self, key: JobKey, body: Body, document: Mapping[str, Any], status: FineTuneJobStatus) -> None:
        """Take note of what has just been told of a job, which then need not be read from its new version.

        Args:
            key: the job.
            body: its newest version.
            document: the status as it was written.
            status: the same.
        """
        known = self._known.get(key)
        if known is not None and body.get("status") == document and _is_same_but_for_status(known.body, body):
            known.went_on(body, status)

    def forget(self, key: JobKey) -> None:
        """Forget a job that is gone, or that there is nothing more to do for."""
        self._known.pop(key, None)


def _is_same_but_for_status(body: Body, other: Body) -> bool:
    if body is other:
        return True
    return bool(_without_version(body) == _without_version(other) and body.get("spec") == other.get("spec"))


def _without_version(body: Body) -> Mapping[str, Any]:
    return {**body["metadata"], "resourceVersion": None}
