"""A process group: its lines, its end, how it is stopped. With real processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from aether_trio.orchestrator import process_group
from aether_trio.orchestrator.launch_plan import LaunchPlan
from aether_trio.orchestrator.process_group import ProcessEnd, run_process

LONG_S = 300.0


def launch(code: str, **changes: object) -> LaunchPlan:
    fields = {"command": (sys.executable, "-u", "-c", code), "environment": dict(os.environ), "directory": None}
    return LaunchPlan(**{**fields, **changes})  # type: ignore[arg-type]


async def run(
    what: LaunchPlan,
    on_line: Callable[[str], None] = lambda _: None,
    grace_s: float = LONG_S,
    pids: list[int] | None = None,
) -> ProcessEnd:
    with trio.fail_after(LONG_S):
        return await run_process(
            what, on_line=on_line, on_started=(pids if pids is not None else []).append, grace_s=grace_s
        )


def is_there(pid: int) -> bool:
    """Whether it runs. A zombie whose parent does not care is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_every_line_is_heard_and_the_end_told() -> None:
    lines: list[str] = []
    pids: list[int] = []
    ended = await run(
        launch("import sys; print('one'); print('two', file=sys.stderr); print(); print('last', end=''); sys.exit(3)"),
        lines.append,
        pids=pids,
    )
    assert lines == ["one", "two", "", "last"]
    assert (ended.returncode, ended.last_line) == (3, "last")
    assert str(ended).startswith("ended with exit code 3 after ")
    assert str(ended).endswith("the last it said was: last")
    assert len(pids) == 1
    assert not is_there(pids[0])


async def test_a_line_that_never_ends_is_shown_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "MAX_LINE_BYTES", 1000)
    lines: list[str] = []
    await run(launch("print('x' * 2500)"), lines.append)
    assert [len(line) for line in lines] == [1000, 1000, 500]


async def test_bytes_that_are_no_text_are_shown_all_the_same() -> None:
    lines: list[str] = []
    await run(launch("import os; os.write(1, b'\\xffa\\r\\n')"), lines.append)
    assert lines == ["\ufffda"]


async def test_it_reads_nothing_and_has_a_group_of_its_own() -> None:
    lines: list[str] = []
    await run(launch("import os, sys; print(repr(sys.stdin.read()), os.getpgid(0) == os.getpid())"), lines.append)
    assert lines == ["'' True"]


async def test_a_command_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        await run(launch("", command=("/nowhere/tool",)))


async def test_a_signal_is_named() -> None:
    ended = await run(launch("import os; os.kill(os.getpid(), 9)"))
    assert str(ended).startswith("ended by SIGKILL after ")


async def cancelled_after_first_line(code: str, grace_s: float, kill: tuple[str, ...] = ()) -> tuple[list[str], int]:
    """Cancel a process when it has printed a line; return (all lines, process id)."""
    lines: list[str] = []
    pids: list[int] = []
    scope = trio.CancelScope()

    def heard(line: str) -> None:
        lines.append(line)
        scope.cancel()

    with scope:
        await run(launch(code, kill=kill), heard, grace_s, pids)
    assert scope.cancelled_caught
    return lines, pids[0]


async def test_cancelling_lets_it_say_goodbye() -> None:
    code = """
import signal, sys, time
def bye(*_):
    print("goodbye"); sys.exit(0)
signal.signal(signal.SIGTERM, bye)
print("ready")
time.sleep(600)
"""
    lines, pid = await cancelled_after_first_line(code, LONG_S)
    assert lines == ["ready", "goodbye"]
    assert not is_there(pid)


async def test_who_does_not_obey_is_killed_and_what_it_has_started_too() -> None:
    code = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(other.pid)
time.sleep(600)
"""
    lines, pid = await cancelled_after_first_line(code, 0.2)
    assert not is_there(pid)
    with trio.fail_after(LONG_S):
        while is_there(int(lines[0])):
            await trio.sleep(0.01)


async def test_what_signals_do_not_reach_is_ended_by_its_own_command(tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'); time.sleep(600)"
    _, pid = await cancelled_after_first_line(code, 0.1, ("touch", str(mark)))
    assert mark.exists()
    assert not is_there(pid)


async def test_a_pipe_that_other_processes_keep_open_delays_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "LAST_WORDS_S", 0.1)
    code = """
import subprocess, sys
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(other.pid)
"""
    lines: list[str] = []
    try:
        ended = await run(launch(code), lines.append)
        assert ended.returncode == 0
        assert is_there(int(lines[0]))
    finally:
        os.kill(int(lines[0]), 9)


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
IGNORES_SIGTERM = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


@pytest.mark.parametrize("pipe", ["inherited", "its own"])
@pytest.mark.parametrize(("code", "grace_s"), [(OBEYS, LONG_S), (IGNORES_SIGTERM, 0.2)])
async def test_what_a_wrapper_has_started_ends_with_it(code: str, grace_s: float, pipe: str) -> None:
    how = "{}" if pipe == "inherited" else "dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"
    lines: list[str] = []
    ended = await run(launch(WRAPPER.format(code=code, how=how)), lines.append, grace_s)
    assert ended.returncode == 0
    assert not is_there(int(lines[0]))


async def test_what_has_outlived_a_process_that_was_stopped_ends_too() -> None:
    code = WRAPPER.format(code=IGNORES_SIGTERM, how="{}") + "import time; time.sleep(600)"
    lines: list[str] = []
    scope = trio.CancelScope()

    def heard(line: str) -> None:
        lines.append(line)
        if "ready" in lines and len(lines) == 2:
            scope.cancel()

    with scope:
        await run(launch(code), heard, grace_s=0.2)
    assert not any(is_there(int(line)) for line in lines if line.isdigit())


async def test_a_container_whose_client_was_killed_is_ended(tmp_path: Path) -> None:
    mark = tmp_path / "killed"
    await run(launch("import os; os.kill(os.getpid(), 9)", kill=("touch", str(mark))))
    assert mark.exists()
    mark.unlink()
    await run(launch("", kill=("touch", str(mark))))
    assert not mark.exists()
