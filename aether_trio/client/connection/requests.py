"""Matches the gateway's answers to a client's requests, by their ids or order.

A typed answer that says `success: false` and an ErrorResponse with the id both end a request; where
the protocol sends both, the first decides and the second is dropped, except for KV, whose typed
failure has no reason: the ErrorResponse behind it is waited for.
"""

from __future__ import annotations

import itertools
import secrets
from typing import Any, Final

import anyio

from aether_trio.client.connection.outgoing_messages import OutgoingMessage
from aether_trio.client.errors import AetherError, ConnectionLost, from_code, from_response, from_text
from aether_trio.client.operation_table import OPERATIONS, RESPONSES, operation_of
from aether_trio.wire.pb import aether_pb2 as pb

_REMEMBERED: Final = 256
_KV_REASON_WAIT_S: Final = 2.0


class PendingRequest:
    """A request that waits to be sent or answered; `written`: a connection sent it."""

    __slots__ = (
        "answer",
        "asked",
        "awaits",
        "data",
        "done",
        "error",
        "idempotent",
        "request_id",
        "upstream",
        "vague",
        "written",
    )

    def __init__(self, request_id: str, asked: str, data: bytes, *, idempotent: bool) -> None:
        self.request_id = request_id
        self.asked = asked
        self.awaits = OPERATIONS[asked].response
        self.data = data
        self.idempotent = idempotent
        self.written = False
        self.answer: Any = None
        self.error: AetherError | None = None
        self.vague: anyio.Event | None = None
        self.done = anyio.Event()
        self.upstream: OutgoingMessage | None = None

    def fail(self, error: AetherError) -> None:
        """End the request with `error`: it could not be sent."""
        self.error = error
        self.done.set()

    async def outcome(self, *, check: bool) -> Any:
        """Wait for the answer and return it; raise it if it is a failure."""
        await self.done.wait()
        if self.answer is None:
            assert self.error is not None
            raise self.error
        if check and (failure := failure_of(self.awaits, self.answer)) is not None:
            if self.awaits == "kv" and self.error is None:  # the reason comes right behind it
                self.vague = anyio.Event()
                with anyio.move_on_after(_KV_REASON_WAIT_S):
                    await self.vague.wait()
            raise self.error or failure
        return self.answer


def prepare(message: pb.UpstreamMessage, new_id: str) -> tuple[str, str]:
    """Return a request's oneof case and its id; fill in a new id if it has none."""
    operation = operation_of(message)
    if operation is None or not operation.response:
        case = message.WhichOneof("payload") or "an empty message"
        raise ValueError(f"{case} is never answered; send it with tell()")
    payload = getattr(message, operation.case)
    request_id = str(getattr(payload, operation.id_field))
    if not request_id:
        setattr(payload, operation.id_field, request_id := new_id)
    return operation.case, request_id


def failure_of(case: str, answer: Any) -> AetherError | None:
    """Return the error that a typed answer stands for; None if it reports none."""
    if getattr(answer, RESPONSES[case].success_field, True):
        return None
    text = str(getattr(answer, "error", "") or getattr(answer, "error_message", "") or getattr(answer, "message", ""))
    code = str(getattr(answer, "error_code", ""))
    if code:
        return from_code(code, text.removeprefix(f"{code}: "))
    return from_text(text or "the gateway refused it and gave no reason", "REFUSED")


class Requests:
    """All unanswered requests of a client, over all its connections."""

    def __init__(self) -> None:
        self._open: dict[str, PendingRequest] = {}
        self._answered: dict[str, PendingRequest] = {}
        self._prefix = secrets.token_hex(4)
        self._counter = itertools.count(1)
        self.made = 0
        """How many requests there were."""

    def new_id(self) -> str:
        """Return a request id that no other request of any client has."""
        return f"{self._prefix}-{next(self._counter)}"

    def add(self, pending: PendingRequest) -> None:
        """Expect the answer of a request. Raises ValueError if its id is in use."""
        if pending.request_id in self._open:
            raise ValueError(f"another request with the id {pending.request_id!r} has no answer yet; use a new id")
        self.made += 1
        self._open[pending.request_id] = pending

    def discard(self, pending: PendingRequest) -> None:
        """Move a request from the open ones to those answered or given up."""
        if self._open.get(pending.request_id) is pending:
            del self._open[pending.request_id]
            self._remember(pending)

    def __len__(self) -> int:
        """Return how many requests have no answer yet."""
        return len(self._open)

    def _remember(self, pending: PendingRequest) -> None:
        self._answered[pending.request_id] = pending
        if len(self._answered) > _REMEMBERED:
            del self._answered[next(iter(self._answered))]

    @property
    def in_flight(self) -> int:
        """How many requests were sent and have no answer yet."""
        return sum(pending.written for pending in self._open.values())

    def answer(self, case: str, payload: Any) -> bool:
        """Hand an answer to its caller. Return False when no request waits for it."""
        request_id = str(getattr(payload, "request_id", "") or getattr(payload, "client_request_id", ""))
        if request_id:
            pending = self._open.get(request_id)
            if pending is None or pending.awaits != case:
                return request_id in self._answered
        else:
            pending = next((one for one in self._open.values() if one.written and one.awaits == case), None)
            if pending is None:
                return False
        pending.answer = payload
        self._finish(pending)
        return True

    def fail(self, error: pb.ErrorResponse) -> bool:
        """Hand an ErrorResponse to its caller. Return False when no request has its id."""
        failure = from_response(error)
        pending = self._open.get(error.request_id)
        if pending is not None:
            pending.error = failure
            self._finish(pending)
            return True
        pending = self._answered.get(error.request_id)
        if pending is None:
            return False
        if pending.error is None:
            pending.error = failure
        if pending.vague is not None:
            pending.vague.set()
        return True

    def _finish(self, pending: PendingRequest) -> None:
        self.discard(pending)
        pending.done.set()

    def cut(self) -> list[PendingRequest]:
        """After a cut, return requests to send again, and fail the others in doubt."""
        again = []
        for pending in [one for one in self._open.values() if one.written]:
            if pending.idempotent:
                pending.written = False
                again.append(pending)
            else:
                text = f"the connection was cut before {pending.asked} was answered"
                pending.error = ConnectionLost(text, in_doubt=True)
                self._finish(pending)
        return again

    def close(self, error: AetherError) -> None:
        """Fail all open requests: sent ones as in doubt, the others with `error`."""
        for pending in list(self._open.values()):
            text = f"the connection ended before {pending.asked} was answered"
            pending.error = ConnectionLost(text, in_doubt=True) if pending.written else error
            self._finish(pending)
