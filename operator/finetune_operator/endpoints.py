"""What the operator serves over HTTP: its metrics, and the probes of its own pod."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from finetune_operator.metrics import Metrics

LIVENESS_PATH = "/healthz"
READINESS_PATH = "/readyz"
METRICS_PATH = "/metrics"


@asynccontextmanager
async def serving(
    metrics: Metrics, why_not_ready: Callable[[], str | None], metrics_port: int, probe_port: int
) -> AsyncIterator[None]:
    """Serve metrics and probes while the block runs.

    Alive means that the event loop answers. Ready means that jobs are being worked on; `why_not_ready` says what is
    missing until then, or None.

    Raises:
        OSError: a port is taken.
    """

    async def answer_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def answer_liveness(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def answer_readiness(_: web.Request) -> web.Response:
        missing = why_not_ready()
        return web.Response(text=f"{missing or 'ready'}\n", status=200 if missing is None else 503)

    runners = [
        await _serve(metrics_port, {METRICS_PATH: answer_metrics}),
        await _serve(probe_port, {LIVENESS_PATH: answer_liveness, READINESS_PATH: answer_readiness}),
    ]
    try:
        yield
    finally:
        for runner in runners:
            await runner.cleanup()


async def _serve(port: int, routes: dict[str, Callable[[web.Request], object]]) -> web.AppRunner:
    application = web.Application()
    for path, handler in routes.items():
        application.router.add_get(path, handler)  # type: ignore[arg-type]
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
