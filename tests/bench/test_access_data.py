"""The access rules of the bench: what they are, and what their index needs."""

from __future__ import annotations

import random
import subprocess
import sys

from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.rules import normalised, normalised_member
from bench.access_data import (
    NOW_MS,
    fill,
    memberships,
    population,
    questions,
    rules,
    times_ns,
)
from tests.model.access.naive import NaiveAccess, Question, is_pattern

RULES = 3_000


def test_the_records_are_such_as_are_stored() -> None:
    people = population(random.Random(1))
    made = list(rules(people, random.Random(2), RULES))
    assert len({(one.subject, one.resource) for one in made}) == len({one.rule_id for one in made}) == RULES
    assert all(normalised(one) == one for one in made)
    patterns = [
        one for one in made if is_pattern(one.principal_id) or (is_pattern(one.resource_id) and one.resource_id != "*")
    ]
    assert len(patterns) == RULES // 10
    assert all(normalised_member(one) == one for one in memberships(people, random.Random(2)))


def test_the_index_answers_as_the_table_says() -> None:
    people = population(random.Random(1), groups=100)
    index, plain = AccessIndex(), NaiveAccess()
    for member in memberships(people, random.Random(2)):
        index.put_membership(member)
        plain.put_membership(member)
    for rule in rules(people, random.Random(4), RULES):
        index.put_rule(rule)
    plain.rules = list(index.rules())
    tiers = set()
    for one in questions(people, random.Random(3), 300):
        asked = one.principal_type, one.principal_id, one.resource_type, one.resource_id
        verdict = index.decide(*asked, NOW_MS)
        answer = plain.answer(Question(*asked), NOW_MS)
        assert (verdict.level, verdict.tier, verdict.rule_id, verdict.via) == (
            answer.level,
            answer.tier,
            answer.rule_id,
            answer.via,
        )
        tiers.add(verdict.tier)
    assert tiers >= {1, 3, 5, 6}


def test_50000_rules_need_36_mebibytes() -> None:
    # Elsewhere, as what other tests have left in this process is freed or grows meanwhile.
    program = "from bench.access_data import index_bytes; print(index_bytes(50_000))"
    used = int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)
    assert used < 36 * 2**20  # so 100,000 need less than 60


def test_answers_are_timed() -> None:
    people = population(random.Random(1), groups=20)
    index = AccessIndex()
    fill(index, people, random.Random(2), 200)
    for cold in (False, True):
        times = times_ns(index, questions(people, random.Random(3), 50), cold=cold, repeats=2)
        assert len(times) == 50
        assert times == sorted(times)
