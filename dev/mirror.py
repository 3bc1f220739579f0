"""Keeps the mirror of the Hub running beside the embedded cluster, where its pods can reach it."""

import subprocess
import sys
import urllib.error
import urllib.request

from dev.cluster.failure import ClusterError
from dev.cluster.layout import CACHE, HOST_ADDRESS, REPOSITORY
from dev.cluster.processes import Part, ensure_running, wait_until_ready

PORT = 8081
ENDPOINT = f"http://{HOST_ADDRESS}:{PORT}"
# Opens the mirror's gated repositories, so that a test can see both sides of the gate. Not a secret of anybody's.
TOKEN = "hf_mirror_token"


def ensure_mirror() -> str:
    """Make what the mirror serves, start it unless it runs, and return the endpoint for HF_ENDPOINT.

    Raises:
        ClusterError: the mirror cannot be made or does not answer.
    """
    built = subprocess.run([sys.executable, "-m", "dev.hub", "build"], cwd=REPOSITORY, check=False)
    if built.returncode != 0:
        raise ClusterError(
            "hub-mirror", "could not be built", "see the lines above; `python -m dev.hub build` repeats it"
        )
    part = _part()
    ensure_running(part)
    wait_until_ready(part, _answers, timeout_seconds=20, advice=f"is port {PORT} of {HOST_ADDRESS} free?")
    return ENDPOINT


def _part() -> Part:
    return Part(
        name="hub-mirror",
        command=(sys.executable, "-m", "dev.hub", "serve", "--host", HOST_ADDRESS, "--port", str(PORT)),
        configuration=tuple(sorted((REPOSITORY / "dev" / "hub").glob("*.py"))),
        environment={"PYTHONPATH": str(REPOSITORY), "FINETUNE_CACHE": str(CACHE), "HUB_MIRROR_TOKEN": TOKEN},
    )


def _answers() -> bool:
    try:
        urllib.request.urlopen(f"{ENDPOINT}/api/models/finetune-operator/tiny-random-llama/revision/main", timeout=2)
    except (urllib.error.URLError, OSError):
        return False
    return True


if __name__ == "__main__":
    try:
        print(f"A mirror of the Hub for its pods: HF_ENDPOINT={ensure_mirror()}")
    except ClusterError as failure:
        print(failure.report(), file=sys.stderr)
        sys.exit(1)
