"""Run a module with a sampler of its CPU, which is off at first.

`python -m bench.sampled CONTROL MODULE [ARGS]`. CONTROL is a FIFO that is made here. "start" on it
has the kernel signal the main thread after each millisecond that the thread has used on a CPU, so
that waiting is never counted, and "stop" writes CONTROL.json: the stacks with their counts, and the
CPU nanoseconds of every thread. Until it is started, it costs nothing: a thread waits for the FIFO.
A call of C counts for the line that makes it, since Python handles the signal when the call
returns.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

INTERVAL_NS: Final = 1_000_000
DEPTH: Final = 100
SIGEV_THREAD_ID: Final = 4
PR_SET_PTRACER: Final = 0x59616D61
PR_SET_PTRACER_ANY: Final = -1

Stack = tuple[tuple[str, str, int], ...]
"""File, function and line of each frame, the innermost first."""


class _Event(ctypes.Structure):
    """The kernel's sigevent."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("rest", ctypes.c_int * 11),
    )


class _Interval(ctypes.Structure):
    """The kernel's itimerspec: the interval, and the first time."""

    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long), ("first_s", ctypes.c_long), ("first_ns", ctypes.c_long))


class Sampler:
    """Counts stacks of the main thread by its CPU time; make it in the main thread."""

    def __init__(self) -> None:
        self._stacks: Counter[Stack] = Counter()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        self._before: dict[str, int] = {}
        signal.signal(signal.SIGPROF, self._sample)
        # Let strace attach where only an ancestor may (Yama); elsewhere this is an error.
        self._libc.prctl(PR_SET_PTRACER, ctypes.c_ulong(PR_SET_PTRACER_ANY), 0, 0, 0)

    def start(self) -> None:
        """Begin to sample; raises OSError."""
        main = threading.main_thread()
        assert main.ident is not None
        self._stacks.clear()
        self._before = threads_ns()
        event = _Event(None, signal.SIGPROF, SIGEV_THREAD_ID, main.native_id)
        clock = time.pthread_getcpuclockid(main.ident)
        if self._libc.timer_create(clock, ctypes.byref(event), ctypes.byref(self._timer)):
            raise OSError(ctypes.get_errno(), "timer_create")
        every = _Interval(0, INTERVAL_NS, 0, INTERVAL_NS)
        if self._libc.timer_settime(self._timer, 0, ctypes.byref(every), None):
            raise OSError(ctypes.get_errno(), "timer_settime")

    def stop(self) -> dict[str, object]:
        """End sampling; the stacks as "outermost;…;innermost", and each thread's CPU."""
        self._libc.timer_delete(self._timer)
        used = {name: ns - self._before.get(name, 0) for name, ns in threads_ns().items()}
        folded: Counter[str] = Counter()
        for stack, count in self._stacks.copy().items():
            folded[";".join(f"{function} ({short(file)}:{line})" for file, function, line in reversed(stack))] += count
        return {"stacks": folded, "threads_ns": used, "main": threading.main_thread().name}

    def _sample(self, number: int, frame: FrameType | None) -> None:
        stack: list[tuple[str, str, int]] = []
        while frame is not None and len(stack) < DEPTH:
            code = frame.f_code
            stack.append((code.co_filename, code.co_qualname, frame.f_lineno))
            frame = frame.f_back
        self._stacks[tuple(stack)] += 1


def threads_ns() -> dict[str, int]:
    """CPU nanoseconds of Python's threads by name."""
    found: Counter[str] = Counter()
    for thread in threading.enumerate():
        try:
            found[thread.name] += int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0])
        except (OSError, IndexError):
            pass  # it has ended just now
    return found


def short(file: str) -> str:
    """A file below the longest folder of the import path that has it."""
    folders = [folder for folder in sys.path if folder and file.startswith(f"{folder}/")]
    return file[len(max(folders, key=len)) + 1 :] if folders else file


def obey(sampler: Sampler, control: Path) -> None:
    """Start and stop as the FIFO says, for ever."""
    while True:
        with control.open() as orders:
            for order in orders:
                if order == "start\n":
                    sampler.start()
                elif order == "stop\n":
                    part = control.with_suffix(".part")
                    part.write_text(json.dumps(sampler.stop()))
                    part.rename(control.with_suffix(".json"))


def main() -> None:
    control, module, *arguments = sys.argv[1:]
    os.mkfifo(control)
    threading.Thread(target=obey, args=(Sampler(), Path(control)), name="sampler", daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
