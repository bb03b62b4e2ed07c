"""The command line of the load tests."""

from __future__ import annotations

import argparse
import secrets
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import arguments as number
from bench import machine
from bench.process import ProcessGone
from bench.servers import ServerFailed, ServerOptions, serving
from loadtests import addresses, report, table
from loadtests.coordinator import Coordinator
from loadtests.fleet import WorkerFailed
from loadtests.plan import GRPCIO_CHANNELS, TRANSPORTS, Plan
from loadtests.screen import Screen
from loadtests.shapes import SHAPES, spread

RESULTS = Path("bench-results")
DATA_ROOT = Path("/var/tmp")
"""Unlike /tmp this is on a disk everywhere, so that a commit costs what a commit costs."""

EPILOG = """\
shapes:
{shapes}

examples (nox -s load -- ...):
  --transport framed --users 10000 --minutes 2               a new gateway, 1 % of the users sending
  --transport framed --users 15000 --shape storm             all cut at once in the middle; how long until all are back
  --transport websocket --users 2000 --shape churn           windows that come and go
  --transport grpc-raw --users 1000 --shape fan-out --rate 5     one to a thousand, five times a second
  --transport framed --users 500 --target 127.0.0.1:50051 --pid 4711     a gateway that runs already

exit status: 0 all well; 1 something was lost, repeated, refused or broken; 2 wrong arguments
"""


def parser() -> argparse.ArgumentParser:
    """All options."""
    shapes = "\n".join(f"  {shape.name:14}{shape.doc}" for shape in SHAPES.values())
    made = argparse.ArgumentParser(
        prog="python -m loadtests",
        description="Many users of one transport against a gateway (docs/loadtests.md).",
        epilog=EPILOG.format(shapes=shapes),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--transport",
        choices=TRANSPORTS,
        default="framed",
        help="how users are connected; grpc is grpcio, grpc-raw the same for many (framed)",
    )
    made.add_argument("--users", type=number.count, default=1000, metavar="N", help="how many (1000)")
    made.add_argument(
        "--minutes", type=number.positive, default=2.0, metavar="M", help="how long, once all are there (2)"
    )
    made.add_argument("--shape", choices=list(SHAPES), default="chat", help="what they do, see below (chat)")
    users = made.add_argument_group("what users do; the defaults are the shape's")
    users.add_argument(
        "--talking", type=number.percent, metavar="PCT", help="per cent of users in a conversation at a time"
    )
    users.add_argument(
        "--rate", type=number.positive, metavar="R", help="messages per second of each of them; broadcasts per second"
    )
    users.add_argument("--payload", type=number.count, metavar="BYTES", help="size of a message, at least 24")
    users.add_argument("--slow", type=number.percent, metavar="PCT", help="per cent of users that read slowly")
    users.add_argument("--lifetime", type=number.positive, default=30.0, metavar="S", help="mean stay in churn (30)")
    users.add_argument(
        "--jitter", type=number.not_negative, default=1.0, metavar="S", help="after a cut, come back within (1)"
    )
    load = made.add_argument_group("how the load is made")
    load.add_argument(
        "--connect-rate", type=number.positive, default=1000.0, metavar="R", help="connections per second (1000)"
    )
    load.add_argument(
        "--connecting", type=number.whole, default=500, metavar="N", help="handshakes in flight, 0: any number (500)"
    )
    load.add_argument(
        "--processes", type=number.count, metavar="N", help="load processes (as few as the open files allow)"
    )
    load.add_argument(
        "--streams",
        type=number.count,
        metavar="N",
        help="transport grpc: users on one connection (so many that there are 8)",
    )
    load.add_argument(
        "--source", type=_words, default=(), metavar="A[,B]", help="source addresses; on loopback chosen automatically"
    )
    server = made.add_argument_group("gateway")
    server.add_argument("--target", metavar="HOST:PORT", help="a running gateway (plaintext); nothing is started")
    server.add_argument(
        "--pid", type=number.counts, default=(), metavar="N[,M]", help="its processes, for CPU and memory"
    )
    server.add_argument(
        "--credential", action="append", default=[], metavar="KEY=VALUE", help="credential of every user"
    )
    server.add_argument(
        "--server-arg", action="append", default=[], metavar="ARG", help="one more argument for the started gateway"
    )
    server.add_argument(
        "--data-root", type=Path, default=DATA_ROOT, metavar="DIR", help=f"where its data goes ({DATA_ROOT})"
    )
    output = made.add_argument_group("output")
    output.add_argument("--out", type=Path, metavar="DIR", help=f"for report.html and report.json ({RESULTS}/load-...)")
    output.add_argument("--interval", type=number.positive, default=1.0, metavar="S", help="time between two rows (1)")
    output.add_argument("--quiet", action="store_true", help="no live progress")
    return made  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    made = parser()
    given = made.parse_args(arguments)
    descriptors = addresses.raise_descriptor_limit()
    try:
        whole, parts = plan(given, descriptors)
    except (ValueError, addresses.TooMany) as wrong:
        made.error(str(wrong))
    when = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    place = given.out or RESULTS / f"load-{when}-{given.transport}-{given.shape}"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        made.error(f"--out {place}: {error.strerror}")
    if given.target and (why := addresses.unreachable(whole.host, whole.port)):
        print(f"load: no gateway answers on {given.target}: {why}", file=sys.stderr)
        return 1
    screen = Screen(quiet=given.quiet)
    server = ServerOptions(given.target, given.pid, given.server_arg, None, given.data_root)
    facts = machine.describe(given.data_root)
    try:
        with serving(server, "load") as target:
            plans = [replace(part, address=target.address) for part in parts]
            coordinator = Coordinator(plans, target.probe, screen, given.interval)
            with interruptible(coordinator):
                results = coordinator.run()
    except KeyboardInterrupt:
        print("\nload: interrupted", file=sys.stderr)
        return 130
    except (ServerFailed, WorkerFailed, ProcessGone) as failed:
        screen.end()
        print(f"load: {failed}", file=sys.stderr)
        return 1
    screen.end()
    finish(results, whole, facts, arguments)
    page = report.write(place, results)
    print(f"{table.text(results)}\n\nwritten to {page} and {page.with_suffix('.json').name}")
    return 1 if results["failures"] else 0


@contextmanager
def interruptible(coordinator: Coordinator) -> Iterator[None]:
    """The first Ctrl-C ends a run that is under way early, with its report.

    Every other one raises KeyboardInterrupt.
    """

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # a shell's background
        yield
        return

    def first(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        if not coordinator.end_early():
            raise KeyboardInterrupt
        print("\nload: ending early, with a report; Ctrl-C again ends without", file=sys.stderr)

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def finish(results: dict[str, Any], whole: Plan, facts: dict[str, Any], arguments: Sequence[str]) -> None:
    """Add when, where and how, and the figures that are drawn from others."""
    came_s = max(results["connect_s"], 1e-3)
    if whole.what.stepped:
        results["connect_rate"] = max((row["connects"] for row in results["timeline"]), default=0.0)
    else:
        results["connect_rate"] = results["connections"]["most"] / came_s
    if results.get("cut"):
        results["back_s"] = results["latency_ms"].get("back", {}).get("max", 0.0) / 1000
    results["when"] = datetime.now(UTC).isoformat(timespec="seconds")
    results["machine"] = facts
    results["command"] = shlex.join(["nox", "-s", "load", "--", *arguments])
    results["options"] = {
        "seconds": whole.seconds, "talking": whole.talking, "rate": whole.rate, "payload": whole.payload,
        "connect_rate": whole.connect_rate, "connecting": whole.connecting, "jitter_s": whole.jitter_s,
        "slow": whole.slow, "streams": whole.streams,
    }  # fmt: skip


def plan(given: argparse.Namespace, descriptors: int) -> tuple[Plan, list[Plan]]:
    """The run as a whole, and each process's part of it. Raises ValueError or TooMany."""
    shape = SHAPES[given.shape]
    host = "127.0.0.1"
    if given.target:
        host, colon, port = given.target.rpartition(":")
        if not colon or not host or not port.isdigit():
            raise ValueError(f"--target {given.target!r} is not HOST:PORT")
    if given.pid and not given.target:
        raise ValueError("--pid goes with --target: of a gateway that is started here it is known")
    payload = given.payload or shape.payload
    if payload < 24:
        raise ValueError(f"--payload {payload}: the number and the time in a message need 24 bytes")
    if given.users < 2:
        raise ValueError("--users 1: two make a conversation")
    if given.streams is not None and given.transport != "grpc":
        raise ValueError("--streams is for --transport grpc: the other transports have one user on a connection")
    if given.connecting < 0:
        raise ValueError("--connecting is not negative")
    wrong = [entry for entry in given.credential if "=" not in entry]
    if wrong:
        raise ValueError(f"--credential {wrong[0]!r} is not KEY=VALUE")
    streams = given.streams or (-(-given.users // GRPCIO_CHANNELS) if given.transport == "grpc" else 1)
    connections = -(-given.users // streams)
    processes = addresses.processes_for(connections, descriptors, given.processes, own_gateway=not given.target)
    each = addresses.per_address()
    sources = addresses.sources(host.strip("[]"), connections, given.source, each)
    for source in given.source:
        if not addresses.is_ours(source):
            raise ValueError(f"--source {source} is no address of this machine")
    shares = spread(given.users, processes)
    whole = Plan(
        transport=given.transport, address=given.target or "", shape=shape.name, run=f"load-{secrets.token_hex(4)}",
        users=given.users, first=0, count=given.users, seconds=given.minutes * 60,
        connect_rate=given.connect_rate, connecting=given.connecting,
        talking=shape.talking if given.talking is None else given.talking,
        rate=given.rate or shape.rate, payload=payload, lifetime_s=given.lifetime,
        slow=shape.slow if given.slow is None else given.slow, jitter_s=given.jitter, streams=streams,
        sources=sources, per_address=each, credentials=dict(entry.split("=", 1) for entry in given.credential),
    )  # fmt: skip
    parts = [
        replace(
            whole, first=first, count=count, connect_rate=whole.connect_rate / len(shares),
            connecting=-(-whole.connecting // len(shares)),
        )
        for first, count in shares
    ]  # fmt: skip
    return whole, parts


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))
