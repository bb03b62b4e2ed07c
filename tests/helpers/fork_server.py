"""The process that `forked.py` asks to run modules: each in a fork of it.

It has imported what `aether` needs, which takes longer than most commands. It runs as
`python -W error -m tests.helpers.fork_server FD`, where FD is a listening Unix socket. A connection
is one process: it brings a JSON request and the files for standard input, output and error, and
gets the process id, then the status of `waitpid`, as four bytes each. It ends when its own standard
input ends, as then the tests have ended.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import struct
import sys
import time
import warnings
from pathlib import Path
from typing import Any, TextIO

from aether_trio.cli.app import COMMANDS

MODULES = (
    *(f"aether_trio.cli.{module}" for module, _ in COMMANDS.values()),
    "aether_trio.cli.connect",
    "aether_trio.cli.running",
    "aether_trio.gateway.gateway",
    "aether_trio.storage.postgres.database",
    "aether_trio.storage.sqlite.database",
)
"""Imported before the first fork."""

LENGTH = struct.Struct("!i")
LIMITS = sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_")})
MAX_REQUEST_BYTES = 8 << 20


def serve(listener: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; return None at the end, and the request in each child."""
    running: dict[int, socket.socket] = {}
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes.fileno())
    with listener, woken, wakes, selectors.DefaultSelector() as selector:
        for ready in (0, woken, listener):
            selector.register(ready, selectors.EVENT_READ)
        while True:
            keys = {key.fileobj for key, _ in selector.select()}
            if 0 in keys:
                signal.set_wakeup_fd(-1)
                return None
            if woken in keys:
                woken.recv(4096)
                _reap(running)
            if listener not in keys:
                continue
            connection, _ = listener.accept()
            request, files = _receive(connection)
            child = os.fork()
            if child:
                for file in files:
                    os.close(file)
                running[child] = connection
                connection.sendall(LENGTH.pack(child))
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for other in (connection, *running.values()):
                other.close()
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            return request


def _reap(running: dict[int, socket.socket]) -> None:
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        with running.pop(child) as connection:
            try:
                connection.sendall(LENGTH.pack(status))
            except ConnectionError:
                pass  # the test did not wait for it


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, files, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
    (length,) = LENGTH.unpack(data)
    body = bytearray()
    while len(body) < length:
        body += connection.recv(min(length - len(body), MAX_REQUEST_BYTES))
    request: dict[str, Any] = json.loads(body)
    return request, files


def become(request: dict[str, Any]) -> None:
    """Make of this process what a new interpreter would be for the request."""
    if request["session"]:
        os.setsid()
    if request["group"] >= 0:
        os.setpgid(0, request["group"])
    os.umask(request["umask"])
    for one, limit in request["limits"]:
        if resource.getrlimit(one) != tuple(limit):
            resource.setrlimit(one, tuple(limit))
    os.chdir(request["cwd"])
    environment = {os.fsencode(name): os.fsencode(value) for name, value in request["env"].items()}
    os.environb.clear()
    os.environb.update(environment)
    time.tzset()
    sys.argv[:] = ["-m", *request["arguments"]]
    sys.orig_argv[:] = request["command"]
    named = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:] = [str(Path.cwd()), *named, *(one for one in SITE if one not in named)]
    sys.warnoptions[:] = request["warnings"]
    warnings.resetwarnings()
    warnings.filters[:] = FILTERS  # type: ignore[index]  # a list, which the stubs call a sequence
    for action in request["warnings"]:
        warnings.simplefilter(action)
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = _standard(sys.stdin, 0, "r", unbuffered)
    sys.stdout = sys.__stdout__ = _standard(sys.stdout, 1, "w", unbuffered)
    sys.stderr = sys.__stderr__ = _standard(sys.stderr, 2, "w", unbuffered)


def _standard(old: TextIO, number: int, mode: str, unbuffered: bool) -> TextIO:
    """Return what the interpreter makes of a standard file at its start."""
    whole = not (unbuffered and mode == "w")
    file = open(number, mode + "b", buffering=-1 if whole else 0, closefd=False)  # noqa: SIM115
    raw = file.raw if whole else file  # type: ignore[attr-defined]
    raw.name = f"<{('stdin', 'stdout', 'stderr')[number]}>"
    text = io.TextIOWrapper(
        file,
        old.encoding,
        old.errors,
        newline="\n",
        line_buffering=not unbuffered and (number == 2 or raw.isatty()),
        write_through=unbuffered,
    )
    text.mode = mode  # type: ignore[misc]
    return text


if __name__ == "__main__":
    # Made with -W error; these are what an interpreter without that option has.
    FILTERS = [one for one in warnings.filters if one[:3] != ("error", None, Warning)]
    SITE = sys.path[1:]  # PYTHONPATH is not set here
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is not None:
        become(asked)
        # At the end of the main module, so that its exceptions, SystemExit and Ctrl-C end the
        # interpreter as they end a new one.
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
