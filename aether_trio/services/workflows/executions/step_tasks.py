"""What the tasks of steps say of them, and how their results and items are kept."""

from __future__ import annotations

from aether_trio.model.tasks import TaskRow
from aether_trio.model.tasks.result import ResultKind, TaskResult
from aether_trio.model.workflows.definition import Json
from aether_trio.model.workflows.happenings import NO_ITEM, AskPerson, DoAction, StartExecution, StepPlace
from aether_trio.services.workflows.actions.performer import dated_id
from aether_trio.services.workflows.documents.json_values import read_json, write_json
from aether_trio.services.workflows.executions.execution_rows import UNDO, ExecutionRow
from aether_trio.wire.pb import aether_pb2 as pb


def place_metadata(
    execution_id: str, command: DoAction | StartExecution | AskPerson, *, is_item: bool
) -> dict[str, str]:
    """Return the metadata of a step's task that say which step it is."""
    found = {"workflow": "true", "execution_id": execution_id, "step_id": command.place.step}
    if command.place.item != NO_ITEM:
        found["item" if is_item else "round"] = str(command.place.item)
    if command.attempt != 1:
        found["attempt"] = str(command.attempt)
    if isinstance(command, DoAction) and command.compensates:
        found["compensates"] = "true"
    return found


def place_of(task: TaskRow) -> tuple[StepPlace, int, bool, bool]:
    """Return place, attempt, whether it compensates, and whether it is a map's item."""
    metadata = pb.CreateTaskRequest.FromString(task.spec).metadata
    item = metadata.get("item", "") or metadata.get("round", "")
    place = StepPlace(metadata.get("step_id", ""), int(item) if item else NO_ITEM)
    return place, int(metadata.get("attempt", "1")), "compensates" in metadata, "item" in metadata


def result_json(result: TaskResult) -> bytes:
    """Return the result of a step's task as JSON."""
    match result.kind:
        case ResultKind.JSON:
            return result.data
        case ResultKind.BYTES:
            return write_json({"base64": result.shown[1]})
    return write_json({"checkpoint": result.data.decode()})


def item_of(item: int, status: str, error: str, error_type: str, result: bytes | None) -> dict[str, Json]:
    found: dict[str, Json] = {"item": item, "status": status, "result": None if result is None else read_json(result)}
    if status != "completed":
        found |= {"error": error, "error_type": error_type}
    return found


def stored_place(command: DoAction) -> StepPlace:
    place = command.place
    return StepPlace(place.step + UNDO, place.item) if command.compensates else place


def key_of(row: ExecutionRow, place: StepPlace, attempt: int) -> str:
    """Return what the id of a step's task is made of."""
    return f"{row.execution_id}\0{place.step}\0{place.item}\0{attempt}\0{row.generation}\0{row.entries}"


def child_id(now_ms: int, row: ExecutionRow, place: StepPlace, attempt: int) -> str:
    return dated_id(now_ms, key_of(row, place, attempt))
