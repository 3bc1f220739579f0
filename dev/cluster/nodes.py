"""The two nodes: containerd, kubelet and kube-proxy of each, started inside the node's network namespace."""

import json
import os
from pathlib import Path

from dev.cluster import certificates as certs
from dev.cluster.certificates import write_file
from dev.cluster.commands import output_of, succeeds
from dev.cluster.control_plane import kubectl
from dev.cluster.debian import CNI_PLUGINS
from dev.cluster.layout import (
    CLUSTER_DOMAIN,
    HOST_ADDRESS,
    IMAGE_PREFIX,
    POD_CIDR,
    REGISTRY,
    STATE,
    Node,
    binary,
)
from dev.cluster.processes import Part, ensure_running, wait_until_ready
from dev.cluster.tiny_image import TINY_IMAGE

CGROUPS = Path("/sys/fs/cgroup")
REGISTRY_HOSTS = STATE / "registry-hosts"
CNI_NETWORK = "finetune-cluster"
GPU = "nvidia.com/gpu"


def ensure_containerd(node: Node) -> str:
    """Start the node's container runtime, and empty it of containers that an earlier cluster left."""
    write_file(REGISTRY_HOSTS / IMAGE_PREFIX / "hosts.toml", _REGISTRY_HOST)
    write_file(_containerd_configuration(node), _containerd_toml(node))
    write_file(node.state / "cni" / "10-finetune-cluster.conflist", _cni_configuration(node))
    node.run.mkdir(parents=True, exist_ok=True)
    part = containerd(node)
    started = ensure_running(part)
    wait_until_ready(
        part,
        lambda: succeeds([*ctr(node), "version"]),
        timeout_seconds=30,
        advice=f"if its image store is damaged, remove {node.containerd_root} and run again",
    )
    first_time = node.state / "cleared"
    if not first_time.exists():
        _remove_containers(node)
        first_time.touch()
    return "started" if started else "already running"


def ensure_node(node: Node, gpus: int) -> str:
    """Start kubelet and kube-proxy, wait until Kubernetes calls the node Ready, and let it claim its GPUs."""
    _ensure_cgroup(node)
    write_file(_kubelet_configuration(node), _kubelet_yaml(node))
    write_file(_proxy_configuration(node), _proxy_yaml(node))
    started = [part.name for part in (kubelet(node), kube_proxy(node)) if ensure_running(part)]
    advice = "`make cluster-down` and `make cluster` start from nothing, images are kept"
    # NB: the API server calls a node Ready for a while after its kubelet was killed, so the kubelet is asked as well.
    wait_until_ready(kubelet(node), lambda: _answers(node, 10248) and is_ready(node), timeout_seconds=60, advice=advice)
    wait_until_ready(kube_proxy(node), lambda: _answers(node, 10256), timeout_seconds=60, advice=advice)
    claimed = f", {gpus} GPUs claimed" if claim_gpus(node, gpus) else ""
    return (f"started {', '.join(started)}" if started else "already running") + claimed


def is_ready(node: Node) -> bool:
    """Return whether Kubernetes calls the node Ready."""
    return succeeds([*kubectl(), "wait", f"node/{node.name}", "--for=condition=Ready", "--timeout=0s"])


def claim_gpus(node: Node, count: int) -> bool:
    """Let the node claim GPUs that it does not have, so that the scheduler places pods that ask for some.

    Returns:
        Whether the claim was changed.
    """
    shown = output_of(node.name, [*kubectl(), "get", "node", node.name, "-o", "json"])
    status = json.loads(shown)["status"]
    if {int(status[kind].get(GPU, 0)) for kind in ("capacity", "allocatable")} == {count}:
        return False
    resources = {GPU: str(count) if count else None}
    patch = json.dumps({"status": {"capacity": resources, "allocatable": resources}})
    output_of(node.name, [*kubectl(), "patch", "node", node.name, "--subresource=status", "--type=merge", "-p", patch])
    return True


def ctr(node: Node) -> list[str]:
    """Return the words that begin a command to this node's containerd."""
    return ["ctr", "--address", str(node.containerd_socket), "--namespace", "k8s.io"]


def containerd(node: Node) -> Part:
    """Return the node's containerd."""
    configuration = _containerd_configuration(node)
    return Part(
        f"containerd-{node.name}",
        ("/usr/bin/containerd", f"--config={configuration}"),
        network_namespace=node.network_namespace,
        configuration=(configuration,),
    )


def kubelet(node: Node) -> Part:
    """Return the node's kubelet."""
    identity = certs.KUBELETS[node.name]
    return Part(
        f"kubelet-{node.name}",
        (
            str(binary("kubelet")),
            f"--config={_kubelet_configuration(node)}",
            f"--kubeconfig={identity.kubeconfig}",
            f"--root-dir={node.state / 'kubelet'}",
            f"--hostname-override={node.name}",
            f"--node-ip={node.address}",
        ),
        network_namespace=node.network_namespace,
        configuration=(_kubelet_configuration(node), identity.kubeconfig),
    )


def kube_proxy(node: Node) -> Part:
    """Return the node's kube-proxy."""
    return Part(
        f"kube-proxy-{node.name}",
        (str(binary("kube-proxy")), f"--config={_proxy_configuration(node)}"),
        network_namespace=node.network_namespace,
        configuration=(_proxy_configuration(node), certs.PROXY.kubeconfig),
    )


def _answers(node: Node, port: int) -> bool:
    """Return whether a daemon calls itself healthy, on the loopback of the node's namespace."""
    curl = ["curl", "--silent", "--fail", "--max-time", "2", f"http://127.0.0.1:{port}/healthz"]
    return succeeds(["nsenter", f"--net={node.network_namespace}", "--", *curl])


def _containerd_configuration(node: Node) -> Path:
    return node.state / "containerd.toml"


def _kubelet_configuration(node: Node) -> Path:
    return node.state / "kubelet.yaml"


def _proxy_configuration(node: Node) -> Path:
    return node.state / "kube-proxy.yaml"


def _remove_containers(node: Node) -> None:
    """Forget containers whose processes are long gone: this cluster's kubelet knows nothing of them."""
    for container in output_of(f"containerd-{node.name}", [*ctr(node), "containers", "list", "--quiet"]).split():
        succeeds([*ctr(node), "tasks", "delete", "--force", container])
        output_of(f"containerd-{node.name}", [*ctr(node), "containers", "delete", container])


def _ensure_cgroup(node: Node) -> None:
    """Make the control group under which all of the node's pods live, in every hierarchy."""
    for hierarchy in cgroup_hierarchies():
        if (hierarchy / "cgroup.subtree_control").exists() and hierarchy == CGROUPS:  # cgroup v2
            (hierarchy / "cgroup.subtree_control").write_text("+cpu +cpuset +io +memory +pids")
        group = hierarchy / node.cgroup
        group.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # cgroup v1: no process may enter while these are empty
            if (hierarchy / name).exists() and not (group / name).read_text().strip():
                (group / name).write_text((hierarchy / name).read_text())


def cgroup_hierarchies() -> list[Path]:
    """Return the mounted control group hierarchies: one with cgroup v2, one for each controller with v1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink() and os.path.ismount(path)]


_REGISTRY_HOST = f"""\
server = "http://{REGISTRY}"
[host."http://{REGISTRY}"]
  capabilities = ["pull", "resolve"]
"""


def _containerd_toml(node: Node) -> str:
    # NB: restrict_oom_score_adj: a root without CAP_SYS_RESOURCE cannot lower a sandbox's oom_score_adj, and runc fails
    # with "can't get final child's PID from pipe: EOF" (https://github.com/containerd/containerd/issues/6699).
    return f"""\
version = 2
root = "{node.containerd_root}"
state = "{node.run / "containerd"}"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{node.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{TINY_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    discard_unpacked_layers = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{node.run / "runc"}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{node.state / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{REGISTRY_HOSTS}"
"""


def _cni_configuration(node: Node) -> str:
    """Return the pods' network: routed, not bridged, so that every packet to a Service passes kube-proxy's rules."""
    addresses = {
        "type": "host-local",
        "dataDir": str(node.state / "addresses"),
        "ranges": [[{"subnet": node.pod_cidr}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugin = {"type": "ptp", "ipMasq": False, "ipam": addresses}
    return json.dumps({"cniVersion": "0.4.0", "name": CNI_NETWORK, "plugins": [plugin]}, indent=1)


def _kubelet_yaml(node: Node) -> str:
    identity = certs.KUBELETS[node.name]
    return f"""\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {node.address}
authentication: {{anonymous: {{enabled: false}}, x509: {{clientCAFile: "{certs.CA_CERTIFICATE}"}}}}
authorization: {{mode: Webhook}}
tlsCertFile: "{identity.certificate}"
tlsPrivateKeyFile: "{identity.key}"
containerRuntimeEndpoint: "unix://{node.containerd_socket}"
cgroupDriver: cgroupfs
cgroupRoot: "/{node.cgroup}"
enforceNodeAllocatable: []
failSwapOn: false
clusterDNS: ["{HOST_ADDRESS}"]
clusterDomain: {CLUSTER_DOMAIN}
podLogsDir: "{node.state / "pod-logs"}"
volumePluginDir: "{node.state / "volume-plugins"}"
# The disk is shared with everything else on this machine: evict only when it is really full.
evictionHard: {{memory.available: 100Mi, nodefs.available: 1Gi, imagefs.available: 1Gi}}
imageGCHighThresholdPercent: 97
imageGCLowThresholdPercent: 95
maxPods: 200
nodeStatusUpdateFrequency: 4s
kubeAPIQPS: 100
kubeAPIBurst: 200
"""


def _proxy_yaml(node: Node) -> str:
    # NB: nftables mode leaves the endpoints' chains empty on some kernels. Conntrack's limits belong to the host.
    return f"""\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: {node.name}
clusterCIDR: {POD_CIDR}
clientConnection: {{kubeconfig: "{certs.PROXY.kubeconfig}"}}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"""
