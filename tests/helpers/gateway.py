"""A real gateway process for tests: started, killed, restarted on the same data.

From threads (and scenarios that use the SDK's blocking client):

    with start_gateway() as gateway:
        client = AgentClient(gateway.address, ...)
        gateway.kill()                    # SIGKILL, waits for the end
        gateway.restart()                 # same data, same ports

From trio:

    async with open_gateway_process() as gateway:
        ...

`address` and `ops_address` are "HOST:PORT". Without `data_dir` the data lies in a temporary
directory that goes away with the process object; with `ephemeral` the gateway itself keeps nothing.
Everything the process prints is in `output()`, and a start that fails raises with it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

from aether_trio.devtools.ports import HeldPorts
from tests.helpers.engines import PostgresEngine
from tests.helpers.forked import ForkedProcess

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 300.0
_POLL_S = 0.02

_running: weakref.WeakSet[GatewayProcess] = weakref.WeakSet()


def on_postgres(engine: PostgresEngine) -> list[str]:
    """The arguments with which a gateway keeps everything there."""
    return ["--set", f"storage.database={engine.server.dsn()}", "--set", f"storage.schema={engine.schema}"]


class GatewayFailed(AssertionError):
    """The process ended or never became ready; the message has its output."""


class GatewayProcess:
    """One `aether dev`, or another command that takes --ready-file."""

    def __init__(
        self,
        data_dir: Path | str | None = None,
        ephemeral: bool = False,
        extra_args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        *,
        command: Sequence[str] = (sys.executable, "-m", "aether_trio", "dev"),
    ) -> None:
        self._scratch = Path(tempfile.mkdtemp(prefix="aether-test-"))
        self.data_dir = Path(data_dir) if data_dir is not None else self._scratch / "data"
        self.ephemeral = ephemeral
        self.extra_args = tuple(extra_args)
        self.env = dict(env or {})
        self.command = tuple(command)
        self.address = ""
        self.ops_address = ""
        self.ready: dict[str, Any] = {}
        self._ready_file = self._scratch / "ready.json"
        self._output_file = self._scratch / "output.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = HeldPorts()
        self.returncode: int | None = None

    # -- life

    def start(self, port: int = 0, ops_port: int = 0) -> GatewayProcess:
        """Start and wait until everything is served; raises GatewayFailed."""
        assert self._process is None or self._process.poll() is not None, "it is still running"
        self._ready_file.unlink(missing_ok=True)
        arguments = [*self.command, "--port", str(port), "--ops-port", str(ops_port)]
        arguments += ["--ready-file", str(self._ready_file)]
        arguments += ["--ephemeral"] if self.ephemeral else ["--data-dir", str(self.data_dir)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AETHER_")}
        environment |= {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1"} | self.env
        # The working directory is the scratch one, so the package must be importable from anywhere.
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        with self._output_file.open("ab") as output:
            self._process = ForkedProcess(
                [*arguments, *self.extra_args],
                cwd=self._scratch,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.returncode = None
        _running.add(self)
        ready = self.ready = self._await_ready(self._process)
        self._ports.release()
        self.address, self.ops_address = ready["gateway"], ready.get("ops") or ""
        return self

    def _await_ready(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            ended = process.poll()
            if self._ready_file.exists():
                ready: dict[str, Any] = json.loads(self._ready_file.read_text())
                return ready
            if ended is not None:
                raise GatewayFailed(f"the gateway ended with {ended} before it was ready:\n{self.output()}")
            if time.monotonic() > deadline:
                self.kill()
                raise GatewayFailed(f"the gateway was not ready within {START_TIMEOUT_S:g} s:\n{self.output()}")
            time.sleep(_POLL_S)  # it is another process, and a file is all that it promises

    def restart(self, *, same_ports: bool = True) -> GatewayProcess:
        """Start again on the same data (and on the same ports, so that clients find it)."""
        if self._process is not None and self._process.poll() is None:
            self.terminate()
            self.wait()
        if not same_ports:
            return self.start()
        return self.start(int(self.address.rpartition(":")[2]), int(self.ops_address.rpartition(":")[2] or 0))

    def kill(self) -> None:
        """SIGKILL, as a crash: nothing is flushed. Returns when the process is gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self.wait()

    def terminate(self) -> None:
        """Send SIGTERM: the gateway drains, or stops at once the second time."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = STOP_TIMEOUT_S) -> int:
        """Wait for the end; the exit code."""
        assert self._process is not None, "it was never started"
        ended = self.returncode is not None
        self.returncode = self._process.wait(timeout)
        if not ended:
            self._ports.hold((self.address, self.ops_address))
        return self.returncode

    def close(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.terminate()
            if self._process is not None:
                self.wait(20)
        self.kill()
        self._ports.release()
        _running.discard(self)
        shutil.rmtree(self._scratch, ignore_errors=True)

    # -- looking at it

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def output(self) -> str:
        """Everything printed so far, over all starts."""
        try:
            return self._output_file.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def resident_bytes(self) -> int:
        """Memory of the process right now (Linux), for tests that bound it."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            # What the gateway said belongs to the failure; pytest shows it as captured output.
            sys.stderr.write(f"--- output of the gateway ---\n{self.output()}\n")
        self.close()


def start_gateway(*args: Any, port: int = 0, ops_port: int = 0, **options: Any) -> GatewayProcess:
    """Start a GatewayProcess (a context manager), and return once it serves."""
    process = GatewayProcess(*args, **options)
    try:
        return process.start(port, ops_port)
    except BaseException:
        process.close()
        raise


@contextlib.asynccontextmanager
async def open_gateway_process(*args: Any, **options: Any) -> AsyncIterator[GatewayProcess]:
    """As start_gateway, for trio: starting and stopping run in a thread.

    Within the block, call the waiting methods (kill, wait, restart) through
    trio.to_thread.run_sync.
    """
    process = await trio.to_thread.run_sync(lambda: start_gateway(*args, **options))
    try:
        yield process
    except BaseException:
        sys.stderr.write(f"--- output of the gateway ---\n{process.output()}\n")
        raise
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(process.close)


@atexit.register
def _kill_leftovers() -> None:
    for process in list(_running):
        process.kill()
