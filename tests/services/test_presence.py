"""When an identity was last seen: known from the session's end, over restarts."""

from __future__ import annotations

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect, open_world, orchestrator, pump, user
from tests.helpers.direct import Store


async def status(asker: MemoryLink, kind: str, name: str) -> pb.ConnectionStatusResponse:
    principal = pb.PrincipalRef(principal_type=kind, principal_id=name)
    request = pb.ConnectionStatusRequest(request_id="s", principal=principal)
    asker.send(pb.UpstreamMessage(connection_status_request=request))
    return (await asker.next("connection_status_response")).connection_status_response


def now_s(core: Core) -> int:
    return core.clock.now_ms() // 1000


async def test_an_unknown_identity_was_never_seen(store: Store) -> None:
    with open_world(store) as world:
        async with world.open() as core, connect(core, agent("w", "a", "1")) as peer:
            await peer.next("config")
            session = core.registry.holder("ag::w::a::1")
            assert session is not None
            session.end(Status.CANCELLED, "gone")
            # No checkpoint since: what the database does not know yet is known all the same.
            assert core.registry.holder("ag::w::a::1") is None
            seen = await core.presence.seen("ag::w::a::1")
            assert seen is not None
            assert seen.history.session_id == session.session_id


async def test_the_windows_of_a_user_count_for_the_user(store: Store) -> None:
    with open_world(store) as world:
        async with world.open() as core, connect(core, orchestrator("o", "1")) as asker:
            assert (await status(asker, "user", "u")).last_seen_at == 0
            async with connect(core, user("u", "one")):
                live = await status(asker, "user", "u")
                assert (live.ok, live.connected) == (True, True)
            await pump()
            gone = await status(asker, "user", "u")
            assert (gone.ok, gone.connected, gone.last_seen_at) == (True, False, now_s(core))


async def test_it_is_known_after_a_restart(store: Store) -> None:
    with open_world(store) as world:
        async with world.open() as core:
            async with connect(core, agent("w", "a", "1")):
                pass
            seen_at = now_s(core)
        async with world.open() as core, connect(core, orchestrator("o", "1")) as asker:
            answer = await status(asker, "agent", "ag::w::a::1")
            assert (answer.connected, answer.last_seen_at) == (False, seen_at)


async def test_the_end_of_a_displaced_session_does_not_hide_its_successors(store: Store) -> None:
    with open_world(store) as world:
        async with world.open() as core:
            async with connect(core, agent("w", "a", "1"), wait_ack=False) as first:
                ack = (await first.next("connection_ack")).connection_ack
                async with connect(core, agent("w", "a", "1", resume_session_id=ack.session_id)):
                    successor = core.registry.holder("ag::w::a::1")
                    assert successor is not None
                    successor.end(Status.CANCELLED, "gone at once")
                    seen = await core.presence.seen("ag::w::a::1")
                    assert seen is not None
                    assert seen.history.session_id == successor.session_id
            await pump()
            seen = await core.presence.seen("ag::w::a::1")
            assert seen is not None
            assert seen.history.session_id == successor.session_id
