"""Leases of a rate: never more than the rate, shared by demand, given back."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aether_trio.model.rate_lease import ROOM, LeaseBook, LeasedBucket, fair_shares

LEASE_MS = 3000
MARGIN_MS = 1000
demands = st.floats(min_value=0.0, max_value=1e6)
names = st.sampled_from(["a", "b", "c", "d", "e"])


@given(st.floats(min_value=0.001, max_value=1e6), st.dictionaries(names, demands, min_size=1))
def test_shares_are_the_whole_rate_and_fair(rate: float, demanded: dict[str, float]) -> None:
    shares = fair_shares(rate, demanded)
    assert math.isclose(sum(shares.values()), rate, rel_tol=1e-9)
    for one, demand in demanded.items():
        satisfied = shares[one] >= demand
        for other, theirs in demanded.items():
            # No node gets more than an unsatisfied one, unless both are cut alike.
            assert satisfied or shares[other] <= shares[one] * (1 + 1e-9) or theirs < demand


@pytest.mark.parametrize(
    ("rate", "demanded", "shares"),
    [
        (100.0, {"a": 5.0}, {"a": 100.0}),
        (100.0, {"a": 1000.0, "b": 1000.0}, {"a": 50.0, "b": 50.0}),
        (100.0, {"a": 1000.0, "b": 10.0}, {"a": 100 - 10 * ROOM, "b": 10 * ROOM}),
        (100.0, {"a": 10.0, "b": 20.0}, {"a": 50 - 5 * ROOM, "b": 50 + 5 * ROOM}),
    ],
)
def test_examples_of_shares(rate: float, demanded: dict[str, float], shares: dict[str, float]) -> None:
    found = fair_shares(rate, demanded)
    assert found == pytest.approx(shares)


class Leasing(RuleBasedStateMachine):
    """Nodes that join, renew, fall silent and die; and what each believes.

    A node believes in its lease for LEASE_MS from before it asked; the book keeps it longer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.rate = 100.0
        self.stored: dict[str, Any] = {}
        self.believed: dict[str, tuple[float, int]] = {}

    @rule(node=names, demand=demands, lost=st.booleans())
    def renew(self, node: str, demand: float, lost: bool) -> None:
        book = LeaseBook.of(self.stored)
        renewed = book.renew(node, demand, self.rate, self.now_ms, self.now_ms + LEASE_MS + MARGIN_MS)
        assert renewed.rate <= renewed.share * (1 + 1e-9)
        self.stored = book.value()
        if lost:
            return  # the answer was lost: the node goes on with its old lease, until that ends
        self.believed[node] = (renewed.rate, self.now_ms + LEASE_MS)

    @rule(node=names)
    def die(self, node: str) -> None:
        self.believed.pop(node, None)

    @rule(passed_ms=st.integers(1, 6000))
    def wait(self, passed_ms: int) -> None:
        self.now_ms += passed_ms

    @invariant()
    def never_more_than_the_rate(self) -> None:
        assert LeaseBook.of(self.stored).leased(self.now_ms) <= self.rate * (1 + 1e-9)


class LeasingWithAnswers(Leasing):
    """The same while answers arrive: what the nodes believe is not more than the rate."""

    @rule(node=names, demand=demands, lost=st.just(False))
    def renew(self, node: str, demand: float, lost: bool) -> None:
        super().renew(node, demand, lost)

    @invariant()
    def nodes_use_no_more(self) -> None:
        in_use = [rate for rate, until_ms in self.believed.values() if until_ms > self.now_ms]
        assert sum(in_use) <= self.rate * (1 + 1e-9)


TestLeasing = Leasing.TestCase
TestLeasingWithAnswers = LeasingWithAnswers.TestCase
TestLeasing.settings = TestLeasingWithAnswers.settings = settings(max_examples=200, stateful_step_count=40)


@given(
    st.dictionaries(names, st.floats(min_value=0.1, max_value=1e6), min_size=1),
    st.permutations(["a", "b", "c", "d", "e"]),
)
def test_two_rounds_of_steady_demand_reach_the_shares(demanded: dict[str, float], order: list[str]) -> None:
    book = LeaseBook()
    for _ in range(2):
        for node in order:
            if node in demanded:
                last = book.renew(node, demanded[node], 100.0, 0, 4000)
    for node in order:
        if node in demanded:
            last = book.renew(node, demanded[node], 100.0, 0, 4000)
            assert last.rate == pytest.approx(fair_shares(100.0, demanded)[node])
    assert book.leased(0) == pytest.approx(100.0)


def test_a_newcomer_is_served_when_the_others_have_renewed() -> None:
    book = LeaseBook()
    assert book.renew("a", 1000, 90.0, 0, 4000).rate == 90
    newcomer = book.renew("b", 1000, 90.0, 100, 4100)
    assert (newcomer.rate, newcomer.share) == (0, 45)
    assert book.renew("a", 1000, 90.0, 200, 4200).rate == 45
    assert book.renew("b", 1000, 90.0, 300, 4300).rate == 45


def test_a_dead_nodes_lease_returns_and_an_idle_nodes_at_once() -> None:
    book = LeaseBook()
    book.renew("a", 10, 100.0, 0, 4000)
    assert book.renew("b", 1000, 100.0, 3999, 7999).rate == 0
    assert book.renew("b", 1000, 100.0, 4000, 8000).rate == 100
    assert book.renew("b", 0, 100.0, 4001, 8001).rate == 0
    assert len(LeaseBook.of(book.value())) == 0


# -- the bucket ------------------------------------------------------------------------------------


def taken(bucket: LeasedBucket, now: float, most: int = 10_000) -> int:
    return next((number for number in range(most) if not bucket.take(now)), most)


def test_a_bucket_gives_a_little_in_advance_and_counts_it() -> None:
    bucket = LeasedBucket(5)
    assert taken(bucket, 0.0) == 5
    assert taken(bucket, 10.0) == 0
    bucket.lease(100.0, 10.0, 13.0)
    assert taken(bucket, 10.0) == 95
    assert taken(bucket, 11.0) == 100
    assert taken(bucket, 11.5) == 50


def test_a_bucket_whose_lease_has_ended_gives_what_is_left_of_an_advance() -> None:
    bucket = LeasedBucket(2)
    bucket.lease(100.0, 0.0, 3.0)
    assert taken(bucket, 5.0) == 2
    assert taken(bucket, 500.0) == 0
    bucket.lease(10.0, 500.0, 503.0)
    assert taken(bucket, 500.0) == 0
    assert taken(bucket, 501.0) == 10


def test_a_smaller_lease_holds_less_and_none_holds_nothing() -> None:
    bucket = LeasedBucket(1)
    bucket.lease(100.0, 0.0, 3.0)
    bucket.lease(10.0, 1.0, 4.0)
    assert taken(bucket, 1.0) == 10
    bucket.lease(0.0, 2.0, 5.0)
    assert taken(bucket, 2.0) == 0


@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(0.0, 50.0), st.integers(0, 200)), max_size=30))
def test_a_bucket_never_gives_more_than_its_leases(steps: list[tuple[float, float, int]]) -> None:
    advance = 3.0
    bucket = LeasedBucket(advance)
    now, most, given_out = 0.0, advance, 0
    rate, until, largest = 0.0, 0.0, 0.0
    for passed, lease, tries in steps:
        most += rate * max(0.0, min(now + passed, until) - now)
        now += passed
        bucket.lease(lease, now, now + 3.0)
        rate, until, largest = lease, now + 3.0, max(largest, lease, 1.0)
        given_out += taken(bucket, now, tries)
        assert given_out <= most + largest + 1e-3
