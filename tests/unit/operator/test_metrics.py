"""The operator's own metrics, as Prometheus reads them."""

from prometheus_client.parser import text_string_to_metric_families

from finetune_operator.metrics import Metrics


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_jobs_are_counted_by_phase_when_they_are_asked_for() -> None:
    metrics = Metrics()
    phases = ["Running", "Running", "Failed"]
    metrics.watch_phases(lambda: phases)
    assert _samples(metrics)["finetune_operator_jobs", ("Running",)] == 2
    phases.append("Failed")
    assert _samples(metrics)["finetune_operator_jobs", ("Failed",)] == 2


def test_the_queue_is_read_when_it_is_asked_for() -> None:
    metrics = Metrics()
    waiting = [3]
    metrics.watch_queue(lambda: waiting[0], lambda: 1)
    assert _samples(metrics)["finetune_operator_queue_depth", ()] == 3
    waiting[0] = 0
    assert _samples(metrics)["finetune_operator_queue_depth", ()] == 0


def test_what_can_happen_is_counted_from_zero_so_that_its_first_time_is_an_increase() -> None:
    metrics = Metrics()
    metrics.expect(["Diverged"], ["Succeeded"], ["lost"])
    samples = _samples(metrics)
    assert samples["finetune_operator_jobs_failed_total", ("Diverged",)] == 0
    assert samples["finetune_operator_attempts_total", ("Diverged",)] == 0
    assert samples["finetune_operator_attempts_total", ("Succeeded",)] == 0
    assert ("finetune_operator_jobs_failed_total", ("Succeeded",)) not in samples
    assert samples["finetune_operator_gpu_seconds_total", ("lost",)] == 0


def test_requests_are_counted_by_verb_resource_and_code() -> None:
    metrics = Metrics()
    metrics.api_requests.labels("patch", "jobs", "201").inc()
    assert _samples(metrics)["finetune_operator_api_requests_total", ("201", "jobs", "patch")] == 1


def test_two_operators_in_one_process_do_not_share_metrics() -> None:
    first, second = Metrics(), Metrics()
    first.reconcile_errors.inc()
    assert _samples(second)["finetune_operator_reconcile_errors_total", ()] == 0
