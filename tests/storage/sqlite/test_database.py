"""What only SQLite promises: its files and its threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.sqlite.database import SqliteDatabase, open_sqlite
from aether_trio.storage.sqlite.wal import CHECK_GROUPS
from tests.storage.programs import CREATE, ids, insert


async def test_a_file_and_no_file_take_many_groups_past_a_checkpoint(sqlite_database: SqliteDatabase) -> None:
    """After CHECK_GROUPS commits the log's size is read; memory has no log."""
    before = sqlite_database.statistics().groups
    count = 2 * CHECK_GROUPS + 1
    for number in range(count):
        await sqlite_database.run(insert(number))
    after = sqlite_database.statistics()
    assert after.groups - before == count
    assert not after.failing
    assert after.last_error == ""
    assert await ids(sqlite_database) == list(range(count))


async def test_a_clean_close_leaves_no_write_ahead_log(path: Path) -> None:
    async with open_sqlite(path) as database:
        await database.execute(CREATE)
        assert Path(f"{path}-wal").stat().st_size > 0
    assert not Path(f"{path}-wal").exists()


@pytest.mark.parametrize("way", ["run", "run_small"])
async def test_a_defect_of_the_engine_answers_its_callers(
    file_database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    assert file_database._writer is not None
    monkeypatch.setattr(file_database._writer._groups, "_attempt", lambda *_args, **_named: 1 / 0)
    with pytest.raises(StorageUnavailable, match="division"):
        await getattr(file_database, way)(insert(1))
    monkeypatch.undo()
    await getattr(file_database, way)(insert(1))
