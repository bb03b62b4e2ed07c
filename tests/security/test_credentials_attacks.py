"""What an intruder shows as a credential, and what it gets for it."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from aether_trio.config import ClaimsMapping, JwtSettings
from aether_trio.gateway import Gateway
from aether_trio.model.errors import Status
from aether_trio.testing.memory import agent
from aether_trio.transport.socket.client_certificates import client_problem
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import orchestrator, service, user, workflow_engine
from tests.helpers.identity_provider import (
    HttpKeys,
    claims,
    forged,
    jwk,
    key_set,
    provider,
    public_pem,
    rsa_key,
    signed,
)
from tests.helpers.participants import TRANSPORTS, admission, participant
from tests.security.certificates import Authority
from tests.security.clients import gateway_with
from tests.security.tenants import auth

UNAUTHENTICATED, DENIED = Status.UNAUTHENTICATED, Status.PERMISSION_DENIED
EVERY_TRANSPORT = pytest.mark.parametrize("transport", TRANSPORTS)


@dataclass
class Jwts:
    """A gateway whose users come with tokens of an identity provider."""

    gateway: Gateway

    def claims(self, **changes: Any) -> dict[str, Any]:
        return claims(self.gateway.core.clock.now_ms(), **changes)

    async def attempt(
        self, token: str, hello: pb.UpstreamMessage | None = None, transport: str = "grpc"
    ) -> Status | int:
        """Connect with a token, and say how it went."""
        greeting = pb.UpstreamMessage()
        greeting.CopyFrom(hello or user("alice", "w1"))
        greeting.init.credentials["authorization"] = f"Bearer {token}"
        status, text = await admission(transport, self.gateway.address, greeting)
        assert token not in text
        return status


@pytest.fixture
async def jwts(tmp_path: Path) -> AsyncIterator[Jwts]:
    file = tmp_path / "keys.json"
    file.write_bytes(key_set(jwk(rsa_key())))
    mapping = ClaimsMapping(principal_type="ptype")
    one = provider(jwks_url=None, jwks_file=str(file), claims_mapping=mapping)
    settings = {**auth(), "jwt": JwtSettings(providers=(one,)), "max_failures": 1000}
    async with gateway_with(auth=settings) as gateway:
        made = Jwts(gateway)
        assert await made.attempt(signed(made.claims())) is Status.OK
        yield made


@EVERY_TRANSPORT
async def test_jwt_alg_none(jwts: Jwts, transport: str) -> None:
    for name in ("none", "None", "NONE", ""):
        token = forged({"alg": name, "typ": "JWT", "kid": "k1"}, jwts.claims())
        assert await jwts.attempt(token, transport=transport) is UNAUTHENTICATED


async def test_jwt_hs256_by_public_key(jwts: Jwts) -> None:
    document = key_set(jwk(rsa_key()))
    for secret in (public_pem(rsa_key()), public_pem(rsa_key()).strip(), document, b"", b"k1"):
        for name in ("HS256", "hs256", "RS256"):
            token = forged({"alg": name, "kid": "k1"}, jwts.claims(), secret)
            assert await jwts.attempt(token) is UNAUTHENTICATED


async def test_jwt_jku(jwts: Jwts) -> None:
    """The token says where its key is, or brings it along."""
    own = rsa_key(7)
    async with HttpKeys(key_set(jwk(own))).open() as server:
        for header in ({"jku": server.url}, {"x5u": server.url}, {"jwk": jwk(own)}, {"x5c": ["MIIB"]}):
            for key in (own, rsa_key()):
                token = signed(jwts.claims(), key, headers=header)
                assert await jwts.attempt(token) is UNAUTHENTICATED
        assert await jwts.attempt(signed(jwts.claims(iss=server.url), own)) is UNAUTHENTICATED
        assert server.requests == []


async def test_jwt_crit(jwts: Jwts) -> None:
    for header in ({"crit": ["x"], "x": 1}, {"crit": []}, {"crit": ["b64"], "b64": False}, {"crit": ["exp"]}):
        token = forged({"alg": "RS256", "kid": "k1", **header}, jwts.claims())
        head, body, _ = token.split(".")
        _, _, signature = signed(jwts.claims()).split(".")
        assert await jwts.attempt(f"{head}.{body}.{signature}") is UNAUTHENTICATED
    properly_signed = signed(jwts.claims(), headers={"crit": ["urn:x"], "urn:x": True})
    assert await jwts.attempt(properly_signed) is UNAUTHENTICATED


@EVERY_TRANSPORT
async def test_jwt_expires_live(jwts: Jwts, transport: str) -> None:
    """A live session ends with its token."""
    now_s = jwts.gateway.core.clock.now_ms() // 1000
    token = signed(jwts.claims(exp=now_s + 3))
    hello = user("alice", "w2", credentials={"bearer_token": token})
    async with participant(transport, jwts.gateway.address, hello) as one:
        status, text = await one.end()
        assert "expired" in text
        assert jwts.gateway.core.clock.now_ms() >= (now_s + 3) * 1000
        assert status in {UNAUTHENTICATED, 4401}  # the close code of WebSocket for it
    assert await jwts.attempt(token) is UNAUTHENTICATED


async def test_jwt_orchestrator(jwts: Jwts) -> None:
    """No token speaks for a principal that administers the gateway, or serves others."""
    kinds = {
        "orchestrator": orchestrator("o", "1"),
        "workflow_engine": workflow_engine(),
        "service": service("s", "1"),
    }
    for kind, hello in kinds.items():
        for spelling in (kind, kind.title(), kind.replace("_", "")):
            assert await jwts.attempt(signed(jwts.claims(ptype=spelling, sub="o")), hello) is DENIED
        assert await jwts.attempt(signed(jwts.claims()), hello) is DENIED


async def test_jwt_sub_system(jwts: Jwts) -> None:
    for name in ("_system", "_any_authenticated_user", "_"):
        assert await jwts.attempt(signed(jwts.claims(sub=name)), user(name, "w")) is DENIED
        assert await jwts.attempt(signed(jwts.claims()), user(name, "w")) is DENIED


async def test_jwt_of_other(jwts: Jwts) -> None:
    assert await jwts.attempt(signed(jwts.claims(sub="bob"))) is DENIED
    assert await jwts.attempt(signed(jwts.claims(sub="Alice"))) is DENIED
    assert await jwts.attempt(signed(jwts.claims(sub="alice ")), user("alice", "w")) is DENIED


# -- certificates ----------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def serving(authority: Authority, **more: Any) -> AbstractAsyncContextManager[Gateway]:
    return gateway_with(gateway={"dev": False}, tls=authority.tls, auth={**auth(), **more})


ALPN: Mapping[str, list[str]] = {"grpc": ["h2"], "framed": [], "websocket": ["http/1.1"]}


WEB_SERVER = [ExtendedKeyUsageOID.SERVER_AUTH]
BOTH = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


@EVERY_TRANSPORT
@pytest.mark.parametrize("mode", ["strict", "semi-strict", "relaxed"])
async def test_web_server_certificate(authority: Authority, transport: str, mode: str) -> None:
    """The certificate of a web server, as authorities issue them for both sides."""
    certificate = authority.issue("www.example.com", usages=BOTH)
    async with serving(authority, client_cert_mode=mode) as gateway:
        for hello in (agent("red", "worker", "1"), orchestrator("o", "1"), user("alice", "w")):
            tls = authority.context(certificate, alpn=ALPN[transport])
            assert (await admission(transport, gateway.address, hello, tls=tls))[0] is UNAUTHENTICATED


@EVERY_TRANSPORT
async def test_web_server_certificate_with_a_name(authority: Authority, transport: str) -> None:
    """One for servers alone that has an identity as its name: TLS itself refuses it."""
    certificate = authority.issue("ag::red::worker::1", usages=WEB_SERVER)
    hello = agent("red", "worker", "1", credentials={"api_key": "aek_all"})
    async with serving(authority) as gateway:
        with pytest.raises(Exception) as failed:  # as the transport's client hears of it
            await admission(transport, gateway.address, hello, tls=authority.context(certificate, alpn=ALPN[transport]))
        assert not isinstance(failed.value, AssertionError)
        assert len(gateway.core.registry) == 0
    # Where TLS has not looked, the gateway does.
    pem = certificate.read_text()
    assert "not meant for clients" in client_problem(ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERT") :]))


@EVERY_TRANSPORT
async def test_certificate_against_token(authority: Authority, tmp_path: Path, transport: str) -> None:
    """A good token of alice over the connection of bob's certificate."""
    file = tmp_path / "keys.json"
    file.write_bytes(key_set(jwk(rsa_key())))
    providers = JwtSettings(providers=(provider(jwks_url=None, jwks_file=str(file)),))
    bob, alice = authority.issue("us::bob::w"), authority.issue("us::alice::w")
    async with serving(authority, jwt=providers) as gateway:
        token = signed(claims(gateway.core.clock.now_ms()))
        hello = user("alice", "w", credentials={"authorization": f"Bearer {token}"})
        for certificate, expected in ((bob, DENIED), (alice, Status.OK)):
            tls = authority.context(certificate, alpn=ALPN[transport])
            status, text = await admission(transport, gateway.address, hello, tls=tls)
            assert status in {expected, 4403 if expected is DENIED else expected}, text
        # And alice's certificate does not make bob's token fit.
        other = signed(claims(gateway.core.clock.now_ms(), sub="bob"))
        hello = user("alice", "w", credentials={"authorization": f"Bearer {other}"})
        status, _ = await admission(
            transport, gateway.address, hello, tls=authority.context(alice, alpn=ALPN[transport])
        )
        assert status in {DENIED, 4403}
