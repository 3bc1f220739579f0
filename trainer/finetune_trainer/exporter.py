"""The HTTP server of a node: its series for Prometheus, and on global rank 0 the progress for the operator.

It runs in the process of local rank 0, in a thread that answers from what was last published, so a request never waits
for a GPU, nor a GPU for a request.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import torch
from prometheus_client import CollectorRegistry, make_wsgi_app

from finetune_trainer.contract import series
from finetune_trainer.contract.progress import ProgressReport
from finetune_trainer.free_space import FreeSpace
from finetune_trainer.gang import Place
from finetune_trainer.metrics import NodeCollector, ProcessMetrics, TrainingMetrics

if TYPE_CHECKING:  # these exist for type checkers only
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ALL_ADDRESSES = "0.0.0.0"  # the operator and Prometheus ask from other pods
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


class ProgressPage:
    """The document under `series.PROGRESS_PATH`; not found until something is published."""

    def __init__(self) -> None:
        self._document: bytes | None = None

    def publish(self, progress: ProgressReport) -> None:
        """Serve this progress from now on."""
        self._document = progress.model_dump_json(by_alias=True).encode()

    def __call__(self, _: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer a request."""
        if self._document is None:
            start_response("404 Not Found", [("Content-Type", TEXT)])
            return [b"no training has begun in this process\n"]
        # NB: a new list for each answer: wsgiref adds the answer's length to the one that it is given.
        start_response("200 OK", [("Content-Type", JSON)])
        return [self._document]


@dataclass(frozen=True)
class Exporter:
    """What local rank 0 publishes of its node."""

    processes: ProcessMetrics


@dataclass(frozen=True)
class RankZeroExporter(Exporter):
    """What global rank 0 publishes besides."""

    metrics: TrainingMetrics
    progress: ProgressPage
    free_space: FreeSpace = field(default_factory=FreeSpace)


def start_exporter(place: Place, port: int, filesystems: Mapping[str, Path]) -> Exporter | None:
    """Serve this node's series, from its local rank 0, and return what that process may publish.

    A thread serves them on all addresses until the process ends.

    Args:
        place: of this process.
        port: to serve on.
        filesystems: those whose room global rank 0 watches, by name.
    """
    if place.local_rank != 0:
        return None
    registry = CollectorRegistry()
    is_gpu = place.device.type == "cuda"
    registry.register(NodeCollector(place.node_rank, is_gpu, _peak_memory_of(place.device) if is_gpu else dict))
    processes = ProcessMetrics(registry, place.rank, place.processes_per_node)
    if place.rank != 0:
        _serve(registry, ProgressPage(), port)
        return Exporter(processes)
    exporter = RankZeroExporter(processes, TrainingMetrics(registry), ProgressPage(), FreeSpace(filesystems))
    registry.register(exporter.free_space)
    _serve(registry, exporter.progress, port)
    return exporter


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each request, so that a slow reader keeps nobody waiting."""

    daemon_threads = True


class _SilentHandler(WSGIRequestHandler):
    """Keeps requests out of the log, which is for people."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name upstream
        """Log nothing."""


def _serve(registry: CollectorRegistry, progress: ProgressPage, port: int) -> None:
    try:
        server = make_server(ALL_ADDRESSES, port, _pages(registry, progress), _Server, _SilentHandler)
    except OSError as error:
        # On a laptop another job may have the port; in a pod nothing has.
        print(f"warning: metrics are not served on port {port}: {error.strerror}", flush=True)
        return
    threading.Thread(target=server.serve_forever, name="exporter", daemon=True).start()


def _pages(registry: CollectorRegistry, progress: ProgressPage) -> "WSGIApplication":
    metrics = make_wsgi_app(registry)

    def answer(environment: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        page = progress if environment["PATH_INFO"] == series.PROGRESS_PATH else metrics
        answered: Iterable[bytes] = page(environment, start_response)
        return answered

    return answer


def _peak_memory_of(device: torch.device) -> Callable[[], dict[int, int]]:
    return lambda: {device.index: torch.cuda.max_memory_allocated(device)}
