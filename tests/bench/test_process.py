"""Reading other processes, and the echo that is the unit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bench.echo import EchoProcess
from bench.process import FamilyProbe, MachineProbe, ProcessGone, ProcessProbe, SeveralProbes
from bench.schedule import Schedule

BURN = "import sys, time\nwhile time.process_time() < 0.2: pass\nheap = bytearray(40 << 20)\nprint(flush=True)\nsys.stdin.read()"


@pytest.fixture
def burner() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has used 0.2 s of CPU and holds 40 MiB."""
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_cpu_and_memory_of_another_process(burner: subprocess.Popen[bytes]) -> None:
    probe = ProcessProbe([burner.pid])
    assert 200_000_000 <= probe.cpu_ns() < 20_000_000_000
    assert 200_000_000 <= probe.main_thread_ns() <= probe.cpu_ns()
    assert probe.rss_kib() > 40 * 1024


def test_several_processes_are_added_up(burner: subprocess.Popen[bytes]) -> None:
    assert ProcessProbe([burner.pid, os.getpid()]).rss_kib() > ProcessProbe([burner.pid]).rss_kib()


def test_ticks_serve_where_a_clock_fails(burner: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(clock: int) -> int:
        raise PermissionError(clock)

    monkeypatch.setattr(time, "clock_gettime_ns", refuse)
    assert ProcessProbe([burner.pid]).cpu_ns() >= 150_000_000


def test_a_process_that_is_gone_is_an_error(burner: subprocess.Popen[bytes]) -> None:
    burner.kill()
    burner.wait()
    with pytest.raises(ProcessGone):
        ProcessProbe([burner.pid]).cpu_ns()
    with pytest.raises(ProcessGone):
        ProcessProbe([burner.pid]).rss_kib()


FAMILY = """
import os, subprocess, sys
burn = [sys.executable, "-c", "import sys, time\\nwhile time.process_time() < 0.2: pass\\nprint(flush=True)\\nsys.stdin.read()"]
subprocess.run(burn, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # one that has ended
with subprocess.Popen(burn, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
    child.stdout.readline()
    print(flush=True)
    sys.stdin.read()
"""


def test_a_family_is_counted_with_the_children_that_live_and_those_that_have_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        alone, family = ProcessProbe([parent.pid]), FamilyProbe(parent.pid)
        assert family.cpu_ns() - alone.cpu_ns() >= 380_000_000  # ticks of the one that has ended
        assert family.rss_kib() > alone.rss_kib()
        together = SeveralProbes([family, ProcessProbe([os.getpid()])])
        assert together.cpu_ns() > family.cpu_ns()
        assert together.rss_kib() > family.rss_kib()
        assert together.main_thread_ns() == 0
        parent.stdin.close()  # type: ignore[union-attr]
    with pytest.raises(ProcessGone):
        family.cpu_ns()


def test_the_cpu_of_a_process_is_in_the_machines() -> None:
    machine = MachineProbe()
    before, threads = machine.machine_ns(), machine.kernel_ns()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    after = machine.machine_ns()
    assert before is not None
    assert after is not None
    assert after > before  # in ticks, which a busy machine may charge to another program
    assert threads is None or threads <= (machine.kernel_ns() or 0)


def test_a_paced_echo_window_is_timed_from_the_intended_rounds() -> None:
    took: list[int] = []
    with EchoProcess(4) as echo:
        window = echo.paced_window(0.5, Schedule(2000.0), took.append)
        closed = echo.window(0.1)
    assert window.count == len(took) > 0
    assert all(ns > 0 for ns in took)
    assert window.cpu_us
    assert closed.count > 0  # rounds that a closed loop adds have no schedule
    assert len(took) == window.count


def test_an_echo_window_counts_rounds_and_the_cpu_of_the_server() -> None:
    with EchoProcess() as echo:
        windows = [echo.window(0.5) for _ in range(2)]
    assert all(window.count >= 10 and window.cpu_us and window.load_cpu_ns for window in windows)
