"""What one worker is to do: plain values, sent to it as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from aether_trio.model.identity import Identity
from loadtests.shapes import SHAPES, Shape

TRANSPORTS = ("framed", "websocket", "grpc", "grpc-raw")
GRPCIO_CHANNELS = 8
"""Under gevent grpcio waits for each of its channels in a thread of gevent's pool, which has ten.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """One worker's part of a run. Rates are this worker's own."""

    transport: str
    address: str
    shape: str
    run: str
    """A random word that keeps the identities of two runs apart; also the workspace."""
    users: int
    """Of all workers together."""
    first: int
    count: int
    seconds: float
    connect_rate: float
    connecting: int
    talking: float
    rate: float
    payload: int
    conversation_s: float = 10.0
    lifetime_s: float = 30.0
    slow: float = 0.0
    slow_pause_s: float = 2.0
    jitter_s: float = 1.0
    streams: int = 1
    sources: tuple[str, ...] = ("",)
    per_address: int = 25_000
    credentials: dict[str, str] = field(default_factory=dict)

    @property
    def what(self) -> Shape:
        """The shape's record."""
        return SHAPES[self.shape]

    @property
    def host(self) -> str:
        """Of the address, without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Of the address."""
        return int(self.address.rpartition(":")[2])

    def identity(self, index: int) -> Identity:
        """Give the identity of user `index`: an agent, or a window on WebSocket.

        The WebSocket transport admits only windows by default.
        """
        if self.transport == "websocket":
            return Identity.user(f"{self.run}-{index}", "w")
        return Identity.agent(self.run, "load", str(index))

    @property
    def broadcast_topic(self) -> str:
        """The topic that all users are subscribed to."""
        return f"gu::{self.run}" if self.transport == "websocket" else f"ga::{self.run}"

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """What `to_json` made."""
        values: dict[str, Any] = json.loads(text)
        values["sources"] = tuple(values["sources"])
        return cls(**values)
