"""Peers of the published SDK for the conformance tests.

The SDK is asyncio and threads, the suite is trio: a scenario is a coroutine function that
`run_async` runs to its end in its own loop. Three kinds of peer: `Peer` (an async client),
`SyncPeer` (a threaded client) and `RawStream` (the package's bare stub, for what its clients cannot
send or see).

Invariants: callbacks only enqueue, because the SDK awaits most of them inside its listen loop;
silence is never proved by waiting but by a barrier (a request whose answer comes after the effects
of everything before it) and a marker message; no wait is shorter than LIMIT_S, so a slow machine is
never a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import queue
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Self

import grpc
import grpc.aio
import scitrera_aether_client
from scitrera_aether_client.proto import aether_pb2 as pb
from scitrera_aether_client.proto.aether_pb2_grpc import AetherGatewayStub

LIMIT_S = 30.0
SCENARIO_LIMIT_S = 150.0
POLL_S = 0.05  # only where the SDK offers a flag and no event

TYPED_CALLBACKS = ("on_chat_message", "on_control_message", "on_tool_call", "on_event", "on_metric")


def run_async(scenario: Callable[[], Awaitable[Any]], limit_s: float = SCENARIO_LIMIT_S) -> Any:
    """Run one scenario in a fresh asyncio loop, with a hard limit."""

    async def bounded() -> Any:
        async with asyncio.timeout(limit_s):
            return await scenario()

    return asyncio.run(bounded())


def in_asyncio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test as a scenario, and close the peers of its fixture `world`."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        async def scenario() -> None:
            async with fixtures.get("world") or contextlib.nullcontext():
                await test(**fixtures)

        run_async(scenario)

    return run


async def eventually(
    probe: Callable[[], Awaitable[Any]], good: Callable[[Any], bool], what: str, limit_s: float = LIMIT_S
) -> Any:
    """Repeat `probe` until `good` accepts its result: for what only time brings."""
    deadline = time.monotonic() + limit_s
    while True:
        got = await probe()
        if good(got):
            return got
        assert time.monotonic() < deadline, f"{what}: not within {limit_s:g} s, last was {got!r}"
        await asyncio.sleep(POLL_S)


def answered(response: Any, what: str) -> Any:
    """Check that a response came (the SDK gives None for none) and reports success."""
    assert response is not None, f"{what}: no response with this request's id (the SDK's call timed out)"
    assert response.success, f"{what}: refused: {getattr(response, 'error', '') or response}"
    return response


def declined(response: Any, what: str) -> Any:
    assert response is not None, f"{what}: no response with this request's id (the SDK's call timed out)"
    assert not response.success, what
    return response


class SdkLog(logging.Handler):
    """The SDK's log lines, which alone report a status that ends a stream for good."""

    NAMES = ("aether.client", "aether.client.async")

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    @property
    def text(self) -> str:
        return " | ".join(self.lines)


@contextlib.contextmanager
def sdk_log() -> Iterator[SdkLog]:
    """Collect the SDK's log lines inside the block."""
    handler = SdkLog()
    loggers = [logging.getLogger(name) for name in SdkLog.NAMES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield handler
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


class Peer:
    """One async client of the SDK; everything that reaches it lands in a queue."""

    def __init__(self, client: Any, topic: str, target: str) -> None:
        self.client, self.topic, self.target = client, topic, target
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.progress: asyncio.Queue[Any] = asyncio.Queue()
        self.configs: asyncio.Queue[Any] = asyncio.Queue()
        self.errors: asyncio.Queue[Any] = asyncio.Queue()
        self.assignments: asyncio.Queue[Any] = asyncio.Queue()
        self.task_events: asyncio.Queue[Any] = asyncio.Queue()
        self.typed: list[tuple[str, Any]] = []
        self.connects: asyncio.Queue[float] = asyncio.Queue()
        self.gone = asyncio.Event()
        self.reasons: list[str] = []
        # Callables that are no coroutines and only store: nothing here may block or fail the SDK's
        # listen loop.
        client.on_message = self.inbox.put_nowait
        client.on_progress = self.progress.put_nowait
        client.on_config = self.configs.put_nowait
        client.on_error = self.errors.put_nowait
        client.on_task_assignment = self.assignments.put_nowait
        client.on_task_event = self.task_events.put_nowait
        client.on_connect = lambda: self.connects.put_nowait(time.monotonic())
        client.on_disconnect = self._on_disconnect
        for name in TYPED_CALLBACKS:
            setattr(client, name, lambda message, name=name: self.typed.append((name, message)))

    def _on_disconnect(self, reason: str) -> None:
        self.reasons.append(reason)
        # A GRACEFUL_DISCONNECT comes this way too, with another reason, and is followed by a
        # reconnection.
        if reason == "connection lost" or not self.client.is_running:
            self.gone.set()

    @property
    def session_id(self) -> str:
        """The SDK has no accessor for it."""
        return self.client._session_id or ""

    async def connect(self) -> Peer:
        """Start connecting. Returns at once: the SDK waits for nothing here."""
        await self.client.connect(self.target)
        return self

    async def open(self) -> Peer:
        """Connect and wait until the ack has been handled."""
        await self.connect()
        await self.online()
        return self

    async def came_up(self) -> bool:
        """Wait for the next on_connect (True) or the end of the connection (False)."""
        connected = asyncio.ensure_future(self.connects.get())
        gone = asyncio.ensure_future(self.gone.wait())
        try:
            await asyncio.wait({connected, gone}, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
            assert connected.done() or gone.done(), f"{self.topic}: no message from the gateway"
            return connected.done()
        finally:
            connected.cancel()
            gone.cancel()

    async def online(self) -> None:
        """Wait for the next on_connect, and for the ack behind it."""
        assert await self.came_up(), f"{self.topic}: not connected: {self.reasons}"
        await self.barrier()
        assert self.session_id, f"{self.topic}: no ConnectionAck with a session_id"

    async def refused(self) -> None:
        """Wait until a client that must not connect has given up for good."""
        async with asyncio.timeout(LIMIT_S):
            await self.gone.wait()
        assert self.connects.empty(), f"{self.topic}: was sent a message before its refusal"
        assert not self.client.is_running, f"{self.topic}: still running after a final status"

    async def refused_with(self, status: str) -> None:
        """Connect, and be refused for good with this status."""
        with sdk_log() as log:
            await self.connect()
            await self.refused()
        assert status in log.text, log.text

    async def barrier(self) -> None:
        """Make a round trip, so that all that was sent before has taken effect."""
        answered(await self.client.checkpoint_load("interop-barrier", timeout=LIMIT_S), f"{self.topic}: barrier")

    async def send(self, topic: str, payload: bytes, message_type: int = pb.OPAQUE) -> None:
        """Send to a topic for which this client class has no method."""
        await self.client._send_message(topic, payload, message_type=message_type)

    async def take(
        self, wanted: Callable[[Any], bool] = lambda message: True, box: asyncio.Queue[Any] | None = None
    ) -> Any:
        """Drop items of the inbox (or another queue) up to the one that is wanted."""
        box = self.inbox if box is None else box
        skipped: list[Any] = []
        try:
            async with asyncio.timeout(LIMIT_S):
                while True:
                    item = await box.get()
                    if wanted(item):
                        return item
                    skipped.append(item)
        except TimeoutError:
            errors = [f"{error.code}: {error.message}" for error in self.errors._queue]  # type: ignore[attr-defined]
            raise AssertionError(f"{self.topic}: it did not come; skipped {skipped[:5]}, errors {errors}") from None

    async def message(self, payload: bytes) -> Any:
        """The next message, which must have this payload."""
        message = await self.take()
        assert message.payload == payload, f"{self.topic}: got {message.payload[:80]!r}, expected {payload[:80]!r}"
        return message

    async def error(self, code: str) -> Any:
        """The next uncorrelated error, which must have this code."""
        error = await self.take(box=self.errors)
        assert error.code == code, f"{self.topic}: got {error.code}: {error.message}"
        return error

    async def only(self, probe: Peer, *expected: bytes) -> list[Any]:
        """Check all payloads in the inbox up to a marker that `probe` sends."""
        await probe.barrier()
        marker = f"marker {uuid.uuid4().hex}".encode()
        await probe.send(self.topic, marker)
        got: list[Any] = []
        while (message := await self.take()).payload != marker:
            got.append(message)
        assert [m.payload for m in got] == list(expected), f"{self.topic}: {[m.payload[:80] for m in got]}"
        return got

    async def close(self) -> None:
        await self.client.close()


class Peers:
    """The peers of one scenario, in a new workspace; subclasses make the clients."""

    def __init__(self, target: str, **client_settings: Any) -> None:
        self.target = target
        self.run = uuid.uuid4().hex[:10]
        self.ws, self.impl, self.uid = f"ws-{self.run}", f"impl-{self.run}", f"user-{self.run}"
        self.peers: list[Any] = []
        self.client_settings = client_settings

    def _peer(self, kind: str, topic: str, *args: Any, **settings: Any) -> Any:
        raise NotImplementedError

    def agent(self, spec: str, *, ws: str = "", impl: str = "", **settings: Any) -> Any:
        ws, impl = ws or self.ws, impl or self.impl
        return self._peer("Agent", f"ag::{ws}::{impl}::{spec}", ws, impl, spec, **settings)

    def unique_task(self, spec: str, **settings: Any) -> Any:
        return self._peer("Task", f"tu::{self.ws}::{self.impl}::{spec}", self.ws, self.impl, spec, **settings)

    def task(self, **settings: Any) -> Any:
        """A task without a specifier; its topic is known from what it sends."""
        return self._peer("Task", f"ta::{self.ws}::{self.impl}::?", self.ws, self.impl, **settings)

    def user(self, window: str, *, uid: str = "", **settings: Any) -> Any:
        uid = uid or self.uid
        return self._peer("User", f"us::{uid}::{window}", uid, window, **settings)

    def service(self, spec: str, **settings: Any) -> Any:
        return self._peer("Service", f"sv::{self.impl}::{spec}", self.impl, spec, **settings)

    def orchestrator(self, spec: str = "o1", **settings: Any) -> Any:
        args = (self.impl, [f"profile-{self.run}"])
        return self._peer("Orchestrator", f"orc::{self.impl}::{spec}", *args, specifier=spec, **settings)


class World(Peers):
    """Async peers, closed at the end; they take turns at the addresses of `target`."""

    def __init__(self, target: str, **client_settings: Any) -> None:
        super().__init__(target, **client_settings)
        addresses = target.split(",")
        self.address = addresses[0]
        self._targets = itertools.cycle(addresses)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.gather(*(peer.close() for peer in self.peers), return_exceptions=True)

    def _peer(self, kind: str, topic: str, *args: Any, **settings: Any) -> Peer:
        merged = {"auto_reconnect": False, "tls_enabled": False, **self.client_settings, **settings}
        client = getattr(scitrera_aether_client, f"Async{kind}Client")(*args, **merged)
        self.peers.append(Peer(client, topic, next(self._targets)))
        return self.peers[-1]

    def engine(self, **settings: Any) -> Peer:
        return self._peer("WorkflowEngine", "event::receiver0", **settings)

    def metrics_bridge(self, **settings: Any) -> Peer:
        return self._peer("MetricsBridge", "metric::receiver0", **settings)

    async def open(self, *peers: Peer) -> tuple[Peer, ...]:
        await asyncio.gather(*(peer.open() for peer in peers))
        return peers


class SyncPeer:
    """One threaded client of the SDK, whose callbacks only enqueue."""

    def __init__(self, client: Any, topic: str, target: str) -> None:
        self.client, self.topic, self.target = client, topic, target
        self.inbox: queue.Queue[Any] = queue.Queue()
        self.configs: queue.Queue[Any] = queue.Queue()
        self.errors: queue.Queue[Any] = queue.Queue()
        self.answers: queue.Queue[Any] = queue.Queue()
        self.assignments: queue.Queue[Any] = queue.Queue()
        self.connected, self.gone = threading.Event(), threading.Event()
        client.on_message = self.inbox.put
        client.on_config = self.configs.put
        client.on_error = self.errors.put
        client.on_kv_response = self.answers.put
        client.on_task_assignment = self.assignments.put
        client.on_connect = self.connected.set
        client.on_disconnect = lambda reason: self.gone.set()

    @property
    def session_id(self) -> str:
        return self.client._session_id or ""

    def open(self) -> SyncPeer:
        self.connected.clear()
        self.client.connect(self.target)
        assert self.connected.wait(LIMIT_S), f"{self.topic}: no message from the gateway"
        self.barrier()
        assert self.session_id, f"{self.topic}: no ConnectionAck with a session_id"
        return self

    def refused(self) -> None:
        assert self.gone.wait(LIMIT_S), f"{self.topic}: not refused"
        assert not self.connected.is_set(), f"{self.topic}: was sent a message before its refusal"
        assert not self.client.is_running

    def barrier(self) -> None:
        got = self.client.checkpoint_load_sync("interop-barrier", timeout=LIMIT_S)
        answered(got, f"{self.topic}: barrier")

    def put(self, **payload: Any) -> None:
        """Enqueue an upstream message by hand, on the client's public request queue."""
        self.client.request_queue.put(pb.UpstreamMessage(**payload))

    def send(self, topic: str, payload: bytes, message_type: int = pb.OPAQUE) -> None:
        self.put(send=pb.SendMessage(target_topic=topic, payload=payload, message_type=message_type))

    def kv(self, op: int, **fields: Any) -> Any:
        """One KV operation by hand, and the KVResponse that echoes its id."""
        request_id = uuid.uuid4().hex
        self.put(kv_op=pb.KVOperation(op=op, request_id=request_id, **fields))
        return self.take(self.answers, lambda answer: answer.request_id == request_id)

    def take(self, box: queue.Queue[Any] | None = None, wanted: Callable[[Any], bool] = lambda item: True) -> Any:
        box = self.inbox if box is None else box
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                item = box.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{self.topic}: it did not come; errors {list(self.errors.queue)}") from None
            if wanted(item):
                return item

    def drain_inbox(self, probe: SyncPeer, topic: str = "") -> list[Any]:
        """Everything in the inbox up to a marker that `probe` sends after its barrier."""
        probe.barrier()
        marker = f"marker {uuid.uuid4().hex}".encode()
        probe.send(topic or self.topic, marker)
        got: list[Any] = []
        while (message := self.take()).payload != marker:
            got.append(message)
        return got

    def close(self) -> None:
        self.client.close()


class SyncWorld(Peers):
    """Peers with threaded clients; closes all of them at its end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for peer in self.peers:
            peer.close()

    def _peer(self, kind: str, topic: str, *args: Any, **settings: Any) -> SyncPeer:
        client = getattr(scitrera_aether_client, f"{kind}Client")(*args, **{"auto_reconnect": False, **settings})
        self.peers.append(SyncPeer(client, topic, self.target))
        return self.peers[-1]


class StreamEnded(AssertionError):
    """A raw stream has ended; an assertion error, so the status fails the test."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"the stream ended with {code.name}: {details}")
        self.code, self.details = code, details


class RawStream:
    """One Connect stream of the SDK's bare stub."""

    def __init__(self, target: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        self._call = AetherGatewayStub(self._channel).Connect(metadata=metadata or None)

    async def send(self, **payload: Any) -> None:
        await self._call.write(pb.UpstreamMessage(**payload))

    async def read(self) -> Any:
        """The next downstream message. Raises StreamEnded when there is none."""
        try:
            async with asyncio.timeout(LIMIT_S):
                message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise StreamEnded(error.code(), error.details() or "") from None
        if message is grpc.aio.EOF:
            raise StreamEnded(await self._call.code(), await self._call.details() or "")
        return message

    async def expect(self, kind: str) -> Any:
        """The next downstream message, which must be of this kind; its payload."""
        message = await self.read()
        assert message.WhichOneof("payload") == kind, f"expected {kind}, got {message}"
        return getattr(message, kind)

    async def ended(self) -> tuple[StreamEnded, list[str]]:
        """Read to the end; how it ended, and the kinds of the messages before."""
        kinds: list[str] = []
        while True:
            try:
                kinds.append((await self.read()).WhichOneof("payload"))
            except StreamEnded as end:
                return end, kinds

    async def half_close(self) -> None:
        await self._call.done_writing()

    async def close(self) -> None:
        self._call.cancel()
        await self._channel.close()


@contextlib.asynccontextmanager
async def raw_stream(target: str, **init: Any) -> AsyncIterator[RawStream]:
    """A raw stream; with arguments, an InitConnection of them is sent first."""
    stream = RawStream(target)
    try:
        if init:
            await stream.send(init=pb.InitConnection(**init))
        yield stream
    finally:
        await stream.close()


def agent_init(ws: str, impl: str, spec: str, **fields: Any) -> dict[str, Any]:
    return {"agent": pb.AgentIdentity(workspace=ws, implementation=impl, specifier=spec), **fields}
