"""Tests durable functions without a gateway: in memory, or against a history.

    found = await run_in_memory(report, {"topic": "tea"}, calls={"searcher.search": fake_search})
    assert found.result == …
    assert (await replay(report, history)).outcome == "completed"

Time is virtual: sleeps and timeouts end when nothing else can go on. `run_in_memory` keeps the
rules of the gateway for steps: each is begun once, and has one end.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
from anyio import wait_all_tasks_blocked

from aether_trio.client.workflows.definition import Function
from aether_trio.client.workflows.errors import AssignmentOver
from aether_trio.client.workflows.records import Records, RunEntry, branch_of
from aether_trio.client.workflows.run import Advance, Command, Ledger, Run

BEGIN_MS: Final = 1_700_000_000_000
EXECUTION: Final = "00000000-0000-7000-8000-000000000000"
QUIET: Final = 3


class NothingComes(Exception):
    """A function waits for what the test does not give it; the text says what."""


@dataclass(frozen=True, slots=True)
class FunctionOutcome:
    """How a run of a function has ended, or how far a replay comes.

    `outcome` is completed, failed, cancelled, or continued with `result` as the new input; paused
    for code that does not fit; of a replay also open, when the history ends first, and diverged.
    """

    outcome: str
    result: Any = None
    error: str = ""
    history: Sequence[Mapping[str, Any]] = ()
    """The entries, which `replay` takes."""


@dataclass(slots=True)
class MemoryHistory:
    """Keeps the history of a run, and does what its function asks for.

    `calls` has a function of the arguments for each "agent.tool" and each workflow, `answers` a
    dict for each question's step, `signals` the data of signals that come, `events` that of events.
    """

    calls: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    signals: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    answers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    events: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    entries: list[RunEntry] = field(default_factory=list)
    now_ms: int = BEGIN_MS
    assignment: int = 0
    ended: str = ""
    _open: dict[str, Command] = field(default_factory=dict)
    _closed: dict[str, str] = field(default_factory=dict)
    _due: dict[str, int] = field(default_factory=dict)
    _kept: dict[str, list[Any]] = field(default_factory=dict)
    _taken: dict[tuple[str, str], int] = field(default_factory=dict)
    _cancelled: int = 0

    def begin(self, function: str, given: Any) -> None:
        """Begin the run of a function with this input."""
        self._kept = {name: list(data) for name, data in self.signals.items()}
        self._note({"type": "Started", "workflow": function, "execution_id": EXECUTION, "by": "", "input": given})

    def assign(self) -> MemoryLedger:
        """Give the run to a worker; a former one has lost it."""
        self.assignment += 1
        return MemoryLedger(self, self.assignment)

    def cancel(self) -> None:
        """Cancel the run, as CANCEL_EXECUTION does."""
        if self.ended or self._cancelled:
            return
        self._note({"type": "CancelAsked", "reason": "", "by": ""})
        self._cancelled = len(self.entries)
        for key, command in list(self._open.items()):
            if command["kind"] != "once":
                self._close(key, {"outcome": "cancelled", "error": "cancelled"})

    def do(self, command: Command, after: int) -> str:
        """Do one command; return what the run is then."""
        match command["do"]:
            case "open":
                self._begin_step(command, after)
            case "close":
                key = command["step"]
                if key in self._open:
                    self._close(key, command)
                elif key not in self._closed:
                    self._close(key, command, command.get("kind", ""), command.get("code", ""))
            case "tried":
                if command["step"] not in self._closed:
                    tried = {name: value for name, value in command.items() if name not in ("do", "result", "outcome")}
                    self._note({"type": "StepTried", **tried, "next_ms": self.now_ms + command["wait_ms"]})
            case "end":
                ended = {
                    "result" if name == "input" else name: value for name, value in command.items() if name != "do"
                }
                self._note({"type": "Ended", **ended})
                self.ended = command["outcome"]
            case "suspend":
                return "hibernated" if len(self.entries) == after else "running"
            case "pause":
                self._note({"type": "PauseAsked", "reason": command["reason"], "by": ""})
                self.ended = "paused"
        return self.ended or "running"

    def _begin_step(self, command: Command, after: int) -> None:
        key, kind = command["step"], command["kind"]
        if key in self._closed or (key in self._open and not command.get("again")):
            return
        given = {name: value for name, value in command.items() if name not in ("do", "step", "kind", "code", "about")}
        entry = {"type": "StepOpened", "step": key, "kind": kind, "code": command["code"], "given": given}
        if "about" in command:
            entry["about"] = command["about"]
        self._note(entry | {"assignment": self.assignment})
        self._open[key] = command
        if self._cancelled > after and kind != "once":
            self._close(key, {"outcome": "cancelled", "error": "cancelled"})
        elif kind == "sleep":
            self._due[key] = max(command.get("until_ms", 0), self.now_ms + command.get("for_ms", 0))
        elif command.get("timeout_ms") and kind in ("ask", "wait"):
            self._due[key] = self.now_ms + command["timeout_ms"]

    def _close(self, key: str, end: Mapping[str, Any], kind: str = "", code: str = "") -> None:
        names = ("outcome", "result", "error", "error_type")
        entry = {"type": "StepClosed", "step": key, **{name: end[name] for name in names if name in end}}
        if kind:
            entry |= {"kind": kind, "code": code}
        self._open.pop(key, None)
        self._due.pop(key, None)
        self._closed[key] = end["outcome"]
        self._note(entry)

    def _note(self, entry: Mapping[str, Any]) -> None:
        plain = json.loads(json.dumps(entry, allow_nan=False))
        self.entries.append(RunEntry(len(self.entries) + 1, self.now_ms, plain))

    async def happen(self) -> bool:
        """Let the next thing happen outside of the worker; return False if nothing can."""
        for key, command in self._open.items():
            end = await self._end_of(key, command)
            if end is not None:
                if key in self._open:
                    self._close(key, end)
                return True
        if not self._due:
            return False
        key = min(self._due, key=lambda one: self._due[one])
        self.now_ms = max(self.now_ms, self._due[key])
        slept = self._open[key]["kind"] == "sleep"
        late = {"outcome": "failed", "error": "nothing came in time", "error_type": "TIMEOUT"}
        self._close(key, {"outcome": "completed", "result": None} if slept else late)
        return True

    async def _end_of(self, key: str, command: Command) -> dict[str, Any] | None:
        match command["kind"]:
            case "call":
                agent, tool = command["agent"], command["tool"]
                return await self._called(f"{agent}.{tool}" if tool else agent, command["arguments"])
            case "run":
                return await self._called(command["workflow"], command["input"])
            case "ask":
                found = self.answers.get(key, self.answers.get(command["question"]))
                blank = {"approved": True, "choice": "", "text": "", "data": None, "by": ""}
                return None if found is None else {"outcome": "completed", "result": {**blank, **found}}
            case "wait":
                if "event" in command:
                    return self._take_event(key, command["event"])
                kept = self._kept.get(command["signal"])
                return {"outcome": "completed", "result": kept.pop(0)} if kept else None
        return None

    def _take_event(self, key: str, event: str) -> dict[str, Any] | None:
        """Take the next event for the branch of a step; it comes to each branch."""
        place = branch_of(key), event
        number = self._taken.get(place, 0)
        found = self.events.get(event, ())
        if number >= len(found):
            return None
        self._taken[place] = number + 1
        return {"outcome": "completed", "result": found[number]}

    async def _called(self, name: str, given: Any) -> dict[str, Any]:
        function = self.calls.get(name)
        if function is None:
            raise NothingComes(f"the function calls {name!r}: give `calls` a function of that name")
        try:
            result = function(given)
            if inspect.isawaitable(result):
                result = await result
        except Exception as error:
            return {"outcome": "failed", "error": str(error), "error_type": type(error).__name__}
        return {"outcome": "completed", "result": result}

    def waits(self) -> str:
        """Return the steps that are open, for an error."""
        return ", ".join(f"{command['kind']} {key!r}" for key, command in self._open.items())


class MemoryLedger:
    """What a worker has of a MemoryHistory: the Ledger of one assignment."""

    def __init__(self, history: MemoryHistory, assignment: int) -> None:
        self.history = history
        self._assignment = assignment

    async def advance(self, after: int, commands: Sequence[Command]) -> Advance:
        """Do commands. Raises AssignmentOver for a worker that has lost the run."""
        await anyio.lowlevel.checkpoint()
        if self._assignment != self.history.assignment:
            raise AssignmentOver("this assignment is over")
        status = self.history.ended or "running"
        for command in json.loads(json.dumps(commands)):
            if status == "running":
                status = self.history.do(command, after)
        return Advance(self.history.entries[after:], False, status)

    async def listen(self, news: Callable[[], None]) -> None:
        """Let things happen outside whenever nothing else goes on."""
        while True:
            await _until_quiet()
            if not await self.history.happen():
                raise NothingComes(f"nothing ends {self.history.waits()}: give `signals`, `events` or `answers`")
            news()

    def now_ms(self) -> int:
        """Return the virtual time."""
        return self.history.now_ms


class _EndedLedger:
    """The ledger of a replay: nothing is done, and nothing comes."""

    def __init__(self) -> None:
        self.ended: Command | None = None

    async def advance(self, after: int, commands: Sequence[Command]) -> Advance:
        for command in commands:
            if command["do"] == "end":
                self.ended = command
        return Advance((), False, "paused" if self.ended is None else self.ended["outcome"])

    async def listen(self, news: Callable[[], None]) -> None:
        await anyio.sleep_forever()

    def now_ms(self) -> int:
        return BEGIN_MS


async def run_in_memory(
    function: Function,
    input: Mapping[str, Any] | None = None,  # noqa: A002
    *,
    calls: Mapping[str, Callable[[Any], Any]] | None = None,
    signals: Mapping[str, Sequence[Any]] | None = None,
    answers: Mapping[str, Mapping[str, Any]] | None = None,
    events: Mapping[str, Sequence[Any]] | None = None,
) -> FunctionOutcome:
    """Run a function with fakes of what is outside; its own steps are done.

    `calls` has a function of the arguments for each "agent.tool" (and of the input for each
    workflow), which may be async; what it raises fails the step. `answers` has fields of an answer
    by the step (ask, ask#2) or the question, `signals` the data of each signal in order, `events`
    that of the events which fit the waits of each branch. Raises NothingComes.
    """
    history = MemoryHistory(calls or {}, signals or {}, answers or {}, events or {})
    history.begin(function.name, dict(input or {}))
    await move_on(function, history)
    return outcome_of(history)


async def move_on(
    function: Function, history: MemoryHistory, ledger: Ledger | None = None, hibernate_after: float | None = None
) -> str:
    """Let a worker take a run as far as it comes; return the status of the run."""
    run = Run(ledger or history.assign(), Records.of([]), hibernate_after=hibernate_after)
    for entry in history.entries:
        run.records.add(entry)
    run.root.now_ms = run.records.started_ms
    try:
        await run.drive(lambda: function.perform(run))
    except BaseExceptionGroup as group:
        raise _only(group) from None
    return run.status


def outcome_of(history: MemoryHistory) -> FunctionOutcome:
    """Return how a run in memory has ended."""
    entries = [{"number": one.number, "at_ms": one.at_ms, **one.entry} for one in history.entries]
    last = entries[-1]
    if last["type"] == "PauseAsked":
        return FunctionOutcome("paused", error=last["reason"], history=entries)
    if last["type"] != "Ended":
        return FunctionOutcome("open", history=entries)
    return FunctionOutcome(last["outcome"], last.get("result"), last.get("error", ""), entries)


async def replay(function: Function, history: Sequence[Mapping[str, Any]]) -> FunctionOutcome:
    """Replay a history, as HISTORY or `run_in_memory` gives it: nothing is done.

    The outcome is how the function ends, open where the history ends first, or diverged with the
    first place at which the code does not fit, as its error.
    """
    records = Records.of([one for one in history if one["type"] != "Ended"])
    recorded = Records.of(history).ended
    ledger = _EndedLedger()
    run = Run(ledger, records, only_replays=True)

    async def body() -> Command:
        return await function.perform(run)

    async with anyio.create_task_group() as group:

        async def stop() -> None:
            await _until_quiet()
            group.cancel_scope.cancel()

        group.start_soon(stop)
        await run.drive(body)
        group.cancel_scope.cancel()
    if run.diverged is not None:
        return FunctionOutcome("diverged", error=str(run.diverged), history=history)
    ended = ledger.ended
    if ended is None:
        return FunctionOutcome("open", history=history)
    got = ended["outcome"], ended.get("result", ended.get("input")), ended.get("error", "")
    if recorded is not None and not (got[0] == "continued" and _is_continued(recorded)):
        was = recorded["outcome"], recorded.get("result"), recorded.get("error", "")
        if json.loads(json.dumps(got)) != json.loads(json.dumps(was)) and not (got[0] == was[0] != "completed"):
            return FunctionOutcome("diverged", error=f"recorded the end {was[:2]}, got {got[:2]}", history=history)
    return FunctionOutcome(*got, history=history)


def _is_continued(ended: Mapping[str, Any]) -> bool:
    """Return whether the recorded end of a run is that a new one goes on."""
    result = ended.get("result")
    return ended["outcome"] == "continued" or (isinstance(result, Mapping) and "continued_as" in result)


async def _until_quiet() -> None:
    """Wait until no other task can go on.

    Of asyncio's tasks one that is about to go on seems to be blocked, until callbacks have run.
    """
    for _ in range(QUIET):
        await wait_all_tasks_blocked()
        await anyio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one exception of nested groups, or the group."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found
