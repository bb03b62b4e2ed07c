"""Dispatches each client request to the handler of its message type.

A handler is `async (session, payload) -> messages`; it raises RequestError for a refusal that has
no typed answer. A batch handler (BatchHandler) is for requests that are cheaper
together. Every case of the protocol is in the table (services/unimplemented.py answers those
without a service), so no request stays without an answer.

Invariants: the answer to a request is later than all that its connection sent before. The
dispatcher holds each answer back until the connection's last message is committed or refused
(`TopicLog.wait_settled`). No handler gets a request with a field beyond its bound
(request_bounds.py). The writes of a handler are counted for its session
(storage/session_writes.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias

import structlog

from aether_trio.log.topic_log import TopicLog
from aether_trio.model.errors import Code, RequestError
from aether_trio.session.request_bounds import excess_of
from aether_trio.session.session import Session
from aether_trio.storage.session_writes import CURRENT_SESSION_WRITES
from aether_trio.wire.error_response import error_response, refusal_of
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.dispatch")

Handler: TypeAlias = Callable[[Session, Any], Awaitable[Sequence[pb.DownstreamMessage]]]

BatchHandler: TypeAlias = Callable[[Session, Sequence[Any]], Awaitable[Sequence[Sequence[pb.DownstreamMessage]]]]
"""Handles the first of a session's requests, or more of them, in order; returns their answers.

The requests arrived one after another. When it raises, none of them was handled, and the first one
is to blame.
"""

DEFECT: Final = "the handler of a request raised; its client got ERR_INTERNAL"

NO_ANSWER: tuple[pb.DownstreamMessage, ...] = ()


def request_id_of(payload: Any) -> str:
    """Return the id by which a client matches the answer to this request; "" for none."""
    # The subject of an authority request is its `request_id`.
    for name in ("client_request_id", "request_id"):
        value = getattr(payload, name, "")
        if value:
            return str(value)
    return ""


class Dispatcher:
    """Calls the handler of each client request; `counts` has requests by operation."""

    def __init__(
        self, log: TopicLog, handlers: Mapping[str, Handler], batch_handlers: Mapping[str, BatchHandler] | None = None
    ) -> None:
        self._log = log
        self._handlers = dict(handlers)
        self._batch_handlers = dict(batch_handlers or {})
        self.counts = dict.fromkeys([*self._handlers, *self._batch_handlers], 0)

    @property
    def cases(self) -> frozenset[str]:
        """The request types (payload fields of UpstreamMessage) that have a handler."""
        return frozenset(self.counts)

    @property
    def batched_cases(self) -> frozenset[str]:
        """The request types that `dispatch_some` is for."""
        return frozenset(self._batch_handlers)

    async def refuse(self, session: Session, case: str | None, message: pb.UpstreamMessage, why: RequestError) -> None:
        """Answer a client's request with an error instead of calling its handler."""
        await self._log.wait_settled(session.sender.last_append)
        session.put_error(why, request_id_of(getattr(message, case)) if case is not None else "")

    async def dispatch(self, session: Session, case: str | None, message: pb.UpstreamMessage) -> None:
        """Answer a client's request by its handler. Raises only cancellation."""
        handler = self._handlers.get(case) if case is not None else None
        if handler is None or case is None:
            await self._log.wait_settled(session.sender.last_append)
            session.put_error(RequestError(Code.NOT_IMPLEMENTED, "this message has no payload that the gateway knows"))
            return
        self.counts[case] += 1
        payload = getattr(message, case)
        name = CURRENT_SESSION_WRITES.set(session.begin_request())
        try:
            await self._answer(session, case, handler, payload)
        finally:
            CURRENT_SESSION_WRITES.reset(name)
            session.answered()

    async def dispatch_some(self, session: Session, case: str, messages: Sequence[pb.UpstreamMessage]) -> int:
        """Answer the first of these requests, or more of them; return how many.

        They are of one type, of `batched_cases`. Raises only cancellation.
        """
        payloads: list[Any] = []
        for message in messages:
            payload = getattr(message, case)
            excess = excess_of(payload)
            if excess is not None:
                if payloads:
                    break
                self.counts[case] += 1
                await self._log.wait_settled(session.sender.last_append)
                session.put(*refusal_of(case, payload, excess))
                return 1
            payloads.append(payload)
        name = CURRENT_SESSION_WRITES.set(session.begin_request())
        try:
            return await self._answer_some(session, case, payloads)
        finally:
            CURRENT_SESSION_WRITES.reset(name)
            session.answered()

    async def _answer_some(self, session: Session, case: str, payloads: Sequence[Any]) -> int:
        try:
            answers = await self._batch_handlers[case](session, payloads)
        except RequestError as error:
            answers = [[error_response(error, request_id_of(payloads[0]))]]
        except Exception:
            logger.exception(DEFECT, operation=case)
            answers = [[_failed(case, payloads[0])]]
        self.counts[case] += len(answers)
        await self._log.wait_settled(session.sender.last_append)
        session.put(*chain.from_iterable(answers))
        return len(answers)

    async def _answer(self, session: Session, case: str, handler: Handler, payload: Any) -> None:
        excess = excess_of(payload)
        if excess is not None:
            await self._log.wait_settled(session.sender.last_append)
            session.put(*refusal_of(case, payload, excess))
            return
        try:
            answers = await handler(session, payload)
        except RequestError as error:
            await self._log.wait_settled(session.sender.last_append)
            session.put_error(error, request_id_of(payload))
            return
        except Exception:
            logger.exception(DEFECT, operation=case)
            answers = [_failed(case, payload)]
        if answers:
            await self._log.wait_settled(session.sender.last_append)
            session.put(*answers)


def _failed(case: str, payload: Any) -> pb.DownstreamMessage:
    """Answer a request whose handler raised.

    A defect of the gateway costs the client an answer, not its connection and its identity.
    """
    return error_response(RequestError(Code.INTERNAL, f"{case} failed inside the gateway"), request_id_of(payload))
