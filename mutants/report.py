"""The table of a sample, as Markdown: what has survived comes first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mutants.sample import Outcome, Result, Wishes

CELL: Final = 60


def text(wishes: Wishes, outcomes: Sequence[Outcome]) -> str:
    """The table, and the sum below it."""
    rows = ["| result | line | was | is | by |", "|---|---|---|---|---|"]
    for one in outcomes:
        change = one.change
        cells = (one.result.value, str(change.line), _code(change.was), _code(change.text), one.by.replace("|", "\\|"))
        rows.append(f"| {' | '.join(cells)} |")
    noticed = sum(one.result is not Result.SURVIVED for one in outcomes)
    hangs = sum(one.result is Result.HANG for one in outcomes)
    rows.append("")
    rows.append(
        f"{wishes.module}, seed {wishes.seed}: {noticed} of {len(outcomes)} noticed ({100 * noticed // len(outcomes)} %), "
        f"{hangs} of these by a hang"
    )
    return "\n".join(rows)


def as_json(wishes: Wishes, outcomes: Sequence[Outcome]) -> dict[str, object]:
    """The same for programs."""
    return {
        "module": str(wishes.module),
        "seed": wishes.seed,
        "outcomes": [
            {
                "result": one.result.name.lower(),
                "line": one.change.line,
                "was": one.change.was,
                "is": one.change.text,
                "by": one.by,
                "seconds": round(one.seconds, 3),
            }
            for one in outcomes
        ],
    }


def _code(source: str) -> str:
    short = " ".join(source.split())
    if len(short) > CELL:
        short = short[: CELL - 1] + "…"
    return f"`{short}`".replace("|", "\\|")
