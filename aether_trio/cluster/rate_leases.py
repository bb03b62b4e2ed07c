"""Leases the message rates of workspaces to this node, by its senders' demand.

    take ─▶ bucket of the workspace (in memory)
                 ▲
    each second: demand of the last second ─▶ one transaction: LeaseBook of each workspace ─▶ lease

A workspace whose first message arrives is leased at once; until then a small part of a second's
rate is given in advance. A node without demand gives its lease back, and the lease of a node that
has died ends after LEASE_S. A node that is leased less than its share notifies the others, which
renew then, and notify it when they have given something back.

Invariant: the leases in the database are not more than the rate together (model/rate_lease.py). A
node uses its lease for LEASE_S from before it asked, and the database keeps it MARGIN_S longer. A
node learns of a smaller lease when the transaction is over, some milliseconds after its commit. A
lease is not used when it is unknown whether its renewal was committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import msgspec
import structlog
import trio

from aether_trio.cluster.node.bus import ALL, Handler
from aether_trio.concurrency.events import AutoResetEvent
from aether_trio.model.clock import Clock
from aether_trio.model.rate_lease import LeaseBook, LeasedBucket, RenewedLease
from aether_trio.storage.base import CommitUnknown, Database, Execute, ExecuteMany, Fetch, Program, StorageUnavailable
from aether_trio.storage.retry import RETRY_DELAY_S

logger = structlog.get_logger("aether.cluster")

RENEW_S: Final = 1.0
LEASE_S: Final = 3.0
MARGIN_S: Final = 1.0
"""Clocks of nodes differ by less: each follows that of the database."""
PAUSE_S: Final = 0.02
"""Between two renewals that notifications cause."""
ASK_AGAIN_S: Final = 0.5
"""Between two notifications that this node waits for its share of one rate."""
ADVANCE_S: Final = 0.05
"""Without a lease a node gives what the rate gives in this time, at least one message."""
FIRST_DEMAND_S: Final = 0.05
"""The first demand is that of so much time at least, not that of one message in a millisecond."""
MEASURED_S: Final = 0.3
"""Later ones are measured over so much time at least."""
SLACK: Final = 0.01
"""Differences of shares below this part of the rate cause no notification."""
BATCH: Final = 100
SWEEP_S: Final = 600.0
KEPT_MS: Final = 3600_000

RATES: Final = "rates"
WANTED: Final = "w"
FREED: Final = "f"
"""First letters of notifications, before the name of the workspace."""

_LOCK: Final = (
    "INSERT INTO rate_leases AS r (workspace, leases, renewals, ends_ms) VALUES {rows} "
    "ON CONFLICT (workspace) DO UPDATE SET renewals = r.renewals + 1 RETURNING workspace, leases"
)


class RateBus(Protocol):
    """Notifies other nodes; the cluster's Bus is one."""

    def broadcast(self, topic: str, body: str) -> None: ...
    def handle(self, topic: str, handler: Handler) -> None: ...


class LeaseHolder(Protocol):
    """The node whose leases these are; the cluster's Lease is one."""

    @property
    def node_id(self) -> int: ...
    @property
    def epoch(self) -> int: ...


@dataclass(frozen=True, slots=True)
class RateDemand:
    """How much of a workspace's rate a node asks for, in messages per second."""

    demand: float
    rate: float


def renew_leases(
    node: str, demands: Mapping[str, RateDemand], now_ms: int, ends_ms: int
) -> Program[dict[str, RenewedLease]]:
    """Renew the leases of a node, or give back those without demand, by workspace."""
    names = sorted(demands)
    rows = ", ".join(f"(${number}, ${len(names) + 1}, 0, 0)" for number in range(1, len(names) + 1))
    found = yield Fetch(_LOCK.format(rows=rows), (*names, b"{}"))
    books = {name: LeaseBook.of(msgspec.json.decode(leases)) for name, leases in found}
    renewed = {
        name: books[name].renew(node, asked.demand, asked.rate, now_ms, ends_ms) for name, asked in demands.items()
    }
    yield ExecuteMany(
        "UPDATE rate_leases SET leases = $2, ends_ms = CASE WHEN ends_ms < $3 THEN $3 ELSE ends_ms END "
        "WHERE workspace = $1",
        [(name, msgspec.json.encode(books[name].value()), ends_ms) for name in names],
    )
    return renewed


def forget_ended(before_ms: int) -> Program[int]:
    """Delete the books whose last lease ended before a moment."""
    count: int = yield Execute("DELETE FROM rate_leases WHERE ends_ms < $1", (before_ms,))
    return count


@dataclass(frozen=True, slots=True)
class RateStatistics:
    """The leases of message rates of a node."""

    workspaces: int
    messages_per_second: float
    """What this node may accept by its leases together."""
    unsatisfied: int
    """Workspaces in which it is leased less than its share."""
    renewals: int
    """Transactions that have renewed leases since the start."""


class _Leased:
    """A workspace with a rate in which this node has senders."""

    __slots__ = ("asked_at", "bucket", "demand", "offered", "rate", "refused", "renewed", "since", "unsatisfied")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.bucket = LeasedBucket(rate * ADVANCE_S)
        self.offered = 0
        self.refused = 0
        self.since = now
        self.demand = 0.0
        self.renewed = False
        self.unsatisfied = False
        self.asked_at = -ASK_AGAIN_S

    def start_over(self) -> None:
        """Use no lease until the next one."""
        self.bucket = LeasedBucket(self.rate * ADVANCE_S)
        self.renewed = self.unsatisfied = False

    def measure(self, now: float) -> None:
        """Take the demand of the time since the last measurement."""
        offered = self.offered / max(now - self.since, FIRST_DEMAND_S)
        if self.refused:
            # Clients that wait after a refusal offer less than they would.
            offered = max(offered, 2 * self.bucket.rate)
        self.demand, self.offered, self.refused, self.since = offered, 0, 0, now


class LeasedRates:
    """The WorkspaceRates of a cluster node (delivery/rates.py); `run` must run."""

    def __init__(self, database: Database, bus: RateBus, holder: LeaseHolder, clock: Clock) -> None:
        self._database = database.separate_queue(locking=True)
        self._bus = bus
        self._holder = holder
        self._clock = clock
        self._workspaces: dict[str, _Leased] = {}
        self._due: set[str] = set()
        self._wake = AutoResetEvent()
        self.renewals = 0
        """How many transactions have renewed leases since start."""
        bus.handle(RATES, self._on_notification)

    def __len__(self) -> int:
        return len(self._workspaces)

    def statistics(self) -> RateStatistics:
        """Return what is leased now, for metrics."""
        leased = self._workspaces.values()
        return RateStatistics(
            len(leased),
            sum(one.bucket.rate for one in leased),
            sum(one.unsatisfied for one in leased),
            self.renewals,
        )

    def take(self, workspace: str, rate: float, now: float) -> bool:
        one = self._workspaces.get(workspace)
        if one is None or one.rate != rate:
            one = self._begin(workspace, rate, now)
        one.offered += 1
        if one.bucket.take(now):
            return True
        one.refused += 1
        return False

    def _begin(self, workspace: str, rate: float, now: float) -> _Leased:
        one = self._workspaces.get(workspace)
        if one is None:
            one = self._workspaces[workspace] = _Leased(rate, now)
        one.rate = rate
        self._renew_soon(workspace)
        return one

    def _renew_soon(self, workspace: str) -> None:
        self._due.add(workspace)
        self._wake.set()

    def _on_notification(self, _sender: int, body: str) -> None:
        if body == ALL:
            self._due.update(self._workspaces)
            self._wake.set()
            return
        kind, workspace = body[:1], body[1:]
        one = self._workspaces.get(workspace)
        if one is not None and (kind == WANTED or one.unsatisfied or one.refused):
            self._renew_soon(workspace)

    # -- renewing ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Renew the leases of workspaces with senders until cancelled."""
        tick = sweep = self._clock.monotonic()
        while True:
            pause_s = max(tick + RENEW_S - self._clock.monotonic(), 0.0) if self._workspaces else SWEEP_S
            with trio.move_on_after(pause_s):
                await self._wake.wait()
            now = self._clock.monotonic()
            if now >= tick + RENEW_S:
                tick = now
                self._due.update(self._workspaces)
                for one in self._workspaces.values():
                    if now >= one.since + MEASURED_S:
                        one.measure(now)
            try:
                await self._renew_due()
                if now >= sweep + SWEEP_S:
                    sweep = now
                    await self._database.run(partial(forget_ended, self._clock.now_ms() - KEPT_MS))
            except StorageUnavailable as error:
                logger.info("message rates cannot be leased; this node tries again", reason=str(error))
                await trio.sleep(RETRY_DELAY_S)
            await trio.sleep(PAUSE_S)

    async def _renew_due(self) -> None:
        while self._due:
            names = sorted(self._due)[:BATCH]
            self._due.difference_update(names)
            try:
                await self._renew([name for name in names if name in self._workspaces])
            except StorageUnavailable:
                self._due.update(names)
                raise

    async def _renew(self, names: Sequence[str]) -> None:
        if not names:
            return
        began = self._clock.monotonic()
        before = {name: self._workspaces[name].bucket.rate for name in names}
        for name in names:
            one = self._workspaces[name]
            if not one.renewed and one.offered:
                one.measure(began)
            if one.demand <= 0:
                one.start_over()
        asked = {name: RateDemand(self._workspaces[name].demand, self._workspaces[name].rate) for name in names}
        try:
            found = await self._run(asked)
        except CommitUnknown:
            # Others may have been leased what this node has had before.
            for name in names:
                self._workspaces[name].bucket.lease(0.0, self._clock.monotonic(), began)
            raise
        now = self._clock.monotonic()
        for name, lease in found.items():
            self._take_over(name, lease, before[name], now, began + LEASE_S, given_back=asked[name].demand <= 0)

    async def _run(self, asked: Mapping[str, RateDemand]) -> dict[str, RenewedLease]:
        node = f"{self._holder.node_id}:{self._holder.epoch}"
        now_ms = self._clock.now_ms()
        ends_ms = now_ms + round((LEASE_S + MARGIN_S) * 1000)
        self.renewals += 1
        return await self._database.run(partial(renew_leases, node, asked, now_ms, ends_ms))

    def _take_over(
        self, name: str, lease: RenewedLease, before: float, now: float, until: float, *, given_back: bool
    ) -> None:
        one = self._workspaces[name]
        if not given_back:
            one.renewed = True
            one.bucket.lease(lease.rate, now, until)
            one.unsatisfied = lease.rate < lease.share - SLACK * one.rate
            if one.unsatisfied and now >= one.asked_at + ASK_AGAIN_S:
                one.asked_at = now
                self._bus.broadcast(RATES, f"{WANTED}{name}")
        elif one.offered:
            self._renew_soon(name)  # a message has arrived meanwhile
        else:
            del self._workspaces[name]
        if lease.rate < before - SLACK * one.rate:
            self._bus.broadcast(RATES, f"{FREED}{name}")

    async def give_back(self) -> None:
        """Give all leases back, at this node's end. Never raises StorageUnavailable."""
        names = sorted(self._workspaces)[:BATCH]
        if not names:
            return
        try:
            await self._run({name: RateDemand(0.0, self._workspaces[name].rate) for name in names})
        except StorageUnavailable as error:
            logger.info("leases of message rates could not be given back; they end soon", reason=str(error))
