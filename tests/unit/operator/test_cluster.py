"""How the operator talks to the API server: the real client, and a server that answers as the test wants it to."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio import client

from finetune_operator.build.config import build_config_map
from finetune_operator.cluster import Cluster
from finetune_operator.connection import Connection
from finetune_operator.errors import ApiError, ForeignObject
from finetune_operator.metrics import Metrics
from finetune_operator.progress import Heard
from finetune_operator.resources import CHILDREN, FINE_TUNE_JOBS, JOBS, PERMISSIONS, PODS
from finetune_operator.store import JobKey
from finetune_trainer.contract import series
from tests.factories import UID, make_job_plan

Answer = tuple[int, dict[str, Any]] | tuple[int, dict[str, Any], dict[str, str]]
CALLS = JobKey("team-a", "calls")


@dataclass
class Server:
    """Answers requests in order, the last answer for ever, and remembers them."""

    answers: list[Answer]
    requests: list[web.Request] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.Response:
        text = await request.text()
        self.requests.append(request)
        self.bodies.append(json.loads(text) if text else None)
        status, body, *headers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.json_response(body, status=status, headers=headers[0] if headers else None)

    @property
    def methods(self) -> list[str]:
        return [request.method for request in self.requests]


@asynccontextmanager
async def cluster_with(*answers: Answer) -> AsyncIterator[tuple[Cluster, Server]]:
    server = Server(list(answers))
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    metrics = Metrics()
    configuration = client.Configuration(host=f"http://{host}:{port}")
    cluster = Cluster(Connection(configuration, metrics), metrics)
    try:
        yield cluster, server
    finally:
        await cluster.close()
        await runner.cleanup()


THERE_ALREADY: Answer = (409, {"kind": "Status", "reason": "AlreadyExists", "message": "is there already"})


def _message(text: str) -> dict[str, Any]:
    return {"kind": "Status", "message": text}


@pytest.mark.parametrize("code", [409, 429, 500, 503])
async def test_a_request_that_fails_in_passing_is_made_again(code: int) -> None:
    async with cluster_with((code, _message("later")), (200, {"kind": "Job"})) as (cluster, server):
        assert await cluster.find("Job", CALLS, "calls-prepare") == {"kind": "Job"}
        assert server.methods == ["GET", "GET"]


async def test_a_server_that_wants_to_be_left_alone_is_left_alone_for_as_long() -> None:
    busy: Answer = (429, _message("too many requests"), {"Retry-After": "1"})
    async with cluster_with(busy, (200, {"kind": "Job"})) as (cluster, _):
        started = time.monotonic()
        await cluster.find("Job", CALLS, "calls-prepare")
        assert time.monotonic() - started >= 1


async def test_a_request_that_is_refused_is_not_made_again_and_the_message_names_it() -> None:
    words = 'jobs.batch "calls-prepare" is forbidden: User "x" cannot get resource "jobs" in API group "batch"'
    async with cluster_with((403, _message(words))) as (cluster, server):
        with pytest.raises(ApiError, match="get jobs calls-prepare in namespace team-a is not permitted") as caught:
            await cluster.find("Job", CALLS, "calls-prepare")
        assert caught.value.is_refusal
        assert words in str(caught.value)
        assert len(server.requests) == 1


async def test_what_is_not_there_is_none() -> None:
    async with cluster_with((404, _message("not found"))) as (cluster, _):
        assert await cluster.find("Job", CALLS, "calls-prepare") is None


async def test_an_object_of_somebody_else_is_looked_at_and_not_touched() -> None:
    manifest = build_config_map(make_job_plan())
    theirs: Answer = (200, {"kind": "ConfigMap", "metadata": {"uid": "theirs"}})
    async with cluster_with(THERE_ALREADY, theirs) as (cluster, server):
        with pytest.raises(ForeignObject):
            await cluster.apply(manifest, UID)
        assert server.methods == ["POST", "GET"]


async def test_an_object_that_is_as_it_should_be_is_not_written() -> None:
    manifest = build_config_map(make_job_plan())
    async with cluster_with(THERE_ALREADY, (200, manifest)) as (cluster, server):
        assert await cluster.apply(manifest, UID) == manifest
        assert server.methods == ["POST", "GET"]


async def test_a_missing_object_costs_one_request() -> None:
    manifest = build_config_map(make_job_plan())
    async with cluster_with((201, manifest)) as (cluster, server):
        assert await cluster.apply(manifest, UID) == manifest
        (create,) = server.requests
        assert (create.method, create.path) == ("POST", "/api/v1/namespaces/team-a/configmaps")
        assert dict(create.query) == {"fieldManager": "finetune-operator"}
        assert server.bodies == [manifest]


async def test_an_object_that_differs_is_changed_by_server_side_apply_in_the_operators_name() -> None:
    manifest = build_config_map(make_job_plan())
    old = manifest | {"metadata": manifest["metadata"] | {"uid": "seen", "annotations": {}}}
    async with cluster_with(THERE_ALREADY, (200, old), (200, manifest)) as (cluster, server):
        await cluster.apply(manifest, UID)
        patch = server.requests[2]
        assert patch.path == "/api/v1/namespaces/team-a/configmaps/calls-config"
        assert dict(patch.query) == {"fieldManager": "finetune-operator", "force": "true"}
        assert patch.content_type == "application/apply-patch+yaml"
        assert server.bodies[2]["data"] == manifest["data"]


async def test_an_object_that_is_changed_must_be_the_one_that_was_looked_at() -> None:
    manifest = build_config_map(make_job_plan())
    metadata = manifest["metadata"] | {"uid": "seen", "annotations": {}}
    found: Answer = (200, manifest | {"metadata": metadata})
    async with cluster_with(THERE_ALREADY, found, (200, manifest)) as (cluster, server):
        await cluster.apply(manifest, UID)
        assert server.bodies[2]["metadata"]["uid"] == "seen"


async def test_the_status_of_a_job_that_was_deleted_meanwhile_is_written_to_nobody() -> None:
    async with cluster_with((404, _message("not found"))) as (cluster, server):
        assert await cluster.write_status(CALLS, UID, {"phase": "Pending"}) is None
        assert server.requests[0].path.endswith("/finetunejobs/calls/status")
        assert server.bodies[0]["metadata"]["uid"] == UID


async def test_deleting_takes_only_the_object_that_was_meant_and_what_it_owns() -> None:
    async with cluster_with((404, _message("not found"))) as (cluster, server):
        await cluster.delete("Job", "team-a", "calls-a1-node", "uid-1")
        assert server.bodies[0]["preconditions"] == {"uid": "uid-1"}
        assert server.bodies[0]["propagationPolicy"] == "Foreground"


async def test_a_pod_on_a_dead_node_is_deleted_without_waiting_for_its_kubelet() -> None:
    async with cluster_with((200, {})) as (cluster, server):
        await cluster.delete("Pod", "team-a", "calls-a1-node-0-x", "uid-1", by_force=True)
        assert server.requests[0].path == "/api/v1/namespaces/team-a/pods/calls-a1-node-0-x"
        assert server.bodies[0]["gracePeriodSeconds"] == 0
        assert server.bodies[0]["propagationPolicy"] == "Background"
        assert server.bodies[0]["preconditions"] == {"uid": "uid-1"}


async def test_everything_else_gets_its_grace_period() -> None:
    async with cluster_with((200, {})) as (cluster, server):
        await cluster.delete("Job", "team-a", "calls-a1-node", "uid-1")
        assert "gracePeriodSeconds" not in server.bodies[0]


async def test_a_long_list_is_read_page_by_page_and_every_item_says_what_it_is() -> None:
    pages: list[Answer] = [
        (200, {"apiVersion": "batch/v1", "metadata": {"continue": "next"}, "items": [{"metadata": {"name": "a"}}]}),
        (
            200,
            {"apiVersion": "batch/v1", "metadata": {"resourceVersion": "42"}, "items": [{"metadata": {"name": "b"}}]},
        ),
    ]
    async with cluster_with(*pages) as (cluster, server):
        listed = [page async for page in cluster.list_pages(JOBS, None, "app=x")]
        assert [[(body["kind"], body["metadata"]["name"]) for body in page.objects] for page in listed] == [
            [("Job", "a")],
            [("Job", "b")],
        ]
        assert listed[-1].version == "42"
        assert server.requests[0].path == "/apis/batch/v1/jobs"
        assert server.requests[0].query["labelSelector"] == "app=x"
        assert server.requests[1].query["continue"] == "next"


@asynccontextmanager
async def exporter(port: int, response: Callable[[], web.Response]) -> AsyncIterator[None]:
    async def answer(request: web.Request) -> web.Response:
        return response() if request.path == "/progress" else web.json_response({**REPORT, "step": 666})

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()


REPORT = {"step": 12, "totalSteps": 30, "epoch": 1, "loss": 2.5}


async def test_rank_0_is_asked_and_silence_is_known_from_an_answer_without_a_report(
    monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setattr(series, "METRICS_PORT", unused_tcp_port)
    async with cluster_with((200, {})) as (cluster, _):
        assert await cluster.read_progress("127.0.0.1") == Heard(answers=False)
        async with exporter(unused_tcp_port, lambda: web.Response(status=404)):
            assert await cluster.read_progress("127.0.0.1") == Heard(answers=True)
        async with exporter(unused_tcp_port, lambda: web.json_response(REPORT)):
            heard = await cluster.read_progress("127.0.0.1")
    assert heard.report is not None
    assert (heard.report.step, heard.report.total_steps, heard.report.loss) == (12, 30, 2.5)


NOT_OUR_EXPORTER: dict[str, Callable[[], web.Response]] = {
    "a page": lambda: web.Response(text="<html>hello</html>"),
    "bytes that are no text": lambda: web.Response(body=b"\xff\xfe"),
    "an error": lambda: web.json_response(REPORT, status=500),
    "another address": lambda: web.Response(status=302, headers={"Location": "/internal"}),
    "no end": lambda: web.Response(text=" " * 1_000_000),
}


@pytest.mark.parametrize("case", NOT_OUR_EXPORTER)
async def test_an_image_that_answers_with_something_else_has_told_nothing(
    case: str, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setattr(series, "METRICS_PORT", unused_tcp_port)
    async with cluster_with((200, {})) as (cluster, _), exporter(unused_tcp_port, NOT_OUR_EXPORTER[case]):
        assert await cluster.read_progress("127.0.0.1") == Heard(answers=True)


async def test_an_answer_that_is_no_report_is_logged_with_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(series, "METRICS_PORT", unused_tcp_port)
    cut = lambda: web.Response(text='{"step":170,"checkpoint":{"step":1')  # noqa: E731
    async with cluster_with((200, {})) as (cluster, _), exporter(unused_tcp_port, cut):
        await cluster.read_progress("127.0.0.1")
    assert "answers with what is no progress report" in caplog.text
    assert "see spec.compute.image" in caplog.text


async def test_a_request_that_is_not_in_the_table_is_never_sent() -> None:
    async with cluster_with((200, {})) as (cluster, server):
        with pytest.raises(ValueError, match="create pods is not in the table"):
            await cluster._connection.request("create", PODS, "default", "somebodys-pod")
        assert server.requests == []


def test_what_is_watched_may_be_watched() -> None:
    assert all({"list", "watch"} <= resource.verbs for resource in (FINE_TUNE_JOBS, *CHILDREN))


def test_the_operator_may_read_no_secret() -> None:
    assert not [resource for _, resource in PERMISSIONS if "secret" in resource]
