"""Write numbers to a key and a checkpoint, read them back, and note the answers.

Each writes one number after another, wherever it is connected just then; of one that was not
answered it goes on to the next, so what its former connection may still have on its way is an older
number. What is read must never be older than what was answered, or read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from typing import Final

import trio

from aether_trio.client import AetherError, AgentClient, Client
from aether_trio.client.options import ClientOptions
from chaos.history import Kept, Outcome
from chaos.load import WORKSPACE, Load

MARK: Final = b"ledger|"
"""Every value begins so: by this the fault proxy knows a write of one of them (faults.py)."""
PER_S: Final = 8.0
KEEPERS: Final = 10
LAST_READS: Final = 300
"""Attempts at the end, each of which waits for a connection: more than there is time for."""


class Keepers:
    """Keepers write until the load is quiet, then read once more."""

    def __init__(self, load: Load, several: int = KEEPERS) -> None:
        self._load = load
        self._several = several

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(1, self._several + 1):
                nursery.start_soon(
                    self._load.stay, f"keeper-{number}", partial(self._make, str(number)), (self._key, self._checkpoint)
                )

    def _make(self, specifier: str, given: ClientOptions) -> Client:
        return AgentClient(
            f"aether://{self._load.address}", workspace=WORKSPACE, implementation="keeper", specifier=specifier, **given
        )

    async def _key(self, name: str, client: Client) -> None:
        key = f"ledger-{name}"

        async def write(value: bytes) -> None:
            await client.kv.put(key, value)

        async def read() -> bytes:
            return await client.kv.get(key)

        await self._keep(f"key of {name}", write, read)

    async def _checkpoint(self, name: str, client: Client) -> None:
        async def write(value: bytes) -> None:
            await client.checkpoints.save(value, name)

        async def read() -> bytes:
            found = await client.checkpoints.load(name)
            return found.data if found is not None else b""

        await self._keep(f"checkpoint of {name}", write, read)

    async def _keep(
        self, place: str, write: Callable[[bytes], Awaitable[None]], read: Callable[[], Awaitable[bytes]]
    ) -> None:
        load = self._load
        for number in count(1):
            if load.quiet:
                break
            await trio.sleep(load.chance.expovariate(PER_S))
            if load.quiet:
                break
            # Right before it is overwritten: whatever has come meanwhile is seen.
            await self._read(place, read)
            await self._write(place, number, write)
        # What was on its way at the last fault has had its time by now.
        for _ in range(LAST_READS):
            if await self._read(place, read):
                return
            await trio.sleep(0.1)

    async def _write(self, place: str, number: int, write: Callable[[bytes], Awaitable[None]]) -> None:
        started_s, outcome = self._load.now(), Outcome.IN_DOUBT
        # Not answered, or refused: it may have been written.
        with self._load.busy(), contextlib.suppress(AetherError):
            await write(MARK + b"%d" % number)
            outcome = Outcome.ACCEPTED
        self._load.history.kept.append(Kept(place, "wrote", number, outcome, started_s, self._load.now()))

    async def _read(self, place: str, read: Callable[[], Awaitable[bytes]]) -> bool:
        started_s = self._load.now()
        with self._load.busy():
            try:
                value = await read()
            except AetherError:
                return False
        number = int(value.removeprefix(MARK) or 0)
        self._load.history.kept.append(Kept(place, "read", number, Outcome.ACCEPTED, started_s, self._load.now()))
        return True
