"""Each invariant holds for a good history and names what is bad in another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from chaos.checks import Verdict, check_all
from chaos.history import (
    Attack,
    Backwards,
    Begun,
    Counted,
    Delivered,
    Disturbance,
    Ended,
    Held,
    History,
    Kept,
    Logged,
    Made,
    Message,
    Outage,
    Outcome,
    Sent,
    Turn,
)

BOUND_S = 20.0
TOPIC = "ag::chaos::peer::1"
WORK = "tb::chaos::work"
SHARED = "ag::chaos::rival::1"


def good() -> History:
    """Make a good history that has some of everything the invariants look at."""
    history = History(ended_s=100.0)
    for number in range(1, 5):
        for sender, offset in (("a", 2 * number - 1), ("b", 2 * number)):
            message = Message(sender, number, f"{sender}-{'old' if number < 3 else 'new'}")
            history.sent.append(Sent(TOPIC, message, number, number + 0.5, Outcome.ACCEPTED))
            history.delivered.append(Delivered("peer", TOPIC, offset, message, number + 0.6, 1))
    for number in range(1, 5):
        message = Message("c", number)
        history.sent.append(Sent(WORK, message, number, number + 0.5, Outcome.ACCEPTED))
        history.delivered.append(Delivered(f"worker-{number % 2}", WORK, number, message, number + 0.6, 1))
    # Of two messages without an answer one is there, and one is not.
    history.sent.append(Sent(TOPIC, Message("a", 5, "a-new"), 6.0, 7.0, Outcome.IN_DOUBT))
    history.delivered.append(Delivered("peer", TOPIC, 9, Message("a", 5, "a-new"), 7.1, 2))
    history.sent.append(Sent(TOPIC, Message("b", 5, "b-new"), 6.0, 7.0, Outcome.IN_DOUBT))
    history.sent.append(Sent(TOPIC, Message("b", 6, "b-new"), 7.0, 8.0, Outcome.REFUSED))
    history.counted = [
        Counted("n", "a", 1.0, 1.5, Outcome.ACCEPTED, 1),
        Counted("n", "b", 1.2, 1.6, Outcome.ACCEPTED, 3),
        Counted("n", "c", 1.1, 1.9, Outcome.ACCEPTED, 2),
        Counted("n", "c", 2.0, 9.0, Outcome.IN_DOUBT),
        Counted("n", "a", 3.0, 3.5, Outcome.ACCEPTED, 5),
    ]
    history.counters = {"n": {5}}
    history.kept = [
        Kept("key", "read", 0, Outcome.ACCEPTED, 0.5, 0.6),
        Kept("key", "wrote", 1, Outcome.ACCEPTED, 1.0, 1.1),
        Kept("key", "read", 1, Outcome.ACCEPTED, 1.2, 1.3),
        Kept("key", "wrote", 2, Outcome.IN_DOUBT, 2.0, 5.0),
        Kept("key", "read", 1, Outcome.ACCEPTED, 5.1, 5.2),
        Kept("key", "read", 2, Outcome.ACCEPTED, 5.3, 5.4),  # it has come after all
        Kept("key", "wrote", 3, Outcome.ACCEPTED, 6.0, 6.1),
        Kept("key", "read", 3, Outcome.ACCEPTED, 7.0, 7.1),
    ]
    # The second turn begins at 2.0: what the first one reads behind that comes again.
    for offset in range(1, 9):
        message = Message("d", offset)
        history.sent.append(Sent(SHARED, message, 0.1 * offset, 0.1 * offset, Outcome.ACCEPTED))
    read_by = {1: ((1, 1.0), (2, 1.5), (3, 2.5)), 2: ((3, 2.6), (4, 2.7)), 4: ((5, 4.0), (6, 4.1), (7, 4.2), (8, 4.3))}
    for reader, offset, at_s in [(reader, *one) for reader, several in read_by.items() for one in several]:
        history.delivered.append(Delivered(f"rival-{reader}", SHARED, offset, Message("d", offset), at_s, 1))
    history.turns = [Turn(SHARED, f"rival-{number}", at_s) for number, at_s in enumerate((0.9, 2.0, 2.9, 3.9), 1)]
    history.made = [Made("t-1", "", 1.0, 1.1), Made("t-2", "ag::chaos::miller::2", 9.0, 9.1)]
    history.begun = [Begun("t-1", "miller-1", 1.05), Begun("t-2", "miller-2#2", 14.0 + BOUND_S - 1)]
    history.attacks = [Attack("framed", "noise", 1.0)]
    history.logged = [Logged(TOPIC, 9, 1, 9, 9), Logged(WORK, 4, 1, 4, 4)]
    # The node of the old one came back with a new epoch.
    history.held = [held("a-old", 1, "1 1"), held("a-old", 1, "1 2"), held("a-new", 2, "2 1")]
    history.held.insert(2, replace(held("a-old-ended", 1, "1 2"), live=False))
    history.disturbances = [Disturbance("kill a node", "node-1", 10.0, 14.0)]
    history.outages = [Outage("a", 10.1, 14.0 + BOUND_S - 1)]
    return history


def verdict_of(history: History, start: str) -> Verdict:
    (found,) = [one for one in check_all(history, bound_s=BOUND_S) if one.invariant.startswith(start)]
    return found


def test_a_good_history_is_good_and_was_looked_at() -> None:
    for verdict in check_all(good(), bound_s=BOUND_S):
        assert verdict.violations == (), verdict.invariant
        assert verdict.looked_at > 0, verdict.invariant


def accept(history: History, message: Message, offset: int) -> None:
    history.sent.append(Sent(TOPIC, message, 8.0, 8.5, Outcome.ACCEPTED))
    history.delivered.append(Delivered("peer", TOPIC, offset, message, 9.0, 2))


def again(history: History, offset: int, message: Message) -> None:
    history.delivered.append(Delivered("peer", TOPIC, offset, message, 9.0, 2))


def drop(history: History, is_gone: Callable[[Delivered], bool]) -> None:
    history.delivered[:] = [one for one in history.delivered if not is_gone(one)]


def change(rows: list[Any], at: int, **changes: Any) -> object:
    rows[at] = replace(rows[at], **changes)
    return rows[at]


def read(value: int, at_s: float = 8.0) -> Kept:
    return Kept("key", "read", value, Outcome.ACCEPTED, at_s, at_s + 0.1)


def held(session: str, epoch: int, node: str) -> Held:
    return Held("ag::a", session, epoch, node, live=True, stolen=False)


def swap(history: History) -> None:
    first, third = history.delivered[0], history.delivered[2]
    history.delivered[0] = replace(first, message=third.message)
    history.delivered[2] = replace(third, message=first.message)


LATE_S = 14.0 + BOUND_S + 1
"""Too long after the end of the disturbance."""

VIOLATIONS: dict[str, tuple[str, Callable[[History], object]]] = {
    "a lock is stolen": ("one holder", lambda h: change(h.held, -1, stolen=True)),
    "an epoch goes back": ("one holder", lambda h: h.held.append(held("a-older", 1, "1 2"))),
    "an epoch of two sessions": ("one holder", lambda h: h.held.append(held("a-twin", 2, "2 1"))),
    "an epoch on two nodes": ("one holder", lambda h: h.held.append(held("a-new", 2, "3 1"))),
    "an old holder speaks": ("no former holder", lambda h: accept(h, Message("a", 6, "a-old"), 10)),
    "a message is lost": ("no accepted message", lambda h: h.delivered.pop(2)),
    "work is lost": ("no accepted message", lambda h: drop(h, lambda one: one.message == Message("c", 2))),
    "a message is invented": ("nothing refused", lambda h: again(h, 10, Message("z", 1))),
    "what was refused is delivered": ("nothing refused", lambda h: again(h, 10, Message("b", 6, "b-new"))),
    "two messages at one offset": (
        "a message is in the log once",
        lambda h: h.delivered.append(replace(h.delivered[0], reader="other", message=Message("b", 5, "b-new"))),
    ),
    "one message at two offsets": ("a message is in the log once", lambda h: again(h, 10, Message("a", 5, "a-new"))),
    "a hole in the log": ("the log has no gaps", lambda h: change(h.logged, 0, messages=8)),
    "a number that was given to nothing": ("the log has no gaps", lambda h: change(h.logged, 0, counted=10)),
    "a reader skips": ("per topic in order", lambda h: accept(h, Message("a", 6, "a-new"), 11)),
    "a reader repeats": (
        "per topic in order",
        lambda h: h.delivered.append(replace(h.delivered[0], at_s=9.0, connection=2)),
    ),
    "two messages swap": ("a sender's order", swap),
    "a position goes back": ("stored positions", lambda h: h.backwards.append(Backwards(TOPIC, "peer", 7, 6))),
    "work goes to the other worker too, while the first one's connection goes on": (
        "work goes to one",
        lambda h: h.delivered.append(Delivered("worker-0", WORK, 1, Message("c", 1), 2.2, 1)),
    ),
    "work goes to one worker twice": (
        "work goes to one",
        lambda h: h.delivered.append(Delivered("worker-1", WORK, 3, Message("c", 3), 9.0, 1)),
    ),
    "a counter is too high": ("counters", lambda h: h.counters.update(n={6})),
    "a counter is too low": ("counters", lambda h: h.counters.update(n={3})),
    "nodes disagree": ("counters", lambda h: h.counters.update(n={4, 5})),
    "one answer twice": ("counters", lambda h: change(h.counted, 1, value=1)),
    "answers out of time": ("counters", lambda h: [change(h.counted, 4, value=2), change(h.counted, 2, value=5)]),
    "a write is undone": ("an answered write", lambda h: h.kept.append(read(2))),
    "what was read is undone": ("an answered write", lambda h: h.kept.insert(6, read(1, 5.5))),
    "what no client wrote is read": ("an answered write", lambda h: h.kept.append(read(9))),
    "a write is forgotten": ("an answered write", lambda h: h.kept.append(read(0))),
    "the second holder begins behind what the first has read since": (
        "the next holder",
        lambda h: drop(h, lambda one: (one.reader, one.offset) == ("rival-2", 3)),
    ),
    "a message is skipped for the next holder": (
        "the next holder",
        lambda h: drop(h, lambda one: (one.reader, one.offset) == ("rival-4", 5)),
    ),
    "a gateway ends": ("a gateway never ends", lambda h: h.ended.append(Ended("node-1", 5.0, 1))),
    "a traceback is printed": ("a gateway never ends", lambda h: h.tracebacks.append("node-1: KeyError: 7")),
    "a task begins late": ("every task", lambda h: change(h.begun, 1, at_s=LATE_S)),
    "a task never begins": ("every task", lambda h: h.begun.pop(0)),
    "a task begins elsewhere": ("every task", lambda h: h.begun.append(Begun("t-2", "miller-1", 12.0))),
    "a client stays away": ("every client", lambda h: change(h.outages, 0, until_s=LATE_S)),
    "a client never comes back": ("every client", lambda h: h.outages.append(Outage("b", 99.0))),
    "a client stays away without a fault": (
        "every client",
        lambda h: h.outages.append(Outage("b", 50.0, 50.0 + BOUND_S + 1)),
    ),
    "a client gives up": ("every client", lambda h: h.gave_up.append("a: STATUS_7")),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_bad_history_is_found(name: str) -> None:
    invariant, spoil = VIOLATIONS[name]
    history = good()
    spoil(history)
    assert verdict_of(history, invariant).violations


def test_a_turn_that_its_client_hears_of_late_comes_where_its_epoch_is() -> None:
    history = good()
    late = Turn(SHARED, "rival-late", 2.65, "s-late")
    history.turns = [replace(turn, session=f"s-{turn.reader}") for turn in history.turns] + [late]
    assert verdict_of(history, "the next holder").violations  # by its client's time
    order = ["s-rival-1", "s-late", "s-rival-2", "s-rival-3", "s-rival-4"]
    history.held += [
        Held(SHARED, session, epoch, "1 1", live=True, stolen=False) for epoch, session in enumerate(order, start=1)
    ]
    assert verdict_of(history, "the next holder").violations == ()


def test_work_of_a_worker_that_went_away_may_go_to_another() -> None:
    history = good()
    history.delivered.append(Delivered("worker-0", WORK, 3, Message("c", 3), 9.0, 1))
    history.delivered.append(Delivered("worker-1", WORK, 5, Message("c", 5), 9.5, 2))
    assert verdict_of(history, "work goes to one").violations == ()


def test_a_chain_of_faults_excuses_an_outage_and_a_gap_in_it_does_not() -> None:
    history = good()
    history.disturbances = [Disturbance("x", "y", 10.0 + 15 * n, 20.0 + 15 * n) for n in range(4)]
    history.outages = [Outage("a", 10.1, 66.0)]
    assert verdict_of(history, "every client").violations == ()
    history.disturbances = [Disturbance("x", "y", 10.0, 11.0), Disturbance("x", "y", 11.0 + BOUND_S + 1, 60.0)]
    assert verdict_of(history, "every client").violations


def test_a_message_survives_its_payload() -> None:
    message = Message("peer-1/7", 42, "session")
    assert Message.decode(message.encode()) == message


@pytest.mark.parametrize("what", ["kept", "turns", "attacks", "made"])
def test_what_was_not_looked_at_does_not_count_as_held(what: str) -> None:
    history = good()
    getattr(history, what).clear()
    assert [one.invariant for one in check_all(history, bound_s=BOUND_S) if not one.looked_at]
