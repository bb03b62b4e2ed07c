"""Counts what each key-value space has, in the transactions that change it.

Invariant: the row of a space (storage/schema/state.py) is the sum over its entries, or absent if it
has none. A program calls `change` before it writes an entry, so one that is refused wrote nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aether_trio.storage.base import Execute, Fetch, Program, Row

UNIT_BYTES: Final = 1024
MOST: Final = 2**62


@dataclass(frozen=True, slots=True)
class Quota:
    """Bounds a key-value space: values and set members, and units of UNIT_BYTES begun."""

    items: int = MOST
    units: int = MOST

    @classmethod
    def of(cls, keys: int, size_bytes: int) -> Quota:
        """Return the quota of two settings, where 0 is unlimited."""
        return cls(keys or MOST, size_bytes // UNIT_BYTES or MOST)

    def __str__(self) -> str:
        parts = [f"{self.items} keys and members of sets"] if self.items < MOST else []
        parts += [f"{self.units} KiB"] if self.units < MOST else []
        return " and ".join(parts) or "anything"


UNLIMITED: Final = Quota()


def units_of(key: bytes, value: bytes) -> int:
    """Return the quota units of a key-value entry or set member: at least one."""
    return -(-(len(key) + len(value)) // UNIT_BYTES) or 1


def fits(space: bytes, items: int, units: int, quota: Quota) -> Program[bool]:
    """Whether a key-value space's quota has room for so many more items and units."""
    rows: list[Row] = yield Fetch("SELECT items, units FROM kv_spaces WHERE space = $1", (space,))
    has_items, has_units = rows[0] if rows else (0, 0)
    return (items <= 0 or has_items + items <= quota.items) and (units <= 0 or has_units + units <= quota.units)


def change(space: bytes, items: int, units: int, quota: Quota) -> Program[bool]:
    """Count items and units that a space gains or loses; False if a gain has no room."""
    if not items and not units:
        return True
    if items > 0 or units > 0:
        most_items = quota.items if items > 0 else MOST
        most_units = quota.units if units > 0 else MOST
        changed: int = yield Execute(
            "UPDATE kv_spaces SET items = items + $2, units = units + $3 "
            "WHERE space = $1 AND items + $2 <= $4 AND units + $3 <= $5",
            (space, items, units, most_items, most_units),
        )
        if changed:
            return True
        known: list[Row] = yield Fetch("SELECT 1 FROM kv_spaces WHERE space = $1", (space,))
        if known or items > most_items or units > most_units:
            return False
        yield Execute("INSERT INTO kv_spaces (space, items, units) VALUES ($1, $2, $3)", (space, items, units))
        return True
    left: list[Row] = yield Fetch(
        "UPDATE kv_spaces SET items = items + $2, units = units + $3 WHERE space = $1 RETURNING items",
        (space, items, units),
    )
    if left and left[0][0] <= 0:
        yield Execute("DELETE FROM kv_spaces WHERE space = $1", (space,))
    return True


def deleted(rows: list[Row]) -> Program[None]:
    """Count deleted key-value entries: rows (space, members, units)."""
    gone: dict[bytes, tuple[int, int]] = {}
    for space, members, units in rows:
        items_before, units_before = gone.get(space, (0, 0))
        gone[space] = items_before + (1 if members is None else members), units_before + units
    for space, (items, units) in sorted(gone.items()):
        yield from change(space, -items, -units, UNLIMITED)
