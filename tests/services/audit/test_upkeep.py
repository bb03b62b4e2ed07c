"""Old rows go, and what stays can still be checked."""

from __future__ import annotations

from aether_trio.services.audit.checkpoints import SigningKey
from aether_trio.services.audit.heads import HeadSigner
from aether_trio.services.audit.trees import AUDIT_LOG, AuditTree, append
from aether_trio.services.audit.upkeep import DAY_MS, AuditUpkeep
from aether_trio.services.audit.writer import AuditPolicy, AuditWriter
from aether_trio.storage.base import Database
from tests.helpers.clocks import ManualClock
from tests.services.audit.conftest import event


async def test_rows_go_after_their_days_and_heads_stay_right(
    database: Database, clock: ManualClock, tree: AuditTree, key: SigningKey
) -> None:
    writer = AuditWriter(database, clock, tree, AuditPolicy(), first_batch=1, partition_ms=DAY_MS)
    signer = HeadSigner(database, clock, tree, key)
    upkeep = AuditUpkeep(database, clock, writer, signer, 10)
    for day in range(30):
        await writer.prepare()
        now_ms = clock.now_ms()
        await database.run(lambda: append(tree.origin, [event(day)], now_ms))  # noqa: B023
        assert await signer.sign() is not None
        clock.advance(DAY_MS)
        await upkeep.sweep()
        await signer.sign()
    rows = await database.fetch("SELECT resource_id, operation FROM audit_log ORDER BY audit_id")
    days = [int(name.removeprefix("key-")) for name, operation in rows if operation == "kv_put"]
    assert days == list(range(days[0], 30))
    assert 30 - 10 - 8 <= days[0] <= 20, "on PostgreSQL a row goes with its table, here one of a week or a day"
    assert any(operation == "audit_retention" for _, operation in rows)
    [(floor, size)] = await database.fetch("SELECT floor_size, size FROM audit_trees")
    assert size - floor == len(rows)
    assert signer.problem is None
    [(heads,)] = await database.fetch("SELECT COUNT(*) FROM audit_heads")
    assert heads >= 30
    if database.shared:
        parts = await database.read(AUDIT_LOG.partitions)
        assert all(one.upper_ms > clock.now_ms() - 11 * DAY_MS for one in parts)


async def test_rows_stay_for_ever_without_a_limit(
    database: Database, clock: ManualClock, tree: AuditTree, key: SigningKey
) -> None:
    writer = AuditWriter(database, clock, tree, AuditPolicy(), first_batch=1)
    upkeep = AuditUpkeep(database, clock, writer, HeadSigner(database, clock, tree, key), 0)
    await database.run(lambda: append(tree.origin, [event(1)], 5))
    clock.advance(1000 * DAY_MS)
    assert await upkeep.sweep() == 0
    assert await database.fetch("SELECT COUNT(*) FROM audit_log") == [(1,)]
