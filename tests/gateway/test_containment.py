"""A defect that one connection meets ends that connection only, on each transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.delivery.outbox import Outbox
from aether_trio.model.errors import Status
from aether_trio.session.session import Session
from aether_trio.testing.memory import agent, message_to
from tests.client.gateways import open_test_gateway
from tests.gateway.sessions import session_of
from tests.helpers.core import kv_get
from tests.helpers.participants import TRANSPORTS, Participant, participant

B = "ag::w::b::1"


class DefectError(Exception):
    """An error that no code expects."""


def break_(monkeypatch: pytest.MonkeyPatch, outbox: Outbox, *names: str) -> None:
    """Let these methods of one connection's outbox raise."""

    def breaking(name: str) -> Callable[..., Any]:
        sound = getattr(Outbox, name)

        def method(self: Outbox, *args: Any, **keywords: Any) -> Any:
            if self is outbox:
                raise DefectError(name)
            return sound(self, *args, **keywords)

        return method

    for name in names:
        monkeypatch.setattr(Outbox, name, breaking(name))


async def still_works(one: Participant) -> None:
    await one.send(kv_get("still"))
    assert (await one.next("kv")).kv.request_id == "still"


@asynccontextmanager
async def two_clients(transport: str, **sections: Mapping[str, Any]) -> AsyncIterator[tuple[Participant, Session]]:
    """Client a and b's session, which fails in the block; a goes on, b reconnects."""
    async with (
        open_test_gateway(**sections) as gateway,
        participant("grpc", gateway.address, agent("w", "a", "1")) as a,
    ):
        async with participant(transport, gateway.address, agent("w", "b", "1")) as b:
            yield a, session_of(gateway, B)
            assert await b.status() is Status.UNKNOWN
        await still_works(a)
        async with participant(transport, gateway.address, agent("w", "b", "1")) as b:
            await still_works(b)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("where", ["pull", "flushed"])
async def test_writing_fails_in_the_task_of_others(
    transport: str, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_clients(transport) as (a, session):
        pulls = ("pull", "pull_control", "pull_deliveries") if where == "pull" else (where,)
        break_(monkeypatch, session.outbox, *pulls)
        await a.send(message_to(B, b"x"))  # the log's committer writes it to b
        await still_works(a)
    assert f"{B}, session {session.session_id}, {transport} from 127.0.0.1:" in caplog.text
    assert "DefectError" in caplog.text


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_writer_fails_behind_a_backlog(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_clients(transport, limits={"send_rate_per_s": 0.0}) as (a, session):
        while session.link.stalled_since is None:
            await a.send(message_to(B, bytes(1_000_000)))
            await still_works(a)
        break_(monkeypatch, session.outbox, "flushed", "pull", "pull_control", "pull_deliveries", "pull_ephemeral")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_task_of_the_session_fails(transport: str, caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise DefectError("in its nursery")

    async with two_clients(transport) as (_, session):
        assert session.nursery is not None
        session.nursery.start_soon(fail)
    assert f"{B}, session {session.session_id}" in caplog.text


STEPS = ("locks.release", "presence.ended", "tasks.ended", "conversations.ended")


@pytest.mark.parametrize("part", STEPS)
async def test_letting_go_goes_on_behind_a_step_that_fails(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_test_gateway() as gateway:
        hooks = gateway.core.hooks
        name, method = part.split(".")
        heard: list[str] = []

        def fail(session: Session) -> None:
            raise DefectError(part)

        for other in STEPS:
            owner, step = other.split(".")
            sound = getattr(getattr(hooks, owner), step)

            def hear(session: Session, other: str = other, sound: Callable[[Session], None] = sound) -> None:
                heard.append(other)
                sound(session)

            monkeypatch.setattr(getattr(hooks, owner), step, hear)
        monkeypatch.setattr(getattr(hooks, name), method, fail)
        async with participant("framed", gateway.address, agent("w", "b", "1")) as b:
            session = session_of(gateway, B)
            session.end(Status.CANCELLED, "by an operator")
            assert await b.status() is Status.CANCELLED
        with trio.fail_after(300):
            await session.wait_detached()
        assert len(heard) == 3
        assert part not in heard
