"""Schemas of gateways on PostgreSQL that tests use one after another.

A schema with all tables of a gateway takes the server half a second of computing, and tests ask for
hundreds. Here a test's schema is emptied when the test has ended, and the next test gets it under
another name. What could remember the test before is looked for, not hoped for:

* Tables, views and sequences that a gateway's schema has not are dropped, and so are partitions.
* A schema that is not what migrations make even then, to the last column, index, function, right
  and trigger, is dropped whole.
* Tables with pages are truncated, which resets the engine's statistics of them and their sequences.
* A connection that has outlived its test finds no table any more, as the name has changed. What it
  was doing has ended: the tables are locked before.
"""

from __future__ import annotations

from typing import Any, Final

import asyncpg

from aether_trio.storage.migrations import MIGRATIONS
from aether_trio.storage.postgres.connections import PostgresLimits
from aether_trio.storage.postgres.migrate import migrate
from tests.helpers.postgres import PostgresServer
from tests.helpers.postgres_session import PostgresSession

DATABASES: Final = ("cluster", *MIGRATIONS)

_HERE: Final = "$1::text::regnamespace"
_CATALOG: Final = f"""
    SELECT 'relation', c.relname::text, c.relkind::text, ARRAY[c.relowner::text, c.relacl::text, c.reloptions::text,
        c.relpersistence::text, c.relrowsecurity::text, c.relreplident::text, pg_get_partkeydef(c.oid),
        CASE c.relkind WHEN 'i' THEN pg_get_indexdef(c.oid) WHEN 'I' THEN pg_get_indexdef(c.oid)
        WHEN 'v' THEN pg_get_viewdef(c.oid) END,
        (SELECT string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid::regtype, a.atttypmod, a.attnotnull,
            a.attidentity, a.attgenerated, a.attcollation, a.attacl, a.attoptions, a.attstorage, a.attstattarget,
            pg_get_expr(d.adbin, d.adrelid)), ';' ORDER BY a.attnum)
            FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
            WHERE a.attrelid = c.oid AND (a.attnum > 0 OR a.attisdropped)),
        (SELECT string_agg(o.conname || ' ' || pg_get_constraintdef(o.oid), ';' ORDER BY o.conname)
            FROM pg_constraint o WHERE o.conrelid = c.oid),
        (SELECT string_agg(pg_get_triggerdef(t.oid), ';' ORDER BY t.tgname)
            FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal),
        (SELECT string_agg(concat_ws(' ', s.seqtypid, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcycle), ';')
            FROM pg_sequence s WHERE s.seqrelid = c.oid)]::text
        FROM pg_class c WHERE c.relnamespace = {_HERE}
    UNION ALL SELECT 'function', p.oid::regprocedure::text, '',
        ARRAY[p.proowner::text, p.proacl::text, p.proconfig::text, p.prosrc, pg_get_function_result(p.oid)]::text
        FROM pg_proc p WHERE p.pronamespace = {_HERE}
    UNION ALL SELECT 'type', t.typname::text, t.typtype::text, ''
        FROM pg_type t WHERE t.typnamespace = {_HERE} AND t.typtype IN ('d', 'e', 'r', 'm')
    UNION ALL SELECT 'schema', '', '', ARRAY[n.nspowner::text, n.nspacl::text]::text
        FROM pg_namespace n WHERE n.oid = {_HERE}
"""
_PARTITIONS: Final = f"""
    SELECT DISTINCT i.inhrelid::regclass::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE c.relnamespace = {_HERE} AND c.relkind = 'r'
"""
_USED: Final = f"""
    SELECT c.oid::regclass::text FROM pg_class c
    WHERE c.relnamespace = {_HERE} AND c.relkind = 'r' AND pg_relation_size(c.oid) > 0 AND c.relname <> 'schema_version'
"""
_STATISTICS: Final = f"""
    DELETE FROM pg_statistic USING pg_class c WHERE starelid = c.oid AND c.relnamespace = {_HERE}
"""
_DROPPED: Final = {"v": "VIEW", "r": "TABLE", "p": "TABLE", "S": "SEQUENCE"}

Catalog = dict[tuple[str, str], tuple[str, str]]


class PostgresSchemas:
    """The schemas of one server. `session` is a session of its superuser."""

    def __init__(self, server: PostgresServer, session: PostgresSession, prefix: str) -> None:
        self._server = server
        self._session = session
        self._prefix = prefix
        self._made = 0
        self._free: list[str] = []
        self._whole: Catalog = {}
        self._versions: list[tuple[Any, ...]] = []
        self.reused = 0

    def _name(self) -> str:
        self._made += 1
        return f"{self._prefix}_{self._made}"

    def take(self) -> str:
        """Return an empty schema with all tables, for one test."""
        if self._free:
            old, new = self._free.pop(), self._name()
            self._session.execute(f"ALTER SCHEMA {old} RENAME TO {new}")
            self.reused += 1
            return new
        schema = self._name()
        for name in DATABASES:
            self._session.call(migrate(self._server.dsn(), schema, name, PostgresLimits()))
        if not self._whole:
            self._whole, self._versions = self._catalog(schema), self._schema_versions(schema)
        return schema

    def give_back(self, schema: str) -> None:
        """Keep the schema for another test if nothing tells that it was used."""
        kept = f"{schema}_kept"
        self._session.execute(f"SET client_min_messages = warning; ALTER SCHEMA {schema} RENAME TO {kept}")
        self._session.execute("BEGIN")
        try:
            is_whole = self._empty(kept)
        except asyncpg.PostgresError:
            is_whole = False  # what cannot be emptied is dropped, too
        except BaseException:
            self._session.execute("ROLLBACK")
            raise
        self._session.execute("COMMIT" if is_whole else f"ROLLBACK; DROP SCHEMA {kept} CASCADE")
        if is_whole:
            self._free.append(kept)

    def _empty(self, schema: str) -> bool:
        """Empty the schema within a transaction, if it is what migrations make."""
        there = self._catalog(schema)
        if self._whole.keys() - there.keys():
            return False
        parts = [f"DROP TABLE {name}" for (name,) in self._session.fetch(_PARTITIONS, schema)]
        more = [(kind, name) for (what, name), (kind, _) in there.items() if (what, name) not in self._whole]
        # In this order: a column's sequence goes with its table.
        added = [
            f"DROP {word} IF EXISTS {schema}.{name} CASCADE"
            for dropped, word in _DROPPED.items()
            for kind, name in more
            if kind == dropped
        ]
        tables = ", ".join(f"{schema}.{name}" for (what, name), (kind, _) in self._whole.items() if kind in ("r", "p"))
        self._session.execute("; ".join([f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE", *parts, *added]))
        if self._catalog(schema) != self._whole or self._schema_versions(schema) != self._versions:
            return False
        used = ", ".join(name for (name,) in self._session.fetch(_USED, schema))
        if used:
            self._session.execute(f"TRUNCATE {used} RESTART IDENTITY CASCADE")
        self._session.execute(_STATISTICS.replace("$1", f"'{schema}'"))
        return True

    def _catalog(self, schema: str) -> Catalog:
        """What is in a schema, without its name: (what, name) to (kind, all of it)."""
        rows = self._session.fetch(_CATALOG, schema)
        return {
            (what, name.replace(f"{schema}.", "")): (kind, text.replace(f"{schema}.", ""))
            for what, name, kind, text in rows
        }

    def _schema_versions(self, schema: str) -> list[tuple[Any, ...]]:
        return self._session.fetch(f"SELECT database_name, version FROM {schema}.schema_version ORDER BY 1")
