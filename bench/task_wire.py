"""The messages about tasks that the load needs, laid by hand as those in wire.py.

Field numbers are those of reference `aether.v1`: CreateTaskRequest and TaskOperation upstream,
TaskAssignment, TaskOperationResponse and CreateTaskResponse downstream.
"""

from __future__ import annotations

from typing import Final

from bench.wire import BYTES, bytes_field, fields, number_field, read_varint

ASSIGNMENT, TASK_OP, CREATED = 6 << 3 | BYTES, 12 << 3 | BYTES, 0xB2
"""First bytes of a DownstreamMessage, as in wire.py; CREATED is the first one of its tag's two."""

CLAIM, COMPLETE = 8, 2
_TARGETED: Final = 1
_POOL: Final = 2


def create_prefix(task_type: str, pool: str) -> bytes:
    """Fields of a CreateTaskRequest for a pool that all tasks share."""
    return bytes_field(1, task_type) + number_field(3, _POOL) + bytes_field(8, pool)


def create_targeted_prefix(task_type: str, target: str) -> bytes:
    """Fields of a CreateTaskRequest for one participant that all tasks share."""
    return bytes_field(1, task_type) + number_field(3, _TARGETED) + bytes_field(4, target)


def parent_field(task_id: bytes) -> bytes:
    """The field of a CreateTaskRequest that makes a task a child."""
    return bytes_field(20, task_id)


def create(prefix: bytes, payload: bytes, request_id: str) -> bytes:
    """Encode a CreateTaskRequest from a prefix."""
    return bytes_field(5, prefix + bytes_field(7, payload) + bytes_field(10, request_id))


def move(kind: int, task_id: bytes) -> bytes:
    """Encode CLAIM or COMPLETE; the task's id is the request's."""
    return bytes_field(10, number_field(1, kind) + bytes_field(2, task_id) + bytes_field(4, task_id))


def inside(message: bytes) -> tuple[int, int]:
    _, at = read_varint(message, 0)
    size, at = read_varint(message, at)
    return at, at + size


def read_assignment(message: bytes) -> tuple[bytes, bytes]:
    task_id = payload = b""
    for number, start, stop in fields(message, *inside(message)):
        if number == 1:
            task_id = message[start:stop]
        elif number == 11:
            payload = message[start:stop]
    return task_id, payload


def read_moved(message: bytes) -> tuple[bytes, str]:
    """Read (request id, error or "") of a TaskOperationResponse."""
    success, error, request_id = False, "", b""
    for number, start, stop in fields(message, *inside(message)):
        if number == 1:
            success = bool(start)
        elif number == 3:
            error = message[start:stop].decode()
        elif number == 5:
            request_id = message[start:stop]
    return request_id, "" if success else error or "refused"


def read_created(message: bytes) -> tuple[str, bytes, str]:
    """Read (request id, task id, error or "") of a CreateTaskResponse."""
    success, error, request_id, task_id = False, "", "", b""
    for number, start, stop in fields(message, *inside(message)):
        if number == 1:
            success = bool(start)
        elif number == 2:
            task_id = message[start:stop]
        elif number == 5:
            error = message[start:stop].decode()
        elif number == 6:
            request_id = message[start:stop].decode()
    return request_id, task_id, "" if success else error or "refused"


def worker_tasks(count: int) -> bytes:
    """Encode the extension with which a worker bounds its live tasks."""
    return bytes_field(12, bytes_field(1, "urn:aether-trio:worker-tasks") + bytes_field(2, str(count)))
