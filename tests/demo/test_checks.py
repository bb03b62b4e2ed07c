"""The verdict fails for each thing that did not happen as told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aether_trio.demo import story
from aether_trio.demo.checks import DemoFacts, verdict

TOLD = [f"{question} {story.BOOK[question]}" for question in story.QUESTIONS]
BACK = story.came_back(2, story.QUESTIONS[2])
GOOD = DemoFacts(
    waiting=story.QUESTIONS,
    connections=(2, 2),
    answers=story.QUESTIONS,
    counter=10,
    planner_said=(*story.QUESTIONS, story.PLAN),
    researcher_said=(story.ARRIVED, *TOLD[:2], BACK, *TOLD[2:]),
    repeated=0,
    reports=((0, 3), (2, 3), (5, 5)),
    keeper_pids=(11, 12),
    keeper_said=tuple(story.KEEPER_SAYS.values()),
)


def test_a_good_performance_passes() -> None:
    assert all(check.is_true for check in verdict(GOOD))


def test_repeats_are_said_and_allowed() -> None:
    checks = verdict(replace(GOOD, answers=(story.WEATHER, *story.QUESTIONS), repeated=3))
    assert all(check.is_true for check in checks)
    assert [check.seen for check in checks if "twice" in check.seen] == [
        "5 of 5, 1 of them twice (at least once)",
        "13 lines, 3 of them twice (at least once)",
    ]


@pytest.mark.parametrize(
    ("spoiled", "claim"),
    [
        (replace(GOOD, waiting=story.QUESTIONS[:4]), "messages waited"),
        (replace(GOOD, waiting=story.QUESTIONS[::-1]), "messages waited"),
        (replace(GOOD, connections=(2, 1)), "reconnected"),
        (replace(GOOD, researcher_said=(story.ARRIVED, *TOLD)), "from its checkpoint"),
        (replace(GOOD, answers=story.QUESTIONS[::-1]), "answered, in order"),
        (replace(GOOD, answers=story.QUESTIONS[1:]), "answered, in order"),
        (replace(GOOD, counter=11), "shared counter"),
        (replace(GOOD, planner_said=story.QUESTIONS), "missed nothing"),
        (replace(GOOD, researcher_said=(story.ARRIVED, *TOLD[:2], BACK, *TOLD[:1:-1])), "missed nothing"),
        (replace(GOOD, reports=()), "progress line"),
        (replace(GOOD, reports=((0, 3), (4, 5))), "progress line"),
        (replace(GOOD, keeper_pids=(11,)), "started the keeper"),
        (replace(GOOD, keeper_pids=(11, 11)), "started the keeper"),
        (replace(GOOD, keeper_said=(story.KEEPER_SAYS[story.BEDS],)), "started the keeper"),
    ],
)
def test_whatever_is_missing_is_noticed(spoiled: DemoFacts, claim: str) -> None:
    failed = [check.claim for check in verdict(spoiled) if not check.is_true]
    assert any(claim in text for text in failed), failed
