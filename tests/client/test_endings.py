"""Test how a session ends for good, and how a client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

from aether_trio.client import (
    AetherError,
    AgentClient,
    DuplicateIdentity,
    PermissionDenied,
    ProtocolViolation,
    Retry,
    SessionEnded,
)
from aether_trio.model.errors import Status
from aether_trio.wire import framing
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import BACKENDS, agent, open_test_gateway, run_on, with_gateway
from tests.client.peer import Line, Peer, open_peer, scripted


async def end_for_good(line: Line) -> None:
    """The gateway says that it ends the session, and does."""
    await line.tell(signal=pb.Signal(type=pb.Signal.FORCE_DISCONNECT, reason="go away"))
    await line.say(framing.Error(int(Status.CANCELLED), "ended"))
    await line.end()


async def ended(
    backend: str,
    body: Callable[[str], Awaitable[None]],
    end: Callable[[Line], Awaitable[object]] = end_for_good,
    accept: Callable[[Peer], Awaitable[Line]] = Peer.accept,
) -> BaseException | None:
    """Run a body that connects, end its session, and give what it has raised."""
    caught: list[BaseException] = []

    async def catch(address: str) -> None:
        try:
            await body(address)
        except BaseException as error:
            caught.append(error)
        await anyio.lowlevel.checkpoint()

    async with open_peer() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(run_on, backend, catch, peer.address)
        await end(await accept(peer))
    return caught[0] if caught else None


async def stay(address: str) -> None:
    async with agent(address, "a"):
        await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.UNAUTHENTICATED, AetherError),
        (Status.PERMISSION_DENIED, PermissionDenied),
        (Status.ALREADY_EXISTS, DuplicateIdentity),
    ],
)
async def test_a_refusal_is_raised_as_it_is(status: Status, kind: type[AetherError]) -> None:
    async def refuse(line: Line) -> None:
        await line.greet()
        await line.say(framing.Error(int(status), "not you"))
        await line.end()

    error = await ended("trio", stay, refuse, Peer.knock)
    assert isinstance(error, kind)
    assert "not you" in str(error)


async def test_what_is_no_gateway_is_said_so() -> None:
    async def answer_as_a_web_server(line: Line) -> None:
        await line.stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await line.stream.receive_some()
        await line.close()

    error = await ended("trio", stay, answer_as_a_web_server, Peer.knock)
    assert isinstance(error, ProtocolViolation)
    assert "is this the port of a gateway" in str(error)


async def test_an_end_for_good_cancels_the_block_and_is_raised_from_it() -> None:
    async def end(line: Line) -> None:
        await line.say(framing.Error(int(Status.CANCELLED), "another client has resumed it"))
        await line.end()

    error = await ended("trio", stay, end)
    assert isinstance(error, SessionEnded)
    assert (error.code, error.message) == ("CANCELLED", "another client has resumed it")


async def test_an_end_for_good_is_raised_out_of_everything_that_waits() -> None:
    raised: list[str] = []

    async def read_all(a: AgentClient) -> None:
        async for _ in a:
            pass

    operations: dict[str, Callable[[AgentClient], Awaitable[object]]] = {
        "receive": lambda a: a.receive(),
        "send": lambda a: a.send("ag::w::i::b", b""),
        "loop": read_all,
        "request": lambda a: a.request(pb.UpstreamMessage(kv_op=pb.KVOperation(key="k"))),
    }

    async def one(name: str, a: AgentClient) -> None:
        try:
            await operations[name](a)
        except AetherError as error:
            raised.append(f"{name} {error.code}")

    async def body(address: str) -> None:
        async with agent(address, "a") as a, trio.open_nursery() as waiters:
            for name in operations:
                waiters.start_soon(one, name, a)

    async def end(line: Line) -> None:
        await line.next(framing.Envelope)
        await end_for_good(line)

    assert isinstance(await ended("trio", body, end), SessionEnded)
    assert sorted(raised) == [
        "loop FORCE_DISCONNECT",
        "receive FORCE_DISCONNECT",
        "request CONNECTION_LOST",
        "send CONNECTION_LOST",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("own", [False, True])
async def test_a_group_of_nothing_but_the_end_for_good_is_that_end(backend: str, own: bool) -> None:
    """Tasks of the body may meet it before they are cancelled."""

    async def read(a: AgentClient) -> None:
        with anyio.CancelScope(shield=True):
            await a.receive()

    async def fail() -> None:
        raise KeyError("the body's own")

    async def body(address: str) -> None:
        async with agent(address, "a") as a, anyio.create_task_group() as outer, anyio.create_task_group() as inner:
            outer.start_soon(read, a)
            inner.start_soon(read, a)
            try:
                await anyio.sleep_forever()
            finally:
                if own:
                    outer.start_soon(fail)

    error = await ended(backend, body)
    assert type(error) is (ExceptionGroup if own else SessionEnded)
    if isinstance(error, ExceptionGroup):
        assert error.subgroup(SessionEnded) is not None
        assert error.subgroup(KeyError) is not None


@pytest.mark.parametrize("backend", BACKENDS)
async def test_an_end_for_good_and_a_cancellation_around_the_block(backend: str) -> None:
    """A task of the body meets the end, and cancels what is around the client."""

    async def read(a: AgentClient, outer: anyio.CancelScope) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await a.receive()
        finally:
            outer.cancel()

    async def body(address: str) -> None:
        with anyio.CancelScope() as outer:
            async with agent(address, "a") as a, anyio.create_task_group() as group:
                group.start_soon(read, a, outer)
                await anyio.sleep_forever()

    assert type(await ended(backend, body)) is SessionEnded


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("raises", "kind"),
    [
        ("own", KeyError),
        ("failure", SessionEnded),
        ("group of the failure", SessionEnded),
        ("group with another", BaseExceptionGroup),
    ],
)
async def test_a_cancellation_around_the_block_replaces_no_exception_of_its_body(
    backend: str, raises: str, kind: type[BaseException]
) -> None:
    """The client fails while the scope around it is cancelled and the body raises."""

    async def body(address: str) -> None:
        with anyio.CancelScope() as outer:
            async with agent(address, "a") as a:
                try:
                    with anyio.CancelScope(shield=True):
                        await a.receive()
                except SessionEnded as failure:
                    outer.cancel()
                    match raises:
                        case "own":
                            raise KeyError("own") from None
                        case "failure":
                            raise
                        case "group of the failure":
                            raise ExceptionGroup("a group", [failure]) from None
                    raise BaseExceptionGroup("a group", [failure, KeyboardInterrupt()]) from None

    assert type(await ended(backend, body)) is kind


@with_gateway()
async def test_a_time_limit_around_the_block_replaces_no_exception_of_its_body(address: str) -> None:
    with pytest.raises(KeyError):
        with anyio.move_on_after(0.3):
            async with agent(address, "a"):
                try:
                    await anyio.sleep_forever()
                finally:
                    raise KeyError("own")
    await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_cancellation_of_asyncio_replaces_no_exception_of_the_body(how: str, failed: bool) -> None:
    async def raise_own(a: AgentClient, limit: asyncio.Timeout) -> None:
        try:
            with anyio.CancelScope(shield=True):
                if failed:
                    await a.receive()
        finally:
            if how == "cancel" and (task := asyncio.current_task()):
                task.cancel()
            else:
                now = asyncio.get_running_loop().time()
                limit.reschedule(now)  # it is over, and no task has been told
            raise KeyError("own")

    async def work(address: str) -> None:
        async with asyncio.timeout(None) as limit, agent(address, "a") as a:
            await raise_own(a, limit)

    async def body(address: str) -> None:
        await asyncio.create_task(work(address))

    assert type(await ended("asyncio", body, end_for_good if failed else Line.end)) is KeyError


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_group_of_the_body_is_in_no_other_group(backend: str) -> None:
    async def body(address: str) -> None:
        async with agent(address, "a"):
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class() as cancelled:
                raise BaseExceptionGroup("the body's", [KeyError("own"), cancelled]) from None

    group = await ended(backend, body)
    assert isinstance(group, ExceptionGroup)
    assert str(group) == "the body's (1 sub-exception)"
    assert isinstance(group.exceptions[0], KeyError)


async def test_leaving_is_bounded_when_the_gateway_does_not_answer() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:
        left = trio.Event()

        async def body() -> None:
            async with agent(peer.address, "a", close_timeout_s=0.05):
                pass
            left.set()

        nursery.start_soon(body)
        line = await peer.accept()
        await left.wait()
        await line.close()


async def test_leaving_while_it_waits_to_reconnect_takes_no_time() -> None:
    lost = trio.Event()

    async def body(a: AgentClient) -> None:
        await lost.wait()

    never = Retry(base_s=10_000, cap_s=10_000, random=lambda: 1.0)
    with trio.fail_after(300):
        async with scripted(body, close_timeout_s=10_000, retry=never, on_disconnected=lambda _: lost.set()) as (
            _,
            line,
        ):
            await line.close()


async def test_leaving_with_a_full_buffer_on_websocket() -> None:
    async with open_test_gateway() as gateway:
        address = f"ws://{gateway.address}"
        with trio.fail_after(300):
            b = agent(address, "b", credit_messages=1, close_timeout_s=10_000)
            async with agent(address, "a") as a, b:
                for _ in range(100):
                    await a.publish(b.topic, bytes(10_000))
                await a.flush()


async def test_the_bodys_exception_is_raised_as_it_is_and_cancelling_leaves_too() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:

        async def body() -> None:
            with pytest.raises(KeyError):
                async with agent(peer.address, "a"):
                    raise KeyError
            with trio.CancelScope() as scope:
                async with agent(peer.address, "a"):
                    scope.cancel()
                    await trio.sleep_forever()
            assert scope.cancelled_caught

        nursery.start_soon(body)
        for _ in range(2):
            assert framing.GoAway in {type(event) for event in await (await peer.accept()).end()}
