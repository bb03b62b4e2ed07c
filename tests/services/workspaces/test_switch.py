"""SwitchWorkspace: which clients may, what gets no reply, what a failure changes."""

from __future__ import annotations

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Code
from tests.helpers.core import (
    World,
    agent,
    barrier,
    connect,
    errors,
    message_to,
    payloads,
    pump,
    service,
    switch_to,
    user,
)


def workspace_of(core: Core) -> str:
    session = core.registry.holder("us::u::1")
    assert session is not None
    return session.workspace


async def test_a_switch_is_silent(core: Core) -> None:
    async with connect(core, user("u", "1")) as window:
        for workspace in ("w", "w", "v", "", ""):
            window.send(switch_to(workspace))
            await barrier(window)
            assert workspace_of(core) == workspace
        assert {one.WhichOneof("payload") for one in window._downstream} == {"checkpoint"}


@pytest.mark.parametrize("hello", [agent("w", "a", "1"), service("s", "1")])
async def test_only_users_switch(core: Core, hello: object) -> None:
    async with connect(core, hello) as peer:  # type: ignore[arg-type]
        peer.send(switch_to("v"))
        assert (await peer.next("error")).error.code == Code.INVALID_PRINCIPAL


@pytest.mark.parametrize("name", ["a b", "a::b", "*", "x" * 129, "\x00"])
async def test_a_bad_name_changes_nothing(core: Core, name: str) -> None:
    async with connect(core, user("u", "1")) as window:
        window.send(switch_to("w"), switch_to(name))
        assert (await window.next("error")).error.code == Code.WORKSPACE_SWITCH_FAILED
        assert workspace_of(core) == "w"


@pytest.mark.usefixtures("every_name_may_exist")
async def test_a_switch_that_storage_refuses_changes_nothing_and_may_be_tried_again(core: Core, world: World) -> None:
    async with connect(core, user("u", "1")) as window, connect(core, service("s", "1")) as sender:
        window.send(switch_to("w"))
        await barrier(window, sender)
        world.log.failing = True
        window.send(switch_to("v"))
        error = (await window.next("error")).error
        assert (error.code, error.retryable) == (Code.WORKSPACE_SWITCH_FAILED, True)
        world.log.failing = False
        assert workspace_of(core) == "w"
        sender.send(message_to("gu::w", b"still"), message_to("gu::v", b"not yet"))
        await barrier(sender)
        assert payloads(window) == [b"still"]
        window.send(switch_to("v"))
        await barrier(window)
        assert errors(window) == []
        assert workspace_of(core) == "v"


async def test_a_session_that_ends_while_it_switches_leaves_nothing(core: Core, world: World) -> None:
    async with connect(core, user("u", "1")) as window:
        await pump()
        world.log.after_read.close()
        window.send(switch_to("w"))
        await world.log.after_read.arrival()
        window.cut()
        await pump()
        world.log.after_read.open()
    await core.log.drain()
    await pump()
    assert not core.log.topics.ensure("gu::w").subscribers
    assert core.log.topics.ensure("gu::w").waiting == 0
