"""Test the lines about failed TLS: their reasons, and that they are bounded."""

from __future__ import annotations

import logging
import socket
import ssl

import pytest

from aether_trio.transport.socket.tls_failures import LINES_PER_MINUTE, TlsFailures, handshake_problem


def test_lines_in_a_minute_are_bounded_and_the_others_counted(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    failures = TlsFailures(lambda: now_s)
    ours, theirs = socket.socketpair()
    with ours, theirs, caplog.at_level(logging.WARNING):
        for _ in range(LINES_PER_MINUTE + 5):
            failures.tell(ours, "it is too late")
        assert len(caplog.messages) == LINES_PER_MINUTE
        assert caplog.messages[0].endswith("failed: it is too late")
        caplog.clear()
        now_s = 61.0
        failures.tell(ours, "again")
    assert caplog.messages[0] == "TLS with 5 more clients failed"
    assert caplog.messages[1].endswith("failed: again")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ssl.SSLError(1, "[SSL: HTTP_REQUEST] http request (_ssl.c:1)"), "http request"),
        (ConnectionResetError("reset"), "does not trust the gateway's certificate"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_other_reasons_are_said_as_they_are(error: OSError, text: str) -> None:
    assert text in handshake_problem(error)
