"""Which send of a client was refused, on transports whose sends have no number of their own.

The client and the gateway count the SendMessages of a connection from 1. The refusal of the N-th has the request id "send-N".
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from aether_trio.wire.errors import error_response

if TYPE_CHECKING:
    from aether_trio.delivery.outbox import Outbox
    from aether_trio.log.publishers import Publisher
    from aether_trio.log.topic_log import TopicLog
    from aether_trio.model.errors import AetherError

__all__ = ["CountedSends"]


class CountedSends:
    """One connection's sends; an Author of the log (log.py). It keeps those that are not settled, which the log bounds."""

    __slots__ = ("_count", "_log", "_outbox", "_waiting")

    confirms = False
    publisher: Publisher | None = None

    def __init__(self, log: TopicLog, outbox: Outbox) -> None:
        self._log = log
        self._outbox = outbox
        self._count = 0
        self._waiting: OrderedDict[int, int] = OrderedDict()
        """The number of an append, and which send it was."""

    def came(self) -> None:
        """One more send has come."""
        self._count += 1

    def appended(self, number: int) -> None:
        """The log has taken the last one as its `number`."""
        waiting, is_settled = self._waiting, self._log.is_settled
        while waiting and is_settled(next(iter(waiting))):
            waiting.popitem(last=False)
        waiting[number] = self._count

    def refuse(self, error: AetherError) -> None:
        """The last one was not accepted."""
        self._say(error, self._count)

    def refused(self, number: int, error: AetherError) -> None:
        """See log.Author."""
        self._say(error, self._waiting.pop(number, 0))

    def settled(self, touched: set[Outbox]) -> None:
        """See log.Author."""

    def _say(self, error: AetherError, count: int) -> None:
        request_id = f"send-{count}" if count else ""
        self._outbox.put_control(error_response(error, request_id).SerializeToString())
