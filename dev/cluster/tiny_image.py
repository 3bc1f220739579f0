"""A container image of two megabytes made from Debian's static busybox: pods' sandboxes, volumes' set-up."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping
from pathlib import Path

from dev.cluster.layout import IMAGE_PREFIX

# What the kernel calls a processor, and what an image does.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
BUSYBOX = Path("/bin/busybox")
COMMANDS = ("sh", "cat", "chmod", "echo", "hostname", "id", "ls", "mkdir", "nc", "nslookup", "rm", "sleep", "tail")
TINY_IMAGE = f"{IMAGE_PREFIX}/finetune-cluster-tiny:1"


def tiny_image_archive(busybox: bytes) -> bytes:
    """Return the image as a docker archive, the same bytes for the same busybox."""
    process = {"Cmd": ["/bin/tail", "-f", "/dev/null"], "Env": ["PATH=/bin"], "WorkingDir": "/"}
    return docker_archive(TINY_IMAGE, _layer(busybox), process)


def docker_archive(reference: str, layer: bytes, process: Mapping[str, object]) -> bytes:
    """Return an image of one layer as a docker archive, the same bytes for the same content.

    Args:
        reference: the image's name and tag.
        layer: a tar file with everything that is in the image.
        process: what a container runs by default, in the words of the OCI image configuration's `config`.
    """
    configuration = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": process,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    config = json.dumps(configuration, sort_keys=True).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [reference], "Layers": ["layer.tar"]}]
    return _tar([(config_name, config), ("layer.tar", layer), ("manifest.json", json.dumps(manifest).encode())])


def _layer(busybox: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for directory, mode in (("bin", 0o755), ("tmp", 0o1777)):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        program = tarfile.TarInfo("bin/busybox")
        program.size, program.mode = len(busybox), 0o755
        archive.addfile(program, io.BytesIO(busybox))
        for command in COMMANDS:
            link = tarfile.TarInfo(f"bin/{command}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return buffer.getvalue()


def _tar(files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
