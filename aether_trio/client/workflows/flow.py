"""What a durable function does with its `flow`: steps, waits and branches.

Each method records what it gives back, so that a run that begins again, in any worker, gets the
same and does nothing twice. Between steps a function must depend on nothing else: no clock, no
random numbers, no network; `flow.now()`, `flow.random()` and `flow.step` are for those.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Generic, ParamSpec, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from aether_trio.client.workflows.branches import Branch
from aether_trio.client.workflows.errors import Cancelled, StepFailed
from aether_trio.client.workflows.records import StepRecord
from aether_trio.client.workflows.run import RESULT_BYTES, Command, Run, cancelled_step, where

T = TypeVar("T")
P = ParamSpec("P")

ERROR_CHARS: Final = 4_000
DONE: Final = "done"
AGAIN: Final = "again"
FAILED: Final = "failed"
_branch: ContextVar[Branch] = ContextVar("_branch")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRetry:
    """How often a step is tried, and when again; seconds.

    The pause is `first_s`, then each time twice as long, at most `max_s`. After an exception of the
    types in `final` (of a call: a text that matches one of these patterns) it is not tried again.
    """

    attempts: int = 3
    first_s: float = 1.0
    max_s: float = 60.0
    final: tuple[Any, ...] = ()

    def pause_s(self, failures: int) -> float:
        """Return the pause after so many failures."""
        return min(self.first_s * 2.0 ** min(failures - 1, 60), self.max_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonsAnswer:
    """A person's answer to `ask`; `data` is what its `form` asks for."""

    approved: bool
    choice: str = ""
    text: str = ""
    data: Any = None
    by: str = ""


class BranchResult(Generic[T]):
    """What a branch of a nursery gives back, once the nursery's block has ended."""

    def __init__(self) -> None:
        self._result: T | None = None
        self.error: BaseException | None = None
        self._done = False

    @property
    def done(self) -> bool:
        """Whether the branch has ended."""
        return self._done

    @property
    def result(self) -> T:
        """What the branch has returned. Raises RuntimeError before its end."""
        if not self._done or self.error is not None:
            raise RuntimeError("the branch has no result: read it behind the nursery's `async with` block")
        return self._result  # type: ignore[return-value]

    def _set(self, result: T | None, error: BaseException | None) -> None:
        self._result, self.error, self._done = result, error, True


class Branches:
    """Starts parallel branches of a function; `Flow.nursery` makes it."""

    def __init__(self, run: Run, parent: Branch, path: str, group: anyio.abc.TaskGroup) -> None:
        self._run = run
        self._parent = parent
        self._path = path
        self._group = group
        self._count = 0
        self.members: list[Branch] = []
        self.failures: list[Exception] = []
        self.was_cancelled = False
        self.aborted = False
        self.open = True

    def start(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> BranchResult[T]:
        """Start `await function(*args)` in a branch, named by the order of starts."""
        if not self.open:
            raise RuntimeError("the nursery's block has ended: no branch can be started in it any more")
        self._count += 1
        branch = self._run.branch(self._parent, f"{self._path}.{self._count}/", where())
        self.members.append(branch)
        found: BranchResult[T] = BranchResult()
        self._group.start_soon(self._branch, branch, found, partial(function, *args, **kwargs))
        return found

    async def _branch(self, branch: Branch, found: BranchResult[T], body: Callable[[], Awaitable[T]]) -> None:
        _branch.set(branch)
        error: BaseException | None = None
        result: T | None = None
        try:
            result = await body()
        except Cancelled as raised:
            self.was_cancelled, error = True, raised
        except Exception as raised:
            self.failures.append(raised)
            error = raised
        found._set(result, error)
        self._run.check_end(branch)
        if error is not None and not isinstance(error, Cancelled):
            self.abort(but=branch)

    def abort(self, but: Branch | None = None) -> None:
        """Cancel all branches but one, and the block that has started them."""
        if self.aborted:
            return
        self.aborted = True
        for branch in [*self.members, *([self._parent] if self.open else [])]:
            if branch is not but:
                _cancel_all(self._run, branch, self)


def _cancel_all(run: Run, branch: Branch, nursery: Branches | None) -> None:
    run.cancel(branch)
    if nursery is not None and branch is nursery._parent:
        return
    for child in branch.children:
        _cancel_all(run, child, None)


@dataclass(frozen=True, slots=True)
class NextRun:
    """What a function returns to go on as a new execution of itself."""

    input: Mapping[str, Any]


class Flow:
    """The first argument of a durable function."""

    def __init__(self, run: Run, events: Mapping[str, str] | None = None) -> None:
        self._run = run
        self._events = events or {}

    @property
    def execution_id(self) -> str:
        """The id of the execution, which is that of its task."""
        return self._run.records.execution_id

    # -- steps

    async def step(
        self,
        function: Callable[..., Any],
        *args: Any,
        once: bool = False,
        retry: StepRetry | None = None,
        name: str = "",
        **kwargs: Any,
    ) -> Any:
        """Do `function(*args, **kwargs)` here, once; return its result, which is JSON.

        A worker that dies in the middle leaves it undone, and it is done again. With `once` its
        begin is noted first, and then a person is asked instead: done, again or failed. A function
        that is not async runs in a thread. Raises StepFailed for what it raises.
        """
        name = name or _name_of(function)
        kind = "once" if once else "step"
        branch = _current()
        with branch.step():
            key, code = await self._place(branch, kind, name)
            found = self._run.records.steps.get(key)
            if found is None or not found.outcome:
                if branch.pending:
                    self._run.send(cancelled_step(key, kind, code))
                else:
                    await self._do(
                        branch, key, kind, code, partial(function, *args, **kwargs), retry or StepRetry(attempts=1)
                    )
            return self._outcome(branch, await self._run.ended(branch, key))

    async def _do(
        self, branch: Branch, key: str, kind: str, code: str, body: Callable[[], Any], retry: StepRetry
    ) -> None:
        run = self._run
        found = run.records.steps.get(key)
        failures = found.attempts if found is not None else 0
        while True:
            if kind == "once" and not await self._begin_once(branch, key, code):
                return
            if failures and (found := run.records.steps.get(key)) is not None and found.next_ms:
                await run.begin_local()
                try:
                    await anyio.sleep(min(max(found.next_ms - run.now_ms(), 0) / 1000, retry.max_s))
                finally:
                    run.end_local()
            command, error = await self._attempt(branch, key, body)
            command |= {"do": "close", "step": key, "kind": kind, "code": code}
            if error is None or failures + 1 >= retry.attempts or kind == "once" or branch.pending:
                break
            if any(isinstance(one, type) and isinstance(error, one) for one in retry.final):
                break
            failures += 1
            wait_ms = math.ceil(retry.pause_s(failures) * 1000)
            run.send(command | {"do": "tried", "attempt": failures, "wait_ms": wait_ms})
            while (found := run.records.steps.get(key)) is None or found.attempts < failures:
                await run.change(key)
        run.send(command)

    async def _attempt(self, branch: Branch, key: str, body: Callable[[], Any]) -> tuple[Command, Exception | None]:
        """Do the work of a step; return how it has ended, and what it has raised."""
        await self._run.begin_local()
        scope = anyio.CancelScope()
        result: Any = None
        error: Exception | None = None
        try:
            with scope:
                branch.scope = scope
                result = await _called(body)
        except Exception as raised:
            error = raised
        finally:
            branch.scope = None
            self._run.end_local()
        if scope.cancelled_caught:
            return {"outcome": "cancelled", "error": "cancelled"}, None
        if error is not None:
            return {"outcome": "failed", "error": _text_of(error), "error_type": type(error).__name__}, error
        problem, error_type = result_problem(result)
        if problem:
            text = f"the result of step {key} {problem}"
            return {"outcome": "failed", "error": text, "error_type": error_type}, None
        return {"outcome": "completed", "result": result}, None

    async def _begin_once(self, branch: Branch, key: str, code: str) -> bool:
        """Note that a step is begun; return False if a person says how it has ended."""
        run = self._run
        found = run.records.steps.get(key)
        again = False
        if found is not None and found.opened:
            question = f"{key}?{found.opened}"
            if question not in run.records.steps:
                run.send({
                    "do": "open", "step": question, "kind": "ask", "about": key, "code": code,
                    "question": f"Step {key} was begun at {code}, and its worker has ended before it told the result. "
                    "Was it done, is it to be done again, or has it failed?",
                    "choices": [DONE, AGAIN, FAILED], "text": "its result or error, if there is one",
                })  # fmt: skip
            said = await run.ended(branch, question)
            answer = said.result if isinstance(said.result, dict) else {}
            choice = answer.get("choice", "") if said.outcome == "completed" and answer.get("approved") else FAILED
            command: Command = {"do": "close", "step": key, "kind": "once", "code": code}
            if said.outcome == "cancelled":
                run.send(cancelled_step(key, "once", code))
                return False
            if choice != AGAIN:
                if choice == DONE:
                    data = answer.get("data")
                    command |= {
                        "outcome": "completed",
                        "result": data if data is not None else answer.get("text") or None,
                    }
                else:
                    text = answer.get("text") or said.error or "it is not known whether it was done"
                    command |= {"outcome": "failed", "error": text, "error_type": "IN_DOUBT"}
                run.send(command)
                return False
            again = True
        before = 0 if found is None else found.opened
        run.send({"do": "open", "step": key, "kind": "once", "code": code, **({"again": True} if again else {})})
        while (found := run.records.steps.get(key)) is None or found.opened == before:
            await run.change(key)
        branch.open_key = ""
        return not found.outcome

    async def call(
        self,
        agent: str,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        retry: StepRetry | None = None,
        workspace: str = "",
        metadata: Mapping[str, Any] | None = None,
        priority: int = 0,
        name: str = "",
    ) -> Any:
        """Have an agent do a tool's work, as a step of a graph does; return its result.

        It is a task of the pool of `agent`, with `metadata` and `priority` (a TaskPriority). After
        `timeout` seconds, all attempts together, it has failed. Raises StepFailed.
        """
        given: Command = {"agent": agent, "tool": tool, "arguments": dict(arguments or {})}
        if timeout is not None:
            given["timeout_ms"] = _ms(timeout)
        if workspace:
            given["workspace"] = workspace
        if metadata:
            given["metadata"] = dict(metadata)
        if priority:
            given["priority"] = int(priority)
        if retry is not None:
            given["retry"] = {
                "max_attempts": retry.attempts,
                "initial_ms": _ms(retry.first_s),
                "max_ms": _ms(retry.max_s),
                "final": [str(one) for one in retry.final],
            }
        return await self._open("call", name or (f"{agent}.{tool}" if tool else agent), given)

    async def run(self, workflow: str, input: Mapping[str, Any] | None = None, *, name: str = "") -> Any:  # noqa: A002
        """Run another workflow; return its result. Raises StepFailed."""
        return await self._open("run", name or workflow, {"workflow": workflow, "input": dict(input or {})})

    async def sleep(self, seconds: float = 0, *, minutes: float = 0, hours: float = 0, days: float = 0) -> None:
        """Wait for so long. A long sleep holds no worker."""
        total = seconds + 60 * (minutes + 60 * (hours + 24 * days))
        await self._open("sleep", "sleep", {"for_ms": _ms(total)})

    async def sleep_until(self, when: datetime) -> None:
        """Wait until a moment. A naive time is local time."""
        await self._open("sleep", "sleep_until", {"until_ms": math.ceil(when.timestamp() * 1000)})

    async def ask(
        self,
        question: str,
        *,
        of: str = "",
        choices: Sequence[str] = (),
        text: bool | str = False,
        form: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        name: str = "",
    ) -> PersonsAnswer:
        """Ask a person, and return the answer.

        `of`: who may answer, by a user's id or an identity; "": all who may write here. `form`: the
        JSON Schema of the answer's `data`. After `timeout` seconds it raises StepFailed (TIMEOUT).
        """
        given: Command = {"question": question}
        for key, value in (("of", of), ("choices", list(choices)), ("text", text), ("form", form)):
            if value:
                given[key] = value
        if timeout is not None:
            given["timeout_ms"] = _ms(timeout)
        found = await self._open("ask", name or "ask", given)
        return PersonsAnswer(**{key: found.get(key, "") for key in ("approved", "choice", "text", "data", "by")})

    async def wait(
        self,
        signal: str = "",
        *,
        event: str = "",
        equals: Any = None,
        timeout: float | None = None,
        name: str = "",
    ) -> Any:
        """Wait for a signal or an event, and return its data.

        A signal that has come before counts, once. An event is one of `@workflow(events=…)`, whose
        key has the value `equals`; it counts from the begin of the run on, and each branch takes
        it once, the oldest one first. After `timeout` seconds it raises StepFailed (TIMEOUT).
        Raises ValueError for an event that the function does not declare.
        """
        if bool(signal) == bool(event):
            raise ValueError("wait for a signal or for an event: flow.wait('go'), flow.wait(event='order.paid', …)")
        given: Command = {"signal": signal} if signal else self._event(event, equals)
        if timeout is not None:
            given["timeout_ms"] = _ms(timeout)
        return await self._open("wait", name or f"wait:{signal or event}", given)

    def _event(self, event: str, equals: Any) -> Command:
        key = self._events.get(event)
        if key is None:
            raise ValueError(
                f"event {event!r} is not declared, so those that came before this wait are not kept: "
                f'@workflow(events={{{event!r}: "input.id"}}), with the expression that is its key, or "" for any'
            )
        if bool(key) != (equals is not None):
            raise ValueError(
                f"event {event!r} has the key {key!r}: say `equals=`, the value for which you wait"
                if key
                else f"event {event!r} is declared without a key, so `equals` means nothing"
            )
        return {"event": event, "key": key, **({} if equals is None else {"equals": equals})}

    def continue_as(self, **given: Any) -> NextRun:
        """Return what the function returns to go on as a new execution, with this input.

        That one has a fresh history, for what never ends: `return flow.continue_as(page=page + 1)`.
        """
        return NextRun(given)

    async def _open(self, kind: str, name: str, given: Mapping[str, Any]) -> Any:
        """Begin a step that ends elsewhere, and wait for its end."""
        branch = _current()
        with branch.step():
            key, code = await self._place(branch, kind, name)
            if key not in self._run.records.steps:
                if branch.pending:
                    self._run.send(cancelled_step(key, kind, code))
                else:
                    json.dumps(given, allow_nan=False)  # raises TypeError and ValueError here
                    self._run.send({"do": "open", "step": key, "kind": kind, "code": code, **given})
            return self._outcome(branch, await self._run.ended(branch, key))

    async def _place(self, branch: Branch, kind: str, name: str) -> tuple[str, str]:
        await anyio.lowlevel.checkpoint()  # a run that this worker stops does nothing more
        if self._run.stopped:
            raise Cancelled("this worker has stopped the run")
        key, code = self._run.place(branch, kind, _plain(name))
        if self._run.diverged is not None:
            await anyio.sleep_forever()
        await self._run.stop_at_end(key)
        if key not in self._run.records.steps:
            await self._run.until_resumed()
        return key, code

    def _outcome(self, branch: Branch, found: StepRecord) -> Any:
        match found.outcome:
            case "completed":
                return json.loads(json.dumps(found.result))
            case "cancelled":
                branch.was_told()
                raise Cancelled(f"step {found.key} was cancelled")
        raise StepFailed(found.error, found.error_type, found.key)

    # -- parallel branches

    @asynccontextmanager
    async def nursery(self) -> AsyncIterator[Branches]:
        """Yield a nursery: what it starts has ended behind the block.

        When a branch or the block fails, the others are cancelled, and ExceptionGroup is raised.
        """
        parent = _current()
        parent.nurseries += 1
        error: BaseException | None = None
        async with anyio.create_task_group() as group:
            branches = Branches(self._run, parent, f"{parent.path}{parent.nurseries}", group)
            pending_before = parent.pending
            try:
                yield branches
            except (Cancelled, Exception) as raised:
                error = raised
            branches.open = False
            if error is not None:
                branches.abort()
        parent.now_ms = max([parent.now_ms, *(one.now_ms for one in branches.members)])
        if branches.aborted and parent.pending and not pending_before and not self._run.records.cancelled:
            parent.pending = False  # the block ended before it was told
        failures = [*([error] if isinstance(error, Exception) else []), *branches.failures]
        if failures:
            raise ExceptionGroup("branches of a function have failed", failures)
        if isinstance(error, Cancelled):
            raise error
        if branches.was_cancelled:
            parent.was_told()
            raise Cancelled("the branches of a nursery were cancelled")

    # -- what must be the same again

    def patched(self, id: str) -> bool:  # noqa: A002
        """Return whether a run takes the new way at a change of its function: recorded.

        True for runs that come here for the first time, False for those whose history has steps
        behind this place, but not this mark.
        """
        branch = _current()
        place: Branch | None = branch
        while place is not None:
            if id in place.patches:
                return place.patches[id]
            place = place.parent
        run, name = self._run, f"patched:{_plain(id)}"
        recorded = run.records.order.get(branch.path, [])
        key = f"{branch.path}{name}"
        if branch.count < len(recorded):
            found = recorded[branch.count] == key
            branch.count += found
        else:
            found = True
            branch.count += 1
            command = {"do": "close", "step": key, "kind": "patch", "code": where() or branch.code}
            run.send(command | {"outcome": "completed", "result": True})
        branch.patches[id] = found
        return found

    def now(self) -> datetime:
        """Return the time (UTC) at which the last step of this branch has ended."""
        return datetime.fromtimestamp(_current().now_ms / 1000, UTC)

    def random(self) -> float:
        """Return a random number from 0 to below 1, the same one in a replay."""
        return (int.from_bytes(self._drawn()[:7]) >> 3) / 2.0**53

    def uuid(self) -> uuid.UUID:
        """Return a version 4 UUID, the same one whenever the run begins again."""
        return uuid.UUID(bytes=self._drawn()[:16], version=4)

    def _drawn(self) -> bytes:
        branch = _current()
        branch.draws += 1
        return hashlib.sha256(f"{self.execution_id}\0{branch.path}\0{branch.draws}".encode()).digest()


@contextmanager
def entered(run: Run, events: Mapping[str, str]) -> Iterator[Flow]:
    """Yield the flow of a run, for the task that runs its function in the block.

    `events`: the keys of the events for which it may wait.
    """
    token = _branch.set(run.root)
    try:
        yield Flow(run, events)
    finally:
        _branch.reset(token)


def result_problem(value: Any) -> tuple[str, str]:
    """Return why a value can be no result, and a word for it; "" if it can be one."""
    try:
        size = len(json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        return f"is not JSON: {error}", "BAD_RESULT"
    if size > RESULT_BYTES:
        return (
            f"has {size} bytes of JSON; at most {RESULT_BYTES} are allowed: keep it elsewhere, and return its key",
            "BAD_RESULT",
        )
    return "", ""


async def _called(body: Callable[[], Any]) -> Any:
    """Call the function of a step, in a thread if it is not async."""
    if inspect.iscoroutinefunction(_unwrapped(body)):
        return await body()
    found = await anyio.to_thread.run_sync(body)
    return await found if inspect.isawaitable(found) else found


def _unwrapped(function: Any) -> Any:
    while isinstance(function, partial):
        function = function.func
    if not inspect.isroutine(function) and callable(function):
        function = getattr(function, "__call__", function)  # noqa: B004
    return function


def _name_of(function: Callable[..., Any]) -> str:
    found = getattr(_unwrapped(function), "__name__", type(function).__name__)
    if found == "<lambda>":
        raise ValueError("a lambda has no name by which its step is known: give the step one, `name=…`")
    return str(found)


def _plain(name: str) -> str:
    """Return a name without the characters that keys use."""
    return "".join("_" if char in "/#?[]~\0" else char for char in name)[:200] or "_"


def _text_of(error: Exception) -> str:
    try:
        text = str(error)
    except Exception:  # an exception of the program's, which has no text
        text = ""
    text = text or type(error).__name__
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "�")
    return text if len(text) <= ERROR_CHARS else text[: ERROR_CHARS - 1] + "…"


def _current() -> Branch:
    try:
        return _branch.get()
    except LookupError:
        raise RuntimeError("a flow is used in its function, and in branches that its nurseries start") from None


def _ms(seconds: float) -> int:
    if not 0 <= seconds < 2**40:
        raise ValueError(f"{seconds!r} is no time in seconds: it is at least 0")
    return math.ceil(seconds * 1000)
