"""Metrics: cheap to count, read when scraped, and never without bound."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from aether_trio.telemetry.metrics import MAX_SERIES, OTHER, Metrics, doubling


def scrape(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    _, body = metrics.render()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_a_tally_counts_per_label_set() -> None:
    metrics = Metrics()
    routed = metrics.tally("routed", "Messages", ("workspace", "type"))
    routed.add(("prod", "chat"))
    routed.add(("prod", "chat"), 9)
    routed.add(("dev", "chat"))
    samples = scrape(metrics)
    assert samples["routed_total", (("type", "chat"), ("workspace", "prod"))] == 10
    assert samples["routed_total", (("type", "chat"), ("workspace", "dev"))] == 1


def test_a_tally_without_labels_shows_0_before_it_counts() -> None:
    metrics = Metrics()
    metrics.tally("kicks", "Kicks")
    assert scrape(metrics)["kicks_total", ()] == 0


def test_labels_that_clients_make_up_are_bounded() -> None:
    metrics = Metrics()
    routed = metrics.tally("routed", "Messages", ("workspace", "type"))
    latency = metrics.distribution("latency_seconds", "Time", ("workspace",), doubling(0.1, 3))
    for n in range(MAX_SERIES + 50):
        routed.add((f"made-up-{n}", "chat"))
        latency.observe(0.1, (f"made-up-{n}",))
    assert routed.value((OTHER, OTHER)) == 50
    samples = scrape(metrics)
    assert sum(1 for name, _ in samples if name == "routed_total") == MAX_SERIES + 1
    assert samples["latency_seconds_count", (("workspace", OTHER),)] == 50


def test_a_wrong_number_of_labels_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="has labels"):
        Metrics().kv_operations.add(("GET",))
    with pytest.raises(ValueError, match="has labels"):
        Metrics().connection_duration.observe(1.0)


def test_a_distribution_has_cumulative_buckets() -> None:
    metrics = Metrics()
    duration = metrics.distribution("duration_seconds", "Time", (), doubling(0.0001, 16))
    for value in (0.0001, 0.00015, 5.0):
        duration.observe(value)
    samples = scrape(metrics)
    assert samples["duration_seconds_bucket", (("le", "0.0001"),)] == 1
    assert samples["duration_seconds_bucket", (("le", "0.0002"),)] == 2
    assert samples["duration_seconds_bucket", (("le", "+Inf"),)] == samples["duration_seconds_count", ()] == 3
    assert samples["duration_seconds_sum", ()] == pytest.approx(5.00025)


def test_bounds_double() -> None:
    assert doubling(1.0, 4) == (1, 2, 4, 8)


@dataclass(frozen=True)
class Statistics:
    waiting_bytes: int
    dropped_total: int
    appended: int
    ratio: float
    name: str


def test_a_components_statistics_are_read_at_scrape_time() -> None:
    metrics = Metrics()
    now = Statistics(1, 2, 3, 0.5, "log")
    metrics.watch("log", lambda: now, counters={"appended"})
    now = Statistics(10, 20, 30, 0.25, "log")
    samples = scrape(metrics)
    assert samples["aether_log_waiting_bytes", ()] == 10
    assert samples["aether_log_dropped_total", ()] == 20
    assert samples["aether_log_appended_total", ()] == 30
    assert samples["aether_log_ratio", ()] == 0.25
    assert ("aether_log_name", ()) not in samples


@pytest.mark.parametrize(("kind", "suffix"), [("counter", "_total"), ("gauge", "")])
def test_a_counter_and_a_gauge_are_read_at_scrape_time(kind: str, suffix: str) -> None:
    metrics = Metrics()
    values = {("prod", "agent"): 1.0}
    getattr(metrics, kind)("live", "Live connections", ("workspace", "type"), lambda: values)
    values["prod", "agent"] = 7
    assert scrape(metrics)[f"live{suffix}", (("type", "agent"), ("workspace", "prod"))] == 7


def test_two_gateways_in_one_process_do_not_share_metrics() -> None:
    one, two = Metrics(), Metrics()
    one.kv_operations.add(("GET", "GLOBAL", "ok"))
    assert two.kv_operations.value(("GET", "GLOBAL", "ok")) == 0
