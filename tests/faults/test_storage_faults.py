"""A full disk or locked database refuses writes, and keeps clients connected.

Writes work again when the fault is over.

What is due: ERR_PUBLISH_FAILED (retryable) for the messages that could not be written, the stream
stays up, the process stays up, and once the cause is gone the same gateway accepts again without
help. What had been accepted before is still there, and what was refused is not delivered later.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sqlite3
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.gateway import GatewayProcess, start_gateway
from tests.helpers.sdk import LIMIT_S, Peer, World, answered, run_async

KIB = 1024
Cause = Callable[[GatewayProcess], contextlib.AbstractContextManager[None]]


async def publish_until(sender: Peer, world: World, name: str, *, refused: bool) -> tuple[list[bytes], list[bytes]]:
    """Send numbered messages to an offline agent until one is refused or accepted.

    Gives (accepted, refused).

    One message at a time, each followed by a barrier, so that an error belongs to exactly one
    message. The barrier is an KV GET, which writes nothing and must be answered whatever the disk
    does.
    """
    accepted: list[bytes] = []
    rejected: list[bytes] = []
    async with asyncio.timeout(120):
        for n in range(100_000):
            payload = f"{name} {n} ".encode() + b"." * 4 * KIB
            await sender.client.send_message_to_agent(world.ws, world.impl, "late", payload)
            answer = await sender.client.kv_get("barrier", timeout=60)
            assert answer is not None, "a request that only reads was not answered"
            if sender.errors.empty():
                accepted.append(payload)
                if not refused:
                    break
            else:
                error = sender.errors.get_nowait()
                assert (error.code, error.retryable) == ("ERR_PUBLISH_FAILED", True), error
                rejected.append(payload)
                if refused:
                    break
    return accepted, rejected


def healthy(gateway: GatewayProcess) -> bool:
    with urllib.request.urlopen(f"http://{gateway.ops_address}/healthz", timeout=LIMIT_S) as response:
        return bool(response.status == 200)


def fault(gateway: GatewayProcess, cause: Cause) -> None:
    """The scenario that every fault shares: good, then the cause, then good again."""

    async def scenario() -> None:
        async with World(gateway.address) as world:
            sender, other = await world.open(world.agent("sender"), world.agent("other"))
            kept, _ = await publish_until(sender, world, "before", refused=False)
            answered(await sender.client.kv_put("k", b"before", timeout=LIMIT_S), "put")
            with cause(gateway):
                accepted, rejected = await publish_until(sender, world, "during", refused=True)
                kept += accepted
                # Writes fail loudly too, reads go on, and all connections stay.
                refused = await sender.client.kv_put("k", b"x" * 512 * KIB, timeout=60)
                assert refused is not None, "a write that failed was not answered"
                assert not refused.success
                await sender.error("KV_ERROR")
                assert answered(await other.client.kv_get("k", timeout=LIMIT_S), "get").value == b"before"
                assert await asyncio.to_thread(healthy, gateway)
                newcomer = await world.agent("newcomer").connect()
                # A gateway that cannot record who connects lets no client in (docs/audit.md).
                may_record = cause is logs_are_locked
                assert await newcomer.came_up() or not may_record, "no client can connect while a file is locked"
            accepted, more = await publish_until(sender, world, "after", refused=False)
            kept += accepted
            rejected += more
            assert answered(await sender.client.kv_put("k", b"after", timeout=LIMIT_S), "put").success
            assert gateway.running
            assert sender.connects.empty(), "the sender had to connect again"
            assert not sender.gone.is_set()
            (late,) = await world.open(world.agent("late"))
            got = [(await late.take()).payload for _ in kept]
            assert got == kept
            await late.only(other)

    run_async(scenario, limit_s=280)


@contextlib.contextmanager
def logs_are_locked(gateway: GatewayProcess) -> Iterator[None]:
    """Another process holds the locks of the databases."""
    with contextlib.ExitStack() as stack:
        for name in ("log.db", "state.db"):
            connection = sqlite3.connect(gateway.data_dir / name, isolation_level=None)
            stack.callback(connection.close)
            connection.execute("BEGIN EXCLUSIVE")
        yield


@contextlib.contextmanager
def files_may_not_grow(gateway: GatewayProcess) -> Iterator[None]:
    """RLIMIT_FSIZE of the running process: what a quota does. Needs no rights."""
    written = [path for name in ("log.db*", "state.db*") for path in gateway.data_dir.glob(name)]
    sizes = [path.stat().st_size for path in written]
    soft, hard = resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (max(sizes) + 256 * KIB, hard))
    try:
        yield
    finally:
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def disk_is_full(gateway: GatewayProcess) -> Iterator[None]:
    filler = gateway.data_dir.parent / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4 * KIB)
    yield
    filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("cause", [logs_are_locked, files_may_not_grow])
def test_writes_are_refused_until_the_fault_is_over(cause: Cause) -> None:
    with start_gateway() as gateway:
        fault(gateway, cause)


def test_writes_are_refused_while_the_disk_is_full(small_disk: Path) -> None:
    with start_gateway(data_dir=small_disk / "data") as gateway:
        fault(gateway, disk_is_full)
