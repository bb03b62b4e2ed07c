"""Start the nodes of a run, which can be killed, and read the tables behind them."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Protocol

from aether_trio.devtools.node_process import NodeProcess
from aether_trio.devtools.process_cluster import ProcessCluster, open_process_cluster


class Node(Protocol):
    """One gateway process."""

    name: str

    async def start(self) -> object:
        """Start the gateway again at its address."""
        ...

    async def kill(self) -> None:
        """Kill the gateway with SIGKILL."""
        ...


class Place(Protocol):
    """The nodes of a run, and the tables behind them."""

    @property
    def nodes(self) -> Sequence[Node]: ...

    @property
    def address(self) -> str:
        """HOST:PORT for clients."""
        ...

    async def sql(self, text: str) -> list[list[str]]:
        """Run a query; return its rows as text."""
        ...


class Cluster:
    def __init__(self, cluster: ProcessCluster) -> None:
        self.cluster = cluster

    @property
    def nodes(self) -> Sequence[Node]:
        return self.cluster.nodes

    @property
    def address(self) -> str:
        return self.cluster.front.address

    async def sql(self, text: str) -> list[list[str]]:
        return await self.cluster.sql(text)


class LoneNode:
    """A gateway on SQLite, always on the same port."""

    name = "gateway"

    def __init__(self, home: Path) -> None:
        self.data = home / "data"
        arguments = ["dev", "--data-dir", str(self.data), "--ops-port", "0"]
        self.process = NodeProcess(self.name, arguments, home)

    async def start(self) -> object:
        ready = self.process.ready
        return await self.process.start("--port", ready.gateway.rpartition(":")[2] if ready is not None else "0")

    async def kill(self) -> None:
        await self.process.kill()

    def stop(self) -> None:
        """Suspend the gateway with SIGSTOP."""
        self.process.send(signal.SIGSTOP)

    def cont(self) -> None:
        """Let a suspended gateway go on, with SIGCONT."""
        self.process.send(signal.SIGCONT)


class Alone:
    def __init__(self, node: LoneNode) -> None:
        self.node = node
        self.nodes: Sequence[Node] = [node]

    @property
    def address(self) -> str:
        assert self.node.process.ready is not None
        return self.node.process.ready.gateway

    async def sql(self, text: str) -> list[list[str]]:
        with closing(sqlite3.connect(self.node.data / "tasks.db")) as connection:
            return [["" if value is None else str(value) for value in row] for row in connection.execute(text)]


@asynccontextmanager
async def open_place(nodes: int, keep: Path | None) -> AsyncIterator[Place]:
    """Start nodes on PostgreSQL, or for 0 a gateway on SQLite, until the block ends."""
    if nodes:
        postgres = {"max_connections": "300"}
        async with open_process_cluster(nodes, postgres=postgres, proxied=False, keep=keep) as cluster:
            yield Cluster(cluster)
        return
    home = Path(tempfile.mkdtemp(prefix="aether-tasks-"))
    node = LoneNode(home)
    try:
        await node.start()
        yield Alone(node)
    finally:
        await node.kill()
        _leave(home, keep)


def _leave(home: Path, keep: Path | None) -> None:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(home / "gateway.log", keep / "gateway.log")
    shutil.rmtree(home, ignore_errors=True)
