"""What is trained, and beside what."""

from dataclasses import dataclass
from typing import Any

WARM_UP_STEPS = 4
PROFILED_STEP = 11
EIGHT_B, EIGHT_B_LONG, SEVENTY_B = "llama-3.1-8b", "llama-3.1-8b-long", "llama-3.1-70b"
SMALL = "smollm2-135m"


@dataclass(frozen=True)
class Case:
    """One training."""

    name: str
    gpus: tuple[int, ...]
    sharding: str = "replicate"
    shape: str = EIGHT_B
    precision: str = "bf16"
    nodes: int = 1
    batch: int = 2
    length: int = 4096
    rank: int = 64
    steps: int = 14
    seconds: int = 45  # what it may take at most
    checkpoint_every: int = 6
    is_packed: bool = False  # also where each document fills a sequence: all batches then have one length
    profiled: bool = True
    killed: bool = False  # lose a process behind the first checkpoint, and go on
    is_whole: bool = True  # wait for the last checkpoint and the adapter, not only for the last step
    is_sampled: bool = False  # write down twenty times a second what each thread does
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def is_profiled(self) -> bool:
        """Say whether there is a step that is traced."""
        return self.profiled and self.steps >= PROFILED_STEP

    @property
    def odd_steps(self) -> set[int]:
        """Return steps that are slowed: by a checkpoint's copies, which run beside the next step, or by the profile."""
        profiled = {PROFILED_STEP, PROFILED_STEP + 1} if self.is_profiled else set()
        return profiled | {step + 1 for step in range(1, self.steps) if step % self.checkpoint_every == 0}

    def job(self, on_cpu: bool) -> dict[str, Any]:
        """Return the FineTuneJob."""
        processes = len(self.gpus) // self.nodes
        compute = {"nodes": self.nodes, "sharding": self.sharding}
        compute |= {"device": "cpu", "processesPerNode": processes} if on_cpu else {"gpusPerNode": processes}
        training = {
            "epochs": 1,
            "maxStepsPerEpoch": self.steps,
            "batchSize": self.batch,
            "gradientAccumulation": 1,
            "maxSequenceLength": self.length,
            "packing": self.is_packed,
            "precision": "fp32" if on_cpu else self.precision,
            "kernels": "fused",
            "schedule": {"warmupSteps": 2},
            "logEverySteps": 1,
        }
        if self.is_profiled:
            training["profile"] = {"firstStep": PROFILED_STEP, "steps": 1}
        return {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": self.name},
            "spec": {
                "model": {"path": f"models/{self.shape}"},
                "datasets": [{"path": f"data/rows-{self.length}.jsonl", "format": "hermes"}],
                "evaluation": {"enabled": False},
                "lora": {"rank": self.rank, "alpha": 2 * self.rank, "dropout": 0.0},
                "training": training,
                "checkpoint": {"everySteps": self.checkpoint_every},
                "compute": compute,
            },
        }


FOUR, PAIR, OTHER_PAIR = (0, 1, 2, 3), (0, 1), (2, 3)
NEVER = 1000
QLORA_70B: dict[str, Any] = {"shape": SEVENTY_B, "precision": "nf4", "length": 2048, "seconds": 150, "is_whole": False}
PLAIN: dict[str, Any] = {"steps": 16, "checkpoint_every": NEVER, "profiled": False, "is_whole": False}
LONG = Case(
    "full-4-long",
    FOUR,
    "full",
    EIGHT_B_LONG,
    batch=1,
    length=172032,  # what the planner says is the end of 80 GB
    steps=1,
    seconds=170,
    is_whole=False,
)
WAVES: list[list[Case]] = [
    [Case("70b-nf4-full-4", FOUR, "full", steps=7, **QLORA_70B)],
    [Case("lost-process-full-4", FOUR, "full", steps=30, killed=True, profiled=False, seconds=100)],
    [Case("full-4", FOUR, "full", is_whole=False)],
    [Case("fp8-full-4", FOUR, "full", precision="fp8", is_whole=False)],
    [LONG],
    [
        Case("70b-nf4-replicate-1", (0,), steps=6, **QLORA_70B),
        Case("replicate-1", (2,), is_whole=False),
        Case("fp8-replicate-1", (3,), precision="fp8", is_whole=False),
    ],
    [Case("replicate-2", PAIR, is_whole=False), Case("full-2", OTHER_PAIR, "full", is_whole=False)],
    [Case("checkpoints-4", FOUR, steps=30, checkpoint_every=10, profiled=False, seconds=75, is_sampled=True)],
    [Case("full-4-of-8-ctas", FOUR, "full", environment=(("NCCL_MAX_CTAS", "8"),), **PLAIN)],
    [Case("replicate-4", FOUR, is_whole=False)],
    [Case("hybrid-2x2", FOUR, "hybrid", nodes=2, is_whole=False)],
    [Case("fp8-replicate-4", FOUR, precision="fp8", is_whole=False)],
    [Case("70b-bf16-full-4", FOUR, "full", SEVENTY_B, length=2048, steps=7, seconds=150, is_whole=False)],
]
WAVES += [
    [Case("hybrid-2x1", PAIR, "hybrid", nodes=2, is_whole=False)],
    [Case("fp8-replicate-2", PAIR, precision="fp8", is_whole=False)],
    [Case("fp8-full-2", PAIR, "full", precision="fp8", is_whole=False)],
    # Kernels launched one by one, and repeated as CUDA graphs, which takes packing.
    [
        Case("small-launched", (0,), shape=SMALL, batch=8, length=2048, steps=40, is_whole=False),
        Case("small-repeated", (1,), shape=SMALL, batch=8, length=2048, steps=40, is_packed=True, is_whole=False),
    ],
    [Case("small-repeated-2", PAIR, shape=SMALL, batch=8, length=2048, steps=40, is_packed=True, is_whole=False)],
]
TINY: dict[str, Any] = {"shape": "llama-8-layers-of-512", "batch": 1, "length": 64, "rank": 4, "seconds": 300}
REHEARSAL: list[list[Case]] = [
    [Case("replicate-1", (0,), steps=12, **TINY), Case("full-2", PAIR, "full", steps=12, **TINY)],
    [Case("hybrid-2x1", PAIR, "hybrid", nodes=2, steps=12, **TINY)],
    [Case("lost", PAIR, "full", steps=40, killed=True, **TINY)],
    [Case("checkpoints-2", PAIR, steps=30, checkpoint_every=10, profiled=False, is_sampled=True, **TINY)],
]
