"""One port serves an SDK agent, a framed agent and a WebSocket window at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import pytest
import trio
from scitrera_aether_client.proto import aether_pb2 as sdk_pb

from aether_trio.client import AgentClient, DuplicateIdentity, MessageType, UserClient
from aether_trio.wire.browser import JSON
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import message_to, switch_to, user
from tests.helpers.participants import Participant, participant
from tests.helpers.sdk import SyncPeer, SyncWorld, answered
from tests.interop.transports.world import take

T = TypeVar("T")
LIMIT_S = 300.0


async def blocking(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    return await trio.to_thread.run_sync(partial(function, *args, **kwargs))


class Three:
    """The three, in one workspace and on one port."""

    def __init__(self, ws: str, sdk: SyncPeer, framed: AgentClient, window: Participant, uid: str) -> None:
        self.ws, self.sdk, self.framed, self.window = ws, sdk, framed, window
        self.topics = {"sdk": sdk.topic, "framed": framed.topic, "window": f"us::{uid}::w1"}

    async def say(self, sender: str, target: str, payload: bytes) -> None:
        topic = self.topics[target]
        if sender == "sdk":
            await blocking(self.sdk.send, topic, payload, sdk_pb.CHAT)
        elif sender == "framed":
            await self.framed.send(topic, payload, type=MessageType.CHAT)
        else:
            await self.window.send(message_to(topic, payload, pb.CHAT))

    async def hear(self, receiver: str) -> tuple[str, bytes, str]:
        """(source, payload, type) of the next message of one of them."""
        if receiver == "sdk":
            message = await blocking(self.sdk.take)
            return message.source_topic, message.payload, sdk_pb.MessageType.Name(message.message_type)
        if receiver == "framed":
            got = await take(self.framed)
            return got.source, got.payload, got.type.name
        heard = (await self.window.next("msg")).msg
        return heard.source_topic, heard.payload, pb.MessageType.Name(heard.message_type)


@asynccontextmanager
async def connected(target: str) -> AsyncIterator[Three]:
    with trio.fail_after(LIMIT_S):
        world = SyncWorld(target)
        sdk = world.agent("sdk")
        try:
            await blocking(sdk.open)
            async with (
                AgentClient(
                    f"aether://{target}", workspace=world.ws, implementation=world.impl, specifier="framed"
                ) as framed,
                participant("websocket", target, user(world.uid, "w1"), codec=JSON) as window,
            ):
                await window.send(switch_to(world.ws))
                await window.send(pb.UpstreamMessage(checkpoint_op=pb.CheckpointOperation(request_id="switched")))
                await window.next("checkpoint")
                yield Three(world.ws, sdk, framed, window, world.uid)
        finally:
            with trio.CancelScope(shield=True):
                await blocking(sdk.close)


NAMES = ("sdk", "framed", "window")
PAIRS = [(sender, receiver) for sender in NAMES for receiver in NAMES if sender != receiver]


async def test_all_clients_send_to_each_other(target: str) -> None:
    """In order, byte for byte, with the right sender, in all six directions at once."""
    async with connected(target) as three:
        rounds = 50
        tail = bytes(range(256))

        async def speak(sender: str, receiver: str) -> None:
            for n in range(rounds):
                await three.say(sender, receiver, b"%s %d " % (sender.encode(), n) + tail)

        got: dict[str, list[tuple[str, bytes, str]]] = {name: [] for name in NAMES}

        async def listen(receiver: str) -> None:
            for _ in range(2 * rounds):
                got[receiver].append(await three.hear(receiver))

        async with trio.open_nursery() as nursery:
            for name in NAMES:
                nursery.start_soon(listen, name)
            # One task a sender: a socket of wsproto is written by one at a time.
            for sender in NAMES:

                async def all_of(sender: str = sender) -> None:
                    for receiver in NAMES:
                        if receiver != sender:
                            await speak(sender, receiver)

                nursery.start_soon(all_of)
        for sender, receiver in PAIRS:
            source = three.topics[sender]
            heard = [(payload, kind) for who, payload, kind in got[receiver] if who == source]
            assert heard == [(b"%s %d " % (sender.encode(), n) + tail, "CHAT") for n in range(rounds)]


async def test_broadcasts_cross_the_transports(target: str) -> None:
    async with connected(target) as three:
        await blocking(three.sdk.client.send_broadcast_to_agents, three.ws, b"agents")
        assert (await three.hear("sdk"))[1] == (await three.hear("framed"))[1] == b"agents"
        await three.framed.send_to_agents(b"agents again")
        assert (await three.hear("sdk"))[1] == (await three.hear("framed"))[1] == b"agents again"
        await three.framed.send_to_users(b"people")
        assert await three.hear("window") == (three.framed.topic, b"people", "OPAQUE")
        await blocking(three.sdk.client.send_broadcast_to_users, three.ws, b"people again")
        assert (await three.hear("window"))[:2] == (three.sdk.topic, b"people again")


async def test_state_and_progress_cross_the_transports(target: str) -> None:
    async with connected(target) as three:
        await three.framed.kv.put("shared", b"by the framed agent")
        got = await blocking(three.sdk.kv, sdk_pb.KVOperation.GET, scope=sdk_pb.KVOperation.WORKSPACE, key="shared")
        assert answered(got, "get").value == b"by the framed agent"
        await three.framed.progress.report("t", completion=0.5, summary="half", confirm=True)
        update = (await three.window.next("progress_update")).progress_update
        assert (update.source, update.completion, update.summary) == (three.framed.topic, 0.5, "half")
        await blocking(three.sdk.client.report_progress, "t", completion=1.0, summary="done")
        assert (await anext(three.framed.progress_updates)).summary == "done"
        assert (await three.window.next("progress_update")).progress_update.summary == "done"


async def test_one_identity_on_all_transports(target: str) -> None:
    """Who holds an identity holds it whatever it speaks; who leaves frees it for all."""
    async with connected(target) as three:
        _, _, impl, _ = three.sdk.topic.split("::")
        with pytest.raises(DuplicateIdentity):
            async with AgentClient(f"aether://{target}", workspace=three.ws, implementation=impl, specifier="sdk"):
                raise AssertionError("it was let in")
        _, user_id, window_id = three.topics["window"].split("::")
        with pytest.raises(DuplicateIdentity):
            async with UserClient(f"ws://{target}", user_id=user_id, window_id=window_id):
                raise AssertionError("it was let in")
        await blocking(three.sdk.close)
        async with AgentClient(f"aether://{target}", workspace=three.ws, implementation=impl, specifier="sdk") as heir:
            await three.say("window", "sdk", b"are you the one?")
            assert (await take(heir)).payload == b"are you the one?"
