"""Which ranks run in which pod, and what is read of a training while it runs."""

from dataclasses import fields

import pytest

from finetune_cli.pods import newest_gang, pods_that_tell, see_pods
from finetune_cli.readings import losses_in_log, read_series, see_event, with_loss
from finetune_trainer.metrics import StepRecord
from finetune_trainer.runlog import describe_step
from tests.unit.cli.views import make_view, train_pod

TWO_NODES = {"compute": {"nodes": 2, "gpusPerNode": 8}}


def test_a_pod_of_eight_processes_is_known_by_its_eight_ranks() -> None:
    pods = see_pods(make_view(spec=TWO_NODES), [train_pod(1), train_pod(0)])
    assert [(pod.node_rank, pod.prefix) for pod in pods] == [(0, "ranks 0-7"), (1, "ranks 8-15")]


def test_the_first_worker_beside_a_leader_is_node_1() -> None:
    pods = see_pods(make_view(spec=TWO_NODES), [train_pod(0, "worker"), train_pod(0, "leader")])
    assert [pod.name for pod in pods] == ["calls-a1-leader-0-x7k2p", "calls-a1-worker-0-x7k2p"]
    assert [pod.node_rank for pod in pods] == [0, 1]


def test_a_pod_of_a_pytorch_job_is_numbered_by_its_replica() -> None:
    body = train_pod(0, "worker", **{"training.kubeflow.org/replica-index": "2"})
    del body["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
    (pod,) = see_pods(make_view(spec={"compute": {"nodes": 4}}), [body])
    assert (pod.node_rank, pod.prefix) == (3, "rank 3")


def test_only_the_newest_attempt_is_the_gang() -> None:
    old, new = train_pod(0), train_pod(0, **{"finetune.dev/attempt": "2"})
    new["metadata"]["name"] = "calls-a2-node-0-abcde"
    pods = see_pods(make_view(), [new, old])
    assert [pod.name for pod in newest_gang(pods)] == ["calls-a2-node-0-abcde"]


def test_the_stage_under_way_is_the_one_that_is_read() -> None:
    evaluating = train_pod(0, **{"finetune.dev/stage": "evaluate"})
    preparing = train_pod(0, **{"finetune.dev/stage": "prepare"})
    job = make_view()
    assert [pod.prefix for pod in pods_that_tell(see_pods(job, [preparing]))] == ["prepare"]
    assert [pod.prefix for pod in pods_that_tell(see_pods(job, [preparing, train_pod(0)]))] == ["rank 0"]
    assert [pod.prefix for pod in pods_that_tell(see_pods(job, [evaluating, train_pod(0)]))] == ["evaluate"]


@pytest.mark.parametrize(
    ("state", "shown", "running", "started"),
    [
        ({"running": {}}, "Running", True, True),
        ({"waiting": {"reason": "ImagePullBackOff"}}, "ImagePullBackOff", False, False),
        ({"terminated": {"reason": "OOMKilled"}}, "OOMKilled", False, True),
    ],
)
def test_a_pod_is_in_the_state_that_kubectl_would_show(
    state: dict[str, object], shown: str, running: bool, started: bool
) -> None:
    body = train_pod(0)
    body["status"]["containerStatuses"][0]["state"] = state
    (pod,) = see_pods(make_view(), [body])
    assert (pod.state, pod.running, pod.started) == (shown, running, started)


def test_a_pod_that_is_being_deleted_does_not_run() -> None:
    body = train_pod(0)
    body["metadata"]["deletionTimestamp"] = "2026-11-27T12:00:00Z"
    (pod,) = see_pods(make_view(), [body])
    assert (pod.state, pod.running) == ("Terminating", False)


def test_the_page_of_an_exporter_gives_each_gpu_and_what_rank_0_knows() -> None:
    reading = read_series(
        "# TYPE finetune_loss gauge\nfinetune_loss 0.75\n"
        "# TYPE finetune_step gauge\nfinetune_step 12.0\n"
        "# TYPE finetune_tokens_per_second gauge\nfinetune_tokens_per_second 18300.0\n"
        "# TYPE finetune_gpu_utilization_ratio gauge\n"
        'finetune_gpu_utilization_ratio{gpu="1"} 0.5\nfinetune_gpu_utilization_ratio{gpu="0"} 0.93\n'
        "# TYPE finetune_gpu_memory_used_bytes gauge\n"
        'finetune_gpu_memory_used_bytes{gpu="0"} 1073741824\n'
    )
    assert (reading.step, reading.loss, reading.tokens_per_second) == (12, 0.75, 18300.0)
    assert [(gpu.index, gpu.utilization, gpu.memory_bytes) for gpu in reading.gpus] == [
        (0, 0.93, 1073741824.0),
        (1, 0.5, None),
    ]


def test_a_page_that_is_none_of_an_exporter_is_read_as_nothing() -> None:
    reading = read_series("<html>no</html>")
    assert (reading.gpus, reading.step) == ((), None)


def test_losses_are_read_from_the_lines_that_the_trainer_writes() -> None:
    lines = [
        "14:00:01 model tiny",
        "step 1/8  loss 1.1150  lr 1.0e-03  grad norm 2.10  300 tokens/s  eta 0:02:00",
        "step 2/8  loss nan  lr 1.0e-03  grad norm nan  300 tokens/s  eta 0:02:00",
    ]
    losses = losses_in_log(lines)
    assert losses[1] == 1.115
    assert losses[2] != losses[2]


def test_what_is_done_again_after_a_restart_replaces_what_was_lost() -> None:
    lines = [f"step {step}/8  loss {loss:.4f}  lr 1e-3" for step, loss in [(1, 3), (2, 2), (3, 1), (2, 2.5)]]
    assert losses_in_log(lines) == {1: 3.0, 2: 2.5}
    assert with_loss({1: 3.0, 2: 2.5}, 3, 1.5) == {1: 3.0, 2: 2.5, 3: 1.5}


def test_the_trainers_own_line_of_a_step_can_be_read() -> None:
    record = StepRecord(**{field.name: 1 for field in fields(StepRecord)} | {"step": 7, "loss": 1.25})
    assert losses_in_log([describe_step(record, 10, 2.0)]) == {7: 1.25}


def test_an_event_is_one_line_with_the_time_that_it_has() -> None:
    event = see_event(
        {
            "metadata": {"creationTimestamp": "2026-11-27T11:00:00Z"},
            "lastTimestamp": None,
            "type": "Warning",
            "reason": "Stalled",
            "message": "No step\nfor 1800 s.",
        }
    )
    assert (event.time, event.kind, event.message) == ("2026-11-27T11:00:00Z", "Warning", "No step for 1800 s.")
