"""Show a result of the runs with workflows as tables and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console, Group

from chaos.report import SHOWN, numbers_table, verdicts_as_json, verdicts_table
from chaos.workflows.checks import Evidence
from chaos.workflows.run import WorkflowResult


def figures(evidence: Evidence) -> dict[str, float]:
    """Return what happened in a run, in numbers."""
    history, tasks, executions = evidence.history, evidence.tasks, evidence.executions.values()
    ends = Counter(one.status for one in executions)
    outcomes = Counter(attempt.outcome or "open" for attempt in tasks.attempts)
    begun = Counter(attempt.task_id for attempt in tasks.attempts if attempt.started_ms)
    kinds = Counter((one.kind, one.acknowledged) for one in history.sent.values())
    return {
        "executions": len(executions),
        **{f"executions {status}": ends[status] for status in sorted(ends)},
        "... of durable functions": sum(one.kind == "function" for one in executions),
        "... that others have begun": sum(bool(one.parent_id) for one in executions),
        "tasks": len(tasks.tasks),
        "entries of histories": sum(one.entries for one in executions),
        **{f"{kind}s {'acknowledged' if told else 'in doubt'}": times for (kind, told), times in sorted(kinds.items())},
        **dict(sorted(history.faults.items())),
        "faults that found nothing to hit": history.missed,
        **dict(sorted(history.refused.items())),
        "assignments": len(tasks.attempts),
        **{f"assignments that ended {outcome}": outcomes[outcome] for outcome in sorted(outcomes)},
        "attempts begun": sum(begun.values()),
        "most attempts begun of a task": max(begun.values(), default=0),
        "seconds": history.seconds,
    }


def show(result: WorkflowResult, console: Console) -> None:
    """Print the tables of a result, and its violations."""
    wishes = result.wishes
    where = f"{wishes.nodes} node{'s' * (wishes.nodes > 1)} on PostgreSQL" if wishes.nodes else "one gateway on SQLite"
    numbers = numbers_table("", f"workflows of seed {wishes.seed}, {where}", figures(result.evidence))
    console.print(Group(numbers, verdicts_table(result.verdicts)))
    for verdict in result.verdicts:
        for violation in verdict.violations[:SHOWN]:
            console.print(f"[red]violated[/red] {verdict.invariant}: {violation}", soft_wrap=True, highlight=False)
    if not result.well:
        console.print(f"again: nox -s chaos -- {wishes.command}", soft_wrap=True, highlight=False)


def as_json(result: WorkflowResult) -> dict[str, Any]:
    """Return a result as JSON."""
    return {
        "seed": result.wishes.seed,
        "nodes": result.wishes.nodes,
        "well": result.well,
        "figures": figures(result.evidence),
        "invariants": verdicts_as_json(result.verdicts),
    }
