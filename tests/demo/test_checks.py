"""The verdict fails for each thing that did not happen as told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aether_trio.demo import texts
from aether_trio.demo.checks import BookingFacts, DemoFacts, TourFacts, tour_verdict, verdict

TOLD = [f"{question} {texts.BOOK[question]}" for question in texts.QUESTIONS]
BACK = texts.came_back(2, texts.QUESTIONS[2])
BOOKED = BookingFacts([f"ConnectionError: {texts.BUSY}"], [texts.PAY], 2, {**texts.BOOKED, "bill": texts.CONSENT})
GOOD = DemoFacts(
    waiting=texts.QUESTIONS,
    connections=(2, 2),
    answers=texts.QUESTIONS,
    counter=10,
    planner_said=(*texts.QUESTIONS, texts.PLAN),
    researcher_said=(texts.ARRIVED, *TOLD[:2], BACK, *TOLD[2:]),
    repeated=0,
    reports=((0, 3), (2, 3), (5, 5)),
    keeper_pids=(11, 12),
    keeper_said=tuple(texts.KEEPER_SAYS.values()),
    booking=BOOKED,
)


def test_a_good_performance_passes() -> None:
    assert all(check.is_true for check in verdict(GOOD))


def test_repeats_are_said_and_allowed() -> None:
    checks = verdict(replace(GOOD, answers=(texts.WEATHER, *texts.QUESTIONS), repeated=3))
    assert all(check.is_true for check in checks)
    assert [check.seen for check in checks if "twice" in check.seen] == [
        "5 of 5, 1 of them twice (at least once)",
        "13 lines, 3 of them twice (at least once)",
    ]


@pytest.mark.parametrize(
    ("spoiled", "claim"),
    [
        (replace(GOOD, waiting=texts.QUESTIONS[:4]), "messages waited"),
        (replace(GOOD, waiting=texts.QUESTIONS[::-1]), "messages waited"),
        (replace(GOOD, connections=(2, 1)), "reconnected"),
        (replace(GOOD, researcher_said=(texts.ARRIVED, *TOLD)), "from its checkpoint"),
        (replace(GOOD, answers=texts.QUESTIONS[::-1]), "answered, in order"),
        (replace(GOOD, answers=texts.QUESTIONS[1:]), "answered, in order"),
        (replace(GOOD, counter=11), "shared counter"),
        (replace(GOOD, planner_said=texts.QUESTIONS), "missed nothing"),
        (replace(GOOD, researcher_said=(texts.ARRIVED, *TOLD[:2], BACK, *TOLD[:1:-1])), "missed nothing"),
        (replace(GOOD, reports=()), "progress line"),
        (replace(GOOD, reports=((0, 3), (4, 5))), "progress line"),
        (replace(GOOD, booking=replace(BOOKED, failures=[], attempts=1)), "tried again"),
        (replace(GOOD, booking=replace(BOOKED, failures=["TypeError: no"])), "tried again"),
        (replace(GOOD, booking=replace(BOOKED, questions=[])), "asked the user"),
        (replace(GOOD, booking=replace(BOOKED, result=None)), "result"),
        (replace(GOOD, booking=replace(BOOKED, result={**texts.BOOKED, "bill": ""})), "result"),
        (replace(GOOD, keeper_pids=(11,)), "started the keeper"),
        (replace(GOOD, keeper_pids=(11, 11)), "started the keeper"),
        (replace(GOOD, keeper_said=(texts.KEEPER_SAYS[texts.BEDS],)), "started the keeper"),
    ],
)
def test_whatever_is_missing_is_noticed(spoiled: DemoFacts, claim: str) -> None:
    failed = [check.claim for check in verdict(spoiled) if not check.is_true]
    assert any(claim in text for text in failed), failed


TOUR = TourFacts([11], 1, [1, 1, 1], "Write it?", "completed", texts.REPORT)


def test_a_good_tour_passes() -> None:
    assert all(check.is_true for check in tour_verdict(TOUR))


@pytest.mark.parametrize(
    ("spoiled", "claim"),
    [
        (replace(TOUR, scouts=[]), "started the scout"),
        (replace(TOUR, scouts=[11, 12]), "started the scout"),
        (replace(TOUR, before=0), "did not interrupt"),
        (replace(TOUR, before=3), "did not interrupt"),
        (replace(TOUR, searches=[1, 1]), "did not interrupt"),
        (replace(TOUR, searches=[]), "done twice"),
        (replace(TOUR, searches=[1, 2, 1]), "done twice"),
        (replace(TOUR, question=""), "asked the user"),
        (replace(TOUR, status="failed"), "asked the user"),
        (replace(TOUR, report=None), "asked the user"),
        (replace(TOUR, report=texts.REPORT[:2]), "asked the user"),
    ],
)
def test_what_the_tour_lacks_is_noticed(spoiled: TourFacts, claim: str) -> None:
    failed = [check.claim for check in tour_verdict(spoiled) if not check.is_true]
    assert any(claim in text for text in failed), failed
