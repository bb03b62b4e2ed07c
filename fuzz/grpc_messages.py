"""Fuzz gRPC's messages in DATA payloads: assembly, accounts, and inflating."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import Any, Final

from aether_trio.model.errors import StatusError
from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.grpc.message_encoding import (
    PREFIX,
    PREFIX_BYTES,
    SLICE_BYTES,
    CompressedMessage,
    Decompression,
)
from aether_trio.transport.grpc.message_stream import AssemblyBudget, MessageStream
from fuzz.feeding import choices, split

LARGEST: Final = 600 * 1024
"""More than two slices."""
MOST: Final = 2 * LARGEST
ENCODINGS: Final = ("identity", "gzip", "deflate")


class _Account:
    """An account of unfinished input that the assembler can use."""

    def __init__(self) -> None:
        self.held: dict[MessageStream, int] = {}

    def note(self, receiver: MessageStream, held: int, *, anew: bool = False) -> None:
        assert held or not anew or not receiver.partial_bytes
        self.held[receiver] = held


def assemble(stream_bytes: bytes, step: int, encoding: str) -> tuple[list[bytes], bool]:
    """Assemble messages; return them, and whether an error ended them."""
    account: Any = _Account()
    limits = GrpcLimits(max_receive_message_bytes=LARGEST, max_assembling_bytes=MOST)
    budget = AssemblyBudget(limits, account)
    no_rpc: Any = None
    messages = MessageStream(1, no_rpc, no_rpc, budget, encoding=encoding)
    stream = messages.stream
    for part in split(stream_bytes, step):
        if stream.failure is None:
            messages.read(part, 0, len(part))
            messages.after_read()
        held = messages.partial_bytes
        assert held < PREFIX_BYTES + LARGEST
        assert account.held.get(messages, 0) == held
        assert budget.assembling == messages.announced_bytes
    assert messages._packed == sum(isinstance(message, CompressedMessage) for message in stream.inbox)
    messages.drop()
    assert not budget.assembling
    assert not account.held.get(messages, 0)
    return stream.inbox, stream.failure is not None


def decompress(message: bytes, encoding: str) -> None:
    """Decompress in slices up to the limit, and compare with zlib."""
    decompression = Decompression(message, encoding, LARGEST)
    try:
        done = False
        while not done:
            before = decompression.size
            done = decompression.step()
            assert decompression.size - before <= SLICE_BYTES
            assert decompression.size <= LARGEST
    except StatusError:
        return
    whole = zlib.decompressobj(31 if encoding == "gzip" else 15).decompress(message)
    assert decompression.message() == whole


def check(data: bytes) -> None:
    """Check an input: two bytes of choices, and the payload of DATA frames."""
    (which, step), stream_bytes = choices(data, 2)
    encoding = ENCODINGS[which % len(ENCODINGS)]
    whole = assemble(stream_bytes, 0, encoding)
    assert assemble(stream_bytes, step, encoding) == whole, f"split into {step}"
    for message in whole[0]:
        if isinstance(message, CompressedMessage):
            decompress(message, encoding)
    for plain in ENCODINGS[1:]:
        decompress(stream_bytes, plain)


def _message(flag: int, content: bytes) -> bytes:
    return PREFIX.pack(flag, len(content)) + content


def seeds() -> Iterator[bytes]:
    """Messages plain and compressed, bombs, and incomplete ones."""
    packed, deflated = gzip.compress(b"hello" * 100, mtime=0), zlib.compress(b"hello" * 100)
    bomb = gzip.compress(bytes(LARGEST + 1), mtime=0)
    yield b"\0\3" + _message(0, b"one") + _message(0, b"") + _message(0, b"two" * 100)
    yield b"\1\7" + _message(1, packed) + _message(0, b"plain") + _message(1, packed)
    yield b"\2\0" + _message(1, deflated) + _message(1, deflated[:-3])
    yield b"\1\0" + _message(1, bomb)
    yield b"\1\0" + _message(1, gzip.compress(bytes(LARGEST), mtime=0))
    yield b"\1\0" + packed
    yield b"\2\0" + deflated + b"behind"
    yield b"\0\1" + PREFIX.pack(0, LARGEST + 1)
    yield b"\0\1" + PREFIX.pack(2, 4) + b"flag" + PREFIX.pack(0, 2**32 - 1)
    # Deflate's stored blocks without content: input that gives nothing.
    yield b"\2\0" + _message(1, b"\x78\x9c" + b"\0\0\0\xff\xff" * 200)
