"""Finds out if a message without an answer was accepted, by a request behind it.

The protocol answers a send (except on the framed transport), a progress report and a workspace
switch only with a refusal, an ErrorResponse without an id. But an answer is a barrier: the gateway
answers a request when everything in front of it is settled. So behind such messages goes a request
that every participant may make (whether it is connected itself), and an ErrorResponse without an id
belongs to the first section of messages whose barrier has not been answered.

A section of one message is exact. Where many are written at once and no caller waits for one of
them they share a section. These are sends with a number, whose refusal says it ("send-17", an
extension of the gateway); it comes before the answer of their barrier.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from aether_trio.client.errors import AetherError, ConnectionLost, from_response
from aether_trio.wire.pb import aether_pb2 as pb

Settle: TypeAlias = Callable[[AetherError | None], None]
"""Called once with the outcome of a message: None if it was accepted, or the error."""


_NUMBERED: Final = "send-"
_DIGITS: Final = 19
"""Digits of the largest 64-bit number."""


class _BarrierSection:
    """Messages in front of one barrier request, whose answer confirms them."""

    __slots__ = ("error", "request_id", "waiting")

    def __init__(self, request_id: str, waiting: Sequence[tuple[int, Settle]]) -> None:
        self.request_id = request_id
        self.waiting = waiting  # each send's number, or 0 for another message, and callback
        self.error: AetherError | None = None


class Confirmations:
    """Matches refusals and barrier answers of one connection to unanswered messages."""

    def __init__(self, principal: pb.PrincipalRef) -> None:
        self._principal = principal
        self._sections: deque[_BarrierSection] = deque()
        self._together: list[tuple[int, Settle]] = []
        self._open_numbers: set[int] = set()
        self._refusals: dict[int, AetherError] = {}
        self._unguarded = False
        self._count = 0

    @property
    def open(self) -> bool:
        """Whether an answer to a barrier request is still to come."""
        return bool(self._sections)

    def plain(self) -> None:
        """Note that a message was written whose refusal no caller waits for."""
        self._unguarded = True

    def together(self, settle: Settle, number: int) -> None:
        """Note that send `number` was written; the next barrier request confirms it."""
        self._together.append((number, settle))
        self._open_numbers.add(number)
        self._unguarded = True

    def alone(self, message: bytes, settle: Settle, frame: Callable[[bytes], bytes], number: int = 0) -> bytes:
        """Return the bytes of a message followed by a barrier request for it alone."""
        parts = [self.guard(frame), message]
        if number:
            self._open_numbers.add(number)
        parts.append(frame(self._barrier([(number, settle)])))
        return b"".join(parts)

    def guard(self, frame: Callable[[bytes], bytes]) -> bytes:
        """Return the bytes of a barrier request for all messages since the last one."""
        if not self._unguarded:
            return b""
        waiting, self._together = self._together, []
        self._unguarded = False
        return frame(self._barrier(waiting))

    @property
    def shared(self) -> int:
        """How many written sends wait for the next barrier request."""
        return len(self._together)

    def _barrier(self, waiting: Sequence[tuple[int, Settle]]) -> bytes:
        self._count += 1
        request_id = f"barrier-{self._count}"
        self._sections.append(_BarrierSection(request_id, waiting))
        question = pb.ConnectionStatusRequest(principal=self._principal, request_id=request_id)
        return pb.UpstreamMessage(connection_status_request=question).SerializeToString()

    def refused(self, response: pb.ErrorResponse) -> bool:
        """Give an ErrorResponse without an id to the oldest unconfirmed message, if any."""
        section = self._sections[0] if self._sections else None
        if section is None or all(number for number, _ in section.waiting):
            return False
        if section.error is None:
            section.error = from_response(response)
        return True

    def refused_send(self, response: pb.ErrorResponse) -> bool:
        """Give an ErrorResponse with the number of a send to that send, if it waits."""
        if (number := _number(response.request_id)) not in self._open_numbers:
            return False
        self._refusals.setdefault(number, from_response(response))
        return True

    def answered(self, request_id: str) -> bool:
        """Settle the messages before an answered barrier request; False for another id."""
        if not any(section.request_id == request_id for section in self._sections):
            return False
        while True:
            section = self._sections.popleft()
            for number, settle in section.waiting:
                self._settle(number, settle, None if number else section.error)
            if section.request_id == request_id:
                return True

    def cut(self) -> None:
        """Fail all unconfirmed messages as in doubt: their connection was cut."""
        error = ConnectionLost("the connection was cut before it was confirmed", in_doubt=True)
        for section in self._sections:
            for number, settle in section.waiting:
                self._settle(number, settle, error if number else section.error or error)
        for number, settle in self._together:
            self._settle(number, settle, error)
        self._sections.clear()
        self._together.clear()

    def _settle(self, number: int, settle: Settle, otherwise: AetherError | None) -> None:
        self._open_numbers.discard(number)
        settle(self._refusals.pop(number, otherwise))


def _number(request_id: str) -> int:
    """Return N of the request id "send-N", or 0 for any other id."""
    text = request_id.removeprefix(_NUMBERED)
    # Python refuses to read thousands of them.
    plain = text.isascii() and text.isdigit() and len(text) <= _DIGITS
    return int(text) if plain and request_id.startswith(_NUMBERED) else 0
