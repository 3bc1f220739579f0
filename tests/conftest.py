"""What holds for every test."""

import os
from pathlib import Path

from hypothesis import settings

# An example that takes long says something about the machine's other work, and nothing about the code.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

HAS_GPU = Path("/dev/nvidiactl").exists()
if not HAS_GPU:
    # NB: Triton reads this when a kernel is defined, those of its own library included, so it is set before anything
    # imports Triton. NumPy then runs each kernel, slowly, but as it is written.
    os.environ.setdefault("TRITON_INTERPRET", "1")
