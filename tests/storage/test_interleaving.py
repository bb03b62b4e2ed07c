"""Programs with keys (Database.run_keyed): as if one ran after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio

from aether_trio.storage.base import Alone, Database, Deferred, Execute, Fetch, FetchOne, MissedWriteError, Program
from aether_trio.storage.postgres.interleaving import drive_interleaved, in_parts
from aether_trio.storage.postgres.statements import DeferredWrites, PostgresJob
from tests.helpers.engines import PostgresEngine
from tests.storage.programs import CREATE, insert

READ = "SELECT id, data FROM items WHERE id = $1"
WRITE = "UPDATE items SET data = $2 WHERE id = $1 RETURNING id"


def append(number: int, text: bytes) -> Callable[[], Program[bytes]]:
    """Append text to a row, in two steps that both read."""

    def program() -> Program[bytes]:
        [(_, first)] = yield FetchOne(READ, (number,))
        yield Deferred("items", WRITE, (number, first + text), returns_row=True)
        [(_, second)] = yield FetchOne(READ, (number,))
        assert second == first + text
        return second

    return program


async def test_each_sees_its_row_as_those_with_its_key_have_left_it(database: Database) -> None:
    for number in range(10):
        await database.run(insert(number))
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            for number in range(10):
                nursery.start_soon(database.run_keyed, append(number, b"x"), str(number))
    assert await database.fetch("SELECT id, data FROM items ORDER BY id") == [(n, b"xxxxx") for n in range(10)]


async def test_a_row_that_is_missing_is_no_row(database: Database) -> None:
    await database.run(insert(1, b"a"))
    await database.run(insert(3, b"c"))
    found: dict[int, Any] = {}

    def look(number: int) -> Program[None]:
        found[number] = yield FetchOne(READ, (number,))

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(database.run_keyed, lambda number=number: look(number), str(number))
    assert found == {0: [], 1: [(1, b"a")], 2: [], 3: [(3, b"c")]}


async def test_one_that_raises_leaves_no_trace_and_harms_no_other(database: Database) -> None:
    for number in range(6):
        await database.run(insert(number))
    failed = []

    def bad(number: int) -> Program[None]:
        yield from append(number, b"bad")()
        raise LookupError

    async def run_bad(number: int) -> None:
        with pytest.raises(LookupError):
            await database.run_keyed(lambda: bad(number), str(number))
        failed.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(run_bad, number)
            nursery.start_soon(database.run_keyed, append(number + 3, b"good"), str(number + 3))
    assert sorted(failed) == [0, 1, 2]
    assert [data for _, data in await database.fetch("SELECT id, data FROM items ORDER BY id")] == [b""] * 3 + [
        b"good"
    ] * 3


async def test_a_deferred_write_that_misses_its_row_fails_its_program(postgres_engine: PostgresEngine) -> None:
    def misses() -> Program[None]:
        yield Deferred("items", WRITE, (7, b"x"), returns_row=True)

    async with postgres_engine.open() as database:
        await database.execute(CREATE)
        await database.run(insert(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.run_keyed, append(1, b"good"), "1")
            with pytest.raises(MissedWriteError):
                await database.run_keyed(misses, "7")
        assert await database.fetch("SELECT id, data FROM items") == [(1, b"good")]


class Connection:
    """Counts round trips, and has the rows 0 to 9."""

    def __init__(self) -> None:
        self.rows = dict.fromkeys(range(10), b"")
        self.trips: list[str] = []

    async def fetchmany(self, sql: str, args: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        self.trips.append(sql)
        if sql == WRITE:
            self.rows.update(args)
        return [(number, self.rows[number]) for number, *_ in args if number in self.rows]

    async def execute(self, sql: str, *_: Any) -> str:
        self.trips.append(sql)
        return "DELETE 0"

    async def fetch(self, sql: str, *_: Any) -> list[Any]:
        self.trips.append(sql)
        return []


async def drive_all(connection: Connection, jobs: Sequence[PostgresJob]) -> None:
    deferred = DeferredWrites()
    for part in in_parts(jobs):
        await drive_interleaved(connection, part, deferred)
    await deferred.write(connection)


async def test_they_share_round_trips() -> None:
    connection = Connection()
    jobs = [PostgresJob(append(number, b"x"), str(number)) for number in range(10)]
    await drive_all(connection, jobs)
    assert connection.trips == [READ, WRITE, READ]
    assert [job.value for job in jobs] == [b"x"] * 10


async def test_one_that_asks_for_it_runs_after_the_others() -> None:
    connection = Connection()
    runs: list[int] = []

    def tied(number: int) -> Program[None]:
        runs.append(number)
        yield FetchOne(READ, (number,))
        yield Alone()
        runs.append(-number)
        yield Execute("DELETE", ())

    def other() -> Program[None]:
        yield FetchOne(READ, (5,))
        runs.append(5)
        yield Fetch("SELECT", ())

    jobs = [
        PostgresJob(lambda: tied(1), "1"),
        PostgresJob(lambda: tied(2), "2"),
        PostgresJob(other, "5"),
    ]
    await drive_all(connection, jobs)
    assert runs == [1, 2, 5, 1, -1, 2, -2]
    assert connection.trips[:2] == [READ, "SELECT"]


def test_a_program_without_a_key_or_with_the_same_key_is_no_company() -> None:
    def program() -> Program[None]:
        yield Execute("", ())

    jobs = [PostgresJob(program, key) for key in ("a", "b", "a", "c", "", "", "d", "e", "")]
    assert ["".join(job.key or "-" for job in part) for part in in_parts(jobs)] == ["ab", "ac", "-", "-", "de", "-"]
    assert list(in_parts([])) == []


async def test_what_is_late_waits_until_all_others_have_gone_on() -> None:
    connection = Connection()
    order: list[str] = []

    def soon(name: str, number: int, times: int) -> Program[None]:
        for _ in range(times):
            yield FetchOne(READ, (number,))
        order.append(name)

    def late(name: str, number: int) -> Program[None]:
        yield FetchOne(WRITE, (number, b"x"), late=True)
        order.append(name)
        yield FetchOne(READ, (number,))

    jobs = [
        PostgresJob(lambda: late("late", 1), "1"),
        PostgresJob(lambda: soon("twice", 2, 2), "2"),
        PostgresJob(lambda: late("also late", 3), "3"),
        PostgresJob(lambda: soon("once", 4, 1), "4"),
    ]
    await drive_all(connection, jobs)
    assert order == ["once", "twice", "late", "also late"]
    assert connection.trips == [READ, READ, WRITE, READ]


@pytest.mark.parametrize("own", [True, False])
async def test_a_read_of_its_own_row_waits_for_no_write_of_others(own: bool) -> None:
    def write(number: int) -> Program[None]:
        yield Deferred("items", WRITE, (number, b"x"), returns_row=True)

    def read(number: int) -> Program[bytes]:
        data: bytes
        [(_, data)] = yield FetchOne(READ, (number,), own=own)
        return data

    def again(number: int) -> Program[bytes]:
        yield from read(number)
        yield from write(number)
        return (yield from read(number))

    async def driven(*programs: tuple[Callable[[int], Program[Any]], int]) -> tuple[list[str], list[Any]]:
        connection = Connection()
        jobs = [PostgresJob(lambda make=make, at=at: make(at), str(at)) for make, at in programs]  # type: ignore[misc]
        await drive_all(connection, jobs)
        return connection.trips, [job.value for job in jobs]

    assert await driven((write, 1), (read, 2)) == ([READ, WRITE] if own else [WRITE, READ], [None, b""])
    # Nor does it overlook its own writes, or those of programs that have ended before.
    assert await driven((again, 1), (again, 2)) == ([READ, WRITE, READ], [b"x", b"x"])
    assert await driven((write, 1), (read, 1), (read, 2)) == ([WRITE, READ], [None, b"x", b""])


def test_a_program_with_two_keys_keeps_company_with_neither() -> None:
    def program() -> Program[None]:
        yield Execute("", ())

    keys = [("a", "E"), ("b", ""), ("c", "E"), ("E", ""), ("d", "F"), ("F", "")]
    jobs = [PostgresJob(program, key, None, also) for key, also in keys]
    assert ["".join(job.key for job in part) for part in in_parts(jobs)] == ["ab", "c", "Ed", "F"]
