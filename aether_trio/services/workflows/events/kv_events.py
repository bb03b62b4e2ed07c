"""Moves events of keys from the database of the keys to the outbox of the tasks.

    `kv_changes` ─▶ `task_outbox` ─▶ topic of the engine ─▶ intake.py, which knows the event's id
          └──────── deleted once the outbox has it

Whatever is killed in between, a row is moved again, and its event acts once by its `event_id`. The
outbox is read by the ids of the rows, which are never used twice: events of a key are in order.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import structlog
import trio

from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.topics import EVENT_INTAKE
from aether_trio.services.tasks.engine import Engine
from aether_trio.services.tasks.transaction.task_transaction import TaskTransaction
from aether_trio.services.workflows.documents.json_values import read_json
from aether_trio.services.workflows.events.taken_events import KEYS
from aether_trio.storage.base import Database, Execute, ExecuteMany, Program, Row
from aether_trio.storage.retry import retry_while_unavailable
from aether_trio.wire.delivery import delivery_prefix, delivery_suffix, encode_delivery
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.workflows")

PAGE: Final = 100
LOOK_S: Final = 5.0
"""For what another node has left, or a commit in doubt has written."""


class KeyEventMover:
    """Moves events of keys; `run` must run."""

    def __init__(self, state: Database, work: AutoResetEvent) -> None:
        """`work` is set when an event was written."""
        self._state = state
        self._work = work
        self.moved = 0

    async def run(self, engine: Engine) -> None:
        """Move events until cancelled."""
        while True:
            await retry_while_unavailable(partial(self.move_all, engine), "events of keys", logger)
            with trio.move_on_after(LOOK_S):
                await self._work.wait()

    async def move_all(self, engine: Engine) -> None:
        """Move all events that there are. Raises StorageUnavailable."""
        while rows := await self._state.fetch("SELECT id, payload FROM kv_changes ORDER BY id LIMIT $1", PAGE):
            await engine.perform(partial(_write, rows))
            await self._state.run(partial(_delete, [row[0] for row in rows]))
            self.moved += len(rows)


def _write(rows: list[Row], tx: TaskTransaction) -> Program[None]:
    for number, payload in rows:
        event = read_json(bytes(payload))
        workspace = event["workspace"]
        frame = encode_delivery(
            delivery_prefix(f"{KEYS}{workspace}"), bytes(payload), delivery_suffix(pb.EVENT, workspace)
        )
        yield Execute(
            "INSERT INTO task_outbox (task_id, number, node, topic, frame) VALUES ($1, $2, $3, $4, $5) "
            "ON CONFLICT (task_id, number) DO NOTHING",
            (f"kv {number:020d} {event['event_id']}", 0, tx.context.node, EVENT_INTAKE, frame),
        )
    tx.effects.outbox = True


def _delete(numbers: list[int]) -> Program[None]:
    yield ExecuteMany("DELETE FROM kv_changes WHERE id = $1", [(number,) for number in numbers])
