"""What a person is told where the training-operator runs a gang."""

from typing import Any

from finetune_operator import training_operator
from tests.unit.operator import kubernetes_objects as objects


def _in_init_container(state: dict[str, Any]) -> dict[str, Any]:
    """A pod whose init container, which the training-operator made, is in this state."""
    init = {"name": "init-pytorch", "image": "alpine:3.10", "state": state}
    return objects.waiting("PodInitializing") | {"initContainerStatuses": [init]}


def test_an_init_container_whose_image_cannot_be_pulled_is_told_with_the_flag_that_names_another() -> None:
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image."}}
    trouble = training_operator.why_init_container_waits(objects.pod("demo-a1-worker-0", **_in_init_container(state)))
    assert trouble is not None
    assert trouble.reason == "ImagePullFailed"
    assert "alpine:3.10" in trouble.message
    assert "--pytorch-init-container-image" in trouble.message


def test_an_init_container_that_works_keeps_nobody_waiting() -> None:
    pod = objects.pod("demo-a1-worker-0", **_in_init_container({"running": {}}))
    assert training_operator.why_init_container_waits(pod) is None


def test_a_worker_that_did_not_find_its_master_in_time_failed_because_of_another() -> None:
    status = _in_init_container({"terminated": {"exitCode": 1, "reason": "Error"}}) | {"phase": "Failed"}
    trouble = training_operator.why_init_container_failed(objects.pod("demo-a1-worker-0", **status))
    assert trouble is not None
    assert trouble.reason == "CollectiveFailed"
    assert "--pytorch-init-container-max-tries" in trouble.message


def test_a_missing_back_end_is_told_with_the_command_that_installs_it() -> None:
    trouble = training_operator.why_backend_is_missing("PyTorchJob")
    assert trouble.reason == "BackendMissing"
    assert "kubectl apply --server-side -k " in trouble.message
    assert "spec.compute.backend: Job" in trouble.message
