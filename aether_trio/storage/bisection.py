"""Split a failed statement of several callers: a caller's mistake costs no other.

    work([a, b, c, d]) refused ──▶ work([a, b]) ──▶ done
                                   work([c, d]) refused ──▶ work([c]) ──▶ done
                                                            work([d]) refused ──▶ refused(d, why)

A group that fails is split into halves, so a thousand items with one mistake cost some twenty
statements. Items are done in their order.
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
    """Await `work(items)`, in halves again where it fails; return all results.

    `refused(item, error)` is called for each item for which `work` raises alone, other than
    StorageUnavailable. Raises StorageUnavailable when storage does not answer; part of the work may
    be done by then, so `work` must do no harm when it is done again.
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
