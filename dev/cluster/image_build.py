"""Builds the project's images with buildah, each once for the same inputs, and puts them into the registry."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.commands import output_of, run_logged, succeeds
from dev.cluster.layout import CACHE, IMAGE_PREFIX, REGISTRY, REPOSITORY, RUN

SUITE = "bookworm"
BASE_PACKAGES = ("ca-certificates", "python3", "python3-venv")
# Where an image needs no file: package lists, archives, manuals, translations. The folders stay, for apt.
BASE_EMPTIED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man", "var/log")
# The sources as they were when the build began: an edit in the meantime belongs to the next build.
CONTEXT = CACHE / "images" / "context"
UV_CACHE = Path.home() / ".cache" / "uv"
ADVICE = "can PyPI be reached, and is there disk left (df -h)? Finished layers are kept, so run it again"


@dataclass(frozen=True)
class Image:
    """An image of this project.

    Attributes:
        name: the repository in the registry.
        dockerfile: relative to the repository's root, which is the build's context.
        inputs: files and folders that it is made from, relative to the repository's root.
    """

    name: str
    dockerfile: str
    inputs: tuple[str, ...]

    def tag(self) -> str:
        """Return a digest of everything that goes into the image: the same tag is the same image."""
        digest = hashlib.sha256(base_reference().encode())
        for name in (self.dockerfile, *self.inputs):
            for path in _files(CONTEXT / name):
                digest.update(f"{path.relative_to(CONTEXT)}\0".encode() + path.read_bytes())
        return digest.hexdigest()[:12]

    def reference(self) -> str:
        """Return the name by which pods ask for the image that was made last."""
        return f"{IMAGE_PREFIX}/{self.name}:{self.tag()}"


_SOURCE = (
    "pyproject.toml",
    "README.md",
    "requirements/uv.txt",
    "operator/finetune_operator",
    "trainer/finetune_trainer",
)
OPERATOR = Image("finetune-operator", "operator/Dockerfile", (*_SOURCE, "requirements/operator.txt"))
TRAINER = Image("finetune-trainer", "trainer/Dockerfile", (*_SOURCE, "requirements/trainer.txt"))
IMAGES = (OPERATOR, TRAINER)


def take_sources() -> None:
    """Copy what the images are made from out of the working tree."""
    shutil.rmtree(CONTEXT, ignore_errors=True)
    for name in {name for image in IMAGES for name in (image.dockerfile, *image.inputs)}:
        for path in _files(REPOSITORY / name):
            target = CONTEXT / path.relative_to(REPOSITORY)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)


def base_reference() -> str:
    """Return the local name of the base image, which tells what it was made of."""
    made_from = (BASE_PACKAGES, BASE_EMPTIED)
    return f"localhost/finetune-base:{SUITE}-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:8]}"


def ensure_base() -> str:
    """Make a small Debian with Python by debootstrap: it stands in for python:slim where no registry can be reached."""
    output_of("base image", [*_buildah(), "rm", "--all"])  # what builds that were killed have left
    if succeeds([*_buildah(), "inspect", "--type", "image", base_reference()]):
        return "already there"
    directory = CACHE / "images" / "base"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    root = directory / "root"
    log = CACHE / "logs" / "image-base.log"
    packages = ",".join(BASE_PACKAGES)
    # In a mount namespace of its own: what debootstrap mounts is gone when it ends, however it ends.
    bootstrap = ["debootstrap", "--variant=minbase", f"--include={packages}", SUITE, str(root)]
    private = ["unshare", "--mount", "--propagation", "private", *bootstrap]
    run_logged("base image", private, log=log, advice="can Debian's package mirror be reached?")
    for name in BASE_EMPTIED:
        for path in (root / name).rglob("*"):
            if not path.is_dir():
                path.unlink()
    (root / "tmp").chmod(0o1777)
    pack = ["tar", "-C", str(root), "-cf", str(directory / "root.tar"), "."]
    run_logged("base image", pack, log=log, advice=ADVICE)
    (directory / "Dockerfile").write_text('FROM scratch\nADD root.tar /\nCMD ["/bin/bash"]\n')
    build = [*_buildah(), "build", "--isolation", "chroot", "--tag", base_reference(), str(directory)]
    run_logged("base image", build, log=log, advice=ADVICE)
    shutil.rmtree(directory)
    return f"made from Debian {SUITE}"


def ensure_built(image: Image) -> str:
    """Build the image unless buildah's store has this very one; layers whose inputs are the same are kept."""
    if succeeds([*_buildah(), "inspect", "--type", "image", _local_name(image)]):
        return "already built"
    UV_CACHE.mkdir(parents=True, exist_ok=True)
    run_logged(image.name, [*_buildah(), *_build_words(image), CONTEXT], log=_log(image), advice=ADVICE)
    return f"built {image.tag()}"


def ensure_pushed(image: Image) -> str:
    """Push the layers that the registry lacks."""
    remote = f"docker://{REGISTRY}/{image.name}:{image.tag()}"
    if succeeds(["skopeo", "inspect", "--raw", "--tls-verify=false", remote]):
        return "already in the registry"
    compression = ["--compression-format=zstd", "--compression-level=1"]
    push = [*_buildah(), "push", "--tls-verify=false", *compression, _local_name(image), remote]
    run_logged(image.name, push, log=_log(image), advice=ADVICE)
    return f"pushed {image.tag()}"


def forget_older_builds() -> int:
    """Remove earlier builds, and return how many; the layers that the present ones share with them stay."""
    present = {_local_name(image) for image in IMAGES}
    names = output_of("images", [*_buildah(), "images", "--format", "{{.Name}}:{{.Tag}}"]).split()
    ours = {name for name in names if name.startswith(tuple(f"localhost/{image.name}:" for image in IMAGES))}
    if older := sorted(ours - present):
        output_of("images", [*_buildah(), "rmi", *older])
    return len(older)


def _build_words(image: Image) -> list[str]:
    return [
        "build",
        "--layers",
        "--isolation=chroot",
        "--network=host",
        "--pull=false",
        f"--build-arg=BASE={base_reference()}",
        "--build-arg=UV_NO_CACHE=0",
        "--volume=/etc/ssl/certs:/etc/ssl/certs:ro",
        f"--volume={UV_CACHE}:/root/.cache/uv:rw",
        f"--file={CONTEXT / image.dockerfile}",
        f"--tag={_local_name(image)}",
    ]


def _log(image: Image) -> Path:
    return CACHE / "logs" / f"image-{image.name}.log"


def _local_name(image: Image) -> str:
    return f"localhost/{image.name}:{image.tag()}"


def _buildah() -> list[str]:
    """Return the words that begin every buildah command: a store of our own, apart from the user's."""
    storage = CACHE / "images" / "buildah"
    return ["buildah", "--root", str(storage), "--runroot", str(RUN / "buildah"), "--storage-driver", "overlay"]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
