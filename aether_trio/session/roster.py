"""Keeps connected identities sorted, for pages of lists by kind and workspace.

A page costs what is on it. The texts of a kind are kept sorted. Those of agents and tasks of one
workspace are a range of them (`ag::{workspace}::`). Those of users are kept apart for each
workspace that they are switched to.

Invariants: a text is in the list of its kind exactly once; a user's text is in the list of one
workspace at most.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection
from typing import Final

from aether_trio.model.identity import SEPARATOR, Identity, Kind, prefix_of
from aether_trio.model.ownership import WorkspaceUse

_IN_ORDER: Final = sorted(Kind, key=prefix_of)
"""No prefix begins another one, so the texts of one kind are after all of the kind before."""
_BEHIND: Final = f"{SEPARATOR[:-1]};"
"""Sorts after all texts that go on with the separator, as ";" follows ":"."""

_COUNTED: Final = {Kind.AGENT: 0, Kind.UNIQUE_TASK: 1, Kind.TASK: 1}
"""Kinds with a workspace in their texts, and the place of their count in a WorkspaceUse."""

Range = tuple[list[str], int, int]


class Roster:
    """The sorted texts of connected identities; no method is a checkpoint."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, list[str]] = {kind: [] for kind in Kind}
        self._users: dict[str, list[str]] = {}
        self._places: dict[str, str] = {}

    def add(self, identity: Identity) -> None:
        """Add the text of an identity that has connected."""
        insort(self._kinds[identity.kind], identity.text)

    def remove(self, identity: Identity) -> None:
        """Remove the text of an identity that has disconnected."""
        if identity.kind is Kind.USER:
            self.move(identity.text, "")
        _take(self._kinds[identity.kind], identity.text)

    def move(self, user: str, workspace: str) -> None:
        """List a user's window under the workspace it is switched to; "" for none."""
        before = self._places.pop(user, "")
        if before:
            there = self._users[before]
            _take(there, user)
            if not there:
                del self._users[before]
        if workspace:
            self._places[user] = workspace
            insort(self._users.setdefault(workspace, []), user)

    def page(self, kinds: Collection[Kind], workspace: str, offset: int, limit: int) -> tuple[list[str], int]:
        """Return (a page of identity texts, how many match); empty arguments match all."""
        found: list[str] = []
        total = 0
        for texts, begin, end in self._ranges(kinds, workspace):
            first = begin + max(offset - total, 0)
            if first < end and len(found) < limit:
                found += texts[first : min(end, first + limit - len(found))]
            total += end - begin
        return found, total

    def use(self, workspace: str = "") -> dict[str, WorkspaceUse]:
        """Count the participants in each workspace that has one, or in a workspace."""
        counts: dict[str, list[int]] = {}
        for kind, column in _COUNTED.items():
            texts = self._kinds[kind]
            first, behind = 0, len(texts)
            if workspace:
                _, first, behind = _beginning(texts, f"{prefix_of(kind)}{SEPARATOR}{workspace}")
            while first < behind:
                found = Identity.parse(texts[first], strict=False).workspace
                _, first, end = _beginning(texts, f"{prefix_of(kind)}{SEPARATOR}{found}")
                counts.setdefault(found, [0, 0, 0])[column] += end - first
                first = end
        for found in [workspace] if workspace in self._users else [] if workspace else self._users:
            counts.setdefault(found, [0, 0, 0])[2] += len(self._users[found])
        return {found: WorkspaceUse(*numbers) for found, numbers in counts.items()}

    def windows(self, user_id: str) -> list[str]:
        """Return the identity texts of a user's connected windows."""
        texts, begin, end = _beginning(self._kinds[Kind.USER], f"{prefix_of(Kind.USER)}{SEPARATOR}{user_id}")
        return texts[begin:end]

    def _ranges(self, kinds: Collection[Kind], workspace: str) -> list[Range]:
        wanted = [kind for kind in _IN_ORDER if not kinds or kind in kinds]
        if not workspace:
            return [(self._kinds[kind], 0, len(self._kinds[kind])) for kind in wanted]
        ranges: list[Range] = []
        for kind in wanted:
            if kind in {Kind.AGENT, Kind.UNIQUE_TASK, Kind.TASK}:
                ranges.append(_beginning(self._kinds[kind], f"{prefix_of(kind)}{SEPARATOR}{workspace}"))
            elif kind is Kind.USER:
                users = self._users.get(workspace, [])
                ranges.append((users, 0, len(users)))
        return ranges


def _beginning(texts: list[str], begin: str) -> Range:
    """Return the range of sorted texts that start with `begin` and the separator."""
    return texts, bisect_left(texts, begin + SEPARATOR), bisect_left(texts, begin + _BEHIND)


def _take(texts: list[str], text: str) -> None:
    del texts[bisect_left(texts, text)]
