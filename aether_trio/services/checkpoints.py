"""Saves and loads checkpoints of participants (reference: core.md section 7).

A checkpoint is data that a participant saves under its identity, for the time after a restart; no
other identity can read it. A refusal is `success=false` with a text in the typed reply, without an
ErrorResponse.

Unlike the reference, this gateway refuses a SAVE that could not be loaded again (clients refuse
messages over 4 MiB), and more than MAX_KEYS: LIST, which has no pages, fits one message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code
from aether_trio.model.identity import Identity
from aether_trio.model.limits import KIB, MIB, Limits
from aether_trio.session.session import Session
from aether_trio.storage.base import CommitUnknown, Database, Execute, Fetch, Program, StorageUnavailable, single
from aether_trio.storage.expiry import sweep, sweep_forever
from aether_trio.storage.outages import outage_text
from aether_trio.telemetry.metrics import Metrics
from aether_trio.wire.pb import aether_pb2 as pb

DEFAULT_KEY: Final = "default"
MAX_DATA_BYTES: Final = 4 * MIB - 64 * KIB  # one downstream message less its envelope
MAX_KEYS: Final = 10_000
MAX_KEY_BYTES: Final = 256  # times MAX_KEYS: 2.5 MiB
MAX_EXPIRES_MS: Final = 2**62  # a later end would overflow the column; it is as good as none
SMALL_DATA_BYTES: Final = 16 * KIB  # longer data blocks the loop longer than a thread costs
FEW_KEYS: Final = 64  # as many are counted in the loop
SWEEP_PAGE: Final = 100
SWEEP_INTERVAL_S: Final = 60.0  # only to give room back: expired checkpoints are invisible at once

Op = pb.CheckpointOperation


class CheckpointService:
    """Performs clients' checkpoint operations; a negative ttl means `default_ttl_s`."""

    def __init__(self, db: Database, clock: Clock, limits: Limits, *, default_ttl_s: int = 0) -> None:
        self._db = db
        self._clock = clock
        self.data_bytes = min(limits.checkpoint_bytes, MAX_DATA_BYTES)
        self._key_bytes = min(limits.checkpoint_key_bytes, MAX_KEY_BYTES)
        self._identity_bytes = limits.checkpoint_bytes_per_identity
        self._default_ttl_s = default_ttl_s

    async def handle(self, identity: Identity, op: pb.CheckpointOperation) -> pb.CheckpointResponse:
        """Perform one checkpoint operation; the reply tells every failure, none is raised."""
        try:
            return await self._respond(identity, op)
        except CommitUnknown as exc:
            return _failed(op, outage_text(exc))
        except StorageUnavailable as exc:
            return _failed(op, f"storage is unavailable, try again: {exc}")

    async def exists(self, identity: str, key: str) -> bool:
        """Whether `identity` has a checkpoint `key`. Raises StorageUnavailable."""
        rows = await self._db.fetch(_EXISTS, identity, (key or DEFAULT_KEY).encode(), self._clock.now_ms())
        return bool(rows)

    async def sweep_forever(self) -> None:
        """Delete expired checkpoints from time to time. Runs until cancelled."""
        await sweep_forever(self._db, self._clock, _sweep_page, SWEEP_PAGE, SWEEP_INTERVAL_S)

    async def sweep(self) -> int:
        """Delete the checkpoints that have expired; return how many."""
        return await sweep(self._db, self._clock, _sweep_page, SWEEP_PAGE)

    async def _respond(self, identity: Identity, op: pb.CheckpointOperation) -> pb.CheckpointResponse:
        key = (op.key or DEFAULT_KEY).encode()
        if len(key) > self._key_bytes:
            return _failed(op, f"the checkpoint key has {len(key)} bytes; at most {self._key_bytes} are allowed")
        now_ms = self._clock.now_ms()
        done = pb.CheckpointResponse(success=True, request_id=op.request_id)
        if op.op == Op.SAVE:
            return await self._save(identity, op, key, now_ms, done)
        if op.op == Op.LOAD:
            if found := await self._load(identity.text, key, now_ms):
                done.data, done.saved_at = found
        elif op.op == Op.DELETE:
            await self._db.run_small(partial(single, Execute(_DELETE, (identity.text, key))))
        elif op.op == Op.LIST:
            rows = await self._db.fetch(_LIST, identity.text, now_ms, MAX_KEYS)
            done.keys.extend(found.decode() for (found,) in rows)
        else:
            return _failed(op, f"unknown checkpoint operation {op.op}")
        return done

    async def _load(self, identity: str, key: bytes, now_ms: int) -> tuple[bytes, int] | None:
        """Return (data, when it was saved), short data without a change of thread."""
        args = (identity, key, now_ms, MAX_DATA_BYTES if self._db.shared else SMALL_DATA_BYTES)
        rows = await self._db.read_small(partial(single, Fetch(_LOAD_SHORT, args)))
        if rows and rows[0][0] is None:
            rows = await self._db.fetch(_LOAD, *args[:3])
        return rows[0] if rows else None

    async def _save(
        self, identity: Identity, op: pb.CheckpointOperation, key: bytes, now_ms: int, done: pb.CheckpointResponse
    ) -> pb.CheckpointResponse:
        if len(op.data) > self.data_bytes:
            return _failed(op, f"the checkpoint has {len(op.data)} bytes; at most {self.data_bytes} are allowed")
        ttl_s = self._default_ttl_s if op.ttl < 0 else op.ttl
        expires_ms = min(now_ms + ttl_s * 1000, MAX_EXPIRES_MS) if ttl_s > 0 else None
        save = partial(_save, identity.text, key, op.data, now_ms, expires_ms, self._identity_bytes)
        why = None
        if len(op.data) <= SMALL_DATA_BYTES and not self._db.shared:
            why = await self._db.run_small(partial(save, counted=FEW_KEYS))
        if why is None:
            why = await self._db.run(save)
        if why:
            return _failed(op, why)
        done.saved_at = now_ms // 1000
        return done


Handle = Callable[[Identity, pb.CheckpointOperation], Awaitable[pb.CheckpointResponse]]
OfTask = Callable[[Session, pb.CheckpointOperation, Handle, int], Awaitable[pb.CheckpointResponse | None]]


class CheckpointHandler:
    """Answers `checkpoint_op` requests of sessions and counts them.

    `of_task(session, op, handle, data_bytes)` answers operations on keys that belong to tasks. A
    LOAD that finds nothing is tried again for `former_owner(identity, key)`: the worker that
    saved the checkpoint with which a task was hibernated, if the client is the task's worker now.
    """

    def __init__(
        self,
        service: CheckpointService,
        metrics: Metrics,
        former_owner: Callable[[Identity, str], Awaitable[Identity | None]],
        of_task: OfTask,
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._former_owner = former_owner
        self._of_task = of_task

    async def handle(self, session: Session, op: pb.CheckpointOperation) -> list[pb.DownstreamMessage]:
        answer = await self._of_task(session, op, self._service.handle, self._service.data_bytes)
        if answer is None:
            answer = await self._handle(session, op)
        operation = Op.OpType.Name(op.op) if op.op in Op.OpType.values() else "UNKNOWN"
        self._metrics.checkpoint_operations.add((session.workspace, operation))
        return [pb.DownstreamMessage(checkpoint=answer)]

    async def _handle(self, session: Session, op: pb.CheckpointOperation) -> pb.CheckpointResponse:
        answer = await self._service.handle(session.identity, op)
        if op.op == Op.LOAD and answer.success and not answer.saved_at:
            owner = await self._former_owner(session.identity, op.key)
            if owner is not None:
                answer = await self._service.handle(owner, op)
        return answer


_LIVE: Final = "(expires_ms IS NULL OR expires_ms > "
_LOAD: Final = f"SELECT data, saved_s FROM checkpoints WHERE identity = $1 AND key = $2 AND {_LIVE}$3)"  # noqa: S608
_EXISTS: Final = f"SELECT 1 FROM checkpoints WHERE identity = $1 AND key = $2 AND {_LIVE}$3)"  # noqa: S608
_LIST: Final = f"SELECT key FROM checkpoints WHERE identity = $1 AND {_LIVE}$2) ORDER BY key LIMIT $3"  # noqa: S608
_LOAD_SHORT: Final = _LOAD.replace("data", "CASE WHEN length(data) <= $4 THEN data END", 1)
_DELETE: Final = "DELETE FROM checkpoints WHERE identity = $1 AND key = $2"
_COUNT_OTHERS: Final = f"SELECT count(*), COALESCE(SUM(size), 0) FROM (SELECT length(data) AS size FROM checkpoints WHERE identity = $1 AND key <> $2 AND {_LIVE}$3) LIMIT $4) AS others"  # noqa: S608
_UPSERT: Final = (
    "INSERT INTO checkpoints (identity, key, data, saved_s, expires_ms) VALUES ($1, $2, $3, $4, $5) "
    "ON CONFLICT (identity, key) DO UPDATE "
    "SET data = excluded.data, saved_s = excluded.saved_s, expires_ms = excluded.expires_ms"
)


def _save(
    identity: str,
    key: bytes,
    data: bytes,
    now_ms: int,
    expires_ms: int | None,
    most_bytes: int,
    counted: int = MAX_KEYS,
) -> Program[str | None]:
    """Write a checkpoint; return "", or why the identity's quota forbids it.

    At most `counted` other checkpoints are counted. Returns None, and has written nothing, if that
    is not enough to decide.
    """
    [[count, size]] = yield Fetch(_COUNT_OTHERS, (identity, key, now_ms, counted))
    if count == counted < MAX_KEYS:
        return None
    if count >= MAX_KEYS:
        return f"an identity keeps at most {MAX_KEYS} checkpoints; delete some first"
    if most_bytes and size + len(data) > most_bytes:
        return f"{Code.QUOTA}: an identity keeps at most {most_bytes} bytes of checkpoints; delete some first"
    yield Execute(_UPSERT, (identity, key, data, now_ms // 1000, expires_ms))
    return ""


def _sweep_page(now_ms: int, rows: int) -> Program[int]:
    count: int = yield Execute(
        "DELETE FROM checkpoints WHERE (identity, key) IN ("
        "SELECT identity, key FROM checkpoints WHERE expires_ms <= $1 ORDER BY expires_ms LIMIT $2)",
        (now_ms, rows),
    )
    return count


def _failed(op: pb.CheckpointOperation, text: str) -> pb.CheckpointResponse:
    return pb.CheckpointResponse(success=False, error=text, request_id=op.request_id)
