"""Put access rules or audit rows into the data of a gateway before it starts.

Through the protocol each of them would be a commit. What is written is what a gateway writes, in
its tables, and for the audit by its own programs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any, Final

import trio

from aether_trio.config.loading import load_settings
from aether_trio.gateway.offline import OfflineAccess, open_offline
from aether_trio.model.audit import AuditEvent, EventType
from aether_trio.services.access.records import rule_value
from aether_trio.services.audit.trees import append
from aether_trio.storage.base import ExecuteMany, Fetch, Program
from bench import access_data

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BATCH: Final = 10_000
SEED: Final = 14


def lay_rules(data_dir: Path, count: int) -> None:
    """Write so many rules, and a hundredth as many groups with members."""
    trio.run(_lay_rules, data_dir, count)


def lay_audit(data_dir: Path, count: int) -> None:
    """Write `count` rows into the audit log of a gateway that never ran."""
    trio.run(_lay_audit, data_dir, count)


@asynccontextmanager
async def _opened(data_dir: Path) -> AsyncIterator[OfflineAccess]:
    settings = load_settings(environ={}, flags={"gateway.data_dir": str(data_dir), "gateway.dev": True})
    async with open_offline(settings) as opened:
        yield opened


async def _lay_rules(data_dir: Path, count: int) -> None:
    people = access_data.population(random.Random(SEED), max(1, count // 100))
    chance = random.Random(SEED + 1)
    members = [
        (one.kind, one.name, one.member_type, one.member_id, one.granted_by, one.granted_ms, one.expires_ms)
        for one in access_data.memberships(people, chance)
    ]
    rules = [(one.rule_id, *rule_value(one)) for one in access_data.rules(people, chance, count)]
    groups = [(kind, name, name, "", "bench", 0, b"{}") for kind, name in people.groups]
    async with _opened(data_dir) as opened:
        for table, rows in (("access_groups", groups), ("access_members", members), ("access_rules", rules)):
            await opened.database.run(partial(_insert, table, rows))


def _insert(table: str, rows: Sequence[Sequence[Any]]) -> Program[None]:
    """Insert whole rows, whose values are in the order of the table's columns."""
    if rows:
        values = ", ".join(f"${number}" for number in range(1, len(rows[0]) + 1))
        yield ExecuteMany(f"INSERT INTO {table} VALUES ({values})", rows)


async def _lay_audit(data_dir: Path, count: int) -> None:
    now_ms = int(time() * 1000)  # no long time without a head in front of what ends the work
    events = islice(_events(random.Random(SEED), now_ms), count)
    async with _opened(data_dir) as opened:
        [[origin]] = await opened.database.read(_origin)
        while batch := list(islice(events, BATCH)):
            await opened.database.run(partial(append, origin, batch, now_ms))


def _origin() -> Program[Sequence[Sequence[str]]]:
    return (yield Fetch("SELECT origin FROM audit_trees"))


def _events(chance: random.Random, now_ms: int) -> Iterator[AuditEvent]:
    """Yield what a busy gateway records: logins, decisions, messages."""
    people = access_data.population(random.Random(SEED), 100)
    agents = [name for kind, name in people.principals if kind == "agent"]
    session = 0
    while True:
        agent = chance.choice(agents)
        workspace = agent.split("::")[1]
        session += 1
        whose = {
            "at_ms": now_ms - chance.randrange(60_000),
            "actor_type": "agent",
            "actor_id": agent,
            "subject_type": "agent",
            "subject_id": agent,
            "root_subject_type": "agent",
            "root_subject_id": agent,
            "workspace": workspace,
            "session_id": f"{chance.getrandbits(80):020x}",
        }
        decided = {
            "decision": "ALLOW",
            "access_level": 20,
            "rule_id": "own",
            "fallback_applied": True,
            "required_level": 20,
        }
        resource = {"resource_type": "workspace", "resource_id": workspace}
        yield AuditEvent(event_type=EventType.AUTHORIZATION, operation="connect", metadata=decided, **resource, **whose)
        yield AuditEvent(
            event_type=EventType.AUTH,
            operation="auth_token_validation",
            metadata={"credential": f"token:{session}"},
            **whose,
        )
        for _ in range(3):
            target = f"ag::{workspace}::{chance.choice(agents).partition('::')[2]}"
            said = {"messages": chance.randrange(1000), "payload_bytes": chance.randrange(100_000)}
            yield AuditEvent(
                event_type=EventType.MESSAGE,
                operation="message_routed",
                resource_type="topic",
                resource_id=target,
                metadata=said,
                **whose,
            )
        yield AuditEvent(
            event_type=EventType.AUTHORIZATION, operation="send_message", metadata=decided, **resource, **whose
        )
