"""Where everything lies on the shared filesystem and on the network disk.

<shared>/models/<owner>--<name>@<commit>/         the base model, shared by every job
<shared>/datasets/<digest>/                       tokenised and packed data, shared by every job of equal settings
<shared>/jobs/<namespace>/<name>/<uid>/           what belongs to one job
    prepared.json                                 what prepare found and resolved
    trained.json                                  what came out of the training
    report.json  report.html                      what the data is like, for programs and for people
    checkpoints/step-<step>/                      adapter checkpoints
    adapter/                                      the result, in PEFT layout, with its model card
    evaluation/evaluation.json                    the scores of base and tuned model
    evaluation/turns.jsonl                        what either wrote, turn by turn
    merged/                                       base and adapter as one model, where it was asked for
<network>/<namespace>/<name>/<uid>/               log files; under the job's own directory without a network disk
    training.log  metrics.jsonl  wandb/
    profile/steps-<first>-<last>.json.gz          a trace of some steps, where it was asked for
"""

from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.contract.job import TrainerJob

SHARED_MOUNT = Path("/mnt/shared")
NETWORK_MOUNT = Path("/mnt/network")
JOB_FILE = Path("/etc/finetune/job.yaml")


@dataclass(frozen=True)
class JobPaths:
    """The directories and files of one job."""

    shared: Path
    network: Path | None
    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, job: TrainerJob, shared: Path, network: Path | None) -> "JobPaths":
        """Return the paths of `job` on a shared filesystem and, where there is one, a network disk."""
        return cls(shared, network, job.namespace, job.name, job.uid)

    @property
    def filesystems(self) -> dict[str, Path]:
        """The filesystems that a training writes to, by name."""
        return {"shared": self.shared} | ({} if self.network is None else {"network": self.network})

    @property
    def models(self) -> Path:
        """The model cache, shared by every job on the filesystem."""
        return self.shared / "models"

    @property
    def datasets(self) -> Path:
        """The cache of prepared data, shared by every job on the filesystem."""
        return self.shared / "datasets"

    @property
    def job(self) -> Path:
        """What belongs to this job alone."""
        return self.shared / "jobs" / self.namespace / self.name / self.uid

    @property
    def prepared(self) -> Path:
        """What prepare found and resolved, as JSON."""
        return self.job / "prepared.json"

    @property
    def trained(self) -> Path:
        """What came out of the training, as JSON."""
        return self.job / "trained.json"

    @property
    def report(self) -> Path:
        """What the data is like, as JSON."""
        return self.job / "report.json"

    @property
    def report_page(self) -> Path:
        """What the data is like, as a page."""
        return self.job / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Adapter checkpoints, one directory a step."""
        return self.job / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The result, in PEFT layout."""
        return self.job / "adapter"

    @property
    def evaluation(self) -> Path:
        """Scores of the base and the tuned model, and what they wrote."""
        return self.job / "evaluation"

    @property
    def merged(self) -> Path:
        """Base and adapter as one model."""
        return self.job / "merged"

    @property
    def logs(self) -> Path:
        """Where rank 0 writes its log files."""
        if self.network is None:
            return self.job / "logs"
        return self.network / self.namespace / self.name / self.uid
