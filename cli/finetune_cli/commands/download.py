"""`download`: the adapter of a job to this machine, its digest checked."""

import hashlib
import io
import json
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from finetune_cli import amounts
from finetune_cli.cluster import Body, Cluster
from finetune_cli.errands import find_place, reading
from finetune_cli.errors import CommandError, ExitCode, NotThere
from finetune_cli.jobs import Job, read_job
from finetune_cli.kinds import FINE_TUNE_JOB, POD
from finetune_cli.options import Context, JobName, Kubeconfig, Namespace
from finetune_cli.pods import pods_that_tell, see_pods, selector
from finetune_cli.terminal import note
from finetune_trainer.contract.paths import SHARED_MOUNT

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_MERGED_MANIFEST = "manifest.json"


class Part(StrEnum):
    """What of a job's files is fetched."""

    ADAPTER = "adapter"
    MERGED = "merged"
    EVALUATION = "evaluation"


def download(
    name: JobName,
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIRECTORY]", help="Where to; NAME-adapter when left out.")
    ] = None,
    part: Annotated[Part, typer.Option(help="What is fetched.")] = Part.ADAPTER,
    force: Annotated[bool, typer.Option("--force", help="Replace a directory that is there.")] = False,
    image: Annotated[
        str | None, typer.Option(help="Image of the pod that reads, where no pod of the job runs.")
    ] = None,
    seconds: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=1, help="Give the pod that reads so long to start.")
    ] = 300.0,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Copy a job's adapter from the shared filesystem to this machine, and check its SHA-256 digest.

    It is read through a pod of the job that runs, or through a small one that is made for it and removed. Your role
    needs pods/exec, and `create` on pods where no pod of the job runs.
    """
    cluster = Cluster.open(kubeconfig, context, namespace)
    body = cluster.get(FINE_TUNE_JOB, name)
    source, digested_file, digest = _what(read_job(body), part)
    target = directory or Path(f"{name}-{part.value}")
    if target.exists() and not force:
        raise CommandError(f"{target} is there already: name another directory, or --force", ExitCode.USAGE)
    partial, started = target.with_name(f".{target.name}.partial"), time.monotonic()
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _reader(cluster, body, image, seconds) as (pod, container):
            command = ["tar", "-C", str(SHARED_MOUNT / source), "-cf", "-", "."]
            num_bytes = unpack(cluster.stream(pod, command, container), partial)
        check(partial, digested_file, digest)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(target)
    checked = f", {digest} is right" if digest else ""
    note(f"{amounts.size(num_bytes)} in {amounts.duration(time.monotonic() - started)}{checked}")


def unpack(chunks: Iterator[bytes], directory: Path) -> int:
    """Write the files of a tar stream into a directory, and return how many bytes they have.

    Raises:
        CommandError: the stream is no tar, or has a member that is neither a file nor a directory inside of it.
    """
    directory.mkdir(parents=True)
    num_bytes = 0
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Chunks(chunks)), mode="r|") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise CommandError(f"{member.name}: is neither a file nor a directory of what was asked for")
                if member.isdir():
                    (directory / path).mkdir(exist_ok=True)
                    continue
                content = archive.extractfile(member)
                assert content is not None
                with (directory / path).open("wb") as file:
                    shutil.copyfileobj(content, file)
                num_bytes += member.size
    except tarfile.TarError as error:
        raise CommandError(f"what came from the pod broke off: {error}") from error
    return num_bytes


class _Chunks(io.RawIOBase):
    """Pieces as they come, read as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        """Whether it can be read from."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a buffer with what is there, and wait only where nothing is."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _what(job: Job, part: Part) -> tuple[str, str, str | None]:
    """Return a directory on the shared filesystem, and which file of it has which digest."""
    result = job.status.result
    if result is None:
        raise NotThere(f"{job.name} has no result yet: it is {job.phase}. {job.explanation}")
    if part is Part.ADAPTER:
        return result.adapter_path, _ADAPTER_WEIGHTS, result.adapter_digest
    if part is Part.MERGED:
        if result.export is None or result.export.merged_path is None:
            raise NotThere(f"{job.name} has no merged model: spec.export.merged asks for one")
        return result.export.merged_path, _MERGED_MANIFEST, result.export.merged_digest
    if result.evaluation is None:
        raise NotThere(f"{job.name} was not evaluated")
    return str(PurePosixPath(result.evaluation.report_path).parent), "", None


@contextmanager
def _reader(cluster: Cluster, body: Body, image: str | None, seconds: float) -> Iterator[tuple[str, str]]:
    """Yield a pod in which the shared filesystem is at hand, and its container."""
    job = read_job(body)
    pods = pods_that_tell(see_pods(job, cluster.list(POD, labels=selector(job))))
    running = next((pod for pod in pods if pod.running), None)
    if running is not None:
        yield running.name, running.container
        return
    with reading(cluster, find_place(cluster, body, image), job.shared_claim, seconds) as place:
        yield place


def check(directory: Path, file: str, digest: str | None) -> None:
    """See that a file has its digest, and where it is a merged model's manifest that the files in it have theirs.

    Raises:
        CommandError: one has another, or is not there.
    """
    if digest is None:
        return
    _check_file(directory, file, digest)
    if file == _MERGED_MANIFEST:
        digests: dict[str, str] = json.loads((directory / file).read_text(encoding="utf-8"))["sha256"]
        for name, listed in digests.items():
            _check_file(directory, name, f"sha256:{listed}")


def _check_file(directory: Path, file: str, digest: str) -> None:
    try:
        with (directory / file).open("rb") as content:
            found = f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
    except OSError as error:
        raise CommandError(f"{file} is not among what came from the pod") from error
    if found != digest:
        raise CommandError(f"{file} has the digest {found} instead of {digest}: it was changed, or is damaged")
