"""PostgreSQL runs a group's statements by key, even if planned without topics."""

from __future__ import annotations

import re
from typing import Any

import pytest

from aether_trio.cluster.relay import log_relay
from aether_trio.log import topic_sql_postgres
from aether_trio.log.topic_sql_postgres import CommitGroup
from aether_trio.storage.base import FENCE_HERE, Database
from aether_trio.storage.postgres.connections import PLANNED_ONCE
from aether_trio.storage.schema.cluster import _PUSH
from tests.helpers.engines import PostgresEngine

GROUP = CommitGroup(1, 1, 1, [(1, b"x")], [(1, "ag::w::a::1", 1, 1)], [("ag::w::a::1", b"x", b"x", 1)])


def plan(engine: PostgresEngine, sql: str) -> str:
    """As it is kept for any values, made now."""
    settings = "; ".join(f"SET {name} = {value}" for name, value in PLANNED_ONCE.items())
    count = max(int(number) for number in re.findall(r"\$(\d+)", sql))
    nulls = ", ".join(["NULL"] * count)
    text = f"SET search_path = {engine.schema}; {settings}; PREPARE p AS {sql}; EXPLAIN EXECUTE p({nulls})"
    return engine.server.psql(text)


def conditions(plan: str, table: str) -> list[bool]:
    """For each scan of a table whether it is one by key."""
    lines = plan.splitlines()
    scans = [at for at, line in enumerate(lines) if re.search(rf"Scan .*\bon {table}\b", line)]
    return [
        "Seq Scan" not in lines[at]
        and any("Index Cond" in line or "Recheck Cond" in line for line in lines[at : at + 3])
        for at in scans
    ]


async def test_a_group_finds_its_topics_by_key(log_database: Database, postgres_engine: PostgresEngine) -> None:
    statement: Any = topic_sql_postgres.append_group(GROUP)
    found = conditions(plan(postgres_engine, statement.sql.replace(FENCE_HERE, "1")), "topics")
    assert found
    assert all(found)


@pytest.mark.parametrize("variant", [(False, False), (False, True), (True, False), (True, True)])
async def test_one_message_finds_its_topic_by_key(
    log_database: Database, postgres_engine: PostgresEngine, variant: tuple[bool, bool]
) -> None:
    async with postgres_engine.open("cluster"):
        text = topic_sql_postgres._APPEND_ONE[variant].replace(FENCE_HERE, "1")
        found = conditions(plan(postgres_engine, text), "topics")
    assert found
    assert all(found)


async def test_listeners_are_found_by_key(log_database: Database, postgres_engine: PostgresEngine) -> None:
    async with postgres_engine.open("cluster"):
        found = conditions(plan(postgres_engine, log_relay._NOTIFY), "topic_interest")
    assert found == [True]


async def test_listeners_of_a_push_are_found_by_key(log_database: Database, postgres_engine: PostgresEngine) -> None:
    query = _PUSH.partition("RETURN (")[2].partition(");\nEND")[0].replace("<> me", "<> $1")
    query = query.replace(
        "unnest(topics, keys, parts, frames)", "unnest($2::text[], $3::bigint[], $4::int[], $5::bytea[])"
    )
    async with postgres_engine.open("cluster"):
        found = plan(postgres_engine, query)
    assert conditions(found, "topic_interest") == [True]
    assert conditions(found, "nodes") == [True]


@pytest.mark.parametrize(("kind", "planned_once"), [("appender", True), ("writer", False), ("reader", False)])
async def test_only_what_appends_plans_once(kind: str, planned_once: bool) -> None:
    from aether_trio.storage.postgres import connections

    session = connections._session(kind, "x", connections.PostgresLimits())  # type: ignore[arg-type]
    assert (session.items() >= PLANNED_ONCE.items()) is planned_once
