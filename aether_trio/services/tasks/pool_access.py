"""Says which services may be given tasks of a workspace's pools, in any thread.

A service is in no workspace, so access rules decide: it needs READ of a workspace to be given the
tasks of its pools. Rules are asked in the event loop alone. A transaction in another thread that
meets an unknown pair leaves the task, and the engine has the pair asked about after
the commit, and the service filled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

MAX_PAIRS: Final = 10_000
"""Pairs of a service and a workspace that are remembered, about 200 bytes each."""


class PoolAccess:
    """Remembers answers of `may_read(service, workspace)` until rules change."""

    def __init__(self, may_read: Callable[[str, str], bool]) -> None:
        self._may_read = may_read
        self._thread = threading.get_ident()
        self._known: dict[tuple[str, str], bool] = {}
        self._open: set[tuple[str, str]] = set()
        """Pairs to be asked about in the event loop: unknown ones, and those refused before."""
        self.waiting = False
        """Whether a transaction has left a task because of an unknown pair."""

    def may_serve(self, service: str, workspace: str) -> bool:
        """Return whether a service may be given the tasks of a workspace's pools."""
        pair = service, workspace
        known = self._known.get(pair)
        if known is None:
            if threading.get_ident() == self._thread:
                return self._ask(pair)
            self._open.add(pair)
            self.waiting = True
        return bool(known)

    def forget(self) -> None:
        """Forget all answers, as access data have changed."""
        refused = [pair for pair, allowed in self._known.items() if not allowed]
        self._known = {}
        self._open.update(refused)

    def newly_allowed(self) -> list[str]:
        """Ask about open pairs; return the services that may serve one of them."""
        self.waiting = False
        pairs = [self._open.pop() for _ in range(len(self._open))]
        return sorted({pair[0] for pair in pairs if self._ask(pair)})

    def _ask(self, pair: tuple[str, str]) -> bool:
        if len(self._known) >= MAX_PAIRS:
            self._known = {}
        allowed = self._known[pair] = self._may_read(*pair)
        return allowed
