"""The invariants, as functions of a history.

docs/guarantees.md states them for users; each docstring here says what a violation is.

A check also says how much it has looked at, because one that has seen nothing holds nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from chaos.history import Begun, Delivered, History, Message, Outcome, Turn

WORK_PREFIX: Final = "tb::"
HELD_MEANWHILE_S: Final = 1.0
"""A worker may take something off its socket this much later than another one was given it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One invariant after one run. `looked_at` counts `what`."""

    invariant: str
    looked_at: int
    what: str
    violations: tuple[str, ...]


def check_all(history: History, *, bound_s: float) -> list[Verdict]:
    """Check every invariant; a client may take `bound_s` after the last fault."""
    verdicts = [check(history) for check in _CHECKS]
    return [*verdicts, tasks_reach_their_workers(history, bound_s), every_client_came_back(history, bound_s)]


def one_holder(history: History) -> Verdict:
    """Check by the database that an identity has one holder at a time.

    Epochs of an identity only grow, each belongs to one session on one node, and no lock was taken
    from a live holder.
    """
    return Verdict(
        "one holder of an identity at a time (by epoch)",
        len({(row.identity, row.epoch) for row in history.held}),
        "holds",
        tuple(_holders(history)),
    )


def _holders(history: History) -> Iterator[str]:
    last: dict[str, int] = {}
    owner: dict[tuple[str, int], tuple[str, str]] = {}
    for row in history.held:
        if row.stolen:
            yield f"{row.identity}: epoch {row.epoch} on {row.node} was taken from a holder that was alive"
        if row.epoch < last.get(row.identity, 0):
            yield f"{row.identity}: epoch {row.epoch} came after {last[row.identity]}"
        last[row.identity] = max(row.epoch, last.get(row.identity, 0))
        if not row.live:
            continue
        place = (row.session, row.node.partition(" ")[0])
        if owner.setdefault((row.identity, row.epoch), place) != place:
            yield f"{row.identity}: epoch {row.epoch} belongs to {owner[row.identity, row.epoch]} and to {place}"


def no_old_holder_speaks(history: History) -> Verdict:
    """Check by the log that a former holder of an identity sends nothing more.

    In the order of a topic, messages of a session end where those of its successor begin.
    """
    blocks: dict[tuple[str, str], list[str]] = {}
    violations = []
    looked_at = 0
    for topic, messages in _logs(history).items():
        for offset in sorted(messages):
            message = messages[offset]
            if not message.session:
                continue
            looked_at += 1
            seen = blocks.setdefault((topic, message.sender.partition("/")[0]), [])
            if not seen or seen[-1] != message.session:
                if message.session in seen:
                    violations.append(f"{topic} {offset}: {message.sender} wrote as {message.session} after {seen[-1]}")
                seen.append(message.session)
    return Verdict("no former holder writes after its successor", looked_at, "messages", tuple(violations))


def nothing_lost(history: History) -> Verdict:
    """Check that every accepted message was given to an application."""
    there = {(one.topic, one.message) for one in history.delivered}
    accepted = [one for one in history.sent if one.outcome is Outcome.ACCEPTED]
    lost = [
        f"{one.topic}: {one.message.sender} number {one.message.number}, accepted at {one.settled_s:.2f} s"
        for one in accepted
        if (one.topic, one.message) not in there
    ]
    return Verdict("no accepted message is lost", len(accepted), "accepted", tuple(lost))


def nothing_invented(history: History) -> Verdict:
    """Check that each delivered message was sent, and not refused."""
    sent = {(one.topic, one.message): one.outcome for one in history.sent}
    violations = []
    for one in history.delivered:
        outcome = sent.get((one.topic, one.message))
        if outcome is None or outcome is Outcome.REFUSED:
            violations.append(f"{one.topic} {one.offset}: {one.message} was {outcome or 'never sent'}")
    return Verdict("nothing refused is delivered", len(history.delivered), "delivered", tuple(violations))


def one_place_in_the_log(history: History) -> Verdict:
    """Check that an offset has one message for all readers, also one sent again."""
    violations = []
    contents: dict[tuple[str, int], Message] = {}
    places: dict[tuple[str, Message], int] = {}
    for one in history.delivered:
        there = contents.setdefault((one.topic, one.offset), one.message)
        if there != one.message:
            violations.append(f"{one.topic} {one.offset} is {there} and {one.message}")
        place = places.setdefault((one.topic, one.message), one.offset)
        if place != one.offset:
            violations.append(f"{one.topic}: {one.message} is at {place} and at {one.offset}")
    return Verdict("a message is in the log once", len(contents), "offsets", tuple(violations))


def the_log_has_no_gaps(history: History) -> Verdict:
    """Check by the database that each topic has all offsets up to its count."""
    violations = tuple(
        f"{one.topic} has {one.messages} messages from {one.first} to {one.last}, and counted {one.counted}"
        for one in history.logged
        if (one.first, one.last, one.counted) != (1, one.messages, one.messages)
    )
    return Verdict("the log has no gaps", sum(one.messages for one in history.logged), "messages", violations)


def in_order(history: History) -> Verdict:
    """Check that a reader gets the offsets of its topic without gap or repeat."""
    violations = []
    last: dict[tuple[str, str], int] = {}
    looked_at = 0
    for one in history.delivered:
        if one.topic.startswith(WORK_PREFIX):
            continue
        looked_at += 1
        key = (one.reader, one.topic)
        if key in last and one.offset != last[key] + 1:
            what = "again" if one.offset <= last[key] else "with a gap"
            violations.append(f"{one.reader} got {one.topic} {one.offset} {what}, after {last[key]}")
        last[key] = max(one.offset, last.get(key, 0))
    return Verdict("per topic in order, without gaps or repeats", looked_at, "delivered", tuple(violations))


def senders_order_kept(history: History) -> Verdict:
    """Check that accepted messages of a sender to a topic have growing offsets."""
    places = {(topic, message): offset for topic, log in _logs(history).items() for offset, message in log.items()}
    violations = []
    last: dict[tuple[str, str], tuple[int, int]] = {}
    looked_at = 0
    for one in sorted(history.sent, key=lambda sent: sent.started_s):
        place = places.get((one.topic, one.message))
        if one.outcome is not Outcome.ACCEPTED or place is None:
            continue
        looked_at += 1
        key = (one.topic, one.message.sender)
        number, before = last.get(key, (0, 0))
        if place < before:
            violations.append(f"{one.topic}: {one.message.sender} number {one.message.number} lies before {number}")
        last[key] = (one.message.number, max(place, before))
    return Verdict("a sender's order is kept", looked_at, "accepted", tuple(violations))


def positions_go_forward(history: History) -> Verdict:
    """Check by the database that no stored position goes back."""
    violations = tuple(f"{row.consumer} in {row.topic}: {row.before} to {row.after}" for row in history.backwards)
    return Verdict(
        "stored positions only go forward", len({one.reader for one in history.delivered}), "readers", violations
    )


def work_is_done_once(history: History) -> Verdict:
    """Check that `tb` messages reach a second worker only after the first one's end.

    Another delivery is a violation when the first worker was given something else on that same
    connection after it.
    """
    by_message: dict[Message, list[Delivered]] = defaultdict(list)
    last_on: dict[tuple[str, int], float] = {}
    for one in history.delivered:
        key = (one.reader, one.connection)
        last_on[key] = max(one.at_s, last_on.get(key, 0.0))
        if one.topic.startswith(WORK_PREFIX):
            by_message[one.message].append(one)
    violations = []
    for message, deliveries in by_message.items():
        deliveries.sort(key=lambda one: one.at_s)
        for first, second in pairwise(deliveries):
            same = (first.reader, first.connection) == (second.reader, second.connection)
            if same or last_on[first.reader, first.connection] > second.at_s + HELD_MEANWHILE_S:
                violations.append(f"{message} went to {first.reader} and to {second.reader}, who were both connected")
    return Verdict("work goes to one worker", len(by_message), "pieces", tuple(violations))


def counters_are_exact(history: History) -> Verdict:
    """Check that increments count once, those in doubt at most once, in order."""
    violations = []
    by_key = defaultdict(list)
    for one in history.counted:
        by_key[one.key].append(one)
    for key, counted in by_key.items():
        answered = [one for one in counted if one.outcome is Outcome.ACCEPTED]
        doubtful = sum(one.outcome is Outcome.IN_DOUBT for one in counted)
        values = history.counters.get(key, set())
        if len(values) != 1:
            violations.append(f"{key}: the nodes say {sorted(values)}")
        violations += [
            f"{key} is {value}, after {len(answered)} increments and {doubtful} in doubt"
            for value in values
            if not len(answered) <= value <= len(answered) + doubtful
        ]
        seen: dict[int, str] = {}
        for one in answered:
            if one.value in seen:
                violations.append(f"{key}: {one.client} and {seen[one.value]} were both answered {one.value}")
            seen[one.value] = one.client
        # In the order of their beginnings, each must be above all that had been answered before it
        # began.
        settled = sorted(answered, key=lambda one: one.settled_s)
        highest, next_settled = 0, 0
        for one in sorted(answered, key=lambda one: one.started_s):
            while next_settled < len(settled) and settled[next_settled].settled_s < one.started_s:
                highest = max(highest, settled[next_settled].value)
                next_settled += 1
            if one.value < highest:
                violations.append(
                    f"{key}: {one.client} was answered {one.value} after another client was answered {highest}"
                )
    return Verdict("counters count once, and linearizably", len(history.counted), "increments", tuple(violations))


def answered_writes_stay(history: History) -> Verdict:
    """Check that a KV read is never older than an answered write or an earlier read."""
    violations = []
    by_place = defaultdict(list)
    for one in history.kept:
        by_place[one.place].append(one)
    reads = 0
    for place, kept in by_place.items():
        latest, why = 0, "nothing was written"
        tried = 0
        for one in sorted(kept, key=lambda one: one.started_s):
            if one.what == "wrote":
                tried = max(tried, one.number)
                if one.outcome is Outcome.ACCEPTED and one.number > latest:
                    latest, why = one.number, f"{one.number} was answered at {one.settled_s:.2f} s"
                continue
            reads += 1
            if one.number < latest:
                violations.append(f"{place} is {one.number} at {one.settled_s:.2f} s, and {why}")
            elif one.number > tried:
                violations.append(f"{place} is {one.number} at {one.settled_s:.2f} s, which no client has written")
            else:
                latest, why = one.number, f"{one.number} was read at {one.settled_s:.2f} s"
    return Verdict("an answered write is never undone", reads, "readings", tuple(violations))


def gateways_live(history: History) -> Verdict:
    """Check that no gateway ends without an order or prints a traceback."""
    ended = [f"{one.node} ended without an order at {one.at_s:.1f} s with {one.code}" for one in history.ended]
    return Verdict("a gateway never ends", len(history.attacks), "attacks", (*ended, *history.tracebacks))


def the_next_holder_goes_on(history: History) -> Verdict:
    """Check that a new holder of an identity begins behind what former holders read.

    What a former holder reads when another one knows that it has the identity does not count: the
    log may not take that for delivered.
    """
    violations = []
    looked_at = 0
    by_reader: dict[tuple[str, str], list[Delivered]] = defaultdict(list)
    for one in history.delivered:
        by_reader[one.topic, one.reader].append(one)
    topics: dict[str, list[Turn]] = defaultdict(list)
    for turn in history.turns:
        topics[turn.topic].append(turn)
    # A node that was stopped acknowledges late: its client knows of the identity when another one
    # has it already.
    epochs = {one.session: one.epoch for one in history.held}
    for topic, turns in topics.items():
        turns.sort(key=lambda turn: turn.since_s)
        if all(turn.session in epochs for turn in turns):
            turns.sort(key=lambda turn: epochs[turn.session])
        read_upto = 0
        for turn, following in zip(turns, [*turns[1:], None], strict=True):
            deliveries = by_reader[topic, turn.reader]
            looked_at += len(deliveries)
            if deliveries and deliveries[0].offset > read_upto + 1:
                violations.append(
                    f"{topic}: {turn.reader}, since {turn.since_s:.2f} s, begins at {deliveries[0].offset}, "
                    f"and the holders before it have read up to {read_upto}"
                )
            until_s = math.inf if following is None else following.since_s
            read_upto = max([read_upto, *(one.offset for one in deliveries if one.at_s <= until_s)])
    return Verdict("the next holder goes on where the last one was", looked_at, "delivered", tuple(violations))


def tasks_reach_their_workers(history: History, bound_s: float) -> Verdict:
    """Check that each created task is begun by its worker within `bound_s`.

    The time counts from its creation and from the last fault that overlaps: a connected worker gets
    its work, wherever its node has been meanwhile.
    """
    violations = []
    begun: dict[str, list[Begun]] = defaultdict(list)
    for one in history.begun:
        begun[one.name].append(one)
    for made in history.made:
        first = min((one.at_s for one in begun[made.name]), default=math.inf)
        latest_s = _excused(history, made.created_s, first, bound_s) + bound_s
        what = f"{made.name} for {made.target or 'the pool'}, created at {made.created_s:.1f} s"
        if first == math.inf:
            violations.append(f"{what}, was never begun")
        elif first > latest_s:
            violations.append(f"{what}, was begun at {first:.1f} s")
        violations += [
            f"{what}, was begun by {one.worker}"
            for one in begun[made.name]
            if made.target and not one.worker.partition("#")[0].endswith(f"-{made.target.rpartition('::')[2]}")
        ]
    return Verdict("every task reaches its worker", len(history.made), "tasks", tuple(violations))


def _excused(history: History, since_s: float, until_s: float, bound_s: float) -> float:
    """Give the end of the last fault that may delay a step, in seconds.

    The step began at `since_s` and lasted until `until_s`.
    """
    for fault in sorted(history.disturbances, key=lambda one: one.since_s):
        if fault.since_s <= since_s + bound_s and fault.since_s <= until_s:
            since_s = max(since_s, fault.until_s)
    return since_s


def every_client_came_back(history: History, bound_s: float) -> Verdict:
    """Check that each client reconnected within `bound_s` of its cut or a fault."""
    violations = [f"{why}" for why in history.gave_up]
    for outage in history.outages:
        excused_s = _excused(history, outage.since_s, outage.until_s, bound_s)
        until_s = min(outage.until_s, history.ended_s)
        if until_s > excused_s + bound_s or outage.until_s > history.ended_s:
            violations.append(
                f"{outage.client} was away from {outage.since_s:.1f} s to {outage.until_s:.1f} s, and the faults ended at {excused_s:.1f} s"
            )
    return Verdict(f"every client is back within {bound_s:g} s", len(history.outages), "outages", tuple(violations))


def _logs(history: History) -> dict[str, dict[int, Message]]:
    """Messages that any reader has seen, by topic and offset."""
    logs: dict[str, dict[int, Message]] = defaultdict(dict)
    for one in history.delivered:
        logs[one.topic].setdefault(one.offset, one.message)
    return logs


_CHECKS: Final[tuple[Callable[[History], Verdict], ...]] = (
    one_holder,
    no_old_holder_speaks,
    nothing_lost,
    nothing_invented,
    one_place_in_the_log,
    the_log_has_no_gaps,
    in_order,
    senders_order_kept,
    positions_go_forward,
    work_is_done_once,
    counters_are_exact,
    answered_writes_stay,
    the_next_holder_goes_on,
    gateways_live,
)
