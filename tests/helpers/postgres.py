"""A real PostgreSQL server for tests, in a temporary directory.

It listens on a Unix socket only unless a port is asked for. Tests crash the server process, not the
machine: hence `fsync=off`.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from aether_trio.devtools.ports import held_port
from aether_trio.storage.postgres.embedded import FAST, EmbeddedPostgres


class PostgresServer(EmbeddedPostgres):
    """One server with its data directory; it may start and stop again and again."""

    def __init__(self, home: Path, *, durable: bool = False, port: int | None = None) -> None:
        super().__init__(home, port=port, settings={"max_connections": "100", **({} if durable else FAST)})
        self._names = itertools.count(1)

    def new_database(self) -> str:
        name = f"test_{next(self._names)}"
        self.psql(f"CREATE DATABASE {name} STRATEGY file_copy")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, also while sessions are connected to it."""
        self.psql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@contextmanager
def open_postgres_server(
    *, durable: bool = False, tcp: bool = False, standby_of: PostgresServer | None = None
) -> Iterator[PostgresServer]:
    """A running server, gone without a trace at the end."""
    # Not pytest's directories: those are for this user only, and their paths are too long for a
    # Unix socket.
    home = Path(tempfile.mkdtemp(prefix="aether-pg-"))
    home.chmod(0o755)
    ports = ExitStack()
    server = PostgresServer(home, durable=durable, port=ports.enter_context(held_port()) if tcp else None)
    try:
        if standby_of is not None:
            server.create_standby(standby_of)
        server.start()
        yield server
    finally:
        server.stop(signum=signal.SIGQUIT)
        ports.close()
        shutil.rmtree(home, ignore_errors=True)
