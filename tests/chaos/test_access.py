"""Access invariants find violations; three seeded runs with real faults hold them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from aether_trio.client import ConnectionLost
from chaos.access.checks import STALE_S, check_all
from chaos.access.history import AccessHistory, Attempt, Change, Recorded
from chaos.access.report import as_json
from chaos.access.rights import Administrator, Answers, Right
from chaos.access.run import STOP_S, AccessResult, AccessWishes, run, steps_of
from chaos.history import Disturbance
from chaos.plan import Kind

SEEDS = (14, 2330, 5008)
SECONDS, MEAN_S = 12.0, 0.9
"""Shorter and denser than by hand: the suite has little time."""
NODES = ("node-1", "node-2", "node-3")
DATABASE_AWAY = {Kind.CUT_DATABASE_LINK, Kind.STALL_DATABASE_LINK, Kind.CRASH_DATABASE}
BUS_AWAY = {Kind.STALL_BUS, Kind.END_BUS}


def attempt(sent_s: float, done_s: float, allowed: bool | None, **fields: str) -> Attempt:
    given = {"right": "rule", "holder": "ag::red::exact::1", "node": "node-1", "what": "send", **fields}
    return Attempt(**given, sent_s=sent_s, done_s=done_s, allowed=allowed, reason="")  # type: ignore[arg-type]


def history() -> AccessHistory:
    """A rule and a token are given at 1 s, taken at 10 s and given again at 30 s."""
    seen = AccessHistory(NODES)
    for right in ("rule", "token"):
        seen.changes[right] = [
            Change(right, True, 1.0, 1.5),
            Change(right, False, 10.0, 11.0, frozenset({"node-2"})),
            Change(right, True, 30.0, 31.0),
        ]
        seen.attempts += [
            attempt(2.0, 2.1, True, right=right, what="connect"),
            attempt(9.0, 12.0, True, right=right),  # it fell into the change
            attempt(12.0, 12.1, False, right=right),
            attempt(12.0, 12.1, True, right=right, node="node-2"),  # which is named: five seconds
            attempt(17.0, 17.1, False, right=right, node="node-2"),
            attempt(20.0, 32.0, True, right=right),  # answered when it was given again
            attempt(20.0, 20.1, None, right=right),
            attempt(32.0, 32.1, True, right=right),
        ]
    seen.disturbances = [Disturbance(Kind.STOP_NODE, "node-1", 11.5, 12.05)]
    seen.recorded = Counter({Recorded(1, "lock", "l1"): 1, Recorded(2, "unlock", "l1"): 1})
    seen.audited = Counter(seen.recorded)
    seen.verified_rows, seen.heads, seen.cut, seen.found_cut = 9, 3, "rows of node-1 from the 8th on", 1
    return seen


REVOKED = "after an answered revocation no decision against it"
WAKES = "a node that wakes lets nothing through"
GRANTED = "after an answered grant no decision against it"
ROWS = "each change has one audit row, and each row its change"
LOG = "the audit log fits its signed heads"
TAIL = "a cut tail is found"

VIOLATIONS: dict[str, tuple[set[str], Callable[[AccessHistory], object]]] = {
    "allowed on a node that has confirmed": (
        {REVOKED},
        lambda seen: seen.attempts.append(attempt(11.1, 11.2, True, node="node-3")),
    ),
    "allowed on a named node after its time": (
        {REVOKED},
        lambda seen: seen.attempts.append(attempt(11.1 + STALE_S, 17.0, True, node="node-2")),
    ),
    "allowed on a node that wakes": ({REVOKED, WAKES}, lambda seen: seen.attempts.append(attempt(11.6, 15.0, True))),
    "what reached a stopped node is allowed when it wakes": (
        {WAKES},
        lambda seen: (
            seen.disturbances.append(Disturbance(Kind.STOP_NODE, "node-2", 12.5, 16.5)),
            seen.attempts.append(attempt(13.0, 16.6, True, node="node-2")),
        ),
    ),
    "a node that was stopped for long does not look first": (
        {WAKES},
        lambda seen: [
            record(one)
            for record, one in (
                (seen.disturbances.append, Disturbance(Kind.STOP_NODE, "node-2", 9.5, 15.5)),
                (seen.attempts.append, attempt(10.2, 15.6, True, node="node-2")),
            )
        ],
    ),
    "a session goes on without its token": (
        {REVOKED},
        lambda seen: seen.attempts.append(attempt(15.0, 15.1, True, right="token")),
    ),
    "refused with the right": ({GRANTED}, lambda seen: seen.attempts.append(attempt(3.0, 3.1, False))),
    "no connection with the token": (
        {GRANTED},
        lambda seen: seen.attempts.append(attempt(3.0, 3.1, False, right="token", what="connect")),
    ),
    "a change without its row": ({ROWS}, lambda seen: seen.audited.pop(Recorded(1, "lock", "l1"))),
    "a row without its change": ({ROWS}, lambda seen: seen.recorded.pop(Recorded(2, "unlock", "l1"))),
    "two rows of a change": ({ROWS}, lambda seen: seen.audited.update([Recorded(1, "lock", "l1")])),
    "a finding of the check": ({LOG}, lambda seen: seen.verified.append("row_removed")),
    "no head": ({LOG}, lambda seen: setattr(seen, "heads", 0)),
    "a cut that is not found": ({TAIL}, lambda seen: setattr(seen, "found_cut", 0)),
    "a traceback": ({"no node fails"}, lambda seen: seen.tracebacks.append("node-1: KeyError: 7")),
}


def test_a_good_history_violates_nothing() -> None:
    verdicts = check_all(history())
    assert [verdict.violations for verdict in verdicts] == [()] * 7
    assert [verdict.looked_at for verdict in verdicts] == [4, 2, 2, 2, 9, 1, 3]


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_found(name: str) -> None:
    invariants, spoil = VIOLATIONS[name]
    seen = history()
    spoil(seen)
    assert {verdict.invariant for verdict in check_all(seen) if verdict.violations} == invariants


@pytest.mark.parametrize(
    ("right", "what"),
    [("rule", "connect"), ("token", "send")],
    ids=["a connection that needs no rule", "a session that ends late"],
)
def test_what_does_not_rest_on_a_right_is_not_looked_at(right: str, what: str) -> None:
    seen = history()
    seen.attempts.append(attempt(3.0, 3.1, False, right=right, what=what))
    assert not any(verdict.violations for verdict in check_all(seen))


def test_a_result_has_its_figures_and_its_first_violations(tmp_path: Path) -> None:
    seen = history()
    seen.attempts.append(attempt(3.0, 3.1, False))
    result = AccessResult(AccessWishes(7), seen, check_all(seen))
    assert not result.well
    shown = as_json(result)
    assert (shown["figures"]["rights given"], shown["figures"]["rights taken"]) == (4, 2)
    assert [one["violations"] for one in shown["invariants"]] == [0, 0, 1, 0, 0, 0, 0]
    seen.write(tmp_path / "access.jsonl")
    assert len((tmp_path / "access.jsonl").read_text().splitlines()) == 1 + 6 + 17


@pytest.mark.parametrize(
    ("said", "missing"),
    [
        ("unlocked", frozenset()),
        ("unlocked; not confirmed within 2 s by node-2 (node 7): it stops", frozenset({"node-2"})),
        ("", frozenset(NODES)),
    ],
    ids=["confirmed", "a node is named", "done before, by a request without an answer"],
)
async def test_the_nodes_that_have_not_confirmed_a_change(said: str, missing: frozenset[str]) -> None:
    lost = ["the connection was cut"]

    async def unlock(_answers: object) -> str:
        if lost:
            raise ConnectionLost(lost.pop(), in_doubt=True)
        return said

    seen = AccessHistory(NODES)
    right = Right("lock", unlock, unlock)
    one = Administrator(right, "", seen, trio.current_time, random.Random(1), lambda: False)
    await one._change(Answers(None), given=True)  # type: ignore[arg-type]
    (change,) = seen.changes["lock"]
    assert (change.attempts, change.missing) == (2, missing)


@pytest.mark.parametrize("seed", range(20))
def test_each_run_stops_a_node_for_long(seed: int) -> None:
    steps = steps_of(AccessWishes(seed), NODES)
    assert max(step.duration_s for step in steps if step.kind is Kind.STOP_NODE) >= STOP_S
    assert steps == steps_of(AccessWishes(seed), NODES)


def test_the_seeds_have_the_faults_that_matter() -> None:
    """Each kills a node, stops one for long, and cuts the database or the bus."""
    seen: set[Kind] = set()
    stops: list[float] = []
    for seed in SEEDS:
        steps = steps_of(AccessWishes(seed, seconds=SECONDS, mean_s=MEAN_S), NODES)
        kinds = {step.kind for step in steps}
        assert Kind.KILL_NODE in kinds
        assert kinds & (DATABASE_AWAY | BUS_AWAY)
        seen |= kinds
        stops += [step.duration_s for step in steps if step.kind is Kind.STOP_NODE]
    assert seen & DATABASE_AWAY
    assert seen & BUS_AWAY
    assert min(stops) < STALE_S < STOP_S <= max(stops)


@pytest.mark.crash
@pytest.mark.parametrize("seed", SEEDS)
async def test_no_decision_against_a_revocation_and_no_change_without_its_row(seed: int, tmp_path: Path) -> None:
    said: list[str] = []
    result = await run(AccessWishes(seed, seconds=SECONDS, mean_s=MEAN_S, keep=tmp_path / "kept"), said.append)
    story = "\n".join(said)
    violations = [f"{verdict.invariant}: {one}" for verdict in result.verdicts for one in verdict.violations]
    assert violations == [], story
    assert [verdict.invariant for verdict in result.verdicts if not verdict.looked_at] == [], story
    assert result.well
