"""Real gateways whose ops port is scraped, and what clients do on them."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import trio

from aether_trio.gateway.gateway import Gateway
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import open_test_gateway
from tests.helpers.core import agent, barrier, connect, kv_get, kv_put, message_to, user
from tests.monitoring.prometheus import Scrape, scrape
from tests.services.tasks.peers import create, operate, own

Op = pb.TaskOperation


@asynccontextmanager
async def running(directory: Path, **sections: Any) -> AsyncIterator[Gateway]:
    """A gateway on files, with an ops port."""
    sections["gateway"] = {"ephemeral": False, "data_dir": str(directory / "data"), **sections.get("gateway", {})}
    sections["ops"] = {"enabled": True, "port": 0, **sections.get("ops", {})}
    with trio.fail_after(300):
        async with open_test_gateway(**sections) as gateway:
            yield gateway


async def scraped(gateway: Gateway, *, instance: str = "gateway:9090") -> Scrape:
    """Scrape twice: the first has the samples read anew, if they are due."""
    assert gateway.ops_address is not None
    for sample in gateway.core.metrics._samples:
        sample._next_s = 0.0
    return await trio.to_thread.run_sync(scrape, gateway.ops_address, instance)


async def busy(gateway: Gateway) -> None:
    """Have clients do what clients do: all of it goes well, but for a few mistakes."""
    core = gateway.core
    async with connect(core, agent("w", "a", "1")) as one, connect(core, user("u", "1")) as window:
        for number in range(20):
            one.send(message_to("us::u::1", b"%d" % number), kv_put(f"k{number}", b"v"), kv_get("k"))
        one.send(message_to("nonsense", b""))
        window.send(message_to("ag::w::a::1", b"hello"))
        for _ in range(10):
            task_id = await own(one)
            assert (await operate(one, Op.COMPLETE, task_id)).success
        waiting = await create(one)
        assert (await operate(one, Op.CANCEL, waiting.task_id)).success
        await barrier(one, window)
    await trio.sleep(0.5)  # the loop is looked at 10 times a second


@contextmanager
def locked(gateway: Gateway, *names: str) -> Iterator[None]:
    """Another process holds the write lock of these databases, as a backup tool might."""
    directory = Path(gateway.core.settings.gateway.data_dir)
    with ExitStack() as stack:
        for name in names or ("log", "state", "tasks"):
            other = stack.enter_context(closing(sqlite3.connect(directory / f"{name}.db", isolation_level=None)))
            other.execute("PRAGMA busy_timeout = 30000")
            other.execute("BEGIN IMMEDIATE")
            stack.callback(other.execute, "ROLLBACK")
        yield


def change(directory: Path, name: str, sql: str) -> int:
    """Change rows of a gateway's database; return how many."""
    with closing(sqlite3.connect(directory / "data" / f"{name}.db", isolation_level=None)) as database:
        return database.execute(sql).rowcount


async def until(condition: Any) -> None:
    while not condition():
        await trio.sleep(0.02)
