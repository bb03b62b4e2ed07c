"""Three transports on one port: the published SDK, our client, and a page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import NamedTuple

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
    """A participant: `say` waits for the acknowledgement, `hear` for a message."""

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


def test_all_participants_send_to_each_other(gateway: GatewayProcess, visitors: Visitors) -> None:
    """In all six directions, in order, byte for byte, with the right sender and type."""
    page, rounds, address = visitors.page(), 20, f"aether://{gateway.address}"
    with (
        SyncWorld(gateway.address) as world,
        connect_sync(address, workspace=world.ws, implementation=world.impl, specifier="framed") as framed,
    ):
        page.goto(f"http://{gateway.address}/")
        window = by_chromium(page, page.evaluate(WINDOW, [world.uid, world.ws]))
        participants = [by_sdk(world.agent("sdk").open()), by_framing(framed), window]
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
