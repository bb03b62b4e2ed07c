"""Attack the gateways on every transport, beside the load.

No attack may cost another client anything.

It has another workspace and other names. What becomes of its connections is of no interest; the
check is that the gateways live on.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Final

import msgspec
import trio
from google.protobuf.message import Message

from aether_trio.wire.framing import FrameType
from aether_trio.wire.pb import aether_pb2 as pb
from chaos.history import Attack
from chaos.load import Load

WORKSPACE: Final = "hostile"
PER_S: Final = 2.0
LONGEST_S: Final = 3.0
"""For one attack. It is cut then, in whatever state it is."""
ATTACKERS: Final = 2
FLOOD: Final = 300
MIB: Final = 1 << 20
PREFACE: Final = b"\xaeAETHER\x01"
H2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TEXTS: Final = (
    b"\x00",
    b"a\x00b",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"::",
    b"%",
    b"'; DROP TABLE topics",
    b"x" * 300,
    b"y" * 70_000,
    b"\xf0\x9f\xa6\x80" * 5_000,
)
"""NUL, broken UTF-8, a surrogate, separators, and what is far too long, for an index of the
database, too.
"""


Way = Callable[[trio.SocketStream, random.Random], Awaitable[None]]


class Hostile:
    """Attacks of hostile clients; `run` them until the load is quiet."""

    def __init__(self, load: Load, several: int = ATTACKERS) -> None:
        self._load = load
        self._several = several
        self._numbers = count(1)
        self.attacks: Sequence[tuple[str, str, Way]] = (
            ("framed", "names that are none", self._bad_names),
            ("framed", "texts that are none", self._bad_texts),
            ("framed", "a frame limit that fits nothing", self._small_frames),
            ("framed", "acknowledgements of nothing, and late ones", self._late_acks),
            ("framed", "half frames", self._half_frames),
            ("framed", "requests of every kind, with such texts", self._requests),
            ("framed", "an answer that fits no frame", self._long_ids),
            ("framed", "a flood", self._flood),
            ("framed", "asks and reads nothing", self._deaf),
            ("framed", "noise", self._noise),
            ("WebSocket", "half a handshake", self._half_handshake),
            ("WebSocket", "frames that are none", self._bad_web_frames),
            ("gRPC", "frames that are none", self._bad_h2),
            ("gRPC", "resets and settings in a row", self._h2_flood),
        )

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(self._several):
                nursery.start_soon(self._attack_on, random.Random(self._load.chance.random() + number))

    async def _attack_on(self, chance: random.Random) -> None:
        while not self._load.quiet:
            await trio.sleep(chance.expovariate(PER_S / self._several))
            transport, what, attack = chance.choice(self.attacks)
            self._load.history.attacks.append(Attack(transport, what, self._load.now()))
            await self.attack(attack, chance)

    async def attack(self, attack: Way, chance: random.Random) -> None:
        """Make one attack on a new connection; its end is not checked."""
        host, _, port = self._load.address.rpartition(":")
        with trio.move_on_after(LONGEST_S):
            try:
                async with await trio.open_tcp_stream(host, int(port)) as stream:
                    await attack(stream, chance)
            except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # it was shown the door

    # -- our own binary framing

    async def _enter(self, stream: trio.SocketStream, chance: random.Random, **hello: object) -> str:
        """Connect as a session; return its topic."""
        name = f"h{next(self._numbers)}"
        topic = f"ag::{WORKSPACE}::rogue::{name}"
        await stream.send_all(PREFACE + _hello(**hello) + _envelope(_agent(b"rogue", name.encode())))
        with trio.move_on_after(chance.choice((0.0, 0.5))):
            await stream.receive_some(65536)
        return topic

    async def _bad_names(self, stream: trio.SocketStream, chance: random.Random) -> None:
        text = chance.choice(TEXTS)
        names = chance.choice(((text, b"1"), (b"rogue", text)))
        extra = _field(chance.randint(2, 20), chance.choice(TEXTS)) if chance.random() < 0.5 else b""
        await stream.send_all(PREFACE + _hello(agent="x" * chance.choice((1, 70_000))))
        await stream.send_all(_envelope(_agent(*names, chance.choice((WORKSPACE.encode(), text)), extra)))
        await _hear(stream)

    async def _bad_texts(self, stream: trio.SocketStream, chance: random.Random) -> None:
        """Send bad texts in requests of every kind."""
        topic = await self._enter(stream, chance)
        cases = [field.number for field in pb.UpstreamMessage.DESCRIPTOR.fields if field.name != "init"]
        for _ in range(20):
            body = b"".join(_field(number, chance.choice(TEXTS)) for number in chance.sample(range(1, 16), 5))
            text = chance.choice(TEXTS)
            await stream.send_all(_frame(FrameType.ENVELOPE, _field(chance.choice(cases), body[:200_000])))
            await stream.send_all(
                _send(chance.randint(-2, 5), chance.choice((text, topic.encode(), b"tb::" + text)), text)
            )
        await _hear(stream)

    async def _small_frames(self, stream: trio.SocketStream, chance: random.Random) -> None:
        """Ask for answers that are larger than the frames that this client takes."""
        topic = await self._enter(stream, chance, max_frame=chance.choice((0, 1, 64, 256, 1024, 4096)))
        for number in range(1, 10):
            await stream.send_all(_send(number, topic.encode(), b"z" * chance.choice((10, 2_000, 60_000))))
            await stream.send_all(_send(100 + number, b"ag::" + b"n" * 30_000, b""))
        await _hear(stream)

    async def _late_acks(self, stream: trio.SocketStream, chance: random.Random) -> None:
        topic = await self._enter(stream, chance)
        await stream.send_all(b"".join(_send(number, topic.encode(), b"own") for number in range(1, 20)))
        await _hear(stream, 0.3)
        for _ in range(50):
            channel, offset = chance.choice((0, 1, 7, 2**32 - 1)), chance.choice((0, 1, 19, 10**6, 2**63 - 1, -1))
            await stream.send_all(_frame(FrameType.DELIVERED, struct.pack(">Iq", channel, offset)))
        await stream.send_all(_frame(FrameType.GOAWAY, b"\x00" * 7))
        await stream.send_all(_frame(FrameType.DELIVERED, struct.pack(">Iq", 0, 5)))
        await _hear(stream)

    async def _requests(self, stream: trio.SocketStream, chance: random.Random) -> None:
        """Send requests that can be decoded, with anything in them."""
        await self._enter(stream, chance)
        for _ in range(20):
            message = pb.UpstreamMessage()
            field = chance.choice([one for one in _PAYLOADS if one.name != "init"])
            getattr(message, field.name).SetInParent()
            _fill(getattr(message, field.name), chance)
            await stream.send_all(_envelope(message.SerializeToString()))
        await _hear(stream)

    async def _long_ids(self, stream: trio.SocketStream, chance: random.Random) -> None:
        """Send long request ids behind unread answers, so that the gateway writes later."""
        await self._enter(stream, chance, max_frame=4 * MIB)

        def ask(op: pb.KVOperation.OpType.ValueType, request_id: str, value: bytes = b"") -> bytes:
            kv = pb.KVOperation(op=op, scope=pb.KVOperation.WORKSPACE, key="big", value=value, request_id=request_id)
            return _envelope(pb.UpstreamMessage(kv_op=kv).SerializeToString())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_hear_later, stream)
            await stream.send_all(ask(pb.KVOperation.PUT, "put", bytes(MIB // 2)))
            for number in range(8):
                await stream.send_all(ask(pb.KVOperation.GET, str(number)))
            await stream.send_all(ask(pb.KVOperation.GET, "x" * (5 * MIB)))

    async def _half_frames(self, stream: trio.SocketStream, chance: random.Random) -> None:
        whole = (
            PREFACE
            + _hello()
            + _envelope(_agent(b"rogue", b"half"))
            + _send(1, b"ag::hostile::rogue::half", b"x" * 500)
        )
        await stream.send_all(whole[: chance.randrange(len(whole))])
        if chance.random() < 0.5:
            await stream.send_all(struct.pack(">IBB", chance.choice((2**31, 2**32 - 1, 10_000_000)), 3, 0))
        if chance.random() < 0.5:
            await stream.send_eof()
        await trio.sleep(chance.random())

    async def _flood(self, stream: trio.SocketStream, chance: random.Random) -> None:
        topic = await self._enter(stream, chance)
        one = chance.choice(
            (
                _frame(FrameType.PING, struct.pack(">Q", 1)),
                _send(1, topic.encode(), b"again"),
                _frame(FrameType.CREDIT, struct.pack(">qq", 2**62, 2**62)),
                _frame(200, b"", 1),
                _envelope(b""),
            )
        )
        for _ in range(FLOOD // 10):
            await stream.send_all(one * 10)

    async def _deaf(self, stream: trio.SocketStream, chance: random.Random) -> None:
        topic = await self._enter(stream, chance)
        ask = pb.UpstreamMessage(kv_op=pb.KVOperation(op=pb.KVOperation.LIST, scope=pb.KVOperation.WORKSPACE))
        payload = b"unread" * 1000
        for number in range(1, FLOOD // 4):
            await stream.send_all(_envelope(ask.SerializeToString()) + _send(number, topic.encode(), payload))
        await trio.sleep(chance.random())

    async def _noise(self, stream: trio.SocketStream, chance: random.Random) -> None:
        data = bytearray(PREFACE + _hello() + _envelope(_agent(b"rogue", b"noise")))
        for number in range(1, 20):
            data += _send(number, b"ag::hostile::rogue::noise", chance.randbytes(50))
        for _ in range(chance.randint(1, 20)):
            data[chance.randrange(len(PREFACE), len(data))] = chance.randrange(256)
        await stream.send_all(data)
        await _hear(stream)

    # -- WebSocket

    async def _half_handshake(self, stream: trio.SocketStream, chance: random.Random) -> None:
        request = _UPGRADE + chance.choice((b"X: " + b"y" * 70_000 + b"\r\n\r\n", b"X: a\x00b\r\n\r\n", b"\r\n"))
        await stream.send_all(request[: chance.randrange(3, len(request))])
        await _hear(stream)

    async def _bad_web_frames(self, stream: trio.SocketStream, chance: random.Random) -> None:
        await stream.send_all(_UPGRADE + b"\r\n")
        await _hear(stream, 0.5)
        init = b'{"init": {"agent": {"workspace": "hostile", "implementation": "rogue", "specifier": "w%d"}}}' % next(
            self._numbers
        )
        await stream.send_all(_web_frame(0x81, init))
        for _ in range(10):
            text = chance.choice(TEXTS)
            body = chance.choice(
                (
                    b'{"send": {"target_topic": "ag::%s", "payload": "eA=="}}' % text,
                    b'{"kv_op": {"op": "PUT", "key": "a\\u0000b", "value": "eA=="}}',
                    b'{"progress": {"task_id": "\\ud800", "completion": 1e999}}',
                    b"[" * 10_000,
                    text,
                )
            )
            kind = chance.choice((0x81, 0x81, 0x81, 0x82, 0x80, 0x01, 0xF1, 0x89))
            await stream.send_all(_web_frame(kind, body, masked=chance.random() < 0.9))
        await _hear(stream)

    # -- HTTP/2

    async def _bad_h2(self, stream: trio.SocketStream, chance: random.Random) -> None:
        await stream.send_all(H2_PREFACE + _h2(4, 0, 0))
        for _ in range(10):
            size = chance.choice((0, 1, 5, 100, 16_384))
            frame = _h2(
                chance.randrange(12), chance.randrange(256), chance.choice((0, 1, 3, 2**31 - 1)), chance.randbytes(size)
            )
            await stream.send_all(frame[: chance.choice((len(frame), len(frame) // 2 + 1))])
        await _hear(stream)

    async def _h2_flood(self, stream: trio.SocketStream, chance: random.Random) -> None:
        await stream.send_all(H2_PREFACE + _h2(4, 0, 0))
        one = chance.choice(
            (_h2(4, 0, 0), _h2(6, 0, 0, bytes(8)), _h2(9, 0, 1, b"x"), _h2(3, 0, 1, bytes(4)), _h2(0, 0, 1))
        )
        for _ in range(FLOOD // 10):
            await stream.send_all(one * 10)
        await _hear(stream)


_PAYLOADS: Final = pb.UpstreamMessage.DESCRIPTOR.oneofs_by_name["payload"].fields
_UPGRADE: Final = (
    b"GET /aether HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: aether.v1.json\r\n"
)


async def _hear(stream: trio.SocketStream, seconds: float = 1.0) -> None:
    """Read and drop what the gateway sends, for a while."""
    with trio.move_on_after(seconds):
        while await stream.receive_some(65536):
            pass


async def _hear_later(stream: trio.SocketStream) -> None:
    await trio.sleep(1.0)
    await _hear(stream)


def _fill(message: Message, chance: random.Random, depth: int = 0) -> None:
    """Fill most fields of a message with anything that protobuf can encode."""
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated or chance.random() < 0.3:
            continue
        if field.type == field.TYPE_MESSAGE:
            if depth < 3:
                getattr(message, field.name).SetInParent()
                _fill(getattr(message, field.name), chance, depth + 1)
        elif field.type == field.TYPE_STRING:
            setattr(message, field.name, chance.choice(("x", "a\x00b", "::", "%", "y" * 70_000, WORKSPACE)))
        elif field.type == field.TYPE_BYTES:
            setattr(message, field.name, chance.choice((b"", b"{}", bytes(1000), b"\xff" * 70_000)))
        elif field.type == field.TYPE_ENUM:
            setattr(message, field.name, chance.choice(field.enum_type.values).number)
        elif field.type == field.TYPE_BOOL:
            setattr(message, field.name, chance.random() < 0.5)
        elif field.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT):
            setattr(message, field.name, chance.choice((0.0, -1.0, 0.5, float("nan"), float("inf"))))
        elif field.type in (field.TYPE_INT64, field.TYPE_SINT64):
            setattr(message, field.name, chance.choice((0, 1, -1, 2**63 - 1, -(2**63))))
        else:
            setattr(message, field.name, chance.choice((0, 1, 2**31 - 1)))


def _frame(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">IBB", len(body), kind, flags) + body


def _hello(**keys: object) -> bytes:
    return _frame(FrameType.HELLO, msgspec.msgpack.encode(keys))


def _send(seq: int, topic: bytes, payload: bytes) -> bytes:
    topic = topic[:65_535]
    return _frame(FrameType.SEND, struct.pack(">qHHI", seq, 1, len(topic), 0) + topic + payload)


def _envelope(message: bytes) -> bytes:
    return _frame(FrameType.ENVELOPE, message)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    """Encode a field of bytes, text or message in protobuf."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _agent(implementation: bytes, specifier: bytes, workspace: bytes = WORKSPACE.encode(), extra: bytes = b"") -> bytes:
    """An UpstreamMessage with an InitConnection of any texts."""
    agent = _field(1, workspace) + _field(2, implementation) + _field(3, specifier)
    return _field(pb.UpstreamMessage.INIT_FIELD_NUMBER, _field(pb.InitConnection.AGENT_FIELD_NUMBER, agent) + extra)


def _web_frame(first: int, body: bytes, *, masked: bool = True) -> bytes:
    mask = 0x80 if masked else 0
    if len(body) < 126:
        head = bytes((first, mask | len(body)))
    elif len(body) < 65_536:
        head = struct.pack(">BBH", first, mask | 126, len(body))
    else:
        head = struct.pack(">BBQ", first, mask | 127, len(body))
    return head + (bytes(4) if masked else b"") + body


def _h2(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body
