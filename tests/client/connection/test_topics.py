"""Test the positions of topics against the rules of the wire."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aether_trio.client.connection.topics import RECENT, TopicState
from aether_trio.wire import framing
from aether_trio.wire.framing import FramedConnection, Side


def connected() -> tuple[FramedConnection, FramedConnection]:
    client, server = FramedConnection(Side.CLIENT), FramedConnection(Side.SERVER)
    server.receive(client.send(framing.ClientHello()) + client.send(framing.Envelope(b"init")))
    client.receive(server.send(framing.ServerHello()) + server.send(framing.Envelope(b"ack")))
    return client, server


@given(st.lists(st.integers(1, 3), min_size=1, max_size=30), st.data())
def test_a_position_is_never_beyond_what_is_done_and_gets_there(gaps: list[int], data: st.DataObject) -> None:
    client, server = connected()
    client.receive(server.send(framing.Channel(1, "ag::w::i::a", 0)))
    topic = TopicState("ag::w::i::a", shared=False)
    topic.opened(1, 0)
    offsets = [sum(gaps[: at + 1]) for at in range(len(gaps))]
    for offset in offsets:
        client.receive(server.send(framing.Deliver(1, offset, b"%d" % offset)))
        assert topic.arrived(offset, b"%d" % offset)
        assert not topic.arrived(offset, b"%d" % offset)
    done: set[int] = set()
    position = 0
    for offset in data.draw(st.permutations(offsets)):
        topic.done(offset)
        topic.done(offset)
        done.add(offset)
        for event in server.receive(b"".join(topic.acknowledgements(client))):
            assert isinstance(event, framing.Delivered)
            assert event.offset > position
            position = event.offset
            assert {one for one in offsets if one <= position} <= done
    assert position == offsets[-1]
    assert not topic.owes


def test_nothing_is_acknowledged_that_this_connection_has_not_delivered() -> None:
    topic = TopicState("ag::w::i::a", shared=False)
    for offset in (1, 2, 3):
        topic.opened(1, 0)
        topic.arrived(offset, b"%d" % offset)
        topic.done(offset)
    topic.closed()
    client, server = connected()
    client.receive(server.send(framing.Channel(7, "ag::w::i::a", 0)))
    topic.opened(7, 0)
    assert topic.owes
    assert topic.acknowledgements(client) == []
    for offset in (1, 2, 3):
        client.receive(server.send(framing.Deliver(7, offset, b"%d" % offset)))
        assert not topic.arrived(offset, b"%d" % offset)
        assert server.receive(b"".join(topic.acknowledgements(client))) == [framing.Delivered(7, offset)]
    assert not topic.owes


def test_a_log_that_begins_again_is_seen_by_its_position_too() -> None:
    topic = TopicState("ag::w::i::a", shared=False)
    topic.opened(1, 0)
    for offset in range(1, RECENT + 3):
        topic.arrived(offset, b"x")
        topic.done(offset)
    topic.closed()
    topic.opened(1, 0)
    assert topic.arrived(1, b"x")


def test_an_old_number_of_a_topic_that_has_a_new_one_may_be_closed() -> None:
    topic = TopicState("uw::u::w", shared=False)
    topic.opened(1, 0)
    topic.opened(2, 0)
    topic.closed(1)
    client, server = connected()
    client.receive(server.send(framing.Channel(2, "uw::u::w", 0)) + server.send(framing.Deliver(2, 1, b"x")))
    assert topic.arrived(1, b"x")
    topic.done(1)
    assert server.receive(b"".join(topic.acknowledgements(client))) == [framing.Delivered(2, 1)]


def test_what_was_acknowledged_to_a_connection_that_was_cut_is_acknowledged_again() -> None:
    """The gateway may not have heard it; what it has heard, it says."""
    topic = TopicState("ag::w::i::a", shared=False)
    for channel, position, told in ((1, 0, [2]), (2, 0, [2]), (3, 1, [2]), (4, 2, [])):
        client, server = connected()
        client.receive(server.send(framing.Channel(channel, "ag::w::i::a", position)))
        topic.opened(channel, position)
        for offset in range(position + 1, 3):
            client.receive(server.send(framing.Deliver(channel, offset, b"x")))
            assert topic.arrived(offset, b"x") is (channel == 1)
            topic.done(offset)
        assert topic.owes is bool(told)
        events = server.receive(b"".join(topic.acknowledgements(client)))
        assert events == [framing.Delivered(channel, offset) for offset in told]
        assert not topic.owes
        topic.closed()


def test_what_was_done_in_a_log_that_is_gone_says_nothing_of_the_next_one() -> None:
    topic = TopicState("ag::w::i::a", shared=False)
    topic.opened(1, 0)
    for offset in (1, 2, 3):
        topic.arrived(offset, b"old")
    topic.done(2)
    topic.abandon()
    assert not topic.owes
    topic.opened(1, 0)
    for offset in (1, 2, 3):
        assert topic.arrived(offset, b"new")
    topic.done(1)
    assert topic.floor == 1, "the second one is in the program's hands"


def test_what_is_done_of_a_group_is_acknowledged_when_it_comes_again() -> None:
    topic = TopicState("group", shared=True)
    for channel in (1, 2):
        client, server = connected()
        client.receive(server.send(framing.Channel(channel, "group", 0, shared=True)))
        topic.opened(channel, 0)
        for offset in (3, 5):
            client.receive(server.send(framing.Deliver(channel, offset, b"x")))
            assert topic.arrived(offset, b"x") is (channel == 1)
            told = server.receive(b"".join(topic.acknowledgements(client)))
            assert told == ([] if channel == 1 else [framing.Delivered(channel, offset)])
        if channel == 1:
            assert not topic.owes
            topic.closed()
            topic.done(5)
            topic.done(3)
            assert not topic.owes, "no connection has delivered them"
    assert not topic.owes
    assert not topic.busy


def test_of_what_a_group_has_given_only_the_latest_is_remembered() -> None:
    topic = TopicState("group", shared=True)
    topic.opened(1, 0)
    for offset in range(1, RECENT + 3):
        assert topic.arrived(offset, b"x")
        topic.closed()
        topic.done(offset)
        topic.opened(1, 0)
    assert topic.arrived(2, b"x"), "forgotten: it would be another member's by now"
    assert not topic.arrived(3, b"x")
    assert topic.owes
