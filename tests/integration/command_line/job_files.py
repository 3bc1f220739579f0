"""Jobs as files that people write."""

from pathlib import Path

import yaml

from tests.e2e.jobs import tiny_job


def write_job(directory: Path, name: str = "calls", **overrides: object) -> str:
    path = directory / "job.yaml"
    path.write_text(yaml.safe_dump(tiny_job(name, **overrides)))
    return str(path)
