"""Fuzz the credentials of a client: JSON Web Tokens, API tokens, scopes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from aether_trio.config import ClaimsMapping, JwtProvider
from aether_trio.model.api_tokens import TokenScopeError, is_token_text, parse_scopes
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Identity
from aether_trio.services.credentials.jwks import JwksError, ProviderKeys, VerificationKey, parse_jwks
from aether_trio.services.credentials.jwt import MAX_GROUPS, JwtVerifier, bearer_of
from fuzz.feeding import choices, run

_NOW_MS: Final = 1_700_000_000_000
_MAPPING: Final = ClaimsMapping(principal_type="p", workspace="w", groups="g.h")
_PROVIDER: Final = JwtProvider(name="idp", issuer="i", audience="a", jwks_file="none", claims_mapping=_MAPPING)
_IDENTITIES: Final = (
    Identity.user("u", "1"),
    Identity.agent("w", "i", "1"),
    Identity.unique_task("w", "i", "1"),
    Identity.orchestrator("o", "1"),
)


class _Clock:
    def now_ms(self) -> int:
        return _NOW_MS

    def monotonic(self) -> float:
        return 0.0


@lru_cache(maxsize=1)
def _signer() -> tuple[ec.EllipticCurvePrivateKey, JwtVerifier]:
    key = ec.derive_private_key(7, ec.SECP256R1())
    keys = ProviderKeys(_PROVIDER, _Clock())
    keys._keys = (VerificationKey("k", frozenset({"ES256"}), key.public_key()),)
    verifier = JwtVerifier(_Clock())
    verifier.replace({"idp": keys})
    return key, verifier


def _encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def _signed(header: bytes, claims: bytes) -> str:
    body = f"{_encoded(header)}.{_encoded(claims)}"
    r, s = decode_dss_signature(_signer()[0].sign(body.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{body}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def check(data: bytes) -> None:
    """Check an input: a choice, an identity, the size of a header, and the rest."""
    (mode, who, size), rest = choices(data, 3)
    match mode % 4:
        case 0:
            _check_jwt(rest.decode("latin-1"), _IDENTITIES[who % 4])
        case 1:
            _check_jwt(_signed(rest[:size], rest[size:]), _IDENTITIES[who % 4])
        case 2:
            try:
                found = parse_jwks(rest)
            except JwksError as error:
                assert len(str(error)) < 500
            else:
                assert all(one.algorithms for one in found)
        case _:
            text = rest.decode("utf-8", "replace")
            is_token_text(text)
            bearer_of({"authorization": text})
            try:
                parse_scopes(text.split("\n"))
            except TokenScopeError as error:
                assert len(str(error)) < 2000


def _check_jwt(token: str, identity: Identity) -> None:
    async def login() -> None:
        try:
            found = await _signer()[1].login(token, identity)
        except StatusError as refused:
            assert refused.status in (Status.UNAUTHENTICATED, Status.PERMISSION_DENIED)
            assert len(refused.message) < 1000
            return
        assert found.expires_ms > _NOW_MS
        assert found.type_name == identity.type_name in {"user", "agent", "task"}
        assert not identity.workspace or found.allows_workspace(identity.workspace)
        assert len(found.groups) <= MAX_GROUPS
        assert all(group.startswith("idp:idp:") for group in found.groups)

    run(login())


def seeds() -> Iterator[bytes]:
    """Tokens that are accepted, and the parts of which others are made."""
    header = json.dumps({"alg": "ES256", "kid": "k"}).encode()
    common = {"iss": "i", "aud": "a", "exp": _NOW_MS // 1000 + 9}
    for who, more in enumerate(
        ({"sub": "u"}, {"sub": "i", "p": "agent", "w": ["w"]}, {"sub": "tu::w::i::1", "p": "task"})
    ):
        claims = json.dumps({**common, **more, "g": {"h": ["x", "y"]}}).encode()
        yield bytes((1, who, len(header))) + header + claims
        yield bytes((0, who, 0)) + _signed(header, claims).encode()
    numbers = _signer()[0].public_key().public_numbers()
    key = {"kty": "EC", "crv": "P-256", "kid": "k", "x": _encoded(numbers.x.to_bytes(32, "big"))}
    yield b"\2\0\0" + json.dumps({"keys": [{**key, "y": _encoded(numbers.y.to_bytes(32, "big"))}]}).encode()
    yield b"\2\0\0" + json.dumps({"keys": [{"kty": "RSA", "n": "AQAB" * 90, "e": "AQAB", "use": "sig"}]}).encode()
    yield b"\3\0\0" + b"connect\nlevel:READ\nidentity:ag::[a-c]*::?"
    yield b"\3\0\0Bearer x.y.z"
