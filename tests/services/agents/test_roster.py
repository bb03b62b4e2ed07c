"""Which orchestrators can start what, and whose turn it is."""

from __future__ import annotations

import pytest
import trio

from aether_trio.core import Core
from aether_trio.model.errors import Status
from tests.helpers.core import World, connect, pump
from tests.services.agents.ops import Op, operate, starter


async def picks(core: Core, profile: str, count: int) -> list[str]:
    found: list[str] = []
    for _ in range(count):
        picked = await core.roster.pick(profile)
        assert picked is not None
        found.append(picked.orchestrator)
    return found


async def test_they_take_turns(core: Core) -> None:
    assert await core.roster.pick("p") is None
    async with (
        connect(core, starter("1", "p")),
        connect(core, starter("2", "q", "p")),
        connect(core, starter("3", "q")),
    ):
        assert await picks(core, "p", 4) == ["orc::o::1", "orc::o::2"] * 2
        assert await picks(core, "q", 3) == ["orc::o::2", "orc::o::3", "orc::o::2"]
        assert await core.roster.pick("r") is None


async def test_whoever_comes_waits_for_its_turn(core: Core) -> None:
    async with connect(core, starter("9", "p")):
        assert await picks(core, "p", 3) == ["orc::o::9"] * 3
        async with connect(core, starter("1", "p")):
            assert await picks(core, "p", 3) == ["orc::o::9", "orc::o::1", "orc::o::9"]


async def test_somebody_may_be_left_out(core: Core) -> None:
    async with connect(core, starter("1", "p")), connect(core, starter("2", "p")):
        for _ in range(2):
            picked = await core.roster.pick("p", but={"orc::o::1"})
            assert picked is not None
            assert picked.orchestrator == "orc::o::2"
        assert await core.roster.pick("p", but={"orc::o::1", "orc::o::2"}) is None


async def test_whoever_has_left_is_not_picked_from_that_moment_on(core: Core) -> None:
    async with connect(core, starter("1", "p")), connect(core, starter("2", "p")) as second:
        second.finish()
        await second.wait_end()
        assert await picks(core, "p", 2) == ["orc::o::1"] * 2
        await pump()
        assert [entry.orchestrator for entry in await core.roster.entries()] == ["orc::o::1"]


async def test_a_successor_has_its_own_profiles(core: Core) -> None:
    async with connect(core, starter("1", "p", "q")):
        holder = core.registry.holder("orc::o::1")
        assert holder is not None
        async with connect(core, starter("1", "r", resume_session_id=holder.session_id)):
            await trio.sleep(1)
            assert await core.roster.pick("p") is None
            assert await picks(core, "r", 1) == ["orc::o::1"]


async def test_what_a_killed_gateway_has_left_behind_is_passed_over(world: World) -> None:
    async with world.open() as core:
        await world.state.execute(
            "INSERT INTO orchestrator_profiles (profile, orchestrator, session_id, connected_ms, turn) "
            "VALUES ($1, $2, $3, 0, 0)",
            b"p",
            "orc::o::dead",
            "gone",
        )
        assert await core.roster.pick("p") is None
        assert await world.state.fetch("SELECT orchestrator FROM orchestrator_profiles") == []


async def test_they_are_listed(core: Core) -> None:
    async with (
        connect(core, starter("2", "q", "p", "p")) as peer,
        connect(core, starter("1", "p")),
        connect(core, starter("none")),
    ):
        answer = await operate(peer, Op.LIST_ORCHESTRATORS)
        assert answer.success
        assert answer.total_count == 2
        assert [(one.orchestrator_id, list(one.profiles)) for one in answer.orchestrators] == [
            ("orc::o::1", ["p"]),
            ("orc::o::2", ["p", "q"]),
        ]
        assert {one.connected_at for one in answer.orchestrators} == {core.clock.now_ms() // 1000}


@pytest.mark.parametrize(
    ("profiles", "why"), [(["p"] * 65, "65 supported profiles"), ([""], "empty"), (["x" * 257], "256")]
)
async def test_what_cannot_be_served_is_refused_at_the_door(core: Core, profiles: list[str], why: str) -> None:
    async with connect(core, starter("1", *profiles), wait_ack=False) as peer:
        ended = await peer.wait_end()
    assert ended.status is Status.INVALID_ARGUMENT
    assert why in str(ended)
