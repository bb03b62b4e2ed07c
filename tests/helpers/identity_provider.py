"""An identity provider for tests: its keys, its tokens, and its key set over HTTP."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import Any

import jwt
import trio
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aether_trio.config import JwtProvider

ISSUER = "https://idp.example"
AUDIENCE = "aether"
CURVES: Mapping[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


@lru_cache
def rsa_key(number: int = 0, bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@lru_cache
def ec_key(algorithm: str = "ES256", number: int = 0) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(CURVES[algorithm])


def jwk(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, key_id: str | None = "k1", **more: Any) -> dict[str, Any]:
    """The public half as an entry of a key set."""
    if isinstance(key, rsa.RSAPrivateKey):
        entry = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        entry = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**entry, **({} if key_id is None else {"kid": key_id}), **more}


def key_set(*entries: Mapping[str, Any]) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


def claims(now_ms: int, **changes: Any) -> dict[str, Any]:
    """Claims of a good token for alice; a change to None leaves a claim out."""
    given = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now_ms // 1000 + 600, **changes}
    return {name: value for name, value in given.items() if value is not None}


def signed(
    content: Mapping[str, Any],
    key: Any = None,
    *,
    algorithm: str = "RS256",
    headers: Mapping[str, Any] | None = None,
) -> str:
    """A token by PyJWT, of key k1 unless the headers say otherwise."""
    header = {"kid": "k1", **(headers or {})}
    header = {name: value for name, value in header.items() if value is not None}
    return jwt.encode(dict(content), key or rsa_key(), algorithm=algorithm, headers=header)


def forged(header: Mapping[str, Any], content: Mapping[str, Any], secret: bytes | None = None) -> str:
    """A token that PyJWT would not make: unsigned, or with a MAC by `secret`."""

    def encoded(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    body = f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(content).encode())}"
    mac = b"" if secret is None else hmac.new(secret, body.encode(), hashlib.sha256).digest()
    return f"{body}.{encoded(mac)}"


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def provider(**changes: Any) -> JwtProvider:
    given: dict[str, Any] = {"name": "idp", "issuer": ISSUER, "audience": AUDIENCE, "jwks_url": "https://idp.example/k"}
    return JwtProvider(**{**given, **changes})


Answer = Callable[[trio.SocketStream], Any]


class HttpKeys:
    """Serves key sets on a loopback port, and counts the requests."""

    def __init__(self, body: bytes = b"") -> None:
        self.body = body
        self.requests: list[bytes] = []
        self.hangs: trio.Event | None = None
        self.raw: bytes | None = None
        self.url = ""

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            request = b""
            while b"\r\n\r\n" not in request:
                data = await stream.receive_some()
                if not data:
                    return
                request += data
            self.requests.append(request)
            if self.hangs is not None:
                await self.hangs.wait()
            answer = self.raw
            if answer is None:
                answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(self.body), self.body)
            try:
                await stream.send_all(answer)
            except trio.BrokenResourceError:
                return

    @asynccontextmanager
    async def open(self) -> AsyncIterator[HttpKeys]:
        async with trio.open_nursery() as nursery:
            (listener, *_) = await nursery.start(partial(trio.serve_tcp, self._serve, 0, host="127.0.0.1"))
            self.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/keys"
            yield self
            nursery.cancel_scope.cancel()
