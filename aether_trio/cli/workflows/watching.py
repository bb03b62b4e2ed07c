"""Prints what happens in an execution: its history, while it is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import trio

from aether_trio.cli import exits
from aether_trio.cli.options import GatewayTarget
from aether_trio.cli.output import print_json, say
from aether_trio.cli.records import plain
from aether_trio.cli.workflows.connection import execution_id_of, open_workflows
from aether_trio.cli.workflows.texts import clock_text, cut, execution_facts, json_line, took_text
from aether_trio.client.client import Client
from aether_trio.client.operations.workflow_values import Execution, HistoryEntry
from aether_trio.model.identity import Identity

_LOOK_S: Final = 0.5
"""Between two looks at the history, while nothing new is there."""
_AGAIN_S: Final = 1.0
"""Before the next connection."""
_WIDTH: Final = 16
_SHOWN: Final = 10
"""Failed items that one entry names."""


class ExecutionWatch:
    """Prints the history of an execution until it has ended."""

    def __init__(self, given: str, *, from_start: bool, as_lines: bool) -> None:
        self._given = given
        self._from_start = from_start
        self._as_lines = as_lines
        self._after: int | None = 0 if from_start else None

    async def run(self, target: GatewayTarget, who: Identity) -> Execution:
        """Print until the end; return the ended execution. A cut connection is made again."""
        said, begun = "", False
        while True:
            try:
                async with open_workflows(target, who, endless=True) as client:
                    self._given = await execution_id_of(client, self._given)
                    begun = True
                    return await self._follow(client)
            except exits.CliError as error:
                if error.exit_code != exits.UNREACHABLE or not begun:
                    raise
                if error.message != said:
                    said = error.message
                    say(f"{said}; trying again", err=True)
                await trio.sleep(_AGAIN_S)

    async def _follow(self, client: Client) -> Execution:
        workflow = client.workflow
        execution = await workflow.execution(self._given)
        if self._after is None:
            self._after = execution.history_entries
            if not self._as_lines:
                facts = dict(execution_facts(execution))
                waits = f", waits for {facts['waits for']}" if facts["waits for"] else ""
                say(timed_line(clock_text(None), "", f"execution {execution.execution_id} is {facts['status']}{waits}"))
        while True:
            entries = await workflow.history(self._given, after=self._after)
            print_history(entries, as_lines=self._as_lines)
            if entries:
                self._after = entries[-1].number
                continue
            if execution.has_ended and self._after >= execution.history_entries:
                if not self._as_lines:
                    self._end(execution)
                return execution
            if not execution.has_ended:
                await trio.sleep(_LOOK_S)
            execution = await workflow.execution(self._given)

    @staticmethod
    def _end(execution: Execution) -> None:
        took = took_text(execution.started_at, execution.completed_at)
        result = "" if execution.result is None else f": {json_line(execution.result)}"
        error = f": {execution.error}" if execution.error else ""
        say(timed_line(clock_text(execution.completed_at), "", f"{execution.status} after {took}{result or error}"))


def print_history(entries: Sequence[HistoryEntry], *, as_lines: bool, numbers: bool = False) -> None:
    """Print entries of a history, each as its JSON or as lines for people."""
    for entry in entries:
        if as_lines:
            print_json(plain(entry))
            continue
        at = clock_text(entry.at)
        for place, text in entry_lines(entry):
            say(f"{entry.number:>5}  {timed_line(at, place, text)}" if numbers else timed_line(at, place, text))


def timed_line(at: str, place: str, text: str) -> str:
    """Return the line that says what has happened at a step or item."""
    return f"{at}  {place:<{_WIDTH}}  {text}".rstrip()


def entry_lines(entry: HistoryEntry) -> Iterator[tuple[str, str]]:
    """Yield what an entry says: a step or item ("" for the execution), and words."""
    happened = list(_happened(entry.type, entry.fields))
    yield from happened
    several = Counter(_kind(one) for one in entry.then)
    told: set[tuple[str, str]] = set()
    for one in entry.then:
        kind = _kind(one)
        if several[kind] > 1 and kind[1]:
            if kind not in told:
                told.add(kind)
                items = [_item(other) for other in entry.then if _kind(other) == kind]
                what, _, rest = _followed(one).partition(":")
                some = f"{len(items)} items ({min(items)} to {max(items)})"
                yield kind[1], f"{what} {some}{f', such as:{rest}' if what == 'asks' else rest and f':{rest}'}"
            continue
        place = _place(one)
        if (text := _followed(one)) and (place, text) not in happened:
            yield place, text


def _happened(kind: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    by = f" by {fields['by']}" if fields.get("by") else ""
    reason = f": {cut(str(fields['reason']))}" if fields.get("reason") else ""
    match kind:
        case "Started":
            given = fields.get("trigger")
            yield "", "has started" + (f" with {json_line(given)}" if given not in (None, {}) else "")
        case "Forked":
            yield "", f"has begun as a fork of {fields.get('origin')} from step {fields.get('step')}"
        case "StepEnded":
            yield _place(fields), _ended(fields)
        case "ItemsEnded":
            ended = [one for one in fields.get("ended") or () if isinstance(one, dict)]
            for step in dict.fromkeys(_step(one) for one in ended):
                those = [one for one in ended if _step(one) == step]
                failed = [one for one in those if one.get("outcome") != "completed"]
                for one in those if len(those) == 1 else failed[:_SHOWN]:
                    yield _place(one), _ended(one)
                if len(those) > 1:
                    outcomes = Counter(str(one.get("outcome")) for one in those)
                    yield step, f"items {', '.join(f'{count} {word}' for word, count in outcomes.items())}"
        case "SignalReceived":
            data = f": {json_line(fields['data'])}" if fields.get("data") is not None else ""
            yield "", f"signal {fields.get('name')}{by}{data}"
        case "EventReceived":
            yield _place(fields), f"event received: {json_line(fields.get('data'))}"
        case "CancelAsked":
            yield "", f"is cancelled{by}{reason}"
        case "RetryAsked":
            yield "", f"is retried{by}"
        case "PauseAsked":
            yield "", f"is paused{by}{reason}"
        case "ResumeAsked":
            yield "", f"is resumed{by}"
        case "StepOpened":
            yield _place(fields), _opened(fields)
        case "StepClosed":
            yield _place(fields), _ended(fields)
        case "TimePassed" | "Ended":  # the end is told with the result
            return
        case _:
            yield _place(fields), kind


def _opened(fields: Mapping[str, Any]) -> str:
    """Return what a step of a durable function begins to do."""
    kind, given = str(fields.get("kind", "")), fields.get("given")
    about = given if isinstance(given, dict) else {}
    match kind:
        case "ask":
            return f"asks: {cut(str(about.get('question', '')))}"
        case "sleep":
            return "sleeps"
        case "wait":
            name = "event" if about.get("event") else "signal"
            return f"waits for {name} {about.get(name) or ''}".rstrip()
        case "run":
            return f"begins: workflow {about.get('workflow') or ''}".rstrip()
        case "call":
            return f"begins: {about.get('agent') or ''}: {about.get('tool') or ''}".rstrip(": ")
    return f"begins: {kind}"


def _ended(fields: Mapping[str, Any]) -> str:
    what = "compensation " if fields.get("compensates") else ""
    error = f": {cut(str(fields['error']), 300)}" if fields.get("error") else ""
    attempt = fields.get("attempt") or 1
    return f"{what}{fields.get('outcome')}{f' (attempt {attempt})' if attempt != 1 else ''}{error}"


def _followed(one: Mapping[str, Any]) -> str:
    """Return what a command says to people; "" for one that says nothing to them."""
    error = f": {cut(str(one['error']), 300)}" if one.get("error") else ""
    match one.get("type"):
        case "DoAction":
            attempt = f", attempt {one['attempt']}" if one.get("attempt") not in (None, 1) else ""
            word = "is compensated by" if one.get("compensates") else "begins:"
            return f"{word} {_action(one.get('action') or {})}{attempt}"
        case "StartExecution":
            return f"begins: workflow {one.get('workflow')}"
        case "AskPerson":
            of = f" of {one['of']}" if one.get("of") else ""
            return f"asks{of}: {cut(str(one.get('question', '')))}"
        case "CancelStep":
            return "is told to stop"
        case "OpenWait":
            return f"waits for event {one.get('event')}"
        case "KeepResult":
            return "" if _item(one) < -1 else "completed"
        case "MarkStep":
            status = str(one.get("status"))
            if status == "compensated":
                return ""  # the end of the compensation says it
            return f"will be tried again{error}" if status == "running" and error else f"{status}{error}"
        case "EndExecution":
            return ""  # the end is told with the result
        case "ContinueExecution":
            return f"goes on as a new execution of {one.get('workflow') or 'the same workflow'}"
        case "PauseExecution":
            return f"is paused: {cut(str(one.get('reason', '')), 300)}"
    return ""


def _action(action: Mapping[str, Any]) -> str:
    if action.get("event_name"):
        return f"event {action['event_name']}"
    if action.get("task_type"):
        return f"task {action['task_type']} for {action.get('target_implementation', '')}"
    return f"{action.get('agent', '')}: {action.get('tool_name', '')}".removesuffix(": ")


def _kind(one: Mapping[str, Any]) -> tuple[str, str]:
    """Return a command's type, and the step if it is about an item of one."""
    return str(one.get("type")), _step(one) if _item(one) >= 0 else ""


def _step(fields: Mapping[str, Any]) -> str:
    place = fields.get("place")
    if place is None:
        return str(fields.get("step", ""))  # of a durable function
    return str(place[0]) if isinstance(place, list) and place else ""


def _item(fields: Mapping[str, Any]) -> int:
    place = fields.get("place")
    return place[1] if isinstance(place, list) and len(place) > 1 and isinstance(place[1], int) else -1


def _place(fields: Mapping[str, Any]) -> str:
    item = _item(fields)
    return f"{_step(fields)}[{item}]" if item >= 0 else _step(fields)
