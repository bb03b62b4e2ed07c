"""A refused group costs each of its messages the same, numbered or not."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from aether_trio.delivery.receipts import Receipts
from aether_trio.model.errors import AetherError, Code
from tests.helpers.log_bench import Bench, Reader

REFUSAL = AetherError(Code.PUBLISH_FAILED, "the disk is full", retryable=True)
MANY = 1000


class Counted(deque[Any]):
    """Says how often it was gone through."""

    times = 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return super().__iter__()


async def test_messages_without_numbers_among_those_that_have_some(bench: Bench) -> None:
    receipts = Receipts(bench.log, Reader(paused=True).outbox, None)
    receipts._waiting = waiting = Counted()
    for seq in range(1, MANY + 1):
        receipts.appended(seq, 2 * seq)
    for number in range(1, 2 * MANY + 1):  # the odd ones came in envelopes
        receipts.refused(number, REFUSAL)
    refused, _ = receipts.take()
    assert [seq for seq, _ in refused] == list(range(1, MANY + 1))
    assert receipts.outbox.control_bytes
    assert waiting.times == 1
    receipts.appended(MANY + 1, 2 * MANY + 2)
    receipts.refused(2 * MANY + 2, REFUSAL)
    assert receipts.take()[0] == [(MANY + 1, REFUSAL)]
