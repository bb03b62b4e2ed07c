"""Conduct one run: what the workers are told when, and what is watched.

connect   users come at an even rate, until all are there
hold      they stay and talk; here a storm cuts them
drain     no user sends anything new, messages under way arrive
leave     all users end cleanly
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.process import ProcessProbe
from loadtests.fleet import Fleet, WorkerFailed
from loadtests.outcome import judge
from loadtests.plan import Plan
from loadtests.timeline import Row, Timeline

CONNECT_PATIENCE_S = 60.0
"""Beyond the time that the rate takes: how long the last users may need."""
SETTLE_S = 2.0
"""For subscriptions to all that users send, and after a storm."""
BACK_PATIENCE_S = 120.0
DRAIN_MOST_S, DRAIN_STILL_S = 180.0, 15.0
LEAVE_S = 30.0


class Coordinator:
    """`Coordinator(plans, probe, show).run()`.

    `show` is given every row, and the last mark.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        probe: ProcessProbe | None,
        show: Callable[[Row, Timeline], None],
        interval_s: float = 1.0,
    ) -> None:
        self._plans, self._probe, self._show, self._interval_s = plans, probe, show, interval_s
        self._plan = plans[0]
        self.timeline = Timeline(len(plans))
        self._verdicts: list[dict[str, int]] = []
        self._seen: dict[str, Any] = {}
        self._began = 0.0
        self._due = 0.0
        self._awaited = 0
        self._cpu_ns = 0
        self._cpu_at = 0.0
        self._early = self._under_way = False

    def end_early(self) -> bool:
        """Go on to the end as if the time were over.

        May be called by a signal handler; False before all are there.
        """
        self._early = self._under_way
        return self._early

    def _over(self) -> bool:
        return self._early

    def run(self) -> dict[str, Any]:
        """The results. Raises WorkerFailed, and ProcessGone when the gateway has ended."""
        with Fleet(self._plans) as self._fleet:
            self._fleet.wait_ready()
            self._began = self._cpu_at = time.monotonic()
            self._due = self._began
            if self._probe:
                self._cpu_ns = self._probe.cpu_ns()
                self.timeline.row(0.0, "connect", self._probe.rss_kib(), 0.0)
            self._fleet.tell("start")
            self._connect()
            self._under_way = True
            self._hold()
            if self._early:
                self.timeline.mark(self._elapsed, "ended early")
            self._drain()
            self._fleet.tell("leave")
            self._watch("leave", LEAVE_S, lambda: not self.timeline.connected)
            self._end()
            self._seen["complaints"] = self._fleet.complaints()
        return judge(self._plan, self.timeline, self._verdicts, self._seen)

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _watch(self, phase: str, seconds: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Let that time pass, a row every interval; ends early, with True, when `done()`.

        Workers are asked for a report in each. One that is late makes a row longer, not its rates
        wrong.
        """
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            if now >= self._due:
                if not self._awaited:
                    self._fleet.tell("report")
                    self._awaited = len(self._fleet)
                self._due = max(self._due + self._interval_s, now)
            if done():
                return True
            if now >= until:
                return False
            for worker, line in self._fleet.lines(min(until, self._due)):
                self.timeline.feed(worker, line)
                self._awaited -= 1
                if not self._awaited:  # a row is closed when all have said what belongs to it
                    self._tick(phase)
                    if done():
                        break

    def _tick(self, phase: str) -> None:
        rss = cores = None
        if self._probe:
            now, cpu_ns = time.monotonic(), self._probe.cpu_ns()
            rss = self._probe.rss_kib()
            cores = (cpu_ns - self._cpu_ns) / 1e9 / max(1e-3, now - self._cpu_at)
            self._cpu_ns, self._cpu_at = cpu_ns, now
        self._show(self.timeline.row(self._elapsed, phase, rss, cores), self.timeline)

    def _all_there(self) -> bool:
        return self.timeline.connected + self.timeline.gave_up >= self._plan.users

    def _connect(self) -> None:
        plan, timeline = self._plan, self.timeline
        if plan.what.stepped:
            self._watch("connect", plan.seconds, lambda: timeline.gave_up >= plan.users)
        if plan.what.churn:  # there is no moment at which all are there
            enough = lambda: timeline.counts["connects"] + timeline.gave_up >= plan.users  # noqa: E731
        else:
            enough = self._all_there
        seconds = plan.users / (plan.connect_rate * len(self._plans))
        if self._watch("connect", seconds + CONNECT_PATIENCE_S, enough):
            timeline.mark(self._elapsed, "all connected")
        self._seen["connect_s"] = round(timeline.came_in_s, 3)
        self._seen["hearers"] = timeline.connected
        if plan.what.broadcast:
            self._watch("connect", SETTLE_S)
            self._fleet.tell("talk")

    def _hold(self) -> None:
        plan = self._plan
        if plan.what.stepped or self.timeline.gave_up >= plan.users or not self.timeline.counts["connects"]:
            return
        if not plan.what.cut:
            self._watch("hold", plan.seconds, self._over)
            return
        if self._watch("hold", plan.seconds / 2, self._over):
            return
        cut, counts = self.timeline.connected, self.timeline.counts
        self._fleet.tell("cut")
        began, began_s = time.monotonic(), self._elapsed
        self.timeline.mark(began_s, "all cut")
        back = lambda: self.timeline.counts["back"] - counts["back"]  # noqa: E731
        self._watch("hold", BACK_PATIENCE_S, lambda: back() >= cut)
        slowest = max(self.timeline.latencies["back"].pending, default=0) if back() else 0
        self.timeline.mark(began_s + slowest / 1e9, f"the last of {back():,} is back")
        self._seen |= {
            "cut": cut,
            "back": back(),
            "resumed_after_cut": self.timeline.counts["resumed"] - counts["resumed"],
        }
        self._watch("hold", max(SETTLE_S, plan.seconds / 2 - (time.monotonic() - began)), self._over)

    def _drain(self) -> None:
        timeline = self.timeline
        self._fleet.tell("quiet")
        timeline.mark(self._elapsed, "no user sends")
        self._watch("drain", 2 * self._interval_s)  # every worker has reported what it said last
        until = time.monotonic() + DRAIN_MOST_S
        still_since, last = time.monotonic(), -1
        while time.monotonic() < until and self._missing() > 0:
            self._watch("drain", self._interval_s, lambda: self._missing() <= 0)
            received = timeline.counts["received"]
            if received != last:
                still_since, last = time.monotonic(), received
            elif time.monotonic() - still_since > DRAIN_STILL_S:
                break

    def _missing(self) -> int:
        counts = self.timeline.counts
        hearers = self._seen["hearers"] if self._plan.what.broadcast else 1
        settles = self._plan.transport == "framed"
        unacknowledged = counts["sent"] - counts["acked"] - counts["refused"] if settles else 0
        return max(unacknowledged, counts["sent"] * hearers - counts["received"] - counts["refused"])

    def _end(self) -> None:
        self._fleet.tell("end")
        deadline = time.monotonic() + LEAVE_S
        while len(self._fleet.ended) < len(self._fleet) and time.monotonic() < deadline:
            for worker, line in self._fleet.lines(time.monotonic() + 1.0):
                self.timeline.feed(worker, line)
                if line["kind"] == "end":
                    self._verdicts.append(line["verdict"])
        silent = len(self._fleet) - len(self._verdicts)
        if silent:  # without them losses are unknown
            raise WorkerFailed(
                f"{silent} of {len(self._fleet)} workers did not say what has come within {LEAVE_S:.0f} s"
            )
