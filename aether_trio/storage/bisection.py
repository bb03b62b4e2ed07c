"""Work of several callers that shares a statement: a mistake of one of them costs none of the others.

    work([a, b, c, d]) refused ──▶ work([a, b]) ──▶ done
                                   work([c, d]) refused ──▶ work([c]) ──▶ done
                                                            work([d]) refused ──▶ refused(d, why)

Halves, so that a thousand with one mistake cost some twenty statements. What comes before another one is done before it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from aether_trio.storage.base import RefusedError, StorageUnavailable

S = TypeVar("S")
R = TypeVar("R")


async def in_halves(
    items: Sequence[S], work: Callable[[Sequence[S]], Awaitable[Sequence[R]]], refused: Callable[[S, Exception], object]
) -> list[R]:
    """What `work` returns for all items; `refused` is told of each that it raises for alone, with anything but an outage.

    Raises StorageUnavailable when storage cannot take anything now; what was done until then is done, so `work` must do no harm when
    it is done again.
    """
    try:
        return list(await work(items))
    except StorageUnavailable as error:
        if not isinstance(error, RefusedError):
            raise
        mistake: Exception = error
    except Exception as error:
        mistake = error
    if len(items) == 1:
        refused(items[0], mistake)
        return []
    half = len(items) // 2
    done = await in_halves(items[:half], work, refused)
    done += await in_halves(items[half:], work, refused)
    return done
