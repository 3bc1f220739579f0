"""Instruments of the Prometheus client, made from what the tables say of a series; for both programs' exporters."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from finetune_trainer.contract.series import Series


def gauge(series: Series, registry: CollectorRegistry) -> Gauge:
    """Return a gauge in a registry."""
    return Gauge(series.name, series.meaning, series.labels, registry=registry)


def counter(series: Series, registry: CollectorRegistry) -> Counter:
    """Return a counter in a registry."""
    return Counter(series.name, series.meaning, series.labels, registry=registry)


def histogram(series: Series, registry: CollectorRegistry) -> Histogram:
    """Return a histogram in a registry."""
    return Histogram(series.name, series.meaning, series.labels, buckets=series.buckets, registry=registry)


def gauge_family(series: Series) -> GaugeMetricFamily:
    """Return a gauge whose values are read when it is scraped."""
    return GaugeMetricFamily(series.name, series.meaning, labels=series.labels)


def counter_family(series: Series) -> CounterMetricFamily:
    """Return a counter whose values are read when it is scraped."""
    return CounterMetricFamily(series.name, series.meaning, labels=series.labels)
