"""Open a real gateway, and run tests on trio, on asyncio and in threads.

    @with_gateway(schemes=SCHEMES)
    async def test_an_agent_connects(address: str) -> None:
        async with agent(address, "a"):
            ...

The body is an anyio function. On asyncio it runs in a thread with another event loop, and talks to
the gateway through a socket as every client does.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import Any

import anyio
import pytest
import trio
from trio.testing import MockClock

from aether_trio.client import AgentClient, ClientOptions, Retry
from aether_trio.gateway import Gateway, open_gateway
from tests.helpers.core import settings_for_tests

QUICK = Retry(base_s=0.01, cap_s=0.2)

BACKENDS = ("trio", "asyncio")
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


async def run_on(backend: str, body: Callable[..., Any], *args: Any) -> None:
    """Run the body in this trio run, on asyncio, or as a script in a thread."""
    with trio.fail_after(300):
        if backend == "trio":
            await body(*args)
        else:
            run = body if backend == "thread" else partial(anyio.run, body, backend="asyncio")
            await trio.to_thread.run_sync(run, *args, abandon_on_cancel=True)


def with_gateway(
    *, backends: Sequence[str] = BACKENDS, schemes: Sequence[str] = ("aether",)
) -> Callable[[Callable[..., Any]], Any]:
    """Make tests of a function that takes a gateway's address, and fixtures.

    It runs once for each backend (a plain function on "thread") and each transport.
    """

    def decorate(body: Callable[..., Any]) -> Any:
        @pytest.mark.parametrize("scheme", schemes)
        @pytest.mark.parametrize("backend", backends)
        @wraps(body)
        async def test(backend: str, scheme: str, **fixtures: Any) -> None:
            async with open_test_gateway() as gateway:
                await run_on(backend, partial(body, **fixtures), f"{scheme}://{gateway.address}")

        kind = inspect.Parameter.KEYWORD_ONLY
        own = [inspect.Parameter(name, kind) for name in ("backend", "scheme")]
        rest = [one.replace(kind=kind) for one in list(inspect.signature(body).parameters.values())[1:]]
        test.__signature__ = inspect.Signature([*own, *rest])
        return test

    return decorate


in_a_thread = with_gateway(backends=["thread"])
"""Make a test of a script that blocks."""


def agent(address: str, specifier: str, **options: Any) -> AgentClient:
    chosen: ClientOptions = {"retry": QUICK, **options}  # type: ignore[typeddict-item]
    return AgentClient(address, workspace="w", implementation="i", specifier=specifier, **chosen)
