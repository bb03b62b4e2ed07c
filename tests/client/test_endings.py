"""Ends for good, and leaving; against a scripted gateway."""

from __future__ import annotations

import asyncio
import time

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
from tests.client.gateways import agent, open_test_gateway, run_on
from tests.client.peer import Line, open_peer


async def end_for_good(line: Line) -> None:
    """The gateway says that it ends the session, and does."""
    await line.tell(signal=pb.Signal(type=pb.Signal.FORCE_DISCONNECT, reason="go away"))
    await line.say(framing.Error(int(Status.CANCELLED), "ended"))
    await line.end()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.UNAUTHENTICATED, AetherError),
        (Status.PERMISSION_DENIED, PermissionDenied),
        (Status.ALREADY_EXISTS, DuplicateIdentity),
    ],
)
async def test_a_refusal_is_raised_as_it_is(status: Status, kind: type[AetherError]) -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:

        async def body() -> None:
            with pytest.raises(kind, match="not you"):
                async with agent(peer.address, "a"):
                    pytest.fail("it was let in")

        nursery.start_soon(body)
        line = await peer.knock()
        await line.greet()
        await line.say(framing.Error(int(status), "not you"))
        await line.end()


async def test_what_is_no_gateway_is_said_so() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:

        async def body() -> None:
            with pytest.raises(ProtocolViolation, match="is this the port of a gateway"):
                async with agent(peer.address, "a"):
                    pytest.fail("it was let in")

        nursery.start_soon(body)
        line = await peer.knock()
        await line.stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await line.stream.receive_some()
        await line.stream.aclose()


async def test_an_end_for_good_cancels_the_block_and_is_raised_from_it() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:

        async def body() -> None:
            with pytest.raises(SessionEnded, match="somebody else") as caught:
                async with agent(peer.address, "a"):
                    await trio.sleep_forever()
            assert caught.value.code == "CANCELLED"

        nursery.start_soon(body)
        line = await peer.accept()
        await line.say(framing.Error(int(Status.CANCELLED), "somebody else has resumed it"))
        await line.end()


async def test_an_end_for_good_is_raised_out_of_everything_that_waits() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:
        raised: list[str] = []

        async def body() -> None:
            with pytest.raises(SessionEnded):
                async with agent(peer.address, "a") as a, trio.open_nursery() as waiters:

                    async def one(name: str) -> None:
                        try:
                            match name:
                                case "receive":
                                    await a.receive()
                                case "send":
                                    await a.send("ag::w::i::b", b"")
                                case "loop":
                                    async for _ in a:
                                        pass
                                case "request":
                                    await a.request(pb.UpstreamMessage(kv_op=pb.KVOperation(key="k")))
                        except AetherError as error:
                            raised.append(f"{name} {error.code}")

                    for name in ("receive", "send", "loop", "request"):
                        waiters.start_soon(one, name)

        nursery.start_soon(body)
        line = await peer.accept()
        await line.next(framing.Envelope)
        await end_for_good(line)
    assert sorted(raised) == [
        "loop FORCE_DISCONNECT",
        "receive FORCE_DISCONNECT",
        "request CONNECTION_LOST",
        "send CONNECTION_LOST",
    ]


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize("own", [False, True])
async def test_a_group_of_nothing_but_the_end_for_good_is_that_end(backend: str, own: bool) -> None:
    """Tasks of the body may meet it before they are cancelled.

    An exception of the body's own keeps its group.
    """

    async def read(a: AgentClient) -> None:
        with anyio.CancelScope(shield=True):
            await a.receive()

    async def fail() -> None:
        raise KeyError("the body's own")

    async def body() -> None:
        async with (
            agent(peer.address, "a") as a,
            anyio.create_task_group() as outer,
            anyio.create_task_group() as inner,
        ):
            outer.start_soon(read, a)
            inner.start_soon(read, a)
            try:
                await anyio.sleep_forever()
            finally:
                if own:
                    outer.start_soon(fail)

    async def ends() -> None:
        with pytest.raises(ExceptionGroup if own else SessionEnded) as caught:
            await body()
        if isinstance(caught.value, ExceptionGroup):
            assert caught.value.subgroup(SessionEnded) is not None
            assert caught.value.subgroup(KeyError) is not None

    async with open_peer() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(run_on, backend, ends)
        line = await peer.accept()
        await end_for_good(line)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
async def test_an_end_for_good_and_a_cancellation_around_the_block(backend: str) -> None:
    """A task of the body meets the end, and cancels what is around the client."""
    caught: list[BaseException] = []

    async def read(a: AgentClient, outer: anyio.CancelScope) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await a.receive()
        finally:
            outer.cancel()

    async def body() -> None:
        try:
            with anyio.CancelScope() as outer:
                async with agent(peer.address, "a") as a, anyio.create_task_group() as group:
                    group.start_soon(read, a, outer)
                    await anyio.sleep_forever()
        except BaseException as error:
            caught.append(error)
        await anyio.lowlevel.checkpoint()

    async with open_peer() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(run_on, backend, body)
        line = await peer.accept()
        await end_for_good(line)
    assert [type(error) for error in caught] == [SessionEnded]


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
@pytest.mark.parametrize("raises", ["own", "failure", "group of the failure", "group with another"])
async def test_a_cancellation_around_the_block_replaces_no_exception_of_its_body(backend: str, raises: str) -> None:
    """The client fails for good, and in the same moment what is around it is cancelled and the body
    raises.
    """
    caught: list[BaseException] = []

    async def body() -> None:
        with anyio.CancelScope() as outer:
            async with agent(peer.address, "a") as a:
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

    async def ends() -> None:
        try:
            await body()
        except BaseException as error:
            caught.append(error)
        await anyio.lowlevel.checkpoint()

    async with open_peer() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(run_on, backend, ends)
        line = await peer.accept()
        await end_for_good(line)
    wanted = {"own": KeyError, "group with another": BaseExceptionGroup}.get(raises, SessionEnded)
    assert [type(error) for error in caught] == [wanted]


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
async def test_a_time_limit_around_the_block_replaces_no_exception_of_its_body(backend: str) -> None:
    async def body(address: str) -> None:
        with pytest.raises(KeyError):
            with anyio.move_on_after(0.3):
                async with agent(address, "a"):
                    try:
                        await anyio.sleep_forever()
                    finally:
                        raise KeyError("own")
        await anyio.lowlevel.checkpoint()

    async with open_test_gateway() as gateway:
        await run_on(backend, body, f"aether://{gateway.address}")


@pytest.mark.parametrize("failed", [False, True])
@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_cancellation_of_asyncio_replaces_no_exception_of_the_body(how: str, failed: bool) -> None:
    caught: list[BaseException] = []

    async def raise_own(a: AgentClient) -> None:
        try:
            with anyio.CancelScope(shield=True):
                if failed:
                    await a.receive()
        finally:
            if how == "cancel" and (task := asyncio.current_task()):
                task.cancel()
            else:
                time.sleep(0.3)  # the limit is over, and nobody has been told
            raise KeyError("own")

    async def work() -> None:
        async with asyncio.timeout(0.2 if how == "timeout" else None), agent(peer.address, "a") as a:
            await raise_own(a)

    async def body() -> None:
        try:
            await asyncio.create_task(work())
        except BaseException as error:
            caught.append(error)

    async with open_peer() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(run_on, "asyncio", body)
        line = await peer.accept()
        if failed:
            await end_for_good(line)
        else:
            await line.end()
    assert [type(error) for error in caught] == [KeyError]


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
async def test_a_group_of_the_body_is_in_no_other_group(backend: str) -> None:
    caught: list[BaseException] = []

    async def body() -> None:
        try:
            async with agent(peer.address, "a"):
                try:
                    await anyio.sleep_forever()
                except anyio.get_cancelled_exc_class() as cancelled:
                    raise BaseExceptionGroup("the body's", [KeyError("own"), cancelled]) from None
        except BaseException as error:
            caught.append(error)
        await anyio.lowlevel.checkpoint()

    async with open_peer() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(run_on, backend, body)
        line = await peer.accept()
        await end_for_good(line)
    assert [str(error) for error in caught] == ["the body's (1 sub-exception)"]
    [group] = caught
    assert isinstance(group, ExceptionGroup)
    assert isinstance(group.exceptions[0], KeyError)


async def test_leaving_is_bounded_when_the_gateway_does_not_answer() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:
        left = trio.Event()

        async def body() -> None:
            async with agent(peer.address, "a", close_timeout=0.05):
                pass
            left.set()

        nursery.start_soon(body)
        line = await peer.accept()
        await left.wait()
        await line.stream.aclose()


async def test_leaving_while_it_waits_to_reconnect_takes_no_time() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:
        lost = trio.Event()

        async def body() -> None:
            never = Retry(base_s=10_000, cap_s=10_000, random=lambda: 1.0)
            with trio.fail_after(300):
                async with agent(
                    peer.address, "a", close_timeout=10_000, retry=never, on_disconnected=lambda _why: lost.set()
                ):
                    await lost.wait()

        nursery.start_soon(body)
        line = await peer.accept()
        await line.stream.aclose()


async def test_leaving_with_a_full_buffer_on_websocket() -> None:
    async with open_test_gateway() as gateway:
        address = f"ws://{gateway.address}"
        with trio.fail_after(300):
            async with (
                agent(address, "a") as a,
                agent(address, "b", credit_messages=1, close_timeout=10_000) as b,
            ):
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
        for session in ("s1", "s2"):
            line = await peer.accept(session)
            assert framing.GoAway in {type(event) for event in await line.end()}
