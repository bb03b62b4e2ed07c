"""What a client is told of its sends: refusals, and up to where all are settled.

`Receipts` is for clients that number their sends (the framed transport). The client's numbers and
the log's grow together, so one queue of pairs is enough: the pairs at its front that are settled
are acknowledged by the greatest of their numbers. A refusal is told apart, before the
acknowledgement that covers it. Receipts are not sent from here: the link asks with `take` whenever
it writes, so acknowledgements travel with deliveries and answers, and always precede the answer to
a request that was made after the send.

`CountedSends` is for the other transports: the client and the gateway count the SendMessages of a
connection from 1, and the refusal of the N-th has the request id "send-N".
"""

from __future__ import annotations

from collections import OrderedDict, deque
from functools import lru_cache

from aether_trio.concurrency.kicks import Kickable
from aether_trio.delivery.outbox import Outbox
from aether_trio.log.deduplication import IS_COMMITTED, IS_FORGOTTEN, IS_NEW, Publisher
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.errors import Code, RequestError
from aether_trio.wire.error_response import error_response

__all__ = ["CountedSends", "Receipts", "refusal_frame"]

RefusedSend = tuple[int, RequestError]


@lru_cache(maxsize=4)
def refusal_frame(error: RequestError) -> bytes:
    """Encode the refusal of a send without a number; cached for its commit group."""
    return error_response(error).SerializeToString()


class Receipts:
    """Tells a connection's client which of its numbered sends are settled or refused."""

    __slots__ = ("_by_number", "_indexed", "_log", "_refused", "_waiting", "outbox", "publisher")

    confirms = True

    def __init__(self, log: TopicLog, outbox: Outbox, publisher: Publisher | None) -> None:
        self._log = log
        self.outbox = outbox
        self.publisher = publisher
        if publisher is not None:
            publisher.connect(self)
        self._waiting: deque[tuple[int, int]] = deque()
        self._refused: list[RefusedSend] = []
        self._by_number: dict[int, int] = {}
        self._indexed = 0
        """The length of `_waiting` when `_by_number` was made."""

    def wanted(self, seq: int) -> bool:
        """Whether send `seq` is new. Raises RequestError when that is forgotten."""
        if self.publisher is None:
            return True
        number = self.publisher.judge(seq)
        if number == IS_NEW:
            return True
        if number == IS_FORGOTTEN:
            raise RequestError(
                Code.SEQUENCE_FORGOTTEN,
                f"number {seq} is too old to tell whether it was committed; send the message again with a new one",
            )
        self._waiting.append((0 if number == IS_COMMITTED else number, seq))
        return False

    def appended(self, seq: int, number: int) -> None:
        """Note that send `seq` is the append `number` of the log."""
        self._waiting.append((number, seq))
        if self.publisher is not None:
            self.publisher.appended(seq, number)

    def refuse(self, seq: int, error: RequestError) -> None:
        """Note that send `seq` was not accepted; keep the error without its traceback."""
        error.__traceback__ = error.__context__ = None
        self._refused.append((seq, error))
        self._waiting.append((0, seq))

    @property
    def due(self) -> bool:
        waiting = self._waiting
        return bool(self._refused) or bool(waiting and self._log.is_settled(waiting[0][0]))

    def take(self) -> tuple[list[RefusedSend], int]:
        """Take refused sends, and the number up to which all are settled (0: no news)."""
        refused, self._refused = self._refused, []
        waiting, is_settled = self._waiting, self._log.is_settled
        self._by_number, self._indexed = {}, 0
        acked = 0
        while waiting and is_settled(waiting[0][0]):
            acked = waiting.popleft()[1]
        return refused, acked

    def refused(self, number: int, error: RequestError) -> None:
        """Tell the client that an append was refused, on its latest connection too."""
        if not self.note_refusal(number, error):
            self.outbox.queue_control(refusal_frame(error))
        latest = self.publisher.connection if self.publisher is not None else None
        if latest is not None and latest is not self:
            latest.note_refusal(number, error)

    def note_refusal(self, number: int, error: RequestError) -> bool:
        """Note a refused append; return whether it is a send of this connection."""
        # the first of its group
        if number not in self._by_number and self._indexed != len(self._waiting):
            self._by_number, self._indexed = dict(self._waiting), len(self._waiting)
        seq = self._by_number.get(number)
        if seq is not None:
            self._refused.append((seq, error))
        return seq is not None

    def settled(self, touched: set[Kickable]) -> None:
        """Have this and the publisher's latest connection write receipts of settled sends."""
        touched.add(self.outbox)
        latest = self.publisher.connection if self.publisher is not None else None
        if latest is not None and latest is not self:
            touched.add(latest.outbox)


class CountedSends:
    """Tells a client that does not number its sends which of them were refused."""

    __slots__ = ("_count", "_log", "_outbox", "_waiting")

    confirms = False
    publisher: Publisher | None = None

    def __init__(self, log: TopicLog, outbox: Outbox) -> None:
        self._log = log
        self._outbox = outbox
        self._count = 0
        self._waiting: OrderedDict[int, int] = OrderedDict()
        """The numbers of the log's appends, and of the sends that they are."""

    def count(self) -> None:
        self._count += 1

    def appended(self, number: int) -> None:
        """Note that the last send is the append `number` of the log."""
        waiting, is_settled = self._waiting, self._log.is_settled
        while waiting and is_settled(next(iter(waiting))):
            waiting.popitem(last=False)
        waiting[number] = self._count

    def refuse(self, error: RequestError) -> None:
        """Tell the client that its last send was not accepted."""
        self._tell_refusal(error, self._count)

    def refused(self, number: int, error: RequestError) -> None:
        """Tell the client that the append `number` was refused."""
        self._tell_refusal(error, self._waiting.pop(number, 0))

    def settled(self, touched: set[Kickable]) -> None:
        """Do nothing, as the client is told of refusals only."""

    def _tell_refusal(self, error: RequestError, count: int) -> None:
        request_id = f"send-{count}" if count else ""
        self._outbox.put_control(error_response(error, request_id).SerializeToString())
