"""Where on the shared filesystem a job may read: not outside of it, and not what jobs of other namespaces wrote.

The spec's paths are relative and hold no `..`, but a filesystem may hold links, and `jobs/<namespace>/` may be that of
somebody else. Nothing here keeps out a person who mounts the claim with a pod of his own: see the threat model.
"""

from pathlib import Path

from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError


def check_place(field: str, path: Path, paths: JobPaths) -> None:
    """Do nothing if a job may read what a path leads to, links followed.

    Args:
        field: the spec's field that names it, for the message.
        path: what is to be read.
        paths: of the job.

    Raises:
        TrainerError: INVALID_SPEC when it leads out of the shared filesystem, or to another namespace's jobs.
    """
    root, target = paths.shared.resolve(), path.resolve()
    if not target.is_relative_to(root):
        raise TrainerError(
            Reason.INVALID_SPEC,
            f"{field}: {path.relative_to(paths.shared)} is a link that leads out of the shared filesystem: put a copy "
            "of what it leads to there instead",
        )
    jobs, own = root / "jobs", root / "jobs" / paths.namespace
    if target.is_relative_to(jobs) and not target.is_relative_to(own):
        raise TrainerError(
            Reason.INVALID_SPEC,
            f"{field}: {path.relative_to(paths.shared)} leads to jobs of another namespace; a job of {paths.namespace} "
            f"reads jobs/{paths.namespace}/ alone. Copy what you need to another directory",
        )
