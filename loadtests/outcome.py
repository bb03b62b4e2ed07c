"""Collect what a run has shown as JSON values, and say what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from loadtests.plan import Plan
from loadtests.timeline import Timeline, as_json

VERDICT_KEYS = ("said", "lost", "in_doubt", "repeated", "out_of_order", "unsettled")


def judge(plan: Plan, timeline: Timeline, verdicts: Sequence[dict[str, int]], seen: dict[str, Any]) -> dict[str, Any]:
    """The results of one run. `seen` is what the coordinator has measured itself."""
    sums: Counter[str] = Counter()
    for verdict in verdicts:
        sums.update({key: verdict[key] for key in VERDICT_KEYS})
    counts = timeline.counts
    if plan.what.broadcast:
        lost = sums["said"] * seen["hearers"] - counts["received"]
    else:
        lost = sums["lost"]
    messages = {
        "sent": counts["sent"],
        "received": counts["received"],
        "refused": counts["refused"],
        "lost": max(0, lost - counts["refused"]),
        "in_doubt": sums["in_doubt"],
        "repeated": sums["repeated"],
        "out_of_order": sums["out_of_order"],
        "redelivered": counts["redelivered"],
        "unacknowledged": sums["unsettled"],
    }
    connections = {
        "users": plan.users,
        "connects": counts["connects"],
        "resumed": counts["resumed"],
        "broken": counts["broken"],
        "gave_up": timeline.gave_up,
        "most": max((row.connected for row in timeline.rows), default=0),
    }
    return {
        "transport": plan.transport,
        "shape": plan.shape,
        "messages": messages,
        "connections": connections,
        "latency_ms": timeline.summaries(),
        "errors": dict(timeline.errors.most_common()),
        "error_texts": timeline.texts,
        "gateway": costs(timeline),
        "spectrum": {series: timeline.spectrum(series) for series in ("message", "slow", "connect", "back")},
        "timeline": as_json(timeline.rows),
        "marks": as_json(timeline.marks),
        "failures": failures(
            messages, connections, seen, churn=plan.what.churn, talks=bool(plan.talking and plan.rate)
        ),
        **seen,
    }


def failures(
    messages: dict[str, int],
    connections: dict[str, int],
    seen: dict[str, Any],
    *,
    churn: bool = False,
    talks: bool = False,
) -> list[str]:
    """Sentences; none means that the run passes.

    With `churn` some are always away; who `talks` has sent something.
    """
    found = []
    if talks and connections["most"] and not messages["sent"]:
        found.append("nothing was sent, so nothing is known of messages")
    if not churn and connections["most"] < connections["users"]:
        found.append(f"at most {connections['most']:,} of {connections['users']:,} users were connected at a time")
    found += [
        f"{messages[what]:,} messages {text}"
        for what, text in (
            ("lost", "lost"),
            ("repeated", "delivered twice"),
            ("out_of_order", "out of order"),
            ("refused", "refused"),
            ("unacknowledged", "never acknowledged"),
        )
        if messages[what]
    ]
    if connections["broken"]:
        found.append(f"{connections['broken']:,} connections ended that should have stayed")
    if seen.get("cut") and seen.get("back", 0) < seen["cut"]:
        found.append(f"{seen['cut'] - seen.get('back', 0):,} of {seen['cut']:,} did not come back")
    return found


def costs(timeline: Timeline) -> dict[str, float]:
    """RSS and CPU of the gateway while the connections were held.

    {} when it is not known.
    """
    held = [row for row in timeline.rows if row.phase == "hold" and row.rss_mib is not None]
    all_rows = [row for row in timeline.rows if row.rss_mib is not None]
    if not all_rows:
        return {}
    held = held or all_rows
    first, rss = all_rows[0].rss_mib or 0.0, held[-1].rss_mib or 0.0
    most = max(row.connected for row in held)
    return {
        "rss_first_mib": round(first, 1),
        "rss_mib": round(rss, 1),
        "rss_most_mib": round(max(row.rss_mib or 0.0 for row in all_rows), 1),
        "kib_per_connection": round((rss - first) * 1024 / most, 1) if most else 0.0,
        "cores": round(sum(row.gateway_cores or 0.0 for row in held) / len(held), 3),
        "cores_most": round(max(row.gateway_cores or 0.0 for row in all_rows), 3),
        "load_cores": round(sum(row.load_cores for row in held) / len(held), 3),
    }
