"""Picks a live instance of a service, in turn over all nodes of the cluster.

Nothing exact depends on the pick. A message to an instance that has just ended stays in its topic,
as it would if the instance had ended just after the message. Each node counts its own turns and
begins at a random one, so that nodes do not all begin with the same instance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Final

MAX_TURNS: Final = 10_000  # implementations whose turn is remembered


class ServiceInstances:
    """Service instances on other nodes as last read, and whose turn it is."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._others: dict[str, list[str]] = {}
        self._turns: dict[str, int] = {}

    def replace(self, rows: Iterable[tuple[str, str]]) -> None:
        """Replace the instances on other nodes by these (implementation, identity) pairs."""
        others: dict[str, list[str]] = {}
        for implementation, identity in rows:
            others.setdefault(implementation, []).append(identity)
        self._others = others

    def of(self, implementation: str) -> Sequence[str]:
        """Return the identities of a service's instances on other nodes."""
        return self._others.get(implementation, ())

    def pick(self, implementation: str, own: Sequence[str]) -> str | None:
        """Return the next instance of a service, here (`own`) or elsewhere; None if none."""
        others = self._others.get(implementation, ())
        count = len(own) + len(others)
        if not count:
            self._turns.pop(implementation, None)
            return None
        turn = self._turns.get(implementation)
        if turn is None:
            if len(self._turns) >= MAX_TURNS:
                self._turns.clear()
            turn = self._random.randrange(count)
        turn %= count
        self._turns[implementation] = turn + 1
        return own[turn] if turn < len(own) else others[turn - len(own)]
