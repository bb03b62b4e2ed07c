"""Which orchestrators are connected, what they can start, and whose turn it is: all nodes together.

An orchestrator that connects leaves a row for each of its profiles before it is acknowledged, with its session's id. A row is worth
nothing by itself: whoever picks asks the directory whether that session still lives, so what a killed node has left behind is passed
over, and removed when somebody meets it. Turns are counted in the rows: the one that has waited longest is next, wherever it is connected.

Nothing here decides who holds an identity. An orchestrator that ends just after it was picked has been given what it cannot do; whoever
gave it something finds that out by other means.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog
import trio

from aether_trio.model.clock import Clock
from aether_trio.model.identity import Kind
from aether_trio.session.directory import SessionDirectory
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, Execute, ExecuteMany, Fetch, Program, StorageUnavailable

logger = structlog.get_logger("aether.agents")

RETRY_S: Final = 1.0
MAX_WAITING: Final = 10_000
"""Ended orchestrators whose rows are still to be removed; those beyond it are removed when somebody meets them."""
MAX_LOOKS: Final = 100
"""Rows looked at in one pick: more have never been there at once where this was thought of."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One connected orchestrator."""

    orchestrator: str
    """Identity text."""
    session_id: str
    connected_ms: int
    profiles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Picked:
    """Whose turn it is."""

    orchestrator: str
    session_id: str


class Roster:
    """See the module docstring. `run` must run while sessions end. What waits raises StorageUnavailable."""

    def __init__(self, database: Database, directory: SessionDirectory, clock: Clock) -> None:
        self._database = database
        self._directory = directory
        self._clock = clock
        self._gone: dict[str, str] = {}
        self._work = trio.Event()

    async def join(self, session: Session) -> None:
        """This session is about to be acknowledged: write down what it can start, if it is an orchestrator."""
        if session.identity.kind is Kind.ORCHESTRATOR:
            profiles = sorted({profile.encode() for profile in session.profiles})
            await self._database.run(
                partial(_join, session.identity.text, session.session_id, self._clock.now_ms(), profiles)
            )

    def left(self, session: Session) -> None:
        """This session has ended. Never blocks."""
        if session.identity.kind is Kind.ORCHESTRATOR and session.profiles and len(self._gone) < MAX_WAITING:
            self._gone[session.session_id] = session.identity.text
            self._work.set()

    async def pick(self, profile: str, *, but: AbstractSet[str] = frozenset()) -> Picked | None:
        """Whose turn it is among those who can start this, without the identities in `but`; None when there is nobody."""
        while True:
            rows = await self._database.fetch(
                "SELECT orchestrator, session_id, turn FROM orchestrator_profiles WHERE profile = $1 "
                "ORDER BY turn, orchestrator LIMIT $2",
                profile.encode(),
                MAX_LOOKS + len(but),
            )
            overtaken = False
            for orchestrator, session_id, turn in rows:
                if orchestrator in but or not await self._lives(orchestrator, session_id):
                    continue
                row = (profile.encode(), orchestrator, session_id, turn)
                if await self._database.run(partial(_take_turn, *row)):
                    return Picked(orchestrator, session_id)
                overtaken = True
                break  # somebody else has just picked it: look again, so that turns stay turns
            if not overtaken:
                return None

    async def lives(self, picked: Picked) -> bool:
        """Whether an orchestrator is still connected by that session."""
        return await self._directory.find(picked.session_id) is not None

    async def entries(self) -> Sequence[Entry]:
        """Everybody who is connected and can start something, by identity."""
        rows = await self._database.fetch(
            "SELECT orchestrator, session_id, connected_ms, profile FROM orchestrator_profiles "
            "ORDER BY orchestrator, session_id, profile"
        )
        found: dict[tuple[str, str, int], list[str]] = {}
        for orchestrator, session_id, connected_ms, profile in rows:
            found.setdefault((orchestrator, session_id, connected_ms), []).append(profile.decode())
        return [
            Entry(orchestrator, session_id, connected_ms, tuple(profiles))
            for (orchestrator, session_id, connected_ms), profiles in found.items()
            if await self._lives(orchestrator, session_id)
        ]

    async def _lives(self, orchestrator: str, session_id: str) -> bool:
        if session_id in self._gone:
            return False
        if await self._directory.find(session_id) is not None:
            return True
        await self._database.run(partial(_leave, [(orchestrator, session_id)]))
        return False

    async def run(self) -> None:
        """Remove the rows of those who have left, until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            gone = dict(self._gone)
            try:
                await self._database.run(partial(_leave, [(text, session_id) for session_id, text in gone.items()]))
            except StorageUnavailable as error:
                logger.warning("orchestrators not removed, trying again", reason=str(error))
                self._work.set()
                await trio.sleep(RETRY_S)
                continue
            for session_id in gone:
                del self._gone[session_id]


def _join(orchestrator: str, session_id: str, now_ms: int, profiles: Sequence[bytes]) -> Program[None]:
    """Whoever comes is behind everybody who waits."""
    yield Execute("DELETE FROM orchestrator_profiles WHERE orchestrator = $1", (orchestrator,))
    for profile in profiles:
        yield Execute(
            "INSERT INTO orchestrator_profiles (profile, orchestrator, session_id, connected_ms, turn) VALUES ($1, $2, $3, $4, "
            "(SELECT coalesce(max(turn), 0) + 1 FROM orchestrator_profiles WHERE profile = $1))",
            (profile, orchestrator, session_id, now_ms),
        )


def _leave(gone: Sequence[tuple[str, str]]) -> Program[None]:
    """Not of a session that has taken over in the meantime."""
    yield ExecuteMany("DELETE FROM orchestrator_profiles WHERE orchestrator = $1 AND session_id = $2", gone)


def _take_turn(profile: bytes, orchestrator: str, session_id: str, turn: int) -> Program[bool]:
    """Whether it was still its turn."""
    rows = yield Fetch(
        "UPDATE orchestrator_profiles SET turn = "
        "(SELECT max(turn) + 1 FROM orchestrator_profiles WHERE profile = $1) "
        "WHERE profile = $1 AND orchestrator = $2 AND session_id = $3 AND turn = $4 RETURNING turn",
        (profile, orchestrator, session_id, turn),
    )
    return bool(rows)
