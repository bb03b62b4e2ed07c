"""A gateway-wide task that fails starts again, and the gateway goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.log.deduplication import PublisherStore
from aether_trio.log.retention import Retention
from aether_trio.services.agents.autostart import Autostarter
from aether_trio.services.checkpoints import CheckpointService
from aether_trio.services.kv import KvService
from aether_trio.services.last_seen import LastSeenStore
from aether_trio.session.registry import SessionRegistry
from tests.helpers.core import agent, barrier, connect, deadlock_is_an_error, open_world, run_in_virtual_time
from tests.helpers.direct import SqliteStore


class DefectError(Exception):
    """An error that no code expects."""


@asynccontextmanager
async def opened() -> AsyncIterator[Core]:
    with open_world(SqliteStore()) as world:
        async with deadlock_is_an_error(), world.open() as core:
            yield core


def fails_once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> Callable[[], int]:
    """Let this method raise the first time; how often it was called."""
    calls = 0
    sound = getattr(owner, name)

    def method(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise DefectError(name)
        return sound(*args, **keywords)

    monkeypatch.setattr(owner, name, method)
    return lambda: calls


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Autostarter, "_check"),
        (Autostarter, "_pause_s"),
        (LastSeenStore, "flush"),
        (LastSeenStore, "_sweep_page"),
        (Retention, "sweep"),
        (PublisherStore, "sweep"),
        (KvService, "sweep_forever"),
        (CheckpointService, "sweep_forever"),
        (SessionRegistry, "__iter__"),
    ],
)
def test_it_runs_anew(
    owner: type, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        if owner is not SessionRegistry:
            calls = fails_once(monkeypatch, owner, name)
        async with opened() as core, connect(core, agent("w", "b", "1")) as b:
            if owner is SessionRegistry:  # the start looks at the sessions, too
                calls = fails_once(monkeypatch, owner, name)
            async with connect(core, agent("w", "a", "1")):
                pass
            core.autostarter._queue.target_absent("ag::w::c::1")
            while calls() < 2:
                await trio.sleep(1)
            await barrier(b)

    run_in_virtual_time(main)
    assert "DefectError" in caplog.text


def test_presence_of_a_session_that_ended_before_the_mistake_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though no other session ends."""

    async def main() -> None:
        fails_once(monkeypatch, LastSeenStore, "_write")
        async with opened() as core:
            async with connect(core, agent("w", "a", "1")):
                pass
            while not await core.presence._database.fetch("SELECT 1 FROM presence"):
                await trio.sleep(1)

    run_in_virtual_time(main)


def test_an_identity_that_cannot_be_looked_at_keeps_no_others_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What one of them meets every time."""

    async def main() -> None:
        looked: list[str] = []

        async def unread(identity: str) -> tuple[int, int]:
            if identity == "ag::w::bad::1":
                raise DefectError(identity)
            looked.append(identity)
            return 0, 0

        async with opened() as core:
            monkeypatch.setattr(core.autostarter, "_unread", unread)
            monkeypatch.setattr(core.autostarter, "_is_registered", lambda _: True)
            core.autostarter._queue.agent_ended("ag::w::bad::1")
            core.autostarter._queue.agent_ended("ag::w::good::1")
            while not looked:
                await trio.sleep(1)
            assert not core.autostarter._queue.ended

    run_in_virtual_time(main)
    assert "DefectError" in caplog.text
