"""The database's time on a node whose own clock is wrong."""

from __future__ import annotations

from aether_trio.storage.base import Database
from aether_trio.storage.database_clock import OLD_S, DatabaseClock
from tests.helpers.clocks import ManualClock
from tests.helpers.engines import PostgresEngine


class Slow:
    """A database that answers, after so many seconds, that it is such a time."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.ms = 1_000_000
        self.takes_ms = 10

    async def read(self, program: object) -> list[tuple[int]]:
        self.clock.advance(self.takes_ms)
        return [(self.ms,)]


async def asked() -> tuple[ManualClock, Slow, DatabaseClock]:
    """A node's own clock, the database and its clock, which has asked once."""
    own = ManualClock(epoch_ms=5)
    database = Slow(own)
    clock = DatabaseClock(database, own)  # type: ignore[arg-type]
    await clock.ask()
    # What was told, though its way here took some time: never a moment that has not come.
    assert clock.now_ms() == 1_000_000
    return own, database, clock


async def test_it_goes_on_from_the_databases_time_and_not_from_its_own() -> None:
    own, _, clock = await asked()
    own.advance(100)
    own.set_wall(77)
    assert clock.now_ms() == 1_000_100


async def test_it_never_runs_backwards_and_believes_quick_answers_only() -> None:
    own, database, clock = await asked()
    database.ms -= 5_000
    await clock.ask()
    assert clock.now_ms() == 1_000_000
    own.advance(6_000)
    assert clock.now_ms() == 1_001_000
    database.ms, database.takes_ms = 9_000_000, 2_000
    await clock.ask()
    assert clock.now_ms() < 1_100_000
    own.advance(round(OLD_S * 1000))
    await clock.ask()
    assert clock.now_ms() == 9_000_000


async def test_a_database_that_is_set_back_far_is_followed() -> None:
    _, database, clock = await asked()
    database.ms -= 3_600_000
    assert clock.now_ms() == 1_000_000
    await clock.ask()
    assert clock.now_ms() == 1_000_000 - 3_600_000


async def test_a_real_one_tells_its_time(postgres_engine: PostgresEngine) -> None:
    own = ManualClock(epoch_ms=0)
    async with postgres_engine.open("tasks") as opened:
        database: Database = opened
        clock = DatabaseClock(database, own)
        await clock.ask()
        [[before_ms]] = postgres_engine.rows("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        assert abs(clock.now_ms() - before_ms) < 60_000
