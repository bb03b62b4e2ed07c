"""Groups on a database that other nodes write: lost answers and lost leases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from aether_trio.log.topic_log import LogLimits, open_log
from aether_trio.storage.base import CommitUnknown
from tests.helpers.inline import InlineDatabase
from tests.helpers.log_bench import Bench, Reader

TOPIC = "ag::w::a::1"

pytestmark = pytest.mark.parametrize("store", ["postgres"], indirect=True)


@pytest.fixture
async def reader(bench: Bench) -> Reader:
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    await bench.publish(TOPIC, b"1")
    return reader


async def test_a_commit_whose_answer_is_lost_is_neither_lost_nor_done_twice(
    bench: Bench, database: InlineDatabase, reader: Reader
) -> None:
    database.unanswered_writes = 1
    await bench.publish(TOPIC, b"2", b"3")
    await trio.sleep(1)
    assert reader.frames == [b"1", b"2", b"3"]
    await bench.publish(TOPIC, b"4")
    assert reader.frames == [b"1", b"2", b"3", b"4"]
    assert bench.refusals == []
    assert bench.log.topics.ensure(TOPIC).waiting == 0
    assert database.query("SELECT count(*) FROM messages") == [(4,)]


async def test_who_listens_gets_what_others_have_appended_as_soon_as_it_is_known(
    bench: Bench, database: InlineDatabase, reader: Reader
) -> None:
    async with open_log(database, bench.log.clock, LogLimits()) as other:
        for frame in (b"2", b"3"):
            await other.wait_settled(other.append_nowait(other.topics.ensure(TOPIC), frame, bench.author))
    await trio.sleep(1)
    assert reader.frames == [b"1"]
    await bench.publish(TOPIC, b"4")  # which is not the next one here
    await trio.sleep(1)
    assert reader.frames == [b"1", b"2", b"3", b"4"]
    async with open_log(database, bench.log.clock, LogLimits()) as other:
        await other.wait_settled(other.append_nowait(other.topics.ensure(TOPIC), b"5", bench.author))
    await bench.subscribe(TOPIC, Reader())  # which reads how far the topic is
    await trio.sleep(1)
    assert reader.frames == [b"1", b"2", b"3", b"4", b"5"]


async def test_what_was_appended_under_a_lost_lease_is_refused_and_what_comes_then_is_not(
    bench: Bench, database: InlineDatabase, reader: Reader
) -> None:
    database.before_write.close()
    bench.append(TOPIC, b"2")
    await database.before_write.arrival()  # on its way, and fenced by the lease
    bench.append(TOPIC, b"3", b"4")
    bench.log.void()
    last = bench.append(TOPIC, b"5")
    database.before_write.open()
    await bench.log.wait_settled(last)
    await trio.sleep(1)
    assert bench.refusals == ["this gateway had lost its lease in the cluster"] * 2
    assert reader.frames == [b"1", b"2", b"5"]
    assert not bench.log.statistics().storage_failing
    assert bench.log.topics.ensure(TOPIC).waiting == 0


@pytest.mark.parametrize("lost_answers", [1, 2])
async def test_a_group_that_was_written_before_the_lease_was_lost_is_not_refused(
    bench: Bench, database: InlineDatabase, reader: Reader, lost_answers: int
) -> None:
    database.unanswered_writes = lost_answers  # that of the group, and of the question for it
    number = bench.append(TOPIC, b"2")
    await trio.testing.wait_all_tasks_blocked()
    bench.log.void()
    await bench.log.wait_settled(number)
    await bench.publish(TOPIC, b"3")
    await trio.sleep(1)
    assert bench.refusals == []
    assert reader.frames == [b"1", b"2", b"3"]


@pytest.mark.parametrize("lost_answers", [0, 1])
async def test_a_group_that_is_under_way_when_the_lease_is_lost_does_not_come_afterwards(
    bench: Bench, database: InlineDatabase, reader: Reader, monkeypatch: pytest.MonkeyPatch, lost_answers: int
) -> None:
    late: list[Callable[[], Any]] = []
    run = database.run

    async def lose(program: Callable[[], Any]) -> Any:
        late.append(program)
        monkeypatch.setattr(database, "run", run)
        database.unanswered_writes = lost_answers
        raise CommitUnknown("the connection does not answer")

    monkeypatch.setattr(database, "run", lose)
    number = bench.append(TOPIC, b"2")
    await trio.testing.wait_all_tasks_blocked()
    bench.log.void()
    await bench.log.wait_settled(number)
    assert bench.refusals == ["this gateway had lost its lease in the cluster"]
    assert await database.run(late[0]) == []  # what had been stuck on its way
    await bench.publish(TOPIC, b"3")
    await trio.sleep(1)
    assert reader.frames == [b"1", b"3"]
    assert len(bench.refusals) == 1


async def test_a_group_of_unknown_fate_is_not_refused(bench: Bench, database: InlineDatabase, reader: Reader) -> None:
    """However long that lasts: who was refused what is in the log would send it again."""
    database.unanswered_writes = 10_000_000
    number = bench.append(TOPIC, b"2")
    await trio.sleep(300)
    assert not bench.log.is_settled(number)
    assert bench.log.statistics().storage_failing
    database.unanswered_writes = 0
    await bench.log.wait_settled(number)
    await trio.sleep(1)
    assert bench.refusals == []
    assert reader.frames == [b"1", b"2"]
    assert not bench.log.statistics().storage_failing
