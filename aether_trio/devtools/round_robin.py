"""Chooses a node for each connection in turn, or the next one that accepts.

async with open_fault_proxy(RoundRobin(["127.0.0.1:50051", "127.0.0.1:50052"])) as front:
    ...
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["RoundRobin"]


class RoundRobin:
    """A fault proxy's Target that gives each connection to the next of `addresses`.

    `addresses` ("HOST:PORT") may be changed at any time. An address in `out` is tried last: a node
    that is stopped accepts, in its kernel, and serves no client; a load balancer's health check
    would have found that.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        self.addresses = list(addresses)
        self.out: set[str] = set()
        self._turn = 0

    def __call__(self) -> Sequence[str]:
        """Return the addresses to try for one connection, in order."""
        if not self.addresses:
            return ()
        first = self._turn % len(self.addresses)
        self._turn += 1
        order = self.addresses[first:] + self.addresses[:first]
        return sorted(order, key=self.out.__contains__)  # stable
