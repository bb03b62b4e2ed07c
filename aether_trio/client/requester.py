"""Protocol of what operations need of a client: requests, messages and feeds.

The requester fills in the id of a request when it is empty, so a message must not be used for a
second request.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from aether_trio.client.feeds import Feed
from aether_trio.client.options import REQUEST_TIMEOUT_S
from aether_trio.wire.pb import aether_pb2 as pb


class Requester(Protocol):
    """Protocol: sends requests and messages to a gateway, and opens feeds."""

    @property
    def workspace(self) -> str:
        """The workspace that this participant is in; "" when it is in none."""

    @property
    def topic(self) -> str:
        """The identity and topic of this participant; "" before the gateway assigned it."""

    async def request(
        self,
        message: pb.UpstreamMessage,
        *,
        timeout: float | None = REQUEST_TIMEOUT_S,
        idempotent: bool = False,
        check: bool = True,
    ) -> Any:
        """Send a request, and return the payload of the gateway's answer.

        The answer is a barrier: everything this client sent before is then committed or refused.
        `timeout` in seconds counts waiting for a connection too; None waits for ever. `idempotent`:
        after a reconnect the request is asked again, instead of raising ConnectionLost. With
        `check` an answer that says `success: false` is raised as its typed error; without, it is
        returned (an ErrorResponse is raised in any case). Raises AetherError: a refusal by its
        code, RequestTimeout, ConnectionLost.
        """

    async def tell(self, message: pb.UpstreamMessage) -> None:
        """Send a message that is not answered, and return when it is written.

        It waits while there is no connection, and while the peer does not read. A refusal is in the
        feed `errors`. After a cut it is not known whether the message has arrived.
        """

    async def tell_confirmed(self, message: pb.UpstreamMessage, *, timeout: float | None = REQUEST_TIMEOUT_S) -> None:
        """Send a message that is answered only if refused; wait until it is accepted.

        Raises the typed refusal, RequestTimeout, ConnectionLost.
        """

    def open_feed(
        self, *cases: str, match: Callable[[Any], bool] | None = None, capacity: int = 1024, lossy: bool = False
    ) -> AbstractContextManager[Feed[Any]]:
        """Open a feed of gateway messages of these oneof cases, while the block lasts.

        `match` is asked with each payload. Every feed that listens gets a message, except answers
        to `request`, which go to their callers alone. `CONNECTION_LOST` (feeds.py) may be listened
        to as well. `capacity` bounds what waits to be read: a lossy feed drops the oldest
        (`feed.dropped` counts), another one raises FeedOverflow when it is read next. What `match`
        raises is raised there too. Raises ValueError for a case that the protocol does not have.
        """
