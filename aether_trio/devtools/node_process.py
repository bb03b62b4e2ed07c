"""Starts a gateway process, which drains when this process has ended.

This process holds the standard input of the gateway open: when that ends, the gateway drains
(`--until-stdin-ends`). The gateway is in a separate session, so that Ctrl-C reaches this process,
which then decides.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import trio

START_S: Final = 60.0
_POLL_S: Final = 0.02
_LAST_WORDS: Final = 4000


class NodeFailed(Exception):
    """A gateway process ended or stayed silent instead of becoming ready."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A serving gateway's ready file: HOST:PORT of each port, `ops` "" for none."""

    pid: int
    gateway: str
    ops: str
    transports: Mapping[str, str]


class NodeProcess:
    """Runs `aether ARGUMENTS`, again and again; `directory` is for its files.

    `output` is a file or a descriptor for what the process prints, None for a file that `said`
    reads.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        output: int | IO[bytes] | None = None,
    ) -> None:
        self.name = name
        self.arguments = list(arguments)
        self.ready: Ready | None = None
        """Of the latest start that became ready."""
        self.returncode: int | None = None
        self._environment = environment
        self._directory = directory
        self._output = output
        self._output_file = directory / f"{name}.log"
        self._ready_file = directory / f"{name}.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._serves = self._hangs_up = False

    async def start(self, *arguments: str) -> Ready:
        """Start the gateway; return once it serves. Raises NodeFailed."""
        assert not self.running, "it is running"
        self._ready_file.unlink(missing_ok=True)
        self._serves = False
        process = self._process = self._spawn(arguments)
        self.returncode = None
        with trio.move_on_after(START_S):
            while not self._ready_file.exists():
                if process.poll() is not None:
                    await self.wait()
                    raise NodeFailed(
                        f"{self.name} ended with {process.returncode} before it served clients{self.said()}"
                    )
                # It is another process, and a file is all that it promises.
                await trio.sleep(_POLL_S)
            body = json.loads(self._ready_file.read_text())
            self.ready = Ready(body["pid"], body["gateway"], body["ops"], body["transports"])
            self._serves = True
            if self._hangs_up:
                self.hang_up()
            return self.ready
        await self.kill()
        raise NodeFailed(f"{self.name} did not serve within {START_S:g} s{self.said()}")

    @property
    def running(self) -> bool:
        """Whether the gateway process exists, stopped or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the latest start."""
        assert self._process is not None, "it was never started"
        return self._process.pid

    def send(self, number: int) -> None:
        """Send the process a signal, if it runs."""
        if self.running:
            assert self._process is not None
            self._process.send_signal(number)

    def hang_up(self) -> None:
        """Send the process SIGHUP once it serves; before that it might end it."""
        self._hangs_up = not self._serves
        if self._serves:
            self.send(signal.SIGHUP)

    async def kill(self) -> None:
        """Kill the process with SIGKILL, and wait for its end."""
        self.send(signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await self.wait()

    async def wait(self) -> int:
        """Wait for the process's end; return the exit code, negative for a signal."""
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            descriptor = os.pidfd_open(process.pid)
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
        assert process.stdin is not None
        process.stdin.close()
        self.returncode = process.wait()
        return self.returncode

    def said(self) -> str:
        """Return the end of the process's output behind a colon; "" when not kept."""
        if self._output is not None:
            return ""
        return ":\n" + self._output_file.read_bytes()[-_LAST_WORDS:].decode(errors="replace")

    def printed(self) -> str:
        """Return the process's output over all its starts; "" when not kept."""
        if self._output is not None or not self._output_file.exists():
            return ""
        return self._output_file.read_text(errors="replace")

    def _spawn(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        command = [*_python(), *self.arguments, *arguments, "--ready-file", str(self._ready_file), "--until-stdin-ends"]

        def start(output: int | IO[bytes]) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=None if self._environment is None else dict(self._environment),
                start_new_session=True,
            )

        if self._output is not None:
            return start(self._output)
        with self._output_file.open("ab") as output:
            return start(output)


def _python() -> list[str]:
    """Return this interpreter's command line for this program.

    Not the program in the working directory, unless this process runs that one.
    """
    here = {"", str(Path.cwd())} & set(sys.path)
    return [sys.executable, *([] if here else ["-P"]), "-m", "aether_trio"]
