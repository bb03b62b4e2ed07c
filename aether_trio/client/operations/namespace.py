"""What every family of operations is built on: a Requester, a time limit, and a way from a payload to its answer.

A namespace holds no state of its own and may be kept, shared between tasks and made anew at will.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Self

from google.protobuf.message import Message

from aether_trio.client.feeds import Feed
from aether_trio.client.requester import DEFAULT_TIMEOUT_S, Requester
from aether_trio.wire.pb import aether_pb2 as pb


class Namespace:
    """A family of operations. Each of its methods raises AetherError: a refusal by its code, RequestTimeout, ConnectionLost."""

    def __init__(self, requester: Requester, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        self._requester = requester
        self._timeout_s = timeout_s

    def within(self, timeout_s: float | None) -> Self:
        """The same operations with another limit for an answer, in seconds; None waits for ever.

        value = await agent.kv.within(2).get("key")
        """
        return type(self)(self._requester, timeout_s=timeout_s)

    async def _ask(self, case: str, payload: Message, *, again: bool = False) -> Any:
        """The answer's payload. `again` says that asking twice does no harm, so that a reconnect may repeat it."""
        return await self._requester.request(upstream(case, payload), timeout=self._timeout_s, idempotent=again)

    async def _tell(self, case: str, payload: Message) -> None:
        await self._requester.tell(upstream(case, payload))

    async def _tell_confirmed(self, case: str, payload: Message) -> None:
        await self._requester.tell_confirmed(upstream(case, payload), timeout=self._timeout_s)

    def _feed(
        self, *cases: str, match: Callable[[Any], bool] | None = None, capacity: int = 1024
    ) -> AbstractContextManager[Feed[Any]]:
        return self._requester.open_feed(*cases, match=match, capacity=capacity)


def upstream(case: str, payload: Message) -> pb.UpstreamMessage:
    """The message whose oneof case is `payload`."""
    message = pb.UpstreamMessage()
    part = getattr(message, case)
    part.SetInParent()
    part.CopyFrom(payload)
    return message
