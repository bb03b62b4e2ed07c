"""Children are created while another transaction collects child events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import trio

from aether_trio.gateway.core import Core, open_core
from aether_trio.model.identity import Identity
from aether_trio.model.tasks import Mode, Move, TaskRow
from aether_trio.model.tasks.timed_transitions import TimeLimits
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.handlers import create
from aether_trio.services.tasks.handlers.create import CreateResult, OfflinePolicy
from aether_trio.services.tasks.handlers.operate import OperationRequest, operate
from aether_trio.services.tasks.handlers.permissions import Caller
from aether_trio.services.tasks.transaction import child_events
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.storage.base import Database, Deferred, Program, ProgramFactory, Statement, StorageUnavailable
from aether_trio.storage.postgres.statements import PostgresJob, drive
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect, settings_for_tests
from tests.helpers.direct import caught
from tests.helpers.engines import PostgresEngine
from tests.helpers.postgres_session import PostgresSession
from tests.services.tasks import peers
from tests.services.tasks.delivery.test_event_subscriptions import child_of, parent_and_children, subscribe
from tests.services.tasks.peers import Op

T = TypeVar("T")

CREATOR = "ag::w::c::1"
CONTEXT = Context(1, "another", TimeLimits(), shared=True)
LONG_S = 300.0


class Transaction:
    """One of another node, which stays open."""

    def __init__(self, session: PostgresSession) -> None:
        self._session = session

    def run(self, program: ProgramFactory[T]) -> T:
        result: T = self._session.call(drive(self._session.connection, PostgresJob(program)))
        return result

    def a_task_waits(self) -> bool:
        """Whether it is what another transaction waits for."""
        blocked = "SELECT 1 FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
        return bool(self._session.fetch(blocked))


@contextmanager
def transaction(engine: PostgresEngine, level: str) -> Iterator[Transaction]:
    """Committed at the end of the block."""
    engine.session.execute(f"BEGIN ISOLATION LEVEL {level}")
    try:
        yield Transaction(engine.session)
    except BaseException:
        engine.session.execute("ROLLBACK")
        raise
    engine.session.execute("COMMIT")


@pytest.fixture
async def core(postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Core]:
    """A node that takes up nothing unless it is told to."""

    async def never(_: Any) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Engine, "_collect_child_events_forever", never)
    settings = settings_for_tests(storage={"database": postgres_engine.server.dsn(), "schema": postgres_engine.schema})
    with trio.fail_after(LONG_S):
        async with open_core(settings) as opened:
            yield opened


def made(task_id: str, parent: str, *, again: bool = False) -> Program[CreateResult]:
    task = TaskRow(task_id, "t", "w", mode=Mode.POOL, creator=CREATOR, root_task_id=task_id, parent_task_id=parent)
    return create.create_in_transaction(
        CONTEXT._replace(again=again),
        task,
        b"",
        key=b"",
        request=b"",
        offline=OfflinePolicy.QUEUE,
        start=None,
        target=None,
        minted=None,
    )


def told(engine: PostgresEngine, task_id: str) -> list[str]:
    """Return the parent's log: its children and its own changes; numbers have no gaps."""
    rows = engine.rows("SELECT number, event FROM task_events WHERE task_id = $1 ORDER BY number", task_id)
    assert [number for number, _ in rows] == list(range(1, len(rows) + 1))
    assert engine.rows("SELECT events FROM tasks WHERE task_id = $1", task_id) == [(len(rows),)]
    events = [pb.TaskEvent.FromString(event) for _, event in rows]
    return [one.child_lifecycle.child_task_id or "changed" for one in events]


async def claim(peer: MemoryLink, task_id: str) -> None:
    while not (await peers.operate(peer, Op.CLAIM, task_id)).success:
        await trio.sleep(0.01)  # it has waited too long for a lock


async def take_up(core: Core, task_id: str) -> None:
    while True:
        try:
            return await core.tasks.engine.collect_child_events(task_id)
        except StorageUnavailable:  # it has waited too long for a lock
            await trio.sleep(0.01)


async def test_a_child_is_made_while_events_of_others_are_taken_up(core: Core, postgres_engine: PostgresEngine) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        parent, (first,) = await parent_and_children(peer, 1)
        before = core.tasks.engine.database.statistics().conflicts  # type: ignore[attr-defined]
        with transaction(postgres_engine, "SERIALIZABLE") as other:
            assert other.run(lambda: made("second", parent)).problem == ""
            await core.tasks.engine.collect_child_events()
        assert core.tasks.engine.database.statistics().conflicts == before  # type: ignore[attr-defined]
        assert told(postgres_engine, parent) == [first]
        await core.tasks.engine.collect_child_events()
        assert told(postgres_engine, parent) == [first, "second"]


@pytest.mark.parametrize("waits", [False, True])
async def test_what_a_parent_has_taken_up_itself_is_not_taken_up_again(
    core: Core, postgres_engine: PostgresEngine, waits: bool
) -> None:
    """The row of the parent is locked until its own event is there."""
    async with connect(core, agent("w", "c", "1")) as peer, trio.open_nursery() as nursery:
        parent, (first,) = await parent_and_children(peer, 1)
        caller = Caller(Identity.parse(CREATOR), "w")
        with transaction(postgres_engine, "SERIALIZABLE") as other:
            assert other.run(lambda: operate(CONTEXT, caller, OperationRequest(parent, Move.CLAIM))).refusal == ""
            if waits:
                nursery.start_soon(take_up, core, parent)
                while not other.a_task_waits():
                    await trio.sleep(0.01)
    assert told(postgres_engine, parent) == [first, "changed"]
    await take_up(core, parent)
    assert told(postgres_engine, parent) == [first, "changed"]


async def test_a_parent_goes_on_behind_what_is_being_taken_up(core: Core, postgres_engine: PostgresEngine) -> None:
    async with connect(core, agent("w", "c", "1")) as peer, trio.open_nursery() as nursery:
        parent, (first,) = await parent_and_children(peer, 1)
        with transaction(postgres_engine, "READ COMMITTED") as other:
            assert other.run(lambda: child_events.collect_for_locking(TaskTransaction(CONTEXT), parent)) == 1
            nursery.start_soon(claim, peer, parent)
            while not other.a_task_waits():
                await trio.sleep(0.01)
    assert told(postgres_engine, parent) == [first, "changed"]


async def test_other_parents_do_not_wait_for_one_that_is_locked(
    core: Core, postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_events, "PAGE", 2)
    engine = core.tasks.engine
    locking = engine.database.separate_queue(locking=True)
    async with connect(core, agent("w", "c", "1")) as peer:
        locked, of_locked = await parent_and_children(peer, 2)
        free, of_free = await parent_and_children(peer, 2)
        of_locked += [await child_of(peer, locked) for _ in range(2)]
        of_free.append(await child_of(peer, free))
        with transaction(postgres_engine, "READ COMMITTED"):
            postgres_engine.session.fetch("SELECT 1 FROM tasks WHERE task_id = $1 FOR UPDATE", locked)
            left, pages = await all_pages(locking)
        assert left == {locked}
        assert pages == 4
        assert told(postgres_engine, free) == of_free
        assert told(postgres_engine, locked) == []
        await engine.collect_child_events()
        assert told(postgres_engine, locked) == of_locked
        assert postgres_engine.rows("SELECT COUNT(*) FROM task_child_events") == [(0,)]


async def all_pages(locking: Database) -> tuple[frozenset[str], int]:
    left: frozenset[str] = frozenset()
    last = pages = 0
    while not pages or last:
        taken = await locking.run(
            lambda last=last, left=left: child_events.collect_locking(  # type: ignore[misc]
                TaskTransaction(CONTEXT), last, child_events.ALL, left
            )
        )
        last, left, pages = taken.last, left | taken.locked, pages + 1
    return left, pages


async def test_what_is_new_waits_unless_its_parent_is_followed(core: Core, postgres_engine: PostgresEngine) -> None:
    engine = core.tasks.engine
    async with connect(core, agent("w", "c", "1")) as peer, connect(core, agent("w", "c", "2")) as other:
        old, of_old = await parent_and_children(peer, 1)
        up_to = await engine.database.read(child_events.newest)
        new, of_new = await parent_and_children(peer, 1)
        followed, of_followed = await parent_and_children(peer, 1)
        assert (await subscribe(other, followed)).success
        of_followed.append(await child_of(peer, followed))
        await engine._collect_unlocked_child_events(up_to)
        assert [told(postgres_engine, one) for one in (old, new, followed)] == [of_old, [], of_followed]
        await engine._collect_unlocked_child_events(child_events.ALL)
        assert told(postgres_engine, new) == of_new


async def test_events_for_a_parent_that_is_gone_are_dropped(core: Core, postgres_engine: PostgresEngine) -> None:
    async with connect(core, agent("w", "c", "1")) as peer:
        gone, _ = await parent_and_children(peer, 1)
        parent, (child,) = await parent_and_children(peer, 1)
        postgres_engine.rows("DELETE FROM tasks WHERE task_id = $1", gone)
        await core.tasks.engine.collect_child_events()
        assert told(postgres_engine, parent) == [child]
        assert postgres_engine.rows("SELECT COUNT(*) FROM task_child_events") == [(0,)]


async def test_a_child_costs_two_statements_more_than_another_task(core: Core, postgres_engine: PostgresEngine) -> None:
    """To look at its parent, and to leave what is for the parent's log.

    The children of a group leave that in one round trip, as they do their rows.
    """
    database = core.tasks.engine.database
    async with connect(core, agent("w", "c", "1")) as peer:
        parent, _ = await parent_and_children(peer, 1)
        alone = await database.run(lambda: counted(made("alone", "")))
        assert await database.run(lambda: counted(made("child", parent))) == alone + 2
        await database.run(lambda: made("child", parent, again=True))  # its commit was not answered
        assert postgres_engine.rows("SELECT COUNT(*) FROM task_child_events") == [(2,)]


def counted(program: Program[Any]) -> Program[int]:
    """How many statements it has, with those that others may share."""
    statements: list[Statement] = []
    yield from caught(program, statements)
    shared = {one.sql for one in statements if isinstance(one, Deferred)}
    return len(shared) + sum(not isinstance(one, Deferred) for one in statements)
