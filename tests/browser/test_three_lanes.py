"""One port, three transports at once, each by the real thing: the published SDK over gRPC, our
client over the framing, and a window in Chromium.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from playwright.sync_api import Page
from scitrera_aether_client.proto import aether_pb2 as sdk_pb

from aether_trio.client import AgentClient, MessageType, connect_sync
from aether_trio.client.blocking.client import SyncClient
from tests.browser.conftest import Visitors
from tests.helpers.gateway import GatewayProcess
from tests.helpers.sdk import LIMIT_S, SyncPeer, SyncWorld

Heard = tuple[str, bytes, str]
"""(source, payload, type) of a message."""

WINDOW = """async ([userId, workspace]) => {
  const { connect } = await import("/client/aether.js");
  window.client = await connect({ userId, workspace });
  window.heard = client.messages();
  window.bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  window.text = (bytes) => btoa(String.fromCharCode(...bytes));
  return client.identity;
}"""
SEND = "async ([topic, text]) => { client.send(topic, bytes(text), { type: 'CHAT' }); await client.flush(); }"
HEAR = "async () => { const { value } = await heard.next(); return [value.source, text(value.payload), value.type]; }"


class Participant(NamedTuple):
    """`say(topic, payload)` returns when it is with the gateway.

    `hear()` waits for the next message.
    """

    topic: str
    say: Callable[[str, bytes], None]
    hear: Callable[[], Heard]


def by_sdk(peer: SyncPeer) -> Participant:
    def hear() -> Heard:
        message = peer.inbox.get(timeout=LIMIT_S)
        return message.source_topic, message.payload, sdk_pb.MessageType.Name(message.message_type)

    return Participant(peer.topic, lambda topic, payload: peer.send(topic, payload, sdk_pb.CHAT), hear)


def by_framing(agent: SyncClient[AgentClient]) -> Participant:
    def hear() -> Heard:
        message = agent.receive(timeout=LIMIT_S)
        message.ack()
        return message.source, message.payload, message.type.name

    return Participant(agent.topic, lambda topic, payload: agent.send(topic, payload, type=MessageType.CHAT), hear)


def by_chromium(page: Page, topic: str) -> Participant:
    def hear() -> Heard:
        source, payload, kind = page.evaluate(HEAR)
        return source, base64.b64decode(payload), kind

    return Participant(topic, lambda to, payload: page.evaluate(SEND, [to, base64.b64encode(payload).decode()]), hear)


@contextmanager
def three(gateway: GatewayProcess, page: Page) -> Iterator[tuple[SyncWorld, SyncClient[AgentClient], str]]:
    """A world whose agents are the SDK's, our agent, and the topic of the window, in one workspace."""
    address = f"aether://{gateway.address}"
    with (
        SyncWorld(gateway.address) as world,
        connect_sync(address, workspace=world.ws, implementation=world.impl, specifier="framed") as framed,
    ):
        page.goto(f"http://{gateway.address}/")
        yield world, framed, page.evaluate(WINDOW, [world.uid, world.ws])


def test_everybody_talks_to_everybody(gateway: GatewayProcess, visitors: Visitors) -> None:
    """In all six directions, in order, byte for byte, with the right sender and type."""
    page, rounds = visitors.page(), 20
    with three(gateway, page) as (world, framed, topic):
        participants = [by_sdk(world.agent("sdk").open()), by_framing(framed), by_chromium(page, topic)]
        payload = bytes(range(256))
        for n in range(rounds):
            for sender in participants:
                for receiver in participants:
                    if receiver is not sender:
                        sender.say(receiver.topic, b"%d " % n + payload)
        for receiver in participants:
            heard = [receiver.hear() for _ in range(2 * rounds)]
            for sender in participants:
                if receiver is not sender:
                    of_one = [message for message in heard if message[0] == sender.topic]
                    assert of_one == [(sender.topic, b"%d " % n + payload, "CHAT") for n in range(rounds)]


def test_a_question_goes_round_and_everybody_hears_the_answer(gateway: GatewayProcess, visitors: Visitors) -> None:
    """The window asks one agent, that one the other.

    The answer is told to all people, and its progress to the window.
    """
    page = visitors.page()
    with three(gateway, page) as (world, framed, topic):
        sdk, ours, window = by_sdk(world.agent("sdk").open()), by_framing(framed), by_chromium(page, topic)
        page.evaluate(
            """() => { window.progress = new Promise((resolve) => client.addEventListener("progress", resolve)); }"""
        )
        window.say(ours.topic, b"what is it?")
        assert ours.hear() == (window.topic, b"what is it?", "CHAT")
        ours.say(sdk.topic, b"what is it?")
        assert sdk.hear() == (ours.topic, b"what is it?", "CHAT")
        framed.progress.report("ask", completion=0.5, summary="asking", confirm=True)
        assert page.evaluate("async () => (await progress).detail.summary") == "asking"
        sdk.say(ours.topic, b"42")
        assert ours.hear() == (sdk.topic, b"42", "CHAT")
        framed.send_to_users("it is 42")
        assert window.hear() == (ours.topic, b"it is 42", "OPAQUE")


@pytest.mark.crash
def test_all_three_are_back_after_the_gateway_was_killed(
    own_gateway: Callable[..., GatewayProcess], visitors: Visitors
) -> None:
    """What ours and the window say while it is away arrives, once, when it is back."""
    gateway, page = own_gateway(), visitors.page()
    with three(gateway, page) as (world, framed, topic):
        lost = world.agent("sdk").open()
        gateway.kill()
        said = page.evaluate("async (topic) => client.send(topic, 'from the window')", framed.topic)
        assert said is None
        publication = framed.publish(topic, "from the framed one")
        assert not publication.settled
        gateway.restart()
        publication.committed()
        ours, window = by_framing(framed), by_chromium(page, topic)
        assert window.hear() == (ours.topic, b"from the framed one", "OPAQUE")
        assert ours.hear() == (window.topic, b"from the window", "OPAQUE")
        assert lost.gone.wait(LIMIT_S)
        sdk = by_sdk(world.agent("sdk").open())  # the SDK's way back is its own affair
        ours.say(sdk.topic, b"all here?")
        assert sdk.hear() == (ours.topic, b"all here?", "CHAT")
