"""Show a result of the runs with tasks as tables and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console, Group

from chaos.report import SHOWN, numbers_table, verdicts_as_json, verdicts_table
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
    numbers = numbers_table("", f"tasks of seed {wishes.seed}, {where}", figures(result))
    console.print(Group(numbers, verdicts_table(result.verdicts)))
    for verdict in result.verdicts:
        for violation in verdict.violations[:SHOWN]:
            console.print(f"[red]violated[/red] {verdict.invariant}: {violation}", soft_wrap=True, highlight=False)


def as_json(result: TaskResult) -> dict[str, Any]:
    return {
        "seed": result.wishes.seed,
        "nodes": result.wishes.nodes,
        "well": result.well,
        "figures": figures(result),
        "invariants": verdicts_as_json(result.verdicts),
    }
