"""The gRPC transport: grpcio with gevent, one call per user, messages as bytes.

`streams` users share a channel, which is one TCP connection. Under gevent grpcio waits for each
channel in a thread of gevent's pool of ten, up to 0.2 s at a time, so with more channels than
threads messages wait for their turn. Messages go through grpcio unparsed, so neither our private
descriptor pool nor the SDK's classes take part.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import grpc.experimental.gevent
from gevent.queue import Queue

from loadtests.links.base import CUT, OK, Ended, Link, Opening, init_bytes

PATH = "/aether.v1.AetherGateway/Connect"
_OPTIONS = (
    # A separate connection: channels of one target share one otherwise.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
)

grpc.experimental.gevent.init_gevent()


class _Shared:
    """One channel and how many use it."""

    __slots__ = ("channel", "users")

    def __init__(self, target: str) -> None:
        self.channel = grpc.insecure_channel(target, options=_OPTIONS)
        self.users = 0


_channels: dict[int, _Shared] = {}


class GrpcLink(Link):
    """Nothing is acknowledged: what was on its way when the call ends is in doubt."""

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        self._requests: Queue[bytes | None] = Queue()
        self._answers: Iterator[bytes] | None = None
        self._call: grpc.Call | None = None
        self._key = opening.index // max(1, opening.streams)
        self._shared: _Shared | None = None
        self._cut = False

    def open(self) -> None:
        """See `Link.open`."""
        host = f"[{self.opening.host}]" if ":" in self.opening.host else self.opening.host
        shared = _channels.get(self._key)
        if shared is None:
            shared = _channels[self._key] = _Shared(f"{host}:{self.opening.port}")
        shared.users += 1
        self._shared = shared
        self._requests.put(init_bytes(self.opening))
        self._call = shared.channel.stream_stream(PATH)(iter(self._requests.get, None))
        self._answers = iter(self._call)
        self.greeted(self._next())

    def receive(self) -> list[bytes]:
        """See `Link.receive`."""
        return [self._next()]

    def _next(self) -> bytes:
        assert self._answers is not None
        try:
            return next(self._answers)
        except StopIteration:
            raise Ended(OK) from None
        except grpc.RpcError as error:
            code = error.code().name if isinstance(error, grpc.Call) else type(error).__name__
            raise Ended(CUT if self._cut else code, str(getattr(error, "details", str)())) from None

    def send(self, message: bytes) -> None:
        """See `Link.send`."""
        self._requests.put(message)

    def leave(self) -> None:
        """See `Link.leave`."""
        self._requests.put(None)

    def cut(self) -> None:
        """See `Link.cut`. A shared connection is broken for all its users."""
        self._cut = True
        if self._shared is not None:
            if _channels.get(self._key) is self._shared:
                del _channels[self._key]
            self._shared.channel.close()

    def close(self) -> None:
        """See `Link.close`."""
        self._requests.put(None)
        if self._call is not None:
            self._call.cancel()
            self._call = None
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.users -= 1
            if not shared.users:
                if _channels.get(self._key) is shared:
                    del _channels[self._key]
                shared.channel.close()
