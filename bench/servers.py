"""The server to measure: a gateway started here, or one that runs already.

A started gateway is the real one: `aether dev` with its SQLite log on a disk, synchronous FULL, on
a free port, on data that is thrown away afterwards. It gets SIGTERM at the end, and SIGKILL if it
does not leave.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.process import ProcessProbe

READY_SECONDS = 60.0
LEAVE_SECONDS = 30.0
STDERR_LINES = 20
PY_SPY_SUFFIXES = (".svg", ".json")
SAMPLER = "sampler"
COMMAND = ("-m", "aether_trio")
DATA = "data"


class ServerFailed(Exception):
    """The gateway did not start; the text ends with its output."""


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway's address and processes; `ready` is its ready file's content."""

    address: str
    probe: ProcessProbe | None
    data_dir: Path | None = None
    ready: Mapping[str, Any] = field(default_factory=dict)
    sampler: Path | None = None
    """The FIFO of its sampler, if it has one."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to get a target: its address, or the command of `aether` that starts it."""

    target: str | None = None
    pids: Sequence[int] = ()
    args: Sequence[str] = ()
    profile: Path | None = None
    data_root: Path | None = None
    command: Sequence[str] = ("dev",)
    sampled: bool = False
    """Whether the gateway has a sampler, with which its cost can be explained."""
    lay: Callable[[Path], None] | None = None
    """Writes what its data directory holds before it starts."""


@contextmanager
def serving(options: ServerOptions, scenario: str) -> Iterator[Target]:
    """Run a target for one scenario; it ends with the block, also by a signal."""
    if options.target:
        yield Target(options.target, ProcessProbe(options.pids) if options.pids else None)
        return
    with scratch(options.data_root) as place:
        if options.lay:
            options.lay(place / DATA)
        with gateway(options, scenario, place) as target:
            yield target


@contextmanager
def scratch(data_root: Path | None) -> Iterator[Path]:
    """A directory that is deleted at the end, also by Ctrl-C or SIGTERM."""
    with _terminated_like_interrupted():
        place = Path(tempfile.mkdtemp(prefix="aether-bench-", dir=data_root))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt in the main thread, so that data is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command(options: ServerOptions, scenario: str, place: Path) -> list[str]:
    """The command line of a gateway on `place`, under a profiler if one is asked for."""
    tail = ["--port", "0", "--ready-file", str(place / "ready.json"), "--data-dir", str(place / DATA), *options.args]
    if options.profile is None:
        sampler = ("-m", "bench.sampled", str(place / SAMPLER), *COMMAND[1:])
        started = sampler if options.sampled else COMMAND
        return [sys.executable, *started, *options.command, *tail]
    label = scenario.replace("/", "-")  # of another transport: "framed/kv"
    out = options.profile.with_name(f"{options.profile.stem}.{label}{options.profile.suffix or '.prof'}")
    if out.suffix in PY_SPY_SUFFIXES:
        kind = "flamegraph" if out.suffix == ".svg" else "speedscope"
        spy = ["py-spy", "record", "--format", kind, "--output", str(out), "--"]
        return [*spy, sys.executable, *COMMAND, *options.command, *tail]
    return [sys.executable, "-m", "bench.profiled", str(out), *COMMAND[1:], *options.command, *tail]


@contextmanager
def gateway(options: ServerOptions, scenario: str, place: Path) -> Iterator[Target]:
    """Run a gateway with its files in `place` until the block ends."""
    said = place / "output.txt"
    with said.open("wb") as output:
        process = subprocess.Popen(
            command(options, scenario, place),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for who measures
        )
    try:
        ready = _wait_ready(process, place / "ready.json", said)
        pid = int(ready["pid"])
        sampler = place / SAMPLER if options.sampled else None
        yield Target(str(ready["gateway"]), ProcessProbe([pid]), place / DATA, ready, sampler)
        if process.poll() is not None:
            raise ServerFailed(f"the gateway ended with {process.returncode} during the run\n{_tail(said)}")
        os.kill(pid, signal.SIGTERM)
        process.wait(LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"bench: the gateway did not leave within {LEAVE_SECONDS:.0f} s of SIGTERM", file=sys.stderr)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], ready: Path, said: Path) -> dict[str, Any]:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if ready.exists() and (text := ready.read_text()):
            try:
                answer: dict[str, Any] = json.loads(text)
            except ValueError:
                pass  # caught in the middle of a write
            else:
                return answer
        if process.poll() is not None:
            raise ServerFailed(f"the gateway ended with {process.returncode} before it was ready\n{_tail(said)}")
        time.sleep(0.02)
    raise ServerFailed(f"the gateway was not ready after {READY_SECONDS:.0f} s\n{_tail(said)}")


def _tail(said: Path) -> str:
    return "\n".join(said.read_text(errors="replace").splitlines()[-STDERR_LINES:])
