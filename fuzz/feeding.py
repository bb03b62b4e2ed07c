"""Shared by the targets: turns an input into reads, and drives coroutines."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

PARTS: Final = 300
VECTORS: Final = Path(__file__).parents[1] / "tests" / "wire" / "vectors"


def choices(data: bytes, count: int) -> tuple[list[int], bytes]:
    """The first `count` bytes as numbers (0 where there are none), and the rest."""
    return [*data[:count], *[0] * count][:count], data[count:]


def split(stream: bytes, step: int) -> Iterator[bytes]:
    """Parts of 1 to `step` bytes, of changing lengths; the whole for step 0.

    Those of a long stream are longer: PARTS or so.
    """
    at, length = 0, step
    scale = 1 + len(stream) // PARTS
    while at < len(stream):
        size = length * scale if step else len(stream)
        yield stream[at : at + size]
        at += size
        length = length % step + 1 if step else 0


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that waits for nothing.

    Everything that it reads is there.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise AssertionError("it waits, though nothing can come")
