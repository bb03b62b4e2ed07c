"""A blocking PostgreSQL connection, for changes behind the back of the gateway.

asyncpg wants an asyncio loop, so that loop has its own thread; a call waits for it without
letting anything else run.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import asyncpg

T = TypeVar("T")

CALL_S: Final = 120.0  # a safety net against a hang


class PostgresSession:
    """Made by `open_postgres_session`. `connection` is to be used through `call` only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, dsn: str) -> None:
        self._loop = loop
        self.schema = ""
        """The one that its user has it look into, for that user to remember."""
        self.connection: Any = self.call(asyncpg.connect(dsn))

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run this on the loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S)

    def execute(self, sql: str) -> None:
        self.call(self.connection.execute(sql))

    def fetch(self, sql: str, *args: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.call(self.connection.fetch(sql, *args))]

    def close(self) -> None:
        self.call(self.connection.close())


@contextmanager
def open_postgres_session(dsn: str) -> Iterator[PostgresSession]:
    """A session of a role that may do everything, on its own loop."""
    loop = asyncio.SelectorEventLoop()
    thread = threading.Thread(target=loop.run_forever, name="postgres-session", daemon=True)
    thread.start()
    try:
        session = PostgresSession(loop, dsn)
        try:
            yield session
        finally:
            session.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CALL_S)
        loop.close()
