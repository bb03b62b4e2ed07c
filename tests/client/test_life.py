"""Test how a client loses its connection and comes back."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from aether_trio.client import (
    AddressError,
    AetherError,
    AgentClient,
    ClientClosed,
    DuplicateIdentity,
    Retry,
    State,
    Unavailable,
    UserClient,
)
from aether_trio.model.errors import Status
from aether_trio.wire import framing
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import QUICK, agent, open_test_gateway
from tests.client.peer import incoming, open_peer, scripted


async def test_it_comes_back_after_a_cut_and_says_which_session_it_was() -> None:
    seen: list[object] = []

    async def body(a: AgentClient) -> None:
        assert (await a.receive()).payload == b"after all"
        assert (a.connections, a.session_id, a.resumed) == (4, "s4", True)
        states = [a.states.get_nowait() for _ in range(len(a.states))]
        assert states[:4] == [State.CONNECTING, State.CONNECTED, State.WAITING, State.CONNECTING]

    hooks = {"on_connected": seen.append, "on_disconnected": lambda why: seen.append(type(why))}
    async with scripted(body, **hooks) as (peer, _):
        line = await peer.cut()
        assert line.init is not None
        assert line.init.resume_session_id == "s1"
        await line.say(framing.Error(int(Status.UNAVAILABLE), "restarting", retryable=True))
        line = await peer.cut()
        await line.stream.send_all(b"\x00\x00\x00\x08\x04")  # half a frame
        await line.close()
        # An attempt that is not answered is no end either.
        line = await peer.knock()
        await line.close()
        line = await peer.knock()
        await line.greet()
        assert line.init is not None
        assert line.init.resume_session_id == "s3"
        await line.let_in("s4", resumed=True)
        await line.say(framing.Channel(1, "ag::w::i::a"), framing.Deliver(1, 1, incoming(b"after all")))
    assert [one for one in seen if isinstance(one, bool)] == [False, False, False, True]
    assert len(seen) == 7


@pytest.mark.parametrize("scheme", ["ws", "grpc"])
async def test_a_gateway_that_drains_says_that_it_is_unavailable(scheme: str) -> None:
    lost: list[AetherError] = []
    with trio.fail_after(300):
        async with (
            open_test_gateway() as gateway,
            agent(f"{scheme}://{gateway.address}", "a", on_disconnected=lost.append) as a,
        ):
            await gateway.drain()
            while not lost:
                await anext(a.states)
    assert type(lost[0]) is Unavailable
    assert "shutting down" in lost[0].message


async def test_the_duplicate_may_be_ourselves() -> None:
    """The gateway may have let an attempt in whose answer was lost."""

    async def body(a: AgentClient) -> None:
        await a.receive()

    async with scripted(body) as (peer, line):
        await line.close()
        again = await peer.knock()
        await again.greet()
        await again.close()
        for _ in range(3):
            again = await peer.knock()
            await again.greet()
            await again.say(framing.Error(int(Status.ALREADY_EXISTS), "you are here"))
            await again.end()
        again = await peer.accept()
        await again.say(framing.Channel(1, "ag::w::i::a"), framing.Deliver(1, 1, incoming(b"")))


async def test_a_duplicate_that_cannot_be_ourselves_is_final() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:

        async def body() -> None:
            with pytest.raises(DuplicateIdentity):
                async with agent(peer.address, "a"):
                    await trio.sleep_forever()

        nursery.start_soon(body)
        line = await peer.accept()
        await line.close()
        line = await peer.knock()
        await line.greet()
        await line.say(framing.Error(int(Status.ALREADY_EXISTS), "another one"))
        await line.end()


async def test_it_gives_up_after_so_many_attempts() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:

        async def body() -> None:
            retry = Retry(base_s=0.001, cap_s=0.001, max_attempts=2)
            with pytest.raises(Unavailable):
                async with agent(peer.address, "a", retry=retry):
                    await trio.sleep_forever()

        nursery.start_soon(body)
        line = await peer.accept()
        await line.close()
        line = await peer.knock()
        await line.close()


async def test_pauses_are_the_randomness_times_a_bound_that_doubles() -> None:
    retry = Retry(base_s=1, cap_s=10, random=lambda: 0.5)
    assert [retry.pause_s(failures) for failures in range(6)] == [0.5, 1, 2, 4, 5, 5]
    assert retry.pause_s(0, 3.0) == 3.5
    assert retry.pause_s(10_000) == 5
    with pytest.raises(ValueError, match="cap_s"):
        Retry(base_s=2, cap_s=1)


async def test_a_silent_connection_is_asked_and_then_cut() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:

        async def body() -> None:
            client = agent(peer.address, "a")
            settings = dataclasses.replace(client._settings, ping_interval_s=0.05)
            client._reconnector.settings = settings
            async with client as a:
                await a.receive()
                assert a.connections == 2

        nursery.start_soon(body)
        line = await peer.accept()
        ping = await line.next(framing.Ping)
        await line.say(framing.Pong(ping.number))
        await line.next(framing.Ping)  # not answered
        again = await peer.accept()
        await again.say(framing.Channel(1, "ag::w::i::a"), framing.Deliver(1, 1, incoming(b"")))
        await again.end()
        await line.close()


async def test_a_users_workspace_is_said_again() -> None:
    async def body(ann: UserClient) -> None:
        await ann.switch_workspace("w")
        await ann.receive()

    user = partial(UserClient, user_id="ann", window_id="1", retry=QUICK)
    async with scripted(body, client=user) as (peer, line):  # type: ignore[arg-type]
        assert (await line.asked()).switch_workspace.new_workspace_id == "w"
        barrier = (await line.asked()).connection_status_request
        assert (barrier.principal.principal_type, barrier.principal.principal_id) == ("user", "us::ann::1")
        answer = pb.ConnectionStatusResponse(request_id=barrier.request_id, ok=True)
        await line.tell(connection_status_response=answer)
        await trio.testing.wait_all_tasks_blocked(0.01)
        again = await peer.cut()
        assert (await again.asked()).switch_workspace.new_workspace_id == "w"
        await again.say(framing.Channel(1, "us::ann::1"), framing.Deliver(1, 1, incoming(b"")))


async def test_a_client_has_one_block() -> None:
    async with open_peer() as peer, trio.open_nursery() as nursery:

        async def body() -> None:
            client = agent(peer.address, "a")
            with pytest.raises(ClientClosed):
                await client.send("ag::w::i::b", b"")
            with pytest.raises(ClientClosed):
                _ = client.assigned_id
            async with client:
                pass
            with pytest.raises(ClientClosed):
                async with client:
                    pass

        nursery.start_soon(body)
        await (await peer.accept()).end()


@pytest.mark.parametrize(
    ("address", "options", "kind", "why"),
    [
        ("localhost:50051", {}, AddressError, "no scheme"),
        ("aether://localhost", {"apikey": "x"}, TypeError, "unknown option 'apikey'"),
        ("aether://localhost", {"workspace": ""}, ValueError, "workspace is empty"),
        ("aether://localhost", {"ping_interval_s": 1.0}, ValueError, "ping_interval_s"),
        ("aether://localhost", {"credit_messages": 0}, ValueError, "at least 1"),
    ],
)
def test_arguments_are_checked(address: str, options: dict[str, Any], kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=why):
        AgentClient(address, **{"workspace": "w", "implementation": "i", "specifier": "1", **options})
