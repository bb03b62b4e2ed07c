"""What the users do: a table of shapes, and how many users there are when.

In every shape users connect at an even rate, and then a part of them talks. What differs is in the
record.
"""

from __future__ import annotations

from dataclasses import dataclass

RAMP_STEPS = 10


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to load a gateway.

    The numbers are defaults that the command line may change.
    """

    name: str
    doc: str
    talking: float = 1.0
    """Per cent of the users that are in a conversation at any time."""
    rate: float = 1.0
    """Messages per second of each user in a conversation; of fan-out, broadcasts per second."""
    payload: int = 200
    """Bytes of a message."""
    stepped: bool = False
    """Users come in steps, spread over the whole time, instead of at once."""
    cut: bool = False
    """All connections are cut at the same moment, in the middle of the time."""
    broadcast: bool = False
    """One speaks to all; otherwise pairs talk."""
    churn: bool = False
    """Users leave and come back all the time."""
    slow: float = 0.0
    """Per cent of the users that read slowly."""


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("chat", "pairs, mostly idle; a few of them talk, in turns of some seconds"),
        Shape("ramp", f"as chat, but users come in {RAMP_STEPS} steps over the whole time", stepped=True),
        Shape("storm", "as chat; in the middle all are cut at once and come back with resume", cut=True),
        Shape("fan-out", "one user broadcasts to all others", broadcast=True),
        Shape(
            "slow-readers",
            "as chat with larger messages; a part reads slowly and must not slow the rest",
            talking=10.0, rate=5.0, payload=4096, slow=10.0,
        ),
        Shape("churn", "as chat; users leave after a while and come back", churn=True),
    )
}  # fmt: skip


def target(shape: Shape, users: int, elapsed_s: float, total_s: float) -> int:
    """How many users there shall be after `elapsed_s`."""
    if not shape.stepped or total_s <= 0:
        return users
    step = min(RAMP_STEPS, int(elapsed_s / total_s * RAMP_STEPS) + 1)
    return -(-users * step // RAMP_STEPS)


def spread(users: int, processes: int) -> list[tuple[int, int]]:
    """(first, count) for each process.

    All firsts are even, so that pairs stay together; every process gets some.
    """
    pairs = -(-users // 2)
    processes = max(1, min(processes, pairs))
    parts: list[tuple[int, int]] = []
    first = 0
    for n in range(processes):
        size = 2 * (pairs // processes + (n < pairs % processes))
        parts.append((first, min(size, users - first)))
        first += size
    return parts
