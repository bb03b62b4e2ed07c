"""The ledger finds every fault, and the reader every payload."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.wire.pb import aether_pb2 as pb
from bench.numbered import HEAD, MARK, Ledger, PayloadReader, filler


def delivery(payload: bytes, source: str = "ag::w::i::0") -> bytes:
    return pb.DownstreamMessage(msg=pb.IncomingMessage(source_topic=source, payload=payload)).SerializeToString()


def numbered(stream: int, number: int, size: int = 200) -> bytes:
    return HEAD.pack(MARK, stream, number, 77) + filler(size)


@given(st.permutations(range(12)), st.lists(st.integers(0, 11), max_size=5))
def test_whatever_the_order_nothing_is_lost_and_repeats_are_counted(order: list[int], again: list[int]) -> None:
    ledger = Ledger()
    assert all(ledger.note(number) for number in order)
    assert not any(ledger.note(number) for number in again)
    assert ledger.lost(12) == 0
    assert ledger.repeated == len(again)
    assert (ledger.out_of_order == 0) == (order == sorted(order))


@given(st.sets(st.integers(0, 30)))
def test_missing_numbers_are_lost(arrived: set[int]) -> None:
    ledger = Ledger()
    for number in sorted(arrived):
        ledger.note(number)
    assert ledger.lost(31) == 31 - len(arrived)
    assert ledger.repeated == ledger.out_of_order == 0


def test_the_reader_finds_payloads_in_changing_layouts() -> None:
    reader = PayloadReader()
    assert reader.read(delivery(numbered(3, 9))) == (3, 9, 77)
    assert reader.read(delivery(numbered(3, 10))) == (3, 10, 77)
    assert reader.read(delivery(numbered(1, 2, size=199), source="ag::w::i::00")) == (1, 2, 77)


def test_the_reader_knows_what_is_not_numbered() -> None:
    reader = PayloadReader()
    message = delivery(numbered(0, 0))
    reader.read(message)
    assert reader.read(delivery(bytes(200))) is None
    assert reader.read(delivery(b"short")) is None
    assert reader.read(pb.DownstreamMessage(signal=pb.Signal(reason="x" * 300)).SerializeToString()) is None


def test_a_payload_must_hold_its_head() -> None:
    assert len(filler(200)) + HEAD.size == 200
    with pytest.raises(ValueError, match="24 bytes"):
        filler(23)
