"""Messages that another node pushes: payloads, order, what a lost one costs."""

from __future__ import annotations

from base64 import b64encode
from contextlib import suppress

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.log import remote_commits
from aether_trio.log.message_keys import key_of
from aether_trio.log.pushed_messages import (
    MOST_PAYLOADS,
    PAYLOAD_BYTES,
    PushedMessage,
    parse_push,
    split_into_payloads,
)
from aether_trio.log.topic_log import LogLimits, open_log
from tests.helpers.inline import InlineDatabase
from tests.helpers.log_bench import Bench, Reader

TOPIC = "ag::w::a::1"
topics = st.text(min_size=1, max_size=60).filter(lambda text: "\n" not in text)


def line(message: PushedMessage) -> str:
    return f"{message.key} {b64encode(message.frame).decode()} {message.topic}"


@given(st.lists(st.tuples(topics, st.binary(max_size=2000)), min_size=1, max_size=200))
def test_payloads_fit_and_are_read_as_they_were_written(messages: list[tuple[str, bytes]]) -> None:
    names, frames = [name for name, _ in messages], [frame for _, frame in messages]
    parts = split_into_payloads(names, frames)
    if parts is None:
        assert sum(len(frame) for frame in frames) > PAYLOAD_BYTES
        return
    assert parts == sorted(parts)
    assert parts[-1] < MOST_PAYLOADS
    sent = [PushedMessage(name, 2**63 - 1, frame) for name, frame in messages]
    for part in set(parts):
        mine = [message for message, number in zip(sent, parts, strict=True) if number == part]
        body = "\n".join(map(line, mine))
        assert len(body.encode()) <= PAYLOAD_BYTES
        assert parse_push(body) == mine


def test_what_a_payload_cannot_say_is_not_pushed() -> None:
    assert split_into_payloads(["two\nlines"], [b""]) is None
    assert split_into_payloads([TOPIC], [bytes(PAYLOAD_BYTES)]) is None
    assert split_into_payloads([TOPIC] * 100_000, [b""] * 100_000) is None


@pytest.mark.parametrize("payload", ["", "1", "1 AAAA", "x AAAA t", "1 A t", "-1 AAAA t", f"{2**63} AAAA t"])
def test_a_malformed_push_is_an_error(payload: str) -> None:
    with pytest.raises(ValueError):
        parse_push(payload)


on_postgres = pytest.mark.parametrize("store", ["postgres"], indirect=True)


async def append_elsewhere(bench: Bench, database: InlineDatabase, *frames: bytes) -> None:
    async with open_log(database, bench.log.clock, LogLimits()) as other:
        for frame in frames:
            await other.wait_settled(other.append_nowait(other.topics.ensure(TOPIC), frame, bench.author))


async def push(bench: Bench, *messages: tuple[int, bytes]) -> None:
    [(topic_id,)] = await bench.log.database.fetch("SELECT id FROM topics WHERE name = $1", TOPIC)
    bench.log.on_pushed_messages([PushedMessage(TOPIC, key_of(topic_id, offset), frame) for offset, frame in messages])
    await trio.testing.wait_all_tasks_blocked()


@on_postgres
async def test_messages_that_are_next_are_offered_without_a_read(bench: Bench, database: InlineDatabase) -> None:
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    await bench.publish(TOPIC, b"1")
    await append_elsewhere(bench, database, b"2", b"3")
    await push(bench, (1, b"1"), (2, b"2"))
    await push(bench, (2, b"2"), (3, b"3"))
    assert reader.frames == [b"1", b"2", b"3"]
    done = bench.log.statistics()
    assert (done.pushed_messages, done.remote_reads) == (2, 0)
    await bench.publish(TOPIC, b"4")
    assert reader.frames == [b"1", b"2", b"3", b"4"]


@on_postgres
async def test_messages_in_front_of_a_pushed_one_are_read(bench: Bench, database: InlineDatabase) -> None:
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    await append_elsewhere(bench, database, b"1", b"2", b"3")
    await push(bench, (3, b"3"))
    assert reader.frames == [b"1", b"2", b"3"]
    assert bench.log.statistics().pushed_messages == 0


@on_postgres
async def test_pushed_messages_beyond_the_room_for_them_are_read(
    bench: Bench, database: InlineDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    await append_elsewhere(bench, database, b"1", b"2", b"3")
    monkeypatch.setattr(remote_commits, "PUSHED_BYTES", 1)
    await push(bench, (1, b"1"), (2, b"2"), (3, b"3"))
    assert reader.frames == [b"1", b"2", b"3"]
    done = bench.log.statistics()
    assert (done.pushed_messages, done.remote_messages) == (1, 2)


@on_postgres
async def test_a_push_to_a_topic_that_is_not_in_memory_does_nothing(bench: Bench, database: InlineDatabase) -> None:
    await append_elsewhere(bench, database, b"1")
    await push(bench, (1, b"1"))
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    await trio.testing.wait_all_tasks_blocked()
    assert reader.frames == [b"1"]
    assert bench.log.topics.ensure(TOPIC).waiting == 0


@on_postgres
async def test_a_push_says_the_id_by_which_the_log_is_read(bench: Bench, database: InlineDatabase) -> None:
    """Without it a subscription that lags takes its messages for deleted."""
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    topic = bench.log.topics.ensure(TOPIC)
    assert topic.topic_id is None
    await append_elsewhere(bench, database, b"1", b"2")
    await push(bench, (1, b"1"))
    assert bench.log.statistics().remote_reads == 0
    assert [frame for _, _, frame in await bench.log.read(topic, 0, rows=9, max_bytes=99)] == [b"1"]


@on_postgres
async def test_a_push_for_a_topic_that_was_made_again_is_read(bench: Bench, database: InlineDatabase) -> None:
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    await bench.publish(TOPIC, b"1")
    topic = bench.log.topics.ensure(TOPIC)
    old = topic.topic_id
    await database.execute("DELETE FROM topics WHERE name = $1", TOPIC)
    await database.execute("INSERT INTO topic_floor (id, floor_offset) VALUES (1, 1)")
    await append_elsewhere(bench, database, b"2")
    await push(bench, (2, b"2"))
    assert reader.frames == [b"1", b"2"]
    assert topic.topic_id not in {None, old}
    assert bench.log.statistics().pushed_messages == 0


@on_postgres
@pytest.mark.parametrize("has_row", [False, True])
@pytest.mark.parametrize("offset", [1, 2, 99])
@pytest.mark.parametrize("topic_id", [0, 1, 2, 2**27, 2**64, -1])
async def test_a_push_of_another_program_costs_no_message(
    bench: Bench, database: InlineDatabase, has_row: bool, offset: int, topic_id: int
) -> None:
    """It can invent a message. The log says all the same which messages there are."""
    reader = Reader()
    await bench.subscribe(TOPIC, reader, "me")
    if has_row:
        await bench.publish(TOPIC, b"1")
    with suppress(ValueError):
        bench.log.on_pushed_messages(parse_push(line(PushedMessage(TOPIC, key_of(topic_id, offset), b"invented"))))
    await trio.testing.wait_all_tasks_blocked()
    await append_elsewhere(bench, database, b"2", b"3")
    bench.log.on_remote_commits([TOPIC])
    await trio.testing.wait_all_tasks_blocked()
    await bench.publish(TOPIC, b"4")
    assert reader.frames[-2:] == [b"3", b"4"]
