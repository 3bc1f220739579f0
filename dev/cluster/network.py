"""The cluster's LAN: a bridge on the host with a cable to each node, every node a network namespace of its own.

Because kubelet, kube-proxy and CNI work inside those namespaces, all their interfaces, routes and iptables chains
vanish with them; on the host there are one bridge, two cables, three routes and six iptables rules.
"""

import shutil
from pathlib import Path

from dev.cluster.commands import output_of, succeeds
from dev.cluster.layout import (
    BRIDGE,
    HOST_ADDRESS,
    LAN_CIDR,
    LAN_PREFIX_LENGTH,
    NODES,
    POD_CIDR,
    SERVICE_CIDR,
    STATE,
    Node,
)

PART = "network"
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_FORWARDING_BEFORE = STATE / "ip_forward.before"
_COMMENT = ("-m", "comment", "--comment", "finetune-cluster")


def ensure_network() -> str:
    """Make the bridge, both nodes' namespaces and cables, routes and the way to the outside."""
    if not _link_exists(BRIDGE):
        output_of(PART, ["ip", "link", "add", BRIDGE, "type", "bridge"])
    output_of(PART, ["ip", "address", "replace", f"{HOST_ADDRESS}/{LAN_PREFIX_LENGTH}", "dev", BRIDGE])
    output_of(PART, ["ip", "link", "set", BRIDGE, "up"])
    for node in NODES:
        _ensure_namespace(node)
        _ensure_cable(node)
        _ensure_routes_inside(node)
        output_of(PART, ["ip", "route", "replace", node.pod_cidr, "via", node.address])
    # From the host a Service is reached through the first node, whose kube-proxy knows the endpoints.
    output_of(PART, ["ip", "route", "replace", SERVICE_CIDR, "via", NODES[0].address])
    _ensure_way_out()
    return f"host {HOST_ADDRESS}, " + ", ".join(f"{node.name} {node.address}" for node in NODES)


def remove_network() -> None:
    """Remove everything that ``ensure_network`` made, but for the namespaces: those end when RUN is unmounted."""
    for rule in _iptables_rules() if remaining_rules() else ():
        while succeeds(_iptables("-D", rule)):
            pass
    for name in [node.host_interface for node in NODES] + [BRIDGE]:
        if _link_exists(name):
            output_of(PART, ["ip", "link", "delete", name])
    if _FORWARDING_BEFORE.exists():
        _FORWARDING.write_text(_FORWARDING_BEFORE.read_text())


def remaining_interfaces() -> list[str]:
    """Return the names of the cluster's interfaces that are on the host."""
    return [name for name in [BRIDGE, *(node.host_interface for node in NODES)] if _link_exists(name)]


def remaining_rules() -> list[str]:
    """Return the cluster's iptables rules that are on the host."""
    if shutil.which("iptables-save") is None:
        return []
    saved = output_of(PART, ["iptables-save"])
    return [line for line in saved.splitlines() if "finetune-cluster" in line]


def _ensure_namespace(node: Node) -> None:
    if not _is_namespace(node.network_namespace):
        node.network_namespace.parent.mkdir(parents=True, exist_ok=True)
        node.network_namespace.touch()
        output_of(PART, ["unshare", f"--net={node.network_namespace}", "true"])
    output_of(PART, [*_inside(node), "ip", "link", "set", "lo", "up"])
    # Pods are routed, not bridged, so the node has to forward; kubelet checks it too.
    output_of(PART, [*_inside(node), "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])


def _ensure_cable(node: Node) -> None:
    inside_exists = succeeds([*_inside(node), "ip", "link", "show", "eth0"])
    if not (_link_exists(node.host_interface) and inside_exists):
        if _link_exists(node.host_interface):
            output_of(PART, ["ip", "link", "delete", node.host_interface])
        peer = ["peer", "name", "eth0", "netns", str(node.network_namespace)]
        output_of(PART, ["ip", "link", "add", node.host_interface, "type", "veth", *peer])
    output_of(PART, ["ip", "link", "set", node.host_interface, "master", BRIDGE, "up"])
    output_of(PART, [*_inside(node), "ip", "address", "replace", f"{node.address}/{LAN_PREFIX_LENGTH}", "dev", "eth0"])
    output_of(PART, [*_inside(node), "ip", "link", "set", "eth0", "up"])


def _ensure_routes_inside(node: Node) -> None:
    output_of(PART, [*_inside(node), "ip", "route", "replace", "default", "via", HOST_ADDRESS])
    for other in NODES:
        if other != node:
            output_of(PART, [*_inside(node), "ip", "route", "replace", other.pod_cidr, "via", other.address])


def _ensure_way_out() -> None:
    """Let pods reach what the host reaches, under the host's address."""
    if not _FORWARDING_BEFORE.exists():
        _FORWARDING_BEFORE.parent.mkdir(parents=True, exist_ok=True)
        _FORWARDING_BEFORE.write_text(_FORWARDING.read_text())
    _FORWARDING.write_text("1\n")
    for rule in _iptables_rules():
        if not succeeds(_iptables("-C", rule)):
            output_of(PART, _iptables("-I", rule))


def _iptables_rules() -> list[tuple[str, ...]]:
    """Return the rules as (table, chain, condition and target...).

    The forwarding rules matter on machines whose FORWARD policy is DROP, as Docker sets it.
    """
    rules: list[tuple[str, ...]] = [
        ("filter", "FORWARD", direction, cidr, *_COMMENT, "-j", "ACCEPT")
        for cidr in (POD_CIDR, LAN_CIDR)
        for direction in ("-s", "-d")
    ]
    for cidr in (POD_CIDR, LAN_CIDR):
        rules.append(("nat", "POSTROUTING", "!", "-o", BRIDGE, "-s", cidr, *_COMMENT, "-j", "MASQUERADE"))
    return rules


def _iptables(action: str, rule: tuple[str, ...]) -> list[str]:
    table, *chain_and_condition = rule
    return ["iptables", "-w", "-t", table, action, *chain_and_condition]


def _inside(node: Node) -> list[str]:
    return ["nsenter", f"--net={node.network_namespace}", "--"]


def _is_namespace(path: Path) -> bool:
    """Return whether a namespace is mounted on the file; an empty file is what a killed ``up`` leaves."""
    return path.exists() and succeeds(["nsenter", f"--net={path}", "--", "true"])


def _link_exists(name: str) -> bool:
    return Path("/sys/class/net", name).exists()
