"""A month in a second: all that may fall due happens once, at its moment.

What is due when is the model's word (model.py): after each step the rows bear the very millisecond
at which the model says that they changed.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import pump
from tests.helpers.direct import Store
from tests.tasks.play import DEADLINES, NAMES, POLICIES, REASONS, Play, Step, nothing_but_tasks, open_play

DAY_MS = 86_400_000
FULL = os.environ.get("TESTS_FULL") == "1"
SEEDS = range(20) if FULL else range(1)


@pytest.fixture
def quiet() -> Iterator[None]:
    with nothing_but_tasks():
        yield


@pytest.fixture
async def play(store: Store) -> AsyncIterator[Play]:
    async with open_play(store) as opened:
        yield opened


def some_step(chance: random.Random, play: Play) -> Step:
    """Do one step of a month: mostly waits, and now and then a restart."""
    kinds = {"create": 6, "claim": 6, "op": 4, "pause": 5, "report": 1, "pass": 8, "gone": 1, "back": 2, "restart": 0.5}
    kind = chance.choices(list(kinds), list(kinds.values()))[0]
    worker = chance.choice("ab")
    match kind:
        case "create":
            mode = chance.choice(["pool", "targeted", "targeted", "self"])
            policy, deadline = chance.randrange(len(POLICIES)), chance.choice([0, 0, 0, *range(len(DEADLINES))])
            return ("create", mode, worker, chance.choice([1, 3, 3, 3]), 30, policy, deadline, 0, 0)
        case "claim":
            return ("op", *_one_of(chance, play, "assigned", "claim"))
        case "op":
            verb = chance.choice(["complete", "fail", "fail", "fail", "cancel", "retry", "resume", "reject"])
            return ("op", *_one_of(chance, play, chance.choice(["running", "failed", "waiting_input"]), verb))
        case "pause":
            others = [chance.randrange(60) for _ in range(chance.randrange(3))]
            timeout, wake = (chance.choice([0, 0, 1]) * chance.randrange(1000, 6 * DAY_MS) for _ in range(2))
            who, reason, task = _one_of(chance, play, "running", chance.choice(sorted(REASONS)))
            any_one, escalation = chance.random() < 0.5, chance.choice(["", "retry"])
            return ("pause", who, reason, task, others, any_one, timeout, wake, escalation)
        case "report":
            return ("report", *_one_of(chance, play, "running", "")[::2])
        case "pass":
            return ("pass", chance.choice([1_013, 601_013, chance.randrange(1_800_000, 20 * 3_600_000)]))
        case "gone":
            return ("disconnect", worker, chance.random() < 0.5)
        case "back":
            return ("connect", worker, chance.random() < 0.5)
    return ("restart", chance.choice([40_003, 9 * 3_600_000, 2 * DAY_MS]), chance.random() < 0.5)


def _one_of(chance: random.Random, play: Play, status: str, what: str) -> tuple[str, str, int]:
    """A task of this status and its worker, if there are such."""
    there = [job for job in map(play.model.jobs.get, play.order) if job is not None]
    chosen = [(number, job) for number, job in enumerate(there) if job.status == status]
    number, job = chance.choice(chosen) if chosen else (0, None)
    worker = next((who for who, name in NAMES.items() if job is not None and name == job.worker), "creator")
    return worker, what, number


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.usefixtures("quiet")
async def test_thirty_days_of_everything_at_its_moment_and_once(play: Play, seed: int) -> None:
    chance = random.Random(seed)
    play.window = 10_000
    play.rare_looks = True
    days = 30 if play.world.databases["tasks"].shared is False or FULL else 6
    ends_ms = play.clock.now_ms() + days * DAY_MS
    while play.clock.now_ms() < ends_ms:
        await play.step(some_step(chance, play))
    if days < 30:
        return  # the same on an engine that takes ten times as long: as it was for every step of it
    happened = {what for _, what in play.model.happened}
    assert happened >= {"retry", "wake", "waited", "lost", "stale", "forget", "bury"}
    assert len(play.model.happened) > 80
    # Much of it while the gateway was away: then it happened when it came back, and once.
    assert sum(play.model.late.values()) > 10


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.usefixtures("quiet")
async def test_what_fell_due_while_the_gateway_was_away_happens_once_when_it_is_back(play: Play, crash: bool) -> None:
    await play.step(("disconnect", "b", True))
    for policy in (2, 3, 4):
        await play.step(("create", "targeted", "a", 3, 30, policy, 0, 0, 0))
        await play.step(("op", "a", "claim", policy - 2))
        await play.step(("op", "a", "fail", policy - 2))
    await play.step(("create", "self", "a", 3, 30, 0, 0, 0, 0))
    await play.step(("op", "creator", "claim", 3))
    await play.step(("pause", "creator", "input", 3, (), False, 0, 90_000, ""))
    await play.step(("create", "pool", "a", 3, 30, 0, 4, 0, 0))
    before = len(play.model.happened)
    await play.step(("restart", 3_700_003, crash))
    assert [what for _, what in play.model.happened[before:]].count("retry") == 3
    assert {what for _, what in play.model.happened[before:]} == {"retry", "wake", "bury"}
    await play.step(("pass", 1_013))
    assert play.model.late["retry"] == 3


@pytest.mark.usefixtures("quiet")
async def test_what_is_to_be_due_while_the_table_is_read_is_not_slept_through(play: Play) -> None:
    """The moment was ignored, as it was earlier than one that had passed already."""
    tasks = play.world.databases["tasks"]
    if tasks.shared:
        pytest.skip("looks every few seconds in any case")
    await play.step(("disconnect", "b", True))
    await play.step(("create", "targeted", "a", 3, 30, 2, 0, 0, 0))
    await play.step(("op", "a", "claim", 0))
    await play.step(("create", "self", "a", 3, 30, 0, 4, 0, 0))
    tasks.after_read.close()
    # The second one is due: it happens, and the table is read for the next moment.
    await trio.sleep(46)
    await pump(30)  # not `_pass`: taking up events of children reads, too, and would wait here
    assert tasks.after_read.waiting == 1  # the timer
    link = play.links["a"]
    link.send(
        pb.UpstreamMessage(task_op=pb.TaskOperation(op=pb.TaskOperation.FAIL, task_id=play.order[0], request_id="f"))
    )
    await pump(200)
    assert [message.task_op.success for message in link.waiting("task_op")] == [True]
    tasks.after_read.open()
    await trio.sleep(1.5)
    assert tasks.query("SELECT status FROM tasks WHERE task_id = $1", play.order[0]) == [("assigned",)]


@pytest.mark.parametrize("back_ms", [0, 3_600_000])
async def test_a_calendar_that_is_set_forward_or_back_is_followed(play: Play, back_ms: int) -> None:
    """A wait until a time of the calendar ends once, soon after that time is set."""
    await play.step(("disconnect", "b", True))
    await play.step(("create", "self", "a", 3, 30, 0, 0, 0, 0))
    await play.step(("op", "creator", "claim", 0))
    await play.step(("pause", "creator", "input", 0, (), False, 0, 3_600_000, ""))
    status = "SELECT status, events FROM tasks"
    query = play.world.databases["tasks"].query
    play.clock.offset_ms -= back_ms
    await trio.sleep(60)
    assert query(status) == [("waiting_input", 2)]
    play.clock.offset_ms += 3_500_000 + back_ms
    await trio.sleep(30)
    assert query(status) == [("waiting_input", 2)]
    await trio.sleep(60)
    assert query(status) == [("running", 3)]
    play.clock.offset_ms -= 7_200_000
    await trio.sleep(60)
    play.clock.offset_ms += 7_200_000
    await trio.sleep(60)
    assert query(status) == [("running", 3)]
