"""Rows and their tree are one: ids, times, hashes, and what retention keeps."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.model.access.merkle import EMPTY, Frontier, LeafRange, leaf_hash, verify_inclusion
from aether_trio.model.audit import TEXTS, EventType, audit_id, leaf_bytes
from aether_trio.services.audit import trees
from aether_trio.services.audit.checkpoints import SigningKey
from aether_trio.services.audit.trees import (
    COLUMNS,
    LEAF_HASH,
    TEXT_COLUMNS,
    AuditTree,
    TreeMissing,
    append,
    begin_tree,
    forget_page,
)
from aether_trio.storage.base import Database, Execute, Fetch, Program, Row
from tests.helpers.clocks import ManualClock
from tests.helpers.direct import Store
from tests.services.audit.conftest import event

SELECT = f"SELECT {', '.join(COLUMNS)} FROM audit_log ORDER BY audit_id"


async def rows_of(database: Database) -> list[dict[str, Any]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in await database.fetch(SELECT)]


def leaf_of(row: Row) -> bytes:
    return leaf_hash(leaf_bytes(row[1], row[2], row[3], row[TEXT_COLUMNS]))


async def frontier_of(database: Database, tree: AuditTree) -> Frontier:
    [(size, data)] = await database.fetch("SELECT size, frontier FROM audit_trees WHERE origin = $1", tree.origin)
    return Frontier.decode(size, data)


async def test_a_key_has_one_tree(database: Database, tree: AuditTree, key: SigningKey) -> None:
    again = await database.run(lambda: begin_tree("node-9", "another/origin", key.public_raw, 7))
    assert again == tree
    other = SigningKey.generate()
    second = await database.run(lambda: begin_tree("node-2", "aether-audit/node-2", other.public_raw, 7))
    assert (tree.number, second.number) == (0, 1)


async def test_rows_have_ids_times_hashes_and_the_name_of_their_node(database: Database, tree: AuditTree) -> None:
    assert await database.run(lambda: append(tree.origin, [event(1, at_ms=90), event(2, at_ms=500)], 100)) == [1, 2]
    assert await database.run(lambda: append(tree.origin, [event(3, gateway_id="other")], 50)) == [3]
    assert await database.run(lambda: append(tree.origin, [], 50)) == []
    found = await rows_of(database)
    # Never later than it was stored; a clock that runs backwards does not turn the order round.
    assert [(row["at_ms"], row["ts_ms"]) for row in found] == [(90, 100), (100, 100), (5, 100)]
    assert [row["gateway_id"] for row in found] == ["node-1", "node-1", "other"]
    assert [row["resource_id"] for row in found] == ["key-1", "key-2", "key-3"]
    stored = await database.fetch(SELECT)
    assert [row[LEAF_HASH] for row in stored] == [leaf_of(row) for row in stored]
    assert await frontier_of(database, tree) == EMPTY.extend([leaf_of(row) for row in stored])


async def test_a_change_that_fails_leaves_no_row(database: Database, tree: AuditTree) -> None:
    def change() -> Program[None]:
        yield from append(tree.origin, [event(1)], 100)
        raise RuntimeError("the change is refused after all")

    with pytest.raises(RuntimeError):
        await database.run(change)
    assert await rows_of(database) == []
    assert await frontier_of(database, tree) == EMPTY


async def test_two_writers_of_one_tree_come_one_after_another(database: Database, tree: AuditTree) -> None:
    """Batches and changes of one node; on PostgreSQL they are at the same time."""
    batches = database.separate_queue(locking=True)
    ids: list[int] = []

    async def write(by: Database, first: int) -> None:
        for number in range(first, first + 10):
            ids.extend(await by.run(lambda number=number: append(tree.origin, [event(number), event(number)], number)))  # type: ignore[misc]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, database, 0)
        nursery.start_soon(write, batches, 100)
    assert sorted(ids) == list(range(1, 41))
    stored = await database.fetch(SELECT)
    assert await frontier_of(database, tree) == EMPTY.extend([leaf_of(row) for row in stored])
    assert [row[2] for row in stored] == sorted(row[2] for row in stored)


async def test_texts_of_any_kind_are_stored(database: Database, tree: AuditTree) -> None:
    odd = event(1, resource_id="a\0b\ud800", workspace="ä" * 5000, error_message="\x1b[31m", metadata={"k": "\0\udfff"})
    await database.run(lambda: append(tree.origin, [odd], 100))
    [row] = await rows_of(database)
    assert row["resource_id"] == "a\ufffdb?"
    assert row["workspace"].endswith("…")
    assert row["metadata"] == '{"k":"\\u0000\\udfff"}'


async def test_a_tree_that_was_deleted_is_missed(database: Database, tree: AuditTree) -> None:
    await database.execute("DELETE FROM audit_trees")
    with pytest.raises(TreeMissing, match="was deleted"):
        await database.run(lambda: append(tree.origin, [event(1)], 100))
    assert await rows_of(database) == []


def signed(origin: str, size: int, root: bytes) -> str:
    return f"{origin} {size} {root.hex()}"


async def forget(database: Database, tree: AuditTree, before_ms: int, clock: ManualClock) -> int:
    queue = database.separate_queue(locking=True)
    return await queue.run(lambda: forget_page(tree.number, before_ms, tree, clock.now_ms(), signed, keeps_rows=False))


async def test_retention_keeps_a_frontier_so_that_the_rest_stays_provable(
    database: Database, tree: AuditTree, clock: ManualClock
) -> None:
    for number in range(20):
        await database.run(lambda number=number: append(tree.origin, [event(number)], 100 + number))  # type: ignore[misc]
    before = await frontier_of(database, tree)
    hashes = [row[LEAF_HASH] for row in await database.fetch(SELECT)]
    assert await forget(database, tree, 107, clock) == 7
    assert await forget(database, tree, 107, clock) == 0

    rows = await rows_of(database)
    assert [row["audit_id"] for row in rows] == list(range(8, 22))
    said = rows[-1]
    assert (said["operation"], said["event_type"], said["resource_id"]) == ("audit_retention", "admin", tree.origin)
    root = EMPTY.extend(hashes[:7]).root().hex()
    assert (
        said["metadata"]
        == f'{{"before_ms":107,"kept_from":7,"note":"{tree.origin} 7 {root}","root":"{root}","rows":7}}'
    )
    [(floor, data)] = await database.fetch("SELECT floor_size, floor_frontier FROM audit_trees")
    kept = LeafRange(Frontier.decode(floor, data), [row["leaf_hash"] for row in rows])
    assert kept.root(20) == before.root()
    assert verify_inclusion(hashes[11], 11, 20, kept.inclusion_proof(11, 20), before.root())


async def test_retention_goes_in_pages_and_stops_at_a_gap(
    database: Database, tree: AuditTree, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "RETENTION_PAGE", 3)
    await database.run(lambda: append(tree.origin, [event(number) for number in range(10)], 100))
    await database.execute("DELETE FROM audit_log WHERE audit_id = 6")
    assert [await forget(database, tree, 200, clock) for _ in range(3)] == [3, 2, 0]
    assert [row["audit_id"] for row in await rows_of(database)][:4] == [7, 8, 9, 10]


async def test_a_row_that_is_too_young_keeps_all_behind_it(
    database: Database, tree: AuditTree, clock: ManualClock
) -> None:
    await database.run(lambda: append(tree.origin, [event(1)], 300))
    await database.run(lambda: append(tree.origin, [event(2)], 100))
    assert await forget(database, tree, 200, clock) == 0


@settings(deadline=None)
@given(
    groups=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 9)), max_size=12),
    texts=st.lists(st.text(st.characters(exclude_categories=()), max_size=5), min_size=3, max_size=3),
)
def test_any_appends_give_the_trees_of_their_rows(
    store: Store, groups: Sequence[tuple[int, int, int]], texts: Sequence[str]
) -> None:
    """Three trees: ids without gaps, times in order, roots of the stored columns."""
    place = store.place()
    try:
        direct = place.direct("tasks")
        if direct.shared:
            direct.drive(lambda: trees.AUDIT_LOG.ensure(0, 1000))
        made = [
            direct.drive(lambda number=number: begin_tree(f"n{number}", f"t/{number}", bytes([number]), 1))  # type: ignore[misc]
            for number in range(3)
        ]
        counts = [0, 0, 0]
        for which, count, now_ms in groups:
            events = [event(n, at_ms=now_ms, resource_id=texts[n % 3], event_type=EventType.TASK) for n in range(count)]
            ids = direct.drive(lambda: append(made[which].origin, events, now_ms))  # noqa: B023
            assert ids == [audit_id(which, counts[which] + n) for n in range(count)]
            counts[which] += count

        def read() -> Program[tuple[list[Row], list[Row]]]:
            return (yield Fetch(SELECT)), (yield Fetch("SELECT tree, size, frontier FROM audit_trees ORDER BY tree"))

        rows, found = direct.read(read)
        for number, size, frontier in found:
            own = [row for row in rows if row[0] >> 40 == number]
            assert size == counts[number] == len(own)
            assert Frontier.decode(size, frontier) == EMPTY.extend([leaf_of(row) for row in own])
            assert [row[2] for row in own] == sorted(row[2] for row in own)
            assert all(row[1] <= row[2] for row in own)
    finally:
        place.close()


def test_columns_are_those_of_the_table(store: Store) -> None:
    place = store.place()
    try:

        def program() -> Program[None]:
            yield Execute(f"SELECT {', '.join(COLUMNS)} FROM audit_log WHERE audit_id = 0")

        place.direct("tasks").drive(program)
        assert COLUMNS[TEXT_COLUMNS] == TEXTS
        assert sha256().digest_size == 32
    finally:
        place.close()
