"""Asks the program for fresh credentials, and shows them in the open connection.

The gateway says how long a session lasts (docs/wire.md, credential-renewal). The client asks for
fresh credentials when a part of that time is left, and shows them. What fails is tried again until
the session ends; then the client connects anew, with credentials that it asks for then.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Final, Protocol

import anyio
import anyio.to_thread

from aether_trio.client.connection.outgoing_messages import OutgoingMessage
from aether_trio.client.connection.send_queue import SendQueue
from aether_trio.client.errors import AetherError, Unauthenticated
from aether_trio.client.feeds import Feed, Feeds
from aether_trio.client.options import CREDENTIAL_RENEWAL, ClientSettings, check_credentials
from aether_trio.wire.pb import aether_pb2 as pb

logger = logging.getLogger("aether_trio.client")

ANSWER_S: Final = 30.0
EARLIEST_S: Final = 300.0
"""How long before the end of a long session its client asks for credentials, to twice that."""
_PART: Final = 5
"""The part of a session that is left when its client asks, if that is sooner than EARLIEST_S."""
_PAUSE_S: Final = 30.0
_SHORTEST_S: Final = 0.25
_LATER_S: Final = 1.0
"""What a new end has to be later by: else it is the old one, with another delay."""


async def ask_credentials(settings: ClientSettings) -> Mapping[str, str]:
    """Return the credentials to show now. Raises Unauthenticated (retryable)."""
    ask = settings.ask_credentials
    if ask is None:
        return settings.credentials
    try:
        if inspect.iscoroutinefunction(ask):
            said = await ask()
        else:
            said = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True)
            if inspect.isawaitable(said):
                said = await said
        if not isinstance(said, Mapping):
            raise TypeError(f"it returned {type(said).__name__}, not a mapping of names to texts")
        check_credentials(said)
    except AetherError:
        raise
    except Exception as error:
        text = f"the function credentials() failed: {type(error).__name__}: {error}"
        raise Unauthenticated("UNAUTHENTICATED", text, retryable=True) from error
    return {**settings.credentials, **said}


class RenewalClient(Protocol):
    """Protocol: what a renewal uses of its client."""

    send_queue: SendQueue
    feeds: Feeds


def _left_s(ack: pb.ConnectionAck) -> float:
    """Return how long a session lasts; 0: it has no end, or the gateway does not say."""
    for one in ack.negotiated_extensions:
        plain = one.version.isascii() and one.version.isdigit() and len(one.version) <= 16
        if one.uri == CREDENTIAL_RENEWAL and plain:
            return int(one.version) / 1000
    return 0.0


async def keep_renewed(settings: ClientSettings, client: RenewalClient, ack: pb.ConnectionAck) -> None:
    """Renew the session of a connection before each of its ends, while there is one."""
    if settings.ask_credentials is None or not any(
        one.uri == CREDENTIAL_RENEWAL and one.supported for one in ack.negotiated_extensions
    ):
        return
    left = _left_s(ack)
    while left:
        end = anyio.current_time() + left
        early = min(left / _PART, EARLIEST_S) * (1 + settings.retry.random())
        await anyio.sleep(left - early)
        while True:
            renewed = await _renewed(settings, client)
            if renewed is not None and (not renewed or anyio.current_time() + renewed > end + _LATER_S):
                break
            # Refused, or the program has no later credential yet.
            await anyio.sleep(max(min((end - anyio.current_time()) / _PART, _PAUSE_S), _SHORTEST_S))
        left = renewed


async def _renewed(settings: ClientSettings, client: RenewalClient) -> float | None:
    """Show fresh credentials; return how long they last, 0 for ever; None: refused."""
    feed: Feed[pb.ConnectionAck] = Feed(16, lossy=True)
    try:
        credentials = await ask_credentials(settings)
        message = pb.UpstreamMessage(init=pb.InitConnection(credentials=dict(credentials)))
        upstream = OutgoingMessage(message.SerializeToString(), lambda _error: None)
        with client.feeds.opened(feed, "connection_ack"), anyio.fail_after(ANSWER_S):
            client.send_queue.put(upstream)
            try:
                answer = await anext(feed)
            finally:
                client.send_queue.discard(upstream)
    except (AetherError, TimeoutError, StopAsyncIteration) as error:
        logger.warning("%s: the session was not renewed: %s", settings.address, str(error) or type(error).__name__)
        return None
    said = next((one for one in answer.negotiated_extensions if one.uri == CREDENTIAL_RENEWAL), None)
    if said is None or not said.supported:
        why = "no answer that is understood" if said is None else said.rejection_reason
        logger.warning("%s: the gateway did not renew the session: %s", settings.address, why)
        return None
    return _left_s(answer)
