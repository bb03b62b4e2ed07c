"""Replays the history of an execution on a graph, and finds where they part.

    entry ──▶ interpreter, with this graph ──▶ the commands that were recorded, or a divergence

Nothing is written and nothing is sent. What the interpreter has made is known from its commands;
what tasks have given is in the rows of steps, and in the entry itself if an `output` has taken its
place there. A result that is neither, as its step was done once more, ends the replay with
ReplayError when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aether_trio.model.limits import MIB
from aether_trio.model.workflows.definition import Graph, Json
from aether_trio.model.workflows.forks import kept_state, misfits
from aether_trio.model.workflows.happenings import (
    ITEMS,
    ITEMS_PAGE,
    NO_ITEM,
    TRIGGER,
    CancelStep,
    Command,
    Forked,
    Happening,
    ItemsEnded,
    KeepResult,
    MarkStep,
    Need,
    NeedItems,
    NeedResults,
    StepEnded,
    StepPlace,
)
from aether_trio.model.workflows.interpreter import Validate, advance
from aether_trio.model.workflows.state import PENDING, WORDS, State
from aether_trio.services.workflows.documents.json_thread import in_json_thread
from aether_trio.services.workflows.documents.json_values import read_json, write_json
from aether_trio.services.workflows.executions import execution_rows
from aether_trio.services.workflows.executions.execution_rows import ExecutionRow
from aether_trio.services.workflows.executions.history_entries import RESULTS, decode_happening, document
from aether_trio.storage.base import Program

HISTORY_PAGE: Final = 500
LARGE: Final = 1 * MIB
"""The size of what an entry may make the interpreter compute, whatever the entry's own size."""

Read = Callable[[Callable[[], Program[Any]]], Any]
"""Runs a reading program: `await read(lambda: program)`."""


class ReplayError(Exception):
    """A history cannot be replayed to its end; the text says why."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first entry from which other commands follow, and the one that differs.

    `recorded` or `now` is None if there is none any more.
    """

    number: int
    happening: dict[str, Json]
    recorded: dict[str, Json] | None
    now: dict[str, Json] | None

    @property
    def step(self) -> str:
        """The step that the differing command is about, "" for none."""
        for one in (self.now, self.recorded, self.happening):
            place = (one or {}).get("place")
            if place:
                return str(place[0])
        return ""


@dataclass(slots=True)
class _PlaceRow:
    """What the replay knows of a step or item."""

    status: str
    error: str = ""
    error_type: str = ""
    attempt: int = 0
    kept: bool = False  # `result` is what it has; else it is that of the row
    lost: bool = False
    result: Json = None


class Replay:
    """Replays one execution; `state` and `entries` are how far it is."""

    def __init__(self, read: Read, row: ExecutionRow, graph: Graph, validate: Validate) -> None:
        self.state = State.new()
        self.entries = 0
        self._read = read
        self._row = row
        self._graph = graph
        self._validate = validate
        self._places: dict[StepPlace, _PlaceRow] = {}

    async def run(self) -> Divergence | None:
        """Replay all entries, or those up to the first divergence. Raises ReplayError."""
        while page := await self._read(self._page):
            for number, _, data in page:
                if number != self.entries + 1:
                    raise ReplayError(f"entry {self.entries + 1} of the history is missing")
                found = await self._take(number, await in_json_thread(partial(read_json, data), len(data)))
                if found is not None:
                    return found
                self.entries = number
        if self.entries < self._row.entries:
            raise ReplayError("its history is being deleted")
        return None

    def _page(self) -> Program[list[tuple[int, int, bytes]]]:
        return execution_rows.history(self._row.execution_id, self.entries, HISTORY_PAGE)

    async def _take(self, number: int, entry: dict[str, Json]) -> Divergence | None:
        happening = decode_happening(entry)
        then: list[dict[str, Json]] = entry.get("then", [])
        if isinstance(happening, Forked):
            if wrong := misfits(self._graph, happening.kept):
                return Divergence(number, {"type": "Forked", "place": [wrong[0], NO_ITEM]}, {"kept": wrong}, None)
            self._note_kept(happening)
        self._note_ends(happening, entry, then)
        advancing = advance(self._graph, self.state, happening, validate=self._validate)
        answer: Json = None
        commands: list[Command] = []
        while (need := await in_json_thread(partial(_next_need, advancing, answer, commands), LARGE)) is not None:
            answer = await self._answer(need, number)
        now = await in_json_thread(partial(_as_recorded, commands), LARGE)
        for index in range(max(len(then), len(now))):
            recorded = then[index] if index < len(then) else None
            follows = now[index] if index < len(now) else None
            if recorded != follows:
                told = {key: value for key, value in entry.items() if key not in ("then", RESULTS)}
                return Divergence(number, told, recorded, follows)
        for command in commands:
            self._note(command)
        return None

    # -- what is known -----------------------------------------------------------------------------

    def _note_kept(self, forked: Forked) -> None:
        """Note what a fork has kept: its rows have the results, and the attempts of tasks."""
        state = kept_state(forked.kept)
        for step in (*state.plain, *state.steps):
            progress = state.progress(step)
            place = StepPlace(step)
            self._places[place] = _PlaceRow(
                WORDS[progress.code], progress.error, progress.error_type, state.attempt(place)
            )
            codes = list(enumerate(progress.items.codes)) if progress.items is not None else []
            for item, code in codes:
                if code != PENDING:
                    place = StepPlace(step, item)
                    self._places[place] = _PlaceRow(WORDS[code], attempt=state.attempt(place))
            for page in range(-(-len(codes) // ITEMS_PAGE)):
                self._places[StepPlace(step, ITEMS - page)] = _PlaceRow("completed")
            for past in range(progress.round):
                self._places[StepPlace(step, past)] = _PlaceRow("completed")

    def _note_ends(self, happening: Happening, entry: dict[str, Json], then: list[dict[str, Json]]) -> None:
        ended: tuple[StepEnded, ...] = ()
        if isinstance(happening, StepEnded):
            ended = (happening,)
        elif isinstance(happening, ItemsEnded):
            ended = happening.ended
        raw = {StepPlace(step, int(item)): value for (step, item), value in entry.get(RESULTS, [])}
        replaced = {StepPlace(one["place"][0], int(one["place"][1])) for one in then if one["type"] == "KeepResult"}
        for one in ended:
            if one.compensates:
                continue
            place = self._places[one.place] = _PlaceRow(one.outcome, one.error, one.error_type, one.attempt)
            if one.place in raw:
                place.kept, place.result = True, raw[one.place]
            else:
                place.lost = one.place in replaced

    def _note(self, command: Command) -> None:
        match command:
            case KeepResult():
                place = self._places.setdefault(command.place, _PlaceRow("completed"))
                place.status, place.kept, place.lost = "completed", True, False
                place.result = read_json(write_json(command.result))
            case MarkStep():
                place = self._places.setdefault(command.place, _PlaceRow(command.status))
                place.status, place.error, place.error_type = command.status, command.error, command.error_type
            case CancelStep():
                if command.place in self._places:
                    self._places[command.place].status = "cancelled"

    async def _answer(self, need: Need, number: int) -> Json:
        if isinstance(need, NeedResults):
            return {step: await self._result(StepPlace(step), number) for step in need.steps}
        if isinstance(need, NeedItems):
            return await self._items(need.step, number)
        if need.place == TRIGGER:
            return read_json(self._row.trigger_data)
        return await self._result(need.place, number)

    async def _result(self, place: StepPlace, number: int) -> Json:
        known = self._places.get(place)
        if known is not None and known.kept:
            return known.result
        found = await self._read(lambda: execution_rows.attempt_and_result(self._row.execution_id, place))
        attempt, data = found or (0, None)
        if known is None or known.lost or (known.attempt and attempt and known.attempt != attempt):
            raise ReplayError(
                f"the result that step {place.step} had at entry {number} is not kept: "
                "it was done once more, or its results were too large for the history"
            )
        return None if data is None else read_json(data)

    async def _items(self, step: str, number: int) -> list[Json]:
        rows: dict[int, Json] = {}
        if any(not one.kept for place, one in self._places.items() if place.step == step and place.item >= 0):
            stored = await self._read(lambda: execution_rows.items_of(self._row.execution_id, step))
            rows = {item: data for item, _, _, _, data in stored}
        found = []
        for place, one in sorted(self._places.items()):
            if place.step != step or place.item < 0:
                continue
            if one.lost and one.status == "completed":
                raise ReplayError(f"the results that the items of {step} had at entry {number} are not kept")
            data = rows.get(place.item)
            result = one.result if one.kept else None if data is None else read_json(data)
            found.append(
                {
                    "item": place.item,
                    "status": one.status,
                    "result": result,
                    "error": one.error,
                    "error_type": one.error_type,
                }
            )
        return found


def _next_need(advancing: Generator[Need, Json, list[Command]], answer: Json, commands: list[Command]) -> Need | None:
    """Run the interpreter; at its end return None, with the commands in the list."""
    try:
        return advancing.send(answer)
    except StopIteration as done:
        commands += done.value
        return None


def _as_recorded(commands: Sequence[Command]) -> list[Any]:
    return [read_json(write_json(document(command))) for command in commands]
