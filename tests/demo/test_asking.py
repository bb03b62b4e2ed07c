"""The demo of borrowed authority fails for each thing that did not happen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aether_trio.demo.asking import ENTRY, HOME, OFFICE, AskingFacts, judge
from aether_trio.model.access import AccessLevel

GOOD = AskingFacts(
    alone="no",
    by_itself="no",
    asked=((OFFICE, HOME), AccessLevel.READWRITE, 600),
    granted=((OFFICE,), AccessLevel.READ, 60),
    heard=3,
    read=ENTRY,
    written="no",
    elsewhere="no",
    told=True,
    after="no",
)


def test_a_good_performance_passes() -> None:
    assert all(check.is_true for check in judge(GOOD))


@pytest.mark.parametrize(
    "wrong",
    [
        {"alone": ""},
        {"by_itself": ""},
        {"granted": ((OFFICE, HOME), AccessLevel.READ, 60)},
        {"granted": ((), AccessLevel.READ, 60)},
        {"granted": ((OFFICE,), AccessLevel.READWRITE, 60)},
        {"granted": ((OFFICE,), AccessLevel.READ, 600)},
        {"heard": 2},
        {"read": ""},
        {"written": ""},
        {"elsewhere": ""},
        {"told": False},
        {"after": ""},
    ],
    ids=str,
)
def test_one_thing_that_did_not_happen_is_one_false_claim(wrong: dict[str, object]) -> None:
    checks = judge(replace(GOOD, **wrong))  # type: ignore[arg-type]
    assert [check.is_true for check in checks].count(False) == 1
