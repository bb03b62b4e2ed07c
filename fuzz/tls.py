"""Fuzz TLS records behind a handshake, before and after the peer's end.

An input is a list of things that the client does: plain bytes, the end, records cut and joined
anyhow, nonsense.
"""

from __future__ import annotations

import functools
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trustme

from aether_trio.transport.socket.tls import TlsFiles, TlsSession, client_context, server_context
from fuzz.feeding import choices, split

RECORD_BYTES: Final = 5 + 16 * 1024 + 256
"""The longest record of TLS 1.3 (RFC 8446 section 5.2)."""
_PLAIN, _END, _NONSENSE, _HOLD, _RELEASE, _ALERT = range(6)


@functools.cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The TLS contexts of a server and a client."""
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    with tempfile.TemporaryDirectory() as folder:
        pem = Path(folder) / "server.pem"
        leaf.private_key_and_cert_chain_pem.write_to_path(pem)
        server = server_context(TlsFiles(pem, pem))
        ca = Path(folder) / "ca.pem"
        authority.cert_pem.write_to_path(ca)
        return server, client_context(ca_file=ca)


def connected() -> tuple[TlsSession, TlsSession]:
    server_side, client_side = contexts()
    server = TlsSession(server_side)
    client = TlsSession(client_side, server_hostname="localhost", server_side=False)
    for _ in range(3):
        for side, other in ((client, server), (server, client)):
            try:
                side._object.do_handshake()
            except ssl.SSLWantReadError:
                pass
            other._incoming.write(side._outgoing.read())
    return server, client


def check(data: bytes) -> None:
    """Check an input: a byte of choices, and steps of the client."""
    (step,), script = choices(data, 1)
    server, client = connected()
    sent = b""
    held = b""
    honest, ended = True, False
    stream = bytearray()
    at = 0
    while at + 2 <= len(script):
        what, size = script[at] % 6, script[at + 1]
        at += 2
        if what == _PLAIN and not ended:
            plain = bytes((size,)) * (size * 50)
            record = client.seal(plain)
            if honest and not held:
                sent += plain
            stream += record
        elif what == _END:
            try:
                client._object.unwrap()
            except ssl.SSLError:
                pass
            stream += client._outgoing.read()
            honest, ended = False, True
        elif what == _NONSENSE:
            stream += script[at : at + size]
            at += size
            honest = False
        elif what == _HOLD:
            cut = max(0, len(stream) - size)
            held, stream = held + bytes(stream[cut:]), stream[:cut]
            honest = False
        elif what == _RELEASE:
            stream += held
            held = b""
        else:
            stream += b"\x15\x03\x03\x00\x02\x01" + bytes((size,))
            honest = False
    got = b""
    for part in split(bytes(stream), 200 * step):
        try:
            got += server.open(part)
        except ssl.SSLError:
            break
        assert server._incoming.pending <= RECORD_BYTES
        assert server._outgoing.pending <= 4 * 1024 + RECORD_BYTES
        if server.ended:
            assert not server._incoming.pending
    if honest:
        assert got == sent
    assert len(got) <= len(stream)


def seeds() -> Iterator[bytes]:
    """Data, ends, and records that are cut or made up."""
    yield b"\1" + bytes((_PLAIN, 10, _PLAIN, 200, _END, 0, _NONSENSE, 5)) + b"after"
    yield b"\0" + bytes((_PLAIN, 255)) * 20
    yield b"\3" + bytes((_PLAIN, 9, _NONSENSE, 10)) + b"\x17\x03\x03\x00\x05wrong"
    yield b"\2" + bytes((_PLAIN, 9, _HOLD, 20, _RELEASE, 0, _PLAIN, 1))
    yield b"\0" + bytes((_PLAIN, 255)) + bytes((_HOLD, 0, _RELEASE, 0)) * 40
    yield b"\0" + bytes((_ALERT, 0, _PLAIN, 1, _ALERT, 90))
    yield b"\0" + bytes((_NONSENSE, 6)) + b"\x14\x03\x03\x00\x01\x01"
    yield b"\0" + bytes((_END, 0)) + bytes((_NONSENSE, 200)) + bytes(200)
