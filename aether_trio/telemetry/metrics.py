"""Prometheus metrics of a gateway, collected at each scrape.

The hot path adds to a plain dictionary (Tally, Distribution) or to nothing at all: components have
`.statistics()` records, which `watch` reads at scrape time. Names and labels are the reference's
(security.md 7.4) where it has them; others follow the OpenTelemetry naming conventions with an
`aether_` prefix.

Invariants: no label carries an identity, a topic or anything else that a client can make up without
end. Workspaces are the one label of a client's choosing, so each family keeps at most MAX_SERIES
label sets and counts the rest under "_other". The process-wide default registry is never touched.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from aether_trio.version import __version__

MAX_SERIES: Final = 1000
OTHER: Final = "_other"

Labels = tuple[str, ...]


def doubling(start: float, count: int) -> tuple[float, ...]:
    """Return `count` histogram bounds: `start`, then doubled each time."""
    return tuple(start * 2**n for n in range(count))


class Tally:
    """A Prometheus counter family; `add` costs one dictionary update."""

    def __init__(self, name: str, text: str, labels: Labels = ()) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._values: dict[Labels, float] = {} if labels else {(): 0}
        self._other: Labels = (OTHER,) * len(labels)

    def add(self, labels: Labels = (), amount: float = 1) -> None:
        values = self._values
        try:
            values[labels] += amount
        except KeyError:
            if len(labels) != len(self.labels):
                raise ValueError(f"the metric {self.name} has labels {self.labels}, not {labels}") from None
            if len(values) >= MAX_SERIES:
                labels = self._other
            values[labels] = values.get(labels, 0) + amount

    def value(self, labels: Labels = ()) -> float:
        return self._values.get(labels, 0)

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self.name, self.text, labels=self.labels)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        yield family


class Distribution:
    """A Prometheus histogram family with fixed bounds."""

    def __init__(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> None:
        self.name, self.text, self.labels, self.bounds = name, text, labels, bounds
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}
        self._other: Labels = (OTHER,) * len(labels)

    def observe(self, value: float, labels: Labels = (), times: int = 1) -> None:
        """Count `value` in the histogram, `times` times at once."""
        counts = self._counts.get(labels)
        if counts is None:
            if len(labels) != len(self.labels):
                raise ValueError(f"the metric {self.name} has labels {self.labels}, not {labels}")
            if len(self._counts) >= MAX_SERIES:
                labels = self._other
            counts = self._counts.setdefault(labels, [0] * (len(self.bounds) + 1))
        counts[bisect_left(self.bounds, value)] += times
        self._sums[labels] = self._sums.get(labels, 0.0) + value * times

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self.name, self.text, labels=self.labels)
        for labels, counts in self._counts.items():
            buckets: list[tuple[str, float]] = []
            total = 0
            for bound, count in zip((*self.bounds, float("inf")), counts, strict=True):
                total += count
                buckets.append((str(bound) if bound != float("inf") else "+Inf", total))
            family.add_metric(labels, buckets, self._sums[labels])
        yield family


class Metrics(Collector):
    """Every Prometheus metric of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._sources: list[Callable[[], Iterable[Metric]]] = []

        self.connection_attempts = self.tally(
            "aether_connection_attempts", "Handshakes, by how they ended", ("workspace", "principal_type", "status")
        )
        self.connection_duration = self.distribution(
            "aether_connection_duration_seconds",
            "How long ended connections lasted",
            ("workspace", "principal_type"),
            doubling(1.0, 15),
        )
        self.kv_operations = self.tally("aether_kv_operations", "KV operations", ("operation", "scope", "status"))
        self.kv_operation_latency = self.distribution(
            "aether_kv_operation_latency_seconds", "Time of KV operations", ("operation", "scope"), doubling(0.0001, 14)
        )
        self.message_routing_latency = self.distribution(
            "aether_message_routing_latency_seconds",
            "From the first message of a group read to all of it committed and offered to its receivers",
            (),
            doubling(0.0001, 16),
        )
        self.metered_kv_operations = self.tally(
            "aether_metering_kv_operations", "KV operations by workspace", ("workspace", "operation")
        )
        self.checkpoint_operations = self.tally(
            "aether_metering_checkpoint_operations", "Checkpoint operations", ("workspace", "operation")
        )

        build = GaugeMetricFamily("aether_build_info", "The version that runs", labels=("version",))
        build.add_metric((__version__,), 1)
        self._sources.append(lambda: [build])
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def gauge(self, name: str, text: str, labels: Labels, read: Callable[[], Mapping[Labels, float]]) -> None:
        """Register a gauge whose `{label values: value}` are read at each scrape."""

        def collect() -> Iterable[Metric]:
            family = GaugeMetricFamily(name, text, labels=labels)
            for values, value in read().items():
                family.add_metric(values, value)
            yield family

        self._sources.append(collect)

    def counter(self, name: str, text: str, labels: Labels, read: Callable[[], Mapping[Labels, float]]) -> None:
        """Register a counter whose `{label values: value}` are read at each scrape."""

        def collect() -> Iterable[Metric]:
            family = CounterMetricFamily(name, text, labels=labels)
            for values, value in read().items():
                family.add_metric(values, value)
            yield family

        self._sources.append(collect)

    def watch(self, prefix: str, statistics: Callable[[], Any], *, counters: Collection[str] = ()) -> None:
        """Register the numbers of a `statistics()` record as `aether_{prefix}_{field}`.

        A field whose name is in `counters`, or ends in `_total`, is a counter, and its metric ends
        in `_total`; every other is a gauge. Fields that are not numbers are left out.
        """

        def collect() -> Iterable[Metric]:
            record = statistics()
            for field in dataclasses.fields(record):
                value = getattr(record, field.name)
                if not isinstance(value, (int, float)):
                    continue
                name = f"aether_{prefix}_{field.name}"
                text = f"{prefix}: {field.name.replace('_', ' ')}"
                if field.name in counters or field.name.endswith("_total"):
                    yield CounterMetricFamily(name.removesuffix("_total"), text, value=value)
                else:
                    yield GaugeMetricFamily(name, text, value=value)

        self._sources.append(collect)

    def collect(self) -> Iterable[Metric]:
        for source in self._sources:
            yield from source()

    def render(self) -> tuple[str, bytes]:
        """Return the content type and body of a Prometheus scrape."""
        return CONTENT_TYPE_LATEST, generate_latest(self.registry)

    def tally(self, name: str, text: str, labels: Labels = ()) -> Tally:
        """Register a counter that its user adds to; its metric ends in `_total`."""
        tally = Tally(name, text, labels)
        self._sources.append(tally.collect)
        return tally

    def distribution(self, name: str, text: str, labels: Labels, bounds: tuple[float, ...]) -> Distribution:
        """Register a histogram with fixed bounds, in the unit that its name says."""
        distribution = Distribution(name, text, labels, bounds)
        self._sources.append(distribution.collect)
        return distribution
