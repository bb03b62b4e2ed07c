"""Encodes the results of tasks for COMPLETE (docs/wire.md)."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from aether_trio.client.errors import PayloadTooLarge
from aether_trio.model.tasks.result import MAX_DEPTH, is_too_deep

MAX_RESULT_BYTES: Final = 512 * 1024


class EncodedResult(NamedTuple):
    """A result as COMPLETE carries it in `wait_spec.input_match`; empty for none."""

    fields: Mapping[str, str]


def encoded_result(value: Any, checkpoint: str = "") -> EncodedResult:
    """Encode a result: bytes, what JSON can hold, or the key of a checkpoint.

    Raises TypeError for another value, PayloadTooLarge beyond 512 KiB.
    """
    if isinstance(value, EncodedResult):
        return value
    if checkpoint:
        if value is not None:
            raise TypeError("a task has one result: give `result` or `result_checkpoint`, not both")
        return EncodedResult({"result_checkpoint": checkpoint})
    if value is None:
        return EncodedResult({})
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        _check_size(len(data))
        return EncodedResult({"result_base64": base64.b64encode(data).decode()})
    text = json_text(value, "the result of a task")
    if is_too_deep(value):
        raise TypeError(f"the result of a task is bytes, or what JSON can hold; nested deeper than {MAX_DEPTH}")
    _check_size(len(text.encode()))
    return EncodedResult({"result": text})


def json_text(value: Any, what: str) -> str:
    """Encode a value as JSON. Raises TypeError with what it may be."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{what} is bytes, or what JSON can hold; {type(value).__name__}: {error}") from None
    return text


def _check_size(size: int) -> None:
    if size > MAX_RESULT_BYTES:
        raise PayloadTooLarge(
            "RESULT_TOO_LARGE",
            f"the result has {size} bytes; at most {MAX_RESULT_BYTES} are allowed: save a larger one with "
            "`await task.save(...)`, and complete with `result_checkpoint=task.saved_key`",
        )
