"""The errors: their spelling and their retryable flags."""

from __future__ import annotations

import pytest

from aether_trio.model.errors import RETRYABLE, Code, RequestError, Status, StatusError

# The reference's table of ErrorResponse codes (core.md section 11): code, retryable.
ON_THE_STREAM = [
    ("ERR_INVALID_TOPIC", False),
    ("ERR_SV_UNAVAILABLE", True),
    ("ERR_PAYLOAD_TOO_LARGE", False),
    ("ERR_RATE_LIMITED", True),
    ("ERR_WORKSPACE_RATE_LIMITED", True),
    ("ERR_QUOTA_001", True),
    ("ERR_PERMISSION_DENIED", False),
    ("ERR_METRIC_INVALID", False),
    ("ERR_METRIC_EMPTY", False),
    ("ERR_METRIC_INVALID_ENTRY", False),
    ("ERR_METRIC_NEGATIVE_FORBIDDEN", False),
    ("ERR_CIRCUIT_OPEN", True),
    ("ERR_PUBLISH_FAILED", True),
    ("ERR_INVALID_PRINCIPAL", False),
    ("ERR_WORKSPACE_SWITCH_FAILED", False),
    ("ERR_NOT_IMPLEMENTED", False),
    ("ERR_INVALID_IDENTIFIER", False),
    ("ERR_TASKS_NOT_ENABLED", False),
    ("ERR_INVALID_ARGUMENT", False),
    ("ERR_INTERNAL", False),
    ("ERR_TASK_CREATE_FAILED", False),
    ("TASK_PAYLOAD_TOO_LARGE", False),
    ("KV_ERROR", False),
    ("BACKPRESSURE", False),
]
# Codes that travel elsewhere: a status text, or a field of a typed response. None of them invites a
# retry.
ELSEWHERE = {
    "ERR_EXTENSION_UNSUPPORTED",
    "ERR_PREFIX_CONFLICT",
    "ERR_AUDIT_TYPE_FORBIDDEN",
    "ERR_AUDIT_RATE_LIMITED",
    "ERR_AUDIT_DISABLED",
}


@pytest.mark.parametrize(("code", "retryable"), ON_THE_STREAM)
def test_retryable_as_the_reference(code: str, retryable: bool) -> None:
    error = RequestError(Code(code), "why")
    assert error.retryable is retryable
    assert (Code(code) in RETRYABLE) is retryable
    assert str(error) == f"{code}: why"
    assert (error.code, error.message, error.retry_after_ms) == (code, "why", 0)


def test_the_reference_codes_are_all_there() -> None:
    assert {code for code, _ in ON_THE_STREAM} <= {code.value for code in Code}
    assert {code.value for code in Code} >= ELSEWHERE
    assert {code.value for code in RETRYABLE} == {code for code, retryable in ON_THE_STREAM if retryable}


def test_a_refusal_may_say_otherwise() -> None:
    quota = RequestError(Code.QUOTA, "the value is too large", retryable=False)
    assert not quota.retryable
    limited = RequestError(Code.RATE_LIMITED, "slow down", retry_after_ms=10)
    assert (limited.retryable, limited.retry_after_ms) == (True, 10)


def test_a_stream_never_ends_with_ok_as_an_error() -> None:
    assert StatusError(Status.ALREADY_EXISTS, "held").status.value == 6
    with pytest.raises(AssertionError):
        StatusError(Status.OK, "fine")
