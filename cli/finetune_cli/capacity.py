"""Which nodes of a cluster could ever take a pod of a job, which could now, and why the others do not.

Pure. It judges by what a scheduler looks at first: readiness, labels, taints, and requests against what is allocatable.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from finetune_cli.gpus import Gpu, gpu_of_node
from finetune_operator.api.placement import Toleration
from finetune_operator.api.spec import Compute
from finetune_operator.quantity import quantity_value
from finetune_trainer.contract.spec import Device

Body = Mapping[str, Any]
_REPELLING = ("NoSchedule", "NoExecute")


@dataclass(frozen=True)
class Need:
    """What one training pod asks of a node."""

    amounts: Mapping[str, Decimal]
    compute: Compute


@dataclass(frozen=True)
class NodeFit:
    """What a node has to say to a pod of the job."""

    name: str
    gpu: Gpu | None
    gpus: int
    """GPUs that pods may ask for, taken or not."""
    free_gpus: int | None
    """Those that no pod has asked for; None where this user may not see the pods of others."""
    never: str | None
    """Why it could not take a pod even when it is empty."""
    not_now: str | None
    """Why it cannot take one at this moment."""
    pods_ever: int
    """Pods of the job that it could take when it is empty."""
    pods_now: int
    taints: tuple[str, ...] = ()
    """Taints that the job does not tolerate, as `key=value:effect`."""


@dataclass(frozen=True)
class Capacity:
    """A cluster, as far as one job is concerned."""

    nodes: tuple[NodeFit, ...]
    pods_wanted: int

    @property
    def able(self) -> tuple[NodeFit, ...]:
        """Nodes that could take a pod when they are empty."""
        return tuple(node for node in self.nodes if node.never is None)

    @property
    def free(self) -> tuple[NodeFit, ...]:
        """Nodes that can take a pod now."""
        return tuple(node for node in self.able if node.not_now is None)

    @property
    def could_ever(self) -> bool:
        """Whether all pods of the gang fit on the cluster when it is empty."""
        return sum(node.pods_ever for node in self.nodes) >= self.pods_wanted

    @property
    def fits_now(self) -> bool:
        """Whether all pods of the gang fit now."""
        return sum(node.pods_now for node in self.nodes) >= self.pods_wanted

    @property
    def gpu(self) -> Gpu | None:
        """The GPU of most of the nodes that could take a pod."""
        kinds = [node.gpu for node in self.able if node.gpu is not None]
        return max(kinds, key=kinds.count, default=None)


def need_of(compute: Compute, gpu_resource: str) -> Need:
    """Return what a training pod of a job asks for."""
    wanted = {name: quantity_value(amount) for name, amount in compute.resources.requests.items()}
    for name, amount in compute.resources.limits.items():
        wanted.setdefault(name, quantity_value(amount))
    if compute.device is Device.GPU:
        wanted[gpu_resource] = Decimal(compute.num_processes_per_node)
    return Need(wanted, compute)


def weigh(
    need: Need, pods_wanted: int, nodes: Iterable[Body], pods: Sequence[Body] | None, gpu_resource: str
) -> Capacity:
    """Hold what a pod asks for against every node.

    Args:
        need: of one pod.
        pods_wanted: pods of the gang, each of which may share a node with others.
        nodes: all nodes of the cluster.
        pods: all its pods, or None where they may not be seen.
        gpu_resource: the extended resource that GPUs are.
    """
    taken = None if pods is None else _taken_by_node(pods)
    fits = [_fit(need, node, taken, gpu_resource) for node in sorted(nodes, key=lambda node: str(_name(node)))]
    return Capacity(tuple(fits), pods_wanted)


def _fit(need: Need, node: Body, taken: Mapping[str, Mapping[str, Decimal]] | None, gpu_resource: str) -> NodeFit:
    name, labels = _name(node), node["metadata"].get("labels") or {}
    allocatable = {key: _amount(value) for key, value in (node.get("status", {}).get("allocatable") or {}).items()}
    taints = _untolerated(node, need.compute.tolerations)
    lacking = _lacking(need.amounts, allocatable, "has")
    never = _wrong_labels(need.compute, labels) or lacking
    if never is None and taints:
        never = f"taint {taints[0]} is not tolerated"
    used = {} if taken is None else taken.get(name, {})
    free = {key: amount - used.get(key, Decimal(0)) for key, amount in allocatable.items()}
    not_now = _not_ready(node) or (None if taken is None else _lacking(need.amounts, free, "has free"))
    return NodeFit(
        name=name,
        gpu=gpu_of_node(labels),
        gpus=int(allocatable.get(gpu_resource, 0)),
        free_gpus=None if taken is None else max(int(free.get(gpu_resource, 0)), 0),
        never=never,
        not_now=not_now,
        pods_ever=0 if never else _pods_in(allocatable, need.amounts),
        pods_now=0 if never or not_now else _pods_in(free, need.amounts),
        taints=taints,
    )


def _pods_in(room: Mapping[str, Decimal], wanted: Mapping[str, Decimal]) -> int:
    """Return how many pods there is room for; as many as the node may run where they ask for nothing."""
    each = {name: amount for name, amount in wanted.items() if amount > 0} | {"pods": Decimal(1)}
    return max(0, min(int(room.get(name, Decimal(0)) // amount) for name, amount in each.items()))


def _name(node: Body) -> str:
    return str(node["metadata"]["name"])


def _amount(text: str) -> Decimal:
    try:
        return quantity_value(str(text))
    except ValueError:
        return Decimal(0)


def _lacking(wanted: Mapping[str, Decimal], there: Mapping[str, Decimal], has: str) -> str | None:
    for name, amount in wanted.items():
        found = there.get(name, Decimal(0))
        if found < amount:
            return f"{has} {_plain(name, found)} of the {_plain(name, amount)} {name}"
    return None


def _plain(name: str, amount: Decimal) -> str:
    if name in ("memory", "ephemeral-storage") or name.startswith("hugepages-"):
        return f"{amount / (1 << 30):.1f}Gi"
    return f"{amount.normalize():f}"


def _not_ready(node: Body) -> str | None:
    if node.get("spec", {}).get("unschedulable"):
        return "is cordoned"
    for condition in node.get("status", {}).get("conditions") or ():
        if condition["type"] == "Ready" and condition["status"] != "True":
            return "is not ready"
    return None


def _untolerated(node: Body, tolerations: Sequence[Toleration]) -> tuple[str, ...]:
    taints = node.get("spec", {}).get("taints") or ()
    # What Kubernetes itself puts on a node that is cordoned or not ready is told as that, and passes.
    lasting = [taint for taint in taints if not str(taint["key"]).startswith("node.kubernetes.io/")]
    return tuple(
        f"{taint['key']}{'=' + taint['value'] if taint.get('value') else ''}:{taint['effect']}"
        for taint in lasting
        if taint["effect"] in _REPELLING and not any(_tolerates(toleration, taint) for toleration in tolerations)
    )


def _tolerates(toleration: Toleration, taint: Body) -> bool:
    if toleration.effect and toleration.effect != taint["effect"]:
        return False
    if toleration.key and toleration.key != taint["key"]:
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == (taint.get("value") or "")


def _wrong_labels(compute: Compute, labels: Mapping[str, str]) -> str | None:
    for key, value in compute.node_selector.items():
        if labels.get(key) != value:
            return f"label {key} is {labels.get(key, 'missing')}, not {value}"
    return None


def _taken_by_node(pods: Iterable[Body]) -> dict[str, dict[str, Decimal]]:
    """Return what pods that have not ended ask for, by node."""
    taken: dict[str, dict[str, Decimal]] = {}
    for pod in pods:
        node, phase = pod.get("spec", {}).get("nodeName"), pod.get("status", {}).get("phase")
        if node is None or phase in ("Succeeded", "Failed"):
            continue
        amounts = taken.setdefault(node, {"pods": Decimal(0)})
        amounts["pods"] += 1
        for container in pod["spec"].get("containers") or ():
            resources = container.get("resources") or {}
            for name, amount in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items():
                amounts[name] = amounts.get(name, Decimal(0)) + _amount(amount)
    return taken
