"""Server processes that were sent something that commits, and whose connection was lost before they answered.

    the client's side      COMMIT sent ──▶ connection lost
    the server's side      has committed, or commits when the bytes arrive, which may take long: something in between keeps them

What a lost process has not committed by the moment in which it ends it never will. So before anything else is written it is ended, and then
what is committed can be looked up.

A process is known by its id and the moment of its start, as ids are used again. On another server (after a failover) there is no such
process, and what it has committed came with the log, or did not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import asyncpg

LOOK_S: Final = 0.02
"""Between two looks at a process that is at work or about to end."""

# One that waits for a standby has committed, and to end it would only hide that the standby does not have it yet.
_END: Final = """
    SELECT CASE WHEN wait_event = 'SyncRep' THEN false ELSE pg_terminate_backend(pid) END FROM pg_stat_activity
    WHERE pid = $1 AND backend_start = $2
"""


class Backend(NamedTuple):
    """A server process."""

    pid: int
    started: Any


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that knows its server process, also behind a pooler. `backend` is set once it is open."""

    __slots__ = ("backend",)

    backend: Backend


class Lost:
    """The lost processes of a pool of connections. Runs on the asyncio side."""

    def __init__(self) -> None:
        self._backends: dict[Backend, Callable[[], None] | None] = {}

    def __bool__(self) -> bool:
        return bool(self._backends)

    def __contains__(self, backend: Backend) -> bool:
        return backend in self._backends

    def add(self, connection: Any) -> Backend:
        """This connection is lost, and its process may commit."""
        backend: Backend = connection.backend
        self._backends.setdefault(backend, None)
        return backend

    def when_ended(self, backend: Backend, call: Callable[[], None]) -> None:
        """Call this when that process is known to be gone."""
        self._backends[backend] = call

    async def end_all(self, connection: Any) -> None:
        """Return when all of them are gone. `connection` is a good one, outside of a transaction."""
        while self._backends:
            backend = next(iter(self._backends))
            while await connection.fetch(_END, *backend):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)  # nobody tells of the end of another process
            call = self._backends.pop(backend, None)
            if call is not None:
                call()
