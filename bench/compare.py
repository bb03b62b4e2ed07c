"""Two results side by side: what changed, and whether it is too much.

Only echoes and KiB are judged, never microseconds or rates: those measure the machine's neighbours.
A scenario counts as worse when its cost has grown by more than the threshold; a scenario that ran
with other sizes is shown, not judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

THRESHOLD = 0.15


@dataclass(frozen=True, slots=True)
class Change:
    scenario: str
    figure: str
    before: float
    after: float
    judged: bool
    threshold: float

    @property
    def relative(self) -> float:
        """Growth relative to before: +0.10 is ten per cent; 0 without a value before."""
        return self.after / self.before - 1 if self.before else 0.0

    @property
    def worse(self) -> bool:
        """Whether the figure is judged and grew beyond the threshold."""
        return self.judged and self.relative > self.threshold

    def __str__(self) -> str:
        mark = "WORSE" if self.worse else "" if self.judged else "(not judged)"
        change = f"{self.relative:+.1%}"
        return (
            f"{self.scenario:36}{self.figure:8}{self.before:10.2f} -> {self.after:8.2f}  {change:>8}  {mark}".rstrip()
        )


def value(result: Mapping[str, Any], figure: str) -> float | None:
    """A scenario's "echoes" (best window) or "kib", or None."""
    if figure == "kib":
        found = result.get("kib_per_connection")
        return float(found) if found is not None else None
    echoes = result.get("echoes")
    return float(echoes["best"]) if echoes else None


def changes(before: Mapping[str, Any], after: Mapping[str, Any], threshold: float = THRESHOLD) -> list[Change]:
    """A change for each figure that both results have, in the order of `after`."""
    found = []
    for name, result in after["scenarios"].items():
        earlier = before["scenarios"].get(name)
        if not earlier:
            continue
        same = earlier.get("parameters") == result.get("parameters") and not after.get("profiled")
        for figure in ("echoes", "kib"):
            old, new = value(earlier, figure), value(result, figure)
            if old is not None and new is not None:
                judged = same and figure in result["gated"]
                found.append(Change(name, figure, old, new, judged, threshold))
    return found


def lost(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Scenarios that had figures before and fail now."""
    return [
        name
        for name, result in after["scenarios"].items()
        if result.get("failed") and not before["scenarios"].get(name, {"failed": "absent"}).get("failed")
    ]
