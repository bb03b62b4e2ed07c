"""Errors that a client can see: gRPC statuses, and codes of refused requests.

`StatusError` ends a stream with a gRPC status (refused handshakes, evictions, drains).
`RequestError` is answered inside a live stream as an ErrorResponse or a typed failure. The codes,
their spelling and their retryable flags are the protocol's (reference: core.md section 11); some
lack the ERR_ prefix and must stay so.
"""

from __future__ import annotations

import enum
from typing import Final


class Status(enum.IntEnum):
    """The gRPC status codes (grpc/doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Code(enum.StrEnum):
    """The values of ErrorResponse.code, each usable as the wire string."""

    INVALID_TOPIC = "ERR_INVALID_TOPIC"
    SV_UNAVAILABLE = "ERR_SV_UNAVAILABLE"
    PAYLOAD_TOO_LARGE = "ERR_PAYLOAD_TOO_LARGE"
    RATE_LIMITED = "ERR_RATE_LIMITED"
    WORKSPACE_RATE_LIMITED = "ERR_WORKSPACE_RATE_LIMITED"
    QUOTA = "ERR_QUOTA_001"
    PERMISSION_DENIED = "ERR_PERMISSION_DENIED"
    METRIC_INVALID = "ERR_METRIC_INVALID"
    METRIC_EMPTY = "ERR_METRIC_EMPTY"
    METRIC_INVALID_ENTRY = "ERR_METRIC_INVALID_ENTRY"
    METRIC_NEGATIVE_FORBIDDEN = "ERR_METRIC_NEGATIVE_FORBIDDEN"
    CIRCUIT_OPEN = "ERR_CIRCUIT_OPEN"
    PUBLISH_FAILED = "ERR_PUBLISH_FAILED"
    INVALID_PRINCIPAL = "ERR_INVALID_PRINCIPAL"
    WORKSPACE_SWITCH_FAILED = "ERR_WORKSPACE_SWITCH_FAILED"
    NOT_IMPLEMENTED = "ERR_NOT_IMPLEMENTED"
    INVALID_IDENTIFIER = "ERR_INVALID_IDENTIFIER"
    TASKS_NOT_ENABLED = "ERR_TASKS_NOT_ENABLED"
    INVALID_ARGUMENT = "ERR_INVALID_ARGUMENT"
    INTERNAL = "ERR_INTERNAL"
    TASK_CREATE_FAILED = "ERR_TASK_CREATE_FAILED"
    TASK_PAYLOAD_TOO_LARGE = "TASK_PAYLOAD_TOO_LARGE"
    KV_ERROR = "KV_ERROR"
    BACKPRESSURE = "BACKPRESSURE"
    EXTENSION_UNSUPPORTED = "ERR_EXTENSION_UNSUPPORTED"
    PREFIX_CONFLICT = "ERR_PREFIX_CONFLICT"
    AUDIT_TYPE_FORBIDDEN = "ERR_AUDIT_TYPE_FORBIDDEN"
    AUDIT_RATE_LIMITED = "ERR_AUDIT_RATE_LIMITED"
    AUDIT_DISABLED = "ERR_AUDIT_DISABLED"
    SEQUENCE_FORGOTTEN = "ERR_SEQUENCE_FORGOTTEN"  # this project's, for numbered sends
    OUTCOME_UNKNOWN = "ERR_OUTCOME_UNKNOWN"
    """This project's: done or not, the gateway cannot find out. Never retryable."""


RETRYABLE: Final[frozenset[Code]] = frozenset(
    {
        Code.SV_UNAVAILABLE,
        Code.RATE_LIMITED,
        Code.WORKSPACE_RATE_LIMITED,
        Code.QUOTA,
        Code.CIRCUIT_OPEN,
        Code.PUBLISH_FAILED,
    }
)

RETRYABLE_STATUSES: Final = frozenset(
    {
        Status.UNAVAILABLE,
        Status.RESOURCE_EXHAUSTED,
        Status.DEADLINE_EXCEEDED,
        Status.ABORTED,
        Status.INTERNAL,
        Status.UNKNOWN,
    }
)
"""Statuses after which a client reconnects."""


class RequestError(Exception):
    """A request or message that is refused within a live stream, with its Code.

    `retryable` follows RETRYABLE unless it is given (a KV quota is final).
    """

    def __init__(self, code: Code, message: str, *, retryable: bool | None = None, retry_after_ms: int = 0) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = code in RETRYABLE if retryable is None else retryable
        self.retry_after_ms = retry_after_ms


class StatusError(Exception):
    """The end of a client's stream with a gRPC status other than OK."""

    def __init__(self, status: Status, message: str) -> None:
        assert status is not Status.OK
        super().__init__(f"{status.name}: {message}")
        self.status = status
        self.message = message
