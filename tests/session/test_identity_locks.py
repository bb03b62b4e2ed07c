"""A session's lock on a cluster node: the row first, then the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from aether_trio.delivery.outbox import OutboxLimits
from aether_trio.delivery.rates import Rates
from aether_trio.model.clock import SystemClock
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Identity
from aether_trio.model.limits import Limits
from aether_trio.model.ownership import GrantedLock, IdentityLock, LockRequest, SessionHistory
from aether_trio.session.identity_locks import CURSORS_S, NodeIdentityLocks
from aether_trio.session.init_connection import Authenticated, Claim
from aether_trio.session.node_sessions import NodeSessions
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session
from aether_trio.storage.base import RefusedError, StorageUnavailable
from aether_trio.testing.memory import MemoryLink
from tests.helpers.core import deadlock_is_an_error, pump

ALL_ACCESS = Authenticated(lambda _: True, lambda _: True, everywhere=True)
RATES = Rates(Limits(), SystemClock())
A1, A2 = Identity.agent("w", "a", "1"), Identity.agent("w", "a", "2")


class Rows:
    """What the cluster's locks are to these; `error` is what the next claim raises."""

    def __init__(self, told: list[Any]) -> None:
        self._told = told
        self._mine: dict[str, IdentityLock] = {}
        self._epochs = 0
        self.error: Exception | None = None
        self.full = False
        self.gate: trio.Event | None = None
        self.requests: list[LockRequest] = []

    async def claim(self, request: LockRequest) -> GrantedLock:
        self.requests.append(request)
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        if self.full and self._mine:
            raise StatusError(Status.RESOURCE_EXHAUSTED, "full")
        self._epochs += 1
        hold = self._mine[request.identity] = IdentityLock(request.identity, request.session_id, self._epochs)
        return GrantedLock(hold, None)

    def release(self, hold: IdentityLock, history: SessionHistory | None = None) -> bool:
        if self._mine.get(hold.identity) != hold:
            return False
        del self._mine[hold.identity]
        self._told.append(("released", hold.session_id, history))
        return True

    def mine(self, identity: str) -> IdentityLock | None:
        return self._mine.get(identity)


class Log:
    """Settles up to a number, and saves cursors, when the test lets it."""

    def __init__(self, told: list[Any]) -> None:
        self._told = told
        self.settled = trio.Event()
        self.saved = trio.Event()
        self.settled.set()
        self.saved.set()
        self.cursors = self
        self.voided = 0
        self.kept: list[list[str]] = []
        """Of two identities, those whose positions were kept, each time."""

    def drop(self, is_kept: Callable[[str], bool]) -> None:
        self.kept.append([name for name in (A1.text, A2.text) if is_kept(name)])

    def void(self) -> None:
        self.voided += 1

    def is_settled(self, number: int) -> bool:
        return number == 0 or self.settled.is_set()

    async def wait_settled(self, number: int) -> None:
        await self.settled.wait()
        self._told.append(("settled", number))

    async def save(self) -> None:
        await self.saved.wait()
        self._told.append(("saved",))


class Node:
    """One node's locks and sessions; `told` are calls of rows and log, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.registry = SessionRegistry()
        self.rows = Rows(self.told)
        self.log = Log(self.told)
        self.sessions = NodeSessions(self.registry, self.log)  # type: ignore[arg-type]
        self.locks = NodeIdentityLocks(self.sessions, self.rows)

    def session(self, session_id: str, identity: Identity = A1, *, last_append: int = 0) -> Session:
        link = MemoryLink()
        session = Session(
            _claim(identity),
            ALL_ACCESS,
            session_id,
            link,
            OutboxLimits(),
            self.registry,
            RATES,
            5_000,
            self.locks.release,
            self.sessions.gate,
        )
        link.attach(session.outbox)
        session.sender.last_append = last_append
        return session

    async def take(self, session: Session, resume: str = "") -> tuple[Session | None, SessionHistory | None]:
        return await self.locks.take(session, _claim(session.identity, resume))

    async def hold(
        self, session_id: str, identity: Identity = A1, *, last_append: int = 0
    ) -> tuple[Session, IdentityLock]:
        session = self.session(session_id, identity, last_append=last_append)
        await self.take(session)
        hold = self.rows.mine(identity.text)
        assert hold is not None
        return session, hold


def _claim(identity: Identity, resume: str = "") -> Claim:
    return Claim(identity, "", {}, resume, True, (), "python", "1")


@asynccontextmanager
async def taking(node: Node, session: Session, resume: str = "") -> AsyncIterator[None]:
    """The session asks for its identity; it has got it at the end of the block."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.take, session, resume)
        await pump()
        yield


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with deadlock_is_an_error(), trio.open_nursery() as nursery:
        opened = Node()
        nursery.start_soon(opened.locks.run)
        yield opened
        nursery.cancel_scope.cancel()


def ending(session: Session) -> tuple[Status, str] | None:
    return None if session.ending is None else (session.ending.status, session.ending.message)


# -- taking ----------------------------------------------------------------------------------------


async def test_the_row_is_asked_with_all_that_listings_say(node: Node) -> None:
    session = node.session("s1")
    assert await node.take(session, "s0") == (None, None)
    assert node.rows.requests == [
        LockRequest(
            A1.text,
            "s1",
            "agent",
            5_000,
            workspace="w",
            implementation="a",
            resume_session_id="s0",
            takes_any=True,
            peer="memory:0",
            client_sdk="python",
            client_version="1",
        )
    ]
    assert node.registry.holder(A1.text) is session


async def test_no_session_is_registered_before_the_row_is_granted(node: Node) -> None:
    node.rows.gate = trio.Event()
    session = node.session("s1")
    async with taking(node, session):
        assert node.registry.holder(A1.text) is None
        node.rows.gate.set()
    assert node.registry.holder(A1.text) is session


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StatusError(Status.ALREADY_EXISTS, "elsewhere"), Status.ALREADY_EXISTS),
        (StorageUnavailable("no answer"), Status.UNAVAILABLE),
    ],
)
async def test_who_does_not_get_the_row_is_not_registered(node: Node, error: Exception, status: Status) -> None:
    node.rows.error = error
    with pytest.raises(StatusError) as caught:
        await node.take(node.session("s1"))
    assert caught.value.status is status
    assert node.registry.holder(A1.text) is None


async def test_a_second_one_on_this_node_is_refused_without_a_look_at_the_row(node: Node) -> None:
    session, _ = await node.hold("s1")
    with pytest.raises(StatusError) as caught:
        await node.take(node.session("s2"), "s0")
    assert caught.value.status is Status.ALREADY_EXISTS
    assert len(node.rows.requests) == 1
    assert node.registry.holder(A1.text) is session


async def test_a_takeover_on_this_node_keeps_the_row(node: Node) -> None:
    first, _ = await node.hold("s1")
    second = node.session("s2")
    assert await node.take(second, "s1") == (first, first.history)
    first.end(Status.CANCELLED, "taken over")
    await pump()
    assert node.told == []
    assert node.sessions.leaving() == []
    hold = node.rows.mine(A1.text)
    assert hold is not None
    assert hold.session_id == "s2"


async def test_a_takeover_whose_claim_may_have_been_granted_ends_the_session_that_it_names(node: Node) -> None:
    for error in (StorageUnavailable("no answer"), None):
        first, _ = await node.hold("s1")
        node.rows.error, node.rows.gate = error, trio.Event()
        with trio.move_on_after(1) as caller:
            if error is not None:
                node.rows.gate.set()
                with pytest.raises(StatusError):
                    await node.take(node.session("s2"), "s1")
            else:
                await node.take(node.session("s2"), "s1")
        assert caller.cancelled_caught == (error is None)
        assert ending(first) == (Status.CANCELLED, "session s2 was to take over this identity")
        node.rows.error = node.rows.gate = None
        await pump()
        assert node.told.pop()[:2] == ("released", "s1")


async def test_a_takeover_that_is_refused_leaves_the_session_that_it_names(node: Node) -> None:
    first, _ = await node.hold("s1")
    for error in (StatusError(Status.UNAVAILABLE, "not yet"), RefusedError("a zero byte")):
        node.rows.error = error
        with pytest.raises(StatusError):
            await node.take(node.session("s2"), "s1")
        assert ending(first) is None


async def test_a_row_is_released_when_what_a_displaced_session_sent_is_written(node: Node) -> None:
    node.log.settled = trio.Event()
    first, _ = await node.hold("s1", last_append=17)
    second = node.session("s2")
    await node.take(second, "s1")
    first.end(Status.CANCELLED, "taken over")
    second.end(Status.CANCELLED, "done")
    node.log.settled.set()
    await pump()
    assert [one[:2] for one in node.told] == [("settled", 17), ("saved",), ("released", "s2")]


async def test_a_session_waits_for_the_writes_of_one_that_ends_as_it_is_taken_over(node: Node) -> None:
    first, _ = await node.hold("s1", last_append=17)
    pending = first.begin_request()
    node.rows.gate = trio.Event()
    second = node.session("s2")
    async with taking(node, second, "s1"):
        first.end(Status.CANCELLED, "its client has left")
        node.rows.gate.set()
    assert second.pending is pending
    assert second.sender.last_append == 17


async def test_a_session_that_lost_its_row_unnoticed_is_ended_by_the_next_holder(node: Node) -> None:
    node.rows.gate = trio.Event()
    stale, session = node.session("s1"), node.session("s2")
    async with taking(node, session):
        node.registry.claim(stale, "")
        node.rows.gate.set()
    assert ending(stale) == (Status.CANCELLED, "session s2 holds this identity now")
    assert node.registry.holder(A1.text) is session


# -- letting go ------------------------------------------------------------------------------------


async def test_two_of_one_name_may_leave_at_once(node: Node) -> None:
    """The first ends while the second asks to take over, both before it has settled."""
    node.log.settled = trio.Event()
    first, _ = await node.hold("s1", last_append=1)
    node.rows.gate = trio.Event()
    second, third = node.session("s2", last_append=2), node.session("s3")
    async with taking(node, second, "s1"):
        first.end(Status.CANCELLED, "done")
        await pump()
        node.rows.gate.set()
    second.end(Status.CANCELLED, "done as well")
    await pump()
    assert node.sessions.leaving() == [A1.text]
    async with taking(node, third):
        assert node.registry.holder(A1.text) is None, "it waits for both"
        node.log.settled.set()
    assert [one[1] for one in node.told if one[0] == "released"] == ["s2"]
    assert node.sessions.leaving() == []
    assert node.registry.holder(A1.text) is third


async def test_a_row_is_released_when_all_is_written(node: Node) -> None:
    node.log.settled, node.log.saved = trio.Event(), trio.Event()
    session, _ = await node.hold("s1", last_append=17)
    session.history = SessionHistory("s1", 1_234, 5)
    session.end(Status.CANCELLED, "done")
    assert node.registry.holder(A1.text) is None
    assert node.sessions.leaving() == [A1.text]
    await trio.sleep(600)  # an append may take as long as it likes
    assert node.told == []
    node.log.settled.set()
    await pump()
    assert node.told == [("settled", 17)]
    node.log.saved.set()
    await pump()
    assert node.told == [("settled", 17), ("saved",), ("released", "s1", SessionHistory("s1", 1_234, 5))]
    assert node.sessions.leaving() == []


async def test_a_node_that_ends_leaves_to_its_lease_the_rows_whose_last_message_may_still_be_written() -> None:
    node = Node()
    node.log.settled = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.locks.run)
        writing, _ = await node.hold("s1", last_append=17)
        silent, _ = await node.hold("t1", A2)
        for session in (writing, silent):
            session.end(Status.UNAVAILABLE, "the gateway ends")
        await pump()
        nursery.cancel_scope.cancel()
    assert [one[:2] for one in node.told] == [("released", "t1")]


async def test_positions_that_cannot_be_saved_are_waited_for_so_long(node: Node) -> None:
    node.log.saved = trio.Event()
    session, _ = await node.hold("s1")
    session.end(Status.CANCELLED, "done")
    await trio.sleep(CURSORS_S / 2)
    assert node.told == [("settled", 0)]
    await trio.sleep(CURSORS_S)
    assert [one[0] for one in node.told] == ["settled", "released"]


async def test_sessions_that_end_together_are_released_together(node: Node) -> None:
    node.log.settled = trio.Event()
    sessions = [
        (await node.hold(f"s{number}", Identity.agent("w", "a", str(number)), last_append=number))[0]
        for number in range(4)
    ]
    for session in sessions[:3]:
        session.end(Status.CANCELLED, "done")
    await pump()
    sessions[3].end(Status.CANCELLED, "done")  # behind the round that is under way
    node.log.settled.set()
    await pump()
    rounds = [("settled", 2), ("saved",), *[("released", f"s{number}") for number in range(3)]]
    rounds += [("settled", 3), ("saved",), ("released", "s3")]
    assert [one[:2] for one in node.told] == rounds


async def test_who_has_just_left_makes_room_in_its_workspace(node: Node) -> None:
    node.rows.full = True
    first, _ = await node.hold("s1")
    with pytest.raises(StatusError) as caught:
        await node.take(node.session("t1", A2))
    assert caught.value.status is Status.RESOURCE_EXHAUSTED
    node.log.settled = trio.Event()
    first.end(Status.CANCELLED, "done")
    second = node.session("t2", A2)
    async with taking(node, second):
        assert node.registry.holder(A2.text) is None
        node.log.settled.set()
    assert node.registry.holder(A2.text) is second


async def test_who_never_held_anything_releases_nothing(node: Node) -> None:
    node.session("s1").end(Status.UNAVAILABLE, "never mind")
    await pump()
    assert node.told == []
    assert node.sessions.leaving() == []


# -- the lease -------------------------------------------------------------------------------------


async def test_what_others_have_taken_ends_when_the_lease_is_back(node: Node) -> None:
    session, hold = await node.hold("s1")
    other, _ = await node.hold("t1", A2)
    node.sessions.lease_lost()
    node.rows._mine.pop(A1.text)  # as Holds.reconcile does
    node.sessions.lease_back([hold, IdentityLock("ag::w::a::9", "unknown", 1)], {A2.text})
    assert node.log.voided == 1
    assert node.log.kept == [[A2.text]]
    assert ending(session) == (Status.CANCELLED, "another node has taken over this identity")
    assert ending(other) is None
    assert not node.sessions.gate.paused
    await pump()
    assert node.told == []


async def test_everything_ends_when_the_lease_is_gone(node: Node) -> None:
    sessions = [(await node.hold("s1"))[0], (await node.hold("t1", A2))[0]]
    node.sessions.lease_lost()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.sessions.gate.wait)
        await pump()
        node.rows._mine.clear()  # as Holds.forget does
        node.sessions.lease_gone()
    assert [session.ending and session.ending.status for session in sessions] == [Status.UNAVAILABLE] * 2
    assert len(node.registry) == 0
    assert node.log.kept == [[]]
    await pump()
    assert node.told == []
    assert node.sessions.leaving() == []
    assert await node.take(node.session("s2")) == (None, None)


# -- being asked -----------------------------------------------------------------------------------


async def test_a_session_that_is_named_ends_and_settles_first(node: Node) -> None:
    node.log.settled = trio.Event()
    session, hold = await node.hold("s1", last_append=3)
    answers: list[bool] = []

    async def ask() -> None:
        answers.append(await node.sessions.yields(hold, "s1"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await pump()
        assert ending(session) == (Status.CANCELLED, "a session on another node has taken over this identity")
        assert answers == []
        node.log.settled.set()
    assert answers == [True]
    assert [one[:2] for one in node.told] == [("settled", 3), ("saved",), ("released", "s1")]


async def test_a_session_whose_peer_has_gone_is_given_away(node: Node) -> None:
    session, hold = await node.hold("s1")
    session.link.cut()  # type: ignore[attr-defined]
    assert await node.sessions.yields(hold, "") is True
    assert ending(session) == (Status.CANCELLED, "the stream had ended")
    assert [one[0] for one in node.told] == ["settled", "saved", "released"]


async def test_a_session_that_is_just_leaving_is_waited_for(node: Node) -> None:
    session, hold = await node.hold("s1")
    async with trio.open_nursery() as nursery:

        async def leave() -> None:
            await trio.sleep(0.05)
            session.end(Status.CANCELLED, "its stream ends")

        nursery.start_soon(leave)
        assert await node.sessions.yields(hold, "") is True
    assert [one[0] for one in node.told] == ["settled", "saved", "released"]


async def test_a_session_that_has_left_is_waited_for_and_an_unknown_one_is_not(node: Node) -> None:
    node.log.settled = trio.Event()
    session, hold = await node.hold("s1")
    session.end(Status.CANCELLED, "done")
    with trio.move_on_after(600) as waiting:
        await node.sessions.yields(hold, "")
    assert waiting.cancelled_caught
    node.log.settled.set()
    assert await node.sessions.yields(hold, "") is True
    assert await node.sessions.yields(IdentityLock(A2.text, "unknown", 1), "") is True
