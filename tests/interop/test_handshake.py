"""Scenarios 18 to 20, 23, 24, 27: the first message, and what may follow it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import grpc
import pytest
from scitrera_aether_client.client import make_extension
from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.forwarder import Forwarder
from tests.helpers.gateway import GatewayProcess
from tests.helpers.sdk import World, agent_init, answered, in_asyncio, raw_stream, run_async

UNKNOWN_EXTENSION = "https://example.test/extensions/none-such"


@pytest.mark.parametrize(
    "first",
    [
        {"send": pb.SendMessage(target_topic="ga::w", payload=b"too early")},
        {"kv_op": pb.KVOperation(op=pb.KVOperation.GET, key="k", request_id="r")},
        {},
        {"init": pb.InitConnection()},
    ],
    ids=["send", "kv", "empty", "init-without-identity"],
)
@in_asyncio
async def test_18_r_first_message_must_be_init(target: str, first: dict[str, object]) -> None:
    async with raw_stream(target) as stream:
        await stream.send(**first)
        end, kinds = await stream.ended()
        assert (end.code, kinds) == (grpc.StatusCode.INVALID_ARGUMENT, [])


@in_asyncio
async def test_18_r_second_init_ends_the_stream(world: World, target: str) -> None:
    init = agent_init(world.ws, world.impl, "twice")
    async with raw_stream(target, **init) as stream:
        await stream.expect("connection_ack")
        await stream.expect("config")
        await stream.send(init=pb.InitConnection(**init))
        end, kinds = await stream.ended()
        assert (end.code, kinds) == (grpc.StatusCode.INVALID_ARGUMENT, [])
    await world.open(world.agent("twice"))  # and its identity is free again


def test_19_r_a_silent_client_is_ended(own_gateway: Callable[..., GatewayProcess]) -> None:
    """With one second instead of thirty; the next test holds the thirty."""
    gateway = own_gateway(ephemeral=True, extra_args=["--set", "limits.init_wait_s=1"])

    async def scenario() -> None:
        async with raw_stream(gateway.address) as stream:
            end, kinds = await stream.ended()
            assert (end.code, kinds) == (grpc.StatusCode.DEADLINE_EXCEEDED, [])

    run_async(scenario)


def test_19_silent_clients_get_thirty_seconds_by_default() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "aether_trio", "config", "default"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    (line,) = [line for line in shown.splitlines() if "init_wait_s" in line]
    assert float(line.partition(":")[2].partition("#")[0]) == 30


@in_asyncio
async def test_20_a_messages_sent_before_the_ack_are_processed_in_order(world: World) -> None:
    (receiver,) = await world.open(world.agent("receiver"))
    eager = await world.agent("eager").connect()
    sent = [f"early {n}".encode() for n in range(100)]
    for n, payload in enumerate(sent):
        await eager.client.send_message_to_agent(world.ws, world.impl, "receiver", payload)
        await eager.client.kv_put_nowait("early", str(n).encode(), scope="workspace")
    assert eager.connects.empty(), "nothing was sent before the ack; the scenario proves nothing"
    got = answered(await eager.client.kv_get("early", scope="workspace", timeout=30), "kv_get")
    assert got.value == b"99"
    assert [(await receiver.take()).payload for _ in sent] == sent


@in_asyncio
async def test_23_a_optional_extension_is_declined_and_the_connection_stays(world: World) -> None:
    (agent,) = await world.open(world.agent("a", extensions=[make_extension(uri=UNKNOWN_EXTENSION, version="1")]))
    assert agent.client.negotiated_extensions() == []
    await agent.barrier()


@in_asyncio
async def test_23_r_the_ack_says_what_was_declined(world: World, target: str) -> None:
    extensions = [make_extension(uri=UNKNOWN_EXTENSION, version="7")]
    async with raw_stream(target, **agent_init(world.ws, world.impl, "a"), extensions=extensions) as stream:
        (said,) = (await stream.expect("connection_ack")).negotiated_extensions
        assert (said.uri, said.version, said.supported) == (UNKNOWN_EXTENSION, "7", False)
        assert said.rejection_reason


@in_asyncio
async def test_24_r_required_unknown_extension_is_refused(world: World, target: str) -> None:
    extensions = [make_extension(uri=UNKNOWN_EXTENSION, required=True)]
    async with raw_stream(target, **agent_init(world.ws, world.impl, "a"), extensions=extensions) as stream:
        end, kinds = await stream.ended()
        assert end.code is grpc.StatusCode.FAILED_PRECONDITION
        assert "ERR_EXTENSION_UNSUPPORTED" in end.details
        assert set(kinds) <= {"connection_ack"}
    await world.open(world.agent("a"))  # the refusal holds no identity


@in_asyncio
async def test_24_a_a_refused_sdk_client_does_not_spin(target: str) -> None:
    """It runs out of two retries; an ack before the status would reset its counter."""
    with Forwarder(target) as path:
        async with World(path.address) as world:
            extensions = [make_extension(uri=UNKNOWN_EXTENSION, required=True)]
            agent = world.agent("a", extensions=extensions, auto_reconnect=True, max_retries=2)
            await agent.connect()
            await agent.client.wait_until_disconnected()
            assert not agent.client.is_running
            assert 2 <= path.client_streams <= 3


@pytest.mark.parametrize("part", ["workspace", "implementation", "specifier"])
@in_asyncio
async def test_27_a_separator_inside_an_identity_part(world: World, part: str) -> None:
    parts = {"workspace": world.ws, "implementation": world.impl, "specifier": "a", part: "a::b"}
    agent = world.agent(parts["specifier"], ws=parts["workspace"], impl=parts["implementation"])
    await agent.refused_with("INVALID_ARGUMENT")


@pytest.mark.parametrize("token", ["a b", "a*", "a>", "a\x01b", "x" * 129, "é" * 65], ids=ascii)
@in_asyncio
async def test_27_r_other_malformed_parts(world: World, target: str, token: str) -> None:
    async with raw_stream(target, **agent_init(world.ws, token, "a")) as stream:
        end, kinds = await stream.ended()
        assert (end.code, kinds) == (grpc.StatusCode.INVALID_ARGUMENT, [])


@pytest.mark.parametrize("token", ["a.b", "a@b/c", "a:b", "x" * 128, "é" * 64], ids=ascii)
@in_asyncio
async def test_27_r_unusual_but_legal_parts(world: World, target: str, token: str) -> None:
    async with raw_stream(target, **agent_init(world.ws, token, "a")) as stream:
        await stream.expect("connection_ack")
