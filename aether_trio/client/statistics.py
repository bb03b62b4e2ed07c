"""Counts what a client has sent, received and holds: `client.statistics()`.

Invariants: `published` is the sum of `committed`, `refused`, `in_doubt`, `not_sent` and
`unsettled`; every message that a connection has brought is in one of `buffered`, `received` and
`duplicates`, except a work group's, which a cut takes back.
"""

from __future__ import annotations

from dataclasses import dataclass

from aether_trio.client.connection.dispatch import MessageDispatch
from aether_trio.client.connection.reconnect import Reconnector, State


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStatistics:
    """Counts of one client over all its connections; names say which are bytes."""

    state: State
    connections: int
    """Connections that the gateway has let in; all but the first are reconnects."""
    failed_attempts: int
    """Attempts to connect that came to nothing and were repeated."""

    published: int
    """Messages that `send`, `reply` and `publish` have taken."""
    committed: int
    refused: int
    """By the gateway, or because the transport cannot carry them."""
    in_doubt: int
    """Sent, and perhaps committed or not: ConnectionLost was raised."""
    not_sent: int
    """Given up before a connection had written them: withdrawn, or the client ended."""
    unsettled: int
    """On their way now. `max_unsettled` bounds them."""
    unsettled_bytes: int
    resent: int
    """Messages sent again on another connection, which gateways may not recognize."""

    received: int
    """Messages that the program has taken."""
    buffered: int
    """Messages that wait for the program now."""
    unacknowledged: int
    """Messages that the program has taken and not acknowledged."""
    held_bytes: int
    """Of messages that are buffered or unacknowledged. `credit_bytes` bounds them."""
    duplicates: int
    """Deliveries that had come before, and were dropped."""

    requests: int
    """Requests made."""
    requests_open: int
    """Requests that are not answered now."""
    feed_drops: int
    """Unread progress updates, signals, errors and states dropped for newer ones."""


def statistics_of(reconnector: Reconnector, dispatch: MessageDispatch) -> ClientStatistics:
    """Collect the present counts of a client."""
    send_queue, inbox, requests = dispatch.send_queue, dispatch.inbox, dispatch.requests
    return ClientStatistics(
        state=reconnector.state,
        connections=reconnector.connections,
        failed_attempts=reconnector.failed_attempts,
        published=send_queue.published,
        committed=send_queue.committed,
        refused=send_queue.refused,
        in_doubt=send_queue.in_doubt,
        not_sent=send_queue.not_sent,
        unsettled=send_queue.unsettled,
        unsettled_bytes=send_queue.unsettled_bytes,
        resent=send_queue.resent,
        received=inbox.received,
        buffered=len(inbox),
        unacknowledged=inbox.held_messages - len(inbox),
        held_bytes=inbox.held_bytes,
        duplicates=inbox.duplicates,
        requests=requests.made,
        requests_open=len(requests),
        feed_drops=sum(
            feed.dropped for feed in (dispatch.progress, dispatch.signals, dispatch.errors, reconnector.states)
        ),
    )
