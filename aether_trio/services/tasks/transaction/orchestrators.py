"""The connected orchestrators: which may start which agent, and whose turn it is.

An orchestrator is a row of task_workers that is in no pool, with a row of `orchestrator_profiles`
for each of its launch profiles. One that says which agents it has (`lists`) is asked for these
alone; one that says nothing is asked for every agent of its profiles. Of those that may be asked,
the one that has failed least often at this start is next, and of equal ones the one whose turn it
is: so a start is not given twice to one that has refused it while another one is there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from aether_trio.model.tasks import TaskRow
from aether_trio.model.text import SHOWN, escaped
from aether_trio.storage.base import Execute, ExecuteMany, Fetch, Program, Row

_LIVE: Final = "JOIN task_workers w ON w.identity = p.orchestrator AND w.session_id = p.session_id"
_HAS: Final = """(p.lists = 0 OR EXISTS (SELECT 1 FROM orchestrator_agents a
    WHERE a.orchestrator = p.orchestrator AND a.implementation IN ({0}, {1})))"""
_FAILURES: Final = """(SELECT COUNT(*) FROM task_attempts t
    WHERE t.task_id = $4 AND t.worker = p.orchestrator AND t.outcome = 'failed')"""
_NEXT: Final = f"""SELECT p.orchestrator, {_FAILURES} AS failures FROM orchestrator_profiles p {_LIVE}
    WHERE p.profile = $1 AND p.orchestrator <> $5 AND {_HAS.format("$2", "$3")} ORDER BY failures, p.turn, p.orchestrator LIMIT 1"""  # noqa: S608
_TURN: Final = """UPDATE orchestrator_profiles SET turn =
    (SELECT MAX(turn) + 1 FROM orchestrator_profiles WHERE profile = $1) WHERE profile = $1 AND orchestrator = $2"""
_JOIN: Final = """INSERT INTO orchestrator_profiles (profile, orchestrator, session_id, connected_ms, lists, turn)
    VALUES ($1, $2, $3, $4, $5, (SELECT COALESCE(MAX(turn), 0) + 1 FROM orchestrator_profiles WHERE profile = $1))"""
_ENTRIES: Final = f"""SELECT p.orchestrator, p.profile, p.connected_ms FROM orchestrator_profiles p
    {_LIVE} ORDER BY p.orchestrator, p.profile"""  # noqa: S608
_ANY: Final = f"SELECT 1 FROM orchestrator_profiles p {_LIVE} WHERE p.profile = $1 LIMIT 1"  # noqa: S608
_WAITING: Final = f"""SELECT s.identity, s.task_id FROM agent_starts s WHERE s.profile = $1 AND s.waits = 1
    AND EXISTS (SELECT 1 FROM orchestrator_profiles p {_LIVE}
        WHERE p.profile = s.profile AND {_HAS.format("s.implementation", "s.family")})
    ORDER BY s.priority DESC, s.order_us LIMIT $2"""  # noqa: S608


def family_of(implementation: str) -> str:
    """Return an implementation's name without its version: "echo" of "echo:2"."""
    return implementation.rpartition(":")[0] or implementation


def next_for(task: TaskRow, profile: str, but: str = "") -> Program[tuple[str, int] | None]:
    """Return the next orchestrator for a start but for one, and its failures there."""
    name = task.target_implementation
    found: list[Row] = yield Fetch(_NEXT, (profile.encode(), name, family_of(name), task.task_id, but))
    return (found[0][0], found[0][1]) if found else None


def had_turn(profile: str, orchestrator: str) -> Program[None]:
    """Write that an orchestrator was assigned a start: its turn is last again."""
    yield Execute(_TURN, (profile.encode(), orchestrator))


def what_is_missing(implementation: str, profile: str) -> Program[str]:
    """Return why no connected orchestrator can be assigned a start, as a sentence."""
    found: list[Row] = yield Fetch(_ANY, (profile.encode(),))
    if found:
        return f"no connected orchestrator of the profile {escaped(profile, SHOWN)} has the agent {escaped(implementation, SHOWN)}"
    return f"no connected orchestrator starts the profile {escaped(profile, SHOWN)}"


def reports_ends(orchestrator: str) -> Program[bool]:
    """Return whether an orchestrator is connected that reports how processes end."""
    found: list[Row] = yield Fetch(
        "SELECT 1 FROM orchestrator_profiles WHERE orchestrator = $1 AND lists = 1 LIMIT 1", (orchestrator,)
    )
    return bool(found)


def join(
    orchestrator: str, session_id: str, profiles: Sequence[str], agents: Collection[str] | None, now_ms: int
) -> Program[None]:
    """Write a connected orchestrator's profiles and agents; its turn is last."""
    yield from _delete(orchestrator)
    for profile in sorted({one.encode() for one in profiles}):
        yield Execute(_JOIN, (profile, orchestrator, session_id, now_ms, int(agents is not None)))
    if agents:
        yield ExecuteMany(
            "INSERT INTO orchestrator_agents (orchestrator, implementation) VALUES ($1, $2)",
            [(orchestrator, name) for name in sorted(agents)],
        )


def change_agents(orchestrator: str, session_id: str, agents: Collection[str]) -> Program[None]:
    """Replace an orchestrator's agents, if this session is still connected."""
    live: list[Row] = yield Fetch(
        "SELECT 1 FROM orchestrator_profiles WHERE orchestrator = $1 AND session_id = $2 LIMIT 1",
        (orchestrator, session_id),
    )
    if not live:
        return
    rows: list[Row] = yield Fetch(
        "SELECT implementation FROM orchestrator_agents WHERE orchestrator = $1", (orchestrator,)
    )
    before = {name for (name,) in rows}
    if gone := sorted(before - set(agents)):
        yield ExecuteMany(
            "DELETE FROM orchestrator_agents WHERE orchestrator = $1 AND implementation = $2",
            [(orchestrator, name) for name in gone],
        )
    if new := sorted(set(agents) - before):
        yield ExecuteMany(
            "INSERT INTO orchestrator_agents (orchestrator, implementation) VALUES ($1, $2)",
            [(orchestrator, name) for name in new],
        )


def leave(orchestrator: str, session_id: str) -> Program[None]:
    """Remove an orchestrator from its profiles, if this session is still there."""
    live: list[Row] = yield Fetch(
        "SELECT 1 FROM orchestrator_profiles WHERE orchestrator = $1 AND session_id = $2 LIMIT 1",
        (orchestrator, session_id),
    )
    if live:
        yield from _delete(orchestrator)


def _delete(orchestrator: str) -> Program[None]:
    yield Execute("DELETE FROM orchestrator_profiles WHERE orchestrator = $1", (orchestrator,))
    yield Execute("DELETE FROM orchestrator_agents WHERE orchestrator = $1", (orchestrator,))


def startable(profile: bytes, count: int) -> Program[list[Row]]:
    """Read (agent, start) of waiting starts that a profile's orchestrators can take."""
    found: list[Row] = yield Fetch(_WAITING, (profile, count))
    return found


def entries() -> Program[list[Row]]:
    """Return (orchestrator, profile, connected since in ms) of all orchestrators."""
    found: list[Row] = yield Fetch(_ENTRIES)
    return found
