"""Server processes that may still commit although their connection is lost.

    the client's side      COMMIT sent ──▶ connection lost
    the server's side      has committed, or commits when the bytes arrive, which may be late

A process that has ended commits no more. So before a further group is written, the lost process is
ended, and then it can be looked up whether it has committed.

A process is known by its id and the moment of its start, as ids are used again. After a failover
the process does not exist on the new primary, and its commit has been replicated, or never will be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import asyncpg

LOOK_S: Final = 0.02
"""Between two looks at a process that has not ended yet."""

# A process that waits for a standby has committed; ending it would hide that the standby lags.
_END: Final = """
    SELECT CASE WHEN wait_event = 'SyncRep' THEN false ELSE pg_terminate_backend(pid) END FROM pg_stat_activity
    WHERE pid = $1 AND backend_start = $2
"""


class ServerProcess(NamedTuple):
    """One process of a PostgreSQL server, known by its id and start."""

    pid: int
    started: Any


class IdentifiedConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that knows its server process; `backend` is set once it is open."""

    __slots__ = ("backend",)

    backend: ServerProcess


class LostProcesses:
    """Server processes of a pool's lost connections that may still commit (asyncio)."""

    def __init__(self) -> None:
        self._backends: dict[ServerProcess, Callable[[], None] | None] = {}

    def __bool__(self) -> bool:
        return bool(self._backends)

    def __contains__(self, backend: ServerProcess) -> bool:
        return backend in self._backends

    def add(self, connection: Any) -> ServerProcess:
        """Note that this connection is lost, and that its process may commit."""
        backend: ServerProcess = connection.backend
        self._backends.setdefault(backend, None)
        return backend

    def when_ended(self, backend: ServerProcess, call: Callable[[], None]) -> None:
        """Call `call` when that server process is known to have ended."""
        self._backends[backend] = call

    async def end_all(self, connection: Any) -> None:
        """End all lost server processes through a good `connection`, and wait."""
        while self._backends:
            backend = next(iter(self._backends))
            while await connection.fetch(_END, *backend):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)  # the server does not tell of the end of a process
            call = self._backends.pop(backend, None)
            if call is not None:
                call()
