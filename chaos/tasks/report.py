"""Show a result of the runs with tasks as tables and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from chaos.report import SHOWN
from chaos.tasks.run import TaskResult


def figures(result: TaskResult) -> dict[str, float]:
    history = result.history
    ends = Counter(task.status for task in history.tasks)
    outcomes = Counter(attempt.outcome or "open" for attempt in history.attempts)
    lost = Counter(task.error_type for task in history.tasks if task.status in {"failed", "dlq"})
    begun = Counter(attempt.task_id for attempt in history.attempts if attempt.started_ms)
    return {
        "tasks": len(history.tasks),
        **{f"tasks {status}": ends[status] for status in sorted(ends)},
        **{f"kills of a {what}": times for what, times in sorted(history.kills.items())},
        **dict(sorted(history.refused.items())),
        "assignments": len(history.attempts),
        **{f"assignments that ended {outcome}": outcomes[outcome] for outcome in sorted(outcomes)},
        "attempts begun": sum(begun.values()),
        "most attempts begun of a task": max(begun.values(), default=0),
        "most assignments of a task": max((task.epoch for task in history.tasks), default=0),
        **{f"given up for good: {word or 'failed by its worker'}": times for word, times in sorted(lost.items())},
        "longest from creation to end, s": max((t.updated_ms - t.created_ms for t in history.tasks), default=0) / 1000,
        "seconds": history.seconds,
    }


def show(result: TaskResult, console: Console) -> None:
    wishes = result.wishes
    where = f"{wishes.nodes} nodes on PostgreSQL" if wishes.nodes else "one gateway on SQLite"
    numbers = Table("", title=f"tasks of seed {wishes.seed}, {where}", title_justify="left")
    numbers.add_column("", justify="right")
    for name, number in figures(result).items():
        numbers.add_row(name, f"{number:,}" if isinstance(number, int) else f"{number:.1f}")
    invariants = Table("invariant", title="invariants", title_justify="left")
    invariants.add_column("looked at", justify="right")
    invariants.add_column("")
    invariants.add_column("violations", justify="right")
    for verdict in result.verdicts:
        count = str(len(verdict.violations)) if verdict.looked_at else "saw nothing"
        invariants.add_row(verdict.invariant, f"{verdict.looked_at:,}", verdict.what, count)
    console.print(Group(numbers, invariants))
    for verdict in result.verdicts:
        for violation in verdict.violations[:SHOWN]:
            console.print(f"[red]violated[/red] {verdict.invariant}: {violation}", soft_wrap=True, highlight=False)


def as_json(result: TaskResult) -> dict[str, Any]:
    return {
        "seed": result.wishes.seed,
        "nodes": result.wishes.nodes,
        "well": result.well,
        "figures": figures(result),
        "invariants": [
            {
                "invariant": one.invariant,
                "looked_at": one.looked_at,
                "what": one.what,
                "violations": len(one.violations),
                "first": list(one.violations[:SHOWN]),
            }
            for one in result.verdicts
        ],
    }
