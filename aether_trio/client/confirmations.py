"""Finding out what became of what has no answer: a request right behind it, whose answer comes after any refusal of it.

The protocol answers a send (except on the framed lane), a progress report and a workspace switch with nothing when it is well,
and with an ErrorResponse without an id when it is not. But an answer is a barrier: the gateway answers a request when
everything in front of it is settled. So behind such messages goes a request that everybody may make (whether oneself is
connected), and the order says the rest: what was written is a row of sections, each ended by its barrier, and an
ErrorResponse without an id belongs to the first section whose barrier has not been answered.

A section of one message is exact. Where many are written at once and nobody waits for one of them they share a section,
and a refusal in it is known, but not whose: then all of them are told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from aether_trio.client.errors import AetherError, ConnectionLost, from_code
from aether_trio.wire.pb import aether_pb2 as pb

__all__ = ["Confirmations", "Settle"]

Settle: TypeAlias = Callable[[AetherError | None], None]
"""Called once, with None when all is well."""


class _Section:
    __slots__ = ("error", "request_id", "settles")

    def __init__(self, request_id: str, settles: Sequence[Settle]) -> None:
        self.request_id = request_id
        self.settles = settles
        self.error: AetherError | None = None


class Confirmations:
    """Of one connection. `principal` is who we are."""

    def __init__(self, principal: pb.PrincipalRef) -> None:
        self._principal = principal
        self._sections: deque[_Section] = deque()
        self._together: list[Settle] = []
        self._unguarded = False
        self._count = 0

    @property
    def open(self) -> bool:
        """Whether a barrier's answer is still to come."""
        return bool(self._sections)

    def plain(self) -> None:
        """Something was written that may be refused, and nobody waits to know."""
        self._unguarded = True

    def together(self, settle: Settle) -> None:
        """Something was written that may share its barrier with its neighbours: see `guard`."""
        self._together.append(settle)
        self._unguarded = True

    def alone(self, message: bytes, settle: Settle, frame: Callable[[bytes], bytes]) -> bytes:
        """What to write for a message that has a section of its own. `frame` makes lane bytes of an UpstreamMessage."""
        parts = [self.guard(frame), message]
        parts.append(frame(self._barrier([settle])))
        return b"".join(parts)

    def guard(self, frame: Callable[[bytes], bytes]) -> bytes:
        """End the section of what was written so far, if there is something in it."""
        if not self._unguarded:
            return b""
        settles, self._together = self._together, []
        self._unguarded = False
        return frame(self._barrier(settles))

    @property
    def shared(self) -> int:
        """How many share the section that is open for writing."""
        return len(self._together)

    def _barrier(self, settles: Sequence[Settle]) -> bytes:
        self._count += 1
        request_id = f"barrier-{self._count}"
        self._sections.append(_Section(request_id, settles))
        question = pb.ConnectionStatusRequest(principal=self._principal, request_id=request_id)
        return pb.UpstreamMessage(connection_status_request=question).SerializeToString()

    def refused(self, response: pb.ErrorResponse) -> bool:
        """An ErrorResponse without an id; False when it is nobody's who waits."""
        if not self._sections or not self._sections[0].settles:
            return False
        section = self._sections[0]
        if section.error is None:
            text = response.message
            if len(section.settles) > 1:
                text = f"one of {len(section.settles)} messages that were sent together was refused: {text}"
            section.error = from_code(
                response.code, text, retryable=response.retryable, retry_after_ms=response.retry_after_ms
            )
        return True

    def answered(self, request_id: str) -> bool:
        """A barrier was answered, or refused as a request: everything in front of it is settled. False: it was none of ours."""
        if not any(section.request_id == request_id for section in self._sections):
            return False
        while True:
            section = self._sections.popleft()
            for settle in section.settles:
                settle(section.error)
            if section.request_id == request_id:
                return True

    def cut(self) -> None:
        """The connection is over: what was not settled is in doubt."""
        error = ConnectionLost("the connection was cut before it was confirmed", in_doubt=True)
        for section in self._sections:
            for settle in section.settles:
                settle(section.error or error)
        for settle in self._together:
            settle(error)
        self._sections.clear()
        self._together.clear()
