"""Each event acts exactly once, whatever is killed, fails or takes over, and when."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.workflows.documents.json_thread import SMALL_BYTES
from aether_trio.services.workflows.events import intake
from aether_trio.services.workflows.events.intake import PAGE_EVENTS, move_cursor
from aether_trio.services.workflows.events.taken_events import TakenEvent, read_event
from aether_trio.storage.base import Execute, Program
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.delivery import delivery_prefix, delivery_suffix, encode_delivery
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.clocks import VirtualClock
from tests.helpers.core import World, agent, barrier, connect, deadlock_is_an_error, message_to, pump, workflow_engine

ENGINE = "wfe::shard0"


def event(number: int, size: int = 0) -> pb.UpstreamMessage:
    payload = json.dumps({"more": "x" * size, "event_names": ["e"], "data": number}).encode()
    return message_to("event::*", payload, pb.EVENT)


def number_of(payload: bytes) -> int:
    return int(json.loads(payload)["data"])


class Effects:
    """What events cause: rows, in the transaction that moves the cursor."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.pages: list[int] = []
        self.before: Callable[[Sequence[TakenEvent]], None] = lambda events: None
        """Called with each page; what it raises, the handling raises."""
        for sql in (
            "DROP TABLE IF EXISTS effects",
            "CREATE TABLE effects (number BIGINT NOT NULL, reason TEXT NOT NULL)",
        ):
            world.databases["tasks"]._direct.drive(partial(_execute, sql))

    async def handle(self, events: Sequence[TakenEvent]) -> None:
        self.before(events)
        self.pages.append(len(events))
        await self._world.databases["tasks"].run(partial(_write, events))

    @property
    def rows(self) -> list[tuple[int, str]]:
        return sorted((row[0], row[1]) for row in self._world.databases["tasks"].query("SELECT * FROM effects"))

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.rows]

    @property
    def cursor(self) -> int:
        [[position]] = self._world.databases["tasks"].query("SELECT position FROM workflow_cursors")
        return int(position)


def _execute(sql: str) -> Program[None]:
    yield Execute(sql, ())


def _write(events: Sequence[TakenEvent]) -> Program[None]:
    yield from move_cursor(events)
    for one in events:
        number = -one.offset if one.reason else round(one.data)
        yield Execute("INSERT INTO effects (number, reason) VALUES ($1, $2)", (number, one.reason))


@pytest.fixture
def effects(world: World) -> Effects:
    return Effects(world)


@asynccontextmanager
async def gateway(
    world: World, effects: Effects, engine: str = "embedded", clock: VirtualClock | None = None
) -> AsyncIterator[Core]:
    async with deadlock_is_an_error(), world.open(clock=clock, workflow={"engine": engine}) as core:
        core.workflows.intake._handle = effects.handle
        yield core


async def publish(core: Core, *numbers: int, size: int = 0) -> None:
    async with connect(core, agent("w", "a", "1")) as a:
        a.send(*(event(number, size) for number in numbers))
        await barrier(a)


async def all_taken(core: Core) -> None:
    """Wait until the engine has handled all events."""
    while (await core.workflows.intake.progress()).lag:
        await trio.sleep(0.05)


async def taken_by(engine: MemoryLink, core: Core) -> list[int]:
    """The events that an external engine has been sent, which were all that were left."""
    await all_taken(core)
    await barrier(engine)
    return [number_of(one.msg.payload) for one in engine.waiting("msg")]


def sent(world: World) -> list[int]:
    """The events that are in the log: those that were published."""
    rows = world.log.query("SELECT data FROM messages ORDER BY message_key")
    messages = [pb.DownstreamMessage.FromString(data).msg for (data,) in rows]
    return sorted(number_of(one.payload) for one in messages if one.message_type == pb.EVENT)


# -- what is handed over ---------------------------------------------------------------------------


async def test_events_come_with_what_the_gateway_knows_of_them(world: World, effects: Effects) -> None:
    seen: list[TakenEvent] = []
    effects.before = seen.extend
    async with gateway(world, effects) as core, connect(core, agent("w", "a", "1")) as a:
        before_ms = core.clock.now_ms()
        a.send(event(1), message_to("event::*", b"no event", pb.CONTROL), message_to("event::*", b"{", pb.EVENT))
        await barrier(a)
        await all_taken(core)
        first, second = seen
        assert (first.offset, first.names, first.data, first.reason) == (1, ("e",), 1.0, "")
        assert (first.principal, first.workspace, first.agent) == ("ag::w::a::1", "w", "a")
        assert before_ms <= first.at_ms <= core.clock.now_ms()
        assert (second.offset, second.names, second.payload) == (3, (), b"{")
        assert "no JSON" in second.reason
        assert core.workflows.intake.statistics().poisoned == 1
        a.send(message_to("event::*", b"nor this", pb.OPAQUE))
        await barrier(a)
        await all_taken(core)
        assert effects.cursor == 4  # what is no event is behind the engine too
        assert len(seen) == 2


async def test_a_backlog_is_taken_in_pages_with_its_times(world: World, effects: Effects) -> None:
    numbers = list(range(2 * PAGE_EVENTS + 10))
    async with gateway(world, effects, "external") as core:
        await publish(core, *numbers)
        published_ms = core.clock.now_ms()
    seen: list[TakenEvent] = []
    effects.before = seen.extend
    async with gateway(world, effects) as core:
        await all_taken(core)
        await core.workflows.embedded.status()
    assert effects.numbers == numbers
    assert max(effects.pages) <= PAGE_EVENTS
    assert all(one.at_ms <= published_ms for one in seen)


async def test_large_events_are_read_beside_the_event_loop_in_their_order(
    world: World, effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []
    loop = threading.get_ident()

    def read(offset: int, *more: Any) -> TakenEvent | None:
        seen.append((offset, threading.get_ident() == loop))
        return read_event(offset, *more)

    monkeypatch.setattr(intake, "read_event", read)
    order: list[float] = []
    effects.before = lambda events: order.extend(one.data for one in events)
    async with gateway(world, effects) as core, connect(core, agent("w", "a", "1")) as a:
        a.send(*(event(number, number % 2 * 2 * SMALL_BYTES) for number in range(1, 7)))
        await barrier(a)
        await all_taken(core)
    assert seen == [(number, number % 2 == 0) for number in range(1, 7)]
    assert order == [1, 2, 3, 4, 5, 6]


async def test_poison_blocks_nothing_and_is_not_dropped(world: World, effects: Effects) -> None:
    def before(events: Sequence[TakenEvent]) -> None:
        if any(one.data == 3 for one in events):
            raise ValueError("three")
        if any(one.payload.endswith(b"5}") for one in events):
            raise TypeError("five, with a reason too")

    effects.before = before
    async with gateway(world, effects, "external") as core:
        await publish(core, *range(8))
    async with gateway(world, effects) as core:
        effects.before = lambda events: before([one for one in events if not (one.reason and one.data == 3)])
        await all_taken(core)
        statistics = core.workflows.intake.statistics()
    assert (statistics.taken, statistics.poisoned) == (8, 2)
    assert [number for number in effects.numbers if number >= 0] == [0, 1, 2, 4, 6, 7]
    assert [reason for _, reason in effects.rows if reason] == ["it could not be handled: ValueError: three"]
    assert effects.cursor == 8


# -- faults ----------------------------------------------------------------------------------------


class KillAt(trio.abc.Instrument):
    """Calls `kill` at the n-th step of the engine's task, and counts the steps."""

    def __init__(self, step: int, kill: Callable[[], None]) -> None:
        self.step, self.kill, self.steps = step, kill, 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name == "engine":
            self.steps += 1
            if self.steps == self.step:
                self.kill()


async def killed_life(world: World, effects: Effects, step: int) -> bool:
    """Publish events; kill the gateway at a step of its engine. False: it had fewer."""
    with trio.CancelScope() as scope:

        def kill() -> None:
            world.fail()
            scope.cancel()

        instrument = KillAt(step, kill)
        trio.lowlevel.add_instrument(instrument)
        try:
            async with gateway(world, effects) as core:
                first = step * 10
                await publish(core, first, first + 1)
                await publish(core, first + 2, size=SMALL_BYTES)
                await all_taken(core)
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught


async def test_killed_at_each_await_of_the_engine_every_event_acts_once(world: World, effects: Effects) -> None:
    step, kills = 1, 0
    while await killed_life(world, effects, step):
        step += 1
        kills += 1
    assert kills > 15
    async with gateway(world, effects) as core:
        await all_taken(core)
    assert effects.numbers == sent(world)


async def test_killed_at_each_await_an_external_engine_gets_what_is_left(world: World, effects: Effects) -> None:
    step, external = 1, []
    while await killed_life(world, effects, step):
        async with gateway(world, effects, "external") as core, connect(core, workflow_engine()) as engine:
            external += await taken_by(engine, core)
        step += 1
    assert external
    assert sorted(external + effects.numbers) == sent(world)


FAULTS: list[dict[str, int]] = [
    {"fail_writes": 1}, {"fail_writes": 3}, {"denied_writes": 1}, {"denied_writes": 2}, {"unanswered_writes": 1},
    {"unanswered_writes": 2},
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_a_transaction_that_fails_or_seems_to_is_tried_again(
    world: World, effects: Effects, fault: dict[str, int]
) -> None:
    async with gateway(world, effects) as core:
        await publish(core, 1)
        await all_taken(core)
        for number in range(2, 6):
            for name, count in fault.items():
                setattr(world.databases["tasks"], name, count)
            await publish(core, number)
            await all_taken(core)
    assert effects.numbers == [1, 2, 3, 4, 5]


async def test_events_wait_out_an_outage(world: World, effects: Effects) -> None:
    async with gateway(world, effects) as core, connect(core, agent("w", "b", "1")) as a:
        await publish(core, 1)
        await all_taken(core)
        world.databases["tasks"].failing = True
        a.send(*map(event, range(2, 300)))
        await barrier(a)
        await trio.sleep(60)
        assert effects.numbers == [1]
        world.databases["tasks"].failing = False
        await all_taken(core)
    assert effects.numbers == list(range(1, 300))


async def test_a_log_that_was_restored_from_an_older_copy_gives_its_numbers_again(
    world: World, effects: Effects
) -> None:
    if world.log.shared:
        pytest.skip("PostgreSQL restores all of it as it was at one moment")
    async with gateway(world, effects) as core:
        await publish(core, 1, 2, 3)
        await all_taken(core)
    assert effects.cursor == 3
    [[first]] = world.log.query("SELECT MIN(message_key) FROM messages")
    for sql in (f"DELETE FROM messages WHERE message_key > {first}", "DELETE FROM log_identity", "DELETE FROM cursors"):
        world.log._direct.drive(partial(_execute, sql))
    async with gateway(world, effects) as core:
        await publish(core, 12, 13)
        await all_taken(core)
    assert effects.numbers == [1, 2, 3, 12, 13]


async def test_copies_of_an_event_of_a_task_act_once(world: World, effects: Effects) -> None:
    """A copy is in the same page, in a later one, or behind a restart."""
    other = json.dumps({"event_names": ["e"], "data": 9, "event_id": "t.1"}).encode()

    async def append(core: Core, *numbers: int) -> None:
        for number in numbers:
            payload = json.dumps({"event_names": ["e"], "data": number, "event_id": f"t.{number}"}).encode()
            frame = encode_delivery(delivery_prefix("tk::w::t::events"), payload, delivery_suffix(pb.EVENT, "w"))
            core.log.append_nowait(core.log.topics.ensure("event::receiver0"), frame, _NoAuthor())
        await core.log.drain()
        await all_taken(core)

    async with gateway(world, effects) as core:
        await append(core, 1, 1, 2)
        await append(core, 2, 3, 1)
    async with gateway(world, effects) as core, connect(core, agent("w", "a", "1")) as a:
        await append(core, 3, 4)
        # Only the gateway's own events have ids.
        a.send(*[message_to("event::*", other, pb.EVENT)] * 2)
        await barrier(a)
        await all_taken(core)
        assert core.workflows.intake.statistics().repeated == 1
        assert effects.numbers == [1, 2, 3, 4, 9, 9]
    clock = VirtualClock(trio.current_time, 1_700_000_000_000 + 40 * 24 * 3600 * 1000)
    async with gateway(world, effects, clock=clock) as core:
        await append(core, 5)
    assert world.databases["tasks"].query("SELECT id FROM workflow_event_ids") == [("t.5",)]


class _NoAuthor:
    confirms = False
    publisher = None

    def refused(self, number: int, error: Exception) -> None:
        raise error

    def settled(self, touched: object) -> None:
        pass


# -- take-over -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("database", "gate"), [("log", "after_read"), ("tasks", "before_write"), ("tasks", "after_write")]
)
async def test_an_external_engine_takes_over_amid_a_page(
    world: World, effects: Effects, database: str, gate: str
) -> None:
    async with gateway(world, effects, "auto") as core, connect(core, agent("w", "a", "0")):
        await publish(core, 1)
        await all_taken(core)
        held = getattr(world.databases[database], gate)
        held.close()
        async with trio.open_nursery() as nursery:
            engine = MemoryLink()
            await publish_without_wait(core, 2, 3)
            await held.arrival()
            nursery.start_soon(core.sessions.serve, engine)
            engine.send(workflow_engine())
            await pump(200)
            # It is not accepted while a page may still be committed.
            assert not engine.waiting("connection_ack")
            await publish_without_wait(core, 4, 5)
            held.open()
            await engine.next("connection_ack")
            external = await taken_by(engine, core)
            engine.finish()
    assert 4 in external
    assert 5 in external
    assert sorted(external + effects.numbers) == [1, 2, 3, 4, 5]


async def publish_without_wait(core: Core, *numbers: int) -> None:
    """Publish while the database of the tasks is held, as a new client would be."""
    core.router.send(_sender(core), event(numbers[0]).send)
    for number in numbers[1:]:
        core.router.send(_sender(core), event(number).send)
    await core.log.drain()


def _sender(core: Core) -> Any:
    session = core.registry.holder("ag::w::a::0")
    assert session is not None
    return session.sender


async def test_engines_take_turns_and_no_event_is_missed_or_twice(world: World, effects: Effects) -> None:
    external: list[int] = []
    numbers = iter(range(1000))
    async with gateway(world, effects, "auto") as core:
        for _ in range(3):
            await publish(core, *[next(numbers) for _ in range(5)])
            await all_taken(core)
            async with connect(core, workflow_engine()) as engine:
                await publish(core, *[next(numbers) for _ in range(5)])
                external += await taken_by(engine, core)
            await publish(core, *[next(numbers) for _ in range(5)])  # no engine is connected
            assert (await core.workflows.intake.progress()).lag == 5
            await all_taken(core)
    counts = Counter(external + effects.numbers)
    assert set(counts.values()) == {1}
    assert sorted(counts) == sent(world) == list(range(45))
    assert len(external) == 15


async def cut_life(world: World, effects: Effects, step: int, external: list[int]) -> bool:
    """End the engine's session at a step, for an external one. False: it had fewer."""
    async with gateway(world, effects, "auto") as core, connect(core, agent("w", "b", "1")) as a:
        while not core.workflows.embedded.connected:
            await trio.sleep(1)

        def cut() -> None:
            session = core.registry.holder(ENGINE)
            assert session is not None
            session.disconnect("by an operator")

        instrument = KillAt(step, cut)
        trio.lowlevel.add_instrument(instrument)
        try:
            a.send(*map(event, range(step * 10, step * 10 + 3)))
            await barrier(a)
            while instrument.steps < step and (await core.workflows.intake.progress()).lag:
                await trio.sleep(0.001)
        finally:
            trio.lowlevel.remove_instrument(instrument)
        async with connect(core, workflow_engine()) as engine:
            external += await taken_by(engine, core)
    return instrument.steps >= step


async def test_ended_at_each_await_an_external_engine_gets_what_is_left(world: World, effects: Effects) -> None:
    external: list[int] = []
    step = 1
    while await cut_life(world, effects, step, external):
        step += 1
    assert step > 5
    assert external
    assert sorted(external + effects.numbers) == sent(world)
