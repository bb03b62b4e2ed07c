"""Show a result of chaos as tables and as JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table

from chaos.checks import Verdict
from chaos.history import Outcome
from chaos.run import Result

SHOWN = 8
"""Violations of an invariant that are written out."""


def numbers_table(header: str, title: str, figures: Mapping[str, float]) -> Table:
    """Return a table of numbers by their names."""
    numbers = Table(header, title=title, title_justify="left")
    numbers.add_column("", justify="right")
    for name, number in figures.items():
        numbers.add_row(name, f"{number:,}" if isinstance(number, int) else f"{number:.1f}")
    return numbers


def verdicts_table(verdicts: Sequence[Verdict]) -> Table:
    """Return a table of the invariants, and how often each was looked at and violated."""
    invariants = Table("invariant", title="invariants", title_justify="left")
    invariants.add_column("looked at", justify="right")
    invariants.add_column("")
    invariants.add_column("violations", justify="right")
    for verdict in verdicts:
        count = str(len(verdict.violations)) if verdict.looked_at else "saw nothing"
        invariants.add_row(verdict.invariant, f"{verdict.looked_at:,}", verdict.what, count)
    return invariants


def verdicts_as_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return the invariants as JSON, with the first violations of each."""
    return [
        {
            "invariant": one.invariant,
            "looked_at": one.looked_at,
            "what": one.what,
            "violations": len(one.violations),
            "first": list(one.violations[:SHOWN]),
        }
        for one in verdicts
    ]


def show(result: Result, console: Console) -> None:
    console.print(_tables(result))
    for verdict in result.verdicts:
        for violation in verdict.violations[:SHOWN]:
            console.print(f"[red]violated[/red] {verdict.invariant}: {violation}", soft_wrap=True, highlight=False)
        if len(verdict.violations) > SHOWN:
            console.print(f"         ... and {len(verdict.violations) - SHOWN} more")


def _tables(result: Result) -> RenderableType:
    seconds: dict[str, float] = defaultdict(float)
    for fault in result.history.disturbances:
        seconds[fault.kind] += fault.until_s - fault.since_s
    faults = Table(
        "fault", title=f"faults of seed {result.wishes.seed}, {result.wishes.minutes:g} min", title_justify="left"
    )
    faults.add_column("times", justify="right")
    faults.add_column("seconds", justify="right")
    for kind, done in sorted(Counter(fault.kind for fault in result.history.disturbances).items()):
        faults.add_row(kind, str(done), f"{seconds[kind]:.1f}")
    times = Table("recovery", title="recovery, seconds", title_justify="left")
    for name in ("trials", "p50", "max"):
        times.add_column(name, justify="right")
    for one in result.recovery:
        times.add_row(one.what, str(len(one.seconds)), f"{one.p50_s:.2f}", f"{one.max_s:.2f}")
    figures = numbers_table("load", "load", _figures(result))
    return Group(faults, figures, *([times] if result.recovery else []), verdicts_table(result.verdicts))


def _figures(result: Result) -> dict[str, float]:
    history = result.history
    outcomes = Counter(one.outcome for one in history.sent)
    away = [one.until_s - one.since_s for one in history.outages if one.until_s <= history.ended_s]
    return {
        "messages accepted": outcomes[Outcome.ACCEPTED],
        "messages refused": outcomes[Outcome.REFUSED],
        "messages in doubt": outcomes[Outcome.IN_DOUBT],
        "messages delivered": len(history.delivered),
        "increments answered": sum(one.outcome is Outcome.ACCEPTED for one in history.counted),
        "increments in doubt": sum(one.outcome is Outcome.IN_DOUBT for one in history.counted),
        "writes answered": sum(one.what == "wrote" and one.outcome is Outcome.ACCEPTED for one in history.kept),
        "tasks created": len(history.made),
        "hostile connections": len(history.attacks),
        "turns of the rivals": result.turns,
        "connections lost": len(away),
        "longest time away, s": max(away, default=0.0),
        "faults that found nothing to hit": result.missed,
    }


def as_json(result: Result) -> dict[str, Any]:
    """Show a result as JSON, without the history."""
    return {
        "seed": result.wishes.seed,
        "minutes": result.wishes.minutes,
        "nodes": result.wishes.nodes,
        "well": result.well,
        "faults": dict(sorted(Counter(str(fault.kind) for fault in result.history.disturbances).items())),
        "load": _figures(result),
        "recovery": [
            {"what": one.what, "seconds": one.seconds, "p50": one.p50_s, "max": one.max_s} for one in result.recovery
        ],
        "invariants": verdicts_as_json(result.verdicts),
    }
