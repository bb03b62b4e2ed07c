"""Clients of a gateway whose data was restored have seen more than it has.

A gateway is backed up under way, goes on, is killed, and comes back at its address with the backup.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from aether_trio.client import AetherError, AgentClient
from aether_trio.client.operations import TaskStatus
from aether_trio.config import Settings
from aether_trio.gateway.core import open_core
from aether_trio.session.init_connection import ASSIGNMENTS
from aether_trio.storage.backup import back_up, restore
from aether_trio.storage.postgres.embedded import binaries
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cli.shell import aether
from tests.client.gateways import agent
from tests.helpers.core import agent as core_agent
from tests.helpers.core import barrier, connect, settings_for_tests
from tests.helpers.engines import PostgresEngine
from tests.helpers.gateway import GatewayProcess, on_postgres, start_gateway
from tests.interop.test_smoke_script import SCRIPT, run_script
from tests.services.tasks.peers import Op, create, operate

WAIT_S = 300.0
READER = "ag::w::i::rx"


@pytest.fixture
def new_schemas() -> bool:
    """Gateways of these tests make their tables."""
    return True


@dataclass
class Restorable:
    """A gateway process, how it is backed up, and how it is killed and put back."""

    process: GatewayProcess
    back_up: Callable[[], None]
    restore: Callable[[], None]
    run: Callable[[str], None] = print
    """Run a command of PostgreSQL."""

    @property
    def address(self) -> str:
        return f"aether://{self.process.address}"

    async def backed_up(self) -> None:
        await trio.to_thread.run_sync(self.back_up)

    async def killed_and_restored(self) -> None:
        def crash() -> None:
            self.process.kill()
            self.restore()
            self.process.restart()

        await trio.to_thread.run_sync(crash)


def done(*arguments: str) -> str:
    ended = aether(*arguments)
    assert ended.returncode == 0, ended
    return ended.stdout


def commands(text: str) -> list[str]:
    """The commands that a text names, each on one line."""
    return [
        line.strip()
        for line in re.sub(r"\\\n\s*", "", text).splitlines()
        if line.strip().startswith(("pg_dump", "pg_restore", "psql"))
    ]


@pytest.fixture
def on_files(tmp_path: Path) -> Iterator[Restorable]:
    data, backup = tmp_path / "data", tmp_path / "backup.tar"

    def restore() -> None:
        shutil.rmtree(data)
        done("restore", str(backup), "--data-dir", str(data))

    with start_gateway(data_dir=data) as process:
        yield Restorable(process, lambda: void(done("backup", str(backup), "--data-dir", str(data))), restore)


@pytest.fixture
def on_server(postgres_engine: PostgresEngine, tmp_path: Path) -> Iterator[Restorable]:
    """As `aether backup` and `aether restore` say, word for word."""
    named = ["--database", postgres_engine.server.dsn(), "--set", f"storage.schema={postgres_engine.schema}"]

    def run(command: str) -> None:
        # The tools are of the server's version.
        path = f"{list(binaries().values())[-1]}:{os.environ['PATH']}"
        shown = subprocess.run(
            shlex.split(command),
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert shown.returncode == 0, (command, shown.stderr)

    def back_up() -> None:
        said = aether("backup", *named)
        assert said.returncode == 1
        [dump] = [one for one in commands(said.stderr) if one.startswith("pg_dump")]
        run(dump)

    def restore() -> None:
        said = aether("restore", *named)
        assert said.returncode == 1
        rename, put_back, _ = commands(said.stderr)
        run(rename)
        run(put_back)
        postgres_engine.outside(f"DROP SCHEMA {postgres_engine.schema}_before CASCADE")

    with start_gateway(extra_args=on_postgres(postgres_engine)) as process:
        yield Restorable(process, back_up, restore, run)


def void(_: object) -> None:
    """Drop a result."""


@pytest.fixture(params=["on_files", "on_server"])
def gateway(request: pytest.FixtureRequest) -> Restorable:
    found: Restorable = request.getfixturevalue(request.param)
    return found


async def _next(client: AgentClient) -> bytes:
    with trio.fail_after(WAIT_S):
        async for message in client:
            return message.payload
    raise AssertionError("the client has ended")


async def test_a_reader_that_has_seen_more_misses_no_new_message(gateway: Restorable) -> None:
    async with (
        agent(gateway.address, "rx", connect_timeout_s=60.0) as reader,
        agent(gateway.address, "tx", connect_timeout_s=60.0) as writer,
    ):
        for number in range(3):
            await writer.send(READER, b"before %d" % number)
            assert await _next(reader) == b"before %d" % number
        await gateway.backed_up()
        for _ in range(50):
            await writer.send(READER, b"tick")
            assert await _next(reader) == b"tick"
        await gateway.killed_and_restored()
        # Their offsets were used before the crash, for the same bytes, and so were the numbers of
        # the sends.
        for _ in range(100):
            await writer.send(READER, b"tick")
        await writer.send(READER, b"end")
        seen = []
        while not seen or seen[-1] != b"end":
            seen.append(await _next(reader))
        # What the reader had acknowledged at the moment of the backup may come again.
        assert seen[-101:-1] == [b"tick"] * 100
        assert set(seen[:-101]) <= {b"before %d" % number for number in range(3)}


async def test_a_worker_with_an_assignment_of_the_lost_time_does_not_block_its_task(gateway: Restorable) -> None:
    seen: Counter[str] = Counter()
    claimed = trio.Event()
    go_on = trio.Event()

    async def work(client: AgentClient) -> None:
        async for task in client.work(concurrency=1):
            try:
                async with task:
                    seen["begun"] += 1
                    claimed.set()
                    await go_on.wait()
                    seen["ended"] += 1
            except AetherError:
                seen["refused"] += 1

    async with agent(gateway.address, "boss", connect_timeout_s=60.0) as boss:
        running = await boss.tasks.create("job", pool="worker")
        waiting = await boss.tasks.create("job", pool="worker")
        worker = AgentClient(
            gateway.address, workspace="w", implementation="worker", specifier="1", connect_timeout_s=60
        )
        async with worker, trio.open_nursery() as nursery:
            await gateway.backed_up()
            nursery.start_soon(work, worker)
            with trio.fail_after(WAIT_S):
                await claimed.wait()
            await gateway.killed_and_restored()
            go_on.set()
            for task_id in (running.task_id, waiting.task_id):
                with trio.fail_after(WAIT_S):
                    while (await boss.tasks.get(task_id)).status is not TaskStatus.COMPLETED:
                        await trio.sleep(0.05)
            nursery.cancel_scope.cancel()


async def test_an_assignment_of_the_lost_time_is_not_one_that_was_made_since(tmp_path: Path) -> None:
    """Its number would be given out again."""
    asks = pb.ExtensionDeclaration(uri=ASSIGNMENTS)

    def settings(name: str) -> Settings:
        return settings_for_tests(gateway={"ephemeral": False, "data_dir": str(tmp_path / name)})

    async def assigned_anew(creator: MemoryLink, worker: MemoryLink, task_id: str) -> str:
        assert (await operate(creator, Op.FAIL, task_id, reason="too slow")).success
        assert (await operate(creator, Op.RETRY, task_id)).success
        await barrier(worker)
        return worker.waiting("task_assignment")[-1].task_assignment.metadata["_assignment"]

    async with (
        open_core(settings("data")) as core,
        connect(core, core_agent("w", "c", "1")) as creator,
        connect(core, core_agent("w", "i", "1", extensions=[asks])) as worker,
    ):
        await barrier(worker)
        task_id = (await create(creator)).task_id
        back_up(tmp_path / "data", str(tmp_path / "backup"), made_by="a test")
        assert await assigned_anew(creator, worker, task_id) == "2"
    restore(str(tmp_path / "backup"), tmp_path / "restored")
    async with (
        open_core(settings("restored")) as core,
        connect(core, core_agent("w", "c", "1")) as creator,
        connect(core, core_agent("w", "i", "1", extensions=[asks])) as worker,
    ):
        await barrier(worker)
        number = await assigned_anew(creator, worker, task_id)
        refused = await operate(worker, Op.COMPLETE, f"{task_id}@2")
        assert "yours was 2" in refused.error
        assert (await operate(worker, Op.COMPLETE, f"{task_id}@{number}")).success


@asynccontextmanager
async def senders(address: str, count: int) -> AsyncIterator[dict[str, list[tuple[float, int]]]]:
    """Send numbered messages without a pause; yield when each of them was accepted."""
    accepted: dict[str, list[tuple[float, int]]] = {f"tx{n}": [] for n in range(count)}

    async def send(name: str) -> None:
        async with agent(address, name, connect_timeout_s=60.0) as client:
            number = 0
            try:
                while True:
                    number += 1
                    await client.send(READER, b"%s %d" % (name.encode(), number))
                    accepted[name].append((trio.current_time(), number))
            except AetherError:
                return  # the gateway was killed

    async with trio.open_nursery() as nursery:
        for name in accepted:
            nursery.start_soon(send, name)
        yield accepted
        nursery.cancel_scope.cancel()


async def test_nothing_that_is_older_than_the_backup_is_missing(gateway: Restorable) -> None:
    async with senders(gateway.address, 4) as accepted:
        with trio.fail_after(WAIT_S):
            while min(map(len, accepted.values())) < 50:
                await trio.sleep(0.01)
        began = trio.current_time()
        await gateway.backed_up()
        await trio.sleep(0.1)
        await gateway.killed_and_restored()
    async with agent(gateway.address, "rx", connect_timeout_s=60.0) as reader:
        async with agent(gateway.address, "last") as last:
            await last.send(READER, b"last 1")
        seen = []
        while not seen or seen[-1] != b"last 1":
            seen.append(await _next(reader))
    for name, sent in accepted.items():
        got = [int(text.split()[1]) for text in seen if text.startswith(name.encode() + b" ")]
        assert got == sorted(set(got))  # nothing twice
        # One hole at most, of what was accepted after the backup: the client goes on behind it.
        whole = next((place for place, number in enumerate(got) if number != place + 1), len(got))
        assert whole >= sum(at < began for at, _ in sent)


@pytest.mark.skipif(not SCRIPT.exists(), reason="no shared/interop/sdk_smoke.py beside the checkout")
async def test_the_smoke_script_passes_on_a_restored_gateway(gateway: Restorable) -> None:
    await trio.to_thread.run_sync(run_script, gateway.process.address)
    await gateway.backed_up()
    await gateway.killed_and_restored()
    await trio.to_thread.run_sync(run_script, gateway.process.address)


async def test_a_base_backup_is_another_log_by_the_command_that_is_named(
    on_server: Restorable, postgres_engine: PostgresEngine
) -> None:
    """As after a restore of the whole server, which has the row of the log's identity."""
    logs = []
    for _ in range(2):
        async with agent(on_server.address, "rx", connect_timeout_s=60.0) as reader:
            logs.append(reader._dispatch.inbox._log)
            await reader.send(READER, b"x")
        on_server.process.kill()
        said = aether(
            "restore", "--database", postgres_engine.server.dsn(), "--set", f"storage.schema={postgres_engine.schema}"
        )
        [forget] = [one for one in commands(said.stderr) if "DELETE" in one]
        await trio.to_thread.run_sync(on_server.run, forget)
        await trio.to_thread.run_sync(on_server.process.restart)
    assert "these databases were restored from a backup" in on_server.process.output()
    assert len(set(logs)) == 2


async def test_each_restore_is_another_log(on_files: Restorable) -> None:
    logs = []
    await on_files.backed_up()
    for _ in range(2):
        await on_files.killed_and_restored()
        async with agent(on_files.address, "rx", connect_timeout_s=60.0) as reader:
            logs.append(reader._dispatch.inbox._log)
    assert len(set(logs)) == 2
