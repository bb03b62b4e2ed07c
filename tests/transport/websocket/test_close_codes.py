from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.errors import Status
from aether_trio.transport.websocket.close_codes import REASON_BYTES, close_code, close_reason

CODES = {
    Status.OK: 1000,
    Status.CANCELLED: 4201,
    Status.UNKNOWN: 4102,
    Status.INVALID_ARGUMENT: 4203,
    Status.DEADLINE_EXCEEDED: 4104,
    Status.NOT_FOUND: 4205,
    Status.ALREADY_EXISTS: 4206,
    Status.PERMISSION_DENIED: 4207,
    Status.RESOURCE_EXHAUSTED: 4108,
    Status.FAILED_PRECONDITION: 4209,
    Status.ABORTED: 4110,
    Status.OUT_OF_RANGE: 4211,
    Status.UNIMPLEMENTED: 4212,
    Status.INTERNAL: 4113,
    Status.UNAVAILABLE: 4114,
    Status.DATA_LOSS: 4215,
    Status.UNAUTHENTICATED: 4216,
}


@pytest.mark.parametrize("status", Status)
def test_the_code_of_each_status(status: Status) -> None:
    assert close_code(status) == CODES[status]


@given(st.text(max_size=200))
def test_a_reason_is_the_beginning_of_its_text(text: str) -> None:
    reason = close_reason(text)
    assert len(reason.encode()) <= REASON_BYTES
    assert text.startswith(reason) or "?" in reason  # a lone surrogate becomes a question mark
    if len(text.encode("utf-8", "replace")) <= REASON_BYTES:
        assert len(reason) == len(text)
