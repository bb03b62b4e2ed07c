"""Runs a client's coroutines from threads, as blocking methods of the same names.

    class SyncKv(Blocking[Kv]):
        get = blocking(Kv.get)

    SyncKv(bridge, kv).get("key")     # Kv.get in the loop's thread; type checkers see its signature

Invariant: a call that is interrupted in its thread (KeyboardInterrupt) is cancelled in the loop,
and has ended there when the interrupt goes on. A thread never waits for a loop that cannot answer:
at the end of the interpreter, after a fork, and when the loop has died.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import CancelledError as ConcurrentCancelled
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

import anyio
from anyio.from_thread import BlockingPortal

from aether_trio.client.call_soon import CallSoon, call_soon
from aether_trio.client.errors import AetherError, ClientClosed, RequestTimeout

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")

LOOK_S = 0.5
"""A thread that waits wakes up so often, to see whether it was interrupted."""


class LoopThread:
    """A daemon thread that runs an event loop, and the portal into that loop."""

    # No finalizer: one that waits for the loop would wait for ever at exit, or after a fork.

    def __init__(self) -> None:
        self._process = os.getpid()
        self._begun: Future[BlockingPortal] = Future()
        self._thread = threading.Thread(target=self._run, name="aether-client", daemon=True)
        self._thread.start()
        self.portal = self._begun.result()

    def _run(self) -> None:
        try:
            anyio.run(self._main, backend="trio")
        except BaseException as error:
            # The caller that caused it has been told, in the future of that call.
            if not self._begun.done():
                self._begun.set_exception(error)

    async def _main(self) -> None:
        async with BlockingPortal() as portal:
            self._begun.set_result(portal)
            await portal.sleep_until_stopped()

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the process that has the thread."""
        return os.getpid() != self._process

    @property
    def answers(self) -> bool:
        """Whether the loop's thread lives, is not this thread, and could run a call now."""
        return (
            not self.forked
            and not sys.is_finalizing()
            and self._thread.is_alive()
            and self._thread is not threading.current_thread()
        )

    def stop(self) -> None:
        """Cancel what still runs in the loop, and wait until its thread has ended."""
        if self.answers:
            with contextlib.suppress(RuntimeError):  # it has ended just now
                self.portal.call(self.portal.stop, True)
            self._thread.join()


class LoopBridge:
    """Calls functions in an event loop's thread, and waits for their results."""

    def __init__(self, loop: LoopThread) -> None:
        self._loop = loop
        self._portal = loop.portal
        self.closed = False
        """The block is over: calls raise ClientClosed."""

    @property
    def open(self) -> bool:
        """Whether the event loop would run a call now."""
        return not self.closed and self._loop.answers

    def _check_open(self) -> None:
        if self._loop.forked:
            raise ClientClosed("the client was connected before this process was forked; connect again in the fork")
        if not self.open:
            raise ClientClosed

    def run(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a coroutine function in the event loop, and wait for its result."""
        self._check_open()
        call = _LoopCall(functools.partial(function, *args, **kwargs))
        try:
            return self._wait(self._begin(call.run))
        finally:
            self._end(call)

    @overload
    def _begin(self, function: Callable[[], Awaitable[T]]) -> Future[T]: ...
    @overload
    def _begin(self, function: Callable[[], T]) -> Future[T]: ...
    def _begin(self, function: Callable[[], Any]) -> Future[Any]:
        """Start a function in the event loop. Raises ClientClosed when the loop ends."""
        try:
            return self._portal.start_task_soon(function)
        except RuntimeError as error:  # the portal is stopped, or its loop is over
            raise ClientClosed from error

    def _end(self, call: _LoopCall[Any]) -> None:
        """Cancel a call that still runs in the event loop, and wait for its end."""
        with contextlib.suppress(ClientClosed):  # the loop ends, and cancels it
            if not call.ended.is_set() and self._loop.answers and self._wait(self._begin(call.give_up)):
                call.ended.wait()

    def _wait(self, future: Future[T]) -> T:
        """Wait for a future of the event loop, return its result. Raises ClientClosed."""
        while True:
            try:
                # An interrupt that comes just before a thread falls asleep does not wake it: Python
                # looks when it is awake.
                with contextlib.suppress(FutureTimeout):
                    return future.result(LOOK_S)
                if future.done():
                    return future.result()
            except ConcurrentCancelled:
                raise ClientClosed from None
            if not self._loop.answers:
                raise ClientClosed

    def run_if_open(self, function: Callable[[], None]) -> None:
        """Call a function that does not wait in the event loop, unless the loop is over."""
        if self.open:
            with contextlib.suppress(ClientClosed):
                self._wait(self._begin(function))

    def entered(self, manager: AbstractAsyncContextManager[T]) -> BlockingContext[T]:
        """Return a blocking context manager for an async one.

        anyio's `wrap_async_context_manager` does not do for a manager that cancels its own block:
        it must be left with that cancellation, even when the thread leaves with an exception in the
        same moment.
        """
        return BlockingContext(self, manager)


class BlockingContext(AbstractContextManager[T]):
    """Lets a thread enter and leave an async context manager of the event loop.

    Invariant: a block whose thread was interrupted while it began or ended does not stay open.
    """

    _call: _LoopCall[bool] | None = None
    """None until `__init__` has made it, which may be interrupted as well."""

    def __init__(self, bridge: LoopBridge, manager: AbstractAsyncContextManager[T]) -> None:
        self._bridge = bridge
        self._block = _ContextTask(manager)
        self._call = _LoopCall(self._block.run)
        self._given_up = False

    def __enter__(self) -> T:
        bridge, call = self._bridge, self._call
        assert call is not None
        bridge._check_open()
        try:
            self._ended = bridge._begin(call.run)
            value, self._leave = bridge._wait(self._block.entered)
            return value
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Cancel the async block in the event loop, if entered: no thread will leave it."""
        if self._call is not None and not self._given_up:
            self._given_up = True
            self._bridge._end(self._call)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        block, bridge = self._block, self._bridge
        if self._given_up or not bridge._loop.answers:
            return False
        try:
            block.error = error
            bridge._wait(bridge._begin(self._leave.set))
            return bridge._wait(self._ended)
        except AetherError as why:
            if error is None or error is why or _is_group_of(why, error):
                raise
            if block.cancelled or isinstance(why, ClientClosed):
                raise error from error.__cause__ or why
            raise
        except BaseException:
            self.give_up()
            raise

    def __del__(self) -> None:
        """Cancel a block that was never left: an interrupt came before `__exit__`."""
        if self._call is not None:
            self._call.abandon()


def _is_group_of(failure: AetherError, error: BaseException) -> bool:
    """Return whether the error is an exception group of the client's failure alone."""
    return isinstance(error, BaseExceptionGroup) and error.split(lambda one: one is failure)[1] is None


class _ContextTask(Generic[T]):
    """Enters and leaves one async context manager, as one task of the event loop."""

    def __init__(self, manager: AbstractAsyncContextManager[T]) -> None:
        self.entered: Future[tuple[T, anyio.Event]] = Future()
        self.error: BaseException | None = None
        self.cancelled = False
        self._manager = manager

    async def run(self) -> bool:
        """Enter, wait, and leave the manager. Return whether it has swallowed the error."""
        try:
            value = await self._manager.__aenter__()
        except anyio.get_cancelled_exc_class():
            self.entered.cancel()
            raise
        except BaseException as error:
            self.entered.set_exception(error)
            raise
        leave = anyio.Event()
        self.entered.set_result((value, leave))
        try:
            await leave.wait()
        except BaseException as error:
            self.cancelled = True
            if not await self._left_with(error):
                raise
            return False
        return await self._left_with(self.error)

    async def _left_with(self, error: BaseException | None) -> bool:
        if error is None:
            return bool(await self._manager.__aexit__(None, None, None))
        return bool(await self._manager.__aexit__(type(error), error, error.__traceback__))


class _LoopCall(Generic[T]):
    """One call in the event loop, which the waiting thread may cancel."""

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self.ended = threading.Event()
        self._function = function
        self._scope: anyio.CancelScope | None = None
        self._given_up = False
        self._soon: CallSoon | None = None

    async def run(self) -> T:
        """Run the call, in the event loop."""
        self._soon = call_soon()
        try:
            if self._given_up:
                raise ConcurrentCancelled
            with anyio.CancelScope() as self._scope:
                return await self._function()
            raise ConcurrentCancelled
        finally:
            self.ended.set()

    def give_up(self) -> bool:
        """Cancel the call, in the event loop. Return whether it has begun."""
        self._given_up = True
        if self._scope is not None:
            self._scope.cancel()
        return self._scope is not None

    def abandon(self) -> None:
        """Cancel the call without waiting, if it still runs; for finalizers."""
        if self._soon is not None and not self.ended.is_set():
            self._soon(self.give_up)


class Blocking(Generic[T]):
    """Base of blocking objects: an async object, and the bridge to its event loop."""

    def __init__(self, bridge: LoopBridge, target: T) -> None:
        self._bridge = bridge
        self._target = target

    def __repr__(self) -> str:
        return f"<blocking {self._target!r}>"


class BlockingStream(Blocking[AsyncIterator[T]]):
    """A blocking iterator over an async one; `get` and `within` limit the wait."""

    _limit_s: float | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        try:
            return self._bridge.run(self._next, self._limit_s)
        except _IteratorEnded:
            raise StopIteration from None
        except RequestTimeout:
            if self._limit_s is None:
                raise
            raise StopIteration from None

    def get(self, timeout: float | None = None) -> T:
        """Take the next item; raises RequestTimeout (`timeout` s), LookupError at the end."""
        try:
            return self._bridge.run(self._next, timeout)
        except _IteratorEnded:
            raise LookupError("the stream has ended, so no further item comes") from None

    def within(self, timeout: float) -> Self:
        """Return this stream, whose iteration ends after `timeout` seconds without items."""
        shorter = type(self)(self._bridge, self._target)
        shorter._limit_s = timeout
        return shorter

    async def _next(self, limit_s: float | None) -> T:
        with anyio.move_on_after(limit_s):
            try:
                return await anext(self._target)
            except StopAsyncIteration:
                raise _IteratorEnded from None  # a future cannot carry the other one
        raise RequestTimeout(f"the stream brought no item within {limit_s:g} s")


class _IteratorEnded(Exception):
    """Raised in place of StopAsyncIteration, which a future cannot carry."""


B = TypeVar("B", bound=Blocking[Any])


def blocking(method: Callable[Concatenate[Any, P], Awaitable[T]]) -> Callable[Concatenate[Any, P], T]:
    """Make a blocking method that runs the async method of the same name."""

    @functools.wraps(method)
    def call(self: Blocking[Any], /, *args: P.args, **kwargs: P.kwargs) -> T:
        bound: Callable[..., Awaitable[T]] = getattr(self._target, method.__name__)
        return self._bridge.run(bound, *args, **kwargs)

    return call


def blocking_stream(
    method: Callable[Concatenate[Any, P], AsyncIterator[T]],
) -> Callable[Concatenate[Any, P], BlockingStream[T]]:
    """Make a blocking method of a method that returns an async iterator."""

    @functools.wraps(method)
    def call(self: Blocking[Any], /, *args: P.args, **kwargs: P.kwargs) -> BlockingStream[T]:
        return BlockingStream(self._bridge, getattr(self._target, method.__name__)(*args, **kwargs))

    return call


def blocking_block(
    method: Callable[Concatenate[Any, P], AbstractAsyncContextManager[T]], wrap: Callable[[LoopBridge, T], U]
) -> Callable[Concatenate[Any, P], AbstractContextManager[U]]:
    """Make a blocking method of a method that returns an async context manager."""

    @functools.wraps(method)
    @contextmanager
    def call(self: Blocking[Any], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[U]:
        manager = getattr(self._target, method.__name__)(*args, **kwargs)
        with self._bridge.entered(manager) as value:
            yield wrap(self._bridge, value)

    return call


def blocking_value(
    method: Callable[Concatenate[Any, P], Awaitable[T]], wrap: Callable[[LoopBridge, T], U]
) -> Callable[Concatenate[Any, P], U]:
    """Make a blocking method of an async one, and wrap its result for threads."""

    @functools.wraps(method)
    def call(self: Blocking[Any], /, *args: P.args, **kwargs: P.kwargs) -> U:
        bound: Callable[..., Awaitable[T]] = getattr(self._target, method.__name__)
        return wrap(self._bridge, self._bridge.run(bound, *args, **kwargs))

    return call


def called_at_once(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Make a blocking method of a method that only reads, in the caller's thread."""

    @functools.wraps(method)
    def call(self: Blocking[Any], /, *args: P.args, **kwargs: P.kwargs) -> T:
        bound: Callable[..., T] = getattr(self._target, method.__name__)
        return bound(*args, **kwargs)

    return call


def called_in_loop(method: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Make a blocking method that runs a plain method in the loop while it lives."""

    @functools.wraps(method)
    def call(self: Blocking[Any], /, *args: P.args, **kwargs: P.kwargs) -> None:
        self._bridge.run_if_open(functools.partial(getattr(self._target, method.__name__), *args, **kwargs))

    return call


class BlockingAttribute(Generic[B]):
    """Descriptor: the blocking form of an attribute of the async object."""

    def __init__(self, kind: type[B]) -> None:
        self._kind = kind
        self.__doc__ = kind.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, client: None, owner: type) -> type[B]: ...
    @overload
    def __get__(self, client: Blocking[Any], owner: type) -> B: ...
    def __get__(self, client: Blocking[Any] | None, owner: type) -> type[B] | B:
        return self._kind if client is None else self._kind(client._bridge, getattr(client._target, self._name))


def streamed_as(wrap: Callable[[LoopBridge, T], U]) -> Callable[[LoopBridge, AsyncIterator[T]], Iterator[U]]:
    """Make a wrapper of async iterators for threads, which applies `wrap` to items."""

    def wrapped(bridge: LoopBridge, iterator: AsyncIterator[T]) -> Iterator[U]:
        return map(functools.partial(wrap, bridge), BlockingStream(bridge, iterator))

    return wrapped
