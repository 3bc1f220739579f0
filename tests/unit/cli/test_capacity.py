"""Which nodes of a cluster could take a pod of a job, which can now, and why the others do not."""

from typing import Any

from finetune_cli.capacity import Capacity, need_of, weigh
from finetune_cli.draw.plan import draw_capacity
from tests.factories import make_job
from tests.unit.cli.views import node, pod_on

GPU = "nvidia.com/gpu"
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


def capacity(
    nodes: list[dict[str, Any]], pods: list[dict[str, Any]] | None = None, nodes_wanted: int = 2, **compute: Any
) -> Capacity:
    job = make_job({"compute": {"nodes": nodes_wanted, "gpusPerNode": 8, **compute}})
    return weigh(need_of(job.spec.compute, GPU), nodes_wanted, nodes, pods, GPU)


def test_two_free_nodes_of_eight_gpus_take_a_gang_of_two_pods() -> None:
    found = capacity([node("a"), node("b")], [])
    assert (found.could_ever, found.fits_now) == (True, True)


def test_one_node_of_eight_gpus_never_takes_two_pods_of_eight() -> None:
    found = capacity([node("a")], [])
    assert (found.could_ever, found.fits_now) == (False, False)


def test_one_node_of_eight_gpus_takes_two_pods_of_four() -> None:
    found = capacity([node("a")], [], gpusPerNode=4)
    assert found.nodes[0].pods_now == 2
    assert found.fits_now


def test_gpus_that_somebody_holds_are_not_free_but_come_back() -> None:
    found = capacity([node("a"), node("b")], [pod_on("a", gpus=1), pod_on("b", gpus=8, phase="Succeeded")])
    assert (found.could_ever, found.fits_now) == (True, False)
    assert found.nodes[0].not_now == "has free 7 of the 8 nvidia.com/gpu"
    assert (found.nodes[0].free_gpus, found.nodes[1].free_gpus) == (7, 8)


def test_a_taint_that_is_not_tolerated_keeps_a_node_away_for_ever() -> None:
    found = capacity([node("a", taints=[TAINT])], [], nodes_wanted=1)
    assert found.nodes[0].never == "taint nvidia.com/gpu=present:NoSchedule is not tolerated"
    assert found.nodes[0].taints == ("nvidia.com/gpu=present:NoSchedule",)


def test_a_toleration_of_the_key_lets_the_pod_in() -> None:
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert capacity([node("a", taints=[TAINT])], [], nodes_wanted=1, tolerations=tolerations).fits_now


def test_a_toleration_of_another_value_does_not() -> None:
    tolerations = [{"key": "nvidia.com/gpu", "value": "absent", "effect": "NoSchedule"}]
    assert not capacity([node("a", taints=[TAINT])], [], nodes_wanted=1, tolerations=tolerations).could_ever


def test_a_taint_that_merely_prefers_others_keeps_nobody_away() -> None:
    soft = TAINT | {"effect": "PreferNoSchedule"}
    assert capacity([node("a", taints=[soft])], [], nodes_wanted=1).fits_now


def test_a_node_that_is_not_ready_or_cordoned_comes_back() -> None:
    gone, cordoned = node("a", ready=False), node("b")
    gone["spec"]["taints"] = [{"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}]
    cordoned["spec"]["unschedulable"] = True
    found = capacity([gone, cordoned], [])
    assert [fit.not_now for fit in found.nodes] == ["is not ready", "is cordoned"]
    assert (found.could_ever, found.fits_now) == (True, False)


def test_a_label_that_the_job_asks_for_and_the_node_lacks_is_named() -> None:
    found = capacity([node("a", labels={"pool": "cpu"}), node("b")], [], nodeSelector={"pool": "gpu"})
    assert [fit.never for fit in found.nodes] == ["label pool is cpu, not gpu", "label pool is missing, not gpu"]


def test_more_memory_than_a_node_has_is_told_in_gibibytes() -> None:
    found = capacity([node("a")], [], nodes_wanted=1, resources={"requests": {"memory": "1Ti"}})
    assert found.nodes[0].never == "has 512.0Gi of the 1024.0Gi memory"


def test_who_may_not_see_the_pods_of_others_learns_what_could_ever_be() -> None:
    found = capacity([node("a"), node("b", gpus=4)], None)
    assert [fit.free_gpus for fit in found.nodes] == [None, None]
    assert found.nodes[1].never == "has 4 of the 8 nvidia.com/gpu"


def test_a_job_on_processors_asks_nodes_for_no_gpu() -> None:
    job = make_job({"compute": {"nodes": 2, "device": "cpu"}})
    assert weigh(need_of(job.spec.compute, GPU), 2, [node("a", gpus=0)], [], GPU).fits_now


def test_the_gpu_of_most_able_nodes_is_the_one_to_reckon_with() -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"}
    found = capacity([node("a", labels=labels), node("b", labels=labels), node("c", gpus=1)], [])
    assert found.gpu is not None
    assert (found.gpu.name, found.gpu.memory_bytes, found.gpu.peak_flops) == (
        "NVIDIA-H100-80GB-HBM3",
        81559 * 1024 * 1024,
        989e12,
    )


def test_the_picture_of_a_cluster_says_for_each_node_why() -> None:
    found = capacity([node("a"), node("b", gpus=4)], [pod_on("a", gpus=8)])
    assert draw_capacity(found, 8, on_gpus=True).plain.splitlines() == [
        "Cluster  2 pods of 8 GPUs: this cluster can never take them as they are",
        "",
        "NODE   GPU   FREE   PODS   VERDICT",
        "a      8     0      0      not now: has free 0 of the 8 nvidia.com/gpu",
        "b      4     4      0      never: has 4 of the 8 nvidia.com/gpu",
    ]
