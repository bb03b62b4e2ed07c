"""Schemas that tests use one after another remember nothing."""

from __future__ import annotations

from collections.abc import Iterator

import asyncpg
import pytest

from tests.helpers.postgres import PostgresServer
from tests.helpers.postgres_session import PostgresSession, open_postgres_session
from tests.helpers.schemas import PostgresSchemas

THERE = "SELECT nspname FROM pg_namespace WHERE nspname LIKE $1"


@pytest.fixture
def schemas(postgres_server: PostgresServer, postgres_session: PostgresSession) -> Iterator[PostgresSchemas]:
    yield PostgresSchemas(postgres_server, postgres_session, "of_test_schemas")
    for (name,) in postgres_session.fetch(THERE, "of_test_schemas%"):
        postgres_session.execute(f"SET client_min_messages = warning; DROP SCHEMA {name} CASCADE")


def put(session: PostgresSession, schema: str) -> list[tuple[int]]:
    """Insert a row; return its number, which the engine gives."""
    return session.fetch(f"INSERT INTO {schema}.kv_changes (payload) VALUES ('') RETURNING id")


def test_the_next_test_gets_it_empty_under_another_name(
    schemas: PostgresSchemas, postgres_session: PostgresSession
) -> None:
    first = schemas.take()
    assert put(postgres_session, first) == [(1,)]
    postgres_session.execute(
        f"ANALYZE {first}.kv_changes; CREATE TABLE {first}.added (id SERIAL); CREATE VIEW {first}.seen AS SELECT 1; "
        f"CREATE TABLE {first}.part PARTITION OF {first}.messages FOR VALUES FROM (0) TO (10)"
    )
    relations = "SELECT relname FROM pg_class WHERE relnamespace = $1::text::regnamespace ORDER BY 1"
    schemas.give_back(first)
    second = schemas.take()
    assert schemas.reused == 1
    assert second != first
    assert not {"added", "seen", "part"} & {name for (name,) in postgres_session.fetch(relations, second)}
    known = "SELECT reltuples FROM pg_class WHERE oid = $1::text::regclass"
    assert postgres_session.fetch(known, f"{second}.kv_changes") == [(-1,)]
    assert postgres_session.fetch("SELECT 1 FROM pg_stats WHERE schemaname = $1", second) == []
    assert put(postgres_session, second) == [(1,)]


CHANGES = [
    "ALTER TABLE {}.kv_changes ADD COLUMN more INT",
    "ALTER TABLE {}.kv_changes ALTER COLUMN payload DROP NOT NULL",
    "ALTER TABLE {}.kv_changes SET (fillfactor = 50)",
    "CREATE INDEX ON {}.kv_changes (payload)",
    "DROP TABLE {}.kv_changes",
    "ALTER TABLE {}.kv_changes DROP CONSTRAINT kv_changes_pkey",
    "CREATE FUNCTION {}.more() RETURNS INT LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION {}.aether_now_ms() RETURNS BIGINT LANGUAGE sql AS 'SELECT 1::BIGINT'",
    "CREATE TRIGGER t BEFORE UPDATE ON {}.kv_changes EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE TYPE {}.kind AS ENUM ('a')",
    "GRANT SELECT ON {}.kv_changes TO PUBLIC",
    "GRANT ALL ON SCHEMA {} TO PUBLIC",
    "UPDATE {}.schema_version SET version = 0",
]


def test_one_that_is_not_what_migrations_make_is_not_used_again(
    schemas: PostgresSchemas, postgres_session: PostgresSession
) -> None:
    schema = schemas.take()
    for change in CHANGES:
        postgres_session.execute(f"BEGIN; {change.format(schema)}")
        try:
            assert not schemas._empty(schema), change
        finally:
            postgres_session.execute("ROLLBACK")
    postgres_session.execute(CHANGES[0].format(schema))
    schemas.give_back(schema)
    assert postgres_session.fetch(THERE, f"{schema}%") == []


def test_a_connection_that_has_outlived_its_test_finds_nothing(
    schemas: PostgresSchemas, postgres_server: PostgresServer, postgres_session: PostgresSession
) -> None:
    schema = schemas.take()
    with open_postgres_session(postgres_server.dsn()) as leftover:
        leftover.execute(f"SET search_path = {schema}; PREPARE put AS INSERT INTO kv_changes (payload) VALUES ('')")
        leftover.execute("EXECUTE put")
        schemas.give_back(schema)
        reused = schemas.take()
        assert schemas.reused == 1
        with pytest.raises(asyncpg.UndefinedTableError):
            leftover.execute("EXECUTE put")
    assert postgres_session.fetch(f"SELECT * FROM {reused}.kv_changes") == []
