"""One trial: a job of the product, prepared, trained and scored by its own verbs, each a process of its own."""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from finetune_trainer.contract.evaluation import EvaluationReport
from finetune_trainer.contract.job import parse_job
from finetune_trainer.contract.paths import JobPaths
from finetune_trainer.contract.termination import PreparedReport, TrainedReport

MODEL = "models/smollm2"


@dataclass(frozen=True)
class Trial:
    """What is tried: groups of a manifest, by the name that tables give it."""

    name: str
    rows: str = "data/train.jsonl"
    scored: str = "data/dev-sample.jsonl"
    max_samples: int | None = None
    lora: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)

    def manifest(self, device: str) -> dict[str, Any]:
        """Return the FineTuneJob."""
        dataset: dict[str, Any] = {"path": self.rows, "format": "openai"}
        if self.max_samples is not None:
            dataset["maxSamples"] = self.max_samples
        scored = {"path": self.scored, "format": "openai"}
        return {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": self.name},
            "spec": {
                "model": {"path": MODEL},
                "datasets": [dataset],
                "lora": self.lora,
                "training": self.training,
                "evaluation": {"datasets": [scored], **self.evaluation},
                "compute": {"device": device},
            },
        }


class Bench:
    """A directory that is the shared filesystem of all trials, and the device that they run on."""

    def __init__(self, shared: Path, device: str, metrics_port: int) -> None:
        self.shared, self.device, self._metrics_port = shared, device, metrics_port
        self._manifests = shared / "manifests"
        self._manifests.mkdir(parents=True, exist_ok=True)

    def paths(self, trial: Trial) -> JobPaths:
        """Return where a trial's files are."""
        return JobPaths.of(parse_job(trial.manifest(self.device)), self.shared, None)

    def write_manifest(self, trial: Trial) -> Path:
        """Write the job's manifest, and return its path."""
        path = self._manifests / f"{trial.name}.yaml"
        path.write_text(yaml.safe_dump(trial.manifest(self.device)), encoding="utf-8")
        return path

    def start(self, verb: str, trial: Trial, gpu: int, *options: str) -> "Running":
        """Start a verb of the product on a GPU."""
        manifest = self.write_manifest(trial)
        log = self._manifests / f"{trial.name}.{verb}.log"
        environment = os.environ | {
            "CUDA_VISIBLE_DEVICES": str(gpu),
            "FINETUNE_METRICS_PORT": str(self._metrics_port + gpu),
        }
        command = [sys.executable, "-m", "finetune_trainer", verb, str(manifest), "--shared", str(self.shared)]
        with log.open("w") as output:
            process = subprocess.Popen([*command, *options], stdout=output, stderr=subprocess.STDOUT, env=environment)
        return Running(verb, trial, log, process, time.monotonic())

    def trained(self, trial: Trial) -> TrainedReport:
        """Return what came out of a trial's training."""
        return TrainedReport.model_validate_json(self.paths(trial).trained.read_text(encoding="utf-8"))

    def evaluated(self, trial: Trial) -> EvaluationReport:
        """Return what a trial scored."""
        path = self.paths(trial).evaluation / "evaluation.json"
        return EvaluationReport.model_validate_json(path.read_text(encoding="utf-8"))

    def num_sequences(self, trial: Trial) -> int:
        """Return the packed sequences of an epoch."""
        return PreparedReport.model_validate_json(self.paths(trial).prepared.read_text(encoding="utf-8")).sequences

    def median_speed(self, trial: Trial) -> float:
        """Return the tokens a second of a trial's median step."""
        with (self.paths(trial).logs / "metrics.jsonl").open(encoding="utf-8") as lines:
            return statistics.median(float(json.loads(line)["tokens_per_second"]) for line in lines)

    def losses(self, trial: Trial) -> list[float]:
        """Return the loss of each step."""
        with (self.paths(trial).logs / "metrics.jsonl").open(encoding="utf-8") as lines:
            return [round(json.loads(line)["loss"], 4) for line in lines]


@dataclass(frozen=True)
class Running:
    """A verb that runs."""

    verb: str
    trial: Trial
    log: Path
    process: "subprocess.Popen[bytes]"
    started: float

    def wait(self) -> bool:
        """Wait for its end, say how it ended, and return whether it did well."""
        status = self.process.wait()
        seconds = time.monotonic() - self.started
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = lines[-1][:300] if lines else ""
        print(f"{self.trial.name}: {self.verb} {status} after {seconds:.0f} s: {last}", flush=True)
        if status != 0:
            print("\n".join(line[:300] for line in lines[-25:]), flush=True)
        return status == 0
