"""GPUs as the scheduler sees them: the embedded nodes claim some, and have none."""

from collections.abc import Iterator

import pytest

from dev.cluster.layout import NODES
from dev.cluster.nodes import claim_gpus
from tests.e2e.jobs import tiny_job
from tests.e2e.kubectl import Kubectl

pytestmark = pytest.mark.e2e

GPUS_PER_NODE = 2


@pytest.fixture
def claimed_gpus() -> Iterator[None]:
    for node in NODES:
        claim_gpus(node, GPUS_PER_NODE)
    yield
    for node in NODES:
        claim_gpus(node, 0)


@pytest.mark.usefixtures("claimed_gpus")
def test_a_pod_that_got_gpus_which_do_not_work_fails_and_never_trains_on_the_cpu_instead(namespace: Kubectl) -> None:
    namespace.apply(tiny_job("no-driver", compute={"nodes": 2, "gpusPerNode": GPUS_PER_NODE}))
    job = namespace.wait_for_job("no-driver", lambda job: job.phase == "Failed")
    failed = job.condition("Failed")
    # Other GPUs may be whole, so it is tried once more.
    reasons = [attempt["reason"] for attempt in job.status["attempts"]]
    assert (failed["reason"], reasons) == ("DeviceUnavailable", ["DeviceUnavailable", "DeviceUnavailable"])
    assert "compute.device: cpu" in failed["message"]
    for role in namespace.items("jobs", "finetune.dev/stage=train"):
        limits = role["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == str(GPUS_PER_NODE)
