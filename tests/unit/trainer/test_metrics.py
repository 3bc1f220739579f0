import socket
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from finetune_trainer.contract import series
from finetune_trainer.exporter import RankZeroExporter, start_exporter
from finetune_trainer.gang import Place
from finetune_trainer.metrics import NodeCollector
from tests.unit.trainer.step_records import step_record

CPU = torch.device("cpu")
# What only a machine with a GPU has.
GPU_SERIES = {
    series.GPU_UTILIZATION_RATIO,
    series.GPU_MEMORY_USED_BYTES,
    series.GPU_MEMORY_PEAK_BYTES,
    series.MODEL_FLOPS_UTILIZATION_RATIO,
}
RECORD = step_record(step=3, epoch=0.75, loss=1.5, data_wait_seconds=0.25, model_flops_utilization=0.5)


def place(rank: int, local_rank: int = 0) -> Place:
    return Place(rank, local_rank, world_size=4, processes_per_node=2, device=CPU)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scrape(port: int, accept: str = "text/plain") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{series.METRICS_PATH}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=5) as response:
        return str(response.read().decode())


def values(text: str) -> dict[str, float]:
    return {sample.name: sample.value for family in parse_text(text) for sample in family.samples}


def test_rank_0_serves_the_last_step(port: int) -> None:
    exporter = start_exporter(place(0), port, {})
    assert isinstance(exporter, RankZeroExporter)
    exporter.metrics.describe_attempt(number=4, checkpoint_interval_steps=50)
    exporter.metrics.start(step=2, steps_total=100, timestamp_seconds=1.6e9)
    exporter.metrics.record_step(RECORD)
    exporter.metrics.record_checkpoint(step=3, seconds=0.7, timestamp_seconds=1.65e9)
    served = values(scrape(port))
    expected = {
        series.STEP: 3,
        series.STEPS_TOTAL: 100,
        series.LOSS: 1.5,
        series.LEARNING_RATE: 2e-4,
        series.GRADIENT_NORM: 0.5,
        series.EPOCH: 0.75,
        series.TOKENS_TOTAL: 2048,
        series.TOKENS_PER_SECOND: 1024,
        series.LAST_STEP_TIMESTAMP_SECONDS: 1.7e9,
        series.DATA_WAIT_SECONDS_TOTAL: 0.25,
        series.MODEL_FLOPS_UTILIZATION_RATIO: 0.5,
        series.CHECKPOINT_LAST_STEP: 3,
        series.CHECKPOINT_LAST_TIMESTAMP_SECONDS: 1.65e9,
        series.CHECKPOINT_INTERVAL_STEPS: 50,
        series.ATTEMPT: 4,
        f"{series.STEP_DURATION_SECONDS}_sum": 2.0,
        f"{series.CHECKPOINT_DURATION_SECONDS}_count": 1,
    }
    assert {name: served[name] for name in expected} == expected


def test_every_series_of_the_contract_but_those_of_gpus_is_served(port: int, tmp_path: Path) -> None:
    assert start_exporter(place(0), port, {"shared": tmp_path}) is not None
    served = set(values(scrape(port)))
    contract = {value for name, value in vars(series).items() if name.isupper() and str(value).startswith("finetune_")}
    histograms = {series.STEP_DURATION_SECONDS, series.CHECKPOINT_DURATION_SECONDS}
    assert {f"{name}_count" if name in histograms else name for name in contract - GPU_SERIES} <= served


def test_each_series_is_served_with_the_type_and_the_meaning_of_the_reference(port: int, tmp_path: Path) -> None:
    exporter = start_exporter(place(0), port, {"shared": tmp_path})
    assert isinstance(exporter, RankZeroExporter)
    exporter.metrics.record_step(RECORD)
    families = [family for family in parse_text(scrape(port)) if family.name.startswith("finetune_")]
    told = {family.name: (family.type, family.documentation) for family in families}
    for name, definition in series.BY_NAME.items():
        if definition.labels == (series.GPU_LABEL,):
            continue  # no GPU here
        served = name.removesuffix("_total") if definition.type is series.SeriesType.COUNTER else name
        assert told[served] == (definition.type, definition.meaning)
        labels = {
            label for family in families if family.name == served for one in family.samples for label in one.labels
        }
        assert labels - {"le"} == set(definition.labels)


def test_prometheus_can_scrape_it_as_openmetrics(port: int) -> None:
    start_exporter(place(0), port, {})
    text = scrape(port, accept="application/openmetrics-text; version=1.0.0")
    assert {family.name for family in parse_openmetrics(text)} >= {series.LOSS, series.STEP}


def test_another_node_serves_its_network_but_no_training(port: int) -> None:
    assert not isinstance(start_exporter(place(2), port, {}), RankZeroExporter)
    served = values(scrape(port))
    assert series.NETWORK_RECEIVE_BYTES_TOTAL in served
    assert series.LOSS not in served


def phase_seconds(port: int) -> dict[tuple[str, str], float]:
    return {
        (sample.labels["local_rank"], sample.labels["phase"]): sample.value
        for family in parse_text(scrape(port))
        for sample in family.samples
        if sample.name == series.STEP_PHASE_SECONDS_TOTAL
    }


def times(compute: float, wait: float) -> dict[series.Phase, float]:
    others = {series.Phase.DATA: 0.5, series.Phase.COMMUNICATION: 0.25, series.Phase.CHECKPOINT: 0.0}
    return {series.Phase.COMPUTE: compute, series.Phase.WAIT: wait} | others


def test_each_node_serves_what_the_steps_of_its_own_processes_went_to(port: int) -> None:
    exporter = start_exporter(place(2), port, {})
    assert exporter is not None
    gang = [times(1.0, 4.0), times(2.0, 3.0), times(3.0, 2.0), times(5.0, 0.0)]
    exporter.processes.record_times(gang)
    exporter.processes.record_times(gang)
    served = phase_seconds(port)
    assert {rank for rank, _ in served} == {"0", "1"}
    assert (served["0", "compute"], served["0", "wait"]) == (6.0, 4.0)
    assert (served["1", "compute"], served["1", "wait"]) == (10.0, 0.0)
    assert (served["1", "data"], served["1", "communication"], served["1", "checkpoint"]) == (1.0, 0.5, 0.0)


def test_every_phase_of_every_process_is_there_before_the_first_step(port: int) -> None:
    start_exporter(place(2), port, {})
    phases = ("data", "compute", "communication", "wait", "checkpoint")
    assert phase_seconds(port) == {(rank, phase): 0.0 for rank in ("0", "1") for phase in phases}


def test_a_utilisation_that_is_not_known_is_not_served(port: int) -> None:
    exporter = start_exporter(place(0), port, {})
    assert isinstance(exporter, RankZeroExporter)
    exporter.metrics.record_step(replace(RECORD, model_flops_utilization=None))
    assert series.MODEL_FLOPS_UTILIZATION_RATIO not in values(scrape(port))


def test_each_node_says_which_it_is(port: int) -> None:
    start_exporter(place(2), port, {})
    assert f'{series.NODE_INFO}{{node_rank="1"}} 1.0' in scrape(port)


def test_one_process_of_a_node_serves(port: int) -> None:
    assert start_exporter(place(1, local_rank=1), port, {}) is None
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def test_a_port_in_use_is_told_and_stops_no_training(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    start_exporter(place(0), port, {})
    assert start_exporter(place(0), port, {}) is not None
    assert capsys.readouterr().out == f"warning: metrics are not served on port {port}: Address already in use\n"


def test_network_bytes_are_those_that_the_kernel_counts() -> None:
    registry = CollectorRegistry()
    registry.register(NodeCollector(0, with_gpus=False, peak_memory_bytes=dict))
    before = _kernel_count("lo")
    _send_over_loopback(100_000)
    counted = registry.get_sample_value(series.NETWORK_RECEIVE_BYTES_TOTAL, {"device": "lo"})
    assert counted is not None
    assert before + 100_000 <= counted <= _kernel_count("lo")


def test_a_gpu_in_mig_mode_is_scraped_without_its_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_supported(_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", not_supported)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda _: SimpleNamespace(used=5 << 30))
    registry = CollectorRegistry()
    registry.register(NodeCollector(0, with_gpus=True, peak_memory_bytes=lambda: {0: 4 << 30}))
    assert registry.get_sample_value(series.GPU_MEMORY_USED_BYTES, {"gpu": "0"}) == 5 << 30
    assert registry.get_sample_value(series.GPU_MEMORY_PEAK_BYTES, {"gpu": "0"}) == 4 << 30
    assert registry.get_sample_value(series.GPU_UTILIZATION_RATIO, {"gpu": "0"}) is None


def _kernel_count(device: str) -> int:
    return int(Path(f"/sys/class/net/{device}/statistics/rx_bytes").read_text())


def _send_over_loopback(num_bytes: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        connection, _ = server.accept()
        with connection:
            client.sendall(bytes(num_bytes))
            received = 0
            while received < num_bytes:
                received += len(connection.recv(65536))
