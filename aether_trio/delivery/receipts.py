"""What a connection that numbers its sends is told of them: settled up to here, and which were refused.

A client's numbers and the log's are two sequences that grow together, so one queue of pairs is enough: whatever is at
its front and settled is acknowledged by the greatest of its numbers. Refusals are said by themselves, before the
acknowledgement that covers them.

Nothing is sent from here. The link asks with `take` whenever it writes, so acknowledgements ride along with deliveries
and answers, and always come before an answer to what was asked behind the send.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING

from aether_trio.log.publishers import IS_COMMITTED, IS_FORGOTTEN, IS_NEW, Publisher
from aether_trio.model.errors import AetherError, Code
from aether_trio.wire.errors import error_response

if TYPE_CHECKING:
    from aether_trio.delivery.outbox import Outbox
    from aether_trio.log.topic_log import TopicLog

Refused = tuple[int, AetherError]


@lru_cache(maxsize=4)
def refusal_frame(error: AetherError) -> bytes:
    """A refusal as a message to a client, for what came without a number. The same for all of a group."""
    return error_response(error).SerializeToString()


class Receipts:
    """One connection's sends that have no receipt yet; an Author of the log (log.py)."""

    __slots__ = ("_by_number", "_log", "_looked", "_refused", "_waiting", "outbox", "publisher")

    confirms = True

    def __init__(self, log: TopicLog, outbox: Outbox, publisher: Publisher | None) -> None:
        self._log = log
        self.outbox = outbox
        self.publisher = publisher
        if publisher is not None:
            publisher.holder = self
        self._waiting: deque[tuple[int, int]] = deque()
        self._refused: list[Refused] = []
        self._by_number: dict[int, int] = {}
        self._looked = 0
        """How many waited when that was made."""

    # -- the session's side ---------------------------------------------------------------------------------------

    def wanted(self, seq: int) -> bool:
        """Whether this send is to be appended; one that is in the log, or on its way there, gets its receipt from that.

        Raises AetherError for a number that is too old to tell.
        """
        if self.publisher is None:
            return True
        number = self.publisher.judge(seq)
        if number == IS_NEW:
            return True
        if number == IS_FORGOTTEN:
            raise AetherError(
                Code.SEQUENCE_FORGOTTEN,
                f"number {seq} is too old to tell whether it was committed; send the message again with a new one",
            )
        self._waiting.append((0 if number == IS_COMMITTED else number, seq))
        return False

    def appended(self, seq: int, number: int) -> None:
        """The log has taken it as its `number`."""
        self._waiting.append((number, seq))
        if self.publisher is not None:
            self.publisher.appended(seq, number)

    def refuse(self, seq: int, error: AetherError) -> None:
        """It was not accepted. The error may be kept for long; what raised it must not be."""
        error.__traceback__ = error.__context__ = None
        self._refused.append((seq, error))
        self._waiting.append((0, seq))

    @property
    def due(self) -> bool:
        """Whether `take` has something to say."""
        waiting = self._waiting
        return bool(self._refused) or bool(waiting and self._log.is_settled(waiting[0][0]))

    def take(self) -> tuple[list[Refused], int]:
        """(refused sends in the order of their refusal, the number up to which all are settled, or 0 for no news)."""
        refused, self._refused = self._refused, []
        waiting, is_settled = self._waiting, self._log.is_settled
        self._by_number, self._looked = {}, 0
        acked = 0
        while waiting and is_settled(waiting[0][0]):
            acked = waiting.popleft()[1]
        return refused, acked

    # -- the log's side -------------------------------------------------------------------------------------------

    def refused(self, number: int, error: AetherError) -> None:
        """See log.Author. A message that came without a number (in an envelope) is refused as it is on every transport."""
        if not self._note_refusal(number, error):
            self.outbox.queue_control(refusal_frame(error))
        holder = self.publisher.holder if self.publisher is not None else None
        if holder is not None and holder is not self:
            holder._note_refusal(number, error)

    def _note_refusal(self, number: int, error: AetherError) -> bool:
        """Whether it is one of the numbered sends of this connection."""
        if number not in self._by_number and self._looked != len(self._waiting):  # the first of its group
            self._by_number, self._looked = dict(self._waiting), len(self._waiting)
        seq = self._by_number.get(number)
        if seq is not None:
            self._refused.append((seq, error))
        return seq is not None

    def settled(self, touched: set[Outbox]) -> None:
        """See log.Author."""
        touched.add(self.outbox)
        holder = self.publisher.holder if self.publisher is not None else None
        if holder is not None and holder is not self:
            touched.add(holder.outbox)
