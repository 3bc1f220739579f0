"""The whole line before one's eyes: a cluster, the chart, a FineTuneJob, and its adapter.

    python -m dev.demo              on the embedded two-node cluster, which is brought up if it is not
    python -m dev.demo --current    on the cluster of your own kubeconfig: builds no cluster and no image

With --current the images are the chart's, or those of OPERATOR_IMAGE and TRAINER_IMAGE, and the storage classes those
of the sample, or SHARED_CLASS and NETWORK_CLASS.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dev.cluster import layout
from dev.cluster.failure import ClusterError
from dev.cluster.steps import Durations
from dev.deploy import NAMESPACE, DeployError, install_chart

SAMPLE = layout.REPOSITORY / "manifests" / "samples" / "function-calling-demo.yaml"
JOB_TIMEOUT_SECONDS = 3600
SAME_NEWS_SECONDS = 20.0
STAGES = ("Accepted", "Prepared", "Running", "Evaluated")


class DemoError(Exception):
    """The demo cannot go on; the message says what to do."""


@dataclass(frozen=True)
class Target:
    """The cluster to run on: its programs, its kubeconfig, and the values that the chart needs there."""

    kubectl: Path
    helm: Path
    kubeconfig: Path | None
    chart_values: Mapping[str, str]

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it prints.

        Raises:
            DemoError: kubectl failed; with its words.
        """
        command = [str(self.kubectl), *arguments]
        if self.kubeconfig is not None:
            command += ["--kubeconfig", str(self.kubeconfig)]
        finished = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if finished.returncode != 0:
            raise DemoError(f"`kubectl {' '.join(arguments)}` failed: {finished.stderr.strip()}")
        return finished.stdout


def main() -> int:
    """Run the demo; 0 when the job has succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--current", action="store_true", help="use the cluster of your kubeconfig")
    arguments = parser.parse_args()
    durations = Durations(layout.CACHE / "demo-durations.json")
    started = time.monotonic()
    try:
        target = _stage("1/4 cluster", durations, current_target if arguments.current else embedded_target)
        _stage("2/4 chart", durations, lambda: install_chart(target.helm, target.kubeconfig, target.chart_values))
        name = _stage("3/4 apply", durations, lambda: apply_sample(target))
        job = _stage("4/4 job", durations, lambda: follow(target, name))
    except (DemoError, DeployError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except ClusterError as error:
        print(f"\n{error.report()}", file=sys.stderr)
        return 1
    return report(target, job, time.monotonic() - started)


def embedded_target() -> Target:
    """Bring up the embedded cluster with both images and the mirror of the Hub.

    Raises:
        DemoError: a part failed; it has told its story already.
    """
    from dev.cluster.image_build import OPERATOR, TRAINER
    from dev.mirror import ensure_mirror

    if subprocess.run([sys.executable, "-m", "dev.cluster", "up"], cwd=layout.REPOSITORY, check=False).returncode != 0:
        raise DemoError("the embedded cluster did not come up; what failed and what to do is said above")
    endpoint = ensure_mirror()
    values = {"image": OPERATOR.reference(), "trainer.image": TRAINER.reference(), "trainer.hubEndpoint": endpoint}
    return Target(layout.binary("kubectl"), layout.binary("helm"), layout.KUBECONFIG, values)


def current_target() -> Target:
    """Find kubectl, helm and a cluster that answers.

    Raises:
        DemoError: one of them is missing.
    """
    programs = {name: shutil.which(name) for name in ("kubectl", "helm")}
    for name, path in programs.items():
        if path is None:
            raise DemoError(f"{name} is not on the PATH: install it, or run `make demo` for the embedded cluster")
    chosen = {"image": os.environ.get("OPERATOR_IMAGE"), "trainer.image": os.environ.get("TRAINER_IMAGE")}
    target = Target(
        Path(str(programs["kubectl"])),
        Path(str(programs["helm"])),
        None,
        {name: value for name, value in chosen.items() if value},
    )
    print(f"    context {target.run('config', 'current-context').strip()}")
    print("    " + target.run("get", "nodes", "--output", "name").replace("\n", " "))
    return target


def apply_sample(target: Target) -> str:
    """Apply the sample job, in place of the one that an earlier demo left, and return its name."""
    job = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
    storage = job["spec"]["storage"]
    for group, variable in (("shared", "SHARED_CLASS"), ("network", "NETWORK_CLASS")):
        if os.environ.get(variable):
            storage[group]["storageClassName"] = os.environ[variable]
    name: str = job["metadata"]["name"]
    print(f"    kubectl apply -f {SAMPLE.relative_to(layout.REPOSITORY)}")
    target.run("delete", "finetunejob", name, "--ignore-not-found", "--wait")
    print("    " + target.run("apply", "-f", "-", stdin=yaml.safe_dump(job)).strip())
    return name


def follow(target: Target, name: str) -> dict[str, Any]:
    """Show every change of the job, and its Events, until it has ended; return the job.

    Raises:
        DemoError: it did not end in time.
    """
    started = time.monotonic()
    shown_events: set[str] = set()
    shown_line, shown_at = "", 0.0
    while True:
        job: dict[str, Any] = json.loads(target.run("get", "finetunejob", name, "--output", "json"))
        elapsed = time.monotonic() - started
        for event in _events(target, job["metadata"]["uid"]):
            if event["metadata"]["uid"] not in shown_events:
                shown_events.add(event["metadata"]["uid"])
                print(f"    {elapsed:5.0f} s  {event['reason']}: {event['message']}", flush=True)
        line = progress_line(job.get("status", {}))
        if line != shown_line or time.monotonic() - shown_at > SAME_NEWS_SECONDS:
            shown_line, shown_at = line, time.monotonic()
            print(f"    {elapsed:5.0f} s  {line}", flush=True)
        if job.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return job
        if elapsed > JOB_TIMEOUT_SECONDS:
            raise DemoError(f"{name} has not ended after {elapsed:.0f} s; see `kubectl describe finetunejob {name}`")
        time.sleep(1)


def progress_line(status: Mapping[str, Any]) -> str:
    """Return one line on where a job stands: its phase, its step and loss, or what it waits for."""
    phase = status.get("phase") or "not seen by the operator yet"
    progress = status.get("progress")
    if phase == "Running" and progress:
        loss = progress.get("lossText") or "-"
        return f"{phase}  step {progress['steps']}  loss {loss}  eta {progress.get('eta') or '-'}"
    waiting = [
        condition["message"]
        for condition in status.get("conditions", [])
        if condition["type"] in STAGES and condition["status"] != "True" and condition["reason"] != "Trained"
    ]
    return f"{phase}  {waiting[0]}" if waiting else str(phase)


def report(target: Target, job: Mapping[str, Any], seconds: float) -> int:
    """Print what came out, and where to look next; 0 when the job has succeeded."""
    status, metadata = job["status"], job["metadata"]
    print()
    print(target.run("get", "finetunejob", metadata["name"], "--output", "wide"))
    if status["phase"] != "Succeeded":
        print(
            f"The job has failed: {status.get('reason')}. `kubectl describe finetunejob {metadata['name']}` tells why."
        )
        return 1
    result = status["result"]
    first, final = result["firstLoss"], result["finalLoss"]
    claim = job["spec"]["storage"]["shared"].get("claimName") or f"{metadata['name']}-shared"
    kubeconfig = f"export KUBECONFIG={target.kubeconfig}\n           " if target.kubeconfig else ""
    print(f"Succeeded  {seconds / 60:.1f} min for everything, {result['steps']} steps")
    print(f"Loss       {first:.3f} before, {final:.3f} after: {(final - first) / first:+.0%}")
    for metric, base, tuned in compared(result.get("evaluation")):
        print(f"Held out   {metric}: {base:.3f} of the base, {tuned:.3f} of the tuned model")
    print(f"Adapter    /mnt/shared/{result['adapterPath']}")
    print(f"           on claim {claim}, {result['adapterDigest']}")
    print(f"Look       {kubeconfig}{target.kubectl} describe finetunejob {metadata['name']}")
    print(f"           {target.kubectl} --namespace {NAMESPACE} logs deployment/finetune-operator")
    return 0


def compared(evaluation: Mapping[str, Any] | None) -> list[tuple[str, float, float]]:
    """Return what was measured of both base and tuned model: the metric and its two values."""
    if evaluation is None:
        return []
    base, tuned = evaluation["base"], evaluation["tuned"]
    return [(metric, base[metric]["value"], tuned[metric]["value"]) for metric in base if metric in tuned]


def _stage(title: str, durations: Durations, work: Callable[[], Any]) -> Any:
    print(f"== {title}{durations.last(title)}", flush=True)
    started = time.monotonic()
    outcome = work()
    durations.record(title, time.monotonic() - started)
    return outcome


def _events(target: Target, job_uid: str) -> list[dict[str, Any]]:
    selector = f"involvedObject.uid={job_uid}"  # an earlier job of the name has left its own
    listed = target.run("get", "events", "--field-selector", selector, "--output", "json")
    items: list[dict[str, Any]] = json.loads(listed)["items"]
    return items


if __name__ == "__main__":
    sys.exit(main())
