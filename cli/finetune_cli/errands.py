"""Sends a pod to a shared filesystem, waits for it, and takes it away again."""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from finetune_cli.cluster import Body, Cluster
from finetune_cli.errand import CONTAINER, PLACING_FIELDS, Place, reader_pod, verb_job
from finetune_cli.errors import CommandError, ExitCode, NotPermitted, NotThere
from finetune_cli.kinds import DEPLOYMENT, JOB, POD
from finetune_cli.terminal import note
from finetune_operator import names
from finetune_operator.names import Label
from finetune_trainer.contract.termination import Reason, read_termination

_ASK_SECONDS = 0.5
_TELL_SECONDS = 15.0
_PREFIX = "finetune"
_IMAGE_VARIABLE = "FINETUNE_TRAINER_IMAGE"
_PULL_POLICY_VARIABLE = "FINETUNE_TRAINER_IMAGE_PULL_POLICY"


def find_place(cluster: Cluster, job_body: Body | None, image: str | None) -> Place:
    """Return with which image a pod of the trainer runs here: the named one, a job's own, or the operator's.

    Raises:
        CommandError: nobody tells; it has to be named.
    """
    selector = Label.JOB.value if job_body is None else f"{Label.JOB}={job_body['metadata']['name']}"
    found = next((job for job in cluster.list(JOB, labels=selector) if _is_ours(job)), None)
    place = _place_of_pod(found["spec"]["template"]["spec"]) if found is not None else None
    if place is None:
        place = _place_of_spec(job_body) or _place_of_operator(cluster)
    if image is not None:
        return Place(image, place.pull_policy if place else "IfNotPresent", place.pod_fields if place else {})
    if place is None:
        raise CommandError("the trainer's image is not known here: name it with --image", ExitCode.USAGE)
    return place


def run_verb(
    cluster: Cluster, verb: str, place: Place, claim: str, arguments: Sequence[str], timeout_seconds: float
) -> list[str]:
    """Run a verb of the trainer on a claim and return the lines that it printed.

    Raises:
        CommandError: it failed, with its own words; or it did not start in time, with what it waits for.
    """
    name = f"{_PREFIX}-{verb}-{uuid.uuid4().hex[:6]}"
    cluster.create(JOB, verb_job(name, place, claim, [verb, *arguments]))
    try:
        pod = _ended_pod(cluster, name, timeout_seconds)
        lines = list(cluster.log_lines(pod["metadata"]["name"]))
        if pod["status"]["phase"] != "Succeeded":
            raise CommandError(f"{verb} failed: {_last_word(pod) or ' '.join(lines[-3:])}")
        return lines
    finally:
        cluster.delete(JOB, name)


@contextmanager
def reading(cluster: Cluster, place: Place, claim: str, timeout_seconds: float) -> Iterator[tuple[str, str]]:
    """Hold a claim open in a pod for as long as the block lasts; yields the pod and its container.

    Raises:
        CommandError: it did not start in time, with what it waits for.
    """
    name = f"{_PREFIX}-read-{uuid.uuid4().hex[:6]}"
    cluster.create(POD, reader_pod(name, place, claim))
    try:
        _wait(lambda: _runs(cluster.get(POD, name)), lambda: cluster.get(POD, name), timeout_seconds)
        yield name, CONTAINER
    finally:
        cluster.delete(POD, name)


def _is_ours(job: Body) -> bool:
    return bool(job["metadata"].get("labels", {}).get(Label.MANAGED_BY) == names.OPERATOR)


def _place_of_pod(spec: Mapping[str, Any]) -> Place:
    container = spec["containers"][0]
    fields = {name: spec[name] for name in PLACING_FIELDS if spec.get(name)}
    return Place(container["image"], container.get("imagePullPolicy", "IfNotPresent"), fields)


def _place_of_spec(job_body: Body | None) -> Place | None:
    compute = {} if job_body is None else job_body["spec"].get("compute") or {}
    if not compute.get("image"):
        return None
    fields: dict[str, Any] = {name: compute[name] for name in PLACING_FIELDS[1:] if compute.get(name)}
    if compute.get("imagePullSecrets"):
        fields["imagePullSecrets"] = [{"name": secret} for secret in compute["imagePullSecrets"]]
    return Place(compute["image"], compute.get("imagePullPolicy", "IfNotPresent"), fields)


def _place_of_operator(cluster: Cluster) -> Place | None:
    """Return the image that the operator gives to jobs, where this user may look at it."""
    try:
        deployments = cluster.list(DEPLOYMENT, everywhere=True, labels=f"{Label.APP_NAME}={names.OPERATOR}")
    except NotPermitted:
        return None
    for deployment in deployments:
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            values = {entry["name"]: entry.get("value") for entry in container.get("env") or ()}
            if values.get(_IMAGE_VARIABLE):
                return Place(values[_IMAGE_VARIABLE], values.get(_PULL_POLICY_VARIABLE) or "IfNotPresent")
    return None


def _ended_pod(cluster: Cluster, job_name: str, timeout_seconds: float) -> Body:
    def find() -> Body | None:
        pods = cluster.list(POD, labels=f"batch.kubernetes.io/job-name={job_name}")
        return pods[0] if pods else None

    def ended() -> bool:
        pod = find()
        return pod is not None and pod["status"].get("phase") in ("Succeeded", "Failed")

    _wait(ended, find, timeout_seconds)
    pod = find()
    if pod is None:
        raise NotThere(f"the pod of Job {job_name} is gone before it could be read")
    return pod


def _wait(until: Callable[[], bool], look: Callable[[], Body | None], timeout_seconds: float) -> None:
    """Wait until something is so; say now and then what it waits for.

    Raises:
        CommandError: TIMED_OUT.
    """
    started = told_at = time.monotonic()
    while not until():
        now = time.monotonic()
        if now - started > timeout_seconds:
            raise CommandError(
                f"not done within {timeout_seconds:.0f} s: {_what_it_waits_for(look())}", ExitCode.TIMED_OUT
            )
        if now - told_at > _TELL_SECONDS:
            told_at = now
            note(f"Waiting: {_what_it_waits_for(look())}")
        time.sleep(_ASK_SECONDS)


def _runs(pod: Body) -> bool:
    if pod["status"].get("phase") in ("Succeeded", "Failed"):
        raise CommandError(f"pod {pod['metadata']['name']} ended at once: {_last_word(pod) or 'it gave no reason'}")
    states = pod["status"].get("containerStatuses") or ()
    return any("running" in state.get("state", {}) for state in states)


def _what_it_waits_for(pod: Body | None) -> str:
    if pod is None:
        return "the namespace has not made its pod yet (a quota, or Pod Security)"
    for condition in pod["status"].get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message"))
    for state in pod["status"].get("containerStatuses") or ():
        if waiting := state.get("state", {}).get("waiting"):
            return f"{waiting.get('reason')} {waiting.get('message', '')}".strip()
    return f"pod {pod['metadata']['name']} is {pod['status'].get('phase')}"


def _last_word(pod: Body) -> str | None:
    for state in pod["status"].get("containerStatuses") or ():
        message = ((state.get("state") or {}).get("terminated") or {}).get("message")
        told = read_termination(message)
        if told is not None and told.reason is not Reason.SUCCEEDED:
            return told.message
        if message:
            return str(message)
    return None
