"""A plain request is read as h11 reads it, and what h11 refuses is not plain."""

from __future__ import annotations

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from aether_trio.transport.http1.connection import BadRequest, Http1Connection, Http1Limits, Request
from aether_trio.transport.http1.plain_request import plain_request
from fuzz.http1 import Stream

BROWSER = (
    b"GET /v1/connect HTTP/1.1\r\nHost: localhost:50051\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n"
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Origin: http://localhost:50051\r\nSec-WebSocket-Protocol: aether.v1.json\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
LIMITS = Http1Limits(max_head_bytes=600, max_head_lines=12, max_body_bytes=100)

names = st.sampled_from(
    [b"Host", b"host", b"X-A", b"X-B", b"Upgrade", b"Connection", b"Content-Length", b"Transfer-Encoding", b"Expect"]
) | st.binary(max_size=4)
values = st.sampled_from([b"x", b"a b", b"0", b"7", b"chunked", b"close", b"100-continue", b"x" * 300]) | st.text(
    st.sampled_from("ab ,\t:\r\n\x00\x01\x7f\x80\xff"), max_size=6
).map(lambda text: text.encode("latin-1"))
separators = st.sampled_from([b": ", b":", b":  ", b" : ", b":\t"])
ends = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b" \r\n", b"\r\n "])
lines = st.tuples(names, separators, values, ends).map(b"".join)
plain_lines = st.tuples(
    st.sampled_from([b"Host", b"X-A", b"x-c", b"Upgrade"]),
    st.just(b": "),
    st.sampled_from([b"x", b"a b"]),
    st.just(b"\r\n"),
).map(b"".join)
first_lines = st.sampled_from(
    [
        *[b"GET / HTTP/1.1\r\n"] * 5, b"GET /a?b HTTP/1.1\r\n", b"GET  / HTTP/1.1\r\n", b"GET / HTTP/1.0\r\n",
        b"HEAD / HTTP/1.1\r\n", b"\r\nGET / HTTP/1.1\r\n", b"GET /\xff HTTP/1.1\r\n", b"GET / HTTP/1.1\n",
    ]
)  # fmt: skip
heads = st.tuples(
    first_lines, st.lists(plain_lines | lines, max_size=14).map(b"".join), st.sampled_from([b"\r\n", b"\n", b""]),
    st.sampled_from([b"", b"\x81\x85abcdhello", b"GET / HTTP/1.1\r\n\r\n"]),
).map(b"".join)  # fmt: skip


async def by_h11(data: bytes) -> tuple[Request, bytes] | None:
    http = Http1Connection(Stream(iter([data])), LIMITS)
    try:
        request = await http.next_request()
    except BadRequest:
        return None
    return None if request is None else (request, http.leftover())


@given(heads)
@example(BROWSER)
@example(BROWSER + b"behind it")
@example(BROWSER.replace(b"Origin", b"O" * 300))
def test_what_is_plain_is_what_h11_makes_of_it(data: bytes) -> None:
    found = plain_request(data, LIMITS)
    if found is not None:
        assert found == trio.run(by_h11, data)


def test_the_request_of_a_browser_is_plain() -> None:
    found = plain_request(BROWSER + b"\x81", LIMITS)
    assert found is not None
    request, rest = found
    assert (request.path, request.headers["upgrade"], rest) == ("/v1/connect", "websocket", b"\x81")


@pytest.mark.parametrize(
    "changed",
    [
        BROWSER[:-2],
        BROWSER.replace(b"Host: localhost:50051\r\n", b""),
        BROWSER.replace(b"Upgrade: websocket", b"Upgrade: websocket\r\nUpgrade: h2c"),
        BROWSER.replace(b"Origin: ", b"Origin:"),
        BROWSER.replace(b"Mozilla", b"\xc3\xa4"),
        BROWSER.replace(b"Origin: http://localhost:50051", b"Content-Length: 0"),
        BROWSER.replace(b"\r\nOrigin", b"".join(b"\r\nX-%d: y" % number for number in range(10)) + b"\r\nOrigin"),
        BROWSER.replace(b"Mozilla", b"M" * 600),
    ],
)
def test_what_is_unusual_is_left_to_h11(changed: bytes) -> None:
    assert plain_request(changed, LIMITS) is None
