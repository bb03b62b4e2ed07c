"""A TLS 1.3 client that can send as many key updates as a test wants.

    client = RecordClient.over(sock, context_of_a_client, folder)     # does the handshake
    sock.sendall(client.key_updates(1000, answer=True))

The records are sealed here, with the key that OpenSSL has written into its key log.
"""

from __future__ import annotations

import socket
import ssl
import struct
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

_SECRET_BYTES = 48
_APPLICATION_DATA, _HANDSHAKE = 23, 22
_KEY_UPDATE = 24


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 section 7.1)."""
    name = b"tls13 " + label
    info = struct.pack(">HB", length, len(name)) + name + b"\0"
    return HKDFExpand(SHA384(), length, info).derive(secret)


def handshake(sock: socket.socket, context: ssl.SSLContext, server: str) -> tuple[ssl.SSLObject, ssl.MemoryBIO]:
    """Do a client's handshake on a blocking socket: (session, what it has to send)."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname=server)
    while True:
        try:
            session.do_handshake()
            return session, outgoing
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            incoming.write(sock.recv(65_536))


class RecordClient:
    """The sending side of one connection, after its handshake."""

    def __init__(self, secret: bytes) -> None:
        self._use(secret)

    @classmethod
    def over(cls, sock: socket.socket, context: ssl.SSLContext, folder: Path) -> RecordClient:
        """Do a TLS_AES_256_GCM_SHA384 handshake on a blocking socket."""
        log = folder / f"keys-{sock.fileno()}"
        context.keylog_filename = str(log)
        session, outgoing = handshake(sock, context, "127.0.0.1")
        sock.sendall(outgoing.read())
        cipher = session.cipher()
        assert cipher is not None
        assert cipher[0] == "TLS_AES_256_GCM_SHA384"
        context.keylog_filename = None  # closes the file
        (secret,) = (
            line.split()[2] for line in log.read_text().splitlines() if line.startswith("CLIENT_TRAFFIC_SECRET_0")
        )
        return cls(bytes.fromhex(secret))

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(_expand(secret, b"key", 32))
        self._iv = int.from_bytes(_expand(secret, b"iv", 12), "big")
        self._number = 0

    def _seal(self, kind: int, content: bytes) -> bytes:
        plain = content + bytes((kind,))
        header = struct.pack(">BHH", _APPLICATION_DATA, 0x0303, len(plain) + 16)
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        return header + self._key.encrypt(nonce, plain, header)

    def data(self, content: bytes) -> bytes:
        return self._seal(_APPLICATION_DATA, content)

    def key_updates(self, count: int, *, answer: bool) -> bytes:
        """So many KeyUpdate messages; `answer` asks the peer for one each."""
        records = []
        for _ in range(count):
            records.append(self._seal(_HANDSHAKE, bytes((_KEY_UPDATE, 0, 0, 1, answer))))
            self._use(_expand(self._secret, b"traffic upd", _SECRET_BYTES))
        return b"".join(records)
