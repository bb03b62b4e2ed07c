"""Test that the blocking client has every method and docstring of the async one."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import aether_trio.client
from aether_trio.client import AgentClient, Client
from aether_trio.client.blocking.bridge import Blocking
from aether_trio.client.blocking.client import SyncClient, SyncPublication
from aether_trio.client.blocking.operations import SyncGrantCache, SyncProxiedRequest, SyncResponse, SyncTunnel
from aether_trio.client.connection.outgoing_messages import Publication
from aether_trio.client.operations import NAMESPACES
from aether_trio.client.operations.grant_cache import GrantCache
from aether_trio.client.operations.proxy import StreamedResponse
from aether_trio.client.operations.proxy_service import ProxiedRequest
from aether_trio.client.operations.tunnels import Tunnel
from tests.client.operations.calls import public_methods

GENERATOR = Path(__file__).parents[3] / "scripts/generate_blocking.py"

KINDS = [one for one in vars(aether_trio.client).values() if isinstance(one, type) and issubclass(one, Client)]
SYNC_NAMESPACES = {name: getattr(SyncClient, name) for name in NAMESPACES}


def public(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}


def test_every_method_of_every_namespace_is_reachable() -> None:
    there = {
        f"{name}.{method}"
        for name, kind in SYNC_NAMESPACES.items()
        for method, found in inspect.getmembers(kind, inspect.isfunction)
        if not method.startswith("_") and method != "within"
    }
    assert there == public_methods()


def test_the_generated_module_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, GENERATOR, "--check"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_every_coroutine_of_every_client_is_reachable() -> None:
    wanted = {
        name
        for kind in KINDS
        for name, found in inspect.getmembers(kind, inspect.iscoroutinefunction)
        if not name.startswith("_")
    }
    assert wanted - ASYNC_ONLY <= public(SyncClient)


ASYNC_ONLY = {"serve_workflows"}
"""Durable functions are coroutine functions."""

OF_THE_ASYNC_CLIENT = {
    "assigned_id",
    "config",
    "connections",
    "from_environment",
    "negotiated_extensions",
    "resumed",
    "server_extensions",
    "session_id",
    "state",
}
"""Plain values, which `client` has, and how to make one."""


def test_nothing_public_of_a_client_is_missing() -> None:
    missing = {name for kind in KINDS for name in public(kind)} - public(SyncClient)
    assert missing == OF_THE_ASYNC_CLIENT | ASYNC_ONLY


@pytest.mark.parametrize(
    ("blocking", "target"),
    [
        (SyncTunnel, Tunnel),
        (SyncGrantCache, GrantCache),
        (SyncProxiedRequest, ProxiedRequest),
        (SyncResponse, StreamedResponse),
        (SyncPublication, Publication),
    ],
)
def test_what_blocks_yield_is_reachable(blocking: type, target: type) -> None:
    coroutines = {name for name, _ in inspect.getmembers(target, inspect.iscoroutinefunction) if name[0] != "_"}
    assert coroutines <= public(blocking)


@pytest.mark.parametrize("name", sorted(NAMESPACES))
def test_signatures_and_words_are_kept(name: str) -> None:
    for method, there in inspect.getmembers(NAMESPACES[name], inspect.isfunction):
        if not method.startswith("_") and method != "within":
            here = getattr(SYNC_NAMESPACES[name], method)
            assert inspect.signature(here) == inspect.signature(there)
            assert here.__doc__ == there.__doc__
            assert not inspect.iscoroutinefunction(here)


def test_a_blocking_object_says_what_it_is() -> None:
    assert "Publication" in repr(Blocking(None, Publication(1, "t", b"", 6, b"", confirm=True)))  # type: ignore[arg-type]
    assert issubclass(SyncClient, Blocking)
    assert Client in AgentClient.__mro__
