"""Makes a file durable without a thread: fdatasync(2) through Linux AIO.

    submit ──io_submit──▶ a worker of the kernel syncs ──eventfd──▶ run ──▶ on_synced

A thread for it costs two changes of thread for each commit, and each of them a wait for Python's
lock. Linux AIO (io_submit(2), IOCB_CMD_FDSYNC, Linux 4.18) has no wrapper in the C library, so its
system calls are made by number. Where the kernel or a sandbox refuses them, `open_kernel_sync`
returns None, and a thread calls fdatasync.

Invariant: one sync at a time; `on_synced` is called once for each `submit`, in the trio thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import sys
from collections.abc import Callable
from typing import Any, Final

import trio

_NUMBERS: Final = {
    # machine: io_setup, io_destroy, io_getevents, io_submit
    "x86_64": (206, 207, 208, 209),
    "aarch64": (0, 1, 4, 2),
    "riscv64": (0, 1, 4, 2),
}
_FDSYNC: Final = 3
_HAS_EVENTFD: Final = 1
_EVENT_BYTES: Final = 8
TRIAL_S: Final = 30.0
"""How long the first sync may take, which shows whether the file system takes part."""


class _ControlBlock(ctypes.Structure):
    """`struct iocb` of linux/aio_abi.h, for little-endian machines."""

    _fields_ = [
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("descriptor", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("eventfd", ctypes.c_uint32),
    ]


class _Event(ctypes.Structure):
    """`struct io_event` of linux/aio_abi.h."""

    _fields_ = [
        ("data", ctypes.c_uint64),
        ("control_block", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    ]


class KernelSync:
    """Syncs one open file, made by `open_kernel_sync`."""

    def __init__(self, descriptor: int, numbers: tuple[int, int, int, int]) -> None:
        """Raises OSError."""
        # Not released for the call: these system calls do not wait.
        self._call: Any = ctypes.PyDLL(None, use_errno=True).syscall
        setup, self._destroy, getevents, submit = numbers
        self._context = ctypes.c_ulong(0)
        if self._call(ctypes.c_long(setup), ctypes.c_long(1), ctypes.byref(self._context)) != 0:
            raise OSError(ctypes.get_errno(), "io_setup")
        try:
            self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            self._call(ctypes.c_long(self._destroy), self._context)
            raise
        self._block = _ControlBlock(opcode=_FDSYNC, descriptor=descriptor, flags=_HAS_EVENTFD, eventfd=self._eventfd)
        self._blocks = (ctypes.c_void_p * 1)(ctypes.addressof(self._block))
        self._events = (_Event * 1)()
        one = ctypes.c_long(1)
        self._submit_args = (ctypes.c_long(submit), self._context, one, ctypes.byref(self._blocks))
        self._reap_args = (ctypes.c_long(getevents), self._context, one, one, ctypes.byref(self._events), None)

    def submit(self) -> None:
        """Have the kernel sync what the file has by now. Never blocks. Raises OSError."""
        if self._call(*self._submit_args) != 1:
            raise OSError(ctypes.get_errno(), "io_submit")

    def wait(self, timeout_s: float) -> int:
        """Wait in this thread for the sync that was submitted; return 0 or its errno."""
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(self._eventfd, select.POLLIN)
        return self._reap() if poll.poll(timeout_s * 1000) else errno.ETIMEDOUT

    async def run(self, on_synced: Callable[[int], None]) -> None:
        """Report each finished sync until cancelled, by 0 or the errno of its failure."""
        eventfd = self._eventfd
        while True:
            await trio.lowlevel.wait_readable(eventfd)
            on_synced(self._reap())

    def _reap(self) -> int:
        os.read(self._eventfd, _EVENT_BYTES)
        if self._call(*self._reap_args) != 1:
            return ctypes.get_errno() or errno.EIO
        result: int = self._events[0].result
        return -result

    def close(self) -> None:
        """Wait for a sync that is under way, and give the kernel's objects back."""
        # This call may wait for the disk, so Python's lock is released for it.
        ctypes.CDLL(None).syscall(ctypes.c_long(self._destroy), self._context)
        os.close(self._eventfd)


def open_kernel_sync(descriptor: int) -> KernelSync | None:
    """Make a KernelSync for an open file; None where the kernel has or allows none."""
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None or sys.platform != "linux" or sys.byteorder != "little":
        return None
    try:
        sync = KernelSync(descriptor, numbers)
    except OSError:
        return None
    try:
        sync.submit()
        if sync.wait(TRIAL_S) == 0:
            return sync
    except OSError:
        pass
    sync.close()
    return None
