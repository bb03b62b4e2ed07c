"""When an identity was last seen: known from the session's end, over restarts."""

from __future__ import annotations

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from tests.helpers.core import World, agent, connect, deadlock_is_an_error, orchestrator, pump, user
from tests.services.test_sessions import status


def now_s(core: Core) -> int:
    return core.clock.now_ms() // 1000


async def assert_seen(core: Core, session_id: str) -> None:
    """Check that this is the session in which the agent was last seen."""
    seen = await core.presence.seen("ag::w::a::1")
    assert seen is not None
    assert seen.history.session_id == session_id


async def test_what_the_database_does_not_know_yet_is_known_all_the_same(core: Core) -> None:
    async with connect(core, agent("w", "a", "1")) as peer:
        await peer.next("config")
        session = core.registry.holder("ag::w::a::1")
        assert session is not None
        session.end(Status.CANCELLED, "gone")
        assert core.registry.holder("ag::w::a::1") is None
        await assert_seen(core, session.session_id)


async def test_the_windows_of_a_user_count_for_the_user(core: Core) -> None:
    async with connect(core, orchestrator("o", "1")) as asker:
        assert (await status(asker, "user", "u")).last_seen_at == 0
        async with connect(core, user("u", "one")):
            live = await status(asker, "user", "u")
            assert (live.ok, live.connected) == (True, True)
        await pump()
        gone = await status(asker, "user", "u")
        assert (gone.ok, gone.connected, gone.last_seen_at) == (True, False, now_s(core))


async def test_it_is_known_after_a_restart(world: World) -> None:
    async with deadlock_is_an_error():
        async with world.open() as core:
            async with connect(core, agent("w", "a", "1")):
                pass
            seen_at = now_s(core)
        async with world.open() as core, connect(core, orchestrator("o", "1")) as asker:
            answer = await status(asker, "agent", "ag::w::a::1")
            assert (answer.connected, answer.last_seen_at) == (False, seen_at)


async def test_the_end_of_a_displaced_session_does_not_hide_its_successors(core: Core) -> None:
    async with connect(core, agent("w", "a", "1"), wait_ack=False) as first:
        ack = (await first.next("connection_ack")).connection_ack
        async with connect(core, agent("w", "a", "1", resume_session_id=ack.session_id)):
            successor = core.registry.holder("ag::w::a::1")
            assert successor is not None
            successor.end(Status.CANCELLED, "gone at once")
            await assert_seen(core, successor.session_id)
    await pump()
    await assert_seen(core, successor.session_id)
