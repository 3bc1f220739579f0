"""The operator's settings: read once from the environment, where the chart puts them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from finetune_operator.errors import InvalidSettings
from finetune_operator.pricing import Pricing, parse_pricing
from finetune_operator.quantity import QUANTITY_PATTERN

Value = TypeVar("Value")
Choice = TypeVar("Choice", bound=StrEnum)


class LogFormat(StrEnum):
    """How log lines are written."""

    JSON = "json"
    TEXT = "text"


class LogLevel(StrEnum):
    """From which level on log lines are written."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Settings:
    """What an administrator decides for every job, and how the operator itself runs."""

    trainer_image: str
    """Image of every container of a job that names none."""
    trainer_image_pull_policy: str = "IfNotPresent"
    """When it is pulled: Always, IfNotPresent or Never."""
    watched_namespaces: tuple[str, ...] = ()
    """Namespaces whose jobs are worked on; none named means all."""
    hub_endpoint: str | None = None
    """HF_ENDPOINT of the trainer: a mirror of the Hugging Face Hub. None is the Hub itself."""
    gpu_memory_bytes: int | None = None
    """Memory of one GPU, so that prepare can tell whether a plan fits. None: the estimate is reported only."""
    gpu_resource_name: str = "nvidia.com/gpu"
    """Extended resource that training pods ask for."""
    rdma_resource_name: str = "rdma/rdma_shared_device_a"
    """Extended resource that training pods with compute.rdma ask for, as the RDMA device plugin was told to name it."""
    unreachable_node_seconds: int = 60
    """How long pods stay on a node that does not answer before the cluster takes them away."""
    force_delete_seconds: float = 60.0
    """How long a pod may go on terminating on a node that does not answer before it is removed by force."""
    prepare_cpu: str = "1"
    """CPU request of the prepare pod, a Kubernetes quantity."""
    prepare_memory: str = "4Gi"
    """Memory request of the prepare pod, a Kubernetes quantity."""
    num_workers: int = 16
    """Jobs that are worked on at the same time."""
    progress_interval_seconds: float = 10.0
    """How often the progress of a running job is read and written to its status, at most."""
    resync_interval_seconds: float = 3600.0
    """How often everything is listed and every job looked at even though nothing was heard of it."""
    metrics_port: int = 8080
    """Port of the operator's own Prometheus metrics."""
    probe_port: int = 8081
    """Port of the liveness and readiness probes."""
    pricing: Pricing | None = None
    """What GPUs and storage cost. None: jobs tell of GPU-seconds and of no money."""
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.JSON

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the settings from FINETUNE_* variables; an unset or empty one means its default.

        Raises:
            InvalidSettings: a variable is missing or cannot be read; all of them are named.
        """
        reader = _Reader(environment)
        settings = cls(
            trainer_image=reader.read("FINETUNE_TRAINER_IMAGE", _text, None) or "",
            trainer_image_pull_policy=reader.read(
                "FINETUNE_TRAINER_IMAGE_PULL_POLICY", _one_of("Always", "IfNotPresent", "Never"), "IfNotPresent"
            ),
            watched_namespaces=reader.read("FINETUNE_WATCHED_NAMESPACES", _namespaces, ()),
            hub_endpoint=reader.read("FINETUNE_HUB_ENDPOINT", _url, None),
            gpu_memory_bytes=reader.read("FINETUNE_GPU_MEMORY_BYTES", _positive_integer, None),
            gpu_resource_name=reader.read("FINETUNE_GPU_RESOURCE_NAME", _text, cls.gpu_resource_name),
            rdma_resource_name=reader.read("FINETUNE_RDMA_RESOURCE_NAME", _text, cls.rdma_resource_name),
            unreachable_node_seconds=reader.read(
                "FINETUNE_UNREACHABLE_NODE_SECONDS", _positive_integer, cls.unreachable_node_seconds
            ),
            force_delete_seconds=reader.read(
                "FINETUNE_FORCE_DELETE_SECONDS", _positive_number, cls.force_delete_seconds
            ),
            prepare_cpu=reader.read("FINETUNE_PREPARE_CPU", _quantity, cls.prepare_cpu),
            prepare_memory=reader.read("FINETUNE_PREPARE_MEMORY", _quantity, cls.prepare_memory),
            num_workers=reader.read("FINETUNE_WORKERS", _positive_integer, cls.num_workers),
            progress_interval_seconds=reader.read(
                "FINETUNE_PROGRESS_INTERVAL_SECONDS", _positive_number, cls.progress_interval_seconds
            ),
            resync_interval_seconds=reader.read(
                "FINETUNE_RESYNC_INTERVAL_SECONDS", _positive_number, cls.resync_interval_seconds
            ),
            metrics_port=reader.read("FINETUNE_METRICS_PORT", _port, cls.metrics_port),
            probe_port=reader.read("FINETUNE_PROBE_PORT", _port, cls.probe_port),
            pricing=reader.read("FINETUNE_PRICING", _pricing, None),
            log_level=reader.read("FINETUNE_LOG_LEVEL", _member_of(LogLevel), cls.log_level),
            log_format=reader.read("FINETUNE_LOG_FORMAT", _member_of(LogFormat), cls.log_format),
        )
        if not settings.trainer_image:
            reader.problems.append("FINETUNE_TRAINER_IMAGE: is not set; name the image that trains")
        if reader.problems:
            raise InvalidSettings(reader.problems)
        return settings


class _Reader:
    """Reads variables one by one and remembers what was wrong with each."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.problems: list[str] = []

    def read(self, name: str, parse: Callable[[str], Value], default: Value) -> Value:
        text = self.environment.get(name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self.problems.append(f"{name}: {error}, but is {text!r}")
            return default


def _text(text: str) -> str:
    return text


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return parse


def _member_of(choices: type[Choice]) -> Callable[[str], Choice]:
    def parse(text: str) -> Choice:
        try:
            return choices(text)
        except ValueError as error:
            raise ValueError(f"must be one of {', '.join(choices)}") from error

    return parse


def _namespaces(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", text):
        raise ValueError("must be an http:// or https:// address")
    return text.rstrip("/")


def _pricing(text: str) -> Pricing | None:
    return parse_pricing(text)


def _quantity(text: str) -> str:
    if not re.fullmatch(QUANTITY_PATTERN, text):
        raise ValueError("must be a Kubernetes quantity such as 500m or 4Gi")
    return text


def _positive_integer(text: str) -> int:
    if not re.fullmatch(r"[0-9]+", text) or int(text) == 0:
        raise ValueError("must be a whole number above zero")
    return int(text)


def _positive_number(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or float(text) == 0:
        raise ValueError("must be a number above zero")
    return float(text)


def _port(text: str) -> int:
    port = _positive_integer(text)
    if port > 65535:
        raise ValueError("must be a port from 1 to 65535")
    return port
