"""The story of the cluster: what ``up`` does in which order, and how ``down`` takes everything away again."""

from collections.abc import Collection, Mapping
from functools import partial

from dev.cluster import image_build, remains
from dev.cluster.binaries import BUILDS, TRAINING_OPERATOR, Build, ensure_built
from dev.cluster.certificates import ensure_certificates
from dev.cluster.control_plane import ensure_control_plane, ensure_dns
from dev.cluster.debian import ensure_packages
from dev.cluster.failure import ClusterError
from dev.cluster.images import ensure_tiny_image, forget_older, pull
from dev.cluster.layout import CACHE, KUBECONFIG, NODES
from dev.cluster.network import ensure_network
from dev.cluster.nodes import ensure_containerd, ensure_node
from dev.cluster.processes import find
from dev.cluster.registry import ensure_registry, registry
from dev.cluster.steps import Durations, Run, Step
from dev.cluster.storage import ensure_storage
from dev.cluster.training_operator import ensure_training_operator

DURATIONS = CACHE / "durations.json"
# What `--with` takes, and the program that it needs.
ADDITIONS: Mapping[str, Build] = {TRAINING_OPERATOR.module: TRAINING_OPERATOR}


def up(gpus: int, additions: Collection[str]) -> None:
    """Bring the cluster up with both images loaded; what is up already is left alone.

    Args:
        gpus: GPUs that each node claims to have.
        additions: names of ADDITIONS to install besides; one that an earlier `up` has installed stays.
    """
    remains.end_orphans()
    remains.clear_if_stale()
    images = image_steps(("registry", *(node.name for node in NODES)))
    execute([*program_steps(additions), *cluster_steps(gpus), *addition_steps(additions), *images])
    print(f"The cluster is up: export KUBECONFIG={KUBECONFIG}")


def programs(additions: Collection[str]) -> None:
    """Build the programs, and nothing that runs."""
    remains.end_orphans()
    execute(program_steps(additions))


def images() -> None:
    """Build both images and load them into the nodes of a cluster that is up."""
    remains.end_orphans()
    if find(registry()) is None:
        raise ClusterError("images", "the cluster is not up, so they can go nowhere", "run: make cluster")
    execute([Step("Debian packages", ensure_packages), *image_steps(())])


def execute(steps: list[Step]) -> None:
    """Do the steps with progress and remembered durations."""
    Run(steps, Durations(DURATIONS)).execute()


def program_steps(additions: Collection[str]) -> list[Step]:
    """Return the steps that fill the cache; packages come over the network while Go keeps the processor busy."""
    builds = [*BUILDS, *(build for name, build in ADDITIONS.items() if name in additions)]
    built = [Step(f"program {build.module}", partial(ensure_built, build)) for build in builds]
    return [Step("Debian packages", ensure_packages), *built]


def cluster_steps(gpus: int) -> list[Step]:
    """Return the steps from packages and programs to two Ready nodes with storage."""
    steps = [
        Step("network", ensure_network, ("Debian packages",)),
        Step("certificates", ensure_certificates, ("Debian packages",)),
        Step("registry", ensure_registry, ("network",)),
        Step("control plane", ensure_control_plane, ("network", "certificates", "program kubernetes")),
        Step("DNS", ensure_dns, ("control plane", "program coredns")),
    ]
    for node in NODES:
        steps.append(Step(f"containerd {node.name}", partial(ensure_containerd, node), ("network",)))
    steps.append(Step("sandbox image", ensure_tiny_image, tuple(f"containerd {node.name}" for node in NODES)))
    for node in NODES:
        steps.append(Step(node.name, partial(ensure_node, node, gpus), ("control plane", "DNS", "sandbox image")))
    storage_needs = ("program local-path-provisioner", *(node.name for node in NODES))
    steps.append(Step("storage", ensure_storage, storage_needs))
    return steps


def addition_steps(additions: Collection[str]) -> list[Step]:
    """Return the steps that install what was asked for into two Ready nodes."""
    if TRAINING_OPERATOR.module not in additions:
        return []
    needs = (f"program {TRAINING_OPERATOR.module}", *(node.name for node in NODES))
    return [Step(TRAINING_OPERATOR.module, ensure_training_operator, needs)]


def image_steps(cluster: tuple[str, ...]) -> list[Step]:
    """Return the steps that build and load both images.

    Args:
        cluster: names of the steps that the images wait for before they are pushed and pulled.
    """
    to_push, to_load = cluster[:1], cluster[1:]
    image_build.take_sources()
    steps = [Step("base image", image_build.ensure_base, ("Debian packages",))]
    for image in image_build.IMAGES:
        build, push, load = f"build {image.name}", f"push {image.name}", f"load {image.name}"
        steps += [
            Step(build, partial(image_build.ensure_built, image), ("base image",)),
            Step(push, partial(image_build.ensure_pushed, image), (build, *to_push)),
            Step(load, partial(pull, image.reference()), (push, *to_load)),
        ]
    loads = tuple(f"load {image.name}" for image in image_build.IMAGES)
    return [*steps, Step("older images", _forget_older_images, loads)]


def _forget_older_images() -> str:
    """Remove what the images have replaced, or the disk fills up with it."""
    builds = image_build.forget_older_builds()
    for image in image_build.IMAGES:
        forget_older(image.reference())
    return f"{builds} removed"
