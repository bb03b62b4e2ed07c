"""Which instances of a service there are, cluster-wide: for spreading messages over them, and for nothing that has to be exact.

A message to an instance that has just gone stays in its topic, as it would if the instance had gone just after the message.

What other nodes hold is remembered from the last look at the table; what this node holds, its registry knows and says each time.
Instances take turns, wherever they are; each node counts its own turns and begins at a random one, so that nodes do not all begin
with the same instance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Final

MAX_TURNS: Final = 10_000
"""Implementations whose turn is remembered."""


class Instances:
    """See the module docstring. Nothing here waits."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._others: dict[str, list[str]] = {}
        self._turns: dict[str, int] = {}

    def replace(self, rows: Iterable[tuple[str, str]]) -> None:
        """What other nodes hold now, as (implementation, identity)."""
        others: dict[str, list[str]] = {}
        for implementation, identity in rows:
            others.setdefault(implementation, []).append(identity)
        self._others = others

    def of(self, implementation: str) -> Sequence[str]:
        """The identities of the instances on other nodes."""
        return self._others.get(implementation, ())

    def pick(self, implementation: str, own: Sequence[str]) -> str | None:
        """The identity of an instance, each in its turn; `own` are those of this node. None when there is none at all."""
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
