"""Ids: their form, and that a seed makes them again."""

from __future__ import annotations

import random
import re
import uuid

import pytest

from aether_trio.model.identity import check_token
from aether_trio.model.ids import IdFactory


@pytest.mark.parametrize("source", [random.Random(7), random.SystemRandom()], ids=["seeded", "system"])
def test_forms(source: random.Random) -> None:
    ids = IdFactory(source)
    for text in (ids.session_id(), ids.unique()):
        assert str(uuid.UUID(text)) == text
        assert uuid.UUID(text).version == 4
        assert uuid.UUID(text).variant == uuid.RFC_4122
        assert check_token(text, "specifier") == text
    assert re.fullmatch(r"[0-9a-f]{8}", ids.short())


@pytest.mark.parametrize("source", [random.Random(7), random.SystemRandom()], ids=["seeded", "system"])
def test_dated_ones_are_in_the_order_of_their_moments(source: random.Random) -> None:
    ids = IdFactory(source)
    moments = [0, 1, 255, 256, 1_700_000_000_000, 1_700_000_000_001, 2**48 - 1]
    made = [ids.dated(moment) for moment in moments]
    assert made == sorted(made)
    for text, moment in zip(made, moments, strict=True):
        one = uuid.UUID(text)
        assert str(one) == text
        assert (one.version, one.variant, one.int >> 80) == (7, uuid.RFC_4122, moment)
    assert len({ids.dated(5) for _ in range(1000)}) == 1000


class Fixed(random.Random):
    """Every bit of it is the same."""

    bit = 0

    def getrandbits(self, k: int, /) -> int:
        return self.bit * ((1 << k) - 1)


def test_ids_have_all_their_bits() -> None:
    ones = Fixed()
    ones.bit = 1
    assert IdFactory(ones).dated(0) == "00000000-0000-7fff-bfff-ffffffffffff"
    assert IdFactory(Fixed()).short() == "00000000"


def test_the_same_seed_makes_the_same_ids() -> None:
    def draw(seed: int) -> list[str]:
        ids = IdFactory(random.Random(seed))
        return [ids.session_id(), ids.unique(), ids.short(), ids.unique()]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_ids_do_not_repeat() -> None:
    ids = IdFactory(random.Random(1))
    made = [ids.session_id() for _ in range(500)] + [ids.unique() for _ in range(500)]
    assert len(set(made)) == 1000
