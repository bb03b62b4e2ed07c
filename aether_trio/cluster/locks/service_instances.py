"""The instances of each service on all nodes, for spreading messages over them.

Nothing exact depends on it. A message to an instance that has just ended stays in its topic, as it
would if the instance had ended just after the message.

The instances of other nodes are those of the last look at the table; this node's instances are
given with each call. Instances take turns on whichever node they are. Each node counts its own
turns and begins at a random one, so that nodes do not all begin with the same instance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Final

MAX_TURNS: Final = 10_000
"""Implementations whose turn is remembered."""


class ServiceInstances:
    """The instances of services on other nodes, and the turns of all instances."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._others: dict[str, list[str]] = {}
        self._turns: dict[str, int] = {}

    def replace(self, rows: Iterable[tuple[str, str]]) -> None:
        """Replace the instances of other nodes, given as (implementation, identity)."""
        others: dict[str, list[str]] = {}
        for implementation, identity in rows:
            others.setdefault(implementation, []).append(identity)
        self._others = others

    def of(self, implementation: str) -> Sequence[str]:
        """Return the identities of the instances on other nodes."""
        return self._others.get(implementation, ())

    def pick(self, implementation: str, own: Sequence[str]) -> str | None:
        """Return the identity of an instance, each in its turn; None when there is none.

        `own` are the instances of this node.
        """
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
