"""A real gateway in the test's own trio run, and test bodies that run on trio or on asyncio.

    async with open_test_gateway() as address:
        await everywhere(body, f"aether://{address}")

A body is an anyio function; on asyncio it runs in a thread with an event loop of its own, and talks
to the gateway through its socket as everybody does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import trio
from trio.testing import MockClock

from aether_trio.client import AgentClient, ClientOptions, Retry
from aether_trio.gateway import Gateway, open_gateway
from tests.helpers.core import settings_for_tests

QUICK = Retry(base_s=0.01, cap_s=0.2)

SCHEMES = ("aether", "ws", "grpc")
"""Addresses of all transports that a client speaks."""


@asynccontextmanager
async def open_test_gateway(**changes: Mapping[str, Any]) -> AsyncIterator[Gateway]:
    """All transports on one free port of 127.0.0.1.

    Every kind of participant may use WebSocket.

    Its sockets and the threads of its databases do not stop a clock that jumps: on one, every limit
    is over at once.
    """
    assert not isinstance(trio.lowlevel.current_clock(), MockClock), "this file must run in real time"
    sections = {
        "gateway": {"ephemeral": True, "host": "127.0.0.1", "port": 0},
        "ops": {"enabled": False},
        "websocket": {"principals": ("*",)},
    }
    for section, fields in changes.items():
        sections[section] = {**sections.get(section, {}), **fields}
    async with open_gateway(settings_for_tests(**sections)) as gateway:
        yield gateway


async def run_on(backend: str, body: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Run the body here, or on asyncio in a thread."""
    with trio.fail_after(300):
        if backend == "trio":
            await body(*args)
        else:
            await trio.to_thread.run_sync(partial(anyio.run, body, *args, backend="asyncio"), abandon_on_cancel=True)


def agent(address: str, specifier: str, **options: Any) -> AgentClient:
    """An agent of the workspace "w", implementation "i"."""
    chosen: ClientOptions = {"retry": QUICK, **options}  # type: ignore[typeddict-item]
    return AgentClient(address, workspace="w", implementation="i", specifier=specifier, **chosen)
