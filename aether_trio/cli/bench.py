"""`aether bench`: measures a gateway with this package's client."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

import click

from aether_trio.cli import exits
from aether_trio.cli.connect import HINTS, REFUSALS, TRANSPORTS, addresses_of, innermost, on_first_spoken, options_of
from aether_trio.cli.options import DEFAULT_GATEWAY, GatewayTarget, client_options, without_context, workspace_option
from aether_trio.cli.output import print_json, print_table, progress_line, run_client, say
from aether_trio.client import AddressError, AetherError, AgentClient, Client, ClientOptions, Retry, UserClient

_HINTS: Final = {
    **HINTS,
    "PERMISSION_DENIED": "the credential must be for any agent of the workspace (--workspace)",
    "ERR_RATE_LIMITED": "the gateway limits what one connection may send; stay below with --rate, or use more --pairs",
}


@click.command(
    name="bench",
    epilog=f"""
\b
Examples:
  aether bench                                         {DEFAULT_GATEWAY}, 20 pairs, 10 seconds
  aether bench aether://gateway.example:50051 --pairs 50 --seconds 30
  aether bench ws://127.0.0.1:50051 --pairs 5          windows of a browser, on WebSocket
  aether bench aethers://gateway.example:50051 --tls-ca ca.pem --api-key "$KEY" --rate 200
  aether bench --json | jq .latency.ms.p99
""",
)
@click.argument("address", required=False)
@click.option("--pairs", type=click.IntRange(1, 5000), default=20, show_default=True, help="Pairs of participants.")
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, help="Measuring time in all."
)
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True),
    help="Rounds per second for the latency.  [default: half of the maximum, which is then measured first]",
)  # fmt: skip
@click.option("--payload", type=click.IntRange(16, 2**20), default=200, show_default=True, help="Bytes of a message.")
@click.option("--window", type=click.IntRange(1, 1000), default=16, show_default=True, help="Rounds on their way.")
@workspace_option
@click.option("--json", "as_json", is_flag=True, help="Report as one JSON object.")
@client_options
def command(
    target: GatewayTarget,
    address: str | None,
    pairs: int,
    seconds: float,
    rate: float | None,
    payload: int,
    window: int,
    workspace: str,
    as_json: bool,
) -> None:
    """Measure connections, messages per second and round-trip latency of a gateway.

    ADDRESS is aether://HOST:PORT or aethers:// (agents on the binary framing), ws:// or wss://
    (users on WebSocket), or HOST:PORT. Pairs play ping-pong with durable messages. Latencies count
    from the moment at which a round was due. All participants live in this one process, so with
    many of them it measures itself: `nox -s load` is made for that.
    """
    urls = addresses_for(target, address)
    if address is not None:
        target = without_context(target)
    target = replace(target, tls=urls[0].startswith(("aethers:", "grpcs:", "wss:")))
    options: ClientOptions = {"program": "aether-bench", "retry": Retry(max_attempts=0), **options_of(target)}
    run = secrets.token_hex(3)

    def make(url: str, role: str, number: int) -> Client:
        if url.startswith("ws"):
            return UserClient(url, user_id=f"bench-{run}-{number}", window_id=role, **options)
        return AgentClient(
            url, workspace=workspace, implementation=f"bench-{run}", specifier=f"{number}{role}", **options
        )

    try:
        make(urls[0], "a", 0)
    except (AddressError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint="ADDRESS") from None
    show = _progress(sys.stderr.isatty() and not as_json)
    url = ""

    def measure(address: str) -> dict[str, Any]:
        nonlocal url
        url = address
        return run_client(_run, url, partial(make, url), pairs, payload, window, seconds, rate, show)

    try:
        report = on_first_spoken(urls, measure)
    except (AetherError, OSError) as error:
        raise _explain(url, error) from None
    show("")
    if as_json:
        print_json(report)
    else:
        _print(report)
    if report["unanswered"] or report["errors"] or report["late"]:
        raise SystemExit(exits.FAILED)


def addresses_for(target: GatewayTarget, given: str | None) -> list[str]:
    """Return the gateway URLs to try: `given` with a scheme, else one per transport."""
    if given is None:
        return addresses_of(target)
    if "://" in given:
        return [given]
    return [f"{secure if target.tls else plain}://{given}" for plain, secure in TRANSPORTS]


async def _run(
    url: str,
    make: Callable[[str, int], Client],
    pairs: int,
    payload: int,
    window: int,
    seconds: float,
    rate: float | None,
    show: Callable[[str], None],
) -> dict[str, Any]:
    from aether_trio.cli.bench_run import Bench, percentiles_ms

    try:
        measured = await Bench(make, pairs, payload, window, show).run(seconds, rate)
    except* (AetherError, OSError) as group:
        show("")
        raise innermost(group) from None
    latency = percentiles_ms(measured.round_ns)
    busiest = measured.busiest_per_s
    return {
        "address": url,
        "pairs": pairs,
        "payload_bytes": payload,
        "connect": {
            "connections": len(measured.connect_ns),
            "per_s": round((2 * pairs - 1) / measured.connect_s, 1) if measured.connect_s else 0.0,
            "ms": percentiles_ms(measured.connect_ns),
        },
        "maximum": None if busiest is None else {"messages_per_s": round(busiest, 1), "window": window},
        "latency": {"rounds": len(measured.round_ns), "rounds_per_s": round(measured.rate_per_s, 1), "ms": latency},
        "rounds": measured.sent,
        "late": measured.late,
        "unanswered": measured.unanswered,
        "errors": dict(measured.errors),
        "error_texts": measured.texts,
    }


def _explain(url: str, error: BaseException) -> exits.CliError:
    if isinstance(error, AetherError) and error.code == "UNREACHABLE":
        text = f"{error.message}; start a gateway with `aether dev`, or name another address"
        return exits.CliError(text, exits.UNREACHABLE)
    if isinstance(error, AetherError):
        hint = f"; {_HINTS[error.code]}" if error.code in _HINTS else ""
        code = exits.REFUSED if error.code in REFUSALS else exits.UNREACHABLE
        return exits.CliError(f"{url} said {error.code}: {error.message}{hint}", code)
    return exits.CliError(f"{url} broke the connection: {error}", exits.UNREACHABLE)


def _progress(live: bool) -> Callable[[str], None]:
    def show(text: str) -> None:
        if live:
            progress_line(text)

    return show


def _print(report: dict[str, Any]) -> None:
    def times(found: dict[str, float]) -> list[str]:
        return [f"{found[name]:.2f}" if name in found else "" for name in ("p50", "p90", "p99", "p99.9", "max")]

    connect, maximum, latency = report["connect"], report["maximum"], report["latency"]
    rows: list[tuple[str, ...]] = [
        ("connect", f"{connect['connections']:,}", f"{connect['per_s']:,.0f}", *times(connect["ms"]))
    ]
    if maximum is not None:
        rows.append(("messages, at most", "", f"{maximum['messages_per_s']:,.0f}", *times({})))
    rows.append(("round trip", f"{latency['rounds']:,}", f"{latency['rounds_per_s']:,.0f}", *times(latency["ms"])))
    say(f"{report['address']}: {report['pairs']} pairs, {report['payload_bytes']} bytes, durable messages")
    say("")
    columns = ("", "count", "per second", "p50 ms", "p90", "p99", "p99.9", "max")
    print_table(columns, rows, "", numbers=True)
    say("")
    say(f"{report['rounds']:,} rounds, {report['unanswered']:,} without an answer")
    if report["late"]:
        say(
            f"{report['late']:,} more were due and not begun: --rate is more than there is, so the latencies say little"
        )
    for code, count in report["errors"].items():
        hint = f" ({_HINTS[code]})" if code in _HINTS else ""
        say(f"{count:,} x {code}: {report['error_texts'].get(code, '')}{hint}")
