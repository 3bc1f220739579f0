"""Installs the chart into a cluster, as a person would with `helm upgrade --install`."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CHART = REPOSITORY / "helm" / "finetune-operator"
RELEASE = "finetune-operator"
NAMESPACE = "finetune-system"


class DeployError(Exception):
    """The chart could not be installed; the message has helm's own words."""


def install_chart(helm: Path, kubeconfig: Path | None, values: Mapping[str, str], timeout_seconds: int = 180) -> str:
    """Install or upgrade the release and wait until the operator is ready; return helm's words.

    Raises:
        DeployError: helm failed.
    """
    command = [
        *(str(helm), "upgrade", "--install", RELEASE, str(CHART)),
        *("--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", f"{timeout_seconds}s"),
    ]
    if kubeconfig is not None:
        command += ["--kubeconfig", str(kubeconfig)]
    for name, value in values.items():
        command += ["--set", f"{name}={value}"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise DeployError(
            f"`{' '.join(command)}` failed:\n{finished.stderr}\n"
            f"Look at `kubectl --namespace {NAMESPACE} get pods,events`."
        )
    return finished.stdout
