"""The customer demo: one job, and what happens to it on the way, told step by step (docs/operator/demo.md).

    python -m dev.tour              on the embedded two-node cluster, which is brought up if it is not
    python -m dev.tour --current    on the cluster of your own kubeconfig, as dev.demo does
    python -m dev.tour --pause      waits for Enter before each step, for a room full of people

Each step does what it tells, and fails when it does not come about: what goes wrong goes wrong before people come.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from dev.cluster.failure import ClusterError
from dev.demo import SAMPLE, DemoError, Target, compared, current_target, embedded_target
from dev.deploy import DeployError, install_chart

NAME = "tour"
TRAINING = f"finetune.dev/job={NAME},finetune.dev/stage=train"
# A process counts as a GPU: an hour of one costs 3.60, a second of both 0.002.
PRICES = {"pricing.currency": "USD", "pricing.gpuHour.default": "3.60", "pricing.storageGiBMonth.default": "0.08"}
STEP_TIMEOUT_SECONDS = 420.0

Job = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A step of the demo: when it is due, what to say, and what to do."""

    minute: int
    title: str
    words: str
    act: Callable[[Target], None]


def main() -> int:
    """Run the demo; 0 when every step came about."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--current", action="store_true", help="use the cluster of your kubeconfig")
    parser.add_argument("--pause", action="store_true", help="wait for Enter before each step")
    arguments = parser.parse_args()
    try:
        target = current_target() if arguments.current else embedded_target()
        target = replace(target, chart_values={**target.chart_values, **PRICES})
        install_chart(target.helm, target.kubeconfig, target.chart_values)
        run(target, input if arguments.pause else lambda _: "")
    except (DemoError, DeployError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except ClusterError as error:
        print(f"\n{error.report()}", file=sys.stderr)
        return 1
    return 0


def run(target: Target, wait_for_the_room: Callable[[str], object]) -> None:
    """Do all steps, one after another.

    Raises:
        DemoError: a step did not come about.
    """
    for step in STEPS:
        wait_for_the_room("\n[Enter] ")
        print(f"\n== {step.title}\n   {step.words}", flush=True)
        started = time.monotonic()
        step.act(target)
        print(f"   ({time.monotonic() - started:.0f} s)", flush=True)


def manifest() -> Job:
    """Return the job of the demo: the sample, with a checkpoint often enough to lose little."""
    job: Job = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    job["metadata"]["name"] = NAME
    job["spec"]["checkpoint"] = {"everySteps": 3}
    job["spec"]["runPolicy"] = {"budget": 1000, "terminationGracePeriodSeconds": 60}
    return job


def refuse_a_mistake(target: Target) -> None:
    """Apply the job with a mistake in it, which the API server has to find."""
    job = manifest()
    job["spec"]["training"]["batchSize"] = 0.5
    try:
        target.run("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(job))
    except DemoError as refusal:
        print(f"   {refusal}")
        if "spec.training.batchSize" in str(refusal):
            return
    raise DemoError("batchSize 0.5 was not refused with its field's path; is the operator's CRD installed?")


def apply(target: Target) -> None:
    """Apply the job, and wait until it is prepared."""
    target.run("delete", "finetunejob", NAME, "--ignore-not-found", "--wait")
    text = yaml.safe_dump(manifest(), sort_keys=False)
    print("\n".join(f"   | {line}" for line in text.splitlines()))
    target.run("apply", "-f", "-", stdin=text)
    job = wait_for(target, "it is prepared", lambda job: condition(job, "Prepared")["status"] == "True")
    print(f"   {condition(job, 'Prepared')['message']}")


def train(target: Target) -> None:
    """Wait until there is a checkpoint."""
    wait_for(target, "there is a checkpoint", lambda job: job["status"].get("checkpoint", {}).get("step", 0) >= 3)
    print(target.run("get", "finetunejob", NAME, "--output", "wide"))


def kill_a_pod(target: Target) -> None:
    """Delete a training pod, and wait until a second attempt has gone on from the checkpoint."""
    pods = json.loads(target.run("get", "pods", "--selector", TRAINING, "--output", "json"))["items"]
    victim = pods[-1]["metadata"]["name"]
    print(f"   kubectl delete pod {victim}")
    target.run("delete", "pod", victim, "--wait=false")

    def goes_on(job: Job) -> bool:
        attempts = job["status"].get("attempts", [])
        return len(attempts) >= 2 and attempts[-1].get("resumedFromStep", 0) >= 3

    job = wait_for(target, "a second attempt has gone on from the checkpoint", goes_on)
    for attempt in job["status"]["attempts"]:
        print(f"   attempt {attempt['number']}: {attempt.get('reason', 'runs')}, {attempt.get('message', '')}")


def spend_the_budget(target: Target) -> None:
    """Lower the budget below what was spent, see the pods go, and raise it again."""
    patch_budget(target, "0.01")
    job = wait_for(target, "it is suspended", lambda job: job["status"].get("phase") == "Suspended")
    print(f"   {condition(job, 'Suspended')['message']}")
    left = json.loads(target.run("get", "pods", "--selector", TRAINING, "--output", "json"))["items"]
    if job["status"]["reason"] != "BudgetSpent" or left:
        raise DemoError(f"suspended with reason {job['status']['reason']}, and {len(left)} pods are left")
    patch_budget(target, "1000")
    wait_for(target, "it trains again", lambda job: job["status"].get("phase") == "Running")


def look_at_the_result(target: Target) -> None:
    """Wait until the job has succeeded, and show what came out and what it cost."""
    job = wait_for(target, "it has succeeded", lambda job: job["status"].get("phase") == "Succeeded")
    status = job["status"]
    for metric, base, tuned in compared(status["result"].get("evaluation")):
        print(f"   held out   {metric}: {base:.3f} of the base, {tuned:.3f} of the tuned model")
    cost = status["accounting"]["cost"]
    print(f"   cost       {cost['total']} {cost['currency']}: productive {cost['productive']}, lost {cost['lost']}, ")
    print(f"              starting {cost['starting']}, storage {cost['storage']}")
    print(f"   adapter    /mnt/shared/{status['result']['adapterPath']}, {status['result']['adapterDigest']}")


STEPS = (
    Step(
        0, "A mistake", "A wrong field is refused at kubectl apply, with its path; nothing is made.", refuse_a_mistake
    ),
    Step(4, "The job", "Model and data are fetched, checked and packed by one pod that holds no GPU.", apply),
    Step(9, "It trains", "Two nodes, one training; progress is in kubectl get.", train),
    Step(14, "A pod dies", "The gang goes down and starts anew from the checkpoint; nobody does anything.", kill_a_pod),
    Step(19, "Money", "The budget is spent: a checkpoint, and the GPUs are free until it is raised.", spend_the_budget),
    Step(24, "The result", "Base and tuned model on unseen rows, what it cost, and the adapter.", look_at_the_result),
)


def patch_budget(target: Target, amount: str) -> None:
    """Change what the job may cost."""
    patch = json.dumps({"spec": {"runPolicy": {"budget": amount}}})
    print(f"   kubectl patch finetunejob {NAME} --type merge --patch '{patch}'")
    target.run("patch", "finetunejob", NAME, "--type", "merge", "--patch", patch)


def wait_for(target: Target, what: str, until: Callable[[Job], bool]) -> Job:
    """Look at the job every second until something is so, and return it.

    Raises:
        DemoError: it did not come about in time, or the job has failed.
    """
    deadline = time.monotonic() + STEP_TIMEOUT_SECONDS
    while True:
        job: Job = json.loads(target.run("get", "finetunejob", NAME, "--output", "json"))
        job.setdefault("status", {})
        if until(job):
            return job
        if time.monotonic() > deadline or job["status"].get("phase") == "Failed":
            status = job["status"]
            raise DemoError(f"waited until {what}: phase {status.get('phase')}, reason {status.get('reason')}")
        time.sleep(1)


def condition(job: Mapping[str, Any], kind: str) -> Mapping[str, str]:
    """Return a condition of the job; one that was not given yet has an empty answer."""
    empty = {"status": "", "message": ""}
    return next((found for found in job["status"].get("conditions", []) if found["type"] == kind), empty)


if __name__ == "__main__":
    sys.exit(main())
