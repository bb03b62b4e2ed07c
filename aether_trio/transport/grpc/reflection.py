"""Serves gRPC reflection, v1 and v1alpha, from the gateway's own descriptor pool.

grpclib's services need a pool with every served file. Ours is private, as the published SDK defines
the same names in the default pool, and lacks the health service: that is found in the default pool.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from google.protobuf import descriptor_pool
from grpclib.reflection.service import ServerReflection

from aether_trio.transport.grpc.server import Servable
from aether_trio.wire.pb import POOL

T = TypeVar("T")


class _DescriptorPools:
    """Looks protobuf descriptors up in several pools, one after the other."""

    def __init__(self, *pools: Any) -> None:
        self._pools = pools

    def _first(self, find: Callable[[Any], T]) -> T:
        for pool in self._pools[:-1]:
            try:
                return find(pool)
            except KeyError:
                continue
        return find(self._pools[-1])

    def FindFileByName(self, name: str) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindFileContainingSymbol(symbol))

    def FindMessageTypeByName(self, name: str) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: Any, number: int) -> Any:  # noqa: N802
        return self._first(lambda pool: pool.FindExtensionByNumber(message, number))

    def FindAllExtensions(self, message: Any) -> Any:  # noqa: N802
        return [extension for pool in self._pools for extension in pool.FindAllExtensions(message)]


def with_reflection(services: Collection[Servable]) -> list[Servable]:
    """Return `services` plus the two gRPC reflection services that describe them."""
    pools = _DescriptorPools(POOL, descriptor_pool.Default())
    return list(ServerReflection.extend(list(services), pool=pools))
