"""Compares what the demo claims with what happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aether_trio.demo import texts

GIVEN_BEFORE: Final = 3  # questions that the researcher had been sent when it was killed
ANSWERED_BEFORE: Final = 2


@dataclass
class BookingFacts:
    """What the user's phone saw of the booking."""

    failures: list[str] = field(default_factory=list)
    """The error of each attempt that failed."""
    questions: list[str] = field(default_factory=list)
    attempts: int = 0
    result: Any = None


@dataclass
class TourFacts:
    """What the user's phone saw of the workflow."""

    scouts: list[int] = field(default_factory=list)
    """The processes that the gateway has started for the scout."""
    before: int = 0
    """Searches that were done when the gateway was killed."""
    searches: list[int] = field(default_factory=list)
    """The attempts of each completed search."""
    question: str = ""
    status: str = ""
    report: Any = None


@dataclass(frozen=True, slots=True)
class DemoFacts:
    """What happened in the demo, each fact from the process that can observe it.

    `keeper_pids`: the processes that the gateway has started for the keeper. `waiting`: texts in
    the researcher's topic, from the gateway's log, while the researcher was dead. `connections`: of
    planner and window. `answers`: questions in the order in which the planner got their answers.
    The rest is what the window received: who said what, how many lines came again, and (answers, of
    how many) of each progress report.
    """

    waiting: Sequence[str]
    connections: Sequence[int]
    answers: Sequence[str]
    counter: int
    planner_said: Sequence[str]
    researcher_said: Sequence[str]
    repeated: int
    reports: Sequence[tuple[int, int]]
    keeper_pids: Sequence[int]
    keeper_said: Sequence[str]
    booking: BookingFacts


@dataclass(frozen=True, slots=True)
class DemoCheck:
    """Whether one claim of the demo is true, and what was observed."""

    is_true: bool
    claim: str
    seen: str


def verdict(facts: DemoFacts) -> list[DemoCheck]:
    """Check every claim of the demo's story against the observed facts."""
    asked = list(texts.QUESTIONS)
    answers = list(dict.fromkeys(facts.answers))
    back = texts.came_back(ANSWERED_BEFORE, asked[ANSWERED_BEFORE])
    told = [f"{question} {texts.BOOK[question]}" for question in asked]
    last = facts.reports[-1] if facts.reports else (0, 0)
    return [
        DemoCheck(
            list(facts.waiting) == asked,
            "messages waited for the dead researcher",
            f"{max(0, len(facts.waiting) - GIVEN_BEFORE)}, on the gateway's disk",
        ),
        DemoCheck(
            list(facts.connections) == [2, 2],
            "planner and window reconnected",
            f"connected {' and '.join(map(str, facts.connections))} times",
        ),
        DemoCheck(
            back in facts.researcher_said,
            "the researcher went on from its checkpoint",
            f"{ANSWERED_BEFORE} answers were in it" if back in facts.researcher_said else "it said nothing of one",
        ),
        DemoCheck(
            answers == asked,
            "every question was answered, in order",
            f"{len(answers)} of {len(asked)}{_again(len(facts.answers) - len(answers))}",
        ),
        DemoCheck(
            facts.counter == 2 * len(asked),
            "the shared counter counted each step once",
            f"{facts.counter}, for {len(asked)} questions and {len(asked)} answers",
        ),
        DemoCheck(
            list(facts.planner_said) == [*asked, texts.PLAN]
            and list(facts.researcher_said) == [texts.ARRIVED, *told[:ANSWERED_BEFORE], back, *told[ANSWERED_BEFORE:]],
            "the window missed nothing of all this",
            f"{len(facts.planner_said) + len(facts.researcher_said)} lines{_again(facts.repeated)}",
        ),
        DemoCheck(
            last == (len(asked), len(asked)),
            "the progress line went to its end",
            f"{last[0]} of {last[1]}, in {len(facts.reports)} reports",
        ),
        DemoCheck(
            len(set(facts.keeper_pids)) > 1 and set(facts.keeper_said) == set(texts.KEEPER_SAYS.values()),
            "a message started the keeper, each time",
            f"processes {' and '.join(map(str, facts.keeper_pids))}" if facts.keeper_pids else "it was never started",
        ),
        DemoCheck(
            [one.endswith(texts.BUSY) for one in facts.booking.failures] == [True] and facts.booking.attempts == 2,
            "a failed task was tried again",
            f"{facts.booking.attempts} attempts, {len(facts.booking.failures)} of them failed",
        ),
        DemoCheck(
            facts.booking.questions == [texts.PAY],
            "it asked the user, who approved",
            ", ".join(facts.booking.questions) or "it asked nothing",
        ),
        DemoCheck(
            facts.booking.result == {**texts.BOOKED, "bill": texts.CONSENT},
            "and its result is here",
            str(facts.booking.result),
        ),
    ]


def tour_verdict(facts: TourFacts) -> list[DemoCheck]:
    """Check every claim of the demo's workflow against the observed facts."""
    done, total = len(facts.searches), len(texts.FOUND)
    return [
        DemoCheck(
            len(facts.scouts) == 1,
            "an event began a workflow, which started the scout",
            f"process {facts.scouts[0]}" if facts.scouts else "it was never started",
        ),
        DemoCheck(
            0 < facts.before < total and done == total,
            "a killed gateway did not interrupt it",
            f"{facts.before} of {total} searches were done then, {done} in the end",
        ),
        DemoCheck(
            facts.searches == [1] * total,
            "no search was done twice",
            f"{sum(facts.searches)} attempts" if facts.searches else "none was done",
        ),
        DemoCheck(
            facts.status == "completed" and facts.report == texts.REPORT and facts.question != "",
            "it asked the user, and the report is here",
            f"{len(facts.report)} lines" if isinstance(facts.report, list) else f"it is {facts.status or 'not begun'}",
        ),
    ]


def _again(count: int) -> str:
    return f", {count} of them twice (at least once)" if count else ""
