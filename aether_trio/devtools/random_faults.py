"""Chooses faults by chance for a fault proxy: which, when and for how long.

    async with open_fault_proxy(address, RandomFaults(random.Random(7))) as proxy:
        ...

A connection lives for a random time, or for a random number of bytes, until a fault; bytes let a
cut fall into the middle of a frame. A fault that passes (a stall, a delay, a drip) is followed by
another one. The choices for a connection depend on the seed and on its number only; when they take
effect depends on the traffic.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import trio

from aether_trio.devtools.fault_flow import NetworkFault, NetworkFlow
from aether_trio.devtools.fault_proxy import ProxiedConnection

__all__ = ["EVERY_FAULT", "RandomFaults"]

EVERY_FAULT: Final[Mapping[NetworkFault, float]] = MappingProxyType(
    {
        NetworkFault.CUT: 3,
        NetworkFault.END: 2,
        NetworkFault.HALF_CLOSE: 2,
        NetworkFault.TRUNCATE: 3,
        NetworkFault.STALL: 3,
        NetworkFault.DELAY: 1,
        NetworkFault.DRIP: 1,
        NetworkFault.DROP: 1,
    }
)
"""Weights. What ends a connection is more than half of it."""


class RandomFaults:
    """A script of `open_fault_proxy` that injects random faults.

    Times are in seconds, and means of exponential distributions. `weights` says how often each
    fault is drawn. A fault happens after `mean_s`, or after `mean_bytes` of a direction; one that
    passes lasts `stall_s`. After that time both sides of a DROP are cut: nothing closes there, so
    only the kernel's keepalive would find it. Once `over()` is true nothing more is drawn.
    """

    def __init__(
        self,
        chance: random.Random,
        weights: Mapping[NetworkFault, float] = EVERY_FAULT,
        *,
        mean_s: float = 0.5,
        mean_bytes: int = 64 * 1024,
        stall_s: float = 0.3,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.weights = weights
        self.mean_s = mean_s
        self.mean_bytes = mean_bytes
        self.stall_s = stall_s
        self.over = over
        self._seed = chance.getrandbits(64)

    async def __call__(self, connection: ProxiedConnection) -> None:
        """Inject random faults into one connection until it ends."""
        chance = random.Random(f"{self._seed} {connection.number}")  # noqa: S311
        while not self.over():
            flow = chance.choice((connection.upstream, connection.downstream))
            await self._until_time_has_come(flow, chance)
            if self.over():
                return
            fault = chance.choices(list(self.weights), list(self.weights.values()))[0]
            await self._inject(fault, connection, flow, chance)

    async def _until_time_has_come(self, flow: NetworkFlow, chance: random.Random) -> None:
        seconds = chance.expovariate(1 / self.mean_s)
        size = flow.forwarded_bytes + int(chance.expovariate(1 / self.mean_bytes))
        if chance.random() < 0.5:
            await trio.sleep(seconds)
        else:
            # Not for ever: a direction may have nothing to say.
            with trio.move_on_after(4 * self.mean_s):
                await flow.until_forwarded(size)

    async def _inject(
        self, fault: NetworkFault, connection: ProxiedConnection, flow: NetworkFlow, chance: random.Random
    ) -> None:
        pause = chance.expovariate(1 / self.stall_s)
        ends = chance.choice((connection.cut, connection.end, flow.half_close))
        match fault:
            case NetworkFault.CUT:
                connection.cut()
            case NetworkFault.END:
                connection.end()
            case NetworkFault.HALF_CLOSE:
                flow.half_close()
            case NetworkFault.TRUNCATE:
                flow.truncate(chance.randrange(200), ends)
            case NetworkFault.DROP:
                flow.drop()
            case NetworkFault.STALL:
                flow.stall(pause)
            case NetworkFault.DELAY:
                flow.delay(pause / 4)
            case NetworkFault.DRIP:
                flow.drip(chance.randint(1, 100), 0.005)
        if fault in _PASSING:
            await trio.sleep(pause)
            flow.release()
        elif fault is NetworkFault.DROP:
            await trio.sleep(pause)
            connection.cut()
        else:
            await connection.ended()


_PASSING: Final = frozenset({NetworkFault.STALL, NetworkFault.DELAY, NetworkFault.DRIP})
