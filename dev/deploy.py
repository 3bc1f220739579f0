"""Installs the chart into a cluster, as a person would with `helm upgrade --install`."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CHART = REPOSITORY / "helm" / "finetune-operator"
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"


class DeployError(Exception):
    """The chart could not be installed; the message has helm's own words."""


# helm's own word for a release whose last install or upgrade was killed half-way.
INTERRUPTED = "another operation (install/upgrade/rollback) is in progress"


def install_chart(helm: Path, kubeconfig: Path | None, values: Mapping[str, str], timeout_seconds: int = 180) -> str:
    """Install or upgrade the release and wait until the operator is ready; return helm's words.

    A release that was interrupted half-way is taken away first; the CRD, and with it every FineTuneJob, stays.

    Raises:
        DeployError: helm failed.
    """
    settings = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    command = [
        *("upgrade", "--install", RELEASE, str(CHART), "--create-namespace"),
        *("--wait", "--timeout", f"{timeout_seconds}s", *settings),
    ]
    finished = _helm(helm, kubeconfig, command)
    if finished.returncode != 0 and INTERRUPTED in finished.stderr:
        print("    an earlier installation was interrupted: installing anew")
        _helm(helm, kubeconfig, ["uninstall", RELEASE, "--wait"])
        finished = _helm(helm, kubeconfig, command)
    if finished.returncode != 0:
        raise DeployError(
            f"`helm {' '.join(command)}` failed:\n{finished.stderr}\n"
            f"Look at `kubectl --namespace {NAMESPACE} get pods,events`."
        )
    return finished.stdout


def _helm(helm: Path, kubeconfig: Path | None, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    target = ["--namespace", NAMESPACE, *(["--kubeconfig", str(kubeconfig)] if kubeconfig else [])]
    return subprocess.run([str(helm), *words, *target], capture_output=True, text=True, check=False)
