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


def test_short_keeps_leading_zeros() -> None:
    class Zero(random.Random):
        def getrandbits(self, k: int, /) -> int:
            return 0

    assert IdFactory(Zero()).short() == "00000000"


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
