"""A defect that one connection meets ends that connection only, on each transport."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from aether_trio.delivery.outbox import Outbox
from aether_trio.gateway import Gateway
from aether_trio.model.errors import Status
from aether_trio.session.session import Session
from aether_trio.testing.memory import agent, message_to
from aether_trio.wire.pb import aether_pb2 as pb
from tests.client.gateways import open_test_gateway
from tests.helpers.participants import TRANSPORTS, Participant, participant

A, B = "ag::w::a::1", "ag::w::b::1"


class DefectError(Exception):
    """An error that no code expects."""


def kv_get(request_id: str = "1") -> pb.UpstreamMessage:
    op = pb.KVOperation(op=pb.KVOperation.GET, key="k", scope=pb.KVOperation.GLOBAL, request_id=request_id)
    return pb.UpstreamMessage(kv_op=op)


def session_of(gateway: Gateway, identity: str) -> Session:
    session = gateway.core.registry.holder(identity)
    assert isinstance(session, Session)
    return session


def break_(monkeypatch: pytest.MonkeyPatch, outbox: Outbox, *names: str) -> None:
    """Let these methods of one connection's outbox raise."""
    victim = outbox

    def breaking(name: str) -> Callable[..., Any]:
        sound = getattr(Outbox, name)

        def method(self: Outbox, *args: Any, **keywords: Any) -> Any:
            if self is victim:
                raise DefectError(name)
            return sound(self, *args, **keywords)

        return method

    for name in names:
        monkeypatch.setattr(Outbox, name, breaking(name))


async def still_works(one: Participant) -> None:
    await one.send(kv_get("still"))
    assert (await one.next("kv")).kv.request_id == "still"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("where", ["pull", "flushed"])
async def test_writing_fails_in_the_task_of_others(
    transport: str, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_test_gateway() as gateway:
        address = gateway.address
        async with participant("grpc", address, agent("w", "a", "1")) as a:
            async with participant(transport, address, agent("w", "b", "1")) as b:
                session = session_of(gateway, B)
                pulls = ("pull", "pull_control", "pull_deliveries") if where == "pull" else (where,)
                break_(monkeypatch, session.outbox, *pulls)
                await a.send(message_to(B, b"x"))  # the log's committer writes it to b
                await still_works(a)
                assert await b.status() is Status.UNKNOWN
            await still_works(a)
            assert f"{B}, session {session.session_id}, {transport} from 127.0.0.1:" in caplog.text
            assert "DefectError" in caplog.text
            async with participant(transport, address, agent("w", "b", "1")) as b:
                await still_works(b)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_writer_fails_behind_a_backlog(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_test_gateway(limits={"send_rate_per_s": 0.0}) as gateway:
        address = gateway.address
        async with participant("grpc", address, agent("w", "a", "1")) as a:
            async with participant(transport, address, agent("w", "b", "1")) as b:
                session = session_of(gateway, B)
                while session.link.stalled_since is None:
                    await a.send(message_to(B, bytes(1_000_000)))
                    await still_works(a)
                break_(
                    monkeypatch, session.outbox, "flushed", "pull", "pull_control", "pull_deliveries", "pull_ephemeral"
                )
                assert await b.status() is Status.UNKNOWN
            await still_works(a)
            async with participant(transport, address, agent("w", "b", "1")) as b:
                await still_works(b)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_task_of_the_session_fails(transport: str, caplog: pytest.LogCaptureFixture) -> None:
    async with open_test_gateway() as gateway:
        address = gateway.address
        async with participant("grpc", address, agent("w", "a", "1")) as a:
            async with participant(transport, address, agent("w", "b", "1")) as b:
                session = session_of(gateway, B)

                async def fail() -> None:
                    raise DefectError("in its nursery")

                assert session.nursery is not None
                session.nursery.start_soon(fail)
                assert await b.status() is Status.UNKNOWN
            await still_works(a)
            assert f"{B}, session {session.session_id}" in caplog.text
            async with participant(transport, address, agent("w", "b", "1")) as b:
                await still_works(b)


@pytest.mark.parametrize("part", ["locks.release", "presence.ended", "tasks.ended", "conversations.ended"])
async def test_letting_go_goes_on_behind_a_step_that_fails(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_test_gateway() as gateway:
        hooks = gateway.core.hooks
        name, method = part.split(".")
        heard: list[str] = []

        def fail(session: Session) -> None:
            raise DefectError(part)

        for other in ("locks.release", "presence.ended", "tasks.ended", "conversations.ended"):
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
