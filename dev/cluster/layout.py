"""Where everything of the cluster lives: paths, addresses, names, versions. Every other file reads them from here."""

import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

# Kept for ever: what is slow to make. Kept while the cluster is up: its state, and its sockets and namespaces.
CACHE = Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune-operator")
STATE = Path("/var/lib/finetune-cluster")
RUN = Path("/run/finetune-cluster")

BIN = CACHE / "bin"
KUBECONFIG = CACHE / "kubeconfig"
LOGS = STATE / "logs"
CERTIFICATES = STATE / "certificates"

# The cluster's LAN is a bridge on the host. The control plane, the registry and DNS listen on its host address only, so
# nothing of the cluster can be reached from outside this machine, and the address is the same on every machine.
BRIDGE = "finetune0"
HOST_ADDRESS = "10.245.0.1"
LAN_PREFIX_LENGTH = 24
LAN_CIDR = "10.245.0.0/24"
POD_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
FIRST_SERVICE_ADDRESS = "10.96.0.1"
API_PORT = 6443
API_SERVER = f"https://{HOST_ADDRESS}:{API_PORT}"
REGISTRY_PORT = 5000
# Pods and charts name images by this prefix; each containerd is told that it means the registry at HOST_ADDRESS.
IMAGE_PREFIX = "localhost:5000"
REGISTRY = f"{HOST_ADDRESS}:{REGISTRY_PORT}"
CLUSTER_DOMAIN = "cluster.local"

# Environment variable that every process started for the cluster carries, with its part's name: /proc shows it.
MARK = "FINETUNE_CLUSTER_PART"
COMMAND_MARK = "command "

KUBERNETES_VERSION = "v1.34.4"  # NB: from 1.35 on the kubelet refuses cgroup v1, and containerd 1.6 is out of support
COREDNS_VERSION = "v1.12.4"
HELM_VERSION = "v3.22.0"
LOCAL_PATH_PROVISIONER_VERSION = "v0.0.30"
TRAINING_OPERATOR_VERSION = "v1.9.4"
KWOK_VERSION = "v0.7.0"
KUEUE_VERSION = "v0.17.0"


@dataclass(frozen=True)
class Node:
    """One node: a network namespace with its own containerd, kubelet and kube-proxy.

    Attributes:
        name: the Kubernetes node name.
        address: its address on the cluster's LAN.
        pod_cidr: the addresses of its pods.
    """

    name: str
    address: str
    pod_cidr: str

    @property
    def state(self) -> Path:
        """Kubelet's directory, CNI configuration and leases."""
        return STATE / "nodes" / self.name

    @property
    def run(self) -> Path:
        """Sockets and the network namespace."""
        return RUN / self.name

    @property
    def network_namespace(self) -> Path:
        """File on which the node's network namespace is mounted."""
        return self.run / "network-namespace"

    @property
    def host_interface(self) -> str:
        """The host's end of the node's cable; at most 15 characters, as the kernel asks."""
        return f"ft-{self.name}"

    @property
    def containerd_root(self) -> Path:
        """Images of this node, kept over ``down`` so that the trainer's gigabytes are unpacked once."""
        return CACHE / "containerd" / self.name

    @property
    def containerd_socket(self) -> Path:
        """Where this node's containerd listens."""
        return self.run / "containerd.sock"

    @property
    def cgroup(self) -> str:
        """The root of all pods' control groups, so that neither kubelet takes the other's pods for orphans."""
        return f"finetune-{self.name}"


NODES = (
    Node("node0", "10.245.0.10", "10.244.0.0/24"),
    Node("node1", "10.245.0.11", "10.244.1.0/24"),
)


def binary(name: str) -> Path:
    """Return the path of a program built by ``binaries``; the link names the version."""
    return BIN / name
