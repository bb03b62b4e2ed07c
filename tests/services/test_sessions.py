"""Session list, get and disconnect, and the status of one principal."""

from __future__ import annotations

from typing import NoReturn

import pytest
import trio

from aether_trio.gateway.core import Core
from aether_trio.model.identity import Identity
from aether_trio.model.ownership import DisconnectOutcome, DisconnectResult, SessionRecord
from aether_trio.storage.base import StorageUnavailable
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import (
    World,
    agent,
    barrier,
    connect,
    orchestrator,
    pump,
    service,
    switch_to,
    user,
    workflow_engine,
)

Op = pb.SessionOperation


async def operate(peer: MemoryLink, op: Op.OpType.ValueType, **fields: object) -> pb.SessionOperationResponse:
    peer.send(pb.UpstreamMessage(session_op=Op(op=op, request_id="r", **fields)))  # type: ignore[arg-type]
    response = (await peer.next("session_response")).session_response
    assert response.request_id == "r"
    return response


async def status(peer: MemoryLink, kind: str, name: str) -> pb.ConnectionStatusResponse:
    principal = pb.PrincipalRef(principal_type=kind, principal_id=name)
    request = pb.ConnectionStatusRequest(request_id="r", principal=principal)
    peer.send(pb.UpstreamMessage(connection_status_request=request))
    response = (await peer.next("connection_status_response")).connection_status_response
    assert response.request_id == "r"
    return response


@pytest.mark.parametrize("hello", [agent("w", "a", "1"), user("u", "1"), service("s", "1")])
async def test_others_than_the_system_may_not(core: Core, hello: pb.UpstreamMessage) -> None:
    async with connect(core, hello) as peer:
        for op in (Op.LIST, Op.GET, Op.DISCONNECT):
            response = await operate(peer, op)
            assert not response.success
            assert "admin/sessions" in response.error


async def test_a_participant_of_a_workspace_can_list_its_sessions(core: Core) -> None:
    async with (
        connect(core, user("u", "1")) as window,
        connect(core, agent("w", "a", "1")) as peer,
        connect(core, agent("v", "a", "1")),
    ):
        here = pb.ConnectionFilter(workspace="w")
        # Not there yet.
        assert "admin/sessions" in (await operate(window, Op.LIST, filter=here)).error
        window.send(switch_to("w"))
        await barrier(window)
        for one in (window, peer):
            response = await operate(one, Op.LIST, filter=here)
            assert (response.success, response.error) == (True, "")
            assert [found.identity for found in response.connections] == ["ag::w::a::1", "us::u::1"]
            assert response.connections[0].implementation == "a"
            # Knowing a session's id is enough to resume it.
            assert not any(found.session_id or found.remote_addr for found in response.connections)
        for wanted in (pb.ConnectionFilter(workspace="v"), pb.ConnectionFilter()):
            assert "admin/sessions" in (await operate(window, Op.LIST, filter=wanted)).error
        assert "admin/sessions" in (await operate(window, Op.GET, filter=here, session_id="x")).error
        assert "admin/sessions" in (await operate(window, Op.DISCONNECT, filter=here, session_id="x")).error


@pytest.mark.parametrize("hello", [workflow_engine(), orchestrator("k", "1")])
async def test_the_list_is_filtered_and_paged(core: Core, hello: pb.UpstreamMessage) -> None:
    async with (
        connect(core, hello) as peer,
        connect(core, agent("w", "a", "1")),
        connect(core, agent("w", "a", "2")),
        connect(core, agent("v", "a", "1")),
        connect(core, user("u", "1")) as window,
    ):
        window.send(switch_to("w"))
        await barrier(window)

        async def listed(**wanted: object) -> tuple[list[str], int]:
            response = await operate(peer, Op.LIST, filter=pb.ConnectionFilter(**wanted))  # type: ignore[arg-type]
            assert response.success
            return [one.identity for one in response.connections], response.total_count

        agents = ["ag::v::a::1", "ag::w::a::1", "ag::w::a::2"]
        assert (await listed())[1] == 5
        assert await listed(type=pb.PRINCIPAL_AGENT) == (agents, 3)
        assert await listed(workspace="w") == (["ag::w::a::1", "ag::w::a::2", "us::u::1"], 3)
        assert await listed(type=pb.PRINCIPAL_USER, workspace="v") == ([], 0)
        assert await listed(type=pb.PRINCIPAL_AGENT, limit=2) == (agents[:2], 3)
        assert await listed(type=pb.PRINCIPAL_AGENT, limit=2, offset=2) == (agents[2:], 3)
        assert await listed(type=pb.PRINCIPAL_AGENT, limit=-1, offset=-5) == (agents, 3)


async def test_what_is_told_of_a_connection(core: Core) -> None:
    async with (
        connect(core, orchestrator("k", "1")) as peer,
        connect(core, agent("w", "a", "1"), wait_ack=False) as one,
    ):
        session_id = (await one.next("connection_ack")).connection_ack.session_id
        start = core.clock.now_ms() // 1000
        await trio.sleep(3725)
        one.send(switch_to(""))  # an activity, though refused
        await barrier(one)
        info = (await operate(peer, Op.GET, session_id=session_id)).connection
        assert info == pb.ConnectionInfo(
            session_id=session_id,
            type=pb.PRINCIPAL_AGENT,
            identity="ag::w::a::1",
            workspace="w",
            implementation="a",
            specifier="1",
            connected_at=start,
            duration="1h2m5s",
            remote_addr="memory:0",
            last_activity=start + 3725,
        )


@pytest.mark.parametrize(("op", "named"), [(Op.GET, "nothing"), (Op.DISCONNECT, "nothing"), (77, "")])
async def test_an_unknown_session_or_operation_is_a_failure(core: Core, op: Op.OpType.ValueType, named: str) -> None:
    async with connect(core, orchestrator("k", "1")) as peer:
        response = await operate(peer, op, session_id="nothing")
        assert not response.success
        assert named in response.error


async def test_a_disconnected_one_is_gone_from_the_list(core: Core) -> None:
    async with connect(core, orchestrator("k", "1")) as peer, connect(core, agent("w", "a", "1")) as one:
        session = core.registry.holder("ag::w::a::1")
        assert session is not None
        response = await operate(peer, Op.DISCONNECT, session_id=session.session_id, reason="enough")
        assert response.success
        assert (await operate(peer, Op.LIST)).total_count == 1
        assert (await one.next("signal")).signal.reason == "enough"
        again = await operate(peer, Op.DISCONNECT, session_id=session.session_id)
        assert not again.success


# -- status ----------------------------------------------------------------------------------------


async def test_everyone_may_ask_about_itself(core: Core) -> None:
    async with connect(core, agent("w", "a", "1")) as peer, connect(core, user("u", "1")) as window:
        answer = await status(peer, "agent", "ag::w::a::1")
        assert (answer.ok, answer.connected) == (True, True)
        for name in ("u", "us::u::1"):
            answer = await status(window, "user", name)
            assert (answer.ok, answer.connected) == (True, True)


async def test_others_need_to_be_allowed(core: Core) -> None:
    async with connect(core, agent("w", "a", "1")) as peer, connect(core, agent("w", "a", "2")):
        answer = await status(peer, "agent", "ag::w::a::2")
        assert (answer.ok, answer.connected) == (False, False)
        assert answer.error


async def test_last_seen_is_the_last_activity_of_the_living_and_the_end_of_the_gone(core: Core) -> None:
    async with connect(core, workflow_engine()) as peer:
        async with connect(core, agent("w", "a", "1")) as one:
            await trio.sleep(100)
            await barrier(one)
            seen = core.clock.now_ms() // 1000
            await trio.sleep(50)
            answer = await status(peer, "agent", "ag::w::a::1")
            assert (answer.connected, answer.last_seen_at) == (True, seen)
        answer = await status(peer, "agent", "ag::w::a::1")
        assert (answer.ok, answer.connected, answer.last_seen_at) == (True, False, seen + 50)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("agent", "nonsense"), ("agent", "us::u::1"), ("dragon", "ag::w::a::1"), ("", ""), ("user", ""), ("user", "a b")],
)
async def test_what_is_no_principal_is_a_typed_failure(core: Core, kind: str, name: str) -> None:
    async with connect(core, workflow_engine()) as peer:
        answer = await status(peer, kind, name)
        assert not answer.ok
        assert answer.error.startswith("principal: ")


async def test_storage_that_does_not_answer_is_a_typed_failure(core: Core, world: World) -> None:
    async with connect(core, workflow_engine()) as peer:
        await pump()
        world.state.failing = True
        answer = await status(peer, "agent", "ag::w::a::1")
        world.state.failing = False
        assert not answer.ok
        assert "storage" in answer.error


async def test_what_storage_does_not_tell_is_said_to_be_unknown(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> NoReturn:
        raise StorageUnavailable("away")

    for name in ("page", "find", "disconnect", "last_seen", "user_last_seen"):
        monkeypatch.setattr(core.directory, name, away)
    async with connect(core, workflow_engine()) as peer, connect(core, agent("w", "a", "1")) as one:
        for op in (Op.LIST, Op.GET, Op.DISCONNECT):
            response = await operate(peer, op)
            assert (response.success, response.error) == (False, "the gateway's storage does not answer: away")
        response = await operate(one, Op.LIST, filter=pb.ConnectionFilter(workspace="w"))
        assert (response.success, response.error) == (False, "the gateway's storage does not answer: away")
        for name in ("u", "us::u::1"):
            assert "does not answer" in (await status(peer, "user", name)).error


@pytest.mark.parametrize("outcome", DisconnectOutcome)
async def test_a_disconnect_without_a_confirmation_has_not_succeeded(
    core: Core, outcome: DisconnectOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def elsewhere(session_id: str, reason: str) -> DisconnectResult:
        assert (session_id, reason) == ("s", "why")
        return DisconnectResult(outcome, "ag::w::a::1")

    async def there(session_id: str) -> SessionRecord:
        return SessionRecord(session_id, Identity.agent("w", "a", "1"), "w", 0, "192.0.2.1:1", 0)

    monkeypatch.setattr(core.directory, "find", there)
    monkeypatch.setattr(core.directory, "disconnect", elsewhere)
    async with connect(core, workflow_engine()) as peer:
        response = await operate(peer, Op.DISCONNECT, session_id="s", reason="why")
        assert response.success == (outcome is DisconnectOutcome.DONE)
        assert bool(response.message) == response.success
        assert bool(response.error) == (not response.success)
        assert ("has not confirmed" in response.error) == (outcome is DisconnectOutcome.UNCONFIRMED)


async def test_a_kind_that_does_not_exist_has_no_sessions(core: Core) -> None:
    async with connect(core, workflow_engine()) as peer:
        for number in (9, 77, -1):
            wanted = pb.ConnectionFilter(type=number)  # type: ignore[arg-type]
            response = await operate(peer, Op.LIST, filter=wanted)
            assert (response.success, response.total_count, len(response.connections)) == (True, 0, 0)
