"""A log that others write, too: lost answers, and what others have appended. In virtual time; the rest is in tests/shared_log."""

from __future__ import annotations

import pytest
import trio

from aether_trio.routing.log import LogLimits, open_log
from tests.helpers.inline import InlineDatabase
from tests.routing.parts import Bench, Reader

TOPIC = "ag::w::a::1"

on_postgres = pytest.mark.parametrize("store", ["postgres"], indirect=True)


@on_postgres
async def test_a_commit_whose_answer_is_lost_is_neither_lost_nor_done_twice(
    bench: Bench, database: InlineDatabase
) -> None:
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    await bench.publish(TOPIC, b"1")
    database.unanswered_writes = 1
    await bench.publish(TOPIC, b"2", b"3")
    await trio.sleep(1)
    assert reader.frames == [b"1", b"2", b"3"]
    await bench.publish(TOPIC, b"4")
    assert reader.frames == [b"1", b"2", b"3", b"4"]
    assert bench.refusals == []
    assert bench.log.topic(TOPIC).waiting == 0
    assert database.query("SELECT count(*) FROM messages") == [(4,)]


@on_postgres
async def test_who_listens_gets_what_others_have_appended_as_soon_as_it_is_known(
    bench: Bench, database: InlineDatabase
) -> None:
    reader = Reader()
    await bench.subscribe(TOPIC, reader)
    await bench.publish(TOPIC, b"1")
    async with open_log(database, bench.log._clock, LogLimits()) as other:
        for frame in (b"2", b"3"):
            await other.wait_settled(other.append_nowait(other.topic(TOPIC), frame, bench.author))
    await trio.sleep(1)
    assert reader.frames == [b"1"]
    await bench.publish(TOPIC, b"4")  # which is not the next one here
    await trio.sleep(1)
    assert reader.frames == [b"1", b"2", b"3", b"4"]
    async with open_log(database, bench.log._clock, LogLimits()) as other:
        await other.wait_settled(other.append_nowait(other.topic(TOPIC), b"5", bench.author))
    await bench.subscribe(TOPIC, Reader())  # which reads how far the topic is
    await trio.sleep(1)
    assert reader.frames == [b"1", b"2", b"3", b"4", b"5"]
