"""All users of one worker, and the greenlet that makes them talk."""

from __future__ import annotations

import random
import secrets
import time
from typing import Any

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore, DummySemaphore

from bench.numbered import PayloadReader, filler
from loadtests.addresses import source_of
from loadtests.conversations import NS, Conversations
from loadtests.links import opener
from loadtests.member import Member
from loadtests.plan import Plan
from loadtests.recorder import Recorder

LONGEST_NAP_S = 0.2


class Crew:
    """Made once per worker. `members` fill up as locust starts its users."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.recorder = Recorder()
        self.rng = random.Random(secrets.randbits(64))
        self.opener = opener(plan.transport)
        self.reader = PayloadReader()
        self.filler = filler(plan.payload)
        self.members: list[Member] = []
        self.gate = BoundedSemaphore(plan.connecting) if plan.connecting else DummySemaphore()
        self.leaving = False
        self.hurry = Event()
        """Set at the end: slow readers read what is left at full speed."""
        self.talking = Event()
        """Set when fan-out may begin, because all users are subscribed."""
        self._next_turn_ns = 0
        self._quiet = False
        self._slow_every = round(100 / plan.slow) if plan.slow else 0

    def join(self) -> Member:
        """The next user."""
        index = self.plan.first + len(self.members)
        # One of each pair at most is slow, and never the one that speaks to all.
        slow = bool(self._slow_every) and len(self.members) % self._slow_every == self._slow_every - 1
        member = Member(self, index, slow=slow)
        self.members.append(member)
        return member

    def turn(self) -> int:
        """Wait for the moment when the next user is due, so that users come evenly.

        That moment in nanoseconds.
        """
        now = time.perf_counter_ns()
        due = max(self._next_turn_ns, now)
        self.recorder.first_due_ns = self.recorder.first_due_ns or due
        self._next_turn_ns = due + int(NS / self.plan.connect_rate)
        if due > now:
            gevent.sleep((due - now) / NS)
        return due

    def source(self, index: int) -> str:
        """The source address of that user."""
        return source_of(index, self.plan.sources, self.plan.per_address)

    def partner(self, member: Member) -> Member | None:
        """The other one of the pair, if there is one."""
        at = (member.index - self.plan.first) ^ 1
        return self.members[at] if at < len(self.members) and not self.plan.what.broadcast else None

    def talk(self) -> None:
        """Run in a separate greenlet until `quiet`."""
        if self.plan.what.broadcast:
            if self.plan.first == 0:
                self._broadcast()
            return
        plan = self.plan
        pairs = plan.count // 2
        places = max(1, round(plan.count * plan.talking / 200)) if plan.talking else 0
        conversations = Conversations(
            pairs, places, plan.rate, plan.conversation_s, self.rng, time.perf_counter_ns(),
            self._ready, lambda: round(self.recorder.connected * plan.talking / 200) or 1,
        )  # fmt: skip
        members = self.members
        while not self._quiet and conversations.next_ns is not None:
            for intended_ns, speaker in conversations.due(time.perf_counter_ns()):
                members[speaker].say(members[speaker ^ 1].topic, intended_ns)
            wait = (conversations.next_ns - time.perf_counter_ns()) / NS
            gevent.sleep(min(LONGEST_NAP_S, max(0.0, wait)))

    def _ready(self, pair: int) -> bool:
        members = self.members
        return 2 * pair + 1 < len(members) and members[2 * pair].came_once and members[2 * pair + 1].came_once

    def _broadcast(self) -> None:
        self.talking.wait()
        due = time.perf_counter_ns()
        while not self._quiet:
            self.members[0].say(self.plan.broadcast_topic, due)
            due += int(NS / self.plan.rate)
            gevent.sleep(max(0.0, (due - time.perf_counter_ns()) / NS))

    def quiet(self) -> None:
        """Send nothing new; messages under way arrive."""
        self._quiet = True
        self.hurry.set()

    def cut(self) -> None:
        """All connections at once."""
        now = time.perf_counter_ns()
        links = [member.condemn(now) for member in self.members]
        for link in links:
            if link is not None:
                link.cut()

    def leave(self) -> None:
        """End all users cleanly."""
        self.leaving = True
        for member in self.members:
            member.leave()

    def verdict(self) -> dict[str, Any]:
        """What became of all messages; asked once, at the end.

        Broadcasts are judged by the coordinator's `said`.
        """
        said = self.members[0].said if self.plan.what.broadcast and self.plan.first == 0 and self.members else 0
        lost = in_doubt = 0
        if not self.plan.what.broadcast:
            for member in self.members:
                speaker = self.partner(member)
                missing = member.ledger.missing(speaker.said) if speaker else set()
                if missing and speaker:
                    doubtful = missing & speaker.doubtful
                    in_doubt += len(doubtful)
                    lost += len(missing) - len(doubtful)
        return {
            "said": said,
            "lost": lost,
            "in_doubt": in_doubt,
            "repeated": sum(member.ledger.repeated for member in self.members),
            "out_of_order": sum(member.ledger.out_of_order for member in self.members),
            "unsettled": sum(len(member.outbox.unsettled) + len(member.outbox.waiting) for member in self.members),
        }
