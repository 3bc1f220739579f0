"""A small model learns to call functions: SmolLM2-135M-Instruct on the Schema-Guided Dialogue data.

    python -m benchmarks.trainer.sgd --shared DIR --rows train.jsonl --dev dev.jsonl --out DIR --gpus 0 1 2 3

`DIR/models/smollm2` is the model. It is the product that runs: `prepare`, `train` and `evaluate`, one GPU each. First
short trials that differ in one setting, then long ones with the best learning rate, then the best of these, by a sample
of dev, on the whole dev set, a part of it on each GPU. The rows are not part of this project
(https://github.com/google-research-datasets/dstc8-schema-guided-dialogue, CC BY-SA 4.0).
"""

import argparse
import gzip
import json
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.trainer.sgd.services import score_by_services
from benchmarks.trainer.sgd.trials import Bench, Running, Trial

LEARNING_RATES = (2e-4, 1e-3, 2e-3, 4e-3)
REFERENCE_RATE = 1e-3
SAMPLE_EVERY = 5  # of the dev rows, for trials
PACKED_CONVERSATIONS = 2.3  # in a sequence of 4096 tokens


def main() -> int:
    """Run all trials; results.json, losses and turns are written into `--out`."""
    arguments = _parser().parse_args()
    bench = Bench(arguments.shared.resolve(), arguments.device, arguments.metrics_port)
    lay_out_rows(bench.shared / "data", arguments.rows, arguments.dev, arguments.parts)
    started = time.monotonic()
    parts = [_part(number) for number in range(arguments.parts)]
    if arguments.rate is not None:
        long = _trial("long-best", arguments, arguments.rate, arguments.long_steps, arguments.epochs)
        return train_one(bench, long, parts, arguments)
    short = short_trials(arguments)
    prepare_all(bench, [*short, *parts])
    run_trials(bench, short, arguments.gpus)
    tell(bench, short, "short trials", started)
    write_trials(bench, short, arguments.out)
    fastest = best(bench, [trial for trial in short if trial.name.startswith("rate-")])
    num_steps = long_steps(bench, fastest, arguments)
    long = long_trials(arguments, fastest.training["optimizer"]["learningRate"], *num_steps)
    prepare_all(bench, long)
    run_trials(bench, long, arguments.gpus)
    tell(bench, long, "long trials", started)
    write_trials(bench, [*short, *long], arguments.out)
    winner = best(bench, long)
    score_parts(bench, winner, parts, arguments)
    tell(bench, parts, f"{winner.name} on the dev set", started)
    return 0


def train_one(bench: Bench, trial: Trial, parts: Sequence[Trial], arguments: argparse.Namespace) -> int:
    """Train with a learning rate that is known to be good, and score on all parts of the dev set."""
    started = time.monotonic()
    if not arguments.trained:
        prepare_all(bench, [trial, *parts])
    if not arguments.trained and not train(bench, trial, arguments.gpus[0]):
        return 1
    write_losses(bench, [trial], arguments.out)
    if arguments.score_seconds:
        score_parts(bench, trial, parts, arguments)
        tell(bench, parts, f"{trial.name} on the dev set", started)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="directory of models, data and jobs")
    parser.add_argument("--rows", type=Path, required=True, help="rows to train on")
    parser.add_argument("--dev", type=Path, required=True, help="rows to score on")
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    parser.add_argument("--gpus", type=int, nargs="+", default=[0])
    parser.add_argument("--parts", type=int, default=4, help="of the dev set")
    parser.add_argument("--score-seconds", type=float, default=1e9, help="no part is begun after that; 0 scores none")
    parser.add_argument("--at-once", type=int, default=2, help="parts that are scored on a GPU at once")
    parser.add_argument("--trained", action="store_true", help="the long training has been done before: score it")
    parser.add_argument("--part-turns", type=int, default=1_000_000, help="turns of a part, at most")
    parser.add_argument("--rate", type=float, help="one long training with this learning rate, and no trials before it")
    parser.add_argument("--epochs", type=int, default=1, help="of that training, of --long-steps each")
    parser.add_argument("--metrics-port", type=int, default=9400, help="of the first GPU; the others have those behind")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--batch", type=int, default=8, help="sequences of 4096 tokens a step")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--short-steps", type=int, default=120)
    parser.add_argument("--long-steps", type=int, default=1300, help="at most")
    parser.add_argument("--long-seconds", type=float, default=150.0, help="time of a long training, at most")
    parser.add_argument("--turns", type=int, default=1200, help="turns of the dev sample that a trial writes")
    parser.add_argument("--new-tokens", type=int, default=160)
    parser.add_argument("--generate", type=int, default=256, help="turns written at once")
    return parser


# --- rows -------------------------------------------------------------------------------------------------------------


def lay_out_rows(data: Path, rows: Path, dev: Path, num_parts: int) -> None:
    """Write the files of rows: as they are, a sample of dev, dev in parts, and rows with one call to learn each."""
    data.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(rows, data / "train.jsonl")
    lines = dev.read_text(encoding="utf-8").splitlines(keepends=True)
    (data / "dev-sample.jsonl").write_text("".join(lines[::SAMPLE_EVERY]), encoding="utf-8")
    for part in range(num_parts):
        (data / f"dev-{part}.jsonl").write_text("".join(lines[part::num_parts]), encoding="utf-8")
    with rows.open(encoding="utf-8") as read, (data / "train-last-call.jsonl").open("w", encoding="utf-8") as written:
        written.writelines(json.dumps(_with_one_turn_to_learn(json.loads(line))) + "\n" for line in read)


def _with_one_turn_to_learn(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of which the last call is learnt, or the last turn where nothing is called."""
    answers = [turn for turn in row["messages"] if turn["role"] == "assistant"]
    learnt = next((turn for turn in reversed(answers) if turn.get("tool_calls")), answers[-1])
    messages = [turn | {"weight": 0} if turn in answers and turn is not learnt else turn for turn in row["messages"]]
    return row | {"messages": messages}


# --- trials -----------------------------------------------------------------------------------------------------------


def short_trials(arguments: argparse.Namespace) -> list[Trial]:
    """Return the trials that differ from the reference in one setting each."""

    def trial(name: str, rate: float = REFERENCE_RATE, **changes: Any) -> Trial:
        return _trial(name, arguments, rate, arguments.short_steps, **changes)

    reference = trial("reference")
    unpacked = {"packing": False, "batchSize": max(1, round(PACKED_CONVERSATIONS * arguments.batch))}
    return [
        *(trial(f"rate-{rate:g}", rate) for rate in LEARNING_RATES),
        trial("rank-16", lora={"rank": 16, "alpha": 32, "dropout": 0.0}),
        trial("dropout-0.1", lora={"dropout": 0.1}),
        replace(reference, name="unpacked", training=reference.training | unpacked),
        trial("last-call", rows="data/train-last-call.jsonl"),
    ]


def long_steps(bench: Bench, trial: Trial, arguments: argparse.Namespace) -> tuple[int, int]:
    """Return how many epochs of how many steps fit the time, at the speed of a short trial."""
    tokens_a_step = arguments.batch * arguments.length
    by_time = int(bench.median_speed(trial) * arguments.long_seconds / tokens_a_step)
    num_steps = max(4, min(arguments.long_steps, by_time))
    epochs = max(1, round(num_steps * arguments.batch / bench.num_sequences(trial)))
    return epochs, num_steps // epochs


def long_trials(arguments: argparse.Namespace, rate: float, epochs: int, steps: int) -> list[Trial]:
    """Return the trials of full length: the best learning rate and half of it, dropout, the defaults."""

    def trial(name: str, rate: float, **changes: Any) -> Trial:
        return _trial(name, arguments, rate, steps, epochs, **changes)

    defaults = trial("long-defaults", 2e-4, lora={})
    # As many sequences a step as by default on one GPU, and as many tokens in all as the others.
    few = max(1, steps // 4)
    recipe = {"gradientAccumulation": 4, "maxStepsPerEpoch": few, "schedule": {"warmupSteps": 100}}
    return [
        trial("long-best", rate),
        trial("long-half-rate", rate / 2),
        trial("long-dropout", rate, lora={"dropout": 0.1}),
        replace(defaults, training=defaults.training | recipe),
    ]


def _trial(name: str, arguments: argparse.Namespace, rate: float, steps: int, epochs: int = 1, **changes: Any) -> Trial:
    training = {
        "epochs": epochs,
        "maxStepsPerEpoch": steps,
        "batchSize": arguments.batch,
        "gradientAccumulation": 1,
        "maxSequenceLength": arguments.length,
        "kernels": arguments.kernels,
        "optimizer": {"learningRate": rate},
        "schedule": {"warmupSteps": max(1, steps * epochs // 10)},
    }
    evaluation = {
        "maxTurns": arguments.turns,
        "maxNewTokens": arguments.new_tokens,
        "batchSize": arguments.generate,
    }
    trial = Trial(name, training=training, evaluation=evaluation, lora={"dropout": 0.0})
    return replace(trial, **changes)


def _part(number: int) -> Trial:
    """Return a job that has rows to score and an adapter of another job: a part of the dev set."""
    return Trial(
        f"part-{number}",
        scored=f"data/dev-{number}.jsonl",
        max_samples=20,
        training={"maxSequenceLength": 4096},
    )


# --- running ----------------------------------------------------------------------------------------------------------


def prepare_all(bench: Bench, trials: Sequence[Trial]) -> None:
    """Prepare all trials at once; equal data is prepared by one of them."""
    running = [bench.start("prepare", trial, 0) for trial in trials]
    if sum(not one.wait() for one in running):
        raise SystemExit("a trial could not be prepared")


def run_trials(bench: Bench, trials: Sequence[Trial], gpus: Sequence[int]) -> None:
    """Train and score all trials, some on each GPU; one is scored while the next one trains."""

    def run_on(place: int) -> None:
        scoring: list[Running] = []
        for trial in trials[place :: len(gpus)]:
            if train(bench, trial, gpus[place]):
                scoring.append(bench.start("evaluate", trial, gpus[place]))
        for running in scoring:
            running.wait()

    with ThreadPoolExecutor(len(gpus)) as pool:
        list(pool.map(run_on, range(len(gpus))))


def train(bench: Bench, trial: Trial, gpu: int) -> bool:
    """Train a trial; where its kernels fail, with the plain ones."""
    if bench.start("train", trial, gpu).wait():
        return True
    plain = replace(trial, training=trial.training | {"kernels": "plain"})
    return bench.start("prepare", plain, gpu).wait() and bench.start("train", plain, gpu).wait()


def score_parts(bench: Bench, winner: Trial, parts: Sequence[Trial], arguments: argparse.Namespace) -> None:
    """Score an adapter on one part of the dev set after the other, some at once on each GPU.

    What is known is written after each part. No part is begun once the time for scoring is over: the rows of all parts
    are drawn evenly from the dev set, so those that were scored speak for the others.
    """
    ends = time.monotonic() + arguments.score_seconds
    scored: list[Trial] = []
    writing = threading.Lock()

    def score(number: int) -> None:
        if time.monotonic() > ends:
            return
        part, gpu = parts[number], arguments.gpus[number % len(arguments.gpus)]
        source, target = bench.paths(winner), bench.paths(part)
        shutil.copytree(source.adapter, target.adapter, dirs_exist_ok=True)
        shutil.copyfile(source.trained, target.trained)
        evaluation = winner.evaluation | {"maxTurns": arguments.part_turns}
        if not bench.start("evaluate", replace(part, evaluation=evaluation, lora=winner.lora), gpu).wait():
            return
        with writing:
            scored.append(part)
            write_dev(bench, winner, scored, arguments.out)

    with ThreadPoolExecutor(len(arguments.gpus) * arguments.at_once) as pool:
        list(pool.map(score, range(len(parts))))
    if not scored:
        raise SystemExit("no part of the dev set could be scored")
    print((arguments.out / "services.json").read_text(encoding="utf-8"), flush=True)


def best(bench: Bench, trials: Sequence[Trial]) -> Trial:
    """Return the trial whose tuned model has most functions and most arguments right on the dev sample."""

    def merit(trial: Trial) -> float:
        try:
            tuned = bench.evaluated(trial).tuned
        except OSError:
            return -1.0  # it failed, and has said so
        return sum(measure.value for measure in (tuned.function_accuracy, tuned.exact_arguments) if measure)

    return max(trials, key=merit)


# --- results ----------------------------------------------------------------------------------------------------------


def figures(bench: Bench, trial: Trial) -> dict[str, Any]:
    """Return what a trial came to."""
    report = bench.evaluated(trial)
    found: dict[str, Any] = {"turns": report.turns, "calling": report.calling_turns, "seconds": report.seconds}
    for name, scores in (("base", report.base), ("tuned", report.tuned)):
        for metric, measure in scores.model_dump(by_alias=True, exclude_none=True).items():
            found[f"{name} {metric}"] = [round(measure[field], 4) for field in ("value", "low", "high")]
    trained = bench.trained(trial)
    return found | {
        "steps": trained.steps,
        "tokens": trained.tokens,
        "tokens/s": round(trained.tokens_per_second),
        "final loss": round(trained.final_loss, 4),
        "notes": report.notes,
    }


def tell(bench: Bench, trials: Sequence[Trial], title: str, started: float) -> None:
    """Print the scores of trials."""
    print(f"== {title}, {time.monotonic() - started:.0f} s since the start", flush=True)
    for trial in trials:
        try:
            found = figures(bench, trial)
        except OSError:
            print(f"{trial.name}: failed", flush=True)
            continue
        scores = [
            f"{key} {found[key][0]}" for key in found if key.startswith("tuned") or key == "base functionAccuracy"
        ]
        rest = [f"{key} {found[key]}" for key in ("calling", "steps", "tokens/s", "final loss", "seconds")]
        print(f"{trial.name}: {', '.join([*scores, *rest])}", flush=True)


def write_trials(bench: Bench, trials: Sequence[Trial], directory: Path) -> None:
    """Write the figures and the losses of trials."""
    done = [trial for trial in trials if (bench.paths(trial).evaluation / "evaluation.json").exists()]
    write_losses(bench, done, directory)
    found = {trial.name: figures(bench, trial) for trial in done}
    (directory / "trials.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def write_losses(bench: Bench, trials: Sequence[Trial], directory: Path) -> None:
    """Write the loss of each step of trials."""
    directory.mkdir(parents=True, exist_ok=True)
    losses = {trial.name: bench.losses(trial) for trial in trials}
    (directory / "losses.json").write_text(json.dumps(losses) + "\n", encoding="utf-8")


def write_dev(bench: Bench, winner: Trial, parts: Sequence[Trial], directory: Path) -> None:
    """Write what the best trial reaches on the whole dev set, and what either model wrote there."""
    data = bench.shared / "data"
    turns = [(bench.paths(part).evaluation / "turns.jsonl", data / Path(part.scored).name) for part in parts]
    results = {
        "winner": winner.name,
        "manifest": winner.manifest(bench.device),
        "parts": {part.name: figures(bench, part) for part in parts},
    }
    services = score_by_services(turns, data / "train.jsonl")
    (directory / "services.json").write_text(_table(services), encoding="utf-8")
    (directory / "dev.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    with gzip.open(directory / "turns.jsonl.gz", "wb") as written:
        for path, _ in turns:
            written.write(path.read_bytes())


def _table(rows: dict[str, Any]) -> str:
    """Return JSON with a row of a table on each line."""
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    return f"{{\n{lines}\n}}\n"


if __name__ == "__main__":
    raise SystemExit(main())
