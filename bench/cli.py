"""The command line of the bench."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import arguments as number
from bench import compare, machine, results, table
from bench.runner import run
from bench.scenarios import FAMILIES, SCENARIOS, Scenario
from bench.servers import ServerOptions
from bench.transports import ALL_TRANSPORTS, TRANSPORTS
from bench.turns import Progress
from bench.world import GROWTH, Options

PAGE = Path("docs/performance.md")
DEFAULT_JSON = Path("bench-results/latest.json")
DATA_ROOT = Path("/var/tmp")
"""Unlike /tmp this is on a disk everywhere, so that a commit costs what a commit costs."""
QUICK = {
    "windows": 3,
    "connections": 400,
    "pairs": 20,
    "fanout": (20, 100),
    "queued": (100, 10_000),
    "minutes": 0.2,
    "rules": 3_000,
    "sessions": 300,
    "audit_rows": 5_000,
    "backup_mib": 8,
    "items": 500,
    "waiting": 2_000,
    "event_rules": 1_000,
}
QUICK_GROWTH = {"agents": (10, 100, 400), "messages": (100, 5_000), "keys": (10, 1_000)}

EPILOG = """\
examples:
  python -m bench                                   everything on three transports, about seven minutes
  python -m bench routed-16 idle                    two scenarios
  python -m bench quiet                             a lone message, operation, broadcast and connection
  python -m bench cluster                           gateways on one PostgreSQL (pip install 'aether-trio[cluster]')
  python -m bench tasks                             from create to completed, on SQLite, PostgreSQL and two nodes
  python -m bench workflows                         starts, chains and maps beside as many tasks, with their goals
  python -m bench growth                            the same work with more agents, messages and keys in the gateway
  python -m bench access                            rules, audit, grants, tokens, revocation: what they cost, and their goals
  python -m bench backup                            a backup under load, and its restore
  python -m bench soak --minutes 60                 half load for an hour: what grows, and which pauses there are
  python -m bench --transport framed,framed-acks idle    two transports, side by side
  python -m bench --quick                           all of it, small and short: a smoke test, not a measurement
  python -m bench --json bench/baseline.json        keep the figures
  python -m bench --compare bench/baseline.json     show the change; exit status 1 when a cost grew too much
  python -m bench --target 127.0.0.1:50051 --pid N  measure a gateway that runs already
  python -m bench routed-16 --profile out.prof      see where the CPU goes (out.svg: py-spy's flame graph)
  python -m bench quiet --explain                   and which parts of the gateway the CPU goes to
  python -m bench report bench/baseline.json        render the table into docs/performance.md

exit status: 0 all well; 1 a scenario failed, lost or repeated something, or got dearer; 2 wrong arguments
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure what a gateway of the Aether protocol costs, in echoes (docs/performance.md).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "scenarios",
        nargs="*",
        metavar="SCENARIO",
        help="what to run: scenarios or families (quiet, cluster, tasks, workflows, growth, access, backup, soak); all outside families when none is named",
    )
    made.add_argument("--only", default="", metavar="A,B", help="the same as naming scenarios")
    made.add_argument("--list", action="store_true", help="list the scenarios and leave")
    sizes = made.add_argument_group("sizes")
    sizes.add_argument("--quick", action="store_true", help="three windows and small sizes")
    sizes.add_argument("--seconds", type=number.positive, metavar="S", help="measured time for each scenario (5)")
    sizes.add_argument("--window", type=number.positive, default=0.5, metavar="S", help="length of a window (0.5)")
    sizes.add_argument("--pairs", type=number.count, metavar="N", help="pairs of agents in routed scenarios (100)")
    sizes.add_argument("--payload", type=number.count, default=200, metavar="BYTES", help="payload of a message (200)")
    sizes.add_argument("--connections", type=number.count, metavar="N", help="idle connections (2000)")
    sizes.add_argument("--fanout", type=number.counts, metavar="A,B", help="receivers of the two fan-outs (100,1000)")
    sizes.add_argument(
        "--queued", type=number.counts, metavar="A,B", help="tasks that wait in tasks-queued-… (1000,1000000)"
    )
    sizes.add_argument("--rules", type=number.count, metavar="N", help="access rules in access-… (100000)")
    sizes.add_argument("--sessions", type=number.count, metavar="N", help="live sessions in access-revoke (10000)")
    sizes.add_argument("--audit-rows", type=number.count, metavar="N", help="rows that access-verify checks (500000)")
    sizes.add_argument("--items", type=number.count, metavar="N", help="items of the large workflows-map (10000)")
    sizes.add_argument("--backup-mib", type=number.count, metavar="N", help="MiB that `backup` backs up (1024)")
    sizes.add_argument(
        "--waiting", type=number.count, metavar="N", help="executions that wait in workflows-waiting (1000000)"
    )
    sizes.add_argument("--event-rules", type=number.count, metavar="N", help="rules of workflows-events (10000)")
    for thing, usual in GROWTH.items():
        sizes.add_argument(
            f"--growth-{thing}",
            type=number.counts,
            metavar="A,B",
            help=f"{thing} of growth-{thing}-…, the fewest first ({','.join(map(str, usual))})",
        )
    sizes.add_argument(
        "--rate",
        type=number.positive,
        metavar="R",
        help="messages per second of `paced` and `soak` (half of routed-1's)",
    )
    sizes.add_argument("--minutes", type=number.positive, metavar="N", help="how long `soak` runs (60)")
    output = made.add_argument_group("output")
    output.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="FILE", help=f"results ({DEFAULT_JSON})")
    output.add_argument("--compare", type=Path, metavar="FILE", help="earlier results to compare with")
    output.add_argument(
        "--threshold",
        type=number.positive,
        default=compare.THRESHOLD,
        metavar="T",
        help="growth that fails --compare (0.15)",
    )
    server = made.add_argument_group("server")
    server.add_argument("--target", metavar="HOST:PORT", help="a running gateway (plaintext); nothing is started")
    server.add_argument(
        "--pid", type=number.counts, default=(), metavar="N[,M]", help="its processes, for CPU and memory"
    )
    server.add_argument("--credential", action="append", default=[], metavar="KEY=VALUE", help="credential for Init")
    server.add_argument(
        "--transport",
        type=_transports,
        default=ALL_TRANSPORTS,
        metavar="A,B",
        help=f"how to speak to it: {', '.join(TRANSPORTS)}; all is {', '.join(ALL_TRANSPORTS)}, and what runs if it is not given",
    )
    server.add_argument(
        "--server-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="one more argument for the started gateway, e.g. --server-arg=--ephemeral",
    )
    server.add_argument(
        "--data-root", type=Path, default=DATA_ROOT, metavar="DIR", help=f"where its data goes ({DATA_ROOT})"
    )
    server.add_argument(
        "--profile", type=Path, metavar="OUT", help="profile it: OUT.prof by cProfile, OUT.svg or OUT.json by py-spy"
    )
    server.add_argument(
        "--explain",
        action="store_true",
        help="a few more windows with a sampler for each scenario: its cost by parts of the gateway",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["report"]:
        return report(arguments[1:])
    made = parser()
    given = made.parse_args(arguments)
    if given.list:
        for scenario in every().values():
            print(f"{scenario.name:32}{scenario.doc}")
        return 0
    try:
        chosen = choose([*given.scenarios, *filter(None, given.only.split(","))])
        options = options_of(given)
        if given.explain and given.profile:
            raise ValueError("--explain and --profile exclude each other")
        baseline = results.read(given.compare) if given.compare else None
    except (ValueError, results.UnreadableResults) as wrong:
        made.error(str(wrong))
    server = ServerOptions(
        given.target, given.pid, given.server_arg, given.profile, given.data_root, sampled=given.explain
    )
    try:
        found = measure(chosen, given.transport, options, server)
    except KeyboardInterrupt:
        print("\nbench: interrupted", file=sys.stderr)
        return 130
    results.write(given.json, found)
    print(f"\n{table.text(found)}\n\nwritten to {given.json}")
    ill = any(result.get("failed") for result in found["scenarios"].values())
    worse = show_changes(baseline, found, given.threshold) if baseline else False
    return 1 if ill or worse else 0


def measure(
    chosen: Sequence[type[Scenario]], transports: Sequence[str], options: Options, server: ServerOptions
) -> dict[str, Any]:
    """Run the scenarios; give results with machine and time."""
    facts = machine.describe(server.data_root)
    scenarios = run(chosen, transports, options, server, Progress())
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": facts,
        "transports": list(transports),
        "server": "target" if server.target else "started",
        "server_args": list(server.args),
        "profiled": server.profile is not None,
        "scenarios": scenarios,
    }


def show_changes(before: dict[str, Any], after: dict[str, Any], threshold: float) -> bool:
    """Print the comparison; return True when a scenario got worse."""
    changes = compare.changes(before, after, threshold)
    lost = compare.lost(before, after)
    print("\ncompared with the earlier results:")
    for change in changes:
        print(f"  {change}")
    for name in lost:
        print(f"  {name}: worked before, fails now")
    if not changes:
        print("  nothing in common")
    return bool(lost) or any(change.worse for change in changes)


def report(arguments: Sequence[str]) -> int:
    """Run `python -m bench report FILE`: put the results into a page."""
    made = argparse.ArgumentParser(prog="python -m bench report", description="Render results into a page's table.")
    made.add_argument("results", type=Path, help="a file written by --json")
    made.add_argument("--page", type=Path, default=PAGE, help=f"the page with the markers ({PAGE})")
    made.add_argument("--print", action="store_true", help="print the Markdown instead")
    given = made.parse_args(arguments)
    try:
        found = results.read(given.results)
        if given.print:
            print(table.markdown(found))
        else:
            table.render(given.page, found)
    except (ValueError, OSError, results.UnreadableResults) as wrong:
        made.error(str(wrong))
    return 0


def choose(names: Sequence[str]) -> list[type[Scenario]]:
    """Find scenario classes by name or family, all for no names; raises ValueError."""
    known = every()
    wanted = {each for name in names for each in FAMILIES.get(name, [name])} if names else set(SCENARIOS)
    if unknown := sorted(wanted - set(known)):
        raise ValueError(f"no scenario is called {unknown[0]!r}; there are {', '.join([*SCENARIOS, *FAMILIES])}")
    return [scenario for name, scenario in known.items() if name in wanted]


def every() -> dict[str, type[Scenario]]:
    """All scenarios, those of families last."""
    return {name: scenario for group in (SCENARIOS, *FAMILIES.values()) for name, scenario in group.items()}


def options_of(given: argparse.Namespace) -> Options:
    """The sizes of a run: those given, else those of --quick, else the defaults."""
    sizes: dict[str, Any] = dict(QUICK) if given.quick else {}
    for name in (
        "pairs",
        "connections",
        "fanout",
        "queued",
        "rate",
        "minutes",
        "rules",
        "sessions",
        "audit_rows",
        "items",
        "waiting",
        "event_rules",
        "backup_mib",
    ):
        if getattr(given, name) is not None:
            sizes[name] = getattr(given, name)
    if given.seconds is not None:
        sizes["windows"] = max(1, round(given.seconds / given.window))
    if len(sizes.get("fanout", (1, 1))) != 2:
        raise ValueError("--fanout takes two numbers")
    if len(sizes.get("queued", (1, 1))) != 2:
        raise ValueError("--queued takes two numbers")
    sizes["growth"] = {thing: _growing(given, thing) for thing in GROWTH}
    credentials = dict(entry.partition("=")[::2] for entry in given.credential)
    return Options(
        payload=given.payload, window_seconds=given.window, credentials=credentials, explain=given.explain, **sizes
    )


def _growing(given: argparse.Namespace, thing: str) -> tuple[int, ...]:
    usual = QUICK_GROWTH if given.quick else GROWTH
    found: tuple[int, ...] = getattr(given, f"growth_{thing}") or usual[thing]
    if list(found) != sorted(set(found)) or len(found) < 2:
        raise ValueError(f"--growth-{thing} takes two numbers or more, each larger than the one before")
    return found


def _transports(text: str) -> tuple[str, ...]:
    names = ALL_TRANSPORTS if text == "all" else tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in TRANSPORTS:
            raise argparse.ArgumentTypeError(f"no transport is called {name!r}; there are all, {', '.join(TRANSPORTS)}")
    return names
