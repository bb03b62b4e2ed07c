"""`aether tail`: shows a topic's messages as they are committed."""

from __future__ import annotations

import json
import sys
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

import click

from aether_trio.cli.http import stream_lines
from aether_trio.cli.options import OpsTarget, ops_options
from aether_trio.cli.output import run_client, say, say_json

_FORMS: Final = "now (those from now on), start (the oldest one there), or OFFSET (the number that a line begins with)"
_MAX_DIGITS: Final = 18


def _start(value: str | None) -> str | None:
    """Check the value of --from. Raises click.BadParameter."""
    if value is None or value in ("now", "start"):
        return value
    if value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS:
        return value
    raise click.BadParameter(f"{value!r} is none of {_FORMS}", param_hint="--from")


@click.command(
    name="tail",
    epilog="""
\b
Examples:
  aether tail ag::default::echo::1
  aether tail ag::default::echo::1 --from start --limit 10
  aether tail ag::default::echo::1 --no-follow
  aether tail pg::default --json | jq .message
""",
)
@click.argument("topic")
@click.option(
    "--from",
    "start",
    metavar="now|start|OFFSET",
    callback=lambda ctx, param, value: _start(value),
    help=f"The first message to show: {_FORMS}.  [default: now; start with --no-follow]",
)
@click.option("--follow/--no-follow", default=True, help="Wait for further messages, or end with the last one there.")
@click.option("-n", "--limit", type=click.IntRange(min=1), help="Stop after this many messages.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, as the gateway sends it.")
@ops_options
def command(topic: str, start: str | None, follow: bool, limit: int | None, as_json: bool, ops: OpsTarget) -> None:
    """Show the messages of TOPIC as they are committed, until Ctrl-C.

    With --no-follow it shows the messages that are there, and ends.

    Tailing reads the log: it takes nothing away from the topic's subscribers and needs no identity.
    A gateway serves it on loopback in development mode, and elsewhere to clients with its
    ops.tail_token.
    """
    start = start or ("now" if follow else "start")
    query = urlencode({"topic": topic, "from": "0" if start == "start" else start, "follow": int(follow)})
    run_client(_tail, ops, topic, f"/v1/tail?{query}", limit, follow, as_json)


async def _tail(ops: OpsTarget, topic: str, path: str, limit: int | None, follow: bool, as_json: bool) -> None:
    count = 0
    if follow and sys.stderr is not None and sys.stderr.isatty():
        say(f"tailing on {ops.host}:{ops.port}; Ctrl-C ends it", err=True)
    async with aclosing(stream_lines(ops, path)) as lines:
        async for line in lines:
            if as_json:
                say_json(line.decode())
            else:
                say(_readable(json.loads(line)))
            count += 1
            if count == limit:
                return
    if not count and not follow:
        say(f"no message in {topic}", err=True)


def _readable(line: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(line["timestamp_ms"] / 1000, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    head = f"{when}  {line['offset']:>6}"
    if line["kind"] != "msg":
        return (
            f"{head}  {line['kind']}  {json.dumps(line.get('message', line.get('payload_base64')), ensure_ascii=False)}"
        )
    body = line["text"] if "text" in line else f"({line['payload_base64']})"
    return f"{head}  {line['source']}  {line['type']}  {body}"
