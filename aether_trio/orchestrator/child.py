"""A process that an orchestrator has started: its lines, its end, and how it is made to end.

    async with trio.open_nursery() as nursery:
        ended = await run_child(launch, on_line=print, on_started=..., grace_s=10)

It has a process group of its own, so Ctrl-C in a terminal reaches the orchestrator alone and a signal reaches what it has started itself.
Cancelling `run_child` is how it is stopped: SIGTERM to the group, `grace_s` to obey, then SIGKILL. When the process ends and what it has
started lives on, the rest of the group is stopped in the same way: a wrapper that has ended leaves nothing behind that could still be
connected. `run_child` returns or raises only when the group is gone. What has made itself a session of its own is out of reach.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from aether_trio.model.limits import KIB
from aether_trio.orchestrator.launches import Launch

MAX_LINE_BYTES: Final = 8 * KIB
"""A longer line is shown in pieces."""
LAST_WORDS_S: Final = 1.0
"""After its end, for what is still in the pipe. Others that it has started may hold the pipe open for ever."""
RATE_BYTES_S: Final = 512 * KIB
BURST_S: Final = 2.0
"""What it prints is shown at that rate, after so many seconds' worth at once. One that prints more waits, and nobody else does."""
KILL_S: Final = 10.0
"""For the command that ends what signals do not reach."""
LOOK_S: Final = 0.05
"""Between looks at a group whose first process has ended."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process has ended. `returncode` is negative for a signal; `lived_s` seconds; `last_line` what it printed last."""

    returncode: int
    lived_s: float
    last_line: str

    def __str__(self) -> str:
        if self.returncode < 0:
            number = -self.returncode
            how = f"by {signal.Signals(number).name}" if number in set(signal.Signals) else f"by signal {number}"
        else:
            how = f"with exit code {self.returncode}"
        said = f"; the last it said was: {self.last_line}" if self.last_line and self.returncode else ""
        return f"ended {how} after {self.lived_s:.1f} s{said}"


class _Lines:
    """Bytes in, lines out."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""
        self.last = ""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._give(line)
        while len(self._rest) >= MAX_LINE_BYTES:
            self._give(self._rest[:MAX_LINE_BYTES])
            self._rest = self._rest[MAX_LINE_BYTES:]

    def end(self) -> None:
        if self._rest:
            self._give(self._rest)
            self._rest = b""

    def _give(self, line: bytes) -> None:
        for start in range(0, max(len(line), 1), MAX_LINE_BYTES):
            text = line[start : start + MAX_LINE_BYTES].decode(errors="replace").rstrip("\r")
            self.last = text.strip() or self.last
            self._on_line(text)


async def run_child(
    launch: Launch, *, on_line: Callable[[str], None], on_started: Callable[[int], None], grace_s: float
) -> Ended:
    """Start it, and return when it has ended. Raises OSError when it cannot be started.

    `on_started` is told its process id; neither callback may wait.
    """
    since = trio.current_time()
    process = await trio.lowlevel.open_process(
        launch.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(launch.environment),
        cwd=launch.directory,
        start_new_session=True,
    )
    on_started(process.pid)
    lines = _Lines(on_line)
    try:
        async with trio.open_nursery() as nursery:
            ended, heard_all = trio.Event(), trio.Event()
            nursery.start_soon(_read, process, lines, ended, heard_all)
            await process.wait()
            ended.set()
            with trio.move_on_after(LAST_WORDS_S):
                await heard_all.wait()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await _stop(process, lines, launch, grace_s)
    assert process.returncode is not None
    return Ended(process.returncode, trio.current_time() - since, lines.last)


async def _read(process: trio.Process, lines: _Lines, ended: trio.Event, heard_all: trio.Event) -> None:
    """What it prints, as it comes; calmly, until it has ended."""
    assert process.stdout is not None
    paid_s = 0.0
    async for chunk in process.stdout:
        lines.feed(bytes(chunk))
        now_s = trio.current_time()
        paid_s = max(paid_s, now_s) + len(chunk) / RATE_BYTES_S
        with trio.move_on_after(max(paid_s - now_s - BURST_S, 0)):
            await ended.wait()
    heard_all.set()


async def _stop(process: trio.Process, lines: _Lines, launch: Launch, grace_s: float) -> None:
    """SIGTERM, a while, SIGKILL; what it says in the meantime is still heard. Nothing, when all of it has ended."""
    if launch.kill and process.returncode:
        await _kill_by(launch)  # its client has ended by a mistake or a signal, and it may run on
    if process.returncode is None or _lives(process.pid):
        async with trio.open_nursery() as nursery:
            ended, heard_all = trio.Event(), trio.Event()
            nursery.start_soon(_read, process, lines, ended, heard_all)
            _signal(process, signal.SIGTERM)
            gone = False
            with trio.move_on_after(grace_s):
                await _wait_for_group(process)
                gone = True
            if not gone:
                if launch.kill:
                    await _kill_by(launch)
                _signal(process, signal.SIGKILL)
                await _wait_for_group(process)
            ended.set()
            with trio.move_on_after(LAST_WORDS_S):
                await heard_all.wait()
            nursery.cancel_scope.cancel()
    lines.end()
    if process.stdout is not None:
        await process.stdout.aclose()


async def _wait_for_group(process: trio.Process) -> None:
    await process.wait()
    while _lives(process.pid):  # noqa: ASYNC110  # nothing tells of the end of another's child
        await trio.sleep(LOOK_S)


def _lives(group: int) -> bool:
    """Whether a process of this group runs. Its number is given to no other group while one does.

    A zombie does not run; where nobody takes care of orphans, those stay for ever.
    """
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    if not Path("/proc/self/stat").exists():
        return True
    with os.scandir("/proc") as entries:
        return any(_runs_in(Path(entry.path), group) for entry in entries if entry.name.isdigit())


def _runs_in(process: Path, group: int) -> bool:
    with suppress(OSError, ValueError):
        state, _, of_group, *_ = (process / "stat").read_bytes().rpartition(b")")[2].split()
        return int(of_group) == group and state not in (b"Z", b"X")
    return False


def _signal(process: trio.Process, number: signal.Signals) -> None:
    """To its whole group. One of it has not been waited for, or runs, so its id is still its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def kill_group(pid: int) -> None:
    """SIGKILL to a child for which `run_child` still waits, and to what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


async def _kill_by(launch: Launch) -> None:
    with trio.move_on_after(KILL_S), suppress(OSError):
        await trio.run_process(
            launch.kill, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, env=dict(launch.environment)
        )
