"""A cluster in a dictionary, for stories about `decide`: it carries decisions out, and plays Kubernetes on demand."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_operator import back_ends, observe
from finetune_operator.api.job import FineTuneJob
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.causes import Trouble
from finetune_operator.decide import Decision, Timing, decide
from finetune_operator.events import JobEvent, events_between
from finetune_operator.plan import make_plan
from finetune_operator.progress import Heard
from finetune_operator.reconcile import status_document
from finetune_operator.store import ObjectKey, object_key
from tests.factories import SETTINGS, UID, manifest, merged
from tests.unit.operator import kubernetes_objects as objects

Body = dict[str, Any]

TWO_NODES: Body = {"compute": {"nodes": 2, "device": "cpu"}}
LEADER_AND_WORKER: Body = TWO_NODES | {"storage": {"network": {"size": "1Gi", "storageClassName": "network-disk"}}}
PREPARE, TRAIN, EVALUATE = "prepare", "train", "evaluate"
TIMING = Timing(progress_interval_seconds=10, force_delete_seconds=60)


class World:
    """One job, its children, and the time."""

    def __init__(self, spec: Mapping[str, Any] | None = None, name: str = "calls") -> None:
        self.body = manifest(spec, name)
        self.objects: dict[ObjectKey, Body] = {}
        self.now = datetime(2026, 11, 23, 5, 0, tzinfo=UTC)
        self.warnings: dict[ObjectKey, list[Body]] = {}
        self.heard: Heard | None = None
        self.obstacle: Trouble | None = None
        self.lacking: Trouble | None = None
        self.settings = SETTINGS
        self.nodes: tuple[Mapping[str, str], ...] = ()
        """Labels of the nodes that the gang runs on, as they were read."""
        self.events: list[JobEvent] = []
        self.versions = 0
        self.prepared_message: Body = objects.PREPARED_MESSAGE
        """What the prepare pod says at its end."""
        self.lingers = False
        """Whether what is deleted stays until `let_go`, as pods do that write a checkpoint."""
        self.deleted = False
        """Whether the operator has deleted the job itself."""

    @property
    def status(self) -> FineTuneJobStatus:
        return FineTuneJobStatus.model_validate(self.body.get("status") or {})

    @property
    def conditions(self) -> dict[str, tuple[str, str]]:
        """Answer and reason of every condition, by type."""
        return {one.type.value: (one.status.value, one.reason) for one in self.status.conditions}

    def condition(self, condition_type: str) -> tuple[str, str, str]:
        """Return a condition's status, reason and message."""
        (found,) = [condition for condition in self.status.conditions if condition.type == condition_type]
        return found.status.value, found.reason, found.message

    def decide(self) -> Decision:
        children = tuple(self.objects.values())
        job = FineTuneJob.parse(self.body)
        plan = make_plan(job, self.settings, observe.access_modes(children))
        observed = observe.observe(UID, children, self.warnings, self.now, obstacle=self.obstacle)
        observed = replace(observed, lacking=self.lacking, nodes=self.nodes)
        return decide(plan, observed, self.now, TIMING, self.heard)

    def step(self, killed_after: str | None = None) -> Decision:
        """Decide once and carry it out, or only a part of it: the operator is killed after it `made` or `told`."""
        decision = self.decide()
        for applied in decision.apply:
            self.put(self.stored(applied))
        if killed_after == "made":
            return decision
        self.events += events_between(self.status, decision.status)
        self.body = self.body | {"status": status_document(decision.status)}
        if killed_after == "told":
            return decision
        for child in decision.delete:
            self.ask_to_leave(child.key)
        for child in decision.force:
            self.remove(child.key)
        self.deleted = self.deleted or decision.delete_job
        if not self.lingers:
            self.let_go()
        return decision

    def settle(self) -> Decision:
        """Step until nothing changes any more, which must not take long."""
        for _ in range(6):
            before = deepcopy((self.body, self.objects))
            decision = self.step()
            if (self.body, self.objects) == before:
                return decision
        raise AssertionError(f"does not come to rest: {decision}")

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def stored(self, body: Mapping[str, Any]) -> Body:
        """Return a manifest as the API server keeps it."""
        self.versions += 1
        stored = deepcopy(dict(body))
        stored["metadata"] |= {
            "uid": f"uid-{self.versions}",
            "resourceVersion": str(self.versions),
            "creationTimestamp": self.now.isoformat(),
        }
        if stored["kind"] == "Job":
            stored["status"] = {"startTime": self.now.isoformat()}  # its controller begins at once
        return stored

    def put(self, body: Body) -> None:
        self.objects[object_key(body)] = body

    def remove(self, key: ObjectKey) -> None:
        """Delete an object and what it owns, as the garbage collector does."""
        removed = self.objects.pop(key)
        for owned in self.owned_by(removed):
            self.objects.pop(object_key(owned))

    def ask_to_leave(self, key: ObjectKey) -> None:
        """Ask for the deletion of an object, and of the pods that it owns first."""
        body = self.objects[key]
        for leaving in (body, *self.owned_by(body)):
            leaving["metadata"].setdefault("deletionTimestamp", self.now.isoformat())

    def let_go(self) -> None:
        """Remove what was to be deleted and owns nothing any more, as the garbage collector does."""
        leaving = [key for key, body in self.objects.items() if "deletionTimestamp" in body["metadata"]]
        for key in sorted(leaving, key=lambda key: key.kind != "Pod"):
            if key in self.objects and not self.owned_by(self.objects[key]):
                del self.objects[key]

    def suspend(self, suspended: bool) -> None:
        self.change_spec({"suspend": suspended})

    def change_spec(self, patch: Mapping[str, Any]) -> None:
        metadata = self.body["metadata"]
        self.body = self.body | {
            "spec": merged(self.body["spec"], patch),
            "metadata": metadata | {"generation": metadata["generation"] + 1},
        }

    def delete(self, kind: str, name: str) -> None:
        self.remove(ObjectKey(kind, name))

    def owned_by(self, owner: Body) -> list[Body]:
        return [
            body
            for body in self.objects.values()
            if any(ref["uid"] == owner["metadata"]["uid"] for ref in body["metadata"].get("ownerReferences", ()))
        ]

    def names(self, kind: str) -> list[str]:
        return sorted(key.name for key in self.objects if key.kind == kind)

    def jobs(self, stage: str) -> list[Body]:
        return [
            body
            for key, body in sorted(self.objects.items())
            if key.kind in back_ends.WORKLOAD_KINDS and body["metadata"]["labels"]["finetune.dev/stage"] == stage
        ]

    def make_pods(self, stage: str) -> list[Body]:
        """Play the Job controller, or the training-operator: all pods of a gang at once."""
        for job in self.jobs(stage):
            self.make_pods_of(job)
        return self.pods(stage)

    def make_pods_of(self, job: Body) -> None:
        for pod_name in _pod_names(job):
            name = f"{job['metadata']['name']}-{pod_name}"
            if ObjectKey("Pod", name) not in self.objects:
                pod = self.stored(objects.pod(name, owner_uid=job["metadata"]["uid"]))
                pod["metadata"]["labels"] = dict(job["metadata"]["labels"])
                self.put(pod)

    def pods(self, stage: str) -> list[Body]:
        return [
            body
            for key, body in sorted(self.objects.items())
            if key.kind == "Pod" and body["metadata"]["labels"]["finetune.dev/stage"] == stage
        ]

    def set_pods(self, stage: str, status: Mapping[str, Any]) -> None:
        """Play the kubelet: every pod of a stage gets this status."""
        for pod in self.make_pods(stage):
            pod["status"] = dict(status)

    def finish_jobs(self, stage: str, condition: str) -> None:
        """Play the Job controller: every Job of a stage is Complete or Failed."""
        for job in self.jobs(stage):
            set_job_condition(job, condition)

    def bind_claims(self) -> None:
        for key, body in self.objects.items():
            if key.kind == "PersistentVolumeClaim":
                body["status"] = {"phase": "Bound"}

    def until_prepared(self) -> "World":
        """Play on until the training Jobs are there."""
        self.settle()
        self.bind_claims()
        self.set_pods(PREPARE, objects.running())
        self.settle()
        self.set_pods(PREPARE, objects.ended(self.prepared_message))
        self.finish_jobs(PREPARE, "Complete")
        self.settle()
        return self

    def until_running(self) -> "World":
        """Play on until the gang runs."""
        self.until_prepared()
        self.set_pods(TRAIN, objects.running())
        self.settle()
        return self


def _pod_names(job: Body) -> list[str]:
    """Return what the pods of a Job or a PyTorchJob are called, after its own name."""
    if not back_ends.is_pytorch_job(job):
        return [f"{index}-x" for index in range(job["spec"].get("completions", 1))]
    replicas = job["spec"]["pytorchReplicaSpecs"].items()
    return [f"{kind.lower()}-{index}" for kind, spec in replicas for index in range(spec["replicas"])]


def set_job_condition(job: Body, condition: str, message: str = "") -> None:
    job["status"] = {"conditions": [{"type": condition, "status": "True", "message": message}]}
