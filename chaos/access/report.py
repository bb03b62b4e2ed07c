"""Show a result of the runs with access as tables and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console, Group

from chaos.access.run import AccessResult
from chaos.report import SHOWN, numbers_table, verdicts_as_json, verdicts_table


def figures(result: AccessResult) -> dict[str, float]:
    """Return the numbers of a run by their names."""
    history = result.history
    changes = [change for made in history.changes.values() for change in made if change.answered_s]
    faults = Counter(one.kind for one in history.disturbances)
    ends = Counter({None: "unknown", True: "allowed", False: "refused"}[one.allowed] for one in history.attempts)
    taken = [change.answered_s - change.asked_s for change in changes if not change.given]
    return {
        **dict(sorted(faults.items())),
        "rights given": sum(change.given for change in changes),
        "rights taken": len(taken),
        "... not confirmed by all nodes": sum(bool(change.missing) for change in changes),
        "... asked for again": sum(change.attempts > 1 for change in changes),
        **{f"attempts {end}": ends[end] for end in sorted(ends)},
        "longest until a revocation was answered, s": max(taken, default=0.0),
        "audit rows": history.verified_rows,
        "signed heads": history.heads,
        "seconds": history.seconds,
    }


def show(result: AccessResult, console: Console) -> None:
    """Print the numbers, the invariants and the first violations of each."""
    wishes = result.wishes
    numbers = numbers_table("", f"access of seed {wishes.seed}, {wishes.nodes} nodes", figures(result))
    console.print(Group(numbers, verdicts_table(result.verdicts)))
    for verdict in result.verdicts:
        for violation in verdict.violations[:SHOWN]:
            console.print(f"[red]violated[/red] {verdict.invariant}: {violation}", soft_wrap=True, highlight=False)


def as_json(result: AccessResult) -> dict[str, Any]:
    """Return a result as JSON."""
    return {
        "seed": result.wishes.seed,
        "nodes": result.wishes.nodes,
        "well": result.well,
        "figures": figures(result),
        "invariants": verdicts_as_json(result.verdicts),
    }
