"""Deferred writes of a program that are one statement, once they have come often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from aether_trio.storage.base import Database, Deferred, MissedWriteError, Program, Value
from aether_trio.storage.postgres.merged_writes import COMMON, MOST_ROWS, WriteMerger, in_batches
from aether_trio.storage.postgres.statements import DeferredWrites, PostgresJob
from tests.helpers.engines import PostgresEngine

INSERT = "INSERT INTO items (id, data) VALUES ($1, $2)"
UPSERT = f"{INSERT} ON CONFLICT (id) DO UPDATE SET data = excluded.data"
CHANGE = "UPDATE items SET data = $2 WHERE id = $1 RETURNING 1"
NOTE = "INSERT INTO notes (item, text) VALUES ($1, $2)"
PART = "UPDATE parts SET data = $3 WHERE item = $1 AND part = $2"


def item(sql: str, number: int, data: bytes = b"", **more: Any) -> Deferred:
    return Deferred("items", sql, (number, data), **more)


def note(number: int, text: str = "") -> Deferred:
    return Deferred("notes", NOTE, (number, text))


def merged(*writes: Deferred) -> list[tuple[str, Sequence[Value], tuple[int, ...]]] | None:
    """Merge the writes of a program that has come often."""
    merger = WriteMerger()
    for _ in range(COMMON - 1):
        assert merger.merge(in_batches(writes)) is None
    found = merger.merge(in_batches(writes))
    return None if found is None else [tuple(one) for one in found]


def test_writes_of_different_rows_are_one_statement() -> None:
    found = merged(item(INSERT, 1, b"a"), note(1, "one"), item(CHANGE, 2, b"b", returns_row=True))
    assert found == [
        (
            (
                f"WITH w1 AS ({INSERT}), w2 AS (INSERT INTO notes (item, text) VALUES ($3, $4)), w3 AS (UPDATE items "
                "SET data = $6 WHERE id = $5 RETURNING 1) SELECT (SELECT COUNT(*) FROM w3)"
            ),
            [1, b"a", 1, "one", 2, b"b"],
            (1,),
        )
    ]


def test_rows_of_one_insert_are_one_part_of_it_in_their_order() -> None:
    found = merged(note(1, "one"), note(1, "two"), item(UPSERT, 1), item(UPSERT, 2))
    assert found == [
        (
            (
                "WITH w1 AS (INSERT INTO notes (item, text) VALUES ($1, $2), ($3, $4)), w2 AS (INSERT INTO items "
                "(id, data) VALUES ($5, $6), ($7, $8) ON CONFLICT (id) DO UPDATE SET data = excluded.data) SELECT 1"
            ),
            [1, "one", 1, "two", 1, b"", 2, b""],
            (),
        )
    ]


def test_a_further_write_of_a_row_comes_behind_the_first() -> None:
    found = merged(item(INSERT, 1, b"a"), note(1), item(CHANGE, 1, b"b"), note(2))
    assert found is not None
    assert [("UPDATE" in sql, "notes" in sql) for sql, _, _ in found] == [(False, True), (True, False)]


def test_an_update_of_two_rows_is_two_parts() -> None:
    found = merged(item(CHANGE, 1, returns_row=True), item(CHANGE, 2, returns_row=True))
    assert found is not None
    assert [counts for _, _, counts in found] == [(1, 1)]


def test_the_key_names_the_row() -> None:
    parts = [Deferred("parts", PART, (1, part, b""), key=2) for part in (1, 2)]
    other = Deferred("parts", PART.replace("data", "state"), (1, 2, b""), key=2)
    one = merged(parts[0], other)
    assert one is not None
    assert len(one) == 1
    two = merged(parts[1], other)
    assert two is not None
    assert len(two) == 2


@pytest.mark.parametrize(
    "writes",
    [
        [item(UPSERT, 1, b"a"), item(UPSERT, 1, b"b"), note(1)],  # the second would meet the first
        [note(number) for number in range(MOST_ROWS + 1)],
        [item(INSERT, 1), Deferred("notes", f"{NOTE} /* {'x' * 16_000} */", (1, ""))],
    ],
)
def test_what_cannot_be_merged(writes: list[Deferred]) -> None:
    merger = WriteMerger()
    assert [merger.merge(in_batches(writes)) for _ in range(COMMON + 1)] == [None] * (COMMON + 1)


class Connection:
    """Notes what is sent to it."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def fetchmany(self, sql: str, rows: Sequence[Sequence[Any]]) -> list[tuple[int, ...]]:
        self.sent.append(f"{len(rows)} {sql[:6]}")
        return [(1,) for _ in rows]

    async def execute(self, sql: str, *_: Any) -> str:
        self.sent.append(f"1 {sql[:6]}")
        return "INSERT 0 1"

    async def executemany(self, sql: str, rows: Sequence[Any]) -> None:
        self.sent.append(f"{len(rows)} {sql[:6]}")


async def sent(merger: WriteMerger, *programs: Sequence[Deferred]) -> list[str]:
    connection, deferred = Connection(), DeferredWrites(merger)
    for number in range(2):  # their writes are mixed, as when programs run interleaved
        for program in programs:
            for write in program[number::2]:
                deferred.add(write, program)
    await deferred.write(connection)
    return connection.sent


async def test_programs_of_one_kind_share_a_round_trip() -> None:
    merger = WriteMerger()
    kinds = [(item(INSERT, number), note(number)) for number in range(3)]
    another = item(CHANGE, 7, returns_row=True), note(7)
    for _ in range(COMMON):
        await sent(merger, kinds[0])
        await sent(merger, another)
    assert await sent(merger, *kinds, another) == ["3 WITH w", "1 WITH w"]


async def test_programs_that_write_one_row_keep_their_order() -> None:
    merger = WriteMerger()
    first, second = (item(INSERT, 1), note(1)), (item(CHANGE, 1, returns_row=True), note(2))
    for _ in range(COMMON):
        await sent(merger, first)
        await sent(merger, second)
    assert await sent(merger, first) == ["1 WITH w"]
    assert await sent(merger, first, second) == ["1 INSERT", "1 UPDATE", "2 INSERT"]


def program(number: int, *, there: bool = True) -> Program[None]:
    yield Deferred("items", INSERT, (number, b"new"))
    yield note(number, "one")
    yield note(number, "two")
    yield Deferred("items", CHANGE, (0 if there else -1, b"%d" % number), returns_row=True)
    yield Deferred("items", CHANGE, (number, b"changed"), returns_row=True)


@pytest.fixture
async def tables(postgres_engine: PostgresEngine) -> Any:
    async with postgres_engine.open() as database:
        await database.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, data BYTEA)")
        await database.execute("CREATE TABLE notes (id SERIAL PRIMARY KEY, item INTEGER, text TEXT)")
        await database.execute(INSERT, 0, b"")
        yield database


async def test_they_write_what_the_single_statements_write(tables: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    merges: list[bool] = []
    merge = WriteMerger.merge

    def counted(merger: WriteMerger, batches: Any) -> Any:
        found = merge(merger, batches)
        merges.append(found is not None)
        return found

    monkeypatch.setattr(WriteMerger, "merge", counted)
    for number in range(1, 8):
        await tables.run_keyed(lambda number=number: program(number), str(number))  # type: ignore[misc]
    assert merges == [False] * (COMMON - 1) + [True] * (8 - COMMON)
    found = await tables.fetch("SELECT id, data FROM items ORDER BY id")
    assert found == [(0, b"7"), *((number, b"changed") for number in range(1, 8))]
    texts = [(number, text) for number in range(1, 8) for text in ("one", "two")]
    assert await tables.fetch("SELECT item, text FROM notes ORDER BY id") == texts


async def test_a_row_that_is_missed_fails_its_program_alone(tables: Database) -> None:
    for number in range(1, 5):
        await tables.run(lambda number=number: program(number))  # type: ignore[misc]
    with pytest.raises(MissedWriteError):
        await tables.run(lambda: program(5, there=False))
    assert await tables.fetch("SELECT COUNT(*) FROM items") == [(5,)]


def test_a_job_names_its_writes() -> None:
    """Jobs are what tells programs apart, so they are not equal."""
    assert len({PostgresJob(lambda: program(1)), PostgresJob(lambda: program(1))}) == 2
