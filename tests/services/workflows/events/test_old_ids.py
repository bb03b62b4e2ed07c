"""Old ids are deleted page by page, however many have grown old at once."""

from __future__ import annotations

import pytest
import trio

from aether_trio.services.workflows.events import old_ids
from aether_trio.services.workflows.events.old_ids import EVERY_MS, OldIds
from tests.helpers.core import World
from tests.services.agents.cast import SetClock

KEPT_MS = 1_000
TABLES = [("workflow_event_ids", "id"), ("workflow_webhook_ids", "hash")]


@pytest.mark.parametrize(("table", "column"), TABLES)
async def test_a_page_is_deleted_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch, table: str, column: str
) -> None:
    monkeypatch.setattr(old_ids, "PAGE", 10)
    clock = SetClock(trio.current_time)
    async with world.open(workflow={"engine": "off"}) as core:
        database = core.tasks.engine.database
        insert = f"INSERT INTO {table} ({column}, at_ms) VALUES ($1, $2)"
        now_ms = clock.now_ms()
        await database.executemany(insert, [(f"old {number}", now_ms - 5_000) for number in range(25)])
        await database.executemany(insert, [("new", now_ms)])
        old = OldIds(database, clock, table, column, kept_ms=KEPT_MS)
        left = []
        for _ in range(4):
            await old.forget()
            left.append((await database.fetch(f"SELECT COUNT(*) FROM {table}"))[0][0])
        assert left == [16, 6, 1, 1]
        clock.ahead_ms += KEPT_MS + 1
        await old.forget()
        assert await database.fetch(f"SELECT {column} FROM {table}") == [("new",)]
        clock.ahead_ms += EVERY_MS
        await old.forget()
        assert await database.fetch(f"SELECT {column} FROM {table}") == []
