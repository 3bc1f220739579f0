"""The pods of a job as commands look at them: which stage and attempt they belong to, and which ranks run in them.

Pure: raw pods in, frozen data out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_cli.jobs import Job
from finetune_operator import names
from finetune_operator.names import Label, RoleName, Stage

Body = Mapping[str, Any]
# How an Indexed Job, and Kubeflow's training-operator, number the pods of one role.
_INDEX_LABELS = ("batch.kubernetes.io/job-completion-index", "training.kubeflow.org/replica-index")


@dataclass(frozen=True)
class PodView:
    """A pod of a job."""

    name: str
    stage: Stage
    attempt: int
    """Attempt that it belongs to; 0 when it prepares or evaluates."""
    node_rank: int
    ranks: range
    """Global ranks of its processes; one for a pod that does not train."""
    node: str | None
    container: str
    state: str
    """What kubectl would show: Running, Pending, ContainerCreating, OOMKilled ..."""
    running: bool
    started: bool
    """Whether its container has run, so that there is a log."""
    created: str

    @property
    def prefix(self) -> str:
        """What its log lines are known by: `prepare`, `rank 0`, `ranks 8-15`."""
        if self.stage is not Stage.TRAIN:
            return self.stage.value
        if len(self.ranks) == 1:
            return f"rank {self.ranks.start}"
        return f"ranks {self.ranks.start}-{self.ranks.stop - 1}"


def selector(job: Job) -> str:
    """Return the label selector of everything that belongs to a job."""
    return f"{Label.JOB}={job.name}"


def see_pods(job: Job, bodies: Iterable[Body]) -> tuple[PodView, ...]:
    """Return a job's pods by stage, attempt and rank; pods that commands started beside it are none of its own."""
    own = [body for body in bodies if body["metadata"].get("labels", {}).get(Label.STAGE) in set(Stage)]
    order = list(Stage)
    views = [_see_pod(job, body) for body in own]
    return tuple(
        sorted(views, key=lambda pod: (order.index(pod.stage), pod.attempt, pod.node_rank, pod.created, pod.name))
    )


def newest_gang(pods: Sequence[PodView]) -> tuple[PodView, ...]:
    """Return the training pods of the newest attempt, by rank."""
    newest = max((pod.attempt for pod in pods if pod.stage is Stage.TRAIN), default=0)
    return tuple(pod for pod in pods if pod.stage is Stage.TRAIN and pod.attempt == newest)


def pods_that_tell(pods: Sequence[PodView]) -> tuple[PodView, ...]:
    """Return the pods of the stage that is under way, or was last: those that a person wants to read now."""
    evaluating = [pod for pod in pods if pod.stage is Stage.EVALUATE]
    return tuple(evaluating) or newest_gang(pods) or tuple(pod for pod in pods if pod.stage is Stage.PREPARE)


def _see_pod(job: Job, body: Body) -> PodView:
    metadata, status = body["metadata"], body.get("status", {})
    labels = metadata.get("labels", {})
    stage = Stage(labels[Label.STAGE])
    index = next((int(labels[name]) for name in _INDEX_LABELS if name in labels), 0)
    node_rank = index + (1 if labels.get(Label.ROLE) == RoleName.WORKER else 0)
    each = job.processes_per_node if stage is Stage.TRAIN else 1
    containers = status.get("containerStatuses") or ()
    states = [container.get("state") or {} for container in containers]
    return PodView(
        name=metadata["name"],
        stage=stage,
        attempt=int(labels.get(Label.ATTEMPT) or 0),
        node_rank=node_rank,
        ranks=range(node_rank * each, (node_rank + 1) * each),
        node=body.get("spec", {}).get("nodeName"),
        container=_container(body),
        state=_state(body, states),
        running=any("running" in state for state in states) and not metadata.get("deletionTimestamp"),
        started=any("running" in state or "terminated" in state for state in states),
        created=metadata["creationTimestamp"],
    )


def _container(body: Body) -> str:
    found = [container["name"] for container in body.get("spec", {}).get("containers") or ()]
    known = [name for name in found if name in (names.CONTAINER, names.PYTORCH_CONTAINER)]
    return str((known or found or [names.CONTAINER])[0])


def _state(body: Body, states: Sequence[Mapping[str, Any]]) -> str:
    if body["metadata"].get("deletionTimestamp"):
        return "Terminating"
    for state in states:
        if waiting := state.get("waiting"):
            return str(waiting.get("reason") or "Waiting")
        if terminated := state.get("terminated"):
            return str(terminated.get("reason") or "Ended")
    return str(body.get("status", {}).get("reason") or body.get("status", {}).get("phase") or "Pending")
