"""URLs with several hosts: the first primary is taken, no password is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
import trio
from asyncpg.exceptions import ProtocolError

from aether_trio.devtools.ports import held_port
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.database import open_postgres
from aether_trio.storage.postgres.errors import is_outage, setup_error
from aether_trio.storage.postgres.hosts import each_host, first_to_succeed, where
from tests.helpers.engines import PostgresEngine
from tests.helpers.postgres import PostgresServer, open_postgres_server
from tests.storage.programs import LONG_S


@pytest.mark.parametrize(
    ("dsn", "hosts"),
    [
        ("postgresql://h/db", ["postgresql://h/db"]),
        ("postgresql:///db?host=/run/a", ["postgresql:///db?host=/run/a"]),
        (
            "postgresql://u:p%40@a:1,[::1]:2,c/db?sslmode=require",
            [
                "postgresql://u:p%40@a:1/db?sslmode=require",
                "postgresql://u:p%40@[::1]:2/db?sslmode=require",
                "postgresql://u:p%40@c/db?sslmode=require",
            ],
        ),
        (
            "postgresql://u@/db?host=/run/a,b&port=1,2&sslmode=prefer",
            ["postgresql://u@/db?host=/run/a&port=1&sslmode=prefer", "postgresql://u@/db?host=b&port=2&sslmode=prefer"],
        ),
        ("postgresql://a,b/db?port=7", ["postgresql://a/db?port=7", "postgresql://b/db?port=7"]),
    ],
)
def test_a_url_for_each_host(dsn: str, hosts: list[str]) -> None:
    assert each_host(dsn) == hosts


@pytest.mark.parametrize(
    ("dsn", "text"),
    [
        ("postgresql://u:sec%40ret@a:1,b:2/db?sslmode=require", "a:1,b:2/db"),
        ("postgresql://u@/db?host=/run/a&port=1", "/run/a/db"),
        ("postgresql:///db", "localhost/db"),
        ("postgresql://u:sec@ret@a/db", "of this URL"),
        ("postgresql://u:sec/ret@a/db", "of this URL"),
        ("postgresql://u:sec#ret@a/db", "of this URL"),
    ],
)
def test_where_the_servers_are_without_what_lets_in(dsn: str, text: str) -> None:
    assert where(dsn) == text
    assert "sec" not in where(dsn)


@pytest.mark.parametrize(
    "dsn", ["postgresql://u:sec/ret@a/db", "postgresql://u:sec@ret@a/db", "postgresql://u:s#ret@a/x"]
)
def test_a_password_that_is_not_escaped_is_not_repeated(dsn: str) -> None:
    text = str(setup_error(dsn, ValueError("invalid literal for int() with base 10: 'sec'")))
    assert "%40 for @" in text
    assert "sec" not in text
    assert "ret" not in text


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (asyncpg.TargetServerAttributeNotMatched("none"), "is a standby. Name the primary"),
        (asyncpg.DiskFullError("could not extend file"), "has no room left on its disk. Make some"),
        (asyncpg.TooManyConnectionsError("sorry"), "has no connection left. Raise its max_connections"),
        (asyncpg.CannotConnectNowError("starting up"), "does not take connections now"),
        (asyncpg.InsufficientPrivilegeError("permission denied"), "lacks a right for this role"),
        (ConnectionRefusedError(), "cannot be reached. Check that it runs"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Exception) else "",
)
def test_what_is_wrong_comes_with_what_to_do(error: Exception, advice: str) -> None:
    assert f"the PostgreSQL server db-1,db-2/fabric {advice}" in str(
        setup_error("postgresql://u:p@db-1,db-2/fabric", error)
    )


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionResetError("reset by peer"), True),
        (TimeoutError(), True),
        (asyncpg.TooManyConnectionsError("sorry, too many clients already"), True),
        (asyncpg.CannotConnectNowError("the database system is starting up"), True),
        (asyncpg.DeadlockDetectedError("deadlock detected"), True),
        (asyncpg.TargetServerAttributeNotMatched("none is a primary"), True),
        # The link was cut while asyncpg went from one step of the handshake to the next.
        (asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"), True),
        (ProtocolError("unknown message 'H'"), False),
        (asyncpg.InvalidPasswordError("password authentication failed"), False),
        (asyncpg.InvalidCatalogNameError('database "x" does not exist'), False),
        (ValueError("invalid port"), False),
    ],
)
def test_an_outage_is_waited_for_and_a_mistake_is_not(error: Exception, passes: bool) -> None:
    assert is_outage(error) is passes


async def test_a_url_that_cannot_work_is_refused_with_the_way_out(postgres_engine: PostgresEngine) -> None:
    plain = postgres_engine.server.dsn()
    sign = "&" if "?" in plain else "?"
    with held_port() as nobodys:
        for dsn, text in (
            (f"{plain}{sign}sslmode=sometimes", "cannot be used: `sslmode` parameter must be one of"),
            (f"{plain}{sign}sslmod=require", "does not know a setting that the URL names"),
            (f"{plain}{sign}work_mem=much", "does not accept a setting that the URL names"),
            ("postgresql://u@h:many/db", "the PostgreSQL URL of h:many/db cannot be used"),
            (postgres_engine.server.dsn("nowhere"), "nowhere has no such database. Create it"),
            (f"postgresql://someone:secret@127.0.0.1:{nobodys}/x", "cannot be reached. Check that it runs"),
            (plain.replace("postgres@", "unknown@"), "refuses this user"),
        ):
            with pytest.raises(StorageSetupError, match=text) as caught:
                async with open_postgres(dsn, limits=PostgresLimits(patience_s=0.3)) as server:
                    await server.database("state")
            assert "secret" not in str(caught.value)
    with pytest.raises(StorageSetupError, match="cannot be the name of a schema"):
        async with open_postgres(plain, schema="x; DROP"):
            pass


@pytest.fixture
def deaf() -> Iterator[str]:
    """HOST:PORT of a server that accepts and never answers, like a vanished host."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        host, port = listener.getsockname()
        yield f"{host}:{port}"


@pytest.fixture
def tcp_server() -> Iterator[PostgresServer]:
    with open_postgres_server(tcp=True) as server:
        yield server


async def test_silent_or_absent_hosts_do_not_keep_from_the_primary(deaf: str, tcp_server: PostgresServer) -> None:
    # Only the first would be asked if these limits were for all together.
    limits = PostgresLimits(connect_s=LONG_S, patience_s=2 * LONG_S)
    with held_port() as nobodys, trio.fail_after(LONG_S / 2):
        hosts = f"{deaf},127.0.0.1:{nobodys},127.0.0.1:{tcp_server.port}"
        async with open_postgres(f"postgresql://postgres@{hosts}/postgres", limits=limits) as server:
            database = await server.database("scratch")
            assert await database.fetch("SHOW port") == [(str(tcp_server.port),)]


class Connection:
    def __init__(self) -> None:
        self.terminated = False

    def terminate(self) -> None:
        self.terminated = True


def passes(error: BaseException) -> bool:
    return isinstance(error, (OSError, LookupError))


def test_the_first_that_answers_is_taken_and_the_others_are_given_up() -> None:
    async def main() -> None:
        slow, quick, late = Connection(), Connection(), Connection()
        go = asyncio.Event()
        began: list[str] = []

        async def first() -> Any:
            began.append("first")
            await go.wait()
            return slow

        async def second() -> Any:
            began.append("second")
            go.set()
            return quick

        async def third() -> Any:
            began.append("third")
            return late

        assert await first_to_succeed([first, second, third], passes, next_s=0.01) in (slow, quick)
        assert began == ["first", "second"]
        assert slow.terminated != quick.terminated
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_what_waiting_cannot_mend_is_raised_at_once_and_else_what_says_most() -> None:
    async def fail(error: Exception) -> Any:
        raise error

    async def main() -> None:
        def attempts(*errors: Exception) -> list[Any]:
            return [lambda error=error: fail(error) for error in errors]

        with pytest.raises(PermissionError, match="who are you"):
            await first_to_succeed(
                attempts(LookupError("a standby"), PermissionError("who are you"), OSError("x")), passes_most
            )
        with pytest.raises(ConnectionRefusedError):
            await first_to_succeed(attempts(ConnectionRefusedError(), LookupError("a standby")), passes)
        with pytest.raises(LookupError, match="the other"):
            await first_to_succeed(attempts(LookupError("one"), LookupError("the other")), passes)

    def passes_most(error: BaseException) -> bool:
        return not isinstance(error, PermissionError)

    asyncio.run(main())
