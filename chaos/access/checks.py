"""The invariants of access, as functions of a history."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from typing import Final

from chaos.access.history import AccessHistory, Attempt, Change, Recorded
from chaos.checks import Verdict
from chaos.history import Disturbance

STALE_S: Final = 5.0
"""A node that could not look for changes for that long handles no input."""
CONNECT: Final = "connect"
STOPPED: Final = "SIGSTOP"


def check_all(history: AccessHistory) -> list[Verdict]:
    """Check every invariant."""
    return [check(history) for check in _CHECKS]


def takes_effect_s(change: Change, node: str) -> float:
    """Return from when on a change is in force on a node, at the latest."""
    return change.answered_s + (STALE_S if node in change.missing else 0.0)


def decided_by(changes: list[Change], attempt: Attempt, woken_s: float = 0.0) -> Change | None:
    """Return the change that decides an attempt; None if it fell into another one.

    The change was in force on the node when the attempt was made, and the next one had not been
    asked for when the attempt was answered. `woken_s` is when the node woke, if the attempt was
    made while it was stopped: no node decides before it wakes, and one that was stopped for longer
    than STALE_S looks for changes first.
    """
    if attempt.what == CONNECT and not ends_sessions(attempt.right):
        return None
    since_s = max(attempt.sent_s, woken_s)
    looks_first = woken_s - attempt.sent_s > STALE_S
    place = bisect_right([change.asked_s for change in changes], since_s)
    if not place:
        return None
    change = changes[place - 1]
    in_force_s = change.answered_s if looks_first else takes_effect_s(change, attempt.node)
    if not change.answered_s or since_s <= in_force_s:
        return None
    return None if place < len(changes) and attempt.done_s >= changes[place].asked_s else change


def no_decision_against_a_revocation(history: AccessHistory) -> Verdict:
    """Check that nothing is allowed on any node after its right was taken."""
    seen, violations = 0, []
    for attempt in history.attempts:
        change = decided_by(history.changes.get(attempt.right, []), attempt)
        if change is None or change.given or attempt.allowed is None:
            continue
        seen += 1
        if attempt.allowed:
            violations.append(_against(change, attempt))
    return Verdict("after an answered revocation no decision against it", seen, "attempts", tuple(violations))


def an_answered_grant_is_in_force(history: AccessHistory) -> Verdict:
    """Check that nothing is refused on any node after its right was given.

    A session may end late by an earlier revocation: what rests on one is not looked at.
    """
    seen, violations = 0, []
    for attempt in history.attempts:
        change = decided_by(history.changes.get(attempt.right, []), attempt)
        if change is None or not change.given or attempt.allowed is None or attempt.node in change.missing:
            continue
        if ends_sessions(attempt.right) and attempt.what != CONNECT:
            continue
        seen += 1
        if not attempt.allowed:
            violations.append(_against(change, attempt))
    return Verdict("after an answered grant no decision against it", seen, "attempts", tuple(violations))


def ends_sessions(right: str) -> bool:
    """Whether the loss of a right ends the sessions that rest on it."""
    return right in {"token", "lock", "own workspace"}


def a_node_that_wakes_knows_no_less(history: AccessHistory) -> Verdict:
    """Check what reached a stopped node after a revocation and is decided later."""
    stops = [one for one in history.disturbances if one.kind.startswith(STOPPED)]
    seen, violations = 0, []
    for attempt in history.attempts:
        woken_s = [one.until_s for one in stops if _falls_into(attempt, one)]
        if not woken_s:
            continue
        change = decided_by(history.changes.get(attempt.right, []), attempt, woken_s[0])
        if change is None or change.given or attempt.allowed is None:
            continue
        seen += 1
        if attempt.allowed:
            violations.append(_against(change, attempt))
    return Verdict("a node that wakes lets nothing through", seen, "attempts on stopped nodes", tuple(violations))


def _falls_into(attempt: Attempt, stop: Disturbance) -> bool:
    return stop.target == attempt.node and stop.since_s < attempt.sent_s < stop.until_s


def _against(change: Change, attempt: Attempt) -> str:
    word = "given" if change.given else "taken"
    missing = f", not confirmed by {', '.join(sorted(change.missing))}" if change.missing else ""
    return (
        f"{change.right} was {word} at {change.answered_s:.2f} s (asked for at {change.asked_s:.2f} s{missing}), and "
        f"{attempt.holder} on {attempt.node}: {attempt.what}, sent at {attempt.sent_s:.2f} s, at {attempt.done_s:.2f} s "
        f"{'allowed' if attempt.allowed else 'refused: ' + attempt.reason}"
    )


def no_change_without_its_row(history: AccessHistory) -> Verdict:
    """Check that each change in the tables has one audit row, and no row is left."""
    return Verdict(
        "each change has one audit row, and each row its change",
        history.recorded.total(),
        "changes",
        tuple(_unequal(history.recorded, history.audited)),
    )


def _unequal(recorded: Counter[Recorded], audited: Counter[Recorded]) -> Iterator[str]:
    for one in sorted(recorded.keys() | audited.keys()):
        changes, rows = recorded[one], audited[one]
        if changes != rows:
            yield f"{one.operation} of {one.key} at {one.at_ms}: {changes} changes, {rows} audit rows"


def the_log_is_whole(history: AccessHistory) -> Verdict:
    """Check that `aether audit verify` finds nothing, with all heads that were signed."""
    violations = list(history.verified)
    if not history.heads:
        violations.append("no head was signed")
    return Verdict("the audit log fits its signed heads", history.verified_rows, "rows", tuple(violations))


def a_cut_tail_is_found(history: AccessHistory) -> Verdict:
    """Check that `aether audit verify` fails when the end of a tree is cut off."""
    seen = int(bool(history.cut))
    violations = () if history.found_cut == 1 else (f"{history.cut}: exit code {history.found_cut}",)
    return Verdict("a cut tail is found", seen, "cuts", violations)


def nothing_fails(history: AccessHistory) -> Verdict:
    """Check that no node has printed a traceback."""
    return Verdict("no node fails", len(history.nodes), "nodes", tuple(history.tracebacks))


_CHECKS: Final = (
    no_decision_against_a_revocation,
    a_node_that_wakes_knows_no_less,
    an_answered_grant_is_in_force,
    no_change_without_its_row,
    the_log_is_whole,
    a_cut_tail_is_found,
    nothing_fails,
)
