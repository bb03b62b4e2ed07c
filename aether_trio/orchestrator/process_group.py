"""Runs an agent's process and its process group; stops all of the group.

The process has a separate process group, so Ctrl-C in a terminal reaches the orchestrator alone,
and a signal to the group reaches the processes that it has started. Cancelling `run_process` stops
it: SIGTERM to the group, `grace_s` to obey, then SIGKILL. When the process has ended and others of
its group run, they are stopped in the same way. `run_process` returns or raises only when the group
has ended. It does not reach a process that has called setsid.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from aether_trio.model.limits import KIB
from aether_trio.model.text import escaped
from aether_trio.orchestrator.launch_plan import LaunchPlan

MAX_LINE_BYTES: Final = 8 * KIB  # a longer line is shown in pieces
LAST_WORDS_S: Final = 1.0  # seconds for reading the pipe of an ended process
RATE_BYTES_S: Final = 512 * KIB
BURST_S: Final = 2.0  # seconds' worth of output that is read at once
KILL_S: Final = 10.0  # seconds for the command that kills what signals do not reach
LOOK_S: Final = 0.05  # seconds between two looks at a group whose first process has ended


LAST_LINES: Final = 12  # of a process's output, that a report of its failure has
LAST_CHARACTERS: Final = 2_000  # of all of these, the latest
LINE_CHARACTERS: Final = 300  # of one of them


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How an agent's process ended; `returncode` is negative for a signal."""

    returncode: int
    lived_s: float
    last_lines: tuple[str, ...] = ()

    @property
    def well(self) -> bool:
        """Whether it has ended with exit code 0."""
        return self.returncode == 0

    @property
    def last_line(self) -> str:
        """The last line with a letter or digit: tracebacks of groups end with a rule."""
        said = [one.strip() for one in reversed(self.last_lines) if one.strip()]
        return next((one for one in said if any(map(str.isalnum, one))), said[0] if said else "")

    @property
    def report(self) -> str:
        """How it ended, with its last lines; their control characters are escaped."""
        found: list[str] = []
        left = LAST_CHARACTERS
        for one in reversed([one for one in self.last_lines if one.strip()]):
            text = escaped(one.rstrip(), LINE_CHARACTERS)
            left -= len(text) + 1
            if left < 0:
                break
            found.append(text)
        said = "; its last lines:\n" + "\n".join(reversed(found)) if found and not self.well else ""
        return f"its process {self._how}{said}"

    @property
    def _how(self) -> str:
        if self.returncode < 0:
            number = -self.returncode
            how = f"by {signal.Signals(number).name}" if number in set(signal.Signals) else f"by signal {number}"
        else:
            how = f"with exit code {self.returncode}"
        return f"ended {how} after {self.lived_s:.1f} s"

    def __str__(self) -> str:
        said = f"; the last it said was: {self.last_line}" if self.last_line and self.returncode else ""
        return f"{self._how}{said}"


class _Lines:
    """Splits a process's output into lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""
        self.last: deque[str] = deque(maxlen=LAST_LINES)

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
            if text.strip():
                self.last.append(text)
            self._on_line(text)


async def run_process(
    plan: LaunchPlan, *, on_line: Callable[[str], None], on_started: Callable[[int], None], grace_s: float
) -> ProcessEnd:
    """Run a planned process to its end. Raises OSError if it cannot start.

    `on_started` gets the process id. Neither callback may wait.
    """
    since = trio.current_time()
    process = await trio.lowlevel.open_process(
        plan.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(plan.environment),
        cwd=plan.directory,
        start_new_session=True,
    )
    on_started(process.pid)
    lines = _Lines(on_line)
    try:
        async with _reading(process, lines):
            await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            await _stop(process, lines, plan, grace_s)
    assert process.returncode is not None
    return ProcessEnd(process.returncode, trio.current_time() - since, tuple(lines.last))


@asynccontextmanager
async def _reading(process: trio.Process, lines: _Lines) -> AsyncIterator[None]:
    """Read a process's output until its end within the block, and LAST_WORDS_S longer."""
    async with trio.open_nursery() as nursery:
        ended, heard_all = trio.Event(), trio.Event()
        nursery.start_soon(_read, process, lines, ended, heard_all)
        yield
        ended.set()
        with trio.move_on_after(LAST_WORDS_S):
            await heard_all.wait()
        nursery.cancel_scope.cancel()


async def _read(process: trio.Process, lines: _Lines, ended: trio.Event, heard_all: trio.Event) -> None:
    """Read a process's output, at RATE_BYTES_S until the process has ended."""
    assert process.stdout is not None
    paid_s = 0.0
    async for chunk in process.stdout:
        lines.feed(bytes(chunk))
        now_s = trio.current_time()
        paid_s = max(paid_s, now_s) + len(chunk) / RATE_BYTES_S
        with trio.move_on_after(max(paid_s - now_s - BURST_S, 0)):
            await ended.wait()
    heard_all.set()


async def _stop(process: trio.Process, lines: _Lines, plan: LaunchPlan, grace_s: float) -> None:
    """Stop the group: SIGTERM, `grace_s`, SIGKILL. Its output is read meanwhile."""
    if plan.kill and process.returncode:
        # The docker client has failed or was killed, and the container may run on.
        await _kill_by(plan)
    if process.returncode is None or _lives(process.pid):
        async with _reading(process, lines):
            _signal(process, signal.SIGTERM)
            with trio.move_on_after(grace_s) as grace:
                await _wait_for_group(process)
            if grace.cancelled_caught:
                if plan.kill:
                    await _kill_by(plan)
                _signal(process, signal.SIGKILL)
                await _wait_for_group(process)
    lines.end()
    if process.stdout is not None:
        await process.stdout.aclose()


async def _wait_for_group(process: trio.Process) -> None:
    await process.wait()
    while _lives(process.pid):  # noqa: ASYNC110  # the end of a grandchild has no event
        await trio.sleep(LOOK_S)


def _lives(group: int) -> bool:
    """Whether a process of this group runs; its number is not reused while one does."""
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
    """Signal a group with a process that runs or is not waited for: its id is in use."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def kill_group(pid: int) -> None:
    """Send SIGKILL to the group of a process for which `run_process` waits."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


async def _kill_by(plan: LaunchPlan) -> None:
    with trio.move_on_after(KILL_S), suppress(OSError):
        await trio.run_process(
            plan.kill, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, env=dict(plan.environment)
        )
