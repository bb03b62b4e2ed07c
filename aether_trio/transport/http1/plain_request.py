"""Reads the head of a plain request without h11, as the Request h11 makes of it.

For upgrades, of which a gateway may get thousands a second. Plain is a GET of HTTP/1.1 that came
whole, with a Host, a space behind each colon, printable ASCII in its values, no field twice, and no
field that announces a body. Everything else is h11's, and so is the answer to what is refused.
"""

from __future__ import annotations

import re
from typing import Final

from aether_trio.transport.http1.connection import Http1Limits, Request

_HEAD: Final = re.compile(
    rb"GET ([\x21-\x7e]+) HTTP/1\.1\r\n"
    rb"((?:[-!#$%&'*+.^_`|~0-9a-zA-Z]+: [\x21-\x7e]+(?: [\x21-\x7e]+)*\r\n)+)\r\n"
).match
_OF_A_BODY: Final = frozenset({"content-length", "transfer-encoding", "expect"})


def plain_request(data: bytes, limits: Http1Limits) -> tuple[Request, bytes] | None:
    """Return the plain request that `data` begins with, and the rest; else None."""
    found = _HEAD(data, 0, limits.max_head_bytes)
    if found is None:
        return None
    target, block = found.groups()
    fields: list[tuple[bytes, bytes]] = []
    headers: dict[str, str] = {}
    for line in block[:-2].split(b"\r\n"):
        name, _, value = line.partition(b": ")
        name = name.lower()
        fields.append((name, value))
        headers[name.decode()] = value.decode()
    if len(headers) < len(fields) or len(fields) + 2 > limits.max_head_lines:
        return None
    if "host" not in headers or not _OF_A_BODY.isdisjoint(headers):
        return None
    return Request("GET", target.decode(), headers, fields=tuple(fields)), data[found.end() :]
