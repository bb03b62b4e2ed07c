"""Metrics: cheap to count, read when scraped, and never without bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from aether_trio.telemetry import metrics as module
from aether_trio.telemetry.families import RECORDS, Family, Record, doubling
from aether_trio.telemetry.metrics import MAX_SERIES, OTHER, PIECE_LINES, Metrics

TYPE = ("type",)
FAMILIES = {
    family.name: family
    for family in (
        Family("routed_total", "counter", "Messages.", ("workspace", "type")),
        Family("kicks_total", "counter", "Kicks."),
        Family("live", "gauge", 'Live "connections"\n\\ of now.', ("workspace", "type")),
        Family("latency_seconds", "histogram", "Time.", ("workspace",), doubling(0.1, 3)),
        Family("duration_seconds", "histogram", "Time.", (), doubling(0.0001, 16)),
        Family("log_waiting_bytes", "gauge", "Waiting."),
        Family("log_appended_total", "counter", "Appended."),
        Family("log_failing", "gauge", "Failing."),
        Family("sent_total", "counter", "Sent.", ("transport",)),
    )
}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def made(*, workspace_label: bool = True) -> Metrics:
    return Metrics(workspace_label=workspace_label, families=FAMILIES)


def parsed(body: bytes) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def scrape(metrics: Metrics) -> Samples:
    return parsed(metrics.render()[1])


def test_a_tally_counts_per_label_set() -> None:
    metrics = made()
    routed = metrics.tally("routed_total")
    routed.add(("prod", "chat"))
    routed.add(("prod", "chat"), 9)
    routed.add(("dev", "chat"))
    samples = scrape(metrics)
    assert samples["routed_total", (("type", "chat"), ("workspace", "prod"))] == 10
    assert samples["routed_total", (("type", "chat"), ("workspace", "dev"))] == 1


def test_a_tally_without_labels_shows_0_before_it_counts() -> None:
    metrics = made()
    metrics.tally("kicks_total")
    assert scrape(metrics)["kicks_total", ()] == 0


def test_labels_that_clients_make_up_are_bounded() -> None:
    metrics = made()
    routed = metrics.tally("routed_total")
    latency = metrics.distribution("latency_seconds")
    metrics.read("live", lambda: {(f"made-up-{n}", "agent"): 1 for n in range(MAX_SERIES + 50)})
    for n in range(MAX_SERIES + 50):
        routed.add((f"made-up-{n}", "chat"))
        latency.observe(0.1, (f"made-up-{n}",))
    assert routed.value((OTHER, OTHER)) == 50
    samples = scrape(metrics)
    assert sum(1 for name, _ in samples if name == "routed_total") == MAX_SERIES + 1
    assert samples["latency_seconds_count", (("workspace", OTHER),)] == 50
    assert sum(1 for name, _ in samples if name == "live") == MAX_SERIES + 1
    assert samples["live", (("type", OTHER), ("workspace", OTHER))] == 50


def test_without_the_workspace_label_workspaces_are_added_up() -> None:
    metrics = made(workspace_label=False)
    routed, latency = metrics.tally("routed_total"), metrics.distribution("latency_seconds")
    metrics.read("live", lambda: {(f"w{n}", "agent"): 2 for n in range(3000)})
    for n in range(3000):
        routed.add((f"w{n}", "chat"))
        latency.observe(0.1, (f"w{n}",))
    samples = scrape(metrics)
    assert samples["routed_total", (("type", "chat"),)] == 3000
    assert samples["live", (("type", "agent"),)] == 6000
    assert samples["latency_seconds_count", ()] == 3000
    assert not [labels for _, labels in samples if "workspace" in dict(labels)]


def test_a_wrong_number_of_labels_is_a_mistake() -> None:
    for workspace_label in (True, False):
        with pytest.raises(ValueError, match="has labels"):
            Metrics(workspace_label=workspace_label).kv_operations.add(("GET",))
        with pytest.raises(ValueError, match="has labels"):
            Metrics(workspace_label=workspace_label).connection_duration.observe(1.0)


@pytest.mark.parametrize("name", ["unheard_of", "live"])
def test_a_metric_is_in_the_table_and_of_its_kind(name: str) -> None:
    with pytest.raises(ValueError, match="no counter"):
        made().tally(name)


def test_a_distribution_has_cumulative_buckets() -> None:
    metrics = made()
    duration = metrics.distribution("duration_seconds")
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
    appended: int
    failing: bool
    sent: int
    name: str


def test_a_components_statistics_are_read_at_scrape_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {
        "waiting_bytes": "log_waiting_bytes",
        "appended": "log_appended_total",
        "failing": "log_failing",
        "sent": "sent_total",
        "only_of_another_engine": "kicks_total",
    }
    monkeypatch.setattr(module, "RECORDS", {**RECORDS, "log": Record(fields)})
    metrics = made()
    now = Statistics(1, 2, False, 3, "log")
    metrics.watch("log", lambda: now, transport="grpc")
    metrics.watch("log", lambda: Statistics(0, 0, False, 7, "other"), transport="framed")
    now = Statistics(10, 20, True, 30, "log")
    samples = scrape(metrics)
    assert samples == {
        ("log_waiting_bytes", ()): 10,
        ("log_appended_total", ()): 20,
        ("log_failing", ()): 1,
        ("sent_total", (("transport", "grpc"),)): 30,
        ("sent_total", (("transport", "framed"),)): 7,
    } | {key: value for key, value in samples.items() if key[0].startswith(("python_", "process_"))}


def test_a_gauge_is_read_at_scrape_time() -> None:
    metrics = made()
    values = {("prod", "agent"): 1.0}
    metrics.read("live", lambda: values)
    values["prod", "agent"] = 7
    assert scrape(metrics)["live", (("type", "agent"), ("workspace", "prod"))] == 7


def test_a_part_that_fails_leaves_out_its_metrics_alone() -> None:
    metrics = made()
    metrics.read("live", lambda: {("w", "agent"): 1 // 0})
    metrics.read("kicks_total", lambda: {(): 3})
    with structlog.testing.capture_logs() as logged:
        samples = scrape(metrics)
    assert samples["kicks_total", ()] == 3
    assert not [name for name, _ in samples if name == "live"]
    assert [line["event"] for line in logged] == ["some metrics could not be read"]


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb", "naïve", "x\u202ey", "\x00", "w" * 5000, "\ud800", "#{}=,"])
def test_texts_of_clients_are_escaped_and_bounded(text: str) -> None:
    metrics = made()
    metrics.read("live", lambda: {(text, "agent"): 1})
    body = metrics.render()[1]
    assert max(map(len, body.splitlines())) < 600
    assert "\u202e" not in body.decode()
    ((_, labels),) = (key for key in parsed(body) if key[0] == "live")
    if text.isprintable() and len(text) < 99:
        assert dict(labels)["workspace"] == text.replace("\\", r"\\")


@given(texts=st.sets(st.text() | st.sampled_from(["\u202e", r"\u202e", r"\\u202e", "w" * 256 + "a", "w" * 256 + "b"])))
def test_no_two_series_have_the_same_labels(texts: set[str]) -> None:
    metrics = made()
    metrics.read("live", lambda: {(text, "agent"): number for number, text in enumerate(texts)})
    written = [line.rpartition(b" ")[0] for line in metrics.render()[1].splitlines() if line.startswith(b"live{")]
    assert len(written) == len(set(written)) == len(texts)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), 1e300, 0.1, 12345678901234])
def test_numbers_are_written_as_they_are(value: float) -> None:
    metrics = made()
    metrics.read("live", lambda: {("w", "agent"): value})
    assert scrape(metrics)["live", (("type", "agent"), ("workspace", "w"))] == value


async def test_clients_are_served_while_a_long_scrape_is_written() -> None:
    metrics = made()
    latency, routed = metrics.distribution("latency_seconds"), metrics.tally("routed_total")
    for n in range(MAX_SERIES):
        latency.observe(0.1, (f"w{n}",))
        routed.add((f"w{n}", "chat"))
    done, turns = False, 0

    async def others() -> None:
        nonlocal turns
        while not done:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        _, body = await metrics.scrape()
        done = True
    lines = body.count(b"\n")
    assert lines > 7 * MAX_SERIES
    assert turns > lines / PIECE_LINES / 2
    assert {key: n for key, n in parsed(body).items() if key[0][:2] in ("la", "ro")} == {
        key: n for key, n in scrape(metrics).items() if key[0][:2] in ("la", "ro")
    }


def test_two_gateways_in_one_process_do_not_share_metrics() -> None:
    one, two = Metrics(), Metrics()
    one.kv_operations.add(("w", "GET", "GLOBAL", "ok"))
    labels: Any = ("GET", "GLOBAL", "ok")
    assert (one.kv_operations.value(labels), two.kv_operations.value(labels)) == (1, 0)
