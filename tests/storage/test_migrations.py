"""Schemas: applied once, refused when newer, the same on every path and engine."""

from __future__ import annotations

from contextlib import suppress

import pytest

from aether_trio.storage import migrations
from aether_trio.storage.base import Fetch, Statement
from aether_trio.storage.errors import SchemaTooNewError
from aether_trio.storage.migrations import MIGRATIONS, POSTGRES, upgrade
from tests.helpers.engines import Engine

only_shared = pytest.mark.parametrize("engine", ["file", "postgres"], indirect=True)
VERSION = "SELECT version FROM schema_version WHERE database_name <> 'marks'"


@pytest.mark.parametrize("name", sorted(MIGRATIONS))
@only_shared
async def test_each_database_is_brought_up_to_date_and_opens_again(name: str, engine: Engine) -> None:
    for _ in range(2):
        async with engine.open(name) as database:
            assert await database.fetch(VERSION) == [(len(MIGRATIONS[name]),)]


@only_shared
async def test_a_later_release_applies_only_what_is_new(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = (("CREATE TABLE one (a {blob})",),)
    monkeypatch.setitem(migrations.MIGRATIONS, "growing", first)
    async with engine.open("growing") as database:
        await database.execute("INSERT INTO one VALUES ($1)", b"kept")
    monkeypatch.setitem(migrations.MIGRATIONS, "growing", (*first, ("CREATE TABLE two (b {bigint})",)))
    async with engine.open("growing") as database:
        assert await database.fetch("SELECT a FROM one") == [(b"kept",)]
        assert await database.fetch("SELECT b FROM two") == []
        assert await database.fetch(VERSION) == [(2,)]


@only_shared
async def test_webhook_ids_of_the_first_migration_have_no_hash(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    all_of_them = MIGRATIONS["tasks"]
    monkeypatch.setitem(migrations.MIGRATIONS, "tasks", all_of_them[:1])
    async with engine.open("tasks") as database:
        await database.execute("INSERT INTO workflow_webhook_ids (hash, at_ms) VALUES ('a', 1)")
    monkeypatch.setitem(migrations.MIGRATIONS, "tasks", all_of_them)
    async with engine.open("tasks") as database:
        assert await database.fetch("SELECT * FROM workflow_webhook_ids") == [("a", 1, "")]


@only_shared
async def test_a_failing_migration_leaves_the_file_as_it_was(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    good = ("CREATE TABLE one (a {blob})",)
    monkeypatch.setitem(migrations.MIGRATIONS, "broken", (good, ("CREATE TABLE one (again {blob})",)))
    with pytest.raises(Exception, match="already exists"):
        async with engine.open("broken"):
            pass
    monkeypatch.setitem(migrations.MIGRATIONS, "broken", (good,))
    async with engine.open("broken") as database:
        assert await database.fetch("SELECT a FROM one") == []


@only_shared
async def test_a_newer_schema_is_refused_with_the_way_out(engine: Engine) -> None:
    async with engine.open("state") as database:
        await database.execute("UPDATE schema_version SET version = version + 1")
    with pytest.raises(SchemaTooNewError, match=r"has schema version .* Run the release that wrote it"):
        async with engine.open("state"):
            pass


@pytest.mark.parametrize("name", sorted(MIGRATIONS))
def test_every_dialect_fills_every_word(name: str) -> None:
    program, statements = upgrade(name, POSTGRES, "a server"), list[Statement]()
    with suppress(StopIteration):
        statements.append(next(program))
        while True:  # of an empty database
            statements.append(program.send([] if isinstance(statements[-1], Fetch) else 1))
    assert len(statements) >= 3 + len(MIGRATIONS[name])
    assert not [one.sql for one in statements if "{" in one.sql]
