"""A model of tasks, from the reference (tasks.md 1 and 2) and our differences.

docs/architecture.md says what is different here.

A second implementation on purpose: it shares nothing with the gateway's table, its moments or its
transactions, so that a mistake has to be made twice to stay unseen. Everything is a dictionary and
a list, nothing is fast. Times are calendar milliseconds.

Where the reference leaves a choice, which of equally busy workers is given a task, the model asks
`chosen(task id, epoch)` what the gateway chose, and objects (`Wrong`) if that was none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

HOUR = 3_600_000
DAY = 24 * HOUR
WIRE = {
    "pending": 1, "assigned": 1, "running": 2, "completed": 3, "failed": 4, "dlq": 4, "cancelled": 5,
    "waiting_input": 6, "waiting_authority": 7, "waiting_dependency": 8, "hibernated": 9, "rejected": 10,
}  # fmt: skip
ENDED = {"completed", "failed", "cancelled", "dlq", "rejected"}
WAITS = {"input": "waiting_input", "authority": "waiting_authority", "dependency": "waiting_dependency"}
PAUSED = {*WAITS.values(), "hibernated"}
GRACE = {0: 30_000, 1: 30_000, 2: 600_000, 3: 300_000}
RETURN = 60_000
KEEP = {"completed": 7 * DAY, "rejected": 7 * DAY, "cancelled": 7 * DAY, "failed": 14 * DAY}


class Wrong(AssertionError):
    """The gateway did what no reading of the reference allows."""


class No(Exception):
    """The model refuses; the gateway's sentence must contain the text."""


@dataclass
class Waiting:
    """Why a task is paused. `left`: the dependencies that have not ended."""

    reason: str
    depends_on: tuple[str, ...] = ()
    any_one: bool = False
    timeout_ms: int = 0
    wake_ms: int = 0
    escalation: str = ""


@dataclass
class Job:
    """One task.

    `had` are those who ever had it, with the number of their latest assignment.
    """

    name: str
    order: int
    mode: str
    creator: str
    created: int
    pool: str = ""
    target: str = ""
    priority: int = 30
    kind: int = 0
    attempts: int = 3
    delays: tuple[int, ...] | None = None
    parent: str = ""
    limits: dict[str, int] = field(default_factory=dict)

    status: str = "pending"
    epoch: int = 0
    worker: str = ""
    pending: int = 0
    started: int = 0
    heard: int = 0
    missing: int = 0
    paused: int = 0
    updated: int = 0
    deliveries: int = 0
    opened: int = 0
    fresh: int = 0
    running: int = 0
    worked: int = 0
    excused: int = 0
    assigned: int = 0
    begun: bool = False
    """Its worker, which never claims, has gone, and this was the first that it had in hand."""
    failures: int = 0
    retry_at: int = 0
    by: str = ""
    wait: Waiting | None = None
    had: dict[str, int] = field(default_factory=dict)
    events: list[tuple[object, ...]] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.status in ENDED and not self.retry_at

    @property
    def busy(self) -> str:
        """The worker that it keeps busy; "" for a task that its creator works on."""
        return self.worker if self.status in {"assigned", "running"} and self.mode != "self" else ""


@dataclass
class Hand:
    """A connected participant.

    `given`: every assignment that its session should have been told of.
    """

    name: str
    pool: str
    turn: int
    given: list[str] = field(default_factory=list)
    claims: bool = False


class Model:
    """See the module docstring.

    `room` is how many live tasks a worker is given at most; `manager` manages the workspace.
    """

    def __init__(self, room: int, manager: str, chosen: Callable[[str, int], str]) -> None:
        self.room = room
        self.manager = manager
        self.chosen = chosen
        self.jobs: dict[str, Job] = {}
        self.hands: dict[str, Hand] = {}
        self.memories: dict[str, int] = {}
        """When the client of each participant began, over its reconnects."""
        self.now = 0
        self.happened: list[tuple[int, str]] = []
        """What time alone has done, and when."""
        self.late: Counter[str] = Counter()
        """How much of it after its moment, as the gateway was away."""

    def busy(self, name: str) -> int:
        return sum(job.busy == name for job in self.jobs.values())

    # -- changes of one row ------------------------------------------------------------------------

    def _turn_to(self, job: Job, status: str, reason: str = "", **fields: object) -> None:
        """A row that changes, its event, and all that follows."""
        before, was_busy, was_over, was_epoch = job.status, job.busy, job.over, job.epoch
        job.status = status
        if status == "pending":
            job.begun = False
        for name, value in fields.items():
            setattr(job, name, value)
        job.updated = self.now
        if WIRE[before] != WIRE[status] or (before, status) == ("failed", "dlq"):
            job.events.append(("status", WIRE[before], WIRE[status], reason))
        if was_busy and job.busy != was_busy and was_busy in self.hands:
            self._give(self.hands[was_busy])
        if job.epoch != was_epoch:
            job.had[job.worker] = job.epoch
        if job.busy and job.busy != was_busy and job.busy in self.hands:
            self.hands[job.busy].turn = self.now
        if job.over and not was_over:
            self._has_ended(job.name)
        if job.parent in self.jobs and before != job.status and (job.over or job.status in PAUSED):
            word = "transitioned" if job.status in PAUSED else "completed"
            self.jobs[job.parent].events.append(("child", job.name, WIRE[job.status], word))
        if job.status == "pending" and before != "pending":
            self._offer(job)

    def _queue(self, job: Job) -> tuple[str, str]:
        return {"pool": ("pool", job.pool), "targeted": ("one", job.target), "self": ("one", job.creator)}[job.mode]

    def _assign(self, job: Job, hand: Hand) -> None:
        hand.given.append(job.name)
        fields = {"worker": hand.name, "missing": 0, "heard": 0, "by": "", "assigned": self.now, "begun": False}
        self._turn_to(job, "assigned", epoch=job.epoch + 1, **fields)

    def _offer(self, job: Job) -> None:
        kind, name = self._queue(job)
        among = [hand for hand in self.hands.values() if (hand.pool if kind == "pool" else hand.name) == name]
        among = [hand for hand in among if self.busy(hand.name) < self.room]
        if not among:
            return
        least = min((self.busy(hand.name), hand.turn) for hand in among)
        best = [hand for hand in among if (self.busy(hand.name), hand.turn) == least]
        chosen = self.chosen(job.name, job.epoch + 1)
        self._assign(job, next((hand for hand in best if hand.name == chosen), best[0]))

    def _give(self, hand: Hand) -> None:
        while self.busy(hand.name) < self.room:
            waiting = [
                job
                for job in self.jobs.values()
                if job.status == "pending" and self._queue(job) in {("one", hand.name), ("pool", hand.pool)}
            ]
            if not waiting:
                return
            self._assign(min(waiting, key=lambda job: (-job.priority, job.order)), hand)

    def _has_ended(self, name: str) -> None:
        """Wake tasks that waited for it, if all, or any, of theirs have ended or are gone."""
        for job in sorted(self.jobs.values(), key=lambda job: job.name):
            wait = job.wait
            if job.status == "waiting_dependency" and wait is not None and name in wait.depends_on:
                self._look(job, wait)

    def _look(self, job: Job, wait: Waiting) -> None:
        ended = [name not in self.jobs or self.jobs[name].over for name in wait.depends_on]
        if all(ended) or (wait.any_one and any(ended)):
            self._wake(job)

    def _wake(self, job: Job) -> None:
        if job.status == "hibernated" or not job.worker:
            fields = {"worker": "", "wait": None, "paused": 0, "missing": 0, "excused": 0, "deliveries": 0}
            self._turn_to(job, "pending", pending=self.now, fresh=self.now, **fields)
            return
        gone = bool(job.worker not in self.hands or job.heard < self.memories[job.worker])
        heard = job.heard if gone and "heartbeat_timeout_ms" not in job.limits else self.now
        self._run(job, missing=self.now if gone else 0, heard=heard, wait=None, paused=0, fresh=self.now)

    def _run(self, job: Job, **fields: object) -> None:
        running = job.running if job.status == "running" else self.now
        usual = {"missing": 0, "heard": self.now, "deliveries": 0, "excused": 0, "running": running, "begun": False}
        fields = {**usual, **fields}
        self._turn_to(job, "running", started=job.started or self.now, **fields)

    # -- what participants ask for -----------------------------------------------------------------

    def create(self, job: Job) -> None:
        job.created = job.pending = job.updated = job.opened = job.fresh = self.now
        self.jobs[job.name] = job
        if job.mode == "self":
            job.status, job.epoch, job.worker, job.had = "assigned", 1, job.creator, {job.creator: 1}
        if job.parent:
            self.jobs[job.parent].events.append(("child", job.name, WIRE[job.status], "spawned"))
        if job.status == "pending":
            self._offer(job)

    def ask(self, caller: str, verb: str, name: str, *, reason: str = "", wait: Waiting | None = None) -> None:
        """An operation of a caller. Raises No."""
        job = self.jobs[name]
        work = verb in {"claim", "complete", "fail", "pause", "reject"}
        has_part = caller in {job.creator, job.worker}
        if work:
            has_part |= caller in {job.by, *job.had} or self._is_for(job, caller)
        if not has_part and caller != self.manager:
            raise No("task not found")
        if verb == "claim" and job.status == "pending" and job.mode == "pool" and not self._is_for(job, caller):
            raise No("the task is for workers of")
        if wait is not None and wait.reason == "hibernation" and caller != job.worker:
            raise No("only the worker of a task")
        ends = {"complete": "completed", "fail": "failed", "cancel": "cancelled", "reject": "rejected"}
        if verb in ends and job.status == ends[verb] and job.by == caller:
            return
        has_it = job.worker == caller and job.had.get(caller) == job.epoch
        if work and caller in job.had and not has_it:
            raise No("this assignment is over")
        if job.status in ENDED and not (verb == "retry" or (verb == "cancel" and job.retry_at)):
            raise No("has ended")
        getattr(self, f"_ask_{verb}")(job, caller, reason, wait)
        if verb == "claim":
            self.hands[caller].claims = True

    @staticmethod
    def _is_for(job: Job, caller: str) -> bool:
        """Whether a waiting task may be assigned to a worker."""
        mine = caller.startswith(f"ag::w::{job.pool}::") if job.mode == "pool" else caller == job.target
        return job.status == "pending" and mine

    def _ask_claim(self, job: Job, caller: str, _reason: str, _wait: Waiting | None) -> None:
        if job.status == "pending":
            if self._queue(job)[0] == "one" and self._queue(job)[1] != caller:
                raise No("is for")
            self._run(job, epoch=job.epoch + 1, worker=caller)
            return
        if job.status in PAUSED:
            raise No("invalid transition")
        if job.worker != caller:
            raise No("another worker")
        if job.status == "running" and not job.missing:
            return
        self._run(job)

    def _ask_complete(self, job: Job, caller: str, reason: str, _wait: Waiting | None) -> None:
        self._turn_to(job, "completed", reason, by=caller, missing=0)

    def _ask_fail(self, job: Job, caller: str, reason: str, _wait: Waiting | None) -> None:
        self._fail(job, caller, reason or "task failed")

    def _fail(self, job: Job, by: str, reason: str) -> None:
        failures = job.failures + 1
        retry_at = 0
        if job.delays is not None and failures < job.attempts:
            retry_at = self.now + job.delays[min(failures, len(job.delays)) - 1]
        self._turn_to(job, "failed", reason, failures=failures, retry_at=retry_at, by=by, missing=0)

    def _ask_cancel(self, job: Job, caller: str, _reason: str, _wait: Waiting | None) -> None:
        self._turn_to(job, "cancelled", by=caller, retry_at=0, missing=0)

    def _ask_retry(self, job: Job, _caller: str, _reason: str, _wait: Waiting | None) -> None:
        if job.status not in {"failed", "cancelled", "dlq"}:
            raise No("has ended" if job.status in ENDED else "invalid transition")
        if job.status == "dlq":
            job.failures = 0
        self._again(job, opened=self.now)

    def _again(self, job: Job, **fields: object) -> None:
        fields = {"worker": "", "by": "", "wait": None, "pending": self.now, "fresh": self.now, **fields}
        zero = ("started", "heard", "missing", "retry_at", "paused", "running", "worked", "deliveries", "excused")
        self._turn_to(job, "pending", **dict.fromkeys(zero, 0), **fields)

    def _ask_pause(self, job: Job, caller: str, _reason: str, wait: Waiting | None) -> None:
        assert wait is not None
        to = "hibernated" if wait.reason == "hibernation" else WAITS[wait.reason]
        if not (job.status in {to, "running"} or (job.status == "pending" and to == "waiting_dependency")):
            raise No("invalid transition")
        if to == "waiting_dependency" and self._waits_for(wait.depends_on, job.name):
            raise No("waits for this task")
        if job.status == "running":
            job.worked += self.now - job.running
            job.excused = 0
        if caller == job.worker:
            job.heard = self.now
        self._turn_to(job, to, wait.reason, wait=wait, paused=self.now, missing=0)
        if to == "waiting_dependency":
            self._look(job, wait)

    def _waits_for(self, names: tuple[str, ...], wanted: str) -> bool:
        """Whether one of these waits for a task, itself or through others."""
        ahead, seen = list(names), set(names)
        while ahead:
            job = self.jobs.get(ahead.pop())
            if job is None or job.status != "waiting_dependency" or job.wait is None:
                continue
            if wanted in job.wait.depends_on:
                return True
            ahead += [name for name in job.wait.depends_on if name not in seen]
            seen.update(job.wait.depends_on)
        return False

    def _ask_resume(self, job: Job, caller: str, _reason: str, _wait: Waiting | None) -> None:
        if job.status == "pending":
            raise No("invalid transition")
        if job.status in PAUSED:
            self._wake(job)
        elif job.status == "assigned" and job.worker == caller:
            self._run(job)

    def _ask_reject(self, job: Job, caller: str, reason: str, _wait: Waiting | None) -> None:
        if job.status not in {"pending", "assigned", "waiting_input", "waiting_authority"}:
            raise No("invalid transition")
        self._turn_to(job, "rejected", reason or "rejected", by=caller, wait=None, paused=0)

    def report(self, caller: str, name: str, word: str) -> bool:
        """Report progress; False if the reporter has lost the task, or it has ended."""
        job = self.jobs[name]
        if caller not in {job.worker, job.creator}:
            return caller not in job.had
        if job.status in ENDED:
            return False
        noticed = job.missing or "heartbeat_timeout_ms" in job.limits
        if caller == job.worker and job.status == "running" and noticed:
            job.heard, job.missing, job.excused = self.now, 0, 0
        if caller == job.worker and job.status == "assigned":
            self._run(job)
        job.events.append(("progress", word))
        return True

    # -- who comes and goes ------------------------------------------------------------------------

    def join(self, name: str, pool: str, *, back: bool) -> None:
        hand = self.hands[name] = Hand(name, pool, self.now)
        if not back:
            self.memories[name] = self.now
        # What it is given from here on is told once.
        had = [job for job in self.jobs.values() if job.busy == name]
        for job in sorted(had, key=lambda job: job.order):
            if job.status == "assigned" and job.missing and not back:
                self._lost(job)
            elif job.status == "assigned":
                if job.begun and not job.excused:
                    job.deliveries += 1
                    if job.deliveries >= 16:
                        self._bury(job)
                        continue
                job.missing = job.excused = 0
                job.begun = False
                hand.given.append(job.name)
            else:
                # A client that is back goes on with what it took in hand itself; what another one
                # of its name had, it knows nothing of.
                self._is_there(job, job.heard >= self.memories[name])
        for job in self.jobs.values():
            if self._own(job, name):
                self._is_there(job, job.status == "assigned" or job.heard >= self.memories[name])
        self._give(hand)

    @staticmethod
    def _own(job: Job, name: str) -> bool:
        return job.mode == "self" and job.worker == name and job.status in {"assigned", "running"}

    def _is_there(self, job: Job, there: bool) -> None:
        """A worker knows of what it has, or not.

        After its gateway's absence it is expected to report from now on.
        """
        expected = self.now + job.limits.get("heartbeat_timeout_ms", 0)
        if there != bool(job.missing):
            if not there:
                job.excused = min(job.excused, expected)
            return
        job.missing = 0 if there else self.now
        if job.excused:
            job.excused = expected

    def _lost(self, job: Job) -> None:
        """Its worker never claims, and is gone for good."""
        if job.begun:
            self._lose(job)
        else:
            self._let_go(job, counts=not job.excused)

    def _let_go(self, job: Job, *, counts: bool) -> None:
        job.deliveries += counts
        if job.deliveries >= 16 and counts:
            self._bury(job)
        else:
            self._turn_to(job, "pending", worker="", missing=0, excused=0, pending=job.pending)

    def _lose(self, job: Job) -> None:
        if job.delays is not None or job.failures + 1 >= job.attempts:
            self._late(job, "never heard of again")
            return
        fields = {"worker": "", "missing": 0, "excused": 0, "deliveries": 0, "pending": self.now}
        self._turn_to(job, "pending", failures=job.failures + 1, **fields)

    def _bury(self, job: Job) -> None:
        self._turn_to(job, "dlq", "never begun", by="", retry_at=0, missing=0)

    def excuse(self, before: int) -> None:
        """A gateway is up again: missing workers have their grace from now on."""
        for job in self.jobs.values():
            if (job.busy or self._own(job, job.worker)) and 0 < job.missing < before:
                job.missing, job.excused = self.now, self.now + min(GRACE[job.kind], RETURN)

    def leave(self, name: str, *, clean: bool = False, by_gateway: bool = False) -> None:
        silent = not self.hands[name].claims and not clean
        del self.hands[name]
        if silent:
            self._blame([job for job in self.jobs.values() if job.busy == name])
        for job in sorted(self.jobs.values(), key=lambda job: job.order):
            if (job.busy == name and (job.status == "running" or silent)) or self._own(job, name):
                if by_gateway and not job.missing:
                    job.missing, job.excused = self.now, self.now + min(GRACE[job.kind], RETURN)
                elif not by_gateway:
                    self._is_there(job, False)
            elif job.busy == name:
                self._let_go(job, counts=not by_gateway)

    @staticmethod
    def _blame(held: list[Job]) -> None:
        """Return which task of a client that never claims was presumably begun."""
        if not any(job.status == "running" and not job.missing for job in held):
            held.sort(key=lambda job: (job.assigned, -job.priority, job.order))
            for job in [job for job in held if job.status == "assigned"][:1]:
                job.begun = True

    # -- time --------------------------------------------------------------------------------------

    def moments(self, job: Job) -> Iterable[tuple[int, str]]:
        """All that time alone will do to it."""
        limits = job.limits
        if job.over:
            if job.status in KEEP:
                yield job.updated + KEEP[job.status], "forget"
            return
        if job.retry_at:
            yield job.retry_at, "retry"
        if "schedule_to_close_ms" in limits:
            yield job.opened + limits["schedule_to_close_ms"], "bury"
        if job.status == "failed":
            return
        if job.wait is not None:
            hibernated = job.status == "hibernated"
            if job.wait.timeout_ms and not (hibernated and job.wait.escalation == "alert"):
                again = hibernated and job.wait.escalation == "retry"
                yield job.paused + job.wait.timeout_ms, "wake" if again else "waited"
            if job.wait.wake_ms:
                yield job.wait.wake_ms, "wake"
            return
        if job.missing and job.busy:
            yield job.missing + GRACE[job.kind], "lost"
        if job.status == "running":
            if job.missing and not job.busy:
                yield job.missing + GRACE[job.kind], "lost"
            if "start_to_close_ms" in limits:
                close = job.running + limits["start_to_close_ms"] - job.worked
                yield max(close, job.excused), "start_to_close"
            if "heartbeat_timeout_ms" in limits:
                yield max(job.heard + limits["heartbeat_timeout_ms"], job.excused), "heartbeat"
        elif "schedule_to_start_ms" in limits:
            yield job.pending + limits["schedule_to_start_ms"], "schedule_to_start"
        if job.kind == 1:
            yield job.fresh + HOUR, "stale"
        elif job.mode == "self" and job.status == "assigned" and job.missing:
            yield job.missing + HOUR, "stale"
        elif job.mode in {"pool", "self"} and job.status == "pending":
            yield job.updated + HOUR, "stale"

    def next_due(self, job: Job) -> int:
        return min((at for at, _ in self.moments(job)), default=0)

    def pass_to(self, until: int) -> None:
        """Do what falls due until then, each at its moment, or now if that has passed."""
        while True:
            ahead = [(self.next_due(job), job.name) for job in self.jobs.values() if self.next_due(job)]
            if not ahead or min(ahead)[0] > until:
                break
            self.now = max(self.now, min(ahead)[0])
            page = [one for one in ahead if one[0] <= self.now]
            # Of what falls due in the same moment either may be first; the one that was assigned
            # was.
            page.sort(key=lambda one: (one[0], not self.chosen(one[1], self.jobs[one[1]].epoch + 1), one[1]))
            for _, name in page:
                if name in self.jobs:
                    self._fall_due(self.jobs[name])
        self.now = until

    def _fall_due(self, job: Job) -> None:
        due = [moment for moment in self.moments(job) if moment[0] <= self.now]
        due.sort(key=lambda moment: (moment[0], moment[1] == "lost", moment[1]))
        if not due:
            return
        at, what = due[0]
        self.happened.append((self.now, what))
        self.late[what] += at < self.now
        if what == "retry":
            self._again(job)
        elif what == "wake":
            self._wake(job)
        elif what == "waited":
            self._fail(job, "", "wait timeout")
        elif what == "lost" and job.status == "assigned":
            self._lost(job)
        elif what == "lost":
            self._fail(job, "", "did not reconnect within grace window")
        elif what == "stale":
            self._turn_to(job, "cancelled", by="", retry_at=0, missing=0)
        elif what == "bury":
            self._turn_to(job, "dlq", "(schedule_to_close)", by="", retry_at=0, missing=0)
        elif what == "forget":
            del self.jobs[job.name]
            self._has_ended(job.name)
        else:
            self._late(job, what)

    def _late(self, job: Job, what: str) -> None:
        failures = job.failures + 1
        if failures >= job.attempts:
            word = what if " " in what else f"({what.removesuffix('_timeout')})"
            self._turn_to(job, "dlq", word, by="", failures=failures, missing=0)
            return
        pauses = {
            "schedule_to_start": 1000 + 500 * failures,
            "start_to_close": 1000 * (1 + failures),
            "heartbeat": 2000 * failures if failures > 3 else 30_000,
        }
        pause = pauses.get(what, 0) if job.delays is None else job.delays[min(failures, len(job.delays)) - 1]
        fields = {"failures": failures, "retry_at": self.now + pause, "by": "", "missing": 0}
        self._turn_to(job, "failed", what if " " in what else f"({what})", **fields)
