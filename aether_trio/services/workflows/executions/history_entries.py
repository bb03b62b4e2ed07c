"""Encodes entries of an execution's history: what happened, and what followed.

An entry is JSON: `{"type": …, …, "then": [{"type": …, …}, …]}`. The types and their fields are
those of model/workflows/happenings.py; a field with its default is left out. Of an action its
document's names are kept, with the computed values beside it. `results` has the results of tasks
that a step's `output` has replaced, as [[STEP, ITEM], result]: a replay needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any, Final

from aether_trio.model.limits import MIB
from aether_trio.model.workflows import happenings
from aether_trio.model.workflows.definition import Action
from aether_trio.model.workflows.happenings import Command, Happening, StepEnded, StepPlace
from aether_trio.services.workflows.documents.json_values import read_json, write_json

RESULTS: Final = "results"
MAX_RESULTS_BYTES: Final = 1 * MIB
NO_RESULTS: Final[Mapping[StepPlace, Any]] = MappingProxyType({})
_ACTION: Final = ("type", "agent", "tool_name", "workspace", "task_type", "target_implementation", "event_name")
_TYPES: Final[dict[str, type[Any]]] = {
    one.__name__: one
    for one in (
        happenings.Started,
        happenings.Forked,
        happenings.StepEnded,
        happenings.ItemsEnded,
        happenings.TimePassed,
        happenings.SignalReceived,
        happenings.EventReceived,
        happenings.CancelAsked,
        happenings.LimitReached,
        happenings.RetryAsked,
        happenings.PauseAsked,
        happenings.ResumeAsked,
    )
}


def encode_entry(
    happening: Happening, commands: Sequence[Command], results: Mapping[StepPlace, Any] = NO_RESULTS
) -> bytes:
    """Encode a happening, what followed, and the results that this replaces.

    Results of more than MAX_RESULTS_BYTES in all are left out.
    """
    entry = document(happening)
    if results and len(write_json(kept := [[list(place), result] for place, result in results.items()])) <= (
        MAX_RESULTS_BYTES
    ):
        entry[RESULTS] = kept
    if commands:
        entry["then"] = [document(command) for command in commands]
    return write_json(entry)


def encode_happening(happening: Happening) -> bytes:
    """Encode a happening alone."""
    return write_json(document(happening))


def document(one: Happening | Command) -> dict[str, Any]:
    """Return a happening or command as JSON values."""
    return {"type": type(one).__name__, **_fields(one)}


def decode_happening(entry: bytes | dict[str, Any]) -> Happening:
    """Decode the happening of an entry."""
    found = read_json(entry) if isinstance(entry, bytes) else entry
    happening: Happening = _decoded(_TYPES[found["type"]], found)
    return happening


def _fields(one: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(one):
        value = getattr(one, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if default is not MISSING and value == default and type(value) is type(default):
            continue
        found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    match value:
        case StepPlace():
            return [value.step, value.item]
        case Action():
            return {name: getattr(value, name) for name in _ACTION if getattr(value, name)}
        case StepEnded():
            return _fields(value)
        case tuple():
            return [_plain(one) for one in value]
    return value


def _whole(value: Any) -> Any:
    """Return a JSON value with integers for floats that are whole."""
    if isinstance(value, dict):
        return {key: _whole(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _decoded(made: type[Any], found: dict[str, Any]) -> Any:
    given: dict[str, Any] = {}
    for field in fields(made):
        if field.name not in found:
            continue
        value = found[field.name]
        if field.name == "place":
            value = StepPlace(value[0], int(value[1]))
        elif field.name == "ended":
            value = tuple(_decoded(StepEnded, one) for one in value)
        elif field.name in ("at_ms", "attempt"):
            value = int(value)
        elif field.name == "kept":
            value = _whole(value)
        given[field.name] = value
    return made(**given)
