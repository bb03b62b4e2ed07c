"""Begins the log anew on a database that was restored from a backup.

A backup is older than what clients and workers have seen. So numbers that they know would be given
out again for something else: offsets of messages, and assignments of tasks. A copy that a backup
has made has no `log_identity` (storage/backup, and the commands that `aether backup` names for
PostgreSQL), and the first gateway on it

* makes a new identity, so that clients forget all offsets that they know (docs/wire.md, "HELLO");
* raises the numbers of all assignments by the seconds since 2020. Those that were made after the
  backup stay below the new ones, so a worker that still has one has lost it.

* lowers the cursor of the workflow engine to the end of its topic, if the copy of the log is older
  than that of the tasks: the numbers behind are given out again.

A new database has no identity either, and no assignments.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import Final

import structlog

from aether_trio.gateway.databases import Databases
from aether_trio.log.topic_log import IDENTITY_BYTES
from aether_trio.log.topic_sql import many_topic_facts
from aether_trio.model.clock import Clock
from aether_trio.model.topics import EVENT_INTAKE
from aether_trio.storage.base import Execute, Fetch, Program

logger = structlog.get_logger("aether.core")

EPOCH_S: Final = 1_577_836_800
"""2020-01-01: what is added stays small."""

_IDENTITY: Final = "SELECT identity FROM log_identity"
_MAKE: Final = "INSERT INTO log_identity (id, identity) VALUES (1, $1) ON CONFLICT (id) DO NOTHING"
_RAISED: Final = (
    "UPDATE tasks SET epoch = epoch + $1, launched = CASE WHEN launched > 0 THEN launched + $1 ELSE 0 END",
    "UPDATE task_attempts SET epoch = epoch + $1",
    "UPDATE task_tokens SET epoch = epoch + $1 WHERE epoch > 0",
)


async def begin_log(databases: Databases, clock: Clock) -> None:
    """Give a log that has no identity one. Raises StorageUnavailable."""
    if await databases.log.fetch(_IDENTITY):
        return
    identity, step = secrets.token_bytes(IDENTITY_BYTES), clock.now_ms() // 1000 - EPOCH_S
    is_restored = bool(await databases.log.fetch("SELECT id FROM topics LIMIT 1"))
    if databases.log.shared:
        # All databases are one, and another node may begin the log at this moment.
        tasks = await databases.tasks.run(partial(_begin_shared, identity, step))
    else:
        # In this order: a crash in between raises the numbers twice, and that is harmless.
        [events] = await databases.log.read(partial(many_topic_facts, [(EVENT_INTAKE, None)]))
        tasks = await databases.tasks.run(partial(_begin_tasks, step, events.tail))
        await databases.log.execute(_MAKE, identity)
    if is_restored or tasks:
        logger.warning(
            "these databases were restored from a backup: clients forget the offsets that they know, "
            "and assignments of tasks have new numbers",
            tasks=tasks,
        )


def _begin_shared(identity: bytes, step: int) -> Program[int]:
    made: int = yield Execute(_MAKE, (identity,))
    return (yield from _raise_assignments(step)) if made else 0


def _begin_tasks(step: int, events: int) -> Program[int]:
    yield Execute("UPDATE workflow_cursors SET position = $2 WHERE name = $1 AND position > $2", (EVENT_INTAKE, events))
    return (yield from _raise_assignments(step))


def _raise_assignments(step: int) -> Program[int]:
    """Raise the numbers of all assignments; return of how many tasks."""
    [[tasks]] = yield Fetch("SELECT count(*) FROM tasks")
    if tasks:
        for statement in _RAISED:
            yield Execute(statement, (step,))
    return int(tasks)
