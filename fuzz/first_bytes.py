"""Fuzz how a port tells transports apart by first bytes, and refuses others."""

from __future__ import annotations

from collections.abc import Iterator

from aether_trio.transport.socket import first_bytes


def check(data: bytes) -> None:
    """Check an input: the first bytes of a connection."""
    transport = first_bytes.transport_of(data)
    for size in range(min(len(data), 2 * first_bytes.MAX_WORD_BYTES)):
        head = data[:size]
        known = first_bytes.transport_of(head)
        # A transport that is known stays it, and until then what has come may become its word.
        assert known == transport if known is not None else transport is None or first_bytes.may_become_one(head)
        if first_bytes.may_become_one(head):
            assert size <= first_bytes.MAX_WORD_BYTES
    answer = first_bytes.refusal(data, "no")
    assert len(answer) < 300
    assert data not in answer or len(data) < 100


def seeds() -> Iterator[bytes]:
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield b"\xaeAETHER\x01"
    yield b"GET / HTTP/1.1\r\n\r\n"
    yield b"HEAD /x HTTP/1.0\r\n\r\n"
    yield b"\x16\x03\x01\x00\xc8"
    yield b"SSH-2.0-x\r\n"
    yield b"BREW /pot HTTP/1.1\r\n\r\n"
