"""Runs several gateway processes as one command, and restarts those that crash.

They start together and drain together; one that ends is started again after a pause, which doubles.
Signals are as for one gateway (running.py): the first SIGTERM or SIGINT drains all, the second one
stops them at once; a third one kills them. Before all serve, the first one stops them. However this
process ends, they drain (node_process.py).

Invariant: when `run_nodes` returns or raises, no process is left.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from aether_trio.cli import exits
from aether_trio.cli.options import ServingOptions
from aether_trio.cli.output import announce as tell
from aether_trio.cli.output import wait_output_closed
from aether_trio.cli.ready_file import ReadyFile
from aether_trio.cli.service_manager import ServiceManager
from aether_trio.cli.sidecar_process import Sidecar
from aether_trio.devtools.node_process import NodeFailed, NodeProcess, Ready

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
STEADY_S: Final = 60.0
"""Who has served for so long is started again after the first pause."""
STOP_S: Final = 30.0
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def arguments_of(command: str, given: ServingOptions, overrides: Mapping[str, Any]) -> list[str]:
    """Return a gateway process's command line: this command's arguments, overridden."""
    flags = [f"{name}={_text(value)}" for name, value in given.flags.items() if value is not None]
    own = [f"{name}={_text(value)}" for name, value in overrides.items()]
    config = ["--config", given.config_file] if given.config_file else []
    return [command, *config, *(part for one in (*flags, *given.sets, *own) for part in ("--set", one))]


def count_of(number: int, what: str) -> str:
    """Return a number with its noun: "1 node", "2 nodes"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class NodeSupervisor:
    """Starts, restarts, drains and ends a group of gateway processes."""

    def __init__(self, nodes: Sequence[NodeProcess]) -> None:
        self.nodes = nodes
        self.signals: list[int] = []
        """Those that this process was sent."""
        self.manager = ServiceManager(os.environ)
        self._told = trio.Event()
        self._draining = False

    @property
    def ready(self) -> list[Ready]:
        """The addresses of the gateways that have become ready."""
        return [node.ready for node in self.nodes if node.ready is not None]

    async def start(self) -> None:
        """Start all gateway processes. Raises CliError when one cannot start."""
        try:
            async with trio.open_nursery() as nursery:
                for node in self.nodes:
                    nursery.start_soon(node.start)
        except* NodeFailed as group:
            raise exits.CliError(str(exits.first_of(group)), exits.SETTINGS, lines=True) from None

    async def keep(self) -> None:
        """Restart each process that ends, until `stop`; then wait for all to end."""
        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                nursery.start_soon(self._keep, node)

    async def _keep(self, node: NodeProcess) -> None:
        assert node.ready is not None
        pinned = ["--set", f"gateway.port={_port(node.ready.gateway)}"]
        if node.ready.ops:
            pinned += ["--set", f"ops.port={_port(node.ready.ops)}"]
        pause_s = FIRST_PAUSE_S
        while True:
            since = trio.current_time()
            code = await node.wait()
            if self._told.is_set():
                return
            if trio.current_time() - since > STEADY_S:
                pause_s = FIRST_PAUSE_S
            tell(f"{node.name} {_how(code)}; it is started again in {pause_s:g} s", err=True)
            with trio.move_on_after(pause_s):
                await self._told.wait()
                return
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            try:
                await node.start(*pinned)
            except NodeFailed:
                continue  # it has said why
            tell(f"{node.name} serves again", err=True)

    async def obey(self, signals: AsyncIterator[int], scope: trio.CancelScope, sidecar: Sidecar | None = None) -> None:
        """Drain, stop or kill the processes on signals; cancel `scope` during the start."""
        async with trio.open_nursery() as nursery:
            async for number in signals:
                if number == signal.SIGHUP:
                    for node in self.nodes:
                        node.hang_up()
                    continue
                self.signals.append(number)
                name = signal.Signals(number).name
                if len(self.ready) < len(self.nodes):
                    tell(f"{name}: stopping at once", err=True)
                    scope.cancel()
                    return
                if len(self.signals) == 1:
                    text = "draining; clients are asked to reconnect elsewhere. Again to stop at once."
                    tell(f"{name}: {text}", err=True)
                    nursery.start_soon(self._drain, sidecar)
                    continue
                if sidecar is not None:
                    sidecar.kill()
                self.stop(signal.SIGTERM if len(self.signals) < 3 else signal.SIGKILL)

    async def watch_output(self, scope: trio.CancelScope, sidecar: Sidecar | None = None) -> None:
        """Drain once this command's output is closed; before all serve, cancel `scope`."""
        await wait_output_closed()
        if len(self.ready) < len(self.nodes):
            scope.cancel()
        else:
            await self._drain(sidecar)

    async def _drain(self, sidecar: Sidecar | None) -> None:
        if self._draining:
            return
        self._draining = True
        self.manager.stopping()
        if sidecar is not None:
            await sidecar.end()
        self.stop(signal.SIGTERM)

    def stop(self, number: int) -> None:
        """Send all processes a signal, and restart none of them."""
        self._told.set()
        for node in self.nodes:
            node.send(number)

    async def end(self) -> None:
        """End all processes: SIGTERM, after STOP_S SIGKILL."""
        self.stop(signal.SIGTERM)
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for node in self.nodes:
                    nursery.start_soon(_end, node)


@asynccontextmanager
async def supervised_nodes(nodes: Sequence[NodeProcess]) -> AsyncIterator[NodeSupervisor]:
    """Yield a supervisor whose processes have all ended after the block."""
    supervisor = NodeSupervisor(nodes)
    try:
        yield supervisor
    finally:
        await supervisor.end()


def run(main: Callable[..., Awaitable[int | None]], *args: Any) -> None:
    """Run `main` with trio. Raises CliError, OSError, or SystemExit after a signal."""
    try:
        stopped_by = trio.run(main, *args)
    except* exits.CliError as group:
        raise exits.first_of(group) from None
    except* OSError as group:
        raise exits.first_of(group) from None
    if stopped_by is not None:
        raise SystemExit(128 + stopped_by)


async def run_nodes(
    nodes: Sequence[NodeProcess],
    announce: Callable[[Sequence[Ready]], str],
    *,
    address: str | None = None,
    ready: ReadyFile | None = None,
    sidecar: Sidecar | None = None,
    ends_with_output: bool = False,
    reloads: bool = False,
) -> int | None:
    """Run gateway processes until they have drained.

    Returns the signal that stopped them before that. `announce` gives the text for the person and
    starts the `sidecar`, which ends before the drain. `address` is that of clients, None for the
    first gateway's. With `reloads` all are handed SIGHUP on. Raises CliError.
    """
    with trio.open_signal_receiver(*_SIGNALS, *([signal.SIGHUP] if reloads else [])) as signals:
        async with trio.open_nursery() as nursery, supervised_nodes(nodes) as supervisor:
            nursery.start_soon(supervisor.obey, signals, nursery.cancel_scope, sidecar)
            if ends_with_output:
                nursery.start_soon(supervisor.watch_output, nursery.cancel_scope, sidecar)
            await supervisor.start()
            tell(announce(supervisor.ready), lines=True)
            supervisor.manager.ready(f"serving on {address or supervisor.ready[0].gateway}")
            nursery.start_soon(supervisor.manager.keep_alive)
            if ready is not None:
                first = supervisor.ready[0]
                ready.write(address or first.gateway, first.ops, first.transports, supervisor.ready)
            await supervisor.keep()
            nursery.cancel_scope.cancel()
    early = len(supervisor.ready) < len(nodes)
    return supervisor.signals[-1] if supervisor.signals and (early or len(supervisor.signals) > 1) else None


async def _end(node: NodeProcess) -> None:
    if not node.running:
        return
    with trio.move_on_after(STOP_S):
        await node.wait()
        return
    await node.kill()


def _how(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _port(address: str) -> str:
    return address.rpartition(":")[2]
