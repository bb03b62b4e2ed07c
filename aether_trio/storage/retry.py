"""Repeat work until storage answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import trio

from aether_trio.storage.base import RefusedError, StorageUnavailable

__all__ = ["RETRY_DELAY_S", "retry_while_unavailable"]

T = TypeVar("T")

RETRY_DELAY_S: Final = 0.5
"""Seconds between two attempts of work that storage did not answer."""


async def retry_while_unavailable(
    work: Callable[[], Awaitable[T]],
    what: str,
    logger: Any,
    *,
    delay_s: float = RETRY_DELAY_S,
    on_failure: Callable[[], object] = lambda: None,
) -> T:
    """Await `work()`, again after `delay_s` while it raises StorageUnavailable.

    The first failure is logged with structlog's `logger` as a warning that names `what`; the
    success after it as information. `on_failure` is called after each failure. Other exceptions,
    RefusedError among them, pass.
    """
    failed = False
    while True:
        try:
            result = await work()
        except StorageUnavailable as error:
            if isinstance(error, RefusedError):
                raise
            if not failed:
                logger.warning("storage is unavailable; `what` is retried meanwhile", what=what, reason=str(error))
            failed = True
            on_failure()
            await trio.sleep(delay_s)
        else:
            if failed:
                logger.info("storage answers again", what=what)
            return result
