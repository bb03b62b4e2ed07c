"""Tasks of a database that an earlier release wrote: where their payload lies, what waits for them, and what is known of their assignments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from aether_trio.model.identity import Identity
from aether_trio.model.tasks import Mode, Move, Status, Task, Wait
from aether_trio.model.tasks.due import TimeLimits
from aether_trio.model.tasks.task import COLUMNS, keeper_of
from aether_trio.services.tasks.handlers import create, query
from aether_trio.services.tasks.handlers.create import Offline
from aether_trio.services.tasks.handlers.operate import Asked, Outcome, operate
from aether_trio.services.tasks.handlers.permissions import Caller
from aether_trio.services.tasks.handlers.protobuf import CANCEL, ON_PARENT_CANCELLED, kept_of
from aether_trio.services.tasks.transaction import rows
from aether_trio.services.tasks.transaction.work import Context, Work
from aether_trio.storage import migrations
from aether_trio.storage.base import Database, Execute, Program
from aether_trio.storage.schema import tasks as schema
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.engines import Engine

Opening = AbstractAsyncContextManager[Database]
WORKER = "ag::w::i::1"
CALLER = Caller(Identity.parse(WORKER), "w")
LATER = tuple(schema.LEAN)
STINTS = ("deliveries", "opened_ms", "fresh_ms", "running_ms", "worked_ms", "excused_ms", "keeper")
NEW = ("awaited", "has_children", "input_offset", "pause_key", "begun", "launched", *STINTS)


def _written_then(task: Task) -> Program[None]:
    """As that release did."""
    names = [name for name in COLUMNS if name not in NEW]
    marks = ", ".join(f"${number}" for number in range(1, len(names) + 1))
    values = dict(zip(COLUMNS, task.values(), strict=True))
    yield Execute(f"INSERT INTO tasks ({', '.join(names)}) VALUES ({marks})", tuple(values[name] for name in names))


def _old(task_id: str, status: Status, **more: object) -> Task:
    task = Task(task_id, "t", "w", creator="ag::w::c::1", root_task_id=task_id, status=status)
    return task.changed({"created_ms": 1, "updated_ms": 1, "order_us": 1000, **more})


@pytest.fixture
async def reopened(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Opening]:
    """One that was written before, with `one` in a worker's hands, `two` waiting for it, and `three`, which ends with it."""
    known = migrations.MIGRATIONS["tasks"]
    at = known.index(LATER[0])
    held = {"assigned_to": WORKER, "holder": WORKER, "epoch": 1, "assigned_ms": 2, "started_ms": 3, "max_attempts": 3}
    wait = Wait(reason=pb.WAIT_REASON_DEPENDENCY, depends_on=("one",))
    waiting = {"wait": wait.to_json(), "paused_ms": 2, "assigned_to": WORKER, "epoch": 1, "root_task_id": "one"}

    def before() -> Program[None]:
        yield from _written_then(_old("one", Status.RUNNING, **held))
        yield from _written_then(_old("two", Status.WAITING_DEPENDENCY, **waiting))
        wish = pb.CreateTaskRequest(metadata={ON_PARENT_CANCELLED: CANCEL})
        yield from _written_then(
            _old("three", Status.PENDING, mode=Mode.POOL, parent_task_id="one", spec=kept_of(wish))
        )
        yield Execute("INSERT INTO task_payloads (task_id, payload) VALUES ($1, $2)", ("one", b"then"))
        yield Execute("INSERT INTO task_dependents (depends_on, task_id) VALUES ('one', 'two')")
        for name in ("one", "two"):
            yield Execute(
                "INSERT INTO task_attempts (task_id, epoch, worker, node, pushed, assigned_ms, started_ms) "
                "VALUES ($1, 1, $2, 'n', 1, 2, 3)",
                (name, WORKER),
            )

    with monkeypatch.context() as earlier:
        earlier.setitem(migrations.MIGRATIONS, "tasks", known[:at])
        async with engine.open("tasks") as opened:
            await opened.run(before)
    return lambda: engine.open("tasks")


async def _move(database: Database, task_id: str, move: Move, now_ms: int) -> Outcome:
    context = Context(now_ms, "n", TimeLimits(), shared=database.shared)
    return await database.run(lambda: operate(context, CALLER, Asked(task_id, move, "why")))


@pytest.mark.parametrize("engine", ["file", "postgres"], indirect=True)
async def test_what_waits_goes_on_and_what_was_given_is_known(reopened: Callable[[], Opening]) -> None:
    async with reopened() as opened:
        assert await opened.run(lambda: rows.payload_of("one")) == b"then"
        assert await opened.run(lambda: rows.payload_of("two")) == b""
        ended = await _move(opened, "one", Move.COMPLETE, 10)
        assert (ended.refusal, ended.task and ended.task.status) == ("", Status.COMPLETED)
        woken = await opened.run(lambda: rows.load("two"))
        assert woken is not None
        assert woken.status is Status.RUNNING

        failed = await _move(opened, "two", Move.FAIL, 20)
        assert failed.refusal == ""
        again = await opened.run(
            lambda: operate(
                Context(30, "n", TimeLimits(), shared=opened.shared),
                Caller(Identity.parse("ag::w::c::1"), "w"),
                Asked("two", Move.RETRY),
            )
        )
        assert again.refusal == ""
        attempts = "SELECT epoch, worker, started_ms, ended_ms, outcome FROM task_attempts WHERE task_id = 'two'"
        assert await opened.fetch(attempts) == [(1, WORKER, 10, 20, "failed")]


@pytest.mark.parametrize("engine", ["file", "postgres"], indirect=True)
async def test_children_from_before_end_with_their_parent(reopened: Callable[[], Opening]) -> None:
    async with reopened() as opened:
        cancelled = await _move(opened, "one", Move.CANCEL, 10)
        assert cancelled.work is not None
        for errand in cancelled.work.errands:
            await opened.run(lambda errand=errand: errand(Work(Context(20, "n", TimeLimits(), opened.shared))))
        child = await opened.run(lambda: rows.load("three"))
        assert child is not None
        assert child.status is Status.CANCELLED
        other = await opened.run(lambda: rows.load("two"))
        assert other is not None
        assert not other.has_children


@pytest.mark.parametrize("engine", ["file", "postgres"], indirect=True)
async def test_a_root_has_itself_and_what_is_below_it(reopened: Callable[[], Opening]) -> None:
    where, args = query.condition(pb.TaskFilter(root_task_id="one"), "w", "")
    async with reopened() as opened:
        page = await opened.read(lambda: query.list_page(where, args, 10))
        assert {task.task_id for task in page.tasks} == {"one", "two"}
        where, args = query.condition(pb.TaskFilter(root_task_id="two"), "w", "")
        assert (await opened.read(lambda: query.list_page(where, args, 10))).tasks == []


@pytest.mark.parametrize("engine", ["file", "postgres"], indirect=True)
async def test_what_a_creator_works_on_itself_is_known_as_its_own(reopened: Callable[[], Opening]) -> None:
    """Or it would run for ever when the creator does not come back."""
    async with reopened() as opened:
        for name in ("one", "two"):
            task = await opened.run(lambda name=name: rows.load(name))
            assert task is not None
            assert task.keeper == keeper_of(task) == WORKER


@pytest.mark.parametrize("engine", ["file", "postgres"], indirect=True)
async def test_a_key_from_before_finds_its_task(reopened: Callable[[], Opening]) -> None:
    """What was asked for with it then is not known."""
    context = Context(5, "n", TimeLimits())
    key = create.key_hash("w", "k")
    new = _old("new", Status.PENDING, mode=Mode.POOL)
    async with reopened() as opened:
        await opened.execute("INSERT INTO task_keys (key_hash, task_id, expires_ms) VALUES ($1, 'one', 100)", key)
        made = await opened.run(
            lambda: create.create(
                context, new, b"", key=key, request=b"?", offline=Offline.QUEUE, start=None, target=None, minted=None
            )
        )
        assert (made.task_id, made.problem) == ("one", "")
