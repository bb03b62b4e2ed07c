"""Tells systemd of a gateway's state (sd_notify(3)), when systemd has started it.

    READY=1     all is served
    RELOADING=1 SIGHUP has come; READY=1 follows
    STOPPING=1  it drains
    WATCHDOG=1  the event loop turns, twice in each WatchdogSec

Without NOTIFY_SOCKET in the environment nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

import trio

LEAST_S: Final = 0.5


class ServiceManager:
    """Sends states to the socket that systemd has named. Never raises, never waits."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._watchdog_s = 0.0
        with contextlib.suppress(ValueError):
            if int(environ.get("WATCHDOG_PID", os.getpid())) == os.getpid():
                self._watchdog_s = int(environ.get("WATCHDOG_USEC", "0")) / 1_000_000

    def ready(self, status: str) -> None:
        """Say that the gateway serves; `status` is for `systemctl status`."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Say that settings are read anew, until `ready`."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Say that the gateway drains."""
        self._send("STOPPING=1\nSTATUS=draining")

    async def keep_alive(self) -> None:
        """Tell the watchdog that the event loop turns, until cancelled."""
        if not self._address or not self._watchdog_s:
            return
        while True:
            self._send("WATCHDOG=1")
            await trio.sleep(max(self._watchdog_s / 2, LEAST_S))

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode(), self._address)
