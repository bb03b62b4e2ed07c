"""A seed gives a plan, and a plan leaves a node standing."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from chaos.plan import BY_CHANCE, CHANCES, DATABASE, FAIL_OVER_REST_S, OF_DATABASE, Kind, plan

NODES = ["node-1", "node-2", "node-3"]
seeds = st.integers(0, 2**32)


@given(seeds)
def test_a_seed_is_one_plan(seed: int) -> None:
    assert plan(seed, NODES, 60, mean_s=2) == plan(seed, NODES, 60, mean_s=2)


@given(seeds, st.integers(1, 5))
def test_every_fault_is_over_in_time_and_a_target_has_one_at_a_time(seed: int, nodes: int) -> None:
    steps = plan(seed, NODES[:nodes], 60, mean_s=1)
    until: defaultdict[str, float] = defaultdict(float)
    for step in steps:
        limits = CHANCES[step.kind]
        assert limits.least_s <= step.duration_s <= limits.most_s
        assert step.at_s + step.duration_s <= 60
        assert step.at_s > until[step.target]
        until[step.target] = step.at_s + step.duration_s
        assert (step.target == DATABASE) == (step.kind in OF_DATABASE)
    assert [step.at_s for step in steps] == sorted(step.at_s for step in steps)


@given(seeds)
def test_one_node_at_least_is_left_alone(seed: int) -> None:
    away = [step for step in plan(seed, NODES, 120, mean_s=0.5) if CHANCES[step.kind].takes_node]
    for step in away:
        others = {one.target for one in away if one.at_s <= step.at_s <= one.at_s + one.duration_s}
        assert len(others) < len(NODES)


def test_five_minutes_have_every_kind() -> None:
    seen = {step.kind for step in plan(7, NODES, 300, mean_s=2)}
    assert seen == set(BY_CHANCE)


@given(seeds)
def test_a_standby_is_promoted_once_with_nothing_else_happening_to_the_database(seed: int) -> None:
    steps = plan(seed, NODES, 120, mean_s=1, fail_over=True)
    (one,) = [step for step in steps if step.kind is Kind.FAIL_OVER]
    assert one.at_s >= 60
    for step in steps:
        if step.target == DATABASE and step is not one:
            assert not one.at_s - step.duration_s < step.at_s < one.at_s + FAIL_OVER_REST_S
