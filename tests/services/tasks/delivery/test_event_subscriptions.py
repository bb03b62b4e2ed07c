"""A recursive subscription gets each event once, in order, of every child."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from itertools import count
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.services.tasks.delivery import event_replay, event_subscriptions
from aether_trio.services.tasks.handlers import query
from aether_trio.services.tasks.handlers import subscribe as subscribe_handler
from aether_trio.storage.base import Database, Execute, Fetch, Program
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, errors, pump
from tests.services.tasks.peers import Op, answer, begin, create, operate, report

_numbers = count(1)


async def subscribe(peer: MemoryLink, task_id: str, **fields: Any) -> pb.TaskSubscriptionOperationResponse:
    request_id = f"sub-{next(_numbers)}"
    op = pb.TaskSubscriptionOperation(
        op=pb.TaskSubscriptionOperation.SUBSCRIBE, task_id=task_id, client_request_id=request_id, **fields
    )
    peer.send(pb.UpstreamMessage(task_subscription_op=op))
    while True:
        for one in peer.waiting("task_subscription_response"):
            if one.task_subscription_response.client_request_id == request_id:
                return one.task_subscription_response
        await trio.sleep(0.001)


def seen(peer: MemoryLink) -> list[pb.TaskEvent]:
    return [one.task_event for one in peer.waiting("task_event")]


def of(events: Sequence[pb.TaskEvent], task_id: str) -> list[pb.TaskEvent]:
    return [event for event in events if event.task_id == task_id]


async def parent_and_children(peer: MemoryLink, how_many: int) -> tuple[str, list[str]]:
    parent = (await create(peer, assignment_mode=pb.SELF_ASSIGN)).task_id
    return parent, [await child_of(peer, parent) for _ in range(how_many)]


async def child_of(peer: MemoryLink, parent: str) -> str:
    return (await create(peer, assignment_mode=pb.SELF_ASSIGN, parent_task_id=parent)).task_id


async def report_each(peer: MemoryLink, task_ids: Sequence[str], count: int) -> None:
    """Claim tasks, and report so often on each."""
    for task_id in task_ids:
        await begin(peer, task_id)
        peer.send(*(report(task_id, summary=f"{number}") for number in range(count)))
        await trio.sleep(1)


def written(world: World, task_id: str) -> list[bytes]:
    rows = world.databases["tasks"].query("SELECT event FROM task_events WHERE task_id = $1 ORDER BY number", task_id)
    return [event for (event,) in rows]


def as_written(world: World, events: Sequence[pb.TaskEvent], task_id: str) -> bool:
    """Whether these are all events of the task, in order, each once."""
    told = []
    for event in of(events, task_id):
        plain = pb.TaskEvent()
        plain.CopyFrom(event)
        plain.subscription_id = ""
        told.append(plain)
    return told == [pb.TaskEvent.FromString(event) for event in written(world, task_id)]


@pytest.mark.parametrize("step", [-7, -1, 0])
async def test_a_replay_is_in_the_order_of_numbers_where_clocks_differ(core: Core, world: World, step: int) -> None:
    """Each node writes its own time.

    Those of two differ by milliseconds, so an event may be older than the one before it.
    """
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, children = await parent_and_children(peer, 3)
        await report_each(peer, (parent, *children), 4)
        first = world.databases["tasks"].query("SELECT MIN(at_ms) FROM task_events")[0][0]
        await core.tasks.engine.database.execute("UPDATE task_events SET at_ms = $1 + $2 * number", first + 100, step)
        for recursive in (True, False):
            answered = await subscribe(other, parent, recursive=recursive, start_timestamp_unix_ms=1)
            assert answered.success
            await trio.sleep(10)
            told = [one for one in seen(other) if one.subscription_id == answered.subscription_id]
            for task_id in (parent, *children) if recursive else (parent,):
                assert as_written(world, told, task_id), [one.progress.message for one in of(told, task_id)]


async def test_a_replay_over_several_pages_doubles_nothing(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, children = await parent_and_children(peer, 2)
        await report_each(peer, (parent, *children), event_replay.PAGE_ROWS * 2)
        await trio.sleep(30)
        first = world.databases["tasks"].query("SELECT MIN(at_ms) FROM task_events")[0][0]
        await core.tasks.engine.database.execute("UPDATE task_events SET at_ms = $1 - number % 5", first + 100)
        assert (await subscribe(other, parent, recursive=True, start_timestamp_unix_ms=1)).success
        await trio.sleep(30)
        for task_id in (parent, *children):
            assert as_written(world, seen(other), task_id)


@pytest.mark.parametrize("since", [0, 1])
async def test_a_child_made_while_a_subscription_begins_is_followed(core: Core, world: World, since: int) -> None:
    """Between looking for what is below the task and for where its events are."""
    database = world.databases["tasks"]
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, children = await parent_and_children(peer, 2)
        for held in range(1, 6):
            made: list[str] = []

            async def hold(held: int = held, made: list[str] = made) -> None:
                for _ in range(held):
                    database.after_read.close()
                    with trio.move_on_after(5):
                        await database.after_read.arrival()
                    if _ == held - 1:
                        made.append(await child_of(peer, parent))
                        made.append(await child_of(peer, made[0]))
                    database.after_read.open()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold)
                answered = await subscribe(other, parent, recursive=True, start_timestamp_unix_ms=since)
            assert answered.success
            await trio.sleep(10)
            for task_id in (*children, *made):
                assert (await operate(peer, Op.CLAIM, task_id)).success
                peer.send(report(task_id, summary=f"held {held}"))
            await trio.sleep(10)
            told = [one for one in seen(other) if one.subscription_id == answered.subscription_id]
            for task_id in (*children, *made):
                marks = [one.progress.message for one in of(told, task_id) if one.progress.message == f"held {held}"]
                assert marks == [f"held {held}"], (held, task_id in made)
            assert len({one.SerializeToString() for one in told}) == len(told)


@pytest.mark.parametrize("since", [0, 1])
async def test_all_children_are_followed(core: Core, since: int) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, children = await parent_and_children(peer, 300)
        assert (await subscribe(other, parent, recursive=True, start_timestamp_unix_ms=since)).success
        await trio.sleep(30)
        told = {one.child_lifecycle.child_task_id for one in of(seen(other), parent)}
        assert told == (set(children) if since else set())
        for task_id in children:
            peer.send(report(task_id, summary="x"))
        await barrier(peer)
        await trio.sleep(30)
        assert {one.task_id for one in seen(other)} >= set(children)


async def test_more_than_a_subscription_follows_is_an_error(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_subscriptions, "MAX_FOLLOWED", 5)
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, _ = await parent_and_children(peer, 5)
        refused = await subscribe(other, parent, recursive=True)
        assert not refused.success
        assert "at most 5 tasks" in refused.error
        assert (await subscribe(other, parent)).success


async def test_what_a_subscription_does_not_take_up_is_said(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_subscriptions, "MAX_FOLLOWED", 5)
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, _ = await parent_and_children(peer, 3)
        answered = await subscribe(other, parent, recursive=True)
        assert answered.success
        for _ in range(4):
            await child_of(peer, parent)
        await trio.sleep(10)
        (told,) = errors(other)
        assert told.code == "ERR_QUOTA_001"
        assert answered.subscription_id in told.message
        assert "at most 5 tasks" in told.message
        assert len([one for one in of(seen(other), parent) if one.child_lifecycle.lifecycle == "spawned"]) == 4


async def test_a_list_of_all_below_a_task_is_whole_or_refused(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        parent, children = await parent_and_children(peer, 5)
        for most, whole in ((5, True), (4, False)):
            monkeypatch.setattr(query, "MAX_DESCENDANTS", most)
            wanted = pb.TaskFilter(workspace="w", parent_task_id=parent, include_descendants=True)
            asked = pb.TaskQuery(op=pb.TaskQuery.LIST, filter=wanted, request_id=f"list-{most}")
            peer.send(pb.UpstreamMessage(task_query=asked))
            page: pb.TaskQueryResponse = await answer(peer, "task_query", asked.request_id)
            assert page.success is whole
            assert ({task.task_id for task in page.tasks} == set(children)) is whole
            assert ("more than 4 tasks" in page.error) is not whole


class Reads:
    """The database that subscriptions read; what each of its programs has done."""

    def __init__(self, inner: Database) -> None:
        self._inner = inner
        self.statements: list[int] = []
        self.bytes: list[int] = []
        self.going_on = 0
        self.most = 10_000
        """Programs after which the test has failed: they would be read for ever, in no time."""

    async def read(self, factory: Callable[[], Program[Any]]) -> Any:
        assert len(self.statements) < self.most
        self.going_on += 1
        try:
            return await self._inner.read(lambda: self._counted(factory()))
        finally:
            self.going_on -= 1

    async def fetch(self, sql: str, *args: Any) -> Any:
        self.statements.append(1)
        self.bytes.append(0)
        return await self._inner.fetch(sql, *args)

    def _counted(self, program: Program[Any]) -> Program[Any]:
        self.statements.append(0)
        self.bytes.append(0)
        answer: Any = None
        while True:
            try:
                asked = program.send(answer)
            except StopIteration as done:
                return done.value
            answer = yield asked
            self.statements[-1] += 1
            self.bytes[-1] += sum(len(value) for row in answer for value in row if isinstance(value, bytes))


@pytest.fixture
def reads(core: Core, monkeypatch: pytest.MonkeyPatch) -> Reads:
    found = Reads(core.tasks.engine.database)
    monkeypatch.setattr(core.tasks.engine.event_subscriptions, "_database", found)
    return found


async def test_what_is_read_at_once_is_bounded_however_large_events_are(core: Core, reads: Reads) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, children = await parent_and_children(peer, 4)
        for task_id in (parent, *children):
            assert (await operate(peer, Op.CLAIM, task_id)).success
            for number in range(20):
                peer.send(report(task_id, summary=f"{number} " + "x" * 60_000))
                await trio.sleep(1)
        assert (await subscribe(other, parent, recursive=True, start_timestamp_unix_ms=1)).success
        await trio.sleep(30)
        told = seen(other)
        for task_id in (parent, *children):
            assert len([one for one in of(told, task_id) if one.HasField("progress")]) == 20
        times = [one.emitted_at_unix_ms for one in told]
        assert times == sorted(times)
        assert max(reads.bytes) < event_replay.PAGE_BYTES + 64 * 1024


async def test_a_subscription_reads_once_at_a_time_however_much_happens_meanwhile(
    core: Core, world: World, reads: Reads
) -> None:
    database = world.databases["tasks"]
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, _ = await parent_and_children(peer, 0)
        assert (await subscribe(other, parent)).success
        await core.tasks.engine.database.run(lambda: _written_elsewhere(parent))
        database.after_read.close()
        for _ in range(3):
            core.tasks.engine.event_subscriptions.look(parent)
            await pump()
        assert reads.going_on == 1
        database.after_read.open()
        await trio.sleep(1)
        assert [one.progress.state for one in of(seen(other), parent)] == ["elsewhere"]


async def test_a_replay_that_is_read_to_its_end_is_not_read_again(core: Core, reads: Reads) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, _ = await parent_and_children(peer, 3)
        await trio.sleep(1)
        reads.statements.clear()
        assert (await subscribe(other, parent, start_timestamp_unix_ms=1)).success
        await trio.sleep(1)
        assert len(of(seen(other), parent)) == 3
        assert reads.statements == [2]  # where its events are, and the events


@pytest.mark.parametrize(("sizes", "whole"), [((60, 40), 2), ((60, 41), 1), ((101,), 1), ((101, 1), 1)])
def test_a_page_is_as_large_as_it_may_be(monkeypatch: pytest.MonkeyPatch, sizes: Sequence[int], whole: int) -> None:
    monkeypatch.setattr(event_replay, "PAGE_BYTES", 100)
    events = {number: bytes(size) for number, size in enumerate(sizes, 1)}
    program = event_replay.read_on({}, {"t": 0})
    program.send(None)
    program.send([(number, number, len(event)) for number, event in events.items()])
    with pytest.raises(StopIteration) as done:
        program.send(list(events.items()))
    page, _ = done.value.value
    assert page == [("t", number, events[number]) for number in range(1, whole + 1)]


def test_few_different_statements_ask_about_many_tasks() -> None:
    statements = set()
    for count_ in range(1, 41):
        wanted = [f"t{number}" for number in range(count_)]
        [(names, marks)] = event_replay.in_parts(wanted)
        assert set(names) == set(wanted)
        assert marks.split(", ") == [f"${number}" for number in range(1, len(names) + 1)]
        statements.add(marks)
    assert len(statements) == 11


async def test_a_replay_is_in_the_order_of_time_over_several_pages(core: Core, world: World) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, [dense] = await parent_and_children(peer, 1)
        await report_each(peer, (parent, dense), event_replay.PAGE_ROWS * 2)
        await trio.sleep(30)
        first = world.databases["tasks"].query("SELECT MIN(at_ms) FROM task_events")[0][0]
        database = core.tasks.engine.database
        await database.execute(
            "UPDATE task_events SET at_ms = CAST($1 AS BIGINT) + number * 1000 WHERE task_id = $2", first, parent
        )
        await database.execute(
            "UPDATE task_events SET at_ms = CAST($1 AS BIGINT) + 9000 + number WHERE task_id = $2", first, dense
        )
        assert (await subscribe(other, parent, recursive=True, start_timestamp_unix_ms=1)).success
        await trio.sleep(30)
        told = seen(other)
        for task_id in (parent, dense):
            assert as_written(world, told, task_id)
        places = [place for place, event in enumerate(told) if event.task_id == dense]
        assert places == list(range(places[0], places[0] + len(places)))


async def test_a_look_for_what_other_nodes_have_written_asks_for_many_tasks_at_once(
    core: Core, world: World, reads: Reads
) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, children = await parent_and_children(peer, 30)
        for _ in range(3):
            assert (await subscribe(other, parent, recursive=True)).success
        await trio.sleep(30)
        reads.statements.clear()
        await trio.sleep(30)
        looks = 7 if core.tasks.engine.database.shared else 0
        assert sum(reads.statements) <= looks
        # What was written and not offered here is found.
        program = _written_elsewhere(children[0])
        await core.tasks.engine.database.run(lambda: program)
        await trio.sleep(30)
        found = [one for one in of(seen(other), children[0]) if one.HasField("progress")]
        assert len(found) == (3 if core.tasks.engine.database.shared else 0)


async def test_what_was_not_offered_here_comes_before_what_follows_it(core: Core, reads: Reads) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, _ = await parent_and_children(peer, 0)
        assert (await operate(peer, Op.CLAIM, parent)).success
        assert (await subscribe(other, parent)).success
        await core.tasks.engine.database.run(lambda: _written_elsewhere(parent))
        here = pb.UpstreamMessage(progress=pb.ProgressReport(task_id=parent, state="here"))
        peer.send(here)
        await barrier(peer)
        await trio.sleep(1)
        assert [one.progress.state for one in seen(other)] == ["elsewhere", "here"]
        reads.statements.clear()
        peer.send(here)
        await barrier(peer)
        assert [one.progress.state for one in seen(other)] == ["elsewhere", "here", "here"]
        assert reads.statements == []  # it was sent as it was written


def _written_elsewhere(task_id: str) -> Program[None]:
    event = pb.TaskEvent(task_id=task_id, progress=pb.TaskProgressEvent(state="elsewhere"))
    [[number]] = yield Fetch("UPDATE tasks SET events = events + 1 WHERE task_id = $1 RETURNING events", (task_id,))
    sql = "INSERT INTO task_events (task_id, number, at_ms, event) VALUES ($1, $2, 1, $3)"
    yield Execute(sql, (task_id, number, event.SerializeToString()))


async def test_what_a_session_follows_in_all_is_bounded(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_subscriptions, "MAX_OF_SESSION", 9)
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, children = await parent_and_children(peer, 3)
        first = await subscribe(other, parent, recursive=True)
        assert first.success
        assert (await subscribe(other, parent, recursive=True)).success
        assert (await subscribe(other, children[0])).success
        for recursive in (True, False):
            refused = await subscribe(other, parent, recursive=recursive)
            assert (refused.success, "at most 9 tasks" in refused.error) == (False, True)
        # Another session has its own.
        assert (await subscribe(peer, parent, recursive=True)).success
        op = pb.TaskSubscriptionOperation(
            op=pb.TaskSubscriptionOperation.UNSUBSCRIBE, subscription_id=first.subscription_id
        )
        other.send(pb.UpstreamMessage(task_subscription_op=op))
        await barrier(other)
        assert (await subscribe(other, parent, recursive=True)).success
    assert not core.tasks.engine.event_subscriptions._followed


async def test_a_child_is_taken_up_as_long_as_its_session_may_follow_more(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_subscriptions, "MAX_OF_SESSION", 4)
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, _ = await parent_and_children(peer, 2)
        assert (await subscribe(other, parent, recursive=True)).success
        made = [await child_of(peer, parent) for _ in range(2)]
        await trio.sleep(10)
        (told,) = errors(other)
        assert (told.code, "a session 4" in told.message) == ("ERR_QUOTA_001", True)
        for task_id in made:
            assert (await operate(peer, Op.CLAIM, task_id)).success
        await trio.sleep(10)
        followed = {one.task_id for one in seen(other)} - {parent}
        assert followed == {made[0]}


async def test_of_one_that_does_not_read_nothing_is_read_until_it_does(core: Core, reads: Reads) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        parent, _ = await parent_and_children(peer, 0)
        assert (await operate(peer, Op.CLAIM, parent)).success
        assert (await subscribe(other, parent)).success
        outbox = next(one.session.outbox for one in core.tasks.engine.event_subscriptions._by_task[parent])
        other.pause()
        sent = 0
        while outbox.control_has_room or sent % 10:
            peer.send(report(parent, summary=f"{sent} " + "x" * 60_000))
            await barrier(peer)
            sent += 1
        reads.most = len(reads.statements) + 5
        await trio.sleep(5)
        reads.most = len(reads.statements) + 50
        other.resume()
        while not outbox.control_has_room:
            await trio.sleep(1)
        await trio.sleep(5)
        messages = [one.progress.message.partition(" ")[0] for one in seen(other) if one.HasField("progress")]
        assert messages == [str(number) for number in range(sent)]


async def test_the_end_of_a_large_subscription_is_written_a_part_at_a_time(
    core: Core, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not core.tasks.engine.database.shared:
        pytest.skip("there is no other node")
    monkeypatch.setattr(subscribe_handler, "UNWATCH_PAGE", 10)
    tasks = world.databases["tasks"]
    async with connect(core, agent("w", "c", "1")) as peer:
        parent, _ = await parent_and_children(peer, 40)
        async with connect(core, agent("w", "c", "2")) as other:
            assert (await subscribe(other, parent, recursive=True)).success
            assert tasks.query("SELECT COUNT(*) FROM task_watchers") == [(41,)]
        await core.tasks.engine.writes.flush()
        while tasks.query("SELECT COUNT(*) FROM task_watchers") != [(0,)]:
            await trio.sleep(5)


async def test_many_subscribers_to_large_events_delay_no_other_client(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them together are sent little in one turn of the event loop."""
    monkeypatch.setattr(event_subscriptions, "STEP_BYTES", 5_000)
    encode = event_subscriptions.encode_task_event
    sent = 0

    def noted(event: bytes, subscription_id: str) -> bytes:
        nonlocal sent
        sent += 1
        return encode(event, subscription_id)

    monkeypatch.setattr(event_subscriptions, "encode_task_event", noted)
    subscribers, events = 10, 41
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(connect(core, agent("w", "c", "1")))
        task_id = (await create(worker, assignment_mode=pb.SELF_ASSIGN)).task_id
        await begin(worker, task_id)
        worker.send(*(report(task_id, summary="x" * 4_000) for _ in range(events - 1)))
        await barrier(worker)
        await core.tasks.engine.writes.flush()
        peers = [await stack.enter_async_context(connect(core, agent("w", "s", f"{n}"))) for n in range(subscribers)]
        for peer in peers:
            op = pb.TaskSubscriptionOperation(
                op=pb.TaskSubscriptionOperation.SUBSCRIBE, task_id=task_id, start_timestamp_unix_ms=1
            )
            peer.send(pb.UpstreamMessage(task_subscription_op=op))
        before = most = 0
        while sent < subscribers * events:
            await trio.lowlevel.checkpoint()
            before, most = sent, max(most, sent - before)
        assert most <= 3 * subscribers
