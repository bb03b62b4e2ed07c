"""Fuzz the binary framing: its decoder with HELLO, and a connection of each role.

An input is three bytes of choices (how the stream begins, who reads it, how it is split) and the
stream. Whatever it is: decoding gives events or one RemoteProtocolError; splitting it changes
nothing; no more is kept than one frame; what was decoded encodes to what decodes to the same; and a
FramedConnection of either role raises nothing else either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from aether_trio.wire.framing import (
    ClientHello,
    Envelope,
    ErrorCode,
    Event,
    FramedConnection,
    FrameDecoder,
    RemoteProtocolError,
    ServerHello,
    Side,
    Skipped,
    encode,
    join,
)
from aether_trio.wire.framing.constants import HEADER_BYTES, OPENING_FRAME_BYTES, PREFACE
from fuzz.feeding import VECTORS, choices, split

LIMIT_BYTES: Final = 64 * 1024
"""Frames of the fuzzed decoder: small, so that the limit is met."""


def decode(receive: Callable[[bytes], Iterable[Event]], parts: Iterable[bytes]) -> tuple[list[Event], ErrorCode | None]:
    """Decode frames; return the events, and the error code that ended them."""
    found: list[Event] = []
    for part in parts:
        try:
            found += receive(part)
        except RemoteProtocolError as error:
            return [*found, *error.events], error.code
    return found, None


def check(data: bytes) -> None:
    """Check an input; raises what no input may raise."""
    (start, reader, step), rest = choices(data, 3)
    stream = rest if start & 1 else PREFACE + rest

    whole = decode(FrameDecoder(LIMIT_BYTES).receive, [stream])
    decoder = FrameDecoder(LIMIT_BYTES)
    parts = split(stream, step)

    def receive(part: bytes) -> list[Event]:
        events = decoder.receive(part)
        assert decoder.statistics().buffered_bytes <= LIMIT_BYTES + HEADER_BYTES
        return events

    assert decode(receive, parts) == whole, f"split into {step}"

    known = [event for event in whole[0] if not isinstance(event, Skipped)]
    again = decode(FrameDecoder(LIMIT_BYTES, preface=False).receive, [join(encode(event) for event in known)])
    assert again == (known, None)

    assert talk(stream, reader, 0) == talk(stream, reader, step), f"split into {step}"


def talk(stream: bytes, reader: int, step: int) -> tuple[list[Event], ErrorCode | None]:
    """Return the events of a connection that has greeted, or has not, and its error."""
    connection = FramedConnection(Side.SERVER if reader & 1 else Side.CLIENT)
    if reader & 2:
        greet(connection, accept=bool(reader & 4))

    def receive(part: bytes) -> Iterable[Event]:
        events = connection.receive(part)
        if connection.role is Side.SERVER and not reader & 4:
            assert connection.held_bytes <= OPENING_FRAME_BYTES + HEADER_BYTES
        return events

    return decode(receive, split(stream[len(PREFACE) :] if reader & 2 else stream, step))


def greet(connection: FramedConnection, *, accept: bool) -> None:
    """Bring a connection to where its peer is live (or only greeted)."""
    peer = FramedConnection(connection.role.peer)
    client, server = (connection, peer) if connection.role is Side.CLIENT else (peer, connection)
    server.receive(client.send(ClientHello()))
    client.receive(server.send(ServerHello()))
    if accept:
        server.receive(client.send(Envelope(b"init")))
        client.receive(server.send(Envelope(b"ack")))


def seeds() -> Iterator[bytes]:
    for item in json.loads((VECTORS / "frames.json").read_text())["frames"]:
        for reader in (2 | 4, 1 | 2 | 4):
            yield bytes((0, reader, 3)) + bytes.fromhex(item["hex"])
    for item in json.loads((VECTORS / "invalid.json").read_text())["streams"]:
        yield bytes((1, 1, 5)) + bytes.fromhex(item["hex"])
    for item in json.loads((VECTORS / "conversations.json").read_text())["conversations"]:
        for reader, side in ((1, "client"), (0, "gateway")):
            stream = b"".join(bytes.fromhex(step["hex"]) for step in item["steps"] if step["from"] == side)
            yield bytes((1, reader, 7)) + stream
            # The same behind what the greeting has said.
            yield bytes((1, reader | 6, 7)) + stream
