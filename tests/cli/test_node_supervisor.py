"""Test `aether dev --nodes` and `aether serve --workers`: several gateways."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from aether_trio.cli.app import app
from aether_trio.cli.node_supervisor import arguments_of
from aether_trio.cli.options import ServingOptions
from aether_trio.cli.workers import reserved_ports
from aether_trio.client import AgentClient
from aether_trio.config import Settings, load_settings
from aether_trio.transport.socket.listener import open_tcp_listeners
from tests.cli.shell import AETHER, aether
from tests.helpers.gateway import GatewayProcess, start_gateway
from tests.helpers.postgres import PostgresServer

LIMIT_S = 300.0


def wait_until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended. Before its parent waits for it, it is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *descendants(child)]
    return found


def takes_connections(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=LIMIT_S):
        return True
    return False


def agent_of(address: str, implementation: str) -> AgentClient:
    who = {"workspace": "default", "implementation": implementation, "specifier": "1"}
    return AgentClient(f"aether://{address}", **who, connect_timeout_s=LIMIT_S)


async def exchange(address: str, text: bytes, *, receive_only: bool = False) -> bytes:
    """Let an agent receive the text, which it sends to itself if it is not there."""
    with trio.fail_after(LIMIT_S):
        async with agent_of(address, "supervisor") as agent:
            if not receive_only:
                await agent.send(agent.topic, text)
            async for message in agent:
                # Earlier messages may come again after a kill.
                if message.payload == text:
                    return message.payload
    raise AssertionError("the client has ended")


async def leave_a_message(address: str, text: bytes) -> None:
    with trio.fail_after(LIMIT_S):
        async with agent_of(address, "sender") as agent:
            await agent.send("ag::default::supervisor::1", text)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Below a directory of this user alone; root's database runs as another user."""
    place = Path(tempfile.mkdtemp(prefix="aether-supervisor-"))
    yield place / "data"
    shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def dev_nodes(data_dir: Path) -> Iterator[GatewayProcess]:
    # A killed process leaves its scratch directory: here, where it is deleted.
    scratch = {"TMPDIR": str(data_dir.parent)}
    with start_gateway(data_dir=data_dir, command=(*AETHER, "dev", "--nodes", "1"), env=scratch) as running:
        yield running


@pytest.mark.crash
async def test_dev_nodes_keep_their_data_and_a_node_that_dies_is_started_again(data_dir: Path) -> None:
    with dev_nodes(data_dir) as cluster:
        (node,) = cluster.ready["nodes"]
        assert node["gateway"] != cluster.address
        assert await exchange(cluster.address, b"first") == b"first"
        os.kill(node["pid"], signal.SIGKILL)
        await trio.to_thread.run_sync(wait_until, lambda: "node-1 serves again" in cluster.output())
        assert "node-1 was ended by SIGKILL" in cluster.output()
        assert await exchange(node["gateway"], b"second") == b"second", "it is not on its own port"
        await leave_a_message(cluster.address, b"kept")
        family = descendants(cluster.pid)
        assert len(family) >= 3, "a node, a shell and a PostgreSQL"
        cluster.terminate()
        assert await trio.to_thread.run_sync(cluster.wait) == 0
        await trio.to_thread.run_sync(wait_until, lambda: all(map(gone, family)))
        await trio.to_thread.run_sync(cluster.start)
        assert await exchange(cluster.address, b"kept", receive_only=True) == b"kept"


@pytest.mark.crash
async def test_a_database_of_dev_nodes_that_dies_is_started_again(data_dir: Path) -> None:
    with dev_nodes(data_dir) as cluster:
        await leave_a_message(cluster.address, b"kept")
        postmaster = int((data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)
        await trio.to_thread.run_sync(wait_until, lambda: "the database is there again" in cluster.output())
        assert await exchange(cluster.address, b"kept", receive_only=True) == b"kept"


@pytest.mark.crash
def test_nothing_outlives_a_dev_nodes_that_is_killed(data_dir: Path) -> None:
    with dev_nodes(data_dir) as cluster:
        family = descendants(cluster.pid)
        assert len(family) >= 3
        cluster.kill()
        wait_until(lambda: all(map(gone, family)))


@pytest.mark.crash
async def test_a_worker_that_dies_is_started_again_on_the_same_port(postgres_server: PostgresServer) -> None:
    database = await trio.to_thread.run_sync(postgres_server.new_database)
    command = (*AETHER, "serve", "--workers", "1", "--host", "127.0.0.1", "--database", postgres_server.dsn(database))
    try:
        with start_gateway(
            ephemeral=True, command=command, extra_args=("--set", "auth.allow_anonymous=true", "--set", "grpc.port=0")
        ) as gateway:
            (worker,) = gateway.ready["nodes"]
            assert worker["transports"]["framed"] == gateway.address
            grpc = worker["transports"]["grpc"]
            assert grpc != gateway.address
            assert await exchange(gateway.address, b"first") == b"first"
            os.kill(worker["pid"], signal.SIGKILL)
            assert await exchange(gateway.address, b"second") == b"second"
            await trio.to_thread.run_sync(wait_until, lambda: takes_connections(grpc))
            family = descendants(gateway.pid)
            gateway.terminate()
            assert await trio.to_thread.run_sync(gateway.wait) == 0
            await trio.to_thread.run_sync(wait_until, lambda: all(map(gone, family)))
    finally:
        await trio.to_thread.run_sync(postgres_server.drop_database, database)


def test_sighup_is_handed_on_to_all_workers(postgres_server: PostgresServer, tmp_path: Path) -> None:
    settings, database = tmp_path / "aether.yaml", postgres_server.new_database()
    settings.write_text("auth: {allow_anonymous: true}")
    command = (*AETHER, "serve", "--workers", "2", "--host", "127.0.0.1", "--config", str(settings))
    try:
        with start_gateway(
            ephemeral=True, command=command, extra_args=("--database", postgres_server.dsn(database))
        ) as gateway:
            settings.write_text("auth: {api_keys: [nonsense]}")
            os.kill(gateway.pid, signal.SIGHUP)
            wait_until(lambda: gateway.output().count("the settings stay as they were") == 2)
            settings.write_text("auth: {allow_anonymous: true, api_keys: []}")
            os.kill(gateway.pid, signal.SIGHUP)
            wait_until(lambda: gateway.output().count("were read anew") == 2)
            gateway.terminate()
            assert gateway.wait() == 0
    finally:
        postgres_server.drop_database(database)


def test_a_worker_that_cannot_start_ends_the_command() -> None:
    command = "serve --workers 2 --host 127.0.0.1 --port 0 --ops-port 0 --set auth.allow_anonymous=true"
    command += " --database postgresql://absent@127.0.0.1:1/none"
    done = aether(*command.split())
    assert done.returncode == 3
    assert "before it served clients" in done.stderr
    assert "Traceback" not in done.stderr


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 3, result.output
    return result.output


def test_workers_without_a_database_are_refused() -> None:
    assert "--database" in refused("serve", "--workers", "2", "--host", "127.0.0.1")


def test_nodes_without_the_extra_are_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "asyncpg" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    said = refused("dev", "--nodes", "3")
    assert "asyncpg" in said
    assert "pip install 'aether-trio[cluster]'" in said


def test_nodes_cannot_all_have_one_port() -> None:
    assert "framed.port" in refused("dev", "--nodes", "2", "--set", "framed.port=4000")


def test_a_member_gets_the_flags_then_the_sets_then_what_is_its_own() -> None:
    arguments = arguments_of(
        "serve",
        ServingOptions(
            {"gateway.port": 1, "gateway.ephemeral": True, "logging.level": None}, ("gateway.port=2",), "aether.yaml"
        ),
        {"gateway.port": 3, "gateway.node_name": "b"},
    )
    assert arguments[:3] == ["serve", "--config", "aether.yaml"]
    given = [one for one in arguments[3:] if one != "--set"]
    ports = [f"gateway.port={port}" for port in (1, 2, 3)]
    assert given == [ports[0], "gateway.ephemeral=true", *ports[1:], "gateway.node_name=b"]
    settings = load_settings(None, {}, {}, given)
    assert settings.gateway.port == 3
    assert settings.gateway.ephemeral


def settings_with(*sets: str) -> Settings:
    return load_settings(None, {}, {"gateway.host": "127.0.0.1"}, sets)


def test_reserved_ports_are_taken_for_other_processes() -> None:
    with reserved_ports(settings_with("gateway.port=0", "framed.port=0")) as ports:
        assert set(ports) == {"gateway.port", "framed.port"}
        assert len({0, *ports.values()}) == 3
        for port in ports.values():
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))


def test_workers_share_what_is_reserved_and_no_connection_goes_to_who_reserved_it() -> None:
    with reserved_ports(settings_with("gateway.port=0")) as ports, contextlib.ExitStack() as stack:
        port = ports["gateway.port"]
        listeners = [open_tcp_listeners("127.0.0.1", port, reuse_port=True)[0] for _ in range(2)]
        for one in listeners:
            stack.enter_context(one)
        for _ in range(64):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        counts = []
        for one in listeners:
            counts.append(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    stack.enter_context(one.accept()[0])
                    counts[-1] += 1
        assert sum(counts) == 64
        assert min(counts) > 0, counts


def test_a_port_on_which_other_workers_listen_is_not_joined() -> None:
    with (
        open_tcp_listeners("127.0.0.1", 0, reuse_port=True)[0] as other,
        pytest.raises(OSError, match="in use"),
        reserved_ports(settings_with(f"gateway.port={other.getsockname()[1]}")),
    ):
        raise AssertionError("it was joined")
