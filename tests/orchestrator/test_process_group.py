"""A process group: its lines, its end, how it is stopped. With real processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from aether_trio.orchestrator import process_group
from aether_trio.orchestrator.launch_plan import LaunchPlan
from aether_trio.orchestrator.process_group import ProcessEnd, run_process

LONG_S = 300.0
IGNORES_SIGTERM = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


def launch(code: str, **changes: object) -> LaunchPlan:
    fields = {"command": (sys.executable, "-u", "-c", code), "environment": dict(os.environ), "directory": None}
    return LaunchPlan(**{**fields, **changes})  # type: ignore[arg-type]


class Run:
    """What a process has said, its id, and its end unless it was cancelled."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.pids: list[int] = []
        self.end: ProcessEnd | None = None


async def run(what: LaunchPlan, grace_s: float = LONG_S, *, cancel_after: int = 0) -> Run:
    """Run it to its end, or cancel it when it has said so many lines."""
    made = Run()

    def heard(line: str) -> None:
        made.lines.append(line)
        if len(made.lines) == cancel_after:
            scope.cancel()

    with trio.fail_after(LONG_S), trio.CancelScope() as scope:
        made.end = await run_process(what, on_line=heard, on_started=made.pids.append, grace_s=grace_s)
    assert scope.cancelled_caught is bool(cancel_after)
    return made


def is_there(pid: int) -> bool:
    """Whether it runs. A zombie whose parent does not care is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_every_line_is_heard_and_the_end_told() -> None:
    code = "import sys; print('one'); print('two', file=sys.stderr); print(); print('last', end=''); sys.exit(3)"
    made = await run(launch(code))
    assert made.lines == ["one", "two", "", "last"]
    assert made.end is not None
    assert (made.end.returncode, made.end.last_line) == (3, "last")
    assert str(made.end).startswith("ended with exit code 3 after ")
    assert str(made.end).endswith("the last it said was: last")
    (pid,) = made.pids
    assert not is_there(pid)


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("print('x' * 2500)", ["x" * 1000, "x" * 1000, "x" * 500]),
        ("import os; os.write(1, b'\\xffa\\r\\n')", ["\ufffda"]),
        ("import os, sys; print(repr(sys.stdin.read()), os.getpgid(0) == os.getpid())", ["'' True"]),
    ],
    ids=["a line that never ends is shown in pieces", "bytes that are no text are shown", "no input, an own group"],
)
async def test_what_it_says(code: str, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "MAX_LINE_BYTES", 1000)
    assert (await run(launch(code))).lines == lines


async def test_a_command_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        await run(launch("", command=("/nowhere/tool",)))


async def test_the_rule_at_the_end_of_a_traceback_of_a_group_is_no_last_word() -> None:
    code = "raise ExceptionGroup('Exceptions from Trio nursery', [ValueError('too hot')])"
    made = await run(launch(code))
    assert made.lines[-1].strip() == "+" + "-" * 36
    assert str(made.end).endswith("the last it said was: | ValueError: too hot")


async def test_a_signal_is_named() -> None:
    made = await run(launch("import os; os.kill(os.getpid(), 9)"))
    assert str(made.end).startswith("ended by SIGKILL after ")


async def test_cancelling_lets_it_say_goodbye() -> None:
    code = """
import signal, sys, time
def bye(*_):
    print("goodbye"); sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print("ready")
time.sleep(600)
"""
    made = await run(launch(code), cancel_after=1)
    assert made.lines == ["ready", "goodbye"]
    assert not is_there(made.pids[0])


async def test_who_does_not_obey_is_killed_and_what_it_has_started_too() -> None:
    code = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(other.pid)
time.sleep(600)
"""
    made = await run(launch(code), 0.2, cancel_after=1)
    assert not is_there(made.pids[0])
    with trio.fail_after(LONG_S):
        while is_there(int(made.lines[0])):
            await trio.sleep(0.01)


async def test_what_signals_do_not_reach_is_ended_by_its_own_command(tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    made = await run(launch(IGNORES_SIGTERM, kill=("touch", str(mark))), 0.1, cancel_after=1)
    assert mark.exists()
    assert not is_there(made.pids[0])


async def test_a_pipe_that_other_processes_keep_open_delays_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "LAST_WORDS_S", 0.1)
    code = """
import subprocess, sys
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(other.pid)
"""
    made = await run(launch(code))
    try:
        assert made.end is not None
        assert made.end.returncode == 0
        assert is_there(int(made.lines[0]))
    finally:
        os.kill(int(made.lines[0]), 9)


class Printer:
    """A process that has much to say, of which the test decides when it ends."""

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks
        self.stdout = self

    def __aiter__(self) -> Printer:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._chunks:
            raise StopAsyncIteration
        self._chunks -= 1
        return b"x" * 1023 + b"\n" + b"y" * 1023 + b"\n"


@pytest.mark.parametrize(("chunks", "seconds"), [(512, 0), (512 + 1, 2048 / process_group.RATE_BYTES_S), (2048, 6)])
async def test_a_process_that_prints_without_end_is_slowed_down(
    autojump_clock: trio.testing.MockClock, chunks: int, seconds: float
) -> None:
    """Otherwise no other task runs in its orchestrator, or in a gateway beside it."""
    lines: list[str] = []
    ended, heard_all = trio.Event(), trio.Event()
    since = trio.current_time()
    await process_group._read(Printer(chunks), process_group._Lines(lines.append), ended, heard_all)  # type: ignore[arg-type]
    assert len(lines) == 2 * chunks
    assert trio.current_time() - since == pytest.approx(seconds)


async def test_what_one_has_said_at_its_end_is_heard_without_a_wait(autojump_clock: trio.testing.MockClock) -> None:
    lines: list[str] = []
    ended, heard_all = trio.Event(), trio.Event()
    since = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process_group._read, Printer(4096), process_group._Lines(lines.append), ended, heard_all)
        await trio.sleep(1)
        ended.set()
        await heard_all.wait()
    assert len(lines) == 2 * 4096
    assert trio.current_time() - since == 1


WRAPPER = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-u", "-c", {code!r}], **{how})
print(child.pid, flush=True)
"""
OBEYS = "import time; time.sleep(600)"


@pytest.mark.parametrize("pipe", ["inherited", "its own"])
@pytest.mark.parametrize(("code", "grace_s"), [(OBEYS, LONG_S), (IGNORES_SIGTERM, 0.2)])
async def test_what_a_wrapper_has_started_ends_with_it(code: str, grace_s: float, pipe: str) -> None:
    how = "{}" if pipe == "inherited" else "dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"
    made = await run(launch(WRAPPER.format(code=code, how=how)), grace_s)
    assert made.end is not None
    assert made.end.returncode == 0
    assert not is_there(int(made.lines[0]))


async def test_what_has_outlived_a_process_that_was_stopped_ends_too() -> None:
    code = WRAPPER.format(code=IGNORES_SIGTERM, how="{}") + "import time; time.sleep(600)"
    made = await run(launch(code), 0.2, cancel_after=2)  # the child's number, and "ready"
    assert not any(is_there(int(line)) for line in made.lines if line.isdigit())


@pytest.mark.parametrize(("code", "killed"), [("import os; os.kill(os.getpid(), 9)", True), ("", False)])
async def test_a_container_whose_client_was_killed_is_ended(tmp_path: Path, code: str, killed: bool) -> None:
    mark = tmp_path / "killed"
    await run(launch(code, kill=("touch", str(mark))))
    assert mark.exists() is killed
