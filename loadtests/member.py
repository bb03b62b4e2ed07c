"""One user's life: connect, stay, come back, and account for every message.

A member has one greenlet, which connects and then reads. Others make it talk (`say`), cut it or let
it go. What it says while it is not connected waits and keeps its intended time, so an outage shows
in the latencies.

Members 2p and 2p + 1 are a pair: what one says goes to the other, numbered without gaps, and the
other keeps the ledger. With broadcasts, member 0 sends and every member keeps a ledger of member 0.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from typing import TYPE_CHECKING

import gevent

from aether_trio.wire.pb import aether_pb2 as pb
from bench import wire
from bench.numbered import HEAD, MARK
from loadtests.links import Ended, Link, Opening
from loadtests.links.base import CUT, FINAL, OK, Outbox, ended_by
from loadtests.recorder import Ledger

if TYPE_CHECKING:
    from loadtests.crew import Crew

OPEN_SECONDS = 60.0
LEAVE_SECONDS = 20.0
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.2, 10.0
DOUBT_NS = 2_000_000_000
"""A message that was under way this long before a cut may be gone, on transports that acknowledge
nothing.
"""
SLOW_RECEIVE_BUFFER = 8192


class _LifeOver(BaseException):
    """A churning user leaves now.

    Not an Exception: nothing on the way may take it for its own.
    """


class Member:
    """User number `index` of the whole run."""

    __slots__ = (
        "backlog", "came_once", "crew", "cut_at_ns", "doubtful", "index", "ledger", "link", "live_link", "outbox",
        "positions", "recent", "said", "session_id", "slow", "topic",
    )  # fmt: skip

    def __init__(self, crew: Crew, index: int, *, slow: bool) -> None:
        self.crew, self.index, self.slow = crew, index, slow
        self.topic = str(crew.plan.identity(index))
        self.link: Link | None = None
        self.live_link: Link | None = None
        self.session_id = ""
        self.came_once = False
        self.cut_at_ns = 0
        self.said = 0
        self.ledger = Ledger()
        self.outbox = Outbox(secrets.token_bytes(16))
        self.positions: dict[str, int] = {}
        self.backlog: deque[tuple[str, bytes, int]] = deque()
        # (time, number) of what was said in the last DOUBT_NS.
        self.recent: deque[tuple[int, int]] = deque()
        self.doubtful: set[int] = set()  # numbers of ours that a cut may have swallowed

    def live(self) -> None:
        """The whole life; returns when the run is over or this user is refused for good."""
        crew = self.crew
        due_ns = crew.turn()
        failures = 0
        while not crew.leaving:
            try:
                self._connect(due_ns)
            except Ended as ended:
                if crew.leaving:
                    break
                crew.recorder.error(ended.code, ended.text)
                if ended.code in FINAL:
                    crew.recorder.gave_up += 1
                    return
                failures += 1
                longest = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2**failures)
                gevent.sleep(longest * crew.rng.random())
                continue
            failures = 0
            due_ns = self._stay()

    def _connect(self, due_ns: int) -> None:
        crew, plan = self.crew, self.crew.plan
        opening = Opening(
            self.index, plan.host, plan.port, crew.source(self.index), plan.identity(self.index), plan.credentials,
            self.session_id, crew.recorder, self.outbox, self.positions, plan.streams,
            SLOW_RECEIVE_BUFFER if self.slow else 0,
        )  # fmt: skip
        with crew.gate:
            if crew.leaving:
                raise Ended(OK)
            link = self.link = crew.opener(opening)
            try:
                with gevent.Timeout(OPEN_SECONDS, Ended("TIMEOUT", f"no ack within {OPEN_SECONDS:.0f} s")):
                    link.open()
            except BaseException as error:
                link.close()
                self.link = None
                if isinstance(error, OSError):
                    raise ended_by(error) from None
                raise
        now = time.perf_counter_ns()
        recorder = crew.recorder
        self.session_id = link.session_id
        if not self.came_once:
            self.came_once = True
            recorder.last_new_ns = now
        self.live_link = link
        recorder.connected += 1
        recorder.counts["connects"] += 1
        recorder.counts["resumed"] += link.resumed
        recorder.latency("back" if self.cut_at_ns else "connect", now - due_ns)
        recorder.counts["back"] += self.cut_at_ns > 0
        self.cut_at_ns = 0
        if plan.what.broadcast and plan.transport == "websocket":
            switch = pb.UpstreamMessage(switch_workspace=pb.SwitchWorkspace(new_workspace_id=plan.run))
            link.send(switch.SerializeToString())
        while self.backlog:
            self._publish(link, *self.backlog.popleft())

    def _stay(self) -> int:
        """Read until the connection is over, and rest as long as the shape says.

        When the next one is due.
        """
        crew, link = self.crew, self.live_link
        assert link is not None
        recorder = crew.recorder
        try:
            if crew.plan.what.churn:
                seconds = crew.rng.expovariate(1 / crew.plan.lifetime_s)
                with gevent.Timeout(seconds, _LifeOver()):
                    self._read(link)
            else:
                self._read(link)
        except _LifeOver:
            self._depart(link)
            self.session_id = ""
        except Ended as ended:
            if ended.code != CUT and not crew.leaving and not self.cut_at_ns:
                recorder.error(ended.code, ended.text)
                recorder.counts["broken"] += 1
                self.doubt()
        finally:
            self.live_link = None
            recorder.connected -= 1
            link.close()
            self.link = None
        if crew.leaving:
            return 0
        if self.cut_at_ns and crew.plan.jitter_s:
            gevent.sleep(crew.rng.random() * crew.plan.jitter_s)
        due_ns = time.perf_counter_ns()
        if crew.plan.what.churn:
            gevent.sleep(crew.rng.random())
            due_ns = time.perf_counter_ns()
        return self.cut_at_ns or due_ns

    def _read(self, link: Link) -> None:
        crew = self.crew
        while True:
            if self.slow and not crew.hurry.is_set():
                crew.hurry.wait(crew.plan.slow_pause_s)
            self._arrived(link.receive())

    def _depart(self, link: Link) -> None:
        """End cleanly; messages that arrive meanwhile still count."""
        self.live_link = None
        try:
            with gevent.Timeout(LEAVE_SECONDS, Ended("TIMEOUT", "the gateway did not end its side")):
                link.leave()
                while True:
                    self._arrived(link.receive())
        except Ended as ended:
            if ended.code not in {OK, CUT}:
                self.crew.recorder.error(ended.code, ended.text)

    def _arrived(self, messages: list[bytes]) -> None:
        crew = self.crew
        recorder, ledger, reader = crew.recorder, self.ledger, crew.reader
        now = time.perf_counter_ns()
        series = recorder.latencies["slow" if self.slow else "message"]
        for message in messages:
            head = reader.read(message)
            if head is None:
                if message and message[0] == wire.ERROR:
                    code, text = wire.read_error(message)
                    recorder.error(code, text)
                    if code != "BACKPRESSURE":
                        recorder.counts["refused"] += 1
                continue
            _, number, stamp = head
            if ledger.note(number):
                recorder.counts["received"] += 1
                series.append(now - stamp)

    def say(self, topic: str, intended_ns: int) -> None:
        """Send the next numbered message, which was due at that time.

        Wait with it while not connected.
        """
        crew = self.crew
        number, self.said = self.said, self.said + 1
        payload = HEAD.pack(MARK, self.index, number, intended_ns) + crew.filler
        crew.recorder.counts["sent"] += 1
        recent = self.recent
        recent.append((intended_ns, number))
        while recent and recent[0][0] < intended_ns - DOUBT_NS:
            recent.popleft()
        if self.live_link is None:
            self.backlog.append((topic, payload, intended_ns))
        else:
            self._publish(self.live_link, topic, payload, intended_ns)

    def _publish(self, link: Link, topic: str, payload: bytes, intended_ns: int) -> None:
        link.publish(topic, payload, intended_ns)

    def doubt(self) -> None:
        """Count recent messages of the pair as in doubt, where nothing is acknowledged."""
        if self.link is not None and self.link.settles:
            return
        after = time.perf_counter_ns() - DOUBT_NS
        for member in (self, self.crew.partner(self)):
            if member is not None:
                member.doubtful.update(number for at, number in member.recent if at >= after)

    def condemn(self, now_ns: int) -> Link | None:
        """From now on the connection counts as cut; returns it, to be cut.

        The member reconnects.

        Apart from the cut itself because that one may let other greenlets run, which must know
        already.
        """
        link, self.live_link = self.live_link, None
        if link is not None:
            self.cut_at_ns = now_ns
            self.doubt()
        return link

    def leave(self) -> None:
        """The run is over: end cleanly."""
        if self.live_link is not None:
            self.live_link.leave()
