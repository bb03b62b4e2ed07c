"""Answers clients' key-value requests (`kv_op`), and counts them."""

from __future__ import annotations

from aether_trio.model.clock import Clock
from aether_trio.services.kv.service import KvService
from aether_trio.session.session import Session
from aether_trio.telemetry.metrics import Metrics
from aether_trio.wire.pb import aether_pb2 as pb


class KvHandler:
    """Answers `kv_op` requests of sessions, and counts them by operation and scope."""

    def __init__(self, service: KvService, metrics: Metrics, clock: Clock) -> None:
        self._service = service
        self._metrics = metrics
        self._clock = clock

    async def handle(self, session: Session, op: pb.KVOperation) -> list[pb.DownstreamMessage]:
        """Perform one key-value operation within the reach of the session's credential."""
        started = self._clock.monotonic()
        answers = await self._service.handle(session.identity, op, session)
        operation, scope = _labels(op)
        succeeded = answers[0].WhichOneof("payload") == "kv" and answers[0].kv.success
        self._metrics.metered_kv_operations.add((session.workspace, operation))
        self._metrics.kv_operations.add((operation, scope, "ok" if succeeded else "error"))
        self._metrics.kv_operation_latency.observe(self._clock.monotonic() - started, (operation, scope))
        return answers


def _labels(op: pb.KVOperation) -> tuple[str, str]:
    """Return a request's operation and scope as labels; "UNKNOWN" for other numbers."""
    operations, scopes = pb.KVOperation.OpType, pb.KVOperation.Scope
    operation = operations.Name(op.op) if op.op in operations.values() else "UNKNOWN"
    scope = scopes.Name(op.scope) if op.scope in scopes.values() else "UNKNOWN"
    return operation, scope
