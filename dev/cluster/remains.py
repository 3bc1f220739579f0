"""Takes the cluster away, whatever state it is in, and tells what is still there.

Every function looks at the machine and not at notes of what was started, so it works on the remains of a cluster that
was killed at any point, and a second time.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from dev.cluster import network, nodes
from dev.cluster.commands import output_of, succeeds
from dev.cluster.failure import ClusterError
from dev.cluster.layout import CACHE, COMMAND_MARK, KUBECONFIG, NODES, RUN, STATE, Node
from dev.cluster.processes import cluster_processes, is_alive, kill, stop

PART = "cluster-down"
# The boot in which the state was made; sockets, namespaces and containers of an earlier one are gone.
_BOOT = STATE / "boot-id"
_THIS_BOOT = Path("/proc/sys/kernel/random/boot_id")
# NB: whoever uses the API goes first: an etcd that goes away under a live API server breaks its watches.
_STOPPED_LAST = (("kube-apiserver",), ("etcd", "containerd-"))
_MOUNTS_UNDER = (STATE, RUN, CACHE / "containerd", CACHE / "images")
# Fixed places where Kubernetes, containerd and CNI leave something, whatever their configuration says.
_LEFT_FILES = (Path("/var/lib/kubelet/device-plugins/kubelet.sock"), Path("/etc/cni/net.d/cni.lock"))
_LEFT_DIRECTORIES = (
    Path("/var/lib/kubelet/device-plugins"),
    Path("/var/lib/kubelet"),
    Path("/var/log/containers"),
    Path("/var/lib/cni/results"),
    Path("/var/lib/cni"),
    Path("/etc/cni/net.d"),
    Path("/etc/cni"),
    Path("/run/containerd/s"),
    Path("/run/containerd"),
)
_CONTAINER_LOGS = Path("/var/log/containers")
_CNI_RESULTS = Path("/var/lib/cni/results")
_SHIM_SOCKETS = Path("/run/containerd/s")


def clear_if_stale() -> None:
    """Take away what an earlier boot or an interrupted ``down`` has left, and mark the state as this boot's."""
    if _BOOT.exists() and _BOOT.read_text() == _THIS_BOOT.read_text():
        return
    if left := remaining():
        print(f"Taking away what an earlier cluster has left: {len(left)} processes, mounts, interfaces and folders.")
    take_down()
    STATE.mkdir(parents=True, exist_ok=True)
    STATE.chmod(0o711)  # pods pass through to their volumes; nobody lists
    RUN.mkdir(parents=True, exist_ok=True)
    _BOOT.write_text(_THIS_BOOT.read_text())


def end_orphans() -> None:
    """End builds whose ``up`` was killed: nobody would use what they make."""
    stop(process for process in cluster_processes() if process.part.startswith(COMMAND_MARK))
    kill(_pids_inside_image_builds())


def take_down() -> None:
    """Stop and remove everything but the caches.

    Raises:
        ClusterError: something could not be removed; it is named.
    """
    _BOOT.unlink(missing_ok=True)  # first, so that an interrupted run is seen as one
    end_orphans()
    late = tuple(prefix for prefixes in _STOPPED_LAST for prefix in prefixes)
    stop(process for process in cluster_processes() if not process.part.startswith(late))
    for prefixes in _STOPPED_LAST:
        stop(process for process in cluster_processes() if process.part.startswith(prefixes) and not process.is_shim)
    _kill_containers()
    _unmount()
    network.remove_network()
    _remove_cgroups()
    _remove_fixed_places()
    KUBECONFIG.unlink(missing_ok=True)
    for directory in (STATE, RUN):
        # Never into another filesystem: should a mount have stayed, what is in it is not ours to delete.
        output_of(PART, ["rm", "-rf", "--one-file-system", directory])
    if left := remaining():
        what = "\n    ".join(["still there:", *left])
        raise ClusterError(PART, what, "run it again; `fuser -vm` tells who uses a mount")


def crash(node: Node) -> None:
    """Kill all that runs on a node at once, as if its power had been cut; ``up`` brings it back.

    The daemons go first: nobody is left to report that the containers ended.
    """
    parts = {nodes.kubelet(node).name, nodes.kube_proxy(node).name, nodes.containerd(node).name}
    kill(process.pid for process in cluster_processes() if process.part in parts)
    while pids := _container_pids([node]):
        kill(pids)
        time.sleep(0.1)


def remaining() -> list[str]:
    """Return one line for each process, mount, interface, iptables rule, control group and folder of the cluster."""
    lines = [f"process {process.pid} {process.part} ({process.program})" for process in cluster_processes()]
    lines += [f"process {pid} of a container" for pid in _container_pids()]
    lines += [f"mount {path}" for path in _mounts()]
    lines += [f"interface {name}" for name in network.remaining_interfaces()]
    lines += [f"iptables rule {rule}" for rule in network.remaining_rules()]
    lines += [f"control group {path}" for path in _cgroups()]
    lines += [f"folder {path}" for path in (STATE, RUN) if path.exists()]
    return lines


def _kill_containers() -> None:
    """Kill what runs in the nodes' control groups, then the shims above, until nothing is left."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pids = _container_pids()
        shims = [process.pid for process in cluster_processes()]
        if not pids and not shims:
            return
        kill(pids or shims)
        time.sleep(0.1)


def _container_pids(of_nodes: Sequence[Node] = NODES) -> list[int]:
    groups = tuple(f":/{node.cgroup}/" for node in of_nodes)
    pids = []
    for pid in _all_pids():
        try:
            inside = any(group in Path(f"/proc/{pid}/cgroup").read_text() for group in groups)
        except OSError:  # it ended while we looked
            continue
        if inside and is_alive(pid):
            pids.append(pid)
    return pids


def _pids_inside_image_builds() -> list[int]:
    """Return processes whose root is an image that is being built: they have an environment of their own."""
    return [pid for pid in _all_pids() if _root_of(pid).is_relative_to(CACHE / "images")]


def _root_of(pid: int) -> Path:
    try:
        return Path(f"/proc/{pid}/root").readlink()
    except OSError:  # it ended while we looked
        return Path("/")


def _all_pids() -> list[int]:
    return [int(directory.name) for directory in Path("/proc").iterdir() if directory.name.isdigit()]


def _mounts() -> list[Path]:
    """Return the cluster's mount points, the innermost first."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(line.split()[4].encode().decode("unicode_escape"))
        if any(point.is_relative_to(directory) for directory in _MOUNTS_UNDER):
            points.append(point)
    return points[::-1]


def _unmount() -> None:
    for point in _mounts():
        if not succeeds(["umount", point]):
            # Still in use by somebody who is ending; from now on nobody can enter it.
            succeeds(["umount", "--lazy", point])


def _cgroups() -> list[Path]:
    return [group for top in nodes.cgroup_hierarchies() for node in NODES if (group := top / node.cgroup).exists()]


def _remove_cgroups() -> None:
    deadline = time.monotonic() + 10
    while _cgroups() and time.monotonic() < deadline:
        for group in _cgroups():
            # A group is removed when it is empty, so from the inside out; the kernel may need a moment for it.
            succeeds(["find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
        time.sleep(0.1)


def _remove_fixed_places() -> None:
    in_use = Path("/proc/net/unix").read_text()
    log_links = [path for path in _CONTAINER_LOGS.glob("*.log") if path.is_symlink()]
    ours = [
        *_LEFT_FILES,
        *(link for link in log_links if link.readlink().is_relative_to(STATE)),
        *_CNI_RESULTS.glob(f"{nodes.CNI_NETWORK}-*"),
        *(socket for socket in _SHIM_SOCKETS.glob("*") if str(socket) not in in_use),
    ]
    for path in ours:
        path.unlink(missing_ok=True)
    for directory in _LEFT_DIRECTORIES:
        if directory.exists() and not any(directory.iterdir()):
            directory.rmdir()
