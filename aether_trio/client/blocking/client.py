"""The Python client for blocking scripts: the same classes, arguments and errors.

    who = {"workspace": "default", "implementation": "script", "specifier": "1"}
    with connect_sync("aether://localhost:50051", **who) as agent:
        agent.send("ag::default::planner::1", b"hello")
        for message in agent.messages(timeout=5):
            print(message.source, message.text)

    with connect_sync(ADDRESS, UserClient, user_id="ann", window_id="w1") as window:
        window.switch_workspace("default")

An event loop runs in a separate thread for as long as the block lasts. The objects may be used
from any thread, and from several at once. A message is acknowledged when the loop over `messages`
asks for the next one, or the block is left well.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar, Unpack, overload

import anyio

from aether_trio.client.blocking.bridge import BlockingStream, LoopBridge, LoopThread
from aether_trio.client.blocking.job import SyncJob, run_in_threads, sync_jobs
from aether_trio.client.blocking.operations import ClientCalls, SyncPublication
from aether_trio.client.client import Client
from aether_trio.client.errors import ClientClosed, RequestTimeout
from aether_trio.client.message import IncomingMessage
from aether_trio.client.operations.task_values import Assignment
from aether_trio.client.options import ClientOptions
from aether_trio.client.principals import AgentClient

__all__ = ["SyncClient", "SyncPublication", "connect_sync"]

C = TypeVar("C", bound=Client)
P = ParamSpec("P")
T = TypeVar("T")


class BlockingMessages:
    """A blocking iterator over messages; each step acknowledges the thread's last one."""

    def __init__(self, client: SyncClient[Any], timeout: float | None) -> None:
        self._client = client
        self._timeout = timeout

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> IncomingMessage:
        self._client._done_with_held()
        try:
            return self._client._hold(self._client.receive(self._timeout))
        except ClientClosed:
            raise StopIteration from None
        except RequestTimeout:
            if self._timeout is None:
                raise
            raise StopIteration from None


class SyncClient(ClientCalls[C], Generic[C]):
    """A blocking client, used from any thread; `connect_sync` makes one.

    It has the methods and namespaces of the async clients, with the same arguments and errors. What
    its kind cannot do raises AttributeError. Each `timeout` is in seconds.
    """

    def __init__(self, bridge: LoopBridge, target: C) -> None:
        super().__init__(bridge, target)
        self._held: dict[object, tuple[threading.Thread, IncomingMessage]] = {}
        """The message in hand of each thread, by an object of that thread: idents repeat."""
        self._mine = threading.local()
        self._returned: deque[IncomingMessage] = deque()
        self._manual_acks = target._settings.manual_acks

    # -- messages

    def receive(self, timeout: float | None = None) -> IncomingMessage:
        """Wait for a message, to be acknowledged. Raises RequestTimeout, ClientClosed."""
        while True:
            try:
                message = self._returned.popleft()
            except IndexError:
                self._bridge.run(self._receive, timeout)
                continue
            message.acknowledge_through(self._bridge.run_if_open)
            return message

    async def _receive(self, timeout: float | None) -> None:
        """Receive a message in the event loop, into the queue that threads take from."""
        with anyio.move_on_after(timeout):
            self._returned.append(await self._target.receive())
            return
        raise RequestTimeout(f"no message came within {timeout:g} s")

    def messages(self, timeout: float | None = None) -> BlockingMessages:
        """Iterate over messages, and acknowledge each when the next one is asked for.

        With manual_acks the caller acknowledges. With `timeout` the loop ends when nothing has come
        for so many seconds; without, when the client is closed.
        """
        return BlockingMessages(self, timeout)

    def __iter__(self) -> BlockingMessages:
        return self.messages()

    def _hold(self, message: IncomingMessage) -> IncomingMessage:
        if not self._manual_acks:
            self._mine.key = key = object()
            self._held[key] = threading.current_thread(), message
        return message

    def _done_with_held(self) -> None:
        held = self._held.pop(getattr(self._mine, "key", None), None)
        if held is not None:
            held[1].ack()
        for key, (thread, _) in list(self._held.items()):
            if not thread.is_alive():  # how it has ended is not known, so its message comes again
                abandoned = self._held.pop(key, None)
                if abandoned is not None:
                    abandoned[1].abandon()

    def _all_done(self) -> None:
        while self._held:
            thread, message = self._held.popitem()[1]
            if thread.is_alive():
                message.ack()

    # -- tasks

    def work(self, *, concurrency: int | None = None, timeout: float | None = None) -> Iterator[SyncJob]:
        """Iterate over claimed tasks; the loop ends after `timeout` seconds without one."""
        stream = BlockingStream(self._bridge, self._bridge.run(_called, self._worker.work, concurrency=concurrency))
        return sync_jobs(self._bridge, stream if timeout is None else stream.within(timeout))

    def run_tasks(self, handler: Callable[[SyncJob], object], *, concurrency: int | None = None) -> None:
        """Call `handler` in a thread for each task, in its block, `concurrency` at once."""
        count = concurrency or self._target._settings.worker_tasks or 1
        self._bridge.run(run_in_threads, self._bridge, self._worker.run_tasks, handler, count)

    @property
    def starts(self) -> BlockingStream[Assignment]:
        """A feed of the agents and tasks that this orchestrator is asked to start."""
        return BlockingStream(self._bridge, self._worker.starts)

    @property
    def _worker(self) -> Any:
        return self._target

    # -- what is not a message

    @contextmanager
    def open_feed(
        self, *cases: str, match: Callable[[Any], bool] | None = None, capacity: int = 1024, lossy: bool = False
    ) -> Iterator[BlockingStream[Any]]:
        """Open a feed of gateway messages of these oneof cases, while the block lasts."""

        @asynccontextmanager
        async def opened() -> AsyncIterator[AsyncIterator[Any]]:
            with self._target.open_feed(*cases, match=match, capacity=capacity, lossy=lossy) as feed:
                yield feed

        with self._bridge.entered(opened()) as feed:
            yield BlockingStream(self._bridge, feed)

    @property
    def client(self) -> C:
        """The async client, which knows `topic`, `session_id`, `state`, `config`, ..."""
        return self._target


@overload
def connect_sync(
    address: str, /, *, workspace: str, implementation: str, specifier: str, **options: Unpack[ClientOptions]
) -> AbstractContextManager[SyncClient[AgentClient]]: ...


@overload
def connect_sync(
    address: str, kind: Callable[Concatenate[str, P], C], /, *args: P.args, **kwargs: P.kwargs
) -> AbstractContextManager[SyncClient[C]]: ...


def connect_sync(address: str, kind: Callable[..., Client] = AgentClient, /, *args: Any, **kwargs: Any) -> Any:
    """Return a context manager that connects an agent, or another `kind` of client.

    Arguments and errors are those of the class (AgentClient, UserClient, ...). A block that is
    still open when the interpreter ends is left as by an exception; in a fork of the process the
    client is closed, and leaving the block does nothing.
    """
    return _Connected(kind, address, args, kwargs)


class _Connected:
    """The context manager that `connect_sync` returns: it connects and disconnects."""

    def __init__(
        self, kind: Callable[..., Client], address: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._make = functools.partial(_called, kind, address, *args, **kwargs)

    def __enter__(self) -> SyncClient[Any]:
        self._loop = LoopThread()
        self._bridge = LoopBridge(self._loop)
        try:
            self._block = self._bridge.entered(self._bridge.run(self._make))
            self._client: SyncClient[Any] = SyncClient(self._bridge, self._block.__enter__())
        except BaseException:
            self._end()
            raise
        _OPEN.add(self)
        return self._client

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        try:
            if error is None:
                self._client._all_done()
            return bool(self._block.__exit__(kind, error, trace))
        finally:
            self._end()

    def _end(self) -> None:
        _OPEN.discard(self)
        self._bridge.closed = True
        self._loop.stop()


_OPEN: Final[set[_Connected]] = set()
"""Blocks that have begun and not ended."""


@atexit.register
def _leave_open_blocks() -> None:
    """Disconnect all blocking clients at the end of the interpreter."""
    for connected in list(_OPEN):
        error = ClientClosed("the interpreter has ended")
        with contextlib.suppress(Exception):
            connected.__exit__(ClientClosed, error, None)


async def _called(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a plain function in the event loop, so that its events belong to that loop."""
    return function(*args, **kwargs)
