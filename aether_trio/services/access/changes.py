"""Commits changes of access data; all nodes apply them before they are answered.

    commit(program) ──▶ one transaction: lock the version, program, version + 1, items, audit rows
        ──▶ this node applies the items ──▶ other nodes are notified, read on from their version,
            apply, write what they have seen ──▶ the answer names the nodes that did not in time

A change is a list of items (kind, key, value); value None means deleted. Each part of the gateway
that keeps something of a kind in memory is a listener of it.

Invariants: changes are applied in the order of their versions, each exactly once, in one step
without a checkpoint. `gate` is closed when this node could not look for STALE_S, or when something
that it knows has expired and was not handled: then no session handles input. A change that is not
committed has no version, no items and no audit row.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

import msgspec
import structlog
import trio
from outcome import Outcome, Value

from aether_trio.concurrency.events import AutoResetEvent, RepeatedEvent
from aether_trio.model.audit import AuditEvent
from aether_trio.model.clock import Clock
from aether_trio.storage.base import Database, Execute, Fetch, Program, StorageUnavailable
from aether_trio.storage.retry import RETRY_DELAY_S

logger = structlog.get_logger("aether.access")

T = TypeVar("T")

LOOK_S: Final = 1.0
"""Seconds between two looks at the version, in case a notification is lost.

Shorter than CONFIRM_S, so that a change is confirmed by a node that is not notified as well.
"""
STALE_S: Final = 5.0
"""A node that could not look for that long handles no input."""
CONFIRM_S: Final = 2.0
"""How long the answer to a change waits for other nodes."""
ASK_AGAIN_S: Final = 0.25
PAGE: Final = 500
KEPT_CHANGES: Final = 10_000
"""Versions that a node may be behind before it reads everything anew."""
FORGET_EVERY: Final = 1000

Item: TypeAlias = tuple[str, str, Any]
"""(kind, key, value) of what was changed; value None: deleted."""
Listener: TypeAlias = Callable[[Sequence[tuple[str, Any]], bool], None]
"""Takes (key, value) of changed things of one kind; True: these are all there are."""
Loader: TypeAlias = Callable[[], Program[list[tuple[str, Any]]]]


class AuditAppender(Protocol):
    """Writes audit rows in the transaction of what they record."""

    def append(self, events: Sequence[AuditEvent], now_ms: int) -> Program[object]:
        """Write these events, in this order."""


class NoAudit:
    """An AuditAppender that writes nothing, for tests."""

    def append(self, events: Sequence[AuditEvent], now_ms: int) -> Program[object]:
        """Write nothing."""
        yield from ()
        return None


class ChangePeers(Protocol):
    """The other nodes that share the access data."""

    def announce(self, version: int) -> None:
        """Notify the other nodes of a committed change. Never blocks."""

    def on_announced(self, call: Callable[[], None]) -> None:
        """Have `call` called when another node has announced a change, or may have."""

    def on_seen(self, call: Callable[[], None]) -> None:
        """Have `call` called when another node has applied a change, or may have."""

    async def seen(self, version: int) -> bool:
        """Write, unless it is written, that this node has applied `version`.

        Return whether other nodes still wait for this one. If not, a look that was made before does
        not count.
        """

    async def unconfirmed(self, version: int) -> list[str]:
        """Return names of nodes that may handle input and have not applied `version`."""


class NoPeers:
    """The ChangePeers of a gateway that is alone."""

    def announce(self, version: int) -> None:
        """Do nothing: there is no other node to notify."""

    def on_announced(self, call: Callable[[], None]) -> None:
        """Do nothing: no other node changes anything."""

    def on_seen(self, call: Callable[[], None]) -> None:
        """Do nothing: no other node applies anything."""

    async def seen(self, version: int) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    async def unconfirmed(self, version: int) -> list[str]:
        await trio.lowlevel.checkpoint()
        return []


class FreshnessGate(Protocol):
    """Lets sessions handle input until a moment; then it asks to be refreshed."""

    on_stale: Callable[[], None]

    def fresh_until(self, moment_s: float) -> None:
        """Let sessions handle input until `moment_s` (trio's clock)."""


@dataclass(slots=True)
class Draft:
    """What a change does, collected while its program runs."""

    now_ms: int
    items: list[Item] = field(default_factory=list)
    events: list[AuditEvent] = field(default_factory=list)
    version: int = 0
    """The version before the change; after its end the new one, 0 if nothing was recorded."""
    known: int = 0
    """The version before the change."""
    encoded: bytes = b"[]"

    def record(self, kind: str, key: str, value: Any) -> None:
        """Note a changed thing; its value is JSON, None when it was deleted."""
        self.items.append((kind, key, value))

    def audit(self, event: AuditEvent) -> None:
        """Note an audit row that is written with the change, or with its refusal."""
        self.events.append(event)


@dataclass(frozen=True, slots=True)
class Committed(Generic[T]):
    """A committed change: its result, and the nodes that did not apply it in time.

    `version` is 0 when nothing was changed.
    """

    result: T
    version: int = 0
    missing: tuple[str, ...] = ()

    @property
    def caveat(self) -> str:
        """A sentence that names the nodes that have not confirmed; "" if all have."""
        return caveat_of(self.missing)


_UNASKED: Final = "the nodes of this cluster, as storage does not answer"
"""Named in a caveat when the nodes cannot be asked."""


def caveat_of(missing: Sequence[str]) -> str:
    """Return a sentence that names nodes that have not confirmed; "" without any."""
    if not missing:
        return ""
    return (
        f"not confirmed within {CONFIRM_S:g} s by {', '.join(missing)}: a node that cannot look for changes "
        f"stops the input of its clients within {STALE_S:g} s"
    )


def with_caveat(text: str, caveat: str) -> str:
    """Return an answer's text with its caveat."""
    return f"{text}; {caveat}" if caveat else text


def begin(draft: Draft) -> Program[None]:
    """Begin a change in the current transaction: no other change is made beside it."""
    rows = yield Fetch(
        "INSERT INTO access_version AS v (id, version, oldest, locked, seeded) VALUES (1, 0, 0, 1, '') "
        "ON CONFLICT (id) DO UPDATE SET locked = v.locked + 1 RETURNING version"
    )
    draft.version = draft.known = rows[0][0]


def finish(draft: Draft, audit: AuditAppender) -> Program[None]:
    """End a change in the current transaction: write version, items, audit rows."""
    if draft.events:
        yield from audit.append(draft.events, draft.now_ms)
    if not draft.items:
        draft.version = 0
        return
    draft.version += 1
    draft.encoded = msgspec.json.encode(draft.items)
    yield Execute(
        "INSERT INTO access_changes (version, at_ms, items) VALUES ($1, $2, $3)",
        (draft.version, draft.now_ms, draft.encoded),
    )
    oldest = draft.version - KEPT_CHANGES if draft.version % FORGET_EVERY == 0 else 0
    yield Execute(
        "UPDATE access_version SET version = $1, oldest = CASE WHEN oldest < $2 THEN $2 ELSE oldest END WHERE id = 1",
        (draft.version, oldest),
    )
    if oldest > 0:
        yield Execute("DELETE FROM access_changes WHERE version <= $1", (oldest,))


def current() -> Program[tuple[int, int]]:
    """Read the newest version, and the version after which all changes are kept."""
    rows = yield Fetch("SELECT version, oldest FROM access_version WHERE id = 1")
    return rows[0] if rows else (0, 0)


def read_on(version: int) -> Program[tuple[bool, list[tuple[int, bytes]]]]:
    """Read the changes after `version`: (whether some are gone, a page of the rest)."""
    newest, oldest = yield from current()
    if newest == version:
        return False, []
    if version < oldest or newest < version:  # or the database was restored from a copy
        return True, []
    found = yield Fetch(
        "SELECT version, items FROM access_changes WHERE version > $1 ORDER BY version LIMIT $2", (version, PAGE)
    )
    return False, list(found)


@dataclass(frozen=True, slots=True)
class ChangeStatistics:
    """The access data of a node: its version, and how old its knowledge may be."""

    version: int
    settled_version: int
    look_age_seconds: float
    """Since the beginning of the last look that counts; 0.0 without other nodes."""


@dataclass(frozen=True, slots=True)
class _Reaction:
    """What follows a change of some kinds."""

    kinds: frozenset[str]
    call: Callable[[], None]
    settle: Callable[[], Awaitable[None]] | None


class OutdatedCheck(Exception):
    """A change was checked before a version that is committed now."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


class AccessChanges:
    """Commits changes of access data, and applies those of all nodes to this one.

    Used by one gateway: `start` loads everything, `run` keeps it up to date until cancelled.
    """

    def __init__(
        self, database: Database, clock: Clock, peers: ChangePeers, gate: FreshnessGate, audit: AuditAppender
    ) -> None:
        self._database = database
        self._queue = database.separate_queue(locking=True)
        self._clock = clock
        self._peers = peers
        self._gate = gate
        self._audit = audit
        self._listeners: dict[str, list[Listener]] = {}
        self._loaders: dict[str, Loader] = {}
        self._next_expiry: list[Callable[[int], int]] = []
        self._on_expiry: list[Callable[[], None]] = []
        self._expires_ms = 0
        """When the first of the things in memory expires that was not handled; 0: none does."""
        self._fresh_until_s = -math.inf
        self._unsettled: list[_Reaction] = []
        """The reactions to what was applied that have not settled it."""
        self._reactions: list[_Reaction] = []
        self._look = AutoResetEvent()
        self._turn = trio.Lock()
        self._settled = RepeatedEvent()
        self._confirmed = RepeatedEvent()
        self._announce_up_to = 0
        self._announced = 0
        self.version = -1
        """The version that this node has applied; -1 before `start`."""
        self.settled_version = -1
        """The version that is in force on this node, its live sessions included."""
        gate.on_stale = self._look.set
        peers.on_announced(self._look.set)
        peers.on_seen(self._confirmed.set)

    def statistics(self) -> ChangeStatistics:
        """Return what this node knows of access data, for metrics."""
        age_s = 0.0
        if math.isfinite(self._fresh_until_s):
            age_s = max(0.0, trio.current_time() - (self._fresh_until_s - STALE_S))
        return ChangeStatistics(self.version, self.settled_version, age_s)

    # -- listeners, before `start` -----------------------------------------------------------------

    def when_applied(self, kind: str, listener: Listener, loader: Loader | None = None) -> None:
        """Have `listener` called with each change of a kind, and with all at a reload.

        `loader` is the program that reads all things of the kind. Without one the listener is
        called with nothing at a reload, which means that any may have changed.
        """
        self._listeners.setdefault(kind, []).append(listener)
        if loader is not None:
            self._loaders[kind] = loader

    def when_expired(self, next_expiry: Callable[[int], int], call: Callable[[], None]) -> None:
        """Have `call` called at `next_expiry(now_ms)`, a Unix time in ms; 0: none.

        It is asked after each change, and after `call`.
        """
        self._next_expiry.append(next_expiry)
        self._on_expiry.append(call)

    def react(
        self, kinds: Collection[str], call: Callable[[], None], settle: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Have `call` called after such changes were applied, or something has expired.

        That is in the same step: sessions decide nothing in between. `settle` is awaited after it,
        before the change is confirmed.
        """
        self._reactions.append(_Reaction(frozenset(kinds), call, settle))

    # -- changes -----------------------------------------------------------------------------------

    async def commit(
        self, program: Callable[[Draft], Program[T]], check: Callable[[], None] | None = None
    ) -> Committed[T]:
        """Commit a change, and wait until all live nodes have applied it.

        The program sees all earlier changes. It records what it changes, or refuses by a result.
        `check` decides by what this node knows whether the caller may make the change, and raises a
        RequestError if not. It is called again when another change was committed meanwhile, so the
        caller never uses a right that he lost before. Raises StorageUnavailable.

        A program that finds nothing to change is answered when what it has found is in force: a
        revocation that is asked for again, as its answer was lost, is not answered sooner.
        """
        async with self._turn:
            draft, result = await self._commit(program, check)
        version = draft.version or draft.known
        missing = await self.in_force(version) if version else ()
        return Committed(result, draft.version, missing)

    async def _commit(
        self, program: Callable[[Draft], Program[T]], check: Callable[[], None] | None
    ) -> tuple[Draft, T]:
        while True:
            known = None
            if check is not None:
                check()
                known = self.version

            def run(known: int | None = known, now_ms: int = self._clock.now_ms()) -> Program[tuple[Draft, T]]:
                draft = Draft(now_ms)
                yield from begin(draft)
                if known is not None and draft.version != known:
                    raise OutdatedCheck(draft.version)
                result = yield from program(draft)
                yield from finish(draft, self._audit)
                return draft, result

            try:
                draft, result = await self._queue.run(run, self._abandoned)
            except OutdatedCheck as outdated:
                self._look.set()
                await self.wait_settled(outdated.version)
                continue
            except StorageUnavailable:
                self._look.set()  # the commit may be known later
                raise
            self.apply(draft)
            return draft, result

    async def wait_settled(self, version: int) -> None:
        """Wait until this node has applied a committed version, and acted on it."""
        if self.version < version:
            self._look.set()  # its commit may not have been answered
        while self.settled_version < version:
            await self._settled.wait()

    def finish(self, draft: Draft) -> Program[None]:
        """End a change in another transaction on the same database; see `committed`."""
        return finish(draft, self._audit)

    def write_audit(self, events: Sequence[AuditEvent], now_ms: int) -> Program[object]:
        """Write the audit rows of another transaction on the same database."""
        return self._audit.append(events, now_ms)

    async def committed(self, draft: Draft) -> tuple[str, ...]:
        """Apply a change after its commit, on all nodes; return those that have not."""
        if not draft.version:
            return ()
        self.apply(draft)
        return await self.in_force(draft.version)

    def apply(self, draft: Draft) -> None:
        """Apply a change on this node after its commit, and notify the others."""
        if not draft.version:
            return
        self._announce_up_to = max(self._announce_up_to, draft.version)
        if draft.version == self.version + 1:
            self._apply_page([(draft.version, draft.encoded)])
        self._look.set()

    async def in_force_now(self) -> str:
        """Wait until all that is committed is in force; return the caveat.

        For the answer that what is to be taken away is not there: it may have been taken away by a
        change whose answer was lost. Raises StorageUnavailable.
        """
        version, _ = await self._database.read_small(current)
        return caveat_of(await self.in_force(version)) if version else ""

    async def spread(self) -> str:
        """Notify the other nodes of all that is committed, and wait; return the caveat.

        For changes that a transaction has committed without `apply`.
        """
        try:
            version, _ = await self._database.read_small(current)
        except StorageUnavailable:
            return caveat_of([_UNASKED])
        if version > self._announce_up_to:
            self._announce_up_to = version
            self._look.set()
        return caveat_of(await self.in_force(version)) if version else ""

    async def in_force(self, version: int) -> tuple[str, ...]:
        """Wait until all live nodes have applied `version`; name those that have not."""
        missing: list[str] = ["this node"]
        with trio.move_on_after(CONFIRM_S):
            await self.wait_settled(version)
            while True:
                try:
                    missing = await self._peers.unconfirmed(version)
                except StorageUnavailable:
                    missing = [_UNASKED]
                if not missing:
                    return ()
                with trio.move_on_after(ASK_AGAIN_S):
                    await self._confirmed.wait()
        logger.warning("a change of access data was not confirmed by all nodes in time", version=version, nodes=missing)
        return tuple(missing)

    def _abandoned(self, ended: Outcome[tuple[Draft, Any]]) -> None:
        """Apply a change whose caller was cancelled. Called from within the database."""
        if isinstance(ended, Value):
            draft, _ = ended.value
            self._announce_up_to = max(self._announce_up_to, draft.version)
        self._look.set()

    # -- applying ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load all access data. Raises StorageUnavailable."""
        began_s = trio.current_time()
        await self._reload()
        if await self._confirm():
            self._looked(began_s)

    async def run(self) -> None:
        """Apply the changes of all nodes until cancelled."""
        failed = False
        while True:
            with trio.move_on_after(self._pause_s()):
                await self._look.wait()
            self._expire()
            if self._announced < self._announce_up_to:
                self._announced = self._announce_up_to
                self._peers.announce(self._announced)
            try:
                await self._catch_up()
            except StorageUnavailable as error:
                if not failed:
                    logger.warning("changes of access data cannot be read; this node tries again", reason=str(error))
                failed = True
                self._look.set()
                await trio.sleep(RETRY_DELAY_S)
            else:
                if failed:
                    logger.info("changes of access data can be read again")
                failed = False

    def _pause_s(self) -> float:
        shared_s = LOOK_S if self._database.shared else math.inf
        if not self._expires_ms:
            return shared_s
        # The calendar may jump, so the wait is never long.
        return min(shared_s, STALE_S, max(0.0, (self._expires_ms - self._clock.now_ms()) / 1000))

    def _note_expiry(self) -> None:
        now_ms = self._clock.now_ms()
        moments = [moment for next_expiry in self._next_expiry if (moment := next_expiry(now_ms))]
        self._expires_ms = min(moments, default=0)
        self._set_gate()

    def _expire(self) -> None:
        """Tell the listeners of expiries, which forget what has expired."""
        if not self._expires_ms or self._clock.now_ms() < self._expires_ms:
            return
        for call in self._on_expiry:
            call()
        self._react(None)
        self._note_expiry()

    async def _catch_up(self) -> None:
        while True:
            began_s = trio.current_time()
            known = self.version
            gone, page = await self._database.read_small(partial(read_on, known))
            if gone:
                logger.warning("this node is too far behind, and reads all access data anew", version=known)
                await self._reload()
            elif page:
                self._apply_page(page)
            is_counted = await self._confirm()
            if not page and not gone:
                if is_counted:
                    self._looked(began_s)
                else:
                    logger.info("this look for changes does not count, as this node was declared dead")
                return

    async def _confirm(self) -> bool:
        """Let live sessions follow what was applied, and write it for the other nodes.

        Return whether these wait for this node, so that it may go on by what it has read.
        """
        version = self.version
        unsettled, self._unsettled = self._unsettled, []
        try:
            while unsettled:
                assert unsettled[0].settle is not None
                await unsettled[0].settle()
                del unsettled[0]
        finally:
            self._unsettled += unsettled
        if version != self.settled_version:
            self.settled_version = version
            self._settled.set()
        return await self._peers.seen(version)

    def _looked(self, began_s: float) -> None:
        """Let sessions handle input for STALE_S from `began_s`."""
        self._fresh_until_s = began_s + STALE_S if self._database.shared else math.inf
        self._set_gate()

    def _set_gate(self) -> None:
        """Let sessions handle input until the next look is due, or something expires."""
        until_s = self._fresh_until_s
        if self._expires_ms:
            until_s = min(until_s, trio.current_time() + (self._expires_ms - self._clock.now_ms()) / 1000)
        self._gate.fresh_until(until_s)

    def _apply_page(self, page: Sequence[tuple[int, bytes]]) -> None:
        """Apply changes in order, in one step."""
        by_kind: dict[str, list[tuple[str, Any]]] = {}
        for version, encoded in page:
            if version <= self.version:
                continue
            assert version == self.version + 1, (version, self.version)
            for kind, key, value in msgspec.json.decode(encoded):
                by_kind.setdefault(kind, []).append((key, value))
            self.version = version
        self._tell(by_kind, everything=False)

    async def _reload(self) -> None:
        version, found = await self._database.read(self._read_everything)
        self.version = version
        self._tell(found, everything=True)

    def _read_everything(self) -> Program[tuple[int, dict[str, list[tuple[str, Any]]]]]:
        version, _ = yield from current()
        found: dict[str, list[tuple[str, Any]]] = {kind: [] for kind in self._listeners}
        for kind, loader in self._loaders.items():
            found[kind] = yield from loader()
        return version, found

    def _tell(self, by_kind: dict[str, list[tuple[str, Any]]], *, everything: bool) -> None:
        for kind, items in by_kind.items():
            for listener in self._listeners.get(kind, ()):
                listener(items, everything)
        self._react(None if everything else by_kind.keys())
        self._note_expiry()

    def _react(self, kinds: Collection[str] | None) -> None:
        """Call the reactions to these kinds; None: to all."""
        for reaction in self._reactions:
            if kinds is None or not reaction.kinds.isdisjoint(kinds):
                reaction.call()
                if reaction.settle is not None and reaction not in self._unsettled:
                    self._unsettled.append(reaction)
