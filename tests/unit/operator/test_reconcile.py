"""One look at a job after the other, against a server that keeps what it is sent."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client

from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.cluster import Cluster
from finetune_operator.connection import Connection
from finetune_operator.errors import ApiError
from finetune_operator.metrics import Metrics
from finetune_operator.pricing import parse_pricing
from finetune_operator.reconcile import Reconciler, status_document
from finetune_operator.settings import Settings
from finetune_operator.store import JobKey, Store
from finetune_trainer.contract import series
from tests.factories import SETTINGS, manifest
from tests.factories import condition as a_condition
from tests.unit.operator import kubernetes_objects as objects
from tests.unit.operator.world import TRAIN, TWO_NODES, World, set_job_condition

CALLS = JobKey("team-a", "calls")
NOW = datetime(2026, 11, 23, 5, 0, tzinfo=UTC)
CORE = "/api/v1/namespaces/team-a"
JOB = "/apis/finetune.dev/v1alpha1/namespaces/team-a/finetunejobs/calls"
CLAIM = f"{CORE}/persistentvolumeclaims/data"
ON_TWO_NODES = {
    "storage": {"shared": {"claimName": "data", "size": None, "storageClassName": None}},
    "compute": {"nodes": 2},
}


class ApiServer:
    """Objects by their path; each write gives a new version, and every request is remembered."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.version = 0
        self.refuses: str | None = None
        """End of the paths that may not be used."""

    def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        metadata = {"uid": f"uid-{self.version}", "creationTimestamp": NOW.isoformat(), **body["metadata"]}
        self.objects[path] = {**body, "metadata": metadata | {"resourceVersion": str(self.version)}}
        return self.objects[path]

    async def answer(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, request.path))
        path = request.path.removesuffix("/status")
        if self.refuses is not None and request.path.endswith(self.refuses):
            return web.json_response({"message": "forbidden"}, status=403)
        if request.method == "GET":
            found = self.objects.get(path)
            return web.json_response(found or {"message": "not found"}, status=200 if found else 404)
        if request.method == "DELETE":
            return web.json_response({})
        sent = json.loads(await request.text())
        if request.path.endswith("/status"):
            sent = self.objects[path] | {"status": sent["status"]}
        if request.method == "POST":
            path = f"{path}/{sent['metadata']['name']}"
        if request.method == "POST" and path in self.objects:
            return web.json_response({"reason": "AlreadyExists", "message": "is there already"}, status=409)
        return web.json_response(self.put(path, sent))

    def told(self) -> tuple[str, str]:
        """Return the job's phase and reason."""
        status = self.objects[JOB]["status"]
        return status["phase"], status["reason"]


async def has_every_kind(_: str) -> bool:
    return True


@asynccontextmanager
async def looking_at(
    spec: dict[str, Any],
    has_kind: Callable[[str], Awaitable[bool]] = has_every_kind,
    world: World | None = None,
    settings: Settings = SETTINGS,
) -> AsyncIterator[tuple[ApiServer, Reconciler]]:
    """A reconciler of one job: a new one with this spec, or that of a world with all that is there of it."""
    server, store = ApiServer(), Store()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    configuration = client.Configuration(host=f"http://{host}:{port}")
    cluster = Cluster(Connection(configuration, Metrics()), Metrics())
    store.see(server.put(JOB, manifest(spec) if world is None else world.body))
    for body in world.objects.values() if world is not None else ():
        store.see(body, CALLS)
    clock = (lambda: NOW) if world is None else lambda: world.now
    try:
        yield server, Reconciler(cluster, store, settings, Metrics(), clock, has_kind)
    finally:
        await cluster.close()
        await runner.cleanup()


async def test_a_job_refused_for_a_claim_goes_on_when_the_claim_is_made_anew() -> None:
    async with looking_at(ON_TWO_NODES) as (server, reconciler):
        server.put(CLAIM, objects.claim("data", access_mode="ReadWriteOnce"))
        await reconciler.reconcile(CALLS)
        assert server.told() == ("Failed", "InvalidSpec")
        del server.objects[CLAIM]
        await reconciler.reconcile(CALLS)
        assert server.told() == ("Pending", "ClaimMissing")
        server.put(CLAIM, objects.claim("data", access_mode="ReadWriteMany"))
        await reconciler.reconcile(CALLS)
        assert server.told() == ("Preparing", "Preparing")


async def test_a_bound_claim_of_an_accepted_job_is_not_asked_for_again() -> None:
    async with looking_at(ON_TWO_NODES) as (server, reconciler):
        server.put(CLAIM, objects.claim("data"))
        await reconciler.reconcile(CALLS)
        server.requests.clear()
        await reconciler.reconcile(CALLS)
        assert server.requests == []


async def test_the_first_look_makes_the_children_before_it_tells_of_them() -> None:
    async with looking_at({}) as (server, reconciler):
        await reconciler.reconcile(CALLS)
        written = [path.removeprefix(CORE) for method, path in server.requests if method != "GET"]
        assert written == [
            "/persistentvolumeclaims",
            "/configmaps",
            "/apis/batch/v1/namespaces/team-a/jobs",
            f"{JOB}/status",
            "/events",
        ]


async def test_an_attempt_that_ended_is_counted_once_with_its_gpu_seconds() -> None:
    ended = {"number": 1, "started": "2026-11-23T04:00:00Z", "ended": "2026-11-23T04:59:00Z", "reason": "NodeLost"}
    ledger = {"queuedGpuSeconds": 60, "activity": "Recovering", "since": "2026-11-23T04:59:00Z"}
    before = {"phase": "Running", "attempts": [{**ended, "ended": None, "reason": None}]}
    after = FineTuneJobStatus.model_validate({"phase": "Restarting", "attempts": [ended], "accounting": ledger})
    async with looking_at({}) as (server, reconciler):
        for body in (
            server.objects[JOB] | {"status": before},
            server.objects[JOB] | {"status": status_document(after)},
        ):
            await reconciler._tell(CALLS, body, after)
        counted = reconciler._metrics.exposition().decode()
        assert 'finetune_operator_attempts_total{reason="NodeLost"} 1.0' in counted
        assert 'finetune_operator_gpu_seconds_total{kind="queued"} 60.0' in counted
        assert 'kind="lost"' not in counted


@pytest.mark.parametrize(
    ("phase", "reason", "condition", "counted"),
    [
        ("Failed", "GateNotMet", "Failed", 'finetune_operator_jobs_failed_total{reason="GateNotMet"} 1.0'),
        ("Succeeded", "Succeeded", "Complete", "finetune_operator_jobs_succeeded_total 1.0"),
    ],
)
async def test_a_job_that_came_to_its_end_is_counted_once(
    phase: str, reason: str, condition: str, counted: str
) -> None:
    told = a_condition(condition, reason=reason)
    after = FineTuneJobStatus.model_validate({"phase": phase, "reason": reason, "conditions": [told]})
    async with looking_at({}) as (server, reconciler):
        for before in ({"phase": "Evaluating"}, status_document(after)):
            await reconciler._tell(CALLS, server.objects[JOB] | {"status": before}, after)
        assert counted in reconciler._metrics.exposition().decode()


async def test_how_long_an_attempt_waited_for_its_nodes_and_for_its_first_step_is_counted_apart() -> None:
    def ledger(activity: str, minute: int) -> FineTuneJobStatus:
        accounting = {"activity": activity, "since": f"2026-11-23T05:{minute:02d}:00Z"}
        return FineTuneJobStatus.model_validate({"accounting": accounting})

    story = [ledger("Queued", 0), ledger("Starting", 3), ledger("Training", 5), ledger("Training", 9)]
    async with looking_at({}) as (server, reconciler):
        for before, after in pairwise(story):
            body = server.objects[JOB] | {"status": status_document(before)}
            await reconciler._tell(CALLS, body, after)
        counted = reconciler._metrics.exposition().decode()
    assert "finetune_operator_attempt_queue_seconds_sum 180.0" in counted
    assert "finetune_operator_attempt_queue_seconds_count 1.0" in counted
    assert "finetune_operator_attempt_start_seconds_sum 120.0" in counted
    assert "finetune_operator_attempt_start_seconds_count 1.0" in counted


async def test_a_job_whose_back_end_is_not_installed_waits_and_goes_on_when_it_is() -> None:
    installed: set[str] = set()

    async def has_kind(kind: str) -> bool:
        return kind in installed

    async with looking_at({"compute": {"backend": "PyTorchJob"}}, has_kind) as (server, reconciler):
        assert await reconciler.reconcile(CALLS) == 5
        assert server.told() == ("Pending", "BackendMissing")
        assert [path for method, path in server.requests if method == "PATCH"] == [f"{JOB}/status"]
        installed.add("PyTorchJob")
        await reconciler.reconcile(CALLS)
        assert server.told() == ("Preparing", "Preparing")


async def test_a_back_end_that_the_operator_may_not_use_is_told_with_the_api_servers_words() -> None:
    async def has_kind(_: str) -> bool:
        raise ApiError("list pytorchjobs is not permitted: forbidden.", 403)

    async with looking_at({"compute": {"backend": "PyTorchJob"}}, has_kind) as (server, reconciler):
        await reconciler.reconcile(CALLS)
        assert server.told() == ("Pending", "Refused")


def _broken_off() -> World:
    world = World(TWO_NODES).until_running()
    world.pods(TRAIN)[0]["status"] = objects.ended("", exit_code=137, reason="OOMKilled")
    set_job_condition(world.jobs(TRAIN)[0], "Failed")
    return world


async def test_why_an_attempt_ended_is_told_before_anything_of_it_is_deleted() -> None:
    async with looking_at({}, world=_broken_off()) as (server, reconciler):
        await reconciler.reconcile(CALLS)
        written = [(method, path.rsplit("/", 1)[-1]) for method, path in server.requests if method != "GET"]
        assert written == [
            ("PATCH", "status"),
            ("POST", "events"),
            ("DELETE", "calls-a1-node"),
            ("DELETE", "calls-a1"),
        ]


async def test_nothing_is_deleted_for_a_reason_that_could_not_be_told() -> None:
    async with looking_at({}, world=_broken_off()) as (server, reconciler):
        server.refuses = "/status"
        with pytest.raises(ApiError):
            await reconciler.reconcile(CALLS)
        assert "DELETE" not in {method for method, _ in server.requests}


async def test_a_job_whose_time_is_over_is_deleted_with_its_children() -> None:
    world = World(TWO_NODES).until_running()
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.finish_jobs(TRAIN, "Complete")
    world.settle()
    world.change_spec({"runPolicy": {"ttlSecondsAfterFinished": 0}})
    world.step()
    async with looking_at({}, world=world) as (server, reconciler):
        await reconciler.reconcile(CALLS)
        assert server.requests == [("DELETE", JOB)]


async def test_rank_0_is_asked_soon_and_ever_more_rarely_until_it_tells_of_its_training(
    monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setattr(series, "METRICS_PORT", unused_tcp_port)
    world = World(TWO_NODES).until_prepared()
    world.set_pods(TRAIN, objects.running("127.0.0.1"))
    world.settle()
    asked_at = []

    async def answer(_: web.Request) -> web.Response:
        asked_at.append((world.now - started).total_seconds())
        return web.Response(status=404)

    application = web.Application()
    application.router.add_get(series.PROGRESS_PATH, answer)
    exporter = web.AppRunner(application)
    await exporter.setup()
    await web.TCPSite(exporter, "127.0.0.1", unused_tcp_port).start()
    started = world.now
    async with looking_at({}, world=world) as (_, reconciler):
        for _ in range(7):
            world.advance(await reconciler.reconcile(CALLS) or 0)
    await exporter.cleanup()
    assert asked_at == [0, 2, 4, 8, 16, 26, 36]


async def test_a_gang_among_many_is_asked_when_its_turn_comes_and_told_of_until_then_as_it_was() -> None:
    world = World(TWO_NODES).until_running()
    async with looking_at({}, world=world) as (server, reconciler):
        while reconciler._turns.take(JobKey("team-b", "other"), world.now):
            pass
        assert await reconciler.reconcile(CALLS) == 0.5  # a quarter of a second after the other's
        assert CALLS not in reconciler._asked
        assert server.requests == []
        world.advance(0.5)
        await reconciler.reconcile(CALLS)
        assert CALLS in reconciler._asked


async def test_a_gang_whose_turn_comes_after_minutes_is_not_looked_at_before() -> None:
    world = World(TWO_NODES).until_running()
    world.advance(60)
    async with looking_at({}, world=world) as (_, reconciler):
        for number in range(416):  # sixteen at once and then four a second
            reconciler._turns.reserve(JobKey("team-b", str(number)), world.now)
        assert await reconciler.reconcile(CALLS) == 100.0
        world.advance(60)
        assert await reconciler.reconcile(CALLS) == 40.0


def _trained() -> World:
    world = World(TWO_NODES).until_running()
    world.set_pods(TRAIN, objects.ended(objects.TRAINED_MESSAGE))
    world.finish_jobs(TRAIN, "Complete")
    world.settle()
    return world


def _leaving() -> World:
    world = World(TWO_NODES).until_running()
    world.suspend(suspended=True)
    world.settle()
    return world


@pytest.mark.parametrize("world", [_trained(), _leaving()], ids=["finished", "suspended"])
async def test_a_job_whose_gang_has_done_is_left_alone_and_takes_no_turn_from_others(world: World) -> None:
    async with looking_at({}, world=world) as (server, reconciler):
        for _ in range(3):
            assert await reconciler.reconcile(CALLS) is None
            world.advance(60)
        assert reconciler._turns.seconds_until(CALLS, world.now) is None
        assert server.requests == []


def _on_nodes() -> World:
    """A gang whose pods have just come to run on two nodes."""
    world = World(TWO_NODES).until_prepared()
    world.set_pods(TRAIN, objects.running())
    for pod, node in zip(world.pods(TRAIN), ("gpu-1", "gpu-2"), strict=True):
        pod["spec"] = {"nodeName": node}
    return world


BY_LABEL = parse_pricing(
    '{"currency": "USD", "gpuHour": {"default": "3", "byNodeLabel": '
    '[{"label": "kind", "value": "spot", "price": "1"}]}}'
)


async def test_the_nodes_of_a_gang_are_read_once_and_their_labels_make_its_price() -> None:
    async with looking_at({}, world=_on_nodes(), settings=replace(SETTINGS, pricing=BY_LABEL)) as (server, reconciler):
        server.put("/api/v1/nodes/gpu-1", {"kind": "Node", "metadata": {"name": "gpu-1", "labels": {"kind": "spot"}}})
        server.put("/api/v1/nodes/gpu-2", {"kind": "Node", "metadata": {"name": "gpu-2"}})
        for _ in range(3):
            await reconciler.reconcile(CALLS)
        cost = server.objects[JOB]["status"]["accounting"]["cost"]
        assert (cost["gpuHourPrice"], cost["pricedAttempt"], cost["currency"]) == ("2", 1, "USD")
        assert [path for _, path in server.requests if "/nodes/" in path] == [
            "/api/v1/nodes/gpu-1",
            "/api/v1/nodes/gpu-2",
        ]


async def test_nodes_that_may_not_be_read_have_the_price_that_the_job_selects_them_by() -> None:
    world = _on_nodes()
    world.change_spec({"compute": {"nodeSelector": {"kind": "spot"}}})
    async with looking_at({}, world=world, settings=replace(SETTINGS, pricing=BY_LABEL)) as (server, reconciler):
        server.refuses = "/gpu-1"
        await reconciler.reconcile(CALLS)
        assert server.objects[JOB]["status"]["accounting"]["cost"]["gpuHourPrice"] == "1"


async def test_no_node_is_read_where_prices_do_not_differ() -> None:
    one_price = parse_pricing('{"currency": "USD", "gpuHour": {"default": "3"}}')
    async with looking_at({}, world=_on_nodes(), settings=replace(SETTINGS, pricing=one_price)) as (server, reconciler):
        await reconciler.reconcile(CALLS)
        assert server.objects[JOB]["status"]["accounting"]["cost"]["gpuHourPrice"] == "3"
        assert not [path for _, path in server.requests if "/nodes/" in path]


async def test_what_a_job_has_cost_is_counted_by_namespace_kind_and_currency() -> None:
    def ledger(**amounts: str) -> dict[str, Any]:
        cost = {"currency": "USD", "storageSince": "2026-11-23T04:00:00Z", **amounts}
        return {"activity": "Training", "since": "2026-11-23T04:00:00Z", "cost": cost}

    before = {"phase": "Running", "accounting": ledger(productive="1.5", total="1.5")}
    after = FineTuneJobStatus.model_validate(
        {"phase": "Running", "accounting": ledger(productive="4", lost="0.25", total="4.25")}
    )
    async with looking_at({}) as (server, reconciler):
        await reconciler._tell(CALLS, server.objects[JOB] | {"status": before}, after)
        counted = reconciler._metrics.exposition().decode()
        for kind, amount in (("productive", 2.5), ("lost", 0.25), ("starting", 0.0), ("storage", 0.0)):
            labels = f'currency="USD",job_namespace="{CALLS.namespace}",kind="{kind}"'
            assert f"finetune_operator_cost_total{{{labels}}} {amount}" in counted
