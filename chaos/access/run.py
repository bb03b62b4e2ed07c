"""Run chaos for access once, from an empty database to a verdict."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

import trio

from aether_trio.client import UserClient
from aether_trio.client.operations import AccessLevel
from aether_trio.devtools.process_cluster import ProcessCluster, open_process_cluster
from aether_trio.wire.pb import aether_pb2 as pb
from chaos.access import tables
from chaos.access.checks import check_all
from chaos.access.history import AccessHistory
from chaos.access.holders import (
    AT_HOME,
    FRIEND,
    INSIDE,
    ON_KEYS,
    ON_OTHER,
    VICTIM,
    Attempts,
    Holder,
    Try,
    on_behalf,
)
from chaos.access.rights import (
    BARRED,
    GROUP,
    INNER,
    NONE,
    OTHER,
    OWN,
    Administrator,
    Do,
    GrantRight,
    Right,
    TokenRight,
    answers_of,
    lock,
    membership,
    rule,
)
from chaos.checks import Verdict
from chaos.faults import Weather
from chaos.history import History
from chaos.load import options
from chaos.plan import Kind, Step, plan
from chaos.run import last_lines_of_tracebacks

KINDS: Final = (
    Kind.KILL_NODE,
    Kind.STOP_NODE,
    Kind.CRASH_DATABASE,
    Kind.CUT_DATABASE_LINK,
    Kind.STALL_DATABASE_LINK,
    Kind.STALL_CONNECTION,
    Kind.STALL_BUS,
    Kind.END_BUS,
    Kind.END_LEASE,
    Kind.HALF_OPEN_LEASE,
    Kind.WITHHOLD_LEASE,
    Kind.END_BACKEND,
)
SETTINGS: Final = (
    "access.default=closed",
    # What is refused here is no attack, and comes from one address.
    "auth.max_failures=1000000",
    "auth.max_failures_per_address=1000000",
    "audit.head_s=1.0",
    'websocket.principals=["*"]',
)
WARM_UP_S: Final = 1.0
REST_S: Final = 1.0
"""Holders go on for this long when the faults are over."""
STOP_S: Final = 9.0
"""How long one stop of a run lasts at least.

A revocation during a stop is answered after 2 s, and in force on the stopped node 5 s later.
"""
PLANS_APART: Final = 1_000_000_007
SETTLE_S: Final = 60.0
SCHEMES: Final = ("aether", "ws", "grpc")


@dataclass(frozen=True, slots=True)
class AccessWishes:
    """The settings of a run."""

    seed: int
    seconds: float = 24.0
    nodes: int = 3
    mean_s: float = 1.5
    kinds: Sequence[Kind] = KINDS
    keep: Path | None = None
    checkout: Path | None = None


@dataclass
class AccessResult:
    """A run and what the checks say of it."""

    wishes: AccessWishes
    history: AccessHistory
    verdicts: list[Verdict]

    @property
    def well(self) -> bool:
        """Whether every invariant was looked at and held."""
        return all(verdict.looked_at and not verdict.violations for verdict in self.verdicts)


@dataclass
class Cast:
    """All rights of a run, with their holders."""

    cluster: ProcessCluster
    attempts: Attempts
    chance: random.Random
    rights: list[Right] = field(default_factory=list)
    holders: list[Holder] = field(default_factory=list)

    def fill(self) -> None:
        """Make all rights and holders: some rights have one on each node, some one alone."""
        for node in self.cluster.nodes:
            self._alone(
                f"rule of {node.name}", "exact", node.name, rule(f"ag::{OWN}::exact::{node.name}", "workspace", OTHER)
            )
            self._grant(node.name)
        self._everywhere("pattern rule", "pattern", rule(f"ag::{OWN}::pattern::*", "workspace", OTHER), ON_OTHER)
        self._everywhere("membership", "member", membership(), ON_OTHER)
        self._everywhere("keys", "keys", rule(f"ag::{OWN}::keys::*", "kv_scope", "global"), ON_KEYS)
        self._everywhere("lock", "locked", lock(f"ag::{OWN}::locked::*"), AT_HOME)
        admit, _ = rule(f"ag::{BARRED}::guest::*", "workspace", BARRED)
        bar, _ = rule(f"ag::{BARRED}::guest::*", "workspace", BARRED, NONE)
        self._everywhere("own workspace", "guest", (admit, bar), INSIDE, workspace=BARRED)
        token = TokenRight()
        self._everywhere("token", "bearer", (token.give, token.take), AT_HOME, secret=lambda: token.secret)

    def _alone(self, name: str, implementation: str, node: str, pair: tuple[Do, Do]) -> None:
        self.rights.append(Right(name, *pair))
        self._hold(name, OWN, implementation, node, ON_OTHER)

    def _grant(self, node: str) -> None:
        user = f"user-of-{node}"
        grant = GrantRight(f"ag::{OWN}::delegate::{node}")
        self.rights.append(Right(f"grant of {node}", grant.give, grant.take, user))
        self._hold(f"grant of {node}", OWN, "delegate", node, on_behalf(user, grant))

    def _everywhere(
        self,
        name: str,
        implementation: str,
        pair: tuple[Do, Do],
        tries: Sequence[tuple[str, Try]],
        *,
        workspace: str = OWN,
        secret: Callable[[], str] = lambda: "",
    ) -> None:
        self.rights.append(Right(name, *pair))
        for node in self.cluster.nodes:
            self._hold(name, workspace, implementation, node.name, tries, secret)

    def _hold(
        self,
        right: str,
        workspace: str,
        implementation: str,
        node: str,
        tries: Sequence[tuple[str, Try]],
        secret: Callable[[], str] = lambda: "",
    ) -> None:
        scheme = self.chance.choice(SCHEMES)
        (address,) = [one.address for one in self.cluster.nodes if one.name == node]
        own = random.Random(self.chance.getrandbits(64))
        self.holders.append(
            Holder(right, workspace, implementation, node, f"{scheme}://{address}", tries, self.attempts, own, secret)
        )


def steps_of(wishes: AccessWishes, nodes: Sequence[str]) -> list[Step]:
    """Return the first of the plans of a seed that stops a node for long enough."""
    assert Kind.STOP_NODE in wishes.kinds
    for seed in count(wishes.seed, PLANS_APART):
        steps = plan(seed, nodes, wishes.seconds, mean_s=wishes.mean_s, kinds=wishes.kinds)
        if any(step.kind is Kind.STOP_NODE and step.duration_s >= STOP_S for step in steps):
            return steps
    raise AssertionError


async def _prepare(cluster: ProcessCluster) -> None:
    """Make the rules and groups that stay."""
    op = pb.ACLOperation
    async with UserClient(f"aether://{cluster.front.address}", user_id="admin", window_id="0", **options()) as client:
        answers = answers_of(client)
        for name in (GROUP, INNER):
            await answers.ask("acl_op", op(op=op.CREATE_GROUP, name=name, group_request=pb.ACLGroupRequest(name=name)))
        await client.rules.grant("group", GROUP, "workspace", OTHER, AccessLevel.READWRITE)
        for node in cluster.nodes:
            await client.rules.add_member(INNER, "agent", f"ag::{OWN}::member::{node.name}")
            await client.rules.grant("user", f"user-of-{node.name}", "workspace", OTHER, AccessLevel.READWRITE)


async def run(wishes: AccessWishes, say: Callable[[str], None]) -> AccessResult:
    """Run once; raises what keeps the run from its end; violations are results."""
    home = Path(tempfile.mkdtemp(prefix="aether-access-"))
    heads = home / "heads"
    try:
        async with open_process_cluster(
            wishes.nodes,
            settings=(*SETTINGS, f"audit.heads_file={heads}"),
            postgres={"max_connections": "300"},
            keep=wishes.keep,
            checkout=wishes.checkout,
        ) as cluster:
            history = await _play(cluster, wishes, say)
            await tables.read(cluster, history)
            await tables.verify(cluster, history, heads)
            victim = cluster.nodes[wishes.seed % len(cluster.nodes)]
            await victim.kill()
            await tables.cut_tail(cluster, history, heads, victim.name)
            history.tracebacks = [
                f"{node.name}: {line}" for node in cluster.nodes for line in last_lines_of_tracebacks(node.printed())
            ]
        if wishes.keep is not None:
            shutil.copyfile(heads, wishes.keep / "heads")
            history.write(wishes.keep / "access.jsonl")
        return AccessResult(wishes, history, check_all(history))
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def _play(cluster: ProcessCluster, wishes: AccessWishes, say: Callable[[str], None]) -> AccessHistory:
    begun_s = trio.current_time()

    def now() -> float:
        return trio.current_time() - begun_s

    names = [node.name for node in cluster.nodes]
    history = AccessHistory(tuple(names))
    chance = random.Random(wishes.seed)
    attempts = Attempts(history, now)
    cast = Cast(cluster, attempts, chance)
    cast.fill()
    await _prepare(cluster)
    administrators = [
        Administrator(
            right,
            cluster.front.address,
            history,
            now,
            random.Random(chance.getrandbits(64)),
            lambda: any(node.stopped for node in cluster.nodes),
        )
        for right in cast.rights
    ]
    seen = History()
    weather = Weather(cluster, seen, now, say)
    steps = steps_of(wishes, names)
    async with trio.open_nursery() as witnesses:
        for topic in (VICTIM, FRIEND):
            witnesses.start_soon(attempts.witness, cluster.front.address, topic)
        async with trio.open_nursery() as holders:
            async with trio.open_nursery() as rulers:
                async with trio.open_nursery() as starting:
                    for one in administrators:
                        starting.start_soon(rulers.start, one.run)
                say(f"{now():7.1f} s  {len(administrators)} rights are given")
                for holder in cast.holders:
                    holders.start_soon(holder.run)
                await trio.sleep(WARM_UP_S)
                await weather.run(steps)
                stops = [one.until_s - one.since_s for one in seen.disturbances if one.kind == Kind.STOP_NODE]
                if max(stops) < STOP_S:  # its node was not back yet from another fault
                    await weather.run([Step(0.0, Kind.STOP_NODE, names[0], STOP_S, 0.0)])
                say(f"{now():7.1f} s  the faults are over")
                await trio.sleep(REST_S)
                for one in administrators:
                    one.quiet.set()
                rulers.cancel_scope.deadline = trio.current_time() + SETTLE_S
            await trio.sleep(REST_S)
            attempts.quiet = True
            holders.cancel_scope.deadline = trio.current_time() + SETTLE_S
        await trio.sleep(REST_S)
        witnesses.cancel_scope.cancel()
    history.disturbances = seen.disturbances
    history.seconds = now()
    return history
