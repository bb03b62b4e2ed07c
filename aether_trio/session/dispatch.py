"""The dispatch table: which handler answers which upstream message.

A handler is `async (session, payload) -> messages`, the payload being the oneof's value; it returns what to answer, in
order, and raises AetherError for a refusal that has no typed answer of its own. Every case of the protocol is in the
table (services/unimplemented.py answers for those to come), so nothing is met with silence.

Invariants: what a request's answer says comes after everything its connection sent before. The dispatcher holds each
answer back until the connection's last message is committed or refused (log/topic_log.py, `wait_settled`). No handler sees
a request with a field beyond its bound (bounds.py). What a handler writes is written in its session's name
(storage/session_writes.py), so the end of a session can be told from the end of what it has begun.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

import structlog

from aether_trio.log.topic_log import TopicLog
from aether_trio.model.errors import AetherError, Code
from aether_trio.session.bounds import excess_of
from aether_trio.session.session import Session
from aether_trio.storage.session_writes import CURRENT_SESSION_WRITES
from aether_trio.wire.errors import refusal_of
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.dispatch")

Handler: TypeAlias = Callable[[Session, Any], Awaitable[Sequence[pb.DownstreamMessage]]]

NO_ANSWER: tuple[pb.DownstreamMessage, ...] = ()


def request_id_of(payload: Any) -> str:
    """The id that correlates an answer with this request; "" for operations that have none.

    Where a message has both, `request_id` is what it is about (an authority request), and not who is asking.
    """
    for name in ("client_request_id", "request_id"):
        value = getattr(payload, name, "")
        if value:
            return str(value)
    return ""


class Dispatcher:
    """Answers requests by their oneof case. `counts` is the number of requests by case."""

    def __init__(self, log: TopicLog, handlers: Mapping[str, Handler]) -> None:
        self._log = log
        self._handlers = dict(handlers)
        self.counts = dict.fromkeys(handlers, 0)

    @property
    def cases(self) -> frozenset[str]:
        """The cases that have a handler."""
        return frozenset(self._handlers)

    async def refuse(self, session: Session, case: str | None, message: pb.UpstreamMessage, why: AetherError) -> None:
        """Answer a request that nothing is done about. Raises nothing but cancellation."""
        await self._log.wait_settled(session.sender.last_append)
        session.put_error(why, request_id_of(getattr(message, case)) if case is not None else "")

    async def dispatch(self, session: Session, case: str | None, message: pb.UpstreamMessage) -> None:
        """Answer one request. Raises nothing but cancellation."""
        handler = self._handlers.get(case) if case is not None else None
        if handler is None or case is None:
            await self._log.wait_settled(session.sender.last_append)
            session.put_error(AetherError(Code.NOT_IMPLEMENTED, "this message carries nothing that the gateway knows"))
            return
        self.counts[case] += 1
        payload = getattr(message, case)
        name = CURRENT_SESSION_WRITES.set(session.begin_request())
        try:
            await self._answer(session, case, handler, payload)
        finally:
            CURRENT_SESSION_WRITES.reset(name)
            session.answered()

    async def _answer(self, session: Session, case: str, handler: Handler, payload: Any) -> None:
        excess = excess_of(payload)
        if excess is not None:
            await self._log.wait_settled(session.sender.last_append)
            session.put(*refusal_of(case, payload, excess))
            return
        try:
            answers = await handler(session, payload)
        except AetherError as error:
            await self._log.wait_settled(session.sender.last_append)
            session.put_error(error, request_id_of(payload))
            return
        except Exception:
            # A mistake of ours costs its caller an answer, not its connection and its identity.
            logger.exception("handler failed", operation=case)
            await self._log.wait_settled(session.sender.last_append)
            session.put_error(AetherError(Code.INTERNAL, f"{case} failed inside the gateway"), request_id_of(payload))
            return
        if answers:
            await self._log.wait_settled(session.sender.last_append)
            session.put(*answers)
