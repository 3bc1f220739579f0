"""The API server is away for half a minute while jobs run."""

import time

import pytest

from dev.cluster.commands import succeeds
from dev.cluster.control_plane import api_server, kubectl
from dev.cluster.processes import ensure_running, find, kill, wait_until_ready
from tests.e2e.faults.expected import assert_as_undisturbed
from tests.e2e.faults.fault import JOB, PYTORCH_JOB, Fault
from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.run import strike_together
from tests.e2e.faults.watch import Watch
from tests.e2e.kubectl import Kubectl

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

AWAY_SECONDS = 30
FAULTS = [
    Fault(f"api-server-away-{backend.lower()}", f"API server away for {AWAY_SECONDS} s", backend=backend)
    for backend in (JOB, PYTORCH_JOB)
]


def test_jobs_end_well_although_the_api_server_is_away_for_half_a_minute(
    operator: Kubectl, watch: Watch, alone: Matrix
) -> None:
    for outcome in strike_together(operator, watch, FAULTS, lambda _: take_api_server_away()):
        outcome.keep()
        assert_as_undisturbed(outcome, alone)
        assert outcome.reasons == ["Succeeded"]


def take_api_server_away() -> None:
    """Kill the API server, and start it again after a while."""
    part = api_server()
    process = find(part)
    assert process is not None
    kill([process.pid])
    time.sleep(AWAY_SECONDS)
    ensure_running(part)
    wait_until_ready(
        part,
        lambda: succeeds([*kubectl(), "get", "--raw", "/readyz"]),
        timeout_seconds=120,
        advice="`make cluster` brings it back",
    )
