"""Keeps a client's state across connections, and dispatches incoming messages."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from typing import Any, Final

from aether_trio.client.connection.inbox import Inbox
from aether_trio.client.connection.outgoing_messages import OutgoingMessage
from aether_trio.client.connection.requests import PendingRequest, Requests
from aether_trio.client.connection.send_queue import SendQueue
from aether_trio.client.errors import AetherError, ConnectionLost, from_response
from aether_trio.client.feeds import CONNECTION_LOST, Feed, Feeds
from aether_trio.client.messages import Messages, MessagesInHand
from aether_trio.client.operation_table import OPERATIONS, RESPONSES
from aether_trio.client.operations.progress import ProgressUpdate, progress_update
from aether_trio.client.options import ClientSettings
from aether_trio.wire.pb import aether_pb2 as pb

_EPHEMERAL: Final = 256
"""Progress and notices that wait for a reader; beyond it the oldest are dropped."""


class MessageDispatch:
    """A client's queues, requests and feeds, to which incoming messages are handed."""

    def __init__(
        self, settings: ClientSettings, program: str, principal: Callable[[pb.ConnectionAck], pb.PrincipalRef]
    ) -> None:
        self.program = program
        self.publisher = secrets.token_bytes(16)
        self.inbox = Inbox(settings.credit_messages, settings.credit_bytes)
        self.send_queue = SendQueue(settings.max_unsettled, settings.max_unsettled_bytes)
        self.requests = Requests()
        self.feeds = Feeds()
        self.progress: Feed[ProgressUpdate] = Feed(_EPHEMERAL, lossy=True, convert=progress_update)
        self.signals: Feed[pb.Signal] = Feed(_EPHEMERAL, lossy=True)
        self.errors: Feed[AetherError] = Feed(_EPHEMERAL, lossy=True)
        self.feeds.add(self.progress, "progress_update")
        self.feeds.add(self.signals, "signal")
        self.feeds.add(self.errors, "error")
        self.config: pb.ConfigSnapshot | None = None
        self.told_to_stay_away: str | None = None
        """The reason of a FORCE_DISCONNECT."""
        self.cursors = MessagesInHand()
        self.restore: dict[str, pb.UpstreamMessage] = {}
        """Messages that every later connection sends first: the gateway forgets them."""
        self.principal = principal
        """Returns the kind and identity of this client, once the gateway has let it in."""

    def attach(self, wake: Callable[[], None], wake_soon: Callable[[], None]) -> None:
        """Set the functions that wake a connection's writer, at once or soon."""
        self.send_queue.wake = self.inbox.wake = wake
        self.inbox.wake_soon = wake_soon

    def awaiting(self) -> bool:
        """Return whether any sent request still waits for its answer."""
        return self.requests.in_flight > 0

    def downstream(self, message: pb.DownstreamMessage) -> None:
        """Hand an answer to its caller, and any other gateway message to the feeds."""
        case = message.WhichOneof("payload")
        if case is None:
            return  # of a later version
        payload: Any = getattr(message, case)
        if case == "error":
            self._error(payload)
            return
        if case in RESPONSES and self.requests.answer(case, payload):
            return
        if case == "config":
            self.config = payload
        elif case == "signal" and payload.type == pb.Signal.FORCE_DISCONNECT:
            self.told_to_stay_away = payload.reason or "the gateway has ended this session"
        self.feeds.publish(case, payload)

    def _error(self, error: pb.ErrorResponse) -> None:
        if error.request_id and self.requests.fail(error):
            return
        refusal = from_response(error)
        refusal.request_id = error.request_id
        self.feeds.publish("error", refusal)

    def messages(self, *, manual: bool) -> Messages:
        """Return an iterator over received messages; `manual`: the caller acknowledges."""
        return Messages(self.inbox, None if manual else self.cursors)

    def reopen(self, *, repeat: bool, within_s: float = math.inf) -> None:
        """Queue unconfirmed messages and the workspace switch again for a new connection."""
        self.send_queue.reopen(repeat=repeat, within_s=within_s)
        for message in self.restore.values():
            again = OutgoingMessage(message.SerializeToString(), lambda _error: None, unanswered=True)
            self.send_queue.put_first(again)

    def ask(self, pending: PendingRequest) -> None:
        """Queue a request for the connection's writer."""

        def written(error: AetherError | None) -> None:
            if error is None:
                pending.written = True
            else:
                pending.fail(error)

        unanswered = OPERATIONS[pending.asked].refused_without_id
        pending.upstream = OutgoingMessage(pending.data, written, unanswered=unanswered)
        self.send_queue.put(pending.upstream)

    def forget(self, pending: PendingRequest) -> None:
        """Drop a request whose caller gave up; it is not written if still queued."""
        self.requests.discard(pending)
        if pending.upstream is not None:
            self.send_queue.discard(pending.upstream)

    def cut(self) -> None:
        """Requeue or fail messages and requests of a cut connection, and tell the feeds."""
        self.feeds.publish(CONNECTION_LOST, ConnectionLost("the connection was cut", in_doubt=True))
        self.inbox.cut()
        self.send_queue.cut()
        for pending in self.requests.cut():
            self.ask(pending)

    def close(self, error: AetherError) -> None:
        """End the client's queues, requests and feeds with `error`."""
        final = None if error.code == "CLIENT_CLOSED" else error
        self.inbox.close(final)
        self.cursors.close()
        self.send_queue.close(error)
        self.requests.close(error)
        self.feeds.close(final)
