"""What random steps, thought or readers have found wrong stays right.

Each as short as it can be. See play.py for the steps; after each of them the model says what each
row, event, attempt and assignment is.
"""

from __future__ import annotations

from functools import partial

import pytest

from tests.helpers.core import run_in_virtual_time
from tests.helpers.direct import Store
from tests.tasks.play import Step, run_steps


def create(mode: str, policy: int, kind: int, deadline: int, priority: int = 30) -> Step:
    return ("create", mode, "a", kind, priority, policy, deadline, 0, 0)


def pool(policy: int = 0, *, kind: int = 2, deadline: int = 0, priority: int = 30) -> Step:
    return create("pool", policy, kind, deadline, priority)


def own(policy: int = 0, *, deadline: int = 0) -> Step:
    return create("self", policy, 2, deadline)


def pause(who: str, task: int, *others: int, reason: str = "dependency", any_one: bool = False) -> Step:
    return ("pause", who, reason, task, others, any_one, 0, 0, "")


def op(who: str, verb: str, task: int = 0) -> Step:
    return ("op", who, verb, task)


def wait(ms: int = 31_019) -> Step:
    return ("pass", ms)


def leave(who: str, *, clean: bool = False) -> Step:
    return ("disconnect", who, clean)


def come(who: str, *, back: bool = False) -> Step:
    return ("connect", who, back)


def restart(away_ms: int = 10, *, crash: bool = False) -> Step:
    return ("restart", away_ms, crash)


def report(who: str, task: int = 0) -> Step:
    return ("report", who, task)


ONE_WORKER = leave("b", clean=True)
CLAIM, FAIL, COMPLETE = op("a", "claim"), op("a", "fail"), op("a", "complete")
RESUME, RETRY = op("creator", "resume"), op("creator", "retry")
START_TO_CLOSE, HEARTBEAT, SCHEDULE_TO_CLOSE = 2, 3, 4
"""Numbers in DEADLINES: of 3, 4 and 45 seconds."""
ONCE, THRICE, RETRIED = 1, 0, 2
"""Numbers in POLICIES; the last one says when the three attempts are."""

CASES: dict[str, list[Step]] = {
    "a silence and a grace window that end in one moment, when a gateway was started again": [
        pool(kind=0, deadline=HEARTBEAT, priority=10), report("a"), restart(), wait(),
    ],
    "a worker that comes anew and has lost one task is given another one once": [
        pool(), pool(), op("creator", "cancel"), leave("a", clean=True), leave("b"), pool(ONCE), come("b"),
    ],
    "of what a worker had that never claims, the first was begun, and that is what its grace window counts an attempt of": [
        ONE_WORKER, pool(), pool(priority=40), leave("a"), wait(), come("a"),
    ],
    "a worker that never claims and comes anew has begun the first that it was given": [
        ONE_WORKER, leave("a", clean=True), pool(), pool(priority=40),
        come("a"), leave("a"), come("a", back=True), leave("a"), come("a"),
    ],
    "what is given back after a second gateway's end was begun by none": [
        pool(3, kind=0, priority=10), pool(kind=0, priority=10), pool(kind=0, deadline=HEARTBEAT, priority=10),
        come("a"), leave("b"), come("a"), restart(40_003, crash=True),
        come("a"), leave("manager"), come("a"), restart(40_003),
    ],
    "a worker that never claims was at work on what it reported on": [
        ONE_WORKER, pool(), pool(2), report("a", 1), leave("a"), come("a", back=True), leave("a"), wait(), come("a"),
    ],
    "a creator's own task that is tried again is told to it": [own(ONCE, deadline=1), wait(5_017)],
    "a creator's own tasks take no room, so all of them are given out": [
        *[("create", "targeted", "creator", 3, 30, 0, 0, 0, 0)] * 2, own(), own(),
        *[step for task in (2, 3) for step in (op("creator", "cancel", task), op("creator", "retry", task))],
        op("creator", "complete", 0), op("creator", "complete", 1),
    ],
    "resumed while its worker is away, a task runs without a worker and has its grace window": [
        ONE_WORKER, pool(2), CLAIM, pause("a", 0, reason="input"), leave("a"), RESUME, *[wait()] * 20, come("a"),
    ],
    "who waits anew waits no longer for what it waited for before": [
        ONE_WORKER, own(), own(), pool(), op("a", "claim", 2), pause("a", 2, 0), pause("a", 2, 1),
        op("creator", "complete", 1),
    ],
    "a dependency that is tried again has not ended": [
        ONE_WORKER, own(), own(), pool(), op("a", "claim", 2), pause("a", 2, 0, 1),
        op("creator", "fail"), RETRY, op("creator", "complete", 1), op("creator", "complete"),
    ],
    "a dead letter that is tried again is none any more": [
        ONE_WORKER, pool(ONCE, deadline=HEARTBEAT), CLAIM, wait(5_017), RETRY,
    ],
    "what a worker had for hours and gives back is not too old to be assigned": [
        ONE_WORKER, leave("manager", clean=True), pool(), *[wait()] * 118, leave("a"), come("b"),
    ],
    "a client that comes back knows nothing of what another one of its name had": [
        ONE_WORKER, pool(2, kind=0), CLAIM, leave("a"), come("a"), leave("a"), come("a", back=True), wait(),
    ],
    "nor of what another one of its name had paused": [
        ONE_WORKER, pool(2, kind=0), CLAIM, pause("a", 0, reason="input"),
        leave("a"), come("a"), RESUME, leave("a"), come("a", back=True), wait(),
    ],
    "a subscriber of a task that waits for another attempt hears that there will be none": [
        ONE_WORKER, pool(4, deadline=SCHEDULE_TO_CLOSE), FAIL, wait(), wait(),
    ],
    "what is tried again behind its deadline has all its time again": [
        pool(ONCE, deadline=SCHEDULE_TO_CLOSE), wait(), wait(), RETRY,
    ],
    # Deadlines count no time before a retry, in a wait, or without a gateway.
    "a retry of the policy takes no longer than schedule_to_close": [
        ONE_WORKER, pool(RETRIED, deadline=SCHEDULE_TO_CLOSE), CLAIM, wait(), FAIL, wait(1_013), wait(),
    ],
    "an old interactive task can be tried again": [pool(kind=1), wait(), op("creator", "cancel"), wait(), RETRY],
    "start_to_close begins anew with each attempt": [
        ONE_WORKER, pool(RETRIED, deadline=START_TO_CLOSE), CLAIM, wait(1_013), pause("a", 0, reason="input"), RESUME,
        wait(1_013), FAIL, wait(1_013), CLAIM, wait(5_017),
    ],
    **{
        f"an interactive task that waited long goes on, after {reason}": [
            ONE_WORKER, pool(kind=1), CLAIM, pause("a", 0, reason=reason), wait(), RESUME,
        ]
        for reason in ("input", "hibernation")
    },
    **{
        f"start_to_close counts work and no {reason}": [
            ONE_WORKER, pool(ONCE, deadline=START_TO_CLOSE), CLAIM, wait(1_013), pause("a", 0, reason=reason),
            wait(5_017), RESUME, CLAIM, wait(1_013), wait(5_017),
        ]
        for reason in ("input", "hibernation")
    },
    **{
        f"a worker can return to a gateway that {'was killed' if crash else 'ended'}, deadline {deadline}": [
            ONE_WORKER, pool(kind=0, deadline=deadline), CLAIM, restart(40_003, crash=crash), wait(5_017),
            come("a", back=True), wait(1_013), COMPLETE,
        ]
        for deadline in (0, START_TO_CLOSE, HEARTBEAT)
        for crash in (True, False)
    },
    **{
        f"after its gateway's end a worker that {how} is expected to report": [
            ONE_WORKER, pool(deadline=HEARTBEAT), CLAIM, restart(crash=True), *then,
        ]
        for how, then in {
            "returns": [come("a", back=True), wait(5_017)],
            "comes anew": [wait(1_013), come("a"), wait(5_017)],
            "comes and goes": [*[wait(1_013), come("a"), wait(40), leave("a")] * 3, wait(5_017)],
            "stays away": [wait(), wait()],
        }.items()
    },
    # Workers that never claim.
    "a report begins a task that was not claimed": [ONE_WORKER, pool(), report("a"), COMPLETE],
    "a report of another participant begins nothing and is no sign of life": [
        ONE_WORKER, pool(deadline=HEARTBEAT), report("creator"), CLAIM, wait(1_013), report("creator"), wait(5_017),
    ],
    **{
        f"a worker that is cut and has {how} goes on": [
            ONE_WORKER, pool(kind=0), *reported, leave("a"), come("b"), wait(5_017), come("a", back=True), wait(), COMPLETE,
        ]
        for how, reported in {"reported": [report("a")], "not begun": list[Step]()}.items()
    },
    "a lost worker's task is given to another one after its grace": [
        ONE_WORKER, pool(kind=0), leave("a"), come("b"), wait(5_017), wait(), op("b", "complete"),
    ],
    "a worker that has claimed gives back what it had not begun": [
        ONE_WORKER, pool(), pool(), CLAIM, leave("a"), come("b"),
    ],
    "another worker is given what one had reported on, and what it had not begun": [
        ONE_WORKER, pool(kind=0), pool(2, kind=0), report("a", 1), leave("a"), come("b"), wait(),
    ],
    **{
        f"a task kills {who} as often as its policy {policy} says": [
            ONE_WORKER, leave("a", clean=True), pool(policy, kind=0),
            *[step for name in names for step in (come(name), leave(name), wait())],
        ]
        for policy in (THRICE, RETRIED)
        for who, names in {"one worker": "aaaa", "its workers": "abab"}.items()
    },
    "a delivery is not counted when the gateway goes": [
        ONE_WORKER, pool(kind=0), *[restart(), come("a", back=True), restart(crash=True), come("a", back=True)] * 2,
    ],
    "what waits behind another task counts a delivery when its worker goes": [
        ONE_WORKER, pool(), pool(), leave("a"), wait(5_017), restart(), come("a"),
    ],
    "what waits behind another task counts no delivery when its gateway goes": [
        ONE_WORKER, pool(), pool(), restart(crash=True), come("a"),
    ],
    "what a worker that claims has not begun counts no delivery when its gateway goes": [
        ONE_WORKER, pool(), pool(), CLAIM, restart(), come("a", back=True), restart(crash=True), come("a", back=True),
    ],
    "only the worker of a task can hibernate it": [ONE_WORKER, pool(), CLAIM, pause("creator", 0, reason="hibernation")],
    "another worker tries again what one that stays away had claimed": [
        ONE_WORKER, pool(RETRIED, kind=0), pool(kind=0), CLAIM, op("a", "claim", 1), leave("a"), come("b"),
        wait(5_017), wait(), wait(1_013),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_stays_found(store: Store, name: str) -> None:
    run_in_virtual_time(partial(run_steps, store, CASES[name]))
