"""What the reports of several workers add up to, and what counts as a failure."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from loadtests.outcome import VERDICT_KEYS, failures, judge
from loadtests.plan import Plan
from loadtests.recorder import Ledger, Recorder
from loadtests.timeline import Timeline, percentile


def plan(shape: str = "chat", users: int = 4) -> Plan:
    return Plan(
        transport="framed", address="127.0.0.1:1", shape=shape, run="r", users=users, first=0, count=users, seconds=1.0,
        connect_rate=1.0, connecting=1, talking=1.0, rate=1.0, payload=24,
    )  # fmt: skip


def line(connected: int, latencies: dict[str, list[int]] | None = None, **counts: int) -> dict[str, Any]:
    return {"kind": "report", "connected": connected, "gave_up": 0, "counts": counts, "errors": {}, "texts": {}, "cpu_s": 0.5,
            "latencies": latencies or {}, "first_due_ns": 10**9, "last_new_ns": connected * 10**9}  # fmt: skip


def timeline_of(*lines: dict[str, Any]) -> Timeline:
    timeline = Timeline(len(lines))
    for worker, said in enumerate(lines):
        timeline.feed(worker, said)
    timeline.row(1.0, "hold", 10_240, 0.1)
    return timeline


def verdict(**found: int) -> dict[str, int]:
    return dict.fromkeys(VERDICT_KEYS, 0) | found


def test_workers_are_added_up_and_a_row_is_what_changed() -> None:
    timeline = Timeline(2)
    timeline.feed(0, line(2, {"message": [1000, 3000]}, sent=5, connects=2))
    timeline.feed(1, line(3, {"message": [2000]}, sent=7, connects=3))
    first = timeline.row(2.0, "connect", 2048, 0.5)
    assert (first.connected, first.sent, first.connects, first.rss_mib) == (5, 6.0, 2.5, 2.0)
    assert (first.p50_ms, first.max_ms) == (2.0, 3.0)
    timeline.feed(1, line(3, sent=9, connects=3) | {"errors": {"EOF": 4}})
    second = timeline.row(4.0, "hold", None, None)
    assert (second.sent, second.connects, second.errors, second.p50_ms) == (1.0, 0.0, 2.0, None)
    assert timeline.came_in_s == 2.0
    assert timeline.summaries()["message"]["count"] == 3


def test_a_good_run_has_no_failures() -> None:
    timeline = timeline_of(line(4, {"message": [5000] * 10}, sent=10, received=10, connects=4))
    found = judge(plan(), timeline, [verdict()], {"connect_s": 1.0, "hearers": 4})
    assert found["failures"] == []
    assert found["messages"]["received"] == 10
    assert found["latency_ms"]["message"]["p50"] == pytest.approx(5.0, rel=0.01)
    assert found["gateway"]["rss_mib"] == 10.0


def test_each_thing_that_goes_wrong_is_a_sentence() -> None:
    timeline = timeline_of(line(3, sent=10, received=7, connects=3, broken=1))
    seen = {"connect_s": 1.0, "hearers": 3, "cut": 3, "back": 2}
    found = judge(plan(), timeline, [verdict(lost=2, repeated=1, in_doubt=1, unsettled=1)], seen)
    assert found["failures"] == [
        "at most 3 of 4 users were connected at a time",
        "2 messages lost",
        "1 messages delivered twice",
        "1 messages never acknowledged",
        "1 connections ended that should have stayed",
        "1 of 3 did not come back",
    ]
    assert found["messages"]["in_doubt"] == 1


def test_refused_messages_are_not_lost_as_well() -> None:
    timeline = timeline_of(line(4, sent=10, received=7, refused=3, connects=4))
    found = judge(plan(), timeline, [verdict(lost=3)], {"connect_s": 1.0, "hearers": 4})
    assert found["failures"] == ["3 messages refused"]


def test_a_broadcast_is_owed_to_every_user() -> None:
    timeline = timeline_of(line(2, sent=10, received=20, connects=2), line(2, received=19, connects=2))
    found = judge(plan("fan-out"), timeline, [verdict(said=10), verdict()], {"connect_s": 1.0, "hearers": 4})
    assert found["failures"] == ["1 messages lost"]


def test_a_run_that_was_to_talk_and_sent_nothing_fails() -> None:
    timeline = timeline_of(line(4, connects=4))
    silent = judge(plan(), timeline, [verdict()], {"connect_s": 1.0, "hearers": 4})
    assert silent["failures"] == ["nothing was sent, so nothing is known of messages"]
    quiet = dataclasses.replace(plan(), talking=0.0)
    assert judge(quiet, timeline, [verdict()], {"connect_s": 1.0, "hearers": 4})["failures"] == []


def test_in_churn_some_are_always_away() -> None:
    messages = dict.fromkeys(("lost", "repeated", "out_of_order", "refused", "unacknowledged"), 0)
    connections = {"most": 3, "users": 4, "broken": 0}
    assert failures(messages, connections, {}) != []
    assert failures(messages, connections, {}, churn=True) == []


def test_the_ledger_names_what_is_missing() -> None:
    ledger = Ledger()
    for number in (0, 2, 5, 1, 2):
        ledger.note(number)
    assert ledger.missing(8) == {3, 4, 6, 7}
    assert ledger.missing(4) == {3}
    assert (ledger.repeated, ledger.out_of_order) == (1, 1)


def test_a_report_hands_latencies_over_once() -> None:
    recorder = Recorder()
    recorder.latency("message", 1_500_000)
    recorder.error("EOF", "first")
    recorder.error("EOF", "second")
    report = recorder.report()
    assert report["latencies"] == {"message": [1500]}
    assert (report["errors"], report["texts"]) == ({"EOF": 2}, {"EOF": "first"})
    assert recorder.report()["latencies"] == {}


def test_percentiles_are_of_the_nearest_rank() -> None:
    values = list(range(1, 101))
    assert [percentile(values, at) for at in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7], 50) == 7


def test_a_plan_survives_the_way_to_its_worker() -> None:
    sent = plan("storm")
    assert Plan.from_json(sent.to_json()) == sent
