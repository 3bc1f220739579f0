"""The nodes of a gang do not reach each other for a minute."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dev.cluster.commands import output_of
from dev.cluster.layout import NODES
from tests.e2e.faults.expected import assert_as_undisturbed
from tests.e2e.faults.fault import Fault, disturbed_by
from tests.e2e.faults.matrix import Matrix
from tests.e2e.faults.outcome import Outcome
from tests.e2e.faults.run import Run
from tests.e2e.faults.tiny import STEPS_A_CHECKPOINT
from tests.e2e.kubectl import Manifest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

CUT_SECONDS = 60


def cut_the_network(run: Run) -> None:
    run.wait_for_checkpoint(STEPS_A_CHECKPOINT)
    pods = run.training_pods()
    assert {pod["spec"]["nodeName"] for pod in pods} == {node.name for node in NODES}
    run.mark()
    with cut_between(*pods):
        time.sleep(CUT_SECONDS)


@contextmanager
def cut_between(first: Manifest, second: Manifest) -> Iterator[None]:
    """Drop every packet between two pods on the way through the first node, and tell nobody."""
    addresses = [pod["status"]["podIP"] for pod in (first, second)]
    rules = [
        ("FORWARD", "-s", sender, "-d", receiver, "-j", "DROP") for sender, receiver in (addresses, addresses[::-1])
    ]
    iptables = ["nsenter", f"--net={NODES[0].network_namespace}", "--", "iptables", "-w"]
    for rule in rules:
        output_of("network", [*iptables, "-I", *rule])
    try:
        yield
    finally:
        for rule in rules:
            output_of("network", [*iptables, "-D", *rule])


@disturbed_by(Fault("network-cut", f"network between the nodes cut for {CUT_SECONDS} s", cut_the_network))
def test_a_gang_whose_network_is_cut_for_a_minute_goes_on_by_itself(outcome: Outcome, matrix: Matrix) -> None:
    assert_as_undisturbed(outcome, matrix)
    assert outcome.reasons == ["Succeeded"]
    assert outcome.seconds_to_recover is not None
    assert outcome.seconds_to_recover >= CUT_SECONDS, "the gang went on while its network was cut"
