"""`aether tail`."""

from __future__ import annotations

import json
import sys
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import click
import trio

from aether_trio.cli.http import stream_lines
from aether_trio.cli.options import DEFAULT_OPS, split_address


@click.command(
    name="tail",
    epilog="""
\b
Examples:
  aether tail ag::default::echo::1
  aether tail ag::default::echo::1 --from start --limit 10
  aether tail pg::default --json | jq .message
""",
)
@click.argument("topic")
@click.option(
    "--from", "start", default="now", show_default=True, metavar="now|start|OFFSET", help="The first message to show."
)
@click.option("-n", "--limit", type=click.IntRange(min=1), help="Stop after this many messages.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line, as the gateway sends it.")
@click.option(
    "--ops", default=DEFAULT_OPS, show_default=True, envvar="AETHER_OPS", show_envvar=True, metavar="HOST:PORT",
    help="The gateway's ops port.",
)  # fmt: skip
@click.option(
    "--token", envvar="AETHER_OPS__TAIL_TOKEN", show_envvar=True, metavar="TOKEN", help="The gateway's ops.tail_token."
)
@click.option(
    "--timeout", "timeout_s", default=10.0, show_default=True, metavar="SECONDS", help="For the gateway to answer."
)
def command(
    topic: str, start: str, limit: int | None, as_json: bool, ops: str, token: str | None, timeout_s: float
) -> None:
    """Show the messages of TOPIC as they are committed, until Ctrl-C.

    Tailing reads the log: it takes nothing away from the topic's subscribers and needs no identity. A gateway serves it
    on loopback in development mode, and elsewhere to whoever has its ops.tail_token.
    """
    host, port = split_address(ops, 9090)
    query = urlencode({"topic": topic, "from": "0" if start == "start" else start})
    headers = {"authorization": f"Bearer {token}"} if token else {}
    trio.run(_tail, host, port, f"/v1/tail?{query}", headers, limit, as_json, timeout_s)


async def _tail(
    host: str, port: int, path: str, headers: dict[str, str], limit: int | None, as_json: bool, timeout_s: float
) -> None:
    hint = "is the gateway running, and is this its ops port? (--ops)"
    count = 0
    if sys.stderr.isatty():
        click.echo(f"tailing on {host}:{port}; Ctrl-C ends it", err=True)
    async with aclosing(stream_lines(host, port, path, headers, timeout_s=timeout_s, hint=hint)) as lines:
        async for line in lines:
            click.echo(line.decode() if as_json else _readable(json.loads(line)))
            count += 1
            if count == limit:
                return


def _readable(line: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(line["timestamp_ms"] / 1000, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    head = f"{when}  {line['offset']:>6}"
    if line["kind"] != "msg":
        return (
            f"{head}  {line['kind']}  {json.dumps(line.get('message', line.get('payload_base64')), ensure_ascii=False)}"
        )
    body = line["text"] if "text" in line else f"({line['payload_base64']})"
    return f"{head}  {line['source']}  {line['type']}  {body}"
