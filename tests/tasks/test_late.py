"""What is written late, because storage was away, must not be believed any more."""

from __future__ import annotations

from tests.helpers.core import agent, connect, open_world, pump
from tests.helpers.direct import Store


async def test_a_session_that_has_ended_does_not_join(store: Store) -> None:
    """A later session on another node may have the row that it would replace."""
    with open_world(store) as world:
        async with world.open() as core:
            async with connect(core, agent("w", "i", "a")) as link:
                await pump()
                session = core.registry.holder("ag::w::i::a")
                assert session is not None
                await core.tasks.engine.writes.flush()
                sessions = "SELECT session_id FROM task_workers"
                assert world.databases["tasks"].query(sessions) == [(session.session_id,)]
                link.cut()
                await pump(200)
            assert session.detached
            core.tasks.sessions.joined(session, resumed=False)
            await core.tasks.engine.writes.flush()
            assert world.databases["tasks"].query(sessions) == []
