"""Turn inputs of fuzz targets into reads, and drive coroutines."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

PARTS: Final = 300
VECTORS: Final = Path(__file__).parents[1] / "tests" / "wire" / "vectors"


def choices(data: bytes, count: int) -> tuple[list[int], bytes]:
    """Split off `count` bytes as numbers, 0 where there are none."""
    return [*data[:count], *[0] * count][:count], data[count:]


def split(stream: bytes, step: int) -> Iterator[bytes]:
    """Split into some PARTS of changing lengths from 1 to `step`; step 0 is whole."""
    at, length = 0, step
    scale = 1 + len(stream) // PARTS
    while at < len(stream):
        size = length * scale if step else len(stream)
        yield stream[at : at + size]
        at += size
        length = length % step + 1 if step else 0


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise AssertionError("it waits, though nothing can come")
