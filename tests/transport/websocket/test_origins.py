from __future__ import annotations

import pytest

from aether_trio.transport.websocket.origins import OriginPolicy

LISTED = ("https://app.example.com", "http://localhost:*", "http://[::1]:*", " https://Slash.example.com/ ")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),  # not a page
        ("https://app.example.com", True),
        ("HTTPS://APP.EXAMPLE.COM", True),
        ("https://slash.example.com", True),
        ("http://app.example.com", False),
        ("https://app.example.com:8443", False),
        ("https://app.example.com.evil.test", False),
        ("https://evil.test/https://app.example.com", False),
        ("https://evil.test#https://app.example.com", False),
        ("https://app.example.com@evil.test", False),
        ("http://localhost:3000", True),
        ("http://localhost", True),
        ("http://[::1]:3000", True),
        ("https://localhost:3000", False),
        ("http://localhost.evil.test:3000", False),
        ("http://localhost:3000.evil.test", False),
        ("http://localhost:30x", False),
        ("null", False),
        ("", False),
        ("http://", False),
        ("http://[", False),
        ("chrome-extension://abcdef", False),
        ("file://", False),
    ],
)
def test_listed_origins(origin: str | None, allowed: bool) -> None:
    policy = OriginPolicy(LISTED)
    assert policy.allows(origin, "gateway.example.com", secure=True, loopback=False) is allowed


@pytest.mark.parametrize(
    ("origin", "host", "secure", "loopback", "allowed"),
    [
        ("https://gw.example.com", "gw.example.com", True, False, True),
        ("https://gw.example.com:8443", "gw.example.com:8443", True, False, True),
        ("https://GW.example.com", "gw.EXAMPLE.com", True, False, True),
        ("https://gw.example.com:8443", "gw.example.com", True, False, False),
        # A page that came without TLS.
        ("http://gw.example.com", "gw.example.com", True, False, False),
        ("https://evil.test", "gw.example.com", True, False, False),
        ("http://gw.lan:50051", "gw.lan:50051", False, False, True),
        ("http://127.0.0.1:50051", "127.0.0.1:50051", False, True, True),
        ("http://[::1]:50051", "[::1]:50051", False, True, True),
        ("http://localhost:50051", "localhost:50051", False, True, True),
        ("http://demo.localhost:50051", "demo.localhost:50051", False, True, True),
        ("http://rebound.evil.test:50051", "rebound.evil.test:50051", False, True, False),
        # Has our certificate.
        ("https://rebound.evil.test:50051", "rebound.evil.test:50051", True, True, True),
        ("http://127.0.0.1:50051", "", False, True, False),
    ],
)
def test_the_gateways_own_origin(origin: str, host: str, secure: bool, loopback: bool, allowed: bool) -> None:
    assert OriginPolicy(()).allows(origin, host, secure=secure, loopback=loopback) is allowed


@pytest.mark.parametrize("origin", ["https://evil.test", "null", "chrome-extension://abcdef"])
def test_a_star_is_any_page(origin: str) -> None:
    assert OriginPolicy(["*"]).allows(origin, "x", secure=False, loopback=True)
