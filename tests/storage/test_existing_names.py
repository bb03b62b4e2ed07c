"""What has a row is never called absent; most that has none is."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.storage.base import Database, Fetch, Program, ProgramFactory, Row, StorageUnavailable
from aether_trio.storage.existing_names import PAGE, ExistingNames
from aether_trio.storage.sqlite.database import open_sqlite

logger = structlog.get_logger("test")


def page(after: str, count: int) -> Program[list[str]]:
    rows: list[Row] = yield Fetch("SELECT name FROM names WHERE name > $1 ORDER BY name LIMIT $2", (after, count))
    return [name for (name,) in rows]


async def filled(database: Database, names: Sequence[str]) -> None:
    await database.execute("CREATE TABLE names (name TEXT PRIMARY KEY)")
    await database.executemany("INSERT INTO names VALUES ($1)", [(name,) for name in names])


def test_before_the_rows_are_read_every_name_may_exist() -> None:
    assert ExistingNames[str]().may_exist("unheard of")


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
async def test_all_rows_are_known_and_hardly_another(count: int) -> None:
    async with open_sqlite(None) as database:
        await filled(database, [f"ag::w::a::{number}" for number in range(count)])
        names = ExistingNames[str]()
        await names.load(database, page, "", "names", logger)
    assert all(names.may_exist(f"ag::w::a::{number}") for number in range(count))
    assert sum(names.may_exist(f"ag::w::b::{number}") for number in range(1000)) < 10


async def test_a_row_that_is_written_during_the_load_is_known() -> None:
    async with open_sqlite(None) as database:
        await filled(database, ["b"])
        names = ExistingNames[str]()
        names.add("a")  # behind the page that is read
        await names.load(database, page, "a", "names", logger)
    assert [names.may_exist(name) for name in ("a", "b", "c")] == [True, True, False]


async def test_where_others_write_nothing_is_known() -> None:
    async with open_sqlite(None) as database:
        await filled(database, [])
        database.shared = True
        names = ExistingNames[str]()
        await names.load(database, page, "", "names", logger)
    assert names.may_exist("unheard of")


class Failing(Database):
    """Fails twice."""

    shared = False

    def __init__(self, database: Database) -> None:
        self._database = database
        self.left = 2

    async def run(self, program: ProgramFactory[object], abandoned: object = None) -> object:  # type: ignore[override]
        raise AssertionError

    async def read(self, program: ProgramFactory[object]) -> object:  # type: ignore[override]
        if self.left:
            self.left -= 1
            raise StorageUnavailable("not now")
        return await self._database.read(program)


async def test_it_reads_again_until_storage_answers(autojump_clock: object) -> None:
    async with open_sqlite(None) as database:
        await filled(database, ["a"])
        names, failing = ExistingNames[str](), Failing(database)
        await names.load(failing, page, "", "names", logger)
    assert not failing.left
    assert [names.may_exist(name) for name in ("a", "b")] == [True, False]


@given(st.lists(st.binary(max_size=20), max_size=50))
def test_what_was_added_may_exist(added: list[bytes]) -> None:
    names = ExistingNames[bytes]()
    names._complete = True
    for name in added:
        names.add(name)
    assert all(names.may_exist(name) for name in added)


def test_no_name_is_lost_when_threads_add_at_once() -> None:
    names = ExistingNames[str]()
    names._complete = True
    threads = [
        threading.Thread(target=lambda first=first: [names.add(f"{first}-{number}") for number in range(2000)])
        for first in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(names.may_exist(f"{first}-{number}") for first in range(4) for number in range(2000))
