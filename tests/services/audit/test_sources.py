"""A log is read in one snapshot, by one process or several, with one result."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
import trio

from aether_trio.services.audit import sources
from aether_trio.services.audit.checkpoints import SigningKey
from aether_trio.services.audit.heads import HeadSigner
from aether_trio.services.audit.sources import StoredLog, open_postgres_log, open_sqlite_log
from aether_trio.services.audit.trees import AUDIT_LOG, append, begin_tree
from aether_trio.services.audit.verify import Verification
from aether_trio.storage.errors import StorageSetupError
from tests.helpers.clocks import ManualClock
from tests.helpers.engines import Engine, PostgresEngine
from tests.services.audit.conftest import WEEK_MS, event

Opened = Callable[[], AbstractContextManager[StoredLog]]


@pytest.fixture
def opened(engine: Engine, tmp_path: Path) -> Opened:
    """A log of 40 rows, with heads at 20 and 40."""
    clock = ManualClock()

    async def write() -> None:
        key = SigningKey.generate()
        async with engine.open("tasks") as database:
            if database.shared:
                await database.run(lambda: AUDIT_LOG.ensure(clock.now_ms(), WEEK_MS))
            tree = await database.run(lambda: begin_tree("n", "audit/n", key.public_raw, 1))
            signer = HeadSigner(database, clock, tree, key)
            for _ in range(2):
                rows = [event(number) for number in range(20)]
                await database.run(lambda: append(tree.origin, rows, clock.now_ms()))  # noqa: B023
                assert await signer.sign()

    trio.run(write)
    if isinstance(engine, PostgresEngine):
        return lambda: open_postgres_log(engine.server.dsn(), engine.schema)
    return lambda: open_sqlite_log(tmp_path / "tasks.db")


@pytest.mark.parametrize("several", [False, True])
def test_all_rows_are_read(opened: Opened, monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    monkeypatch.setattr(sources, "BLOCK", 7)
    if several:
        monkeypatch.setattr(sources, "FEW", 0)
        monkeypatch.setattr(sources, "processes", lambda: 2)
    with opened() as log:
        verification = Verification(log)
        assert list(verification.run()) == []
        assert (verification.rows, verification.heads) == (40, 2)
        assert [len(chunk) for chunk in log.rows(3, 20)] == [7, 7, 4]
        assert list(log.rows(100, 200)) == []
        assert log.tree_numbers() == [0]


def test_a_snapshot_does_not_see_what_comes_later(opened: Opened, engine: Engine) -> None:
    with opened() as log:
        assert len(next(iter(log.rows(1, 1)))) == 1
        engine.outside("DELETE FROM audit_log")
        assert sum(len(chunk) for chunk in log.rows(1, 100)) == 40
    with opened() as log:
        assert {finding.kind for finding in Verification(log).run()} == {"tail_cut"}


def test_bytes_that_are_no_text_are_a_changed_row(tmp_path: Path, opened: Opened, engine: Engine) -> None:
    if isinstance(engine, PostgresEngine):
        pytest.skip("PostgreSQL stores no such text")
    engine.outside("UPDATE audit_log SET actor_id = CAST(x'fffe' AS TEXT) WHERE audit_id = 7")
    with opened() as log:
        [found] = Verification(log).run()
    assert (found.kind, found.first) == ("row_changed", 7)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE t (a)")
    for name, why in (("missing.db", "there is no"), ("other.db", "no such table")):
        with pytest.raises(StorageSetupError, match=why), open_sqlite_log(tmp_path / name):
            pass
    with pytest.raises(StorageSetupError, match="cannot connect"), open_postgres_log("postgresql://127.0.0.1:1/x", "s"):
        pass
