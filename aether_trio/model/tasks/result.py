"""The result of a task: what its worker gives with COMPLETE, and GET shows.

The protocol has no field for results. COMPLETE has one of RESULT_KEYS in `wait_spec.input_match`; a
worker whose library cannot do that has one in the metadata of a progress report before COMPLETE.
"""

from __future__ import annotations

import base64
import binascii
import enum
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, NoReturn

from aether_trio.model.limits import KIB

MAX_RESULT_BYTES: Final = 512 * KIB
MAX_KEY_BYTES: Final = 256
"""The longest key of a checkpoint."""
MAX_DEPTH: Final = 100
"""How deep arrays and objects of a result may be nested: readers of JSON recurse."""
_CONTAINERS: Final = (dict, list, tuple)
_MAY_OVERFLOW: Final = (re.compile(r"[eE]\+?[0-9]{3}"), re.compile(r"[0-9]{309}"))
"""What a number has that is too large for a float. As alternatives of one pattern they are slow."""
NO_RESULT: Final = -1
"""The `result_bytes` of a task without a result."""


class ResultKind(enum.StrEnum):
    """The form of a result; the values are its names on the wire."""

    JSON = "result"
    BYTES = "result_base64"
    CHECKPOINT = "result_checkpoint"
    """Data that the worker has saved: the result is the key of that checkpoint."""


RESULT_KEYS: Final = tuple(kind.value for kind in ResultKind)


class ResultError(ValueError):
    """The result of a task is malformed or too large; the text says what to do."""


class TaskResult(NamedTuple):
    """A task's result: JSON text, bytes, or the key of a checkpoint."""

    kind: ResultKind
    data: bytes

    @property
    def shown(self) -> tuple[str, str]:
        """The entry of a TaskInfo's metadata that has this result."""
        if self.kind is ResultKind.BYTES:
            return f"_{self.kind}", base64.b64encode(self.data).decode()
        return f"_{self.kind}", self.data.decode()


def read_result(fields: Mapping[str, str]) -> TaskResult | None:
    """Return the result that a COMPLETE carries, None without one. Raises ResultError."""
    given = [kind for kind in ResultKind if kind.value in fields]
    if not given:
        return None
    if len(given) > 1:
        raise ResultError(f"a task has one result: give {given[0]} or {given[1]}, not both")
    return _checked(given[0], fields[given[0]])


def reported_result(metadata: Mapping[str, str]) -> TaskResult | None:
    """Return the result in a progress report's metadata. Raises ResultError.

    `result` may be any text there: text that is not JSON is a JSON string.
    """
    if ResultKind.JSON.value in metadata and not _is_json(text := metadata[ResultKind.JSON]):
        metadata = {**metadata, ResultKind.JSON.value: json.dumps(text)}
    return read_result(metadata)


def _checked(kind: ResultKind, text: str) -> TaskResult:
    match kind:
        case ResultKind.JSON:
            data = _bounded(text.encode())
            try:
                value = _parsed(text)
            except (ValueError, RecursionError):
                raise ResultError("the result is not JSON text; give bytes as result_base64") from None
            if text.count("[") + text.count("{") > MAX_DEPTH and is_too_deep(value):
                raise ResultError(f"the result is nested deeper than {MAX_DEPTH}; give it as result_base64")
        case ResultKind.BYTES:
            _bounded_size(len(text) // 4 * 3 - 2)
            try:
                data = _bounded(base64.b64decode(text, validate=True))
            except (binascii.Error, ValueError) as error:
                if isinstance(error, ResultError):
                    raise
                raise ResultError(f"result_base64 is not base64: {error}") from None
        case _:
            data = text.encode()
            if not data or len(data) > MAX_KEY_BYTES or b"\0" in data:
                raise ResultError(f"result_checkpoint is the key of a checkpoint, of 1 to {MAX_KEY_BYTES} bytes")
    return TaskResult(kind, data)


def _bounded(data: bytes) -> bytes:
    _bounded_size(len(data))
    return data


def _bounded_size(size: int) -> None:
    if size > MAX_RESULT_BYTES:
        raise ResultError(
            f"the result has {size} bytes; at most {MAX_RESULT_BYTES} are allowed: "
            "save a larger one as a checkpoint, and give its key as result_checkpoint"
        )


def is_too_deep(value: object) -> bool:
    """Return whether a JSON value is nested deeper than MAX_DEPTH."""
    level: list[Any] = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(MAX_DEPTH):
        level = [
            part
            for one in level
            for part in (one.values() if isinstance(one, dict) else one)
            if isinstance(part, _CONTAINERS)
        ]
        if not level:
            return False
    return True


def _is_json(text: str) -> bool:
    try:
        _parsed(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(text: str) -> object:
    """Parse JSON. Raises ValueError, also for a number that no reader can hold."""
    found: object = json.loads(
        text,
        parse_constant=_refuse,
        parse_float=_finite if any(pattern.search(text) for pattern in _MAY_OVERFLOW) else None,
    )
    return found


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
