"""When the keys of identity providers are fetched, and how long they are good."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec

from aether_trio.config import JwtProvider
from aether_trio.services.credentials.jwks import (
    FETCH_S,
    LIFETIME_S,
    REFRESH_S,
    RETRY_S,
    JwksError,
    KeysTooOld,
    ProviderKeys,
    parse_jwks,
)
from tests.helpers.clocks import VirtualClock
from tests.helpers.identity_provider import ec_key, jwk, key_set, provider, rsa_key

# -- the document ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b"\xff", b'{"keys": [1, "x", null]}', b"[" * 100_000],
    ids=range(8),
)
def test_what_is_no_key_set(document: bytes) -> None:
    with pytest.raises(JwksError):
        parse_jwks(document)


@pytest.mark.parametrize(
    "entry",
    [
        jwk(rsa_key(0, 1024)),
        jwk(rsa_key(), use="enc"),
        jwk(rsa_key(), key_ops=["encrypt"]),
        jwk(rsa_key(), alg="HS256"),
        jwk(rsa_key(), alg=5),
        jwk(rsa_key(), d="AQAB"),
        {**jwk(rsa_key()), "n": "!"},
        {**jwk(rsa_key()), "kid": 7},
        {**jwk(ec_key()), "crv": "secp256k1"},
        {**jwk(ec_key()), "x": "AAAA"},
        jwk(ec_key(), alg="ES384"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "k1"},
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
    ],
    ids=range(13),
)
def test_keys_that_are_not_taken(entry: dict[str, Any]) -> None:
    found = parse_jwks(key_set(entry, jwk(ec_key(), "good")))
    assert [one.key_id for one in found] == ["good"]


def test_a_key_says_its_algorithms() -> None:
    plain, bound, curve = parse_jwks(key_set(jwk(rsa_key()), jwk(rsa_key(), alg="PS256"), jwk(ec_key("ES384"))))
    assert len(plain.algorithms) == 6
    assert bound.algorithms == {"PS256"}
    assert curve.algorithms == {"ES384"}
    assert isinstance(curve.public_key, ec.EllipticCurvePublicKey)


def test_a_set_of_too_many_keys_is_refused() -> None:
    with pytest.raises(JwksError, match="at most"):
        parse_jwks(key_set(*[jwk(ec_key(), str(n)) for n in range(129)]))


# -- when they are fetched -------------------------------------------------------------------------


class _Source:
    """A provider in virtual time, whose answers the test decides."""

    def __init__(self) -> None:
        self.fetches: list[float] = []
        self.document: bytes | Exception = key_set(jwk(rsa_key()))
        self.takes_s = 0.0
        self.running = 0
        self.keys = ProviderKeys(provider(), VirtualClock(trio.current_time), self._fetch)
        self.start = trio.current_time()

    async def _fetch(self, one: JwtProvider) -> bytes:
        self.fetches.append(trio.current_time() - self.start)
        self.running += 1
        assert self.running == 1
        try:
            await trio.sleep(0.001)  # until the test has said how long it takes
            await trio.sleep(self.takes_s)
        finally:
            self.running -= 1
        if isinstance(self.document, Exception):
            raise self.document
        return self.document


@pytest.fixture
async def source(nursery: trio.Nursery) -> AsyncIterator[_Source]:
    made = _Source()
    nursery.start_soon(made.keys.run)
    return made


async def test_the_first_token_waits_for_the_first_fetch(source: _Source) -> None:
    source.takes_s = 2
    assert await source.keys.find("k1", "RS256") is not None
    assert source.fetches == [0]


async def test_known_keys_never_wait(source: _Source) -> None:
    await source.keys.find("k1", "RS256")
    source.takes_s = 1000
    await trio.sleep(REFRESH_S + 1)
    assert source.running == 1
    before = trio.current_time()
    assert await source.keys.find("k1", "RS256") is not None
    assert trio.current_time() == before


async def test_an_unknown_key_costs_one_fetch_in_30_seconds(source: _Source) -> None:
    await source.keys.find("k1", "RS256")
    for _ in range(100):
        assert await source.keys.find("k2", "RS256") is None
    assert len(source.fetches) == 1
    await trio.sleep(RETRY_S)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(source.keys.find, "k2", "RS256")
    assert source.fetches == [0, pytest.approx(RETRY_S, abs=0.01)]


async def test_a_new_key_is_found(source: _Source) -> None:
    await source.keys.find("k1", "RS256")
    source.document = key_set(jwk(rsa_key(1), "k2"))
    await trio.sleep(RETRY_S)
    assert await source.keys.find("k2", "RS256") is not None
    assert await source.keys.find("k1", "RS256") is None


async def test_a_withdrawn_key_is_noticed(source: _Source) -> None:
    await source.keys.find("k1", "RS256")
    source.document = key_set(jwk(rsa_key(1), "k2"))
    await trio.sleep(REFRESH_S + 1)
    assert await source.keys.find("k1", "RS256") is None


async def test_keys_outlive_their_provider_by_a_day(source: _Source) -> None:
    await source.keys.find("k1", "RS256")
    source.document = OSError("unreachable")
    await trio.sleep(LIFETIME_S - 1)
    assert await source.keys.find("k1", "RS256") is not None
    await trio.sleep(2)
    with pytest.raises(KeysTooOld):
        await source.keys.find("k1", "RS256")
    source.document = key_set(jwk(rsa_key()))
    await trio.sleep(RETRY_S)
    assert await source.keys.find("k1", "RS256") is not None


async def test_a_provider_that_never_answered(source: _Source) -> None:
    source.takes_s = 1000
    before = trio.current_time()
    with pytest.raises(KeysTooOld):
        await source.keys.find("k1", "RS256")
    assert trio.current_time() - before <= FETCH_S + 1
    before = trio.current_time()
    with pytest.raises(KeysTooOld):
        await source.keys.find("k1", "RS256")
    assert trio.current_time() == before


@pytest.mark.parametrize("problem", [OSError("x"), JwksError("x"), ValueError("x"), b"nonsense"])
async def test_no_failure_ends_the_task(source: _Source, problem: Exception | bytes) -> None:
    source.document = problem
    await trio.sleep(1)
    source.document = key_set(jwk(rsa_key()))
    await trio.sleep(RETRY_S)
    assert await source.keys.find("k1", "RS256") is not None
