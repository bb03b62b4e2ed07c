"""A client of the framing from docs/wire.md: python minimal_client.py HOST:PORT

It uses sockets, struct and msgpack, and nothing of aether_trio.
"""

import itertools
import os
import socket
import struct
import sys

import msgpack

PREFACE = b"\xaeAETHER\x01"
HELLO, SEND, DELIVER, ACK, NACK, DELIVERED, CREDIT, ENVELOPE, PING, PONG, GOAWAY, ERROR, CHANNEL = range(1, 14)
MAX_FRAME = 4_194_304


class Ended(Exception):
    """(code of the gateway's ERROR or 0 for end of stream, retryable, text)."""


def varint(value):
    return bytes((value & 0x7F | 0x80,)) + varint(value >> 7) if value > 0x7F else bytes((value,))


def field(number, value):
    """A field of protobuf: bytes or a message."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def read_varint(data):
    value = 0
    for place, byte in enumerate(data):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value
    return None


def fields(data):
    """{number: value} of a serialized message: ints and bytes; repeated: the last."""
    found, rest = {}, iter(data)
    while (tag := read_varint(rest)) is not None:
        size = {0: 0, 1: 8, 5: 4}.get(tag & 7) if tag & 7 != 2 else read_varint(rest)
        found[tag >> 3] = bytes(itertools.islice(rest, size)) if tag & 7 else read_varint(rest)
    return found


class Client:
    """A connected agent; `identity` is (workspace, implementation, specifier)."""

    def __init__(self, address, identity, publisher=None, credit=100):
        self.seq, self.acked, self.refused, self.channels = 0, 0, {}, {}
        self.messages, self.envelopes = [], []
        self.socket = socket.create_connection(address, 30)
        self.publisher = publisher or os.urandom(16)
        hello = {"agent": "minimal/1", "max_frame": MAX_FRAME, "credit_messages": credit, "publisher": self.publisher}
        agent = b"".join(field(number, part.encode()) for number, part in enumerate(identity, 1))
        self.socket.sendall(PREFACE)
        self.write(HELLO, msgpack.packb(hello))
        self.write(ENVELOPE, field(1, field(1, agent)))  # UpstreamMessage{init{agent}}
        if self.read_exactly(8) != PREFACE:
            raise Ended(0, False, "no gateway of this version")
        self.read_until(lambda: self.envelopes)  # ConnectionAck.session_id
        self.session = fields(fields(self.envelopes.pop(0))[7])[1].decode()

    def write(self, kind, body):
        self.socket.sendall(struct.pack(">IBB", len(body), kind, 0) + body)

    def read_exactly(self, size):
        data = b""
        while len(data) < size:
            if not (more := self.socket.recv(size - len(data))):
                raise Ended(0, True, "end of the stream")
            data += more
        return data

    def read_until(self, condition):
        while not condition():
            size, kind, flags = struct.unpack(">IBB", self.read_exactly(6))
            if size > MAX_FRAME:
                raise Ended(0x102, False, "FRAME_TOO_LARGE")
            self.take(kind, flags, self.read_exactly(size))

    def take(self, kind, flags, body):
        if kind == HELLO:
            self.limits = msgpack.unpackb(body)
        elif kind == ENVELOPE:
            self.envelopes.append(body)
        elif kind == ACK:
            (self.acked,) = struct.unpack(">q", body)
        elif kind == NACK:
            seq, pause, size = struct.unpack_from(">qIH", body)
            self.refused[seq] = body[14 : 14 + size].decode(), bool(flags & 1), pause, body[14 + size :].decode()
        elif kind == CHANNEL:
            (number,) = struct.unpack_from(">I", body)
            self.channels[number] = None if flags & 1 else body[12:].decode()
        elif kind == DELIVER:
            channel, offset = struct.unpack_from(">Iq", body)
            message = fields(fields(body[12:])[1])  # DownstreamMessage{msg{source_topic, payload}}
            source, payload = message.get(1, b"").decode(), message.get(2, b"")
            self.messages.append((channel, offset, self.channels[channel], source, payload))
        elif kind == PING:
            self.write(PONG, body)
        elif kind == ERROR:
            raise Ended(struct.unpack_from(">H", body)[0], bool(flags & 1), body[6:].decode())
        elif kind < 0x80 and kind not in (PONG, GOAWAY):
            raise Ended(0x103, False, f"UNKNOWN_FRAME {kind}")

    def send(self, topic, payload, seq=None):
        """Send and return the number; a repetition has its old number, `seq`."""
        self.seq = seq or self.seq + 1
        self.write(SEND, struct.pack(">qHHI", self.seq, 1, len(topic.encode()), 0) + topic.encode() + payload)
        return self.seq

    def settle(self, seq):
        """None when the message is stored, else (code, retryable, retry_after_ms, text)."""
        self.read_until(lambda: self.acked >= seq)
        return self.refused.pop(seq, None)

    def receive(self):
        """The next message: (channel, offset, topic, source topic, payload)."""
        self.read_until(lambda: self.messages)
        return self.messages.pop(0)

    def done(self, channel, offset):
        self.write(DELIVERED, struct.pack(">Iq", channel, offset))
        self.write(CREDIT, struct.pack(">qq", 1, 0))

    def close(self):
        """End this side of the stream, and wait for the end of the gateway's."""
        self.socket.shutdown(socket.SHUT_WR)
        try:
            self.read_until(lambda: False)
        except Ended as end:
            if end.args[0]:
                raise
        self.socket.close()


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    client = Client((host, int(port)), ("default", "minimal", "1"))
    print("settled:", client.settle(client.send("ag::default::minimal::1", b"to myself")))
    channel, offset, topic, source, payload = client.receive()
    client.done(channel, offset)
    print(f"{source} to {topic}: {payload.decode()}")
    client.close()
