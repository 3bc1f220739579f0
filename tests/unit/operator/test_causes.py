"""What a person reads when a pod, a Job or a claim is in trouble."""

from typing import Any

import pytest

from finetune_operator import causes
from tests.unit.operator import kubernetes_objects as objects

WAITS: dict[str, tuple[dict[str, Any], str, str]] = {
    "GPUs that no node has: the scheduler's own words": (
        objects.unschedulable(),
        "Unschedulable",
        "2 Insufficient nvidia.com/gpu",
    ),
    "an image that is not there": (
        objects.waiting("ImagePullBackOff", 'Back-off pulling image "trainer:1"'),
        "ImagePullFailed",
        'Back-off pulling image "trainer:1"',
    ),
    "an image name that is none": (
        objects.waiting("InvalidImageName", "couldn't parse image name"),
        "ImagePullFailed",
        "imagePullSecrets",
    ),
    "an object that the container needs is missing": (
        objects.waiting("CreateContainerConfigError", 'configmap "demo-config" not found'),
        "ContainerNotCreated",
        'configmap "demo-config" not found',
    ),
}
DOES_NOT_WAIT: dict[str, dict[str, Any]] = {
    "it is new": {"phase": "Pending"},
    "its image is being pulled": objects.waiting("ContainerCreating"),
    "it runs": objects.running(),
    "it has ended": objects.ended(objects.PREPARED_MESSAGE),
    "it has ended, and its node was lost afterwards": objects.ended(objects.PREPARED_MESSAGE)
    | {"conditions": objects.disrupted("DeletionByTaintManager")["conditions"]},
}
FAILURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "the trainer says why": (
        objects.ended(objects.failure_message("Diverged", "loss is NaN at step 3"), exit_code=1),
        "Diverged",
        "loss is NaN at step 3",
    ),
    "killed for memory, whatever its last message": (
        objects.ended("", exit_code=137, reason="OOMKilled"),
        "OOMKilled",
        "Raise memory",
    ),
    "killed by a signal": (objects.ended("", exit_code=139), "Killed", "signal 11"),
    "an image without the trainer: the end of its log": (
        objects.ended("python: No module named finetune_trainer", exit_code=1),
        "Error",
        "No module named finetune_trainer",
    ),
    "evicted by its node": (
        {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
        "Evicted",
        "low on resource: memory",
    ),
    "refused by its node": (
        {"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu"},
        "PodRejected",
        "enough resource: cpu",
    ),
    "preempted": (
        objects.disrupted(
            "PreemptionByScheduler", "default-scheduler: preempting to accommodate a higher priority pod"
        ),
        "Preempted",
        "higher priority",
    ),
    "a rank was killed for memory, and its agent could still say so": (
        objects.ended(objects.failure_message("Killed", "process 1 was killed by SIGKILL"), 1, reason="OOMKilled"),
        "OOMKilled",
        "Raise memory",
    ),
    "its node lost the container, as after a restart": (
        objects.ended("The container could not be located", exit_code=137, reason="ContainerStatusUnknown"),
        "NodeLost",
        "could not be located",
    ),
    "its node restarted, and containerd found the container gone": (
        objects.ended("", exit_code=255, reason="Unknown"),
        "NodeLost",
        "as when it restarts",
    ),
    "its node is shut down": (
        objects.ended(objects.failure_message("Terminated", "stopped by SIGTERM"), exit_code=143)
        | {"message": "Pod was terminated in response to imminent node shutdown."}
        | {"conditions": objects.disrupted("TerminationByKubelet")["conditions"]},
        "Evicted",
        "imminent node shutdown",
    ),
    "preempted, and it could still say that it was told to stop": (
        objects.ended(objects.failure_message("Terminated", "stopped by SIGTERM"), exit_code=143)
        | {"conditions": objects.disrupted("PreemptionByScheduler")["conditions"]},
        "Preempted",
        "higher priority",
    ),
    "it had failed by itself before its node was lost": (
        objects.ended(objects.failure_message("Diverged", "loss is NaN at step 3"), exit_code=1)
        | {"conditions": objects.disrupted("DeletionByTaintManager")["conditions"]},
        "Diverged",
        "loss is NaN at step 3",
    ),
    "told to stop by nobody knows whom": (
        objects.ended(objects.failure_message("Terminated", "stopped by SIGTERM"), exit_code=143),
        "Terminated",
        "stopped by SIGTERM",
    ),
    "a rank was killed, as its agent tells": (
        objects.ended(objects.failure_message("Killed", "process 1 was killed by SIGKILL"), exit_code=1),
        "Killed",
        "process 1 was killed by SIGKILL",
    ),
    "its node is gone": (objects.disrupted("DeletionByTaintManager"), "NodeLost", "not reachable"),
    "its node is drained": (objects.disrupted("EvictionByEvictionAPI"), "Evicted", "drained"),
}


@pytest.mark.parametrize("case", WAITS)
def test_a_pod_that_waits_says_for_what(case: str) -> None:
    status, reason, words = WAITS[case]
    trouble = causes.why_pod_waits(objects.pod("demo-prepare-x", **status), ())
    assert trouble is not None
    assert trouble.reason == reason
    assert words in trouble.message
    assert "demo-prepare-x" in trouble.message


@pytest.mark.parametrize("case", DOES_NOT_WAIT)
def test_a_pod_is_not_in_trouble_when(case: str) -> None:
    pod = objects.pod("demo-prepare-x", **DOES_NOT_WAIT[case])
    assert causes.why_pod_waits(pod, ()) is None
    assert causes.why_pod_failed(pod) is None


@pytest.mark.parametrize("case", FAILURES)
def test_a_pod_that_failed_says_why(case: str) -> None:
    status, reason, words = FAILURES[case]
    trouble = causes.why_pod_failed(objects.pod("demo-a1-node-0-x", **status))
    assert trouble is not None
    assert trouble.reason == reason
    assert words in trouble.message


EVIDENCE = {
    "a container that ended": (
        objects.ended("", exit_code=137, reason="OOMKilled"),
        "Seen: pod demo-a1-node-0-x, node gpu-3, exit code 137 (OOMKilled), at 2026-11-23T05:10:00Z.",
    ),
    "a pod that its node took away": (
        objects.disrupted("EvictionByEvictionAPI"),
        "Seen: pod demo-a1-node-0-x, node gpu-3, condition DisruptionTarget EvictionByEvictionAPI.",
    ),
    "a pod that never ran": (
        {"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu"},
        "Seen: pod demo-a1-node-0-x, node gpu-3.",
    ),
}


@pytest.mark.parametrize("case", EVIDENCE)
def test_a_failure_ends_with_what_was_seen_of(case: str) -> None:
    status, evidence = EVIDENCE[case]
    pod = objects.pod("demo-a1-node-0-x", **status) | {"spec": {"nodeName": "gpu-3"}}
    trouble = causes.why_pod_failed(pod)
    assert trouble is not None
    assert trouble.message.endswith(evidence)


def test_a_job_that_a_queue_suspends_is_told_as_queued_with_its_queue() -> None:
    job = {"kind": "Job", "metadata": {"name": "demo-a1-node", "labels": {"kueue.x-k8s.io/queue-name": "team-a"}}}
    trouble = causes.why_job_is_queued(job)
    assert trouble.reason == "Queued"
    assert "Queue team-a has suspended Job demo-a1-node" in trouble.message
    assert "kubectl describe localqueue team-a" in trouble.message


def test_a_job_that_somebody_suspends_by_hand_names_no_queue() -> None:
    trouble = causes.why_job_is_queued({"kind": "Job", "metadata": {"name": "demo-a1-node"}})
    assert "Somebody other than the operator has suspended Job demo-a1-node" in trouble.message


def _unschedulable(stage: str, resources: dict[str, Any], words: str) -> str:
    pod = objects.pod("calls-a1-node-0-x", **objects.unschedulable(words))
    pod["metadata"]["labels"]["finetune.dev/stage"] = stage
    pod["spec"] = {"containers": [{"name": "trainer", "resources": resources}]}
    trouble = causes.why_pod_waits(pod, ())
    assert trouble is not None
    return trouble.message


def test_gpus_that_no_node_has_are_told_with_what_was_asked_for_and_what_to_do() -> None:
    gpus = {"limits": {"nvidia.com/gpu": "64"}, "requests": {"cpu": "8", "nvidia.com/gpu": "64"}}
    assert _unschedulable("train", gpus, "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.") == (
        "No node of the cluster can take pod calls-a1-node-0-x now, which asks for 64 nvidia.com/gpu, 8 cpu. The "
        "scheduler says: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu. Nothing is lost by waiting: it starts "
        "by itself as soon as a node can take it. If none ever will, delete the job and apply it with a smaller "
        "spec.compute (kubectl describe nodes shows, under Allocatable, what a node has in all)."
    )


NO_NODE_TAKES_IT = {
    "prepare asks for what the chart says": ("prepare", "1 Insufficient memory.", "trainer.prepare in its chart"),
    "no node has the labels": ("train", "2 node(s) didn't match Pod's node affinity/selector.", "nodeSelector"),
    "the nodes are tainted": ("train", "2 node(s) had untolerated taint(s)", "spec.compute.tolerations"),
    "a claim is being bound": ("train", "pod has unbound immediate PersistentVolumeClaims.", "as soon as a node"),
}


@pytest.mark.parametrize("case", NO_NODE_TAKES_IT)
def test_a_pod_that_no_node_takes_says_what_can_be_done_about_it(case: str) -> None:
    stage, words, remedy = NO_NODE_TAKES_IT[case]
    message = _unschedulable(stage, {}, words)
    assert words.removesuffix(".") in message
    assert remedy in message
    assert ("delete the job" in message) == (stage == "train" and remedy != "as soon as a node")


def test_a_long_log_is_cut_to_its_end() -> None:
    pod = objects.pod("p", **objects.ended("x" * 4000 + "the last line", exit_code=2))
    trouble = causes.why_pod_failed(pod)
    assert trouble is not None
    assert "the last line. Seen: pod p" in trouble.message
    assert len(trouble.message) < 800


def test_a_pod_that_is_being_created_for_long_says_which_volume_is_not_there() -> None:
    mount = objects.warning(
        "FailedMount", 'MountVolume.SetUp failed for volume "job" : configmap "demo-config" not found'
    )
    trouble = causes.why_pod_waits(objects.pod("p", **objects.waiting("ContainerCreating")), [mount])
    assert trouble is not None
    assert trouble.reason == "VolumeNotMounted"
    assert 'configmap "demo-config" not found' in trouble.message


def test_a_storage_class_that_does_not_exist_is_named_with_what_to_do() -> None:
    warnings = [objects.warning("ProvisioningFailed", objects.NO_CLASS)]
    trouble = causes.why_claim_is_pending(objects.claim("demo-shared", phase="Pending"), warnings)
    assert trouble is not None
    assert trouble.reason == "StorageClassMissing"
    assert "'no-such'" in trouble.message
    assert "kubectl get storageclass" in trouble.message


def test_a_claim_that_cannot_bind_says_why_in_the_newest_words() -> None:
    warnings = [
        objects.warning("ProvisioningFailed", "quota of the project is used up", at="2026-11-23T05:02:00Z"),
        objects.warning("ProvisioningFailed", "rpc error: timed out", at="2026-11-23T05:01:00Z"),
    ]
    trouble = causes.why_claim_is_pending(objects.claim("demo-shared", phase="Pending"), warnings)
    assert trouble is not None
    assert trouble.reason == "ClaimPending"
    assert "quota of the project is used up" in trouble.message


@pytest.mark.parametrize(
    ("phase", "warnings"),
    [("Bound", [objects.warning("ProvisioningFailed", "an old story")]), ("Pending", [])],
    ids=["a bound claim", "a claim that waits for its first pod"],
)
def test_no_trouble_is_told_of(phase: str, warnings: list[dict[str, Any]]) -> None:
    assert causes.why_claim_is_pending(objects.claim("demo-shared", phase=phase), warnings) is None


def test_pods_that_a_quota_refuses_are_told_in_the_api_servers_words() -> None:
    job = {"kind": "Job", "metadata": {"name": "demo-prepare"}}
    trouble = causes.why_job_has_no_pods(job, [objects.warning("FailedCreate", f"Error creating: {objects.QUOTA}")])
    assert trouble is not None
    assert trouble.reason == "PodsRefused"
    assert "exceeded quota: small" in trouble.message
