"""`aether send`: sends one message."""

from __future__ import annotations

import sys
from typing import Final

import click

from aether_trio.cli import exits
from aether_trio.cli.connect import is_refusal, open_client, refusal_text
from aether_trio.cli.identities import made_up, parse_identity
from aether_trio.cli.options import GatewayTarget, client_options
from aether_trio.cli.output import print_json, run_client, say
from aether_trio.client import AetherError, MessageType
from aether_trio.model import errors
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.topics import TopicKind, parse_topic, rewrite_alias

TYPES: Final = ("chat", "control", "tool_call", "event", "metric", "opaque")


@click.command(
    name="send",
    epilog="""
\b
Examples:
  aether send ag::default::echo::1 "hello"
  aether send ga::default "to every agent of the workspace"
  aether send us::alice::w1 "hi" --as ag::default::helper::1
  date | aether send ag::default::echo::1 -
""",
)
@click.argument("topic")
@click.argument("text", metavar="TEXT|-")
@click.option(
    "--as", "sender", metavar="IDENTITY", help="Who sends, such as ag::default::me::1.  [default: a made-up one]"
)
@click.option(
    "--type", "message_type", type=click.Choice(TYPES), default="chat", show_default=True, help="The message type."
)
@click.option("--json", "as_json", is_flag=True, help="Report as one JSON object.")
@client_options
def command(target: GatewayTarget, topic: str, text: str, sender: str | None, message_type: str, as_json: bool) -> None:
    """Send one message to TOPIC. A TEXT of - reads standard input.

    Done means durable: the command ends when the gateway has committed the message. It does not
    mean that the receiver has read it.
    """
    payload = sys.stdin.buffer.read() if text == "-" else text.encode()
    identity = parse_identity(sender) if sender else _sender_for(topic)
    run_client(_send, target, identity, topic, payload, message_type)
    if as_json:
        print_json({"topic": topic, "from": str(identity), "bytes": len(payload)})
    else:
        say(f"sent {len(payload)} bytes to {topic} as {identity}")


def _sender_for(topic: str) -> Identity:
    """Make up a sender that may send to this topic: an agent, or a service."""
    try:
        kind, workspace = _look_at(topic)
    except errors.RequestError as error:
        raise exits.CliError(f"cannot send to {topic}: {error.code}: {error.message}", exits.USAGE) from None
    if kind is TopicKind.USER_EVERYWHERE:
        return made_up(Kind.SERVICE)
    return made_up(Kind.AGENT, workspace or "default")


def _look_at(topic: str) -> tuple[TopicKind, str]:
    parsed = parse_topic(rewrite_alias(topic, "default")[0])
    return parsed.kind, parsed.workspace


async def _send(target: GatewayTarget, identity: Identity, topic: str, payload: bytes, message_type: str) -> None:
    async with open_client(target, identity) as client:
        try:
            await client.send(topic, payload, type=MessageType[message_type.upper()])
        except AetherError as error:
            if not is_refusal(error):
                raise
            raise exits.CliError(f"the message to {topic} was not sent: {refusal_text(error)}") from error
