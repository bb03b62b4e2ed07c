"""The errors of the binary framing: a mistake of ours, or of the peer (as in h11).

The decoder and `FramedConnection.receive` raise RemoteProtocolError and nothing else, whatever the
bytes; encoders and `FramedConnection.send` raise LocalProtocolError. After a RemoteProtocolError
the connection is dead: tell the peer with `encode_error(error.code, str(error))` and close.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aether_trio.wire.framing.constants import ErrorCode

if TYPE_CHECKING:
    from aether_trio.wire.framing.events import Event


class ProtocolError(Exception):
    """A violation of the binary framing; raised as one of its two subclasses."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code.name}, {self.message!r})"


class LocalProtocolError(ProtocolError):
    """This side was about to send an illegal frame; no state has changed."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what no correct peer sends.

    `events` is what was decoded before the mistake in the same call, so that the same stream gives
    the same events, however it is split.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code, message)
        self.events: tuple[Event, ...] = ()
