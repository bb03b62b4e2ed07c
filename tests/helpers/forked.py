"""Processes of `python -m aether_trio …` without the time that their imports take.

`run` and `ForkedProcess` are subprocess' `run` and `Popen`. A command of the form
`sys.executable [-W error] -m MODULE …` is run by a fork of one process for each worker of pytest,
which has imported the package (`fork_server.py`). It is a process as any other: it has its own
arguments, environment, directory, standard files, signals and end. What a fork cannot give it
starts as usual: another program, a variable that an interpreter reads at its start, an option as
preexec_fn. With the variable NEW_INTERPRETERS=1 all do, as tests of memory ask for; tests of the
start use subprocess.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import resource
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.fork_server import LENGTH, LIMITS

ROOT = str(Path(__file__).resolve().parents[2])
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "MALLOC_", "OPENSSL_", "GLIBC_")
"""Variables that an interpreter, or a library, reads once."""
READ_AGAIN = {"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}


class _Server:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._address: str | None = None

    def connect(self) -> socket.socket:
        with self._lock:
            if self._address is None:
                self._address = self._start()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        return connection

    def _start(self) -> str:
        directory = tempfile.TemporaryDirectory(prefix="aether-fork-")
        address = f"{directory.name}/socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(64)
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "tests.helpers.fork_server", str(listener.fileno())],
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,
                cwd=ROOT,
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            )

        def end() -> None:
            process.communicate()  # closes its standard input, at which it ends
            directory.cleanup()

        atexit.register(end)
        return address


_server = _Server()


class ForkedProcess(subprocess.Popen[Any]):
    """A Popen whose process is a fork of one with the package, if that can be."""

    _connection: socket.socket | None = None

    def _execute_child(  # type: ignore[override]
        self,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: bool,
        pass_fds: Sequence[int],
        cwd: Any,
        env: Mapping[str, str] | None,
        startupinfo: Any,
        creationflags: Any,
        shell: bool,
        p2cread: int,
        p2cwrite: int,
        c2pread: int,
        c2pwrite: int,
        errread: int,
        errwrite: int,
        restore_signals: bool,
        gid: Any,
        gids: Any,
        uid: Any,
        umask: int,
        start_new_session: bool,
        process_group: int,
    ) -> None:
        usual = not (executable or preexec_fn or pass_fds or shell) and close_fds and restore_signals
        usual = usual and gid is gids is uid is None and umask < 0
        request = _request(args, os.environ if env is None else env) if usual else None
        if request is None:
            super()._execute_child(  # type: ignore[misc]
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell,
                p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, restore_signals, gid, gids, uid, umask,
                start_new_session, process_group,
            )  # fmt: skip
            return
        directory = Path(cwd or ".").absolute()
        if not directory.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
        request |= {"cwd": str(directory), "session": start_new_session, "group": process_group, **_inherited()}
        body = json.dumps(request).encode()
        files = [p2cread, c2pwrite, errwrite]
        connection = _server.connect()
        try:
            given = [number if file == -1 else file for number, file in enumerate(files)]
            socket.send_fds(connection, [LENGTH.pack(len(body))], given)
            connection.sendall(body)
            (self.pid,) = LENGTH.unpack(_read(connection))
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._connection is None:
            return super()._try_wait(wait_flags)  # type: ignore[misc,no-any-return]
        if wait_flags & os.WNOHANG and not select.select([self._connection], [], [], 0)[0]:
            return 0, 0
        (status,) = LENGTH.unpack(_read(self._connection))
        self._connection.close()
        return self.pid, status

    def _internal_poll(self, *args: Any, **kwargs: Any) -> int | None:
        if self._connection is None:
            return super()._internal_poll(*args, **kwargs)  # type: ignore[misc,no-any-return]
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):  # type: ignore[attr-defined]
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def _read(connection: socket.socket) -> bytes:
    data = b""
    while len(data) < LENGTH.size:
        more = connection.recv(LENGTH.size - len(data))
        if not more:
            raise ConnectionError("tests/helpers/fork_server.py has ended; what it said is on standard error")
        data += more
    return data


def _inherited() -> dict[str, Any]:
    """Give what a process has from its parent, and a fork would have from the server."""
    status = Path("/proc/self/status").read_text()
    umask = next(line.split()[1] for line in status.splitlines() if line.startswith("Umask:"))
    return {"umask": int(umask, 8), "limits": [(one, resource.getrlimit(one)) for one in LIMITS]}


def _request(args: Any, env: Mapping[str, str]) -> dict[str, Any] | None:
    """Say what a fork is to run, or return None if a new interpreter has to run it."""
    if isinstance(args, (str, bytes, os.PathLike)) or env.get("NEW_INTERPRETERS"):
        return None
    command = [os.fspath(part) for part in args]
    if any(isinstance(part, bytes) for part in command) or command[:1] != [sys.executable]:
        return None
    strict = command[1:3] == ["-W", "error"]
    rest = command[3:] if strict else command[1:]
    if len(rest) < 2 or rest[0] != "-m" or rest[1].partition(".")[0] not in {"aether_trio", "tests"}:
        return None
    for name in {*env, *os.environ}:
        if name.startswith(READ_AT_START) and name not in READ_AGAIN and env.get(name) != os.environ.get(name):
            return None
    if env.get("PYTHONPATH", ROOT).split(os.pathsep)[0] != ROOT:
        return None
    return {
        "command": command,
        "module": rest[1],
        "arguments": rest[2:],
        "warnings": ["error"] if strict else [],
        "env": dict(env),
    }


def run(
    args: Sequence[Any],
    *,
    input: Any = None,  # noqa: A002  # as subprocess.run calls it
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Do what subprocess.run does."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with ForkedProcess(args, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
        done = subprocess.CompletedProcess(args, process.wait(), out, err)
    if check:
        done.check_returncode()
    return done
