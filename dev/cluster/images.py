"""Gets images into both nodes."""

import tempfile
from pathlib import Path

from dev.cluster.commands import output_of
from dev.cluster.layout import NODES
from dev.cluster.nodes import ctr
from dev.cluster.tiny_image import TINY_IMAGE, tiny_image_archive


def ensure_tiny_image() -> str:
    """Import the sandbox image into both nodes unless they have it."""
    without = [node for node in NODES if TINY_IMAGE not in output_of(node.name, [*ctr(node), "images", "list", "-q"])]
    if not without:
        return "already there"
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        archive.write(tiny_image_archive())
        archive.flush()
        for node in without:
            output_of(node.name, [*ctr(node), "images", "import", archive.name])
    return f"imported into {', '.join(node.name for node in without)}"
