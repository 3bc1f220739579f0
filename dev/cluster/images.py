"""Gets images into both nodes: the sandbox image from an archive, all others from the registry."""

import json
import tempfile
import time
from pathlib import Path

from dev.cluster.commands import output_of
from dev.cluster.control_plane import kubectl
from dev.cluster.failure import ClusterError
from dev.cluster.layout import NODES, Node
from dev.cluster.nodes import ctr
from dev.cluster.tiny_image import BUSYBOX, TINY_IMAGE, tiny_image_archive

PULL_TIMEOUT_SECONDS = 1200.0
_NAMESPACE = "kube-system"


def ensure_tiny_image() -> str:
    """Import the sandbox image into both nodes unless they have it."""
    if all(has_image(node, TINY_IMAGE) for node in NODES):
        return "already there"
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        archive.write(tiny_image_archive(BUSYBOX.read_bytes()))
        archive.flush()
        load_archive(Path(archive.name))
    return "imported"


def has_image(node: Node, reference: str) -> bool:
    """Return whether a node has an image under this name."""
    return reference in output_of(node.name, [*ctr(node), "images", "list", "--quiet"]).split()


def load_archive(archive: Path) -> None:
    """Import an image archive (docker or OCI layout in a tar file) into both nodes."""
    for node in NODES:
        output_of(node.name, [*ctr(node), "images", "import", archive], advice=f"is {archive} an image archive?")


def pull(reference: str) -> str:
    """Pull an image from the registry into both nodes, side by side, unless they have it.

    A pod on each node does it: so it is the kubelet that pulls, just as it would for a job, and containerd forgets the
    compressed layers once they are unpacked.

    Raises:
        ClusterError: a node could not pull it, with the kubelet's words.
    """
    without = [node for node in NODES if not has_image(node, reference)]
    for node in without:
        output_of(node.name, [*kubectl(), "apply", "-f", "-"], stdin=json.dumps(_puller(node, reference)))
    deadline = time.monotonic() + PULL_TIMEOUT_SECONDS
    waiting = list(without)
    try:
        while waiting:
            waiting = [node for node in waiting if not _has_pulled(node, reference)]
            if time.monotonic() > deadline:
                what = f"{reference} was not pulled within {PULL_TIMEOUT_SECONDS:.0f} s"
                raise ClusterError(waiting[0].name, what, "is there disk left (df -h)? then run it again")
            time.sleep(0.5)
    finally:
        for node in without:
            pod = ["pod", _puller_name(node, reference)]
            output_of(node.name, [*kubectl(), "-n", _NAMESPACE, "delete", *pod, "--now"])
    return f"pulled into {', '.join(node.name for node in without)}" if without else "already there"


def forget_older(reference: str) -> None:
    """Remove earlier images of the same name that no container uses from both nodes; the registry still has them."""
    for node in NODES:
        _forget_older(node, reference)


def _forget_older(node: Node, reference: str) -> None:
    """Remove them from a node.

    An image has three names in containerd: by tag, by digest and by the digest of its configuration.
    """
    listed = output_of(node.name, [*ctr(node), "images", "list"]).splitlines()[1:]
    digests = {name: digest for name, _, digest, *_ in map(str.split, listed)}
    containers = output_of(node.name, [*ctr(node), "containers", "list"]).splitlines()[1:]
    kept = {digests.get(container.split()[1]) for container in containers} | {digests[reference]}
    repository = reference.rpartition(":")[0]
    older = {digest for name, digest in digests.items() if name.startswith(f"{repository}:")} - kept
    if names := [name for name, digest in digests.items() if digest in older]:
        output_of(node.name, [*ctr(node), "images", "remove", *names])


def _has_pulled(node: Node, reference: str) -> bool:
    words = [*kubectl(), "-n", _NAMESPACE, "get", "pod", _puller_name(node, reference), "-o", "json"]
    status = json.loads(output_of(node.name, words))["status"]
    for container in status.get("containerStatuses", []):
        reason = container["state"].get("waiting", {}).get("reason", "")
        if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName"):
            said = container["state"]["waiting"].get("message", reason)
            raise ClusterError(node.name, f"cannot pull {reference}: {said}", "is it in the registry? `make cluster`")
    return status["phase"] in ("Succeeded", "Failed")  # whatever it did, its image was there


def _puller(node: Node, reference: str) -> dict[str, object]:
    container = {"name": "pull", "image": reference, "imagePullPolicy": "IfNotPresent", "command": ["python", "-V"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _puller_name(node, reference), "namespace": _NAMESPACE},
        "spec": {
            "nodeName": node.name,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "containers": [container],
        },
    }


def _puller_name(node: Node, reference: str) -> str:
    image = reference.rpartition("/")[2].replace(":", "-")
    return f"pull-{image}-{node.name}"
