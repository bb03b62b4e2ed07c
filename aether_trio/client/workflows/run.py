"""Moves one run of a durable function on, between the function and its history.

    a step ──▶ a command in the outbox ──▶ Ledger.advance ──▶ entries ──▶ the step's end

What a step returns or raises comes from the history only, so a run that begins again in another
worker is the same run. Commands of parallel branches travel together. `Ledger` is the gateway
(serving.py) or memory (aether_trio.testing.workflows).
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import FrameType
from typing import Any, Final, NamedTuple, Protocol

import anyio

from aether_trio.client.workflows.branches import Branch
from aether_trio.client.workflows.errors import CommandRefused, Diverged
from aether_trio.client.workflows.records import Records, RunEntry, StepRecord

RESULT_BYTES: Final = 512 * 1024
BATCH: Final = 100
BATCH_BYTES: Final = 700 * 1024
FULL_S: Final = 0.25
"""How long a run must only have waited before it sleeps, however full its worker is."""
_HERE: Final = __file__.rpartition(os.sep)[0]
_BELOW: Final = tuple(f"{os.sep}{name}{os.sep}" for name in ("anyio", "trio", "asyncio"))

Command = dict[str, Any]


class Advance(NamedTuple):
    """The answer to commands: what is new, and what the run is now."""

    entries: Sequence[RunEntry]
    more: bool
    status: str


class Ledger(Protocol):
    """Protocol: keeps the history of a run, and does what its function asks for."""

    async def advance(self, after: int, commands: Sequence[Command]) -> Advance:
        """Do commands; return the entries behind number `after`.

        Raises AssignmentOver, and CommandRefused, after which nothing was done.
        """

    async def listen(self, news: Callable[[], None]) -> None:
        """Call `news` whenever there may be entries that `advance` has not returned."""

    def now_ms(self) -> int:
        """Return the time in Unix ms."""


class Run:
    """One run of a function in this process."""

    def __init__(
        self,
        ledger: Ledger,
        records: Records,
        *,
        hibernate_after: float | None = None,
        is_full: Callable[[], bool] = lambda: False,
        only_replays: bool = False,
    ) -> None:
        """Make a run of what `records` say.

        `is_full`: whether the worker has so many runs that one sleeps as soon as it only waits.
        `only_replays`: each branch stops where the history ends, and nothing is done.
        """
        self.records = records
        self.only_replays = only_replays
        self.root = Branch("", records.started_ms)
        self.status = "running"
        """running, or how the run has ended for this worker."""
        self.diverged: Diverged | None = None
        self.begun: set[str] = set()
        """Steps of `once` that this worker has begun."""
        self._ledger = ledger
        self._hibernate_after = hibernate_after
        self._is_full = is_full
        self._outbox: list[Command] = []
        self._wanted = anyio.Event()
        self._read = False
        self._sending = False
        self._changes: dict[str, anyio.Event] = {}
        self._locals = 0
        self._listens = False
        self._activity = 1
        self._rests = 0
        """The count of activities at which the run wants to sleep, 0 for not at all."""
        self._scope = anyio.CancelScope()
        self._group: Any = None
        self._branches: dict[str, Branch] = {"": self.root}
        self._was_cancelled = False
        self._resumed = anyio.Event()
        self._suspended: anyio.Event | None = None
        """Set when the answer is there that says whether the run sleeps."""

    # -- the whole run

    async def drive(self, body: Callable[[], Awaitable[Command]]) -> None:
        """Run a function until it has ended, sleeps, is paused or is another worker's.

        `body` runs it and returns the command that ends the run. Raises AssignmentOver.
        """
        self._spread_cancel()
        if self.records.paused:  # it sleeps, and no step begins
            self._touch()
            self._rests = self._activity
        with self._scope:
            async with anyio.create_task_group() as group:
                self._group = group
                group.start_soon(self._send)
                if self._hibernate_after is not None:
                    group.start_soon(self._rest, self._hibernate_after)
                command = await body()
                self.send(command)
                await anyio.sleep_forever()  # the answer ends the run
        if self.diverged is not None and self.status == "running":
            with anyio.CancelScope(shield=True):
                answer = await self._ledger.advance(
                    self.records.number, [{"do": "pause", "reason": str(self.diverged)}]
                )
                self.status = answer.status

    @property
    def stopped(self) -> bool:
        """Whether this worker has no part in the run any more."""
        return self._scope.cancel_called

    def send(self, command: Command) -> None:
        """Put a command into the outbox."""
        self._outbox.append(command)
        self._touch()

    def look(self) -> None:
        """Read what may be new."""
        self._read = True
        self._touch()

    def _touch(self) -> None:
        self._activity += 1
        self._wanted.set()

    async def _send(self) -> None:
        while self.status == "running":
            if not (self._outbox or self._read or self._rests):
                self._wanted = anyio.Event()
                await self._wanted.wait()
                await anyio.lowlevel.checkpoint()  # other branches of the same moment
            batch = self._take_batch()
            if self._rests and not batch and not self._read and self._may_rest():
                batch, self._suspended = [{"do": "suspend"}], anyio.Event()
            elif not batch and not self._read:
                self._rests = 0
                continue
            self._rests, self._read, self._sending = 0, False, True
            try:
                answer = await self._advance(batch)
            finally:
                self._sending = False
            self._take_in(answer)
            if self._suspended is not None:
                if self.status == "running":
                    self._suspended.set()
                self._suspended = None
            self._read = self._read or answer.more
        self._scope.cancel()

    def _take_batch(self) -> list[Command]:
        batch: list[Command] = []
        size = 0
        while self._outbox and len(batch) < BATCH:
            size += len(json.dumps(self._outbox[0]))
            if batch and size > BATCH_BYTES:
                break
            batch.append(self._outbox.pop(0))
        return batch

    async def _advance(self, batch: Sequence[Command]) -> Advance:
        """Send commands; a step that the gateway refuses has failed, and the others go on."""
        try:
            return await self._ledger.advance(self.records.number, batch)
        except CommandRefused as error:
            if len(batch) == 1:
                return await self._ledger.advance(self.records.number, [_failed(batch[0], str(error))])
        for one in batch[:-1]:
            self._take_in(await self._advance([one]))
        return await self._advance(batch[-1:])

    def _take_in(self, answer: Advance) -> None:
        """Take in what is new, and wake the steps that it is about."""
        self._activity += 1
        was_paused = self.records.paused
        for one in answer.entries:
            key = self.records.add(one)
            if key and (changed := self._changes.pop(key, None)) is not None:
                changed.set()
        if answer.status != "running" and self.status == "running":
            self.status = answer.status
        if was_paused and not self.records.paused:
            self._resumed.set()
        elif self.records.paused and not was_paused:
            self._resumed = anyio.Event()
        if self.records.paused:
            self._rests = self._activity
        self._spread_cancel()

    def _spread_cancel(self) -> None:
        """Cancel the branches of a run that is cancelled, once."""
        if self.records.cancelled and not self._was_cancelled:
            self._was_cancelled = True
            for branch in list(self._branches.values()):
                self.cancel(branch)

    def cancel(self, branch: Branch) -> None:
        """Cancel a branch: the step for which it waits, or the next one that it begins."""
        if not branch.ask_to_end():
            return
        if branch.scope is not None:
            branch.scope.cancel()
        elif branch.open_key:
            found = self.records.steps.get(branch.open_key)
            if found is None or not found.outcome:
                self.send(_cancelled(branch.open_key, "" if found is None else found.kind, ""))

    # -- idle runs

    @property
    def _is_idle(self) -> bool:
        return not (self._locals or self._outbox or self._read or self._sending) and bool(self._changes)

    async def _rest(self, after_s: float) -> None:
        """Let the run sleep when it has only waited for so long."""
        while True:
            seen = self._activity
            for _ in range(math.ceil(after_s / FULL_S)):
                if seen != self._activity or self._is_full():
                    break
                await anyio.sleep(FULL_S)
            await anyio.sleep(min(FULL_S, after_s))
            if self._is_idle and seen == self._activity:
                self._rests = self._activity
                self._wanted.set()

    # -- steps

    def _may_rest(self) -> bool:
        """Return whether the run may sleep: only then nothing that it does is lost."""
        return not self._locals and (self.records.paused or self._rests == self._activity)

    def branch(self, parent: Branch, path: str, code: str) -> Branch:
        """Make a branch below another one."""
        made = Branch(path, parent.now_ms, code, parent=parent, pending=parent.pending)
        parent.children.append(made)
        self._branches[path] = made
        return made

    def place(self, branch: Branch, kind: str, name: str) -> tuple[str, str]:
        """Return key and file:line of a branch's next step; stop if it does not fit."""
        key = branch.key_for(name)
        code = where() or branch.code
        recorded = self.records.order.get(branch.path, [])
        if branch.count < len(recorded):
            found = self.records.steps[recorded[branch.count]]
            if found.key != key or (found.kind and found.kind != kind):
                self.diverge(_said(found), f"got {kind} {key!r} at {code}")
        branch.count += 1
        return key, code

    def replays(self, branch: Branch) -> bool:
        """Return whether the history has further steps of a branch."""
        return branch.count < len(self.records.order.get(branch.path, []))

    def check_end(self, branch: Branch) -> None:
        """Check that a branch has done all that its history says."""
        recorded = self.records.order.get(branch.path, [])
        if branch.count < len(recorded):
            found = self.records.steps[recorded[branch.count]]
            self.diverge(
                _said(found), f"got the end of {f'branch {branch.path[:-1]}' if branch.path else 'the function'}"
            )
        if not branch.path:
            for path, keys in self.records.order.items():
                if path not in self._branches:
                    self.diverge(_said(self.records.steps[keys[0]]), "got the end of the function")

    def diverge(self, recorded: str, got: str) -> None:
        """Stop the run, as its code does not fit its history."""
        if self.diverged is None:
            self.diverged = Diverged(
                f"the code does not fit the history: recorded {recorded}, {got}; mend the code, then resume the execution"
            )
        self._scope.cancel()

    async def change(self, key: str) -> None:
        """Wait until the history tells something new of a step."""
        if not self._listens and not self._is_read(key):
            self._listens = True
            self._group.start_soon(self._ledger.listen, self.look)
        changed = self._changes.get(key)
        if changed is None:
            changed = self._changes[key] = anyio.Event()
        await changed.wait()

    def _is_read(self, key: str) -> bool:
        """Return whether the answer to a command that is on its way will tell of a step."""
        found = self.records.steps.get(key)
        return found is None or found.kind in ("", "step", "once", "patch")

    async def stop_at_end(self, key: str) -> None:
        """Wait for ever if the run only replays, and the history has no end of a step."""
        found = self.records.steps.get(key)
        if self.only_replays and (found is None or not found.outcome):
            await anyio.sleep_forever()

    async def ended(self, branch: Branch, key: str) -> StepRecord:
        """Wait until a step has ended."""
        branch.open_key = key
        while True:
            found = self.records.steps.get(key)
            if found is not None and found.outcome:
                branch.now_ms = max(branch.now_ms, found.at_ms)
                return found
            await self.change(key)

    async def until_resumed(self) -> None:
        """Wait while the run is paused."""
        while self.records.paused:
            await self._resumed.wait()

    async def begin_local(self) -> None:
        """Note that this worker does a step now: it is not done in a run that sleeps."""
        while self._suspended is not None:
            await self._suspended.wait()
        self._locals += 1
        self._activity += 1

    def end_local(self) -> None:
        """Note that this worker has done a step."""
        self._locals -= 1
        self._activity += 1
        if self.records.paused:
            self.look()

    def now_ms(self) -> int:
        """Return the time in Unix ms."""
        return self._ledger.now_ms()


def where() -> str:
    """Return the file:line that calls a flow; "" if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_HERE):
            if any(part in name for part in _BELOW) or name.endswith("contextlib.py"):
                return ""
            return f"{name.rpartition(os.sep)[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _said(found: StepRecord) -> str:
    return f"{found.kind or 'step'} {found.key!r} at {found.code or 'an unknown line'}"


def _cancelled(key: str, kind: str, code: str) -> Command:
    return {
        "do": "close", "step": key, "kind": kind, "code": code, "outcome": "cancelled", "error": "cancelled",
    }  # fmt: skip


def _failed(command: Mapping[str, Any], text: str) -> Command:
    """Return the command that fails a step, or the run, of which a command is refused."""
    if command["do"] in ("end", "pause", "suspend"):
        return {"do": "end", "outcome": "failed", "error": text, "error_type": "REFUSED"}
    return {
        "do": "close", "step": command["step"], "kind": command.get("kind", ""), "code": command.get("code", ""),
        "outcome": "failed", "error": text, "error_type": "REFUSED",
    }  # fmt: skip


def cancelled_step(key: str, kind: str, code: str) -> Command:
    """Return the command that records a step as cancelled."""
    return _cancelled(key, kind, code)
