"""Base of a client's namespaces such as `kv`: sends requests, and opens feeds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from google.protobuf.message import Message

from aether_trio.client.errors import AetherError, ConnectionLost
from aether_trio.client.feeds import CONNECTION_LOST, Feed
from aether_trio.client.operation_table import OPERATIONS
from aether_trio.client.options import REQUEST_TIMEOUT_S
from aether_trio.client.requester import Requester
from aether_trio.wire.pb import aether_pb2 as pb


class Namespace:
    """Base of the namespaces of a client, such as `kv` and `tasks`.

    Each of its methods raises AetherError: a refusal by its code, RequestTimeout, ConnectionLost.
    """

    def __init__(self, requester: Requester, *, timeout_s: float | None = REQUEST_TIMEOUT_S) -> None:
        self._requester = requester
        self._timeout_s = timeout_s

    def within(self, timeout_s: float | None) -> Self:
        """Return this namespace with another time limit in seconds; None waits for ever."""
        return type(self)(self._requester, timeout_s=timeout_s)

    async def _ask(self, case: str, payload: Message) -> Any:
        """Send a request and return its answer; operation_table.py says if it may repeat."""
        again = OPERATIONS[case].may_repeat(payload)
        return await self._requester.request(upstream(case, payload), timeout=self._timeout_s, idempotent=again)

    async def _tell(self, case: str, payload: Message) -> None:
        await self._requester.tell(upstream(case, payload))

    async def _tell_confirmed(self, case: str, payload: Any) -> None:
        """Send a message that is answered only when it is refused. Return if accepted."""
        message = upstream(case, payload)
        request_id = str(getattr(payload, "request_id", ""))
        if not request_id:
            await self._requester.tell_confirmed(message, timeout=self._timeout_s)
            return

        def refusal(error: Any) -> bool:
            return isinstance(error, AetherError) and error.request_id == request_id

        with self._requester.open_feed("error", match=refusal, capacity=1, lossy=True) as refusals:
            await self._requester.tell_confirmed(message, timeout=self._timeout_s)
            if (error := refusals.get_nowait()) is not None:
                raise error

    @contextmanager
    def _feed(
        self, *cases: str, match: Callable[[Any], bool] | None = None, capacity: int = 1024
    ) -> Iterator[AsyncIterator[Any]]:
        """Open a feed of messages that answer no request; it goes on after a reconnect."""
        with self._requester.open_feed(*cases, match=match, capacity=capacity) as feed:
            yield feed

    @contextmanager
    def _exchange_feed(
        self, *cases: str, match: Callable[[Any], bool], capacity: int, lossy: bool = False
    ) -> Iterator[Feed[Any]]:
        """Open a feed for one tunnel, call or stream; a cut ends it with ConnectionLost."""

        def mine(payload: Any) -> bool:
            return isinstance(payload, ConnectionLost) or match(payload)

        with self._requester.open_feed(*cases, CONNECTION_LOST, match=mine, capacity=capacity, lossy=lossy) as feed:
            yield feed


def upstream(case: str, payload: Message) -> pb.UpstreamMessage:
    """Return an UpstreamMessage with this payload in the oneof case."""
    message = pb.UpstreamMessage()
    part = getattr(message, case)
    part.SetInParent()
    part.CopyFrom(payload)
    return message
