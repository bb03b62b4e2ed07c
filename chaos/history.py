"""What was seen, by the clients and by the database.

Only records: checks.py says what they mean.

Times are seconds since the run began, of this process's clock, which all clients share.
"""

from __future__ import annotations

import enum
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path


class Outcome(enum.StrEnum):
    """The outcome of a request: accepted, refused, or in doubt."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    IN_DOUBT = "in doubt"
    """It may have happened."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message: (sender, number) is unique in a run; `session` is the sender's."""

    sender: str
    number: int
    session: str = ""

    def encode(self) -> bytes:
        return f"{self.sender}|{self.number}|{self.session}".encode()

    @classmethod
    def decode(cls, payload: bytes) -> Message:
        sender, number, session = payload.decode().split("|")
        return cls(sender, int(number), session)


@dataclass(frozen=True, slots=True)
class Sent:
    """One message. A sender sends its next one to the same topic after `settled_s`."""

    topic: str
    message: Message
    started_s: float
    settled_s: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Delivered:
    """A message that an application was given, on its n-th `connection`."""

    reader: str
    topic: str
    offset: int
    message: Message
    at_s: float
    connection: int


@dataclass(frozen=True, slots=True)
class Counted:
    """An increment of a counter; `value` is the answer when accepted."""

    key: str
    client: str
    started_s: float
    settled_s: float
    outcome: Outcome
    value: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """A growing number written to a place, or read from it (0 for none)."""

    place: str
    what: str
    number: int
    outcome: Outcome
    started_s: float
    settled_s: float


@dataclass(slots=True)
class Made:
    """A created task: for the worker `target`, or for a pool ("")."""

    name: str
    target: str
    asked_s: float
    created_s: float = math.inf
    """When its creator was answered."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A worker claimed a task that it was given."""

    name: str
    worker: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Turn:
    """A session of an identity that several clients want.

    Which client reads in it, and when that client knew that it has the identity.
    """

    topic: str
    reader: str
    since_s: float
    session: str = ""


@dataclass(frozen=True, slots=True)
class Attack:
    transport: str
    what: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A gateway that ended without an order."""

    node: str
    at_s: float
    code: int


@dataclass(slots=True)
class Outage:
    """A time without a connection; `until_s` is infinite while it lasts."""

    client: str
    since_s: float
    until_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Held:
    """A row of `identity_locks` as it was written, in the order of writes.

    `stolen`: its holder before was on another node, had not ended, and the lease of that node had
    not ended either.
    """

    identity: str
    session: str
    epoch: int
    node: str
    """Node and its epoch."""
    live: bool
    stolen: bool


@dataclass(frozen=True, slots=True)
class Backwards:
    """A stored position that went back."""

    topic: str
    consumer: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Logged:
    """A topic in the database at the end: its count of messages and its offsets."""

    topic: str
    messages: int
    first: int
    last: int
    counted: int


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A fault, from its beginning until all of it was taken back."""

    kind: str
    target: str
    since_s: float
    until_s: float


@dataclass
class History:
    """All records of one run."""

    sent: list[Sent] = field(default_factory=list)
    delivered: list[Delivered] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    counters: dict[str, set[int]] = field(default_factory=dict)
    """What was read of each counter at the end, over all nodes."""
    kept: list[Kept] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    begun: list[Begun] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    attacks: list[Attack] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    """The last lines of those that the nodes have printed."""
    outages: list[Outage] = field(default_factory=list)
    gave_up: list[str] = field(default_factory=list)
    """Clients that ended by themselves, and why."""
    held: list[Held] = field(default_factory=list)
    backwards: list[Backwards] = field(default_factory=list)
    logged: list[Logged] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    began_unix_s: float = 0.0
    """By which these times can be found in what the nodes have printed."""
    ended_s: float = 0.0

    def write(self, file: Path) -> None:
        """Write all records as lines of JSON, each with its field's name as "what"."""
        records = (
            "sent",
            "delivered",
            "counted",
            "kept",
            "made",
            "begun",
            "turns",
            "attacks",
            "ended",
            "outages",
            "held",
            "backwards",
            "logged",
            "disturbances",
        )
        with file.open("w") as lines:
            lines.write(json.dumps({"what": "run", "began_unix_s": self.began_unix_s, "ended_s": self.ended_s}) + "\n")
            for what in records:
                for record in getattr(self, what):
                    lines.write(json.dumps({"what": what, **asdict(record)}) + "\n")
