"""Joins and leaves in a group store what they would store one after another."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aether_trio.model.tasks import Mode, TaskRow
from aether_trio.model.tasks.timed_transitions import TimeLimits
from aether_trio.services.tasks.transaction.interface import Context
from aether_trio.services.tasks.transaction.session_batch import merge
from aether_trio.services.tasks.transaction.sessions import WorkerJoined, WorkerLeft
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.tasks.transaction.workers import Worker
from aether_trio.storage.base import Fetch, Program, Statement, single
from tests.helpers.direct import Direct, Store, caught

NOW_MS = 1_700_000_000_000
AGENTS = [f"ag::w::{implementation}::{number}" for implementation in "ij" for number in range(4)]
SERVICES = [f"sv::i::{number}" for number in range(2)]


@dataclass(frozen=True)
class Came:
    identity: str
    session: int
    back: bool


@dataclass(frozen=True)
class Went:
    identity: str
    session: int
    clean: bool


identities = st.sampled_from([*AGENTS, *SERVICES])
steps = st.lists(
    st.one_of(
        st.builds(Came, identities, st.integers(1, 3), st.booleans()),
        st.builds(Went, identities, st.integers(1, 3), st.booleans()),
    ),
    max_size=14,
)
queues = st.lists(st.sampled_from(["pool i", "pool j", *AGENTS, *SERVICES]), max_size=4)


def mutation_of(step: Came | Went) -> WorkerJoined | WorkerLeft:
    if isinstance(step, Went):
        return WorkerLeft(step.identity, f"s{step.session}", step.clean)
    kind, *_, implementation, _ = step.identity.split("::")
    workspace = "w" if kind == "ag" else ""
    worker = Worker(step.identity, f"s{step.session}", "n", workspace, implementation, True, 0, 2)
    return WorkerJoined(worker, step.back)


def task(number: int, queue: str) -> TaskRow:
    name = f"t-{number}"
    made = TaskRow(name, "work", "w", creator="ag::w::c::1", root_task_id=name)
    if queue.startswith("pool"):
        made.mode, made.target_implementation = Mode.POOL, queue[-1]
    else:
        made.mode, made.target = Mode.TARGETED, queue
    made.created_ms = made.updated_ms = made.pending_ms = NOW_MS
    made.order_us = NOW_MS * 1000 + number
    return made


def play(
    database: Direct, before: list[Came | Went], waiting: list[str], group: list[Came | Went], merged: bool
) -> None:
    """Write steps one by one, tasks that wait, and a group in one transaction."""

    def one_by_one(now_ms: int, mutations: list[WorkerJoined | WorkerLeft]) -> None:
        def program() -> Program[None]:
            tx = TaskTransaction(Context(now_ms, "n", TimeLimits()))
            for mutation in merge(mutations) if merged else mutations:
                yield from mutation(tx)

        database.drive(program)

    for number, step in enumerate(before):
        one_by_one(NOW_MS + number, [mutation_of(step)])
    for number, queue in enumerate(waiting):
        database.drive(
            lambda number=number, queue=queue: TaskTransaction(Context(NOW_MS, "n", TimeLimits())).create(
                task(number, queue), b""
            )
        )  # type: ignore[misc]
    one_by_one(NOW_MS + 1000, [mutation_of(step) for step in group])


def rows_of(database: Direct, sql: str) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = database.drive(lambda: single(Fetch(sql, ())))
    return found


@given(steps, queues, steps)
@example([Came(AGENTS[0], 1, False)], [], [Came(AGENTS[0], 2, True), Came(AGENTS[1], 1, False)])
@settings(max_examples=15)
def test_a_group_stores_what_single_mutations_do(
    store: Store, before: list[Came | Went], waiting: list[str], group: list[Came | Went]
) -> None:
    with closing(store.place()) as one, closing(store.place()) as other:
        check_a_group((one.direct("tasks"), other.direct("tasks")), before, waiting, group)


def check_a_group(
    databases: tuple[Direct, Direct], before: list[Came | Went], waiting: list[str], group: list[Came | Went]
) -> None:
    for database, merged in zip(databases, (False, True), strict=True):
        play(database, before, waiting, group, merged)
    for sql in (
        "SELECT identity, session_id, node, workspace, implementation, pooled, capacity, since_ms FROM task_workers ORDER BY identity",
        "SELECT identity, since_ms FROM task_memories ORDER BY identity",
        "SELECT count(*), sum(CASE WHEN queue = '' THEN 1 ELSE 0 END) FROM tasks",
    ):
        assert rows_of(databases[1], sql) == rows_of(databases[0], sql)
    held = dict(rows_of(databases[1], "SELECT holder, count(*) FROM tasks WHERE holder <> '' GROUP BY holder"))
    for identity, live, free, capacity in rows_of(
        databases[1], "SELECT identity, live, free, capacity FROM task_workers"
    ):
        assert live == held.get(identity, 0)
        assert free == int(live < capacity)  # type: ignore[operator]


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 64])
def test_a_group_of_any_size_is_a_few_statements(store: Store, count: int) -> None:
    joins = [mutation_of(Came(f"ag::w::i::{number}", 1, back=False)) for number in range(count)]

    statements: list[Statement] = []

    def program() -> Program[None]:
        tx = TaskTransaction(Context(NOW_MS, "n", TimeLimits()))
        for mutation in merge(joins):
            yield from caught(mutation(tx), statements)

    with closing(store.place()) as place:
        database = place.direct("tasks")
        database.drive(program)
        assert len(statements) <= 5
        assert rows_of(database, "SELECT count(*) FROM task_workers") == [(count,)]


def ended(identity: str, session: int, *, resumed: bool = False) -> list[WorkerJoined | WorkerLeft]:
    joined = mutation_of(Came(identity, session, back=resumed))
    assert isinstance(joined, WorkerJoined)
    joined.has_ended = lambda: True
    return [joined, mutation_of(Went(identity, session, clean=True))]


def test_sessions_that_ended_before_they_were_written_write_nothing() -> None:
    assert merge([one for number in range(5) for one in ended(AGENTS[0], number)]) == []


def test_a_session_that_may_have_joined_before_leaves(store: Store) -> None:
    before, waiting = [Came(AGENTS[0], 1, back=True), Came(AGENTS[1], 2, back=False)], [AGENTS[0]]
    with closing(store.place()) as place:
        database = place.direct("tasks")
        play(database, before, waiting, [], merged=False)

        def program() -> Program[None]:
            tx = TaskTransaction(Context(NOW_MS, "n", TimeLimits()))
            for mutation in merge([*ended(AGENTS[0], 1, resumed=True), *ended(AGENTS[1], 3)]):
                yield from mutation(tx)

        database.drive(program)
        assert rows_of(database, "SELECT identity, session_id FROM task_workers") == [(AGENTS[1], "s2")]
