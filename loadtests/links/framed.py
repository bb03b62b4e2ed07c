"""The framed transport on a gevent socket, with acknowledged sends and deliveries."""

from __future__ import annotations

import time
from collections.abc import Sequence

from aether_trio.model.errors import Status
from aether_trio.wire import framing as fr
from bench import wire
from loadtests.links.base import EOF, OK, Ended, Link, Opening, Unsettled, init_bytes
from loadtests.links.tcp import Tcp

_NAMES = {code.value: code.name for code in (*Status, *fr.ErrorCode)}


class FramedLink(Link):
    """Sends messages again with their old numbers when a connection lost their acks."""

    settles = True

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening)
        self._codec = fr.FramedConnection(fr.Side.CLIENT)
        self._tcp: Tcp | None = None
        self._topics: dict[int, str] = {}
        self._handled: dict[int, int] = {}
        self._early: list[bytes] = []
        self._leaving = False
        # The gateway's last word; what came before it is handled first.
        self._over: Ended | None = None

    def open(self) -> None:
        """See `Link.open`."""
        self._tcp = tcp = Tcp(self.opening)
        hello = fr.ClientHello(agent="aether-load/1", publisher=self.opening.outbox.publisher)
        tcp.send(self._codec.send(hello) + self._codec.send(fr.Envelope(init_bytes(self.opening))))
        while not self.session_id:
            messages = self._some()
            if messages:
                self.greeted(messages[0])
                self._early = messages[1:]
        self.opening.outbox.rewind()
        self._pump()

    def receive(self) -> list[bytes]:
        """See `Link.receive`."""
        if self._early:
            early, self._early = self._early, []
            return early
        if self._handled:
            self._acknowledge()
        while True:
            messages = self._some()
            if messages:
                return messages

    def _acknowledge(self) -> None:
        assert self._tcp is not None
        codec = self._codec
        if not self._leaving:
            frames = [
                codec.send(fr.Delivered(channel, offset))
                for channel, offset in self._handled.items()
                if channel in self._topics
            ]
            self._tcp.send(b"".join(frames))
        self._handled.clear()

    def _some(self) -> list[bytes]:
        assert self._tcp is not None
        if self._over is not None:
            raise self._over
        data = self._tcp.receive()
        try:
            if not data:
                self._codec.receive_end()
                raise Ended(OK if self._leaving else EOF, "the stream ended without an ERROR")
            events = self._codec.receive(data)
        except fr.RemoteProtocolError as error:
            events = error.events
            self._over = Ended(error.code.name, error.message)
        return self._sort(events)

    def _sort(self, events: Sequence[fr.Event]) -> list[bytes]:
        messages: list[bytes] = []
        for event in events:
            match event:
                case fr.Deliver(channel, offset, message):
                    topic = self._topics[channel]
                    self._handled[channel] = offset
                    if offset > self.opening.positions.get(topic, 0):
                        self.opening.positions[topic] = offset
                        messages.append(message)
                    else:
                        self.recorder.counts["redelivered"] += 1
                case fr.Ack(seq):
                    self._settled(seq)
                case fr.Envelope(message):
                    messages.append(message)
                case fr.Channel():
                    self._topics[event.channel] = event.topic
                case fr.ChannelClosed(channel):
                    self._topics.pop(channel, None)
                case fr.Nack(seq, code, text):
                    self._refused(seq, code, text)
                case fr.Ping():
                    if not self._leaving:
                        self.write(fr.Pong(event.number))
                case fr.Error(code, text):
                    self._over = Ended(_NAMES.get(code, f"ERROR_{code:#x}"), text)
                case _:
                    pass  # HELLO is in the codec; GOAWAY is followed by the end of the stream
        return messages

    def write(self, event: fr.Event) -> None:
        """One frame, unless its time is over."""
        assert self._tcp is not None
        try:
            self._tcp.send(self._codec.send(event))
        except fr.LocalProtocolError:
            pass  # the gateway is leaving: the frame would not be read

    def publish(self, topic: str, payload: bytes, stamp_ns: int) -> None:
        """See `Link.publish`."""
        outbox = self.opening.outbox
        outbox.waiting.append(Unsettled(outbox.next_seq, topic, payload, stamp_ns))
        outbox.next_seq += 1
        self._pump()

    def _pump(self) -> None:
        """Send what waits, as far as the window of unacknowledged numbers reaches."""
        assert self._tcp is not None
        outbox, sequence = self.opening.outbox, self._codec.sequence
        if self._leaving or self._codec.state is not fr.ConnectionState.LIVE:
            return
        frames: list[bytes] = []
        while outbox.waiting:
            entry = outbox.waiting[0]
            acked = sequence.acked if sequence.last else entry.seq - 1
            if entry.seq - acked > sequence.window:
                break
            try:
                frames.append(self._codec.send(fr.Send(entry.seq, entry.topic, entry.payload, wire.OPAQUE)))
            except fr.LocalProtocolError:
                break  # the gateway is leaving
            outbox.unsettled.append(outbox.waiting.popleft())
        if frames:
            self._tcp.send(b"".join(frames))

    def _settled(self, seq: int) -> None:
        now = time.perf_counter_ns()
        unsettled = self.opening.outbox.unsettled
        while unsettled and unsettled[0].seq <= seq:
            self.recorder.latency("ack", now - unsettled.popleft().stamp_ns)
            self.recorder.counts["acked"] += 1
        if self.opening.outbox.waiting:
            self._pump()

    def _refused(self, seq: int, code: str, text: str) -> None:
        self.recorder.error(code, text)
        self.recorder.counts["refused"] += 1
        unsettled = self.opening.outbox.unsettled
        for entry in unsettled:
            if entry.seq == seq:
                unsettled.remove(entry)
                break

    def send(self, message: bytes) -> None:
        """See `Link.send`."""
        self.write(fr.Envelope(message))

    def leave(self) -> None:
        """See `Link.leave`. What is handled is acknowledged first."""
        if self._tcp is None or self._leaving:
            return
        self._acknowledge()
        self._leaving = True
        self._codec.end()
        self._tcp.end()

    def cut(self) -> None:
        """See `Link.cut`."""
        if self._tcp is not None:
            self._tcp.cut()

    def close(self) -> None:
        """See `Link.close`."""
        if self._tcp is not None:
            self._tcp.close()
