"""Show a result of the runs with access as tables and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from chaos.access.run import AccessResult
from chaos.report import SHOWN


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
    numbers = Table("", title=f"access of seed {wishes.seed}, {wishes.nodes} nodes", title_justify="left")
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


def as_json(result: AccessResult) -> dict[str, Any]:
    """Return a result as JSON."""
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
