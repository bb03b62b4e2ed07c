"""Deferred writes (base.Deferred): on each engine as if they were done at once."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from aether_trio.storage.base import Database, Deferred, Execute, Fetch, FetchOne, Program
from aether_trio.storage.postgres.statements import DeferredWrites, PostgresJob, drive
from tests.helpers.engines import Engine
from tests.storage.programs import ids, insert, insert_then_raise

INSERT = "INSERT INTO items (id, data) VALUES ($1, $2)"
CHANGE = "UPDATE items SET data = $2 WHERE id = $1"


async def test_they_are_done_by_the_commit_in_their_order(database: Database) -> None:
    def program() -> Program[str]:
        assert (yield Deferred("items", INSERT, (1, b"a"))) is None
        yield Deferred("items", INSERT, (2, b"a"))
        yield Deferred("items", CHANGE, (1, b"b"))
        yield Deferred("items", INSERT, (3, b"a"))
        yield Deferred("items", CHANGE, (3, b"c"))
        yield Deferred("items", CHANGE, (1, b"d"))
        return "done"

    assert await database.run(program) == "done"
    assert await database.fetch("SELECT id, data FROM items ORDER BY id") == [(1, b"d"), (2, b"a"), (3, b"c")]


async def test_a_statement_that_names_their_table_sees_them(database: Database) -> None:
    def program() -> Program[list[Any]]:
        yield Deferred("items", INSERT, (1, b"a"))
        found = yield Fetch("SELECT id FROM items")
        yield Deferred("items", INSERT, (2, b"a"))
        count = yield Execute("UPDATE items SET data = $1", (b"b",))
        return [found, count]

    assert await database.run(program) == [[(1,)], 2]


async def test_one_that_fails_leaves_no_trace_and_harms_no_other(engine: Engine, database: Database) -> None:
    await database.run(insert(1))
    failed: list[Exception] = []

    def twice(number: int) -> Program[None]:
        yield Deferred("items", INSERT, (number, b"again"))
        yield Deferred("items", INSERT, (1, b"again"))

    async def run(number: int) -> None:
        try:
            await database.run(lambda: twice(number))
        except Exception as error:
            failed.append(error)

    def well(number: int) -> Program[None]:
        yield Deferred("items", INSERT, (number, b"well"))

    async with trio.open_nursery() as nursery:
        for number in range(10, 20):
            nursery.start_soon(run, number)
            nursery.start_soon(database.run, lambda number=number: well(number + 10))
    assert len(failed) == 10
    assert await ids(database) == [1, *range(20, 30)]
    await run(40)
    assert len(failed) == 11


async def test_a_program_that_raises_takes_them_with_it(database: Database) -> None:
    def program() -> Program[None]:
        yield Deferred("items", INSERT, (7, b""))
        yield from insert_then_raise(8, LookupError("no"))()

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(database.run, insert(number))
        with pytest.raises(LookupError):
            await database.run(program)
    assert await ids(database) == [0, 1, 2, 3, 4]


class Connection:
    def __init__(self) -> None:
        self.sent: list[tuple[str, object]] = []

    async def execute(self, sql: str, *args: object) -> str:
        self.sent.append((sql, args))
        return "UPDATE 1"

    async def executemany(self, sql: str, rows: object) -> None:
        self.sent.append((sql, rows))

    async def fetch(self, sql: str, *args: object) -> list[object]:
        self.sent.append((sql, args))
        return []


async def test_those_of_many_programs_are_one_round_trip() -> None:
    connection, deferred = Connection(), DeferredWrites()

    def program(number: int) -> Program[None]:
        yield Deferred("notes", "INSERT notes", (number,))
        yield Fetch("SELECT tasks")
        yield Deferred("others", "INSERT others", (number,))
        yield Deferred("notes", "UPDATE notes", (number,))

    jobs = [PostgresJob(lambda number=number: program(number)) for number in range(3)]  # type: ignore[misc]
    for job in jobs:
        await drive(connection, job, deferred)
    assert connection.sent == [("SELECT tasks", ())] * 3
    assert [job.rows for job in jobs] == [3, 3, 3]
    await deferred.write(connection)
    await deferred.write(connection)
    assert connection.sent[3:] == [
        ("INSERT notes", [(0,), (1,), (2,)]),
        ("INSERT others", [(0,), (1,), (2,)]),
        ("UPDATE notes", [(0,), (1,), (2,)]),
    ]


async def test_a_statement_does_not_wait_for_writes_that_leave_what_it_reads() -> None:
    connection, deferred = Connection(), DeferredWrites()

    def program(leaves: str) -> Program[None]:
        yield Deferred("tasks", "UPDATE tasks", (1,), leaves=leaves)
        yield FetchOne("SELECT waiting FROM tasks", (1,), reads="queues")

    for leaves in ("queues", "others", ""):
        await drive(connection, PostgresJob(lambda leaves=leaves: program(leaves)), deferred)  # type: ignore[misc]
        await deferred.write(connection)
    assert [sql for sql, _ in connection.sent] == [
        "SELECT waiting FROM tasks", "UPDATE tasks", *["UPDATE tasks", "SELECT waiting FROM tasks"] * 2
    ]  # fmt: skip


async def test_those_of_one_row_keep_their_order() -> None:
    connection, deferred = Connection(), DeferredWrites()
    for sql, *args in [("INSERT", 1), ("UPDATE", 1), ("INSERT", 2), ("DELETE", 1), ("INSERT", 1), ("UPDATE", 2)]:
        deferred.add(Deferred("notes", sql, args))
    await deferred.write(connection)
    assert connection.sent == [("INSERT", [[1], [2]]), ("UPDATE", [[1], [2]]), ("DELETE", (1,)), ("INSERT", (1,))]
