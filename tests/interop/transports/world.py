"""The participants of one scenario, as clients of ours.

`transport` says how users connect: "framed" is every client over aether://, "ws" is users over
ws:// and the others, who may not use that transport, over aether://. `talker` is who plays a part
that a user may play too.

Silence is never proved by waiting, but by a marker: a message that comes after everything that was
sent before it.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, nullcontext
from typing import Any, Self

import pytest
import trio

from aether_trio.client import AgentClient, Client, IncomingMessage, ServiceClient, TaskClient, UserClient

LIMIT_S = 300.0
POLL_S = 0.05


class World:
    """Opens participants in a fresh workspace, and closes all of them at its end."""

    def __init__(self, target: str, transport: str) -> None:
        self.target = target
        self.transport = transport
        self.run = uuid.uuid4().hex[:10]
        self.ws, self.impl, self.uid = f"ws-{self.run}", f"impl-{self.run}", f"user-{self.run}"
        self._stack = AsyncExitStack()
        self._limit = trio.fail_after(LIMIT_S)

    async def __aenter__(self) -> Self:
        self._limit.__enter__()
        return self

    async def __aexit__(self, *exc: object) -> bool | None:
        try:
            return await self._stack.__aexit__(*exc)
        finally:
            self._limit.__exit__(*exc)

    def address(self, kind: type[Client]) -> str:
        scheme = "ws" if self.transport == "ws" and kind is UserClient else "aether"
        return f"{scheme}://{self.target}"

    async def open(self, kind: Callable[..., Any], **who: Any) -> Any:
        return await self._stack.enter_async_context(kind(self.address(kind), **who))  # type: ignore[arg-type]

    async def agent(self, specifier: str, *, ws: str = "", impl: str = "") -> AgentClient:
        who = {"workspace": ws or self.ws, "implementation": impl or self.impl, "specifier": specifier}
        return await self.open(AgentClient, **who)

    async def task(self, specifier: str = "") -> TaskClient:
        return await self.open(TaskClient, workspace=self.ws, implementation=self.impl, specifier=specifier)

    async def user(self, window: str, *, uid: str = "", ws: str = "") -> UserClient:
        client: UserClient = await self.open(UserClient, user_id=uid or self.uid, window_id=window)
        if ws:
            await client.switch_workspace(ws)
        return client

    async def service(self, specifier: str) -> ServiceClient:
        return await self.open(ServiceClient, implementation=self.impl, specifier=specifier)

    async def talker(self, name: str = "talker") -> Any:
        """Open the client whose transport is tried: a user on "ws", an agent otherwise."""
        return await (self.user(name, ws=self.ws) if self.transport == "ws" else self.agent(name))


async def take(client: Client) -> IncomingMessage:
    message = await client.receive()
    message.ack()
    return message


async def expect(client: Client, payload: bytes, source: Client | None = None) -> IncomingMessage:
    message = await take(client)
    assert message.payload == payload, f"{client.topic}: got {message.payload[:80]!r}, expected {payload[:80]!r}"
    if source is not None:
        assert message.source == source.topic
    return message


async def drain(client: Client, probe: Client) -> list[IncomingMessage]:
    """Everything that has come, up to a marker from `probe`."""
    marker = f"marker {uuid.uuid4().hex}".encode()
    await probe.send(client.topic, marker)
    got: list[IncomingMessage] = []
    while (message := await take(client)).payload != marker:
        got.append(message)
    return got


async def only(client: Client, probe: Client, *expected: bytes) -> list[IncomingMessage]:
    """Everything that has come; its payloads are `expected`."""
    got = await drain(client, probe)
    assert [message.payload for message in got] == list(expected), client.topic
    return got


async def alive(client: Client) -> None:
    """Its first connection is still up: a round trip that any participant may make."""
    await client.checkpoints.load("alive")
    assert client.connections == 1


async def until(probe: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """Repeat within the world's limit until the result is this."""
    while await probe() != wanted:
        await trio.sleep(POLL_S)


def _on(*transports: str) -> Callable[[Callable[..., Awaitable[None]]], Any]:
    def scenario(test: Callable[..., Awaitable[None]]) -> Any:
        @functools.wraps(test)
        async def run(**fixtures: Any) -> None:
            async with fixtures.get("world") or nullcontext():
                await test(**fixtures)

        return pytest.mark.parametrize("transport", transports)(run)

    return scenario


both = _on("framed", "ws")
"""Run a scenario on both transports. The clients of its fixture `world` are closed at its end."""
framed = _on("framed")
"""The same for a scenario in which no user takes part."""
