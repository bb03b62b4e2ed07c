"""The command line of `python -m chaos`."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import trio
from rich.console import Console

from chaos import report
from chaos.access import report as access_report
from chaos.access.run import AccessWishes
from chaos.access.run import run as run_access
from chaos.load import Rates
from chaos.plan import BY_CHANCE, Kind
from chaos.run import Wishes, run
from chaos.tasks import report as task_report
from chaos.tasks.run import TaskWishes
from chaos.tasks.run import run as run_tasks
from chaos.workflows import report as workflow_report
from chaos.workflows.checks import check_all as check_workflows
from chaos.workflows.run import WorkflowResult, WorkflowWishes, evidence_of
from chaos.workflows.run import run as run_workflows

EPILOG = """\
faults (--only takes their names here):
{kinds}

`python -m chaos workflows --help` is about executions of workflows.

exit status: 0 every invariant was looked at and held; 1 one did not; 2 wrong arguments
"""


def parser() -> argparse.ArgumentParser:
    kinds = "\n".join(f"  {kind.name.lower():24}{kind}" for kind in BY_CHANCE)
    made = argparse.ArgumentParser(
        prog="python -m chaos",
        description="A cluster under load, faults by chance, and a check of everything that was seen (docs/chaos.md).",
        epilog=EPILOG.format(kinds=kinds),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--minutes", type=_positive, default=5.0, metavar="M", help="how long faults come (5)")
    made.add_argument("--seed", type=int, metavar="N", help="of the faults; the same again with the same number (any)")
    made.add_argument("--nodes", type=int, default=3, metavar="N", help="gateway processes (3)")
    made.add_argument(
        "--every", type=_positive, default=2.0, metavar="S", help="seconds between faults, on average (2)"
    )
    made.add_argument("--only", type=_kinds, default=BY_CHANCE, metavar="A,B", help="these faults and no others")
    made.add_argument(
        "--standby",
        action="store_true",
        help="a synchronous standby; half-way the primary is killed and it is promoted",
    )
    made.add_argument("--peers", type=int, default=8, metavar="N", help="agents that write to each other (8)")
    made.add_argument("--rate", type=_positive, default=20.0, metavar="R", help="messages per second of each (20)")
    made.add_argument("--bound", type=_positive, default=35.0, metavar="S", help="how soon a client must be back (35)")
    made.add_argument("--trials", type=int, default=6, metavar="N", help="of each recovery time; 0 measures none (6)")
    made.add_argument(
        "--checkout", type=Path, metavar="DIR", help="the nodes run the package there: what does another version do?"
    )
    made.add_argument(
        "--keep", type=Path, metavar="DIR", help="leave there what the processes printed, and all that was seen"
    )
    made.add_argument(
        "--tasks",
        type=int,
        nargs="?",
        const=5_000,
        metavar="N",
        help="so many tasks (5000) while workers and nodes are killed, instead of messages and faults of every kind",
    )
    made.add_argument(
        "--sqlite", action="store_true", help="with --tasks: one gateway on SQLite, not nodes on PostgreSQL"
    )
    made.add_argument(
        "--access",
        type=int,
        nargs="?",
        const=1,
        metavar="N",
        help="so many seeds (1), from --seed on, of half a minute each, while rights are given and taken",
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    return made


def workflow_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m chaos workflows`."""
    made = argparse.ArgumentParser(
        prog="python -m chaos workflows",
        description="Executions of workflows while workers, gateways and the database are killed, "
        "and a check of what each came to (docs/chaos.md).",
        epilog="exit status: 0 every invariant was looked at and held; 1 one did not; 2 wrong arguments",
    )
    made.add_argument("--seed", type=int, metavar="N", help="of the executions and faults (any)")
    made.add_argument("--executions", type=int, default=2_000, metavar="N", help="so many stories (2000)")
    made.add_argument(
        "--engine", choices=("sqlite", "postgres"), default="postgres", help="where the tables are (postgres)"
    )
    made.add_argument("--nodes", type=int, metavar="N", help="gateway processes: 3 on PostgreSQL, always 1 on SQLite")
    made.add_argument("--every", type=_positive, default=2.0, metavar="S", help="seconds between faults (2)")
    made.add_argument(
        "--pace", type=_positive, default=3.0, metavar="S", help="seconds between two stories of one of 40 (3)"
    )
    made.add_argument("--keep", type=Path, metavar="DIR", help="leave there what the processes printed, and the tables")
    made.add_argument("--check", type=Path, metavar="DIR", help="run nothing: check what --keep DIR has left")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    return made


def _workflows(arguments: Sequence[str]) -> int:
    given = workflow_parser().parse_args(arguments)
    if given.engine == "sqlite" and (given.nodes or 1) != 1:
        workflow_parser().error("--engine sqlite has one gateway")
    wishes = WorkflowWishes(
        seed=secrets.randbelow(1_000_000) if given.seed is None else given.seed,
        executions=given.executions,
        nodes=0 if given.engine == "sqlite" else given.nodes or 3,
        mean_s=given.every,
        pace_s=given.pace,
        keep=given.keep,
    )
    if given.check:
        evidence = trio.run(evidence_of, given.check)
        result = WorkflowResult(wishes, evidence, check_workflows(evidence))
    else:
        print(f"seed {wishes.seed}", file=sys.stderr, flush=True)
        result = trio.run(run_workflows, wishes, _say)
    workflow_report.show(result, Console())
    if given.json:
        given.json.write_text(json.dumps(workflow_report.as_json(result), indent=2) + "\n")
    result.evidence.snapshot.close()
    return 0 if result.well else 1


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["workflows"]:
        return _workflows(arguments[1:])
    given = parser().parse_args(arguments)
    if given.sqlite and not given.tasks:
        parser().error("--sqlite belongs to --tasks")
    if given.access:
        return _access(given)
    if given.tasks:
        return _tasks(given)
    wishes = Wishes(
        seed=secrets.randbelow(1_000_000) if given.seed is None else given.seed,
        minutes=given.minutes,
        nodes=given.nodes,
        mean_s=given.every,
        bound_s=given.bound,
        trials=given.trials,
        kinds=given.only,
        standby=given.standby,
        keep=given.keep,
        checkout=given.checkout,
        rates=Rates(peers=given.peers, messages_per_s=given.rate),
    )
    print(f"seed {wishes.seed}", file=sys.stderr, flush=True)
    result = trio.run(run, wishes, _say)
    report.show(result, Console())
    if given.json:
        given.json.write_text(json.dumps(report.as_json(result), indent=2) + "\n")
    return 0 if result.well else 1


def _access(given: argparse.Namespace) -> int:
    first = secrets.randbelow(1_000_000) if given.seed is None else given.seed
    results = []
    for seed in range(first, first + given.access):
        keep = given.keep and given.keep / f"seed-{seed}"
        wishes = AccessWishes(seed, nodes=given.nodes, keep=keep, checkout=given.checkout)
        print(f"seed {seed}", file=sys.stderr, flush=True)
        results.append(trio.run(run_access, wishes, _say))
        access_report.show(results[-1], Console())
    if given.json:
        given.json.write_text(json.dumps([access_report.as_json(one) for one in results], indent=2) + "\n")
    violated = [one.wishes.seed for one in results if not one.well]
    if violated:
        print(f"violated by the seeds {', '.join(map(str, violated))}", file=sys.stderr, flush=True)
    return 1 if violated else 0


def _tasks(given: argparse.Namespace) -> int:
    wishes = TaskWishes(
        seed=secrets.randbelow(1_000_000) if given.seed is None else given.seed,
        tasks=given.tasks,
        nodes=0 if given.sqlite else given.nodes,
        mean_s=given.every,
        keep=given.keep,
    )
    print(f"seed {wishes.seed}", file=sys.stderr, flush=True)
    result = trio.run(run_tasks, wishes, _say)
    task_report.show(result, Console())
    if given.json:
        given.json.write_text(json.dumps(task_report.as_json(result), indent=2) + "\n")
    return 0 if result.well else 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _positive(text: str) -> float:
    number = float(text)
    if number <= 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return number


def _kinds(text: str) -> tuple[Kind, ...]:
    names = [name.strip().upper().replace("-", "_") for name in text.split(",")]
    unknown = [name for name in names if Kind.__members__.get(name) not in BY_CHANCE]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {unknown[0].lower()}; see the list below --help")
    return tuple(Kind[name] for name in names)
