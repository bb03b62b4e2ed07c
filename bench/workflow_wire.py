"""The messages about workflows that the load needs, laid by hand.

Field numbers are those of reference `aether.v1`: WorkflowOperation upstream, WorkflowResponse
downstream. The numbers of operations from 100 are this project's (docs/wire.md).
"""

from __future__ import annotations

from typing import Final

from bench.task_wire import COMPLETE, inside
from bench.wire import bytes_field, fields, number_field

ANSWER: Final = 0x8A
"""The first byte of a WorkflowResponse as a DownstreamMessage."""
RUN: Final = 100


def run_prefix(workflow: str) -> bytes:
    """Fields of the operation that starts an execution, which all starts share."""
    return number_field(1, RUN) + bytes_field(2, workflow)


def run(prefix: bytes, data: bytes, request_id: str) -> bytes:
    """Encode the operation that starts an execution with JSON data."""
    return bytes_field(15, prefix + bytes_field(5, data) + bytes_field(6, request_id))


def complete(task_id: bytes, result: bytes) -> bytes:
    """Encode COMPLETE with a JSON result; the task's id is the request's."""
    spec = bytes_field(5, bytes_field(3, bytes_field(1, "result") + bytes_field(2, result)))
    return bytes_field(10, number_field(1, COMPLETE) + bytes_field(2, task_id) + bytes_field(4, task_id) + spec)


def read_answer(message: bytes) -> tuple[str, str]:
    """Read (request id, error or "") of a WorkflowResponse."""
    success, error, request_id = False, "", ""
    for number, start, stop in fields(message, *inside(message)):
        if number == 1:
            success = bool(start)
        elif number == 2:
            error = message[start:stop].decode()
        elif number == 6:
            request_id = message[start:stop].decode()
    return request_id, "" if success else error or "refused"
