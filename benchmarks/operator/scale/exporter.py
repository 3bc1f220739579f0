"""One server that answers for rank 0 of every fake gang."""

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from finetune_trainer.contract import series
from finetune_trainer.contract.progress import ProgressReport

_PROGRESS = ProgressReport(
    step=7,
    total_steps=30,
    epoch=1,
    loss=2.25,
    learning_rate=2e-4,
    tokens_per_second=1234.5,
    last_step_time="2026-11-23T05:00:00Z",
)


@contextlib.asynccontextmanager
async def serving_progress() -> AsyncIterator[None]:
    """Serve the same progress on every address for as long as the block lasts: a training between two steps."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=_PROGRESS.model_dump_json(by_alias=True), content_type="application/json")

    application = web.Application()
    application.router.add_get(series.PROGRESS_PATH, answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=series.METRICS_PORT).start()
    try:
        yield
    finally:
        await runner.cleanup()
