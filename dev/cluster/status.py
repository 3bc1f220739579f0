"""What of the cluster is running, for a person."""

from dev.cluster import control_plane, nodes, training_operator
from dev.cluster.commands import output_of
from dev.cluster.failure import ClusterError
from dev.cluster.image_build import IMAGES
from dev.cluster.layout import KUBECONFIG, NODES, STATE
from dev.cluster.processes import Part, find
from dev.cluster.registry import registry
from dev.cluster.storage import provisioner


def all_parts() -> list[Part]:
    """Return every daemon of the cluster, in the order in which they are started."""
    parts = [registry(), control_plane.etcd(), control_plane.api_server()]
    parts += [control_plane.controller_manager(), control_plane.scheduler(), control_plane.coredns(), provisioner()]
    for node in NODES:
        parts += [nodes.containerd(node), nodes.kubelet(node), nodes.kube_proxy(node)]
    return parts


def show_status() -> bool:
    """Print every part and both nodes; return whether all of it is running."""
    if not STATE.exists():
        print("The cluster is down. `make cluster` brings it up.")
        return False
    healthy = True
    for part in all_parts():
        process = find(part)
        healthy = healthy and process is not None
        print(f"{part.name:<28} {f'running, pid {process.pid}' if process else f'NOT RUNNING, see {part.log}'}")
    try:
        print(output_of("nodes", [*control_plane.kubectl(), "get", "nodes", "-o", "wide"]), end="")
        healthy = healthy and all(nodes.is_ready(node) for node in NODES)
    except ClusterError as error:
        print(error.what)
        healthy = False
    if training_operator.is_installed():
        ready = training_operator.is_ready()
        healthy = healthy and ready
        print(f"{training_operator.PART:<28} {'running in a pod' if ready else 'NOT READY'}")
    for image in IMAGES:
        print(f"image {image.reference()}")
    print(f"export KUBECONFIG={KUBECONFIG}")
    if not healthy:
        print("Something is missing: `make cluster` starts what does not run.")
    return healthy
