"""Each invariant holds for a good history and names what is bad in another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

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
    for reader, offset, at_s in (
        ("rival-1", 1, 1.0),
        ("rival-1", 2, 1.5),
        ("rival-1", 3, 2.5),
        ("rival-2", 3, 2.6),
        ("rival-2", 4, 2.7),
        ("rival-4", 5, 4.0),
        ("rival-4", 6, 4.1),
        ("rival-4", 7, 4.2),
        ("rival-4", 8, 4.3),
    ):
        history.delivered.append(Delivered(reader, SHARED, offset, Message("d", offset), at_s, 1))
    history.turns = [Turn(SHARED, f"rival-{number}", number - 0.1) for number in (1, 2, 3, 4)]
    history.turns[1] = Turn(SHARED, "rival-2", 2.0)
    history.made = [Made("t-1", "", 1.0, 1.1), Made("t-2", "ag::chaos::miller::2", 9.0, 9.1)]
    history.begun = [Begun("t-1", "miller-1", 1.05), Begun("t-2", "miller-2#2", 14.0 + BOUND_S - 1)]
    history.attacks = [Attack("framed", "noise", 1.0)]
    history.logged = [Logged(TOPIC, 9, 1, 9, 9), Logged(WORK, 4, 1, 4, 4)]
    history.held = [
        Held("ag::a", "a-old", 1, "1 1", live=True, stolen=False),
        # Its node came back with a new epoch.
        Held("ag::a", "a-old", 1, "1 2", live=True, stolen=False),
        Held("ag::a", "a-old-ended", 1, "1 2", live=False, stolen=False),
        Held("ag::a", "a-new", 2, "2 1", live=True, stolen=False),
    ]
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


def lose(history: History) -> None:
    del history.delivered[2]


def lose_work(history: History) -> None:
    history.delivered = [one for one in history.delivered if one.message != Message("c", 2)]


def invent(history: History) -> None:
    history.delivered.append(Delivered("peer", TOPIC, 10, Message("z", 1), 9.0, 2))


def deliver_what_was_refused(history: History) -> None:
    history.delivered.append(Delivered("peer", TOPIC, 10, Message("b", 6, "b-new"), 9.0, 2))


def two_messages_at_one_offset(history: History) -> None:
    history.delivered.append(replace(history.delivered[0], reader="other", message=Message("b", 5, "b-new")))


def one_message_at_two_offsets(history: History) -> None:
    history.delivered.append(Delivered("peer", TOPIC, 10, Message("a", 5, "a-new"), 9.0, 2))


def skip(history: History) -> None:
    history.sent.append(Sent(TOPIC, Message("a", 6, "a-new"), 8.0, 8.5, Outcome.ACCEPTED))
    history.delivered.append(Delivered("peer", TOPIC, 11, Message("a", 6, "a-new"), 9.0, 2))


def repeat(history: History) -> None:
    history.delivered.append(replace(history.delivered[0], at_s=9.0, connection=2))


def swap(history: History) -> None:
    first, third = history.delivered[0], history.delivered[2]
    history.delivered[0] = replace(first, message=third.message)
    history.delivered[2] = replace(third, message=first.message)


def old_holder_speaks(history: History) -> None:
    late = Message("a", 6, "a-old")
    history.sent.append(Sent(TOPIC, late, 8.0, 8.5, Outcome.ACCEPTED))
    history.delivered.append(Delivered("peer", TOPIC, 10, late, 9.0, 2))


def steal(history: History) -> None:
    history.held[-1] = replace(history.held[-1], stolen=True)


def epoch_goes_back(history: History) -> None:
    history.held.append(Held("ag::a", "a-older", 1, "1 2", live=True, stolen=False))


def epoch_of_two_sessions(history: History) -> None:
    history.held.append(Held("ag::a", "a-twin", 2, "2 1", live=True, stolen=False))


def epoch_on_two_nodes(history: History) -> None:
    history.held.append(Held("ag::a", "a-new", 2, "3 1", live=True, stolen=False))


def a_hole_in_the_log(history: History) -> None:
    history.logged[0] = Logged(TOPIC, 8, 1, 9, 9)


def a_number_that_was_given_to_nothing(history: History) -> None:
    history.logged[0] = Logged(TOPIC, 9, 1, 9, 10)


def position_goes_back(history: History) -> None:
    history.backwards.append(Backwards(TOPIC, "peer", 7, 6))


def work_twice(history: History) -> None:
    """Number 1 also to the other worker, while the first one's connection goes on."""
    history.delivered.append(Delivered("worker-0", WORK, 1, Message("c", 1), 2.2, 1))


def work_twice_to_one(history: History) -> None:
    history.delivered.append(Delivered("worker-1", WORK, 3, Message("c", 3), 9.0, 1))


def count_too_much(history: History) -> None:
    history.counters["n"] = {6}


def count_too_little(history: History) -> None:
    history.counters["n"] = {3}


def nodes_disagree(history: History) -> None:
    history.counters["n"] = {4, 5}


def one_answer_twice(history: History) -> None:
    history.counted[1] = replace(history.counted[1], value=1)


def answers_out_of_time(history: History) -> None:
    history.counted[4] = replace(history.counted[4], value=2)
    history.counted[2] = replace(history.counted[2], value=5)


def undo_a_write(history: History) -> None:
    history.kept.append(Kept("key", "read", 2, Outcome.ACCEPTED, 8.0, 8.1))


def undo_what_was_read(history: History) -> None:
    history.kept.insert(6, Kept("key", "read", 1, Outcome.ACCEPTED, 5.5, 5.6))


def read_what_no_client_wrote(history: History) -> None:
    history.kept.append(Kept("key", "read", 9, Outcome.ACCEPTED, 8.0, 8.1))


def forget_a_write(history: History) -> None:
    history.kept.append(Kept("key", "read", 0, Outcome.ACCEPTED, 8.0, 8.1))


def take_what_a_former_holder_read_for_read(history: History) -> None:
    """The second one begins behind what the first has read since."""
    history.delivered = [one for one in history.delivered if (one.reader, one.offset) != ("rival-2", 3)]


def skip_for_the_next_holder(history: History) -> None:
    history.delivered = [one for one in history.delivered if (one.reader, one.offset) != ("rival-4", 5)]


def test_a_turn_that_its_client_hears_of_late_comes_where_its_epoch_is() -> None:
    """A turn whose ack is late is ordered by its epoch.

    The third holder reads by then.
    """
    history = good()
    late = Turn(SHARED, "rival-late", 2.65, "s-late")
    history.turns = [replace(turn, session=f"s-{turn.reader}") for turn in history.turns] + [late]
    assert verdict_of(history, "the next holder").violations  # by its client's time
    order = ["s-rival-1", "s-late", "s-rival-2", "s-rival-3", "s-rival-4"]
    history.held += [
        Held(SHARED, session, epoch, "1 1", live=True, stolen=False) for epoch, session in enumerate(order, start=1)
    ]
    assert verdict_of(history, "the next holder").violations == ()


def end_by_itself(history: History) -> None:
    history.ended.append(Ended("node-1", 5.0, 1))


def print_a_traceback(history: History) -> None:
    history.tracebacks.append("node-1: KeyError: 7")


def begin_a_task_late(history: History) -> None:
    history.begun[1] = replace(history.begun[1], at_s=14.0 + BOUND_S + 1)


def begin_a_task_never(history: History) -> None:
    del history.begun[0]


def begin_a_task_elsewhere(history: History) -> None:
    history.begun.append(Begun("t-2", "miller-1", 12.0))


def stay_away(history: History) -> None:
    history.outages[0].until_s = 14.0 + BOUND_S + 1


def never_come_back(history: History) -> None:
    history.outages.append(Outage("b", 99.0))


def stay_away_without_a_fault(history: History) -> None:
    history.outages.append(Outage("b", 50.0, 50.0 + BOUND_S + 1))


def give_up(history: History) -> None:
    history.gave_up.append("a: STATUS_7")


@pytest.mark.parametrize(
    ("spoil", "invariant"),
    [
        (steal, "one holder"),
        (epoch_goes_back, "one holder"),
        (epoch_of_two_sessions, "one holder"),
        (epoch_on_two_nodes, "one holder"),
        (old_holder_speaks, "no former holder"),
        (lose, "no accepted message"),
        (lose_work, "no accepted message"),
        (invent, "nothing refused"),
        (deliver_what_was_refused, "nothing refused"),
        (two_messages_at_one_offset, "a message is in the log once"),
        (one_message_at_two_offsets, "a message is in the log once"),
        (a_hole_in_the_log, "the log has no gaps"),
        (a_number_that_was_given_to_nothing, "the log has no gaps"),
        (skip, "per topic in order"),
        (repeat, "per topic in order"),
        (swap, "a sender's order"),
        (position_goes_back, "stored positions"),
        (work_twice, "work goes to one"),
        (work_twice_to_one, "work goes to one"),
        (count_too_much, "counters"),
        (count_too_little, "counters"),
        (nodes_disagree, "counters"),
        (one_answer_twice, "counters"),
        (answers_out_of_time, "counters"),
        (undo_a_write, "an answered write"),
        (undo_what_was_read, "an answered write"),
        (read_what_no_client_wrote, "an answered write"),
        (forget_a_write, "an answered write"),
        (take_what_a_former_holder_read_for_read, "the next holder"),
        (skip_for_the_next_holder, "the next holder"),
        (end_by_itself, "a gateway never ends"),
        (print_a_traceback, "a gateway never ends"),
        (begin_a_task_late, "every task"),
        (begin_a_task_never, "every task"),
        (begin_a_task_elsewhere, "every task"),
        (stay_away, "every client"),
        (never_come_back, "every client"),
        (stay_away_without_a_fault, "every client"),
        (give_up, "every client"),
    ],
)
def test_a_bad_history_is_found(spoil: Callable[[History], None], invariant: str) -> None:
    history = good()
    spoil(history)
    assert verdict_of(history, invariant).violations


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
