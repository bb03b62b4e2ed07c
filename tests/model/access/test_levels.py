"""Access levels: the integers, the wire numbers and their order."""

from __future__ import annotations

import pytest

from aether_trio.model.access import AccessLevel

LEVELS = [
    (AccessLevel.NONE, 0, 1),
    (AccessLevel.READ, 10, 2),
    (AccessLevel.READWRITE, 20, 3),
    (AccessLevel.MANAGE, 30, 4),
    (AccessLevel.ADMIN, 40, 5),
    (AccessLevel.SUPERADMIN, 50, 6),
]


@pytest.mark.parametrize(("level", "value", "wire"), LEVELS)
def test_level(level: AccessLevel, value: int, wire: int) -> None:
    assert level == value
    assert level.wire == wire
    assert AccessLevel.from_wire(wire) is level


def test_every_level_is_listed_in_order() -> None:
    assert [level for level, _, _ in LEVELS] == sorted(AccessLevel)


@pytest.mark.parametrize("wire", [-1, 0, 7, 10, 50])
def test_unset_and_unknown_wire_values_are_refused(wire: int) -> None:
    with pytest.raises(ValueError, match="is not an access level: expected 1"):
        AccessLevel.from_wire(wire)
