"""SHA-256 digests of files, hexadecimal as sha256sum prints them."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Files of one call that are read at the same time. Each takes a processor for itself: hashlib lets other threads run.
_MOST_AT_ONCE = 8


def digest_of(path: Path) -> str:
    """Return the digest of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_of(paths: Sequence[Path]) -> list[str]:
    """Return the digests of files, in their order, read side by side. Raises OSError."""
    with ThreadPoolExecutor(_MOST_AT_ONCE, "digest") as threads:
        return list(threads.map(digest_of, paths))
