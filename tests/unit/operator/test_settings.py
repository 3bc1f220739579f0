"""Settings: what the environment says, what it may leave out, and what it may not say."""

from decimal import Decimal

import pytest

from finetune_operator.errors import InvalidSettings
from finetune_operator.pricing import GpuHourPrices, Pricing
from finetune_operator.settings import LogFormat, LogLevel, Settings

IMAGE = {"FINETUNE_TRAINER_IMAGE": "trainer:1"}


def test_only_the_image_has_to_be_named() -> None:
    settings = Settings.from_environment(IMAGE)
    assert settings == Settings(trainer_image="trainer:1")
    assert (settings.watched_namespaces, settings.gpu_resource_name) == ((), "nvidia.com/gpu")
    assert (settings.progress_interval_seconds, settings.resync_interval_seconds) == (10.0, 3600.0)
    assert (settings.metrics_port, settings.probe_port) == (8080, 8081)


def test_an_empty_variable_means_the_default() -> None:
    environment = IMAGE | {"FINETUNE_HUB_ENDPOINT": "", "FINETUNE_GPU_MEMORY_BYTES": " ", "FINETUNE_LOG_LEVEL": ""}
    assert Settings.from_environment(environment) == Settings(trainer_image="trainer:1")


def test_every_variable_is_read() -> None:
    settings = Settings.from_environment(
        {
            "FINETUNE_TRAINER_IMAGE": "trainer:1",
            "FINETUNE_TRAINER_IMAGE_PULL_POLICY": "Never",
            "FINETUNE_WATCHED_NAMESPACES": "team-a, team-b",
            "FINETUNE_HUB_ENDPOINT": "http://hub.example:8080/",
            "FINETUNE_GPU_MEMORY_BYTES": "85899345920",
            "FINETUNE_GPU_RESOURCE_NAME": "amd.com/gpu",
            "FINETUNE_RDMA_RESOURCE_NAME": "rdma/ib",
            "FINETUNE_UNREACHABLE_NODE_SECONDS": "30",
            "FINETUNE_FORCE_DELETE_SECONDS": "5.5",
            "FINETUNE_PREPARE_CPU": "500m",
            "FINETUNE_PREPARE_MEMORY": "16Gi",
            "FINETUNE_WORKERS": "4",
            "FINETUNE_PROGRESS_INTERVAL_SECONDS": "0.5",
            "FINETUNE_RESYNC_INTERVAL_SECONDS": "30",
            "FINETUNE_PRICING": '{"currency": "USD", "gpuHour": {"default": "2.95"}}',
            "FINETUNE_METRICS_PORT": "9000",
            "FINETUNE_PROBE_PORT": "9001",
            "FINETUNE_LOG_LEVEL": "DEBUG",
            "FINETUNE_LOG_FORMAT": "text",
        }
    )
    assert settings == Settings(
        trainer_image="trainer:1",
        trainer_image_pull_policy="Never",
        watched_namespaces=("team-a", "team-b"),
        hub_endpoint="http://hub.example:8080",
        gpu_memory_bytes=85899345920,
        gpu_resource_name="amd.com/gpu",
        rdma_resource_name="rdma/ib",
        unreachable_node_seconds=30,
        force_delete_seconds=5.5,
        prepare_cpu="500m",
        prepare_memory="16Gi",
        num_workers=4,
        progress_interval_seconds=0.5,
        resync_interval_seconds=30.0,
        pricing=Pricing(currency="USD", gpu_hour=GpuHourPrices(default=Decimal("2.95"))),
        metrics_port=9000,
        probe_port=9001,
        log_level=LogLevel.DEBUG,
        log_format=LogFormat.TEXT,
    )


WRONG = {
    "a pull policy that is none": ("FINETUNE_TRAINER_IMAGE_PULL_POLICY", "Sometimes", "Always, IfNotPresent, Never"),
    "an address without a scheme": ("FINETUNE_HUB_ENDPOINT", "hub.example", "http:// or https://"),
    "memory with a unit": ("FINETUNE_GPU_MEMORY_BYTES", "80Gi", "a whole number above zero"),
    "no workers": ("FINETUNE_WORKERS", "0", "a whole number above zero"),
    "an interval of nothing": ("FINETUNE_RESYNC_INTERVAL_SECONDS", "0.0", "a number above zero"),
    "an amount that is none": ("FINETUNE_PREPARE_MEMORY", "much", "a Kubernetes quantity"),
    "prices without a currency": ("FINETUNE_PRICING", '{"gpuHour": {"default": 2}}', "currency: Field required"),
    "a port too high": ("FINETUNE_METRICS_PORT", "70000", "a port from 1 to 65535"),
    "a level that is none": ("FINETUNE_LOG_LEVEL", "LOUD", "DEBUG, INFO, WARNING, ERROR"),
}


@pytest.mark.parametrize(("name", "value", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_variable_is_named_with_what_it_should_be(name: str, value: str, words: str) -> None:
    with pytest.raises(InvalidSettings) as refusal:
        Settings.from_environment(IMAGE | {name: value})
    (problem,) = refusal.value.problems
    assert problem.startswith(f"{name}: must be ")
    assert words in problem
    assert repr(value) in problem


def test_all_wrong_variables_are_named_at_once() -> None:
    with pytest.raises(InvalidSettings) as refusal:
        Settings.from_environment({"FINETUNE_WORKERS": "many", "FINETUNE_PROBE_PORT": "x"})
    assert [problem.split(":")[0] for problem in refusal.value.problems] == [
        "FINETUNE_WORKERS",
        "FINETUNE_PROBE_PORT",
        "FINETUNE_TRAINER_IMAGE",
    ]
