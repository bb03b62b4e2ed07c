"""Regressions that the machine of test_random_steps.py, or thinking, has found.

Each as short as it can be. See play.py for the steps.
"""

from __future__ import annotations

from functools import partial

import pytest

from tests.helpers.core import run_in_virtual_time
from tests.helpers.direct import Store
from tests.tasks.play import Step, run_steps


def pool(policy: int = 0, *, kind: int = 2, deadline: int = 0) -> Step:
    return ("create", "pool", "a", kind, 30, policy, deadline, 0, 0)


def own(policy: int = 0, *, deadline: int = 0) -> Step:
    return ("create", "self", "a", 2, 30, policy, deadline, 0, 0)


def pause(who: str, task: int, *others: int, reason: str = "dependency", any_one: bool = False) -> Step:
    return ("pause", who, reason, task, others, any_one, 0, 0, "")


def op(who: str, verb: str, task: int = 0) -> Step:
    return ("op", who, verb, task)


ONE_WORKER: Step = ("disconnect", "b", True)

CASES: dict[str, list[Step]] = {
    "a silence and a grace window that end in one moment, when a gateway was started again": [
        ("create", "pool", "a", 0, 10, 0, 3, 0, 0),
        ("report", "a", 0),
        ("restart", 10, False),
        ("pass", 31_019),
    ],
    "a worker that comes anew and has lost one task is given another one once": [
        pool(),
        pool(),
        op("creator", "cancel", 0),
        ("disconnect", "a", True),
        ("disconnect", "b", False),
        pool(1),
        ("connect", "b", False),
    ],
    "of what a worker had that never claims, the first was begun, and that is what its grace window counts an attempt of": [
        ONE_WORKER,
        pool(),
        ("create", "pool", "a", 2, 40, 0, 0, 0, 0),
        ("disconnect", "a", False),
        ("pass", 31_019),
        ("connect", "a", False),
    ],
    "a worker that never claims and comes anew has begun the first that it was given": [
        ONE_WORKER,
        ("disconnect", "a", True),
        pool(),
        ("create", "pool", "a", 2, 40, 0, 0, 0, 0),
        ("connect", "a", False),
        ("disconnect", "a", False),
        ("connect", "a", True),
        ("disconnect", "a", False),
        ("connect", "a", False),
    ],
    "what is given back after a second gateway's end was begun by none": [
        ("create", "pool", "a", 0, 10, 3, 0, 0, 0),
        ("create", "pool", "a", 0, 10, 0, 0, 0, 0),
        ("create", "pool", "a", 0, 10, 0, 3, 0, 0),
        ("connect", "a", False),
        ("disconnect", "b", False),
        ("connect", "a", False),
        ("restart", 40_003, True),
        ("connect", "a", False),
        ("disconnect", "manager", False),
        ("connect", "a", False),
        ("restart", 40_003, False),
    ],
    "a worker that never claims was at work on what it reported on": [
        ONE_WORKER,
        pool(),
        pool(2),
        ("report", "a", 1),
        ("disconnect", "a", False),
        ("connect", "a", True),
        ("disconnect", "a", False),
        ("pass", 31_019),
        ("connect", "a", False),
    ],
    "a creator's own task that is tried again is told to it": [
        own(1, deadline=1),
        ("pass", 5_017),
    ],
    "a creator's own tasks take no room, so all of them are given out": [
        *[("create", "targeted", "creator", 3, 30, 0, 0, 0, 0)] * 2,
        own(),
        own(),
        *[step for task in (2, 3) for step in (op("creator", "cancel", task), op("creator", "retry", task))],
        op("creator", "complete", 0),
        op("creator", "complete", 1),
    ],
    "resumed while its worker is away, a task runs without a worker and has its grace window": [
        ONE_WORKER,
        pool(2),
        op("a", "claim"),
        pause("a", 0, reason="input"),
        ("disconnect", "a", False),
        op("creator", "resume"),
        *[("pass", 31_019)] * 20,
        ("connect", "a", False),
    ],
    "who waits anew waits no longer for what it waited for before": [
        ONE_WORKER,
        own(),
        own(),
        pool(),
        op("a", "claim", 2),
        pause("a", 2, 0),
        pause("a", 2, 1),
        op("creator", "complete", 1),
    ],
    "a dependency that is tried again has not ended": [
        ONE_WORKER,
        own(),
        own(),
        pool(),
        op("a", "claim", 2),
        pause("a", 2, 0, 1),
        op("creator", "fail", 0),
        op("creator", "retry", 0),
        op("creator", "complete", 1),
        op("creator", "complete", 0),
    ],
    "a dead letter that is tried again is none any more": [
        ONE_WORKER,
        pool(1, deadline=3),
        op("a", "claim"),
        ("pass", 5_017),
        op("creator", "retry"),
    ],
    "what a worker had for hours and gives back is not too old to be assigned": [
        ONE_WORKER,
        ("disconnect", "manager", True),
        ("create", "pool", "a", 2, 30, 0, 0, 0, 0),
        *[("pass", 31_019)] * 118,
        ("disconnect", "a", False),
        ("connect", "b", False),
    ],
    "a client that comes back knows nothing of what another one of its name had": [
        ONE_WORKER,
        pool(2, kind=0),
        op("a", "claim"),
        ("disconnect", "a", False),
        ("connect", "a", False),
        ("disconnect", "a", False),
        ("connect", "a", True),
        ("pass", 31_019),
    ],
    "nor of what another one of its name had paused": [
        ONE_WORKER,
        pool(2, kind=0),
        op("a", "claim"),
        pause("a", 0, reason="input"),
        ("disconnect", "a", False),
        ("connect", "a", False),
        op("creator", "resume"),
        ("disconnect", "a", False),
        ("connect", "a", True),
        ("pass", 31_019),
    ],
    "a subscriber of a task that waits for another attempt hears that there will be none": [
        ONE_WORKER,
        pool(4, deadline=4),
        op("a", "fail"),
        ("pass", 31_019),
        ("pass", 31_019),
    ],
    "what is tried again behind its deadline has all its time again": [
        pool(1, deadline=4),
        ("pass", 31_019),
        ("pass", 31_019),
        op("creator", "retry"),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_it_stays_found(store: Store, name: str) -> None:
    run_in_virtual_time(partial(run_steps, store, CASES[name]))
