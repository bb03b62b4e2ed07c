"""The world of a scenario: loop, transport, target, and participants on it.

A participant is one connection that has sent Init. What it receives goes to its handler in whole
batches; what no scenario wants (configuration, the ack, errors) is sorted out here, so a refusal by
the gateway is always counted by its code and never mistaken for slowness.
"""

from __future__ import annotations

import secrets
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Final

from bench import wire
from bench.loop import READ_BYTES, Loop, dial
from bench.process import ProcessProbe
from bench.transports import ClientCodec, Transport

CONNECTING_AT_ONCE = 32
SETTLING_SECONDS = 30.0
"""How long acknowledgements may come behind the last delivery."""
PATIENCE_SECONDS = 60.0
"""How long anything that must happen may take before the scenario gives up; long, because CPU is
stolen in bursts.
"""


GROWTH: Final = {"agents": (10, 1_000, 10_000), "messages": (1_000, 1_000_000), "keys": (100, 100_000)}


class ScenarioFailed(Exception):
    """The scenario cannot go on; the text says what the server did."""


@dataclass(frozen=True, slots=True)
class Options:
    """The sizes that the command line may change."""

    pairs: int = 100
    payload: int = 200
    connections: int = 2000
    fanout: Sequence[int] = (100, 1000)
    queued: tuple[int, int] = (1_000, 1_000_000)
    growth: Mapping[str, Sequence[int]] = field(default_factory=lambda: dict(GROWTH))
    """The sizes at which costs are compared, the smallest first: agents, messages and keys."""
    rules: int = 100_000
    """Access rules of the gateways with many."""
    sessions: int = 10_000
    """Sessions that are live while some are revoked."""
    audit_rows: int = 500_000
    items: int = 10_000
    """Items of the large map in workflows-map."""
    waiting: int = 1_000_000
    """Executions that wait while some are woken."""
    event_rules: int = 10_000
    """Rules for events, of the workflow engine."""
    backup_mib: int = 1024
    """How much a gateway has that is backed up."""
    rate: float | None = None
    minutes: float = 60.0
    """How long scenarios endure that have no rests."""
    windows: int = 10
    window_seconds: float = 0.5
    credentials: Mapping[str, str] = field(default_factory=dict)
    explain: bool = False
    """Whether each scenario has a few more windows with a sampler."""


class Participant:
    """One connection; `handler(participant, messages)` gets all behind the ack."""

    __slots__ = ("acknowledged", "closing", "codec", "early", "handler", "index", "label", "socket", "world")

    def __init__(self, world: World, raw: socket.socket, codec: ClientCodec, label: str, index: int) -> None:
        self.world, self.socket, self.codec, self.label, self.index = world, raw, codec, label, index
        self.handler: Callable[[Participant, list[bytes]], None] = world.ignore
        self.acknowledged = self.closing = False
        self.early: list[bytes] = []

    def send(self, message: bytes) -> None:
        """Queue a message for the end of this round of the loop."""
        self.codec.send(message)
        self.world.loop.wants_write(self)

    def take(self) -> bytes:
        return self.codec.take()

    def readable(self) -> None:
        try:
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as broken:
            self.world.gone(self, str(broken))
            return
        if not data:
            self.world.gone(self, "the server closed the connection")
            return
        codec = self.codec
        messages = codec.receive(data)
        if messages:
            if self.acknowledged:
                self.handler(self, messages)
            else:
                self.world.greeted(self, messages)
        if codec.ended:
            self.world.gone(self, "")
        else:
            self.world.loop.wants_write(self)


class World:
    """A target and its participants; `probe` is None for unknown processes."""

    def __init__(
        self,
        loop: Loop,
        transport: Transport,
        address: str,
        probe: ProcessProbe | None,
        options: Options,
        nodes: Sequence[str] = (),
        data_dir: Path | None = None,
        dsn: str = "",
        workspace: str = "",
        cast: str = "",
    ) -> None:
        self.nodes = nodes
        """The addresses of a cluster's nodes."""
        self.data_dir, self.dsn = data_dir, dsn
        """Where the data of a gateway lies that was started here: a directory, or the PostgreSQL of
        a cluster.
        """
        self.loop, self.transport, self.address, self.probe, self.options = loop, transport, address, probe, options
        self.workspace = workspace or f"bench-{secrets.token_hex(4)}"
        self._cast = cast
        """What stands before the names of agents, where scenarios share a workspace."""
        self.errors: Counter[str] = Counter()
        self.error_texts: dict[str, str] = {}
        self.on_refusal: Callable[[Participant, str], None] | None = None
        self._greeting: set[Participant] = set()
        self._closing: set[Participant] = set()
        self.on_greeted: Callable[[Participant], None] | None = None

    def dial(self, init: bytes, label: str, index: int = 0, address: str = "") -> Participant:
        """Begin to connect one participant; `on_greeted` is told of its ack."""
        address = address or self.address
        host, _, port = address.rpartition(":")
        raw = dial(host.strip("[]"), int(port))
        participant = Participant(self, raw, self.transport.codec(address), f"{label} {index}", index)
        self.loop.add(participant)
        participant.codec.send(init)
        self._greeting.add(participant)
        return participant

    def open(self, inits: Iterable[bytes], label: str, places: Sequence[str] = ()) -> list[Participant]:
        """Connect participants to `places` (or the target) in turn, up to their acks."""
        waiting = deque(inits)
        opened: list[Participant] = []

        def more() -> bool:
            while waiting and len(self._greeting) < CONNECTING_AT_ONCE:
                number = len(opened)
                place = places[number % len(places)] if places else ""
                opened.append(self.dial(waiting.popleft(), label, number, place))
            return not waiting and not self._greeting

        self.wait(more, f"{label}: connections")
        return opened

    def agents(
        self, implementation: str, count: int, workspace: str = "", places: Sequence[str] = ()
    ) -> list[Participant]:
        """Open agents `implementation::0`, `::1`, … at `places`; `index` is the number."""
        place = workspace or self.workspace
        credentials = self.options.credentials
        implementation = self.implementation(implementation)
        return self.open(
            (wire.agent_init(place, implementation, str(n), credentials) for n in range(count)), implementation, places
        )

    def implementation(self, name: str) -> str:
        """Return what agents of this world have as their implementation for a name."""
        return self._cast + name

    def topic(self, implementation: str, index: int) -> str:
        return f"ag::{self.workspace}::{self.implementation(implementation)}::{index}"

    def begin_close(self, participant: Participant) -> None:
        """End the stream cleanly; the socket closes once the server has ended its side."""
        participant.closing = True
        self._closing.add(participant)
        participant.codec.end()
        if participant.codec.half_closes:
            self.loop.ends_writing(participant)
        else:
            self.loop.wants_write(participant)

    def expect_ends(self, participants: Iterable[Participant]) -> None:
        """Let the server end these connections; `busy` counts those that are left."""
        for participant in participants:
            participant.closing = True
            self._closing.add(participant)

    def close_all(self, participants: Iterable[Participant]) -> None:
        """End these streams and wait for the server's ends."""
        for participant in participants:
            self.begin_close(participant)
        self.wait(lambda: not self._closing, "closing connections")

    def unsettled(self) -> int:
        """Wait a while for acknowledgements; return how many are missing."""

        def count() -> int:
            return sum(participant.codec.unsettled() for participant in self.participants)

        self.loop.run(perf_counter() + SETTLING_SECONDS, lambda: not count())
        return count()

    @property
    def participants(self) -> list[Participant]:
        """The participants of this world; others may be on the same loop."""
        return [one for one in self.loop.watched if isinstance(one, Participant) and one.world is self]

    @property
    def busy(self) -> int:
        return len(self._greeting) + len(self._closing)

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Run the loop until `done`; raises ScenarioFailed after a long time."""
        if not self.loop.run(perf_counter() + PATIENCE_SECONDS, done):
            raise ScenarioFailed(f"{what}: not done after {PATIENCE_SECONDS:.0f} s{self.refusals()}")

    def pause(self, seconds: float) -> None:
        """Let time pass, and answer pings."""
        self.loop.run(perf_counter() + seconds)

    def greeted(self, participant: Participant, messages: list[bytes]) -> None:
        """Take the first messages of a connection: the ack, and any before or behind it."""
        participant.early += messages
        for position, message in enumerate(participant.early):
            if message[0] == wire.ACK:
                early, participant.early = participant.early, []
                del early[position]
                participant.acknowledged = True
                self._greeting.discard(participant)
                if self.on_greeted:
                    self.on_greeted(participant)
                if early:
                    participant.handler(participant, early)
                return

    def gone(self, participant: Participant, how: str) -> None:
        """Note the end of a connection, which fails the scenario if not asked for."""
        status = participant.codec.status() if participant.codec.ended and not participant.closing else how
        self.loop.discard(participant)
        if not participant.closing:
            raise ScenarioFailed(f"{participant.label} lost its stream: {status or how}{self.refusals()}")
        self._closing.discard(participant)

    def ignore(self, participant: Participant, messages: list[bytes]) -> None:
        """Drop messages: the handler of participants that expect none."""
        for message in messages:
            self.other(participant, message)

    def other(self, participant: Participant, message: bytes) -> None:
        """Take a message that the scenario did not ask for: count errors, drop the rest."""
        if message[0] == wire.ERROR:
            code, text = wire.read_error(message)
            self.errors[code] += 1
            self.error_texts.setdefault(code, text)
            if self.on_refusal:
                self.on_refusal(participant, code)

    def refusals(self) -> str:
        """The errors so far, as the end of another text."""
        return "".join(f"; {count} x {code} ({self.error_texts[code]})" for code, count in self.errors.items())
