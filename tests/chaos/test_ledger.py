"""The database's own account tells a handover from a theft."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import trio

from aether_trio.storage.postgres.database import open_postgres
from chaos import ledger
from chaos.checks import one_holder, positions_go_forward, the_log_has_no_gaps
from chaos.history import History
from tests.cluster.nodes import LONG_S, Nodes, open_nodes
from tests.helpers.engines import PostgresEngine

IDENTITY = "ag::lab::x::1"


@dataclass
class Place:
    """A schema with every table that a node makes."""

    engine: PostgresEngine

    async def sql(self, text: str) -> list[list[str]]:
        said = await trio.to_thread.run_sync(self.engine.server.psql, f"SET search_path = {self.engine.schema}; {text}")
        return [line.split("|") for line in said.splitlines()]

    async def history(self) -> History:
        found = History()
        await ledger.read(self, found)
        return found


@pytest.fixture
async def place(postgres_engine: PostgresEngine) -> Place:
    async with open_postgres(postgres_engine.server.dsn(), schema=postgres_engine.schema) as server:
        for name in ("cluster", "state", "log"):
            await server.database(name)
    made = Place(postgres_engine)
    await ledger.install(made)
    return made


@pytest.fixture
async def nodes(place: Place) -> AsyncIterator[Nodes]:
    await place.sql("CREATE TABLE counters (identity TEXT PRIMARY KEY, n BIGINT); CREATE TABLE history (identity TEXT)")
    async with open_nodes(place.engine.server.dsn(), place.engine.schema) as opened:
        yield opened


async def test_a_handover_a_release_and_a_death_are_no_theft(place: Place, nodes: Nodes) -> None:
    with trio.fail_after(LONG_S):
        first, second = await nodes.start(), await nodes.start()
        claimed = await first.claim(IDENTITY)
        taken = await second.claim(IDENTITY, resume=claimed.lock.session_id)
        second.cluster.locks.release(taken.lock)
        await first.claim(IDENTITY)
        await nodes.stop(first)
        await second.claim(IDENTITY)
    history = await place.history()
    verdict = one_holder(history)
    assert verdict.violations == ()
    assert verdict.looked_at == 4
    assert [row.epoch for row in history.held] == sorted(row.epoch for row in history.held)


async def test_a_theft_is_seen(place: Place, nodes: Nodes) -> None:
    with trio.fail_after(LONG_S):
        first, second = await nodes.start(), await nodes.start()
        await first.claim(IDENTITY)
        other = second.cluster.node_id
        await place.sql(
            f"UPDATE identity_locks SET node_id = {other}, node_epoch = 1, session_id = 'thief', epoch = epoch + 1"
        )
    (violation,) = one_holder(await place.history()).violations
    assert "was taken from a holder that was alive" in violation


async def test_a_position_that_goes_back_and_a_hole_in_the_log_are_seen(place: Place) -> None:
    await place.sql(
        "INSERT INTO topics (id, name, floor_offset) OVERRIDING SYSTEM VALUE VALUES (1, 'ag::lab::x::1', 3)"
    )
    await place.sql("INSERT INTO cursors VALUES (1, 'reader', 5, 0)")
    await place.sql("UPDATE cursors SET msg_offset = 7")
    history = await place.history()
    assert positions_go_forward(history).violations == ()
    await place.sql("UPDATE cursors SET msg_offset = 6")
    assert positions_go_forward(await place.history()).violations == ("reader in ag::lab::x::1: 7 to 6",)
    await place.sql("CREATE TABLE any_time PARTITION OF messages DEFAULT")
    for offset in (1, 2, 3):
        key = 1 << ledger.OFFSET_BITS | offset
        await place.sql(
            f"INSERT INTO messages (message_key, ts_ms, topic_bytes, data) VALUES ({key}, aether_now_ms(), {offset}, '')"
        )
    assert the_log_has_no_gaps(await place.history()).violations == ()
    await place.sql(f"DELETE FROM messages WHERE message_key = {key - 1}")
    assert the_log_has_no_gaps(await place.history()).violations
