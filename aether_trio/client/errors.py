"""The exceptions that the Python client raises.

The gateway's code chooses the class of a refusal (REFUSALS), its gRPC status that of the end of a
connection (ENDINGS). The client itself raises TlsRefused and the classes below it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from aether_trio.model.errors import RETRYABLE, Code, Status
from aether_trio.wire.framing import ErrorCode, Nack
from aether_trio.wire.pb import aether_pb2 as pb


class AetherError(Exception):
    """Base class of all exceptions of the client.

    `code` is the protocol's spelling ("ERR_RATE_LIMITED"), the name of a gRPC status, or a word of
    the client; `message` the reason for people. `retryable`: the same may work later without being
    changed. `retry_after_s`: how long to wait before, 0 when that is unknown.
    """

    request_id: str = ""
    """The id of the refused message, for refusals in the feed `errors`."""

    def __init__(self, code: str, message: str, *, retryable: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class Refused(AetherError):
    """The gateway refused the request for a reason that only `code` tells."""


class PermissionDenied(AetherError):
    """This participant is not permitted to do what it asked for."""


class Unauthenticated(AetherError):
    """The credential of the client is missing, unknown, expired or revoked."""


class NotFound(AetherError):
    """What the request names does not exist, or this participant may not see it."""


class AlreadyExists(AetherError):
    """What the request would create exists already under that name."""


class DuplicateIdentity(AlreadyExists):
    """Another client is connected with this identity."""


class InvalidArgument(AetherError):
    """The message, topic, identity or request is invalid for every sender."""


class PayloadTooLarge(InvalidArgument):
    """The payload or message is longer than the gateway or transport allows."""


class FailedPrecondition(AetherError):
    """The request does not fit the state: an unsupported extension, an ended task."""


class RateLimited(AetherError):
    """A rate limit or quota was exceeded; `retry_after_s` says when to try again."""


class Unavailable(AetherError):
    """The gateway, or the service behind it, is not available now."""


class OutcomeUnknown(AetherError):
    """The operation may have been done or not: look before you try it again."""


class NotImplementedByGateway(AetherError):
    """This gateway does not implement the operation."""


class InternalGatewayError(AetherError):
    """The gateway failed by a defect; its log says more."""


class ProtocolViolation(AetherError):
    """One side broke the rules of the transport, or the peer is no gateway."""


class SessionEnded(AetherError):
    """The gateway has ended this session for good: the client does not reconnect."""


class TlsRefused(AetherError):
    """The TLS handshake with the gateway failed, as for an untrusted certificate."""

    def __init__(self, message: str) -> None:
        super().__init__("TLS_REFUSED", message)


class ClientCertificateRefused(TlsRefused):
    """The gateway wants a client certificate, or does not accept the one it was shown."""


class ConnectionLost(AetherError):
    """The connection was cut; `in_doubt`: the message or request may have been done."""

    def __init__(self, message: str, *, in_doubt: bool) -> None:
        super().__init__("CONNECTION_LOST", message, retryable=True)
        self.in_doubt = in_doubt


class RequestTimeout(AetherError, TimeoutError):
    """No answer came within the time limit; the request may have been carried out."""

    def __init__(self, message: str) -> None:
        super().__init__("TIMEOUT", message, retryable=True)


MAYBE_DONE: Final = (ConnectionLost, RequestTimeout, OutcomeUnknown)
"""What leaves open whether a request was carried out."""


def may_ask_again(error: AetherError) -> bool:
    """Return whether an error is no refusal, for requests that do nothing twice."""
    return error.retryable or isinstance(error, OutcomeUnknown)


class ClientClosed(AetherError):
    """The client is not connected: it works inside of its `async with` block."""

    def __init__(self, message: str = "the client is closed; use it inside of its `async with` block") -> None:
        super().__init__("CLIENT_CLOSED", message)


class UnexpectedAnswer(AetherError):
    """The gateway's answer does not fit the request."""

    def __init__(self, message: str) -> None:
        super().__init__("UNEXPECTED_ANSWER", message)


class FeedOverflow(AetherError):
    """A feed that must lose nothing was read too late, and has lost an item."""

    def __init__(self, message: str) -> None:
        super().__init__("FEED_OVERFLOW", message)


class MessagesAbandoned(AetherError):
    """The program's failed tasks hold all messages that the credit allows: reconnect."""

    def __init__(self, count: int) -> None:
        text = f"{count} messages were taken by tasks that have failed, and no more may be delivered before they are handled"
        super().__init__("MESSAGES_ABANDONED", text)


class TaskNotEnded(TimeoutError):
    """A task has not ended within the timeout of its caller; it goes on.

    `task_id` is "" as long as no answer has said that the task is created.
    """

    def __init__(self, task_id: str, what: str, timeout: float) -> None:
        super().__init__(f"{what} has not ended within {timeout:g} s; it goes on")
        self.task_id = task_id


class TaskFailed(AetherError):
    """A task whose result was wanted has failed, or was cancelled or rejected.

    `task` is the ended task (a Task), with its error, outcome and number of attempts.
    """

    def __init__(self, task_id: str, end: str, reason: str, task: object) -> None:
        super().__init__("TASK_FAILED", f"task {task_id} {end}" + (f": {reason}" if reason else ""))
        self.task_id = task_id
        self.reason = reason
        self.task = task


class AddressError(AetherError, ValueError):
    """The gateway address is invalid, or does not fit the client's other arguments."""

    def __init__(self, message: str) -> None:
        super().__init__("BAD_ADDRESS", message)


REFUSALS: Final[Mapping[str, type[AetherError]]] = MappingProxyType(
    {
        Code.INVALID_TOPIC: InvalidArgument,
        Code.SV_UNAVAILABLE: Unavailable,
        Code.PAYLOAD_TOO_LARGE: PayloadTooLarge,
        Code.RATE_LIMITED: RateLimited,
        Code.WORKSPACE_RATE_LIMITED: RateLimited,
        Code.QUOTA: RateLimited,
        Code.PERMISSION_DENIED: PermissionDenied,
        Code.METRIC_INVALID: InvalidArgument,
        Code.METRIC_EMPTY: InvalidArgument,
        Code.METRIC_INVALID_ENTRY: InvalidArgument,
        Code.METRIC_NEGATIVE_FORBIDDEN: PermissionDenied,
        Code.CIRCUIT_OPEN: Unavailable,
        Code.PUBLISH_FAILED: Unavailable,
        Code.INVALID_PRINCIPAL: PermissionDenied,
        Code.NOT_IMPLEMENTED: NotImplementedByGateway,
        Code.INVALID_IDENTIFIER: InvalidArgument,
        Code.TASKS_NOT_ENABLED: NotImplementedByGateway,
        Code.INVALID_ARGUMENT: InvalidArgument,
        Code.INTERNAL: InternalGatewayError,
        Code.OUTCOME_UNKNOWN: OutcomeUnknown,
        Code.TASK_PAYLOAD_TOO_LARGE: PayloadTooLarge,
        Code.PREFIX_CONFLICT: AlreadyExists,
        Code.AUDIT_TYPE_FORBIDDEN: PermissionDenied,
        Code.AUDIT_RATE_LIMITED: RateLimited,
        Code.AUDIT_DISABLED: NotImplementedByGateway,
    }
)
"""Classes by the code of a refusal; others are Refused, or what _BY_WORD finds."""

_BY_WORD: Final[tuple[tuple[str, type[AetherError]], ...]] = (
    ("PERMISSION_DENIED", PermissionDenied),
    ("UNAUTHENTICATED", Unauthenticated),
    ("NOT_FOUND", NotFound),
    ("ALREADY_EXISTS", AlreadyExists),
    ("INVALID_ARGUMENT", InvalidArgument),
    ("TOO_LARGE", PayloadTooLarge),
    ("RATE_LIMITED", RateLimited),
    ("UNAVAILABLE", Unavailable),
    ("NOT_IMPLEMENTED", NotImplementedByGateway),
)

ENDINGS: Final[Mapping[Status, type[AetherError]]] = MappingProxyType(
    {
        Status.CANCELLED: SessionEnded,
        Status.INVALID_ARGUMENT: InvalidArgument,
        Status.DEADLINE_EXCEEDED: Unavailable,
        Status.NOT_FOUND: NotFound,
        Status.ALREADY_EXISTS: DuplicateIdentity,
        Status.PERMISSION_DENIED: PermissionDenied,
        Status.RESOURCE_EXHAUSTED: RateLimited,
        Status.FAILED_PRECONDITION: FailedPrecondition,
        Status.ABORTED: Unavailable,
        Status.UNIMPLEMENTED: NotImplementedByGateway,
        Status.INTERNAL: InternalGatewayError,
        Status.UNKNOWN: InternalGatewayError,
        Status.UNAVAILABLE: Unavailable,
        Status.UNAUTHENTICATED: Unauthenticated,
    }
)
"""Classes by the status that ends a connection. Others are SessionEnded."""

_CODED_TEXT: Final = re.compile(r"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+):\s*(.*)", re.DOTALL)


def from_code(code: str, message: str, *, retryable: bool = False, retry_after_ms: int = 0) -> AetherError:
    """Make the exception for an error code of the protocol, such as ERR_QUOTA."""
    kind = REFUSALS.get(code)
    if kind is RateLimited and not retryable:
        kind = PayloadTooLarge  # a quota of bytes: waiting does not make it fit
    if kind is None:
        kind = next((kind for word, kind in _BY_WORD if word in code), Refused)
    return kind(code, message, retryable=retryable, retry_after_s=retry_after_ms / 1000)


def from_response(refusal: pb.ErrorResponse | Nack) -> AetherError:
    """Make the exception for an ErrorResponse or a NACK frame."""
    after_ms = refusal.retry_after_ms
    return from_code(refusal.code, refusal.message, retryable=refusal.retryable, retry_after_ms=after_ms)


def from_text(text: str, default_code: str) -> AetherError:
    """Make the exception for the error text of an answer, such as "ERR_QUOTA: ..."."""
    if found := _CODED_TEXT.fullmatch(text):
        code, message = found.groups()
    else:
        code, message = default_code, text
    return from_code(code, message, retryable=code in RETRYABLE)


def from_status(number: int, message: str, *, retryable: bool, retry_after_ms: int = 0) -> AetherError:
    """Make the exception for an ERROR frame's code: a gRPC status, or a framing error."""
    after = retry_after_ms / 1000
    if number >= min(ErrorCode):
        name = ErrorCode(number).name if number in set(ErrorCode) else f"FRAMING_{number:#x}"
        return ProtocolViolation(name, message, retryable=retryable, retry_after_s=after)
    if number not in set(Status):
        return SessionEnded(f"STATUS_{number}", message, retryable=retryable, retry_after_s=after)
    status = Status(number)
    kind = ENDINGS.get(status, SessionEnded)
    return kind(status.name, message, retryable=retryable, retry_after_s=after)
