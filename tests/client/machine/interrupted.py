"""Stop a coroutine at the n-th place where it waits."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any

import anyio

__all__ = ["Crash", "stopped_at"]


class Crash(Exception):
    """What an application raises."""


class _Counted:
    """Await it: `coroutine`, whose scope is cancelled when it waits for the n-th time."""

    def __init__(self, coroutine: Coroutine[Any, Any, object], number: int, scope: anyio.CancelScope) -> None:
        self._coroutine = coroutine
        self._number = number
        self._scope = scope

    def __await__(self) -> Generator[Any, Any, object]:
        inner = self._coroutine.__await__()
        count = 0
        resume = inner.__next__
        while True:
            try:
                wish = resume()
            except StopIteration as end:
                return end.value
            count += 1
            if count == self._number:
                self._scope.cancel()
            try:
                value = yield wish
            except BaseException as error:
                resume = _throwing(inner, error)
            else:
                resume = _sending(inner, value)


def _throwing(inner: Generator[Any, Any, object], error: BaseException) -> Any:
    return lambda: inner.throw(error)


def _sending(inner: Generator[Any, Any, object], value: object) -> Any:
    return lambda: inner.send(value)


async def stopped_at(number: int | None, coroutine: Coroutine[Any, Any, object], *, crash: bool) -> None:
    """Run a coroutine and cancel it, or raise Crash, where it waits for the n-th time."""
    if number is None:
        await coroutine
        return
    with anyio.CancelScope() as scope:
        await _Counted(coroutine, number, scope)
    if scope.cancelled_caught and crash:
        raise Crash("the application has failed")
