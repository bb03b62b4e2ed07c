"""Which JSON Web Tokens are accepted, for whom, and what they reach."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.config import AuthSettings, ClaimsMapping, JwtSettings, TlsSettings
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Identity
from aether_trio.services.credentials.checker import CredentialChecker
from aether_trio.services.credentials.jwt import MAX_GROUPS, MAX_TOKEN_BYTES, JwtVerifier, Login, bearer_of
from aether_trio.session.init_connection import Claim
from aether_trio.transport.link import Peer, PeerCertificate
from tests.helpers.clocks import ManualClock
from tests.helpers.identity_provider import CURVES, claims, ec_key, jwk, key_set, provider, rsa_key, signed

ALICE = Identity.user("alice", "w1")
AGENT = Identity.agent("prod", "echo", "1")
UNAUTHENTICATED, DENIED = Status.UNAUTHENTICATED, Status.PERMISSION_DENIED
MAPPING = ClaimsMapping(principal_type="ptype", workspace="ws", groups="realm.groups")


class _Provider:
    """A verifier of tokens by one provider, with the keys in a file."""

    def __init__(self, directory: Path, *entries: Mapping[str, Any], **fields: Any) -> None:
        self.clock = ManualClock()
        self.file = directory / "keys.json"
        self.file.write_bytes(key_set(*(entries or (jwk(rsa_key()),))))
        self.settings = provider(jwks_url=None, jwks_file=str(self.file), **fields)
        self.verifier = JwtVerifier(self.clock)
        self.verifier.replace(self.verifier.prepare([self.settings]))

    def claims(self, **changes: Any) -> dict[str, Any]:
        return claims(self.clock.now_ms(), **changes)

    async def login(self, token: str, identity: Identity = ALICE) -> Login:
        return await self.verifier.login(token, identity)

    async def refusal(self, token: str, identity: Identity = ALICE) -> StatusError:
        with pytest.raises(StatusError) as caught:
            await self.login(token, identity)
        assert token not in caught.value.message or not token
        return caught.value


@pytest.fixture
def idp(tmp_path: Path) -> _Provider:
    return _Provider(tmp_path, claims_mapping=MAPPING)


async def test_a_good_token_of_a_user(idp: _Provider) -> None:
    login = await idp.login(signed(idp.claims()))
    assert login.expires_ms == (idp.clock.now_ms() // 1000 + 600) * 1000
    assert login.everywhere
    assert login.problem(Identity.user("alice", "another-window")) is None


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", *CURVES])
async def test_every_algorithm_of_the_list(tmp_path: Path, algorithm: str) -> None:
    key = ec_key(algorithm) if algorithm in CURVES else rsa_key()
    one = _Provider(tmp_path, jwk(key))
    await one.login(signed(one.claims(), key, algorithm=algorithm))
    other = _Provider(tmp_path, jwk(key), algorithms=("RS256",) if algorithm != "RS256" else ("ES256",))
    assert "not allowed" in (await other.refusal(signed(one.claims(), key, algorithm=algorithm))).message


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"exp": None}, "exp is missing"),
        ({"aud": None}, "aud is missing"),
        ({"iss": None}, "iss is missing"),
        ({"sub": None}, "sub, which names its holder, is missing"),
        ({"sub": ""}, "sub, which names its holder, is missing"),
        ({"aud": "other"}, "not for this gateway"),
        ({"aud": ["other", "third"]}, "not for this gateway"),
        ({"iss": "https://other.example"}, "not among auth.jwt.providers"),
        ({"exp": 1}, "expired"),
        ({"exp": True}, "is no time"),
        ({"exp": "tomorrow"}, "is no time"),
        ({"exp": 1e300}, "is no time"),
        ({"nbf": 9e9}, "from the future (nbf)"),
        ({"iat": 9e9}, "from the future (iat)"),
        ({"realm": {"groups": 5}}, "no list of names"),
        ({"realm": {"groups": ["a", 5]}}, "no list of names"),
        ({"realm": {"groups": ["a\x00b"]}}, "groups"),
        ({"realm": {"groups": ["g" * 1000]}}, "groups"),
        ({"realm": {"groups": [f"g{n}" for n in range(MAX_GROUPS + 1)]}}, "at most"),
    ],
)
async def test_what_is_not_a_valid_token(idp: _Provider, changes: dict[str, Any], text: str) -> None:
    error = await idp.refusal(signed(idp.claims(**changes)))
    assert (error.status, text in error.message) == (UNAUTHENTICATED, True), error.message


@pytest.mark.parametrize(
    "token",
    ["", "x", "..", "a.b.c", "e30.e30.", "é.é.é", "eyJ.eyJ.eyJ", "a" * (MAX_TOKEN_BYTES + 1), f"{'[' * 9000}.e30.x"],
    ids=range(9),
)
async def test_nonsense_is_no_token(idp: _Provider, token: str) -> None:
    assert (await idp.refusal(token)).status is UNAUTHENTICATED


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60))
def test_no_bytes_break_the_reader(header: bytes, body: bytes, end: bytes) -> None:
    async def attempt() -> None:
        verifier = JwtVerifier(ManualClock())
        parts = (base64.urlsafe_b64encode(one).rstrip(b"=").decode() for one in (header, body, end))
        with pytest.raises(StatusError) as caught:
            await verifier.login(".".join(parts), ALICE)
        assert caught.value.status is UNAUTHENTICATED

    trio.run(attempt)


async def test_deeply_nested_claims_are_no_token(idp: _Provider) -> None:
    nested = base64.urlsafe_b64encode(b'{"iss":' + b"[" * 5000 + b"]" * 5000 + b"}").rstrip(b"=").decode()
    assert (await idp.refusal(f"e30.{nested}.e30")).status is UNAUTHENTICATED


async def test_a_changed_token_has_a_wrong_signature(idp: _Provider) -> None:
    head, body, signature = signed(idp.claims()).split(".")
    other = base64.urlsafe_b64encode(json.dumps(idp.claims(sub="bob")).encode()).rstrip(b"=").decode()
    assert "signature" in (await idp.refusal(f"{head}.{other}.{signature}", Identity.user("bob", "w"))).message
    assert "signature" in (await idp.refusal(f"{head}.{body}.{signature[:-8]}AAAAAAAA")).message


async def test_a_key_that_is_not_published_signs_nothing(idp: _Provider) -> None:
    assert "signature" in (await idp.refusal(signed(idp.claims(), rsa_key(1)))).message
    assert "publishes no key" in (await idp.refusal(signed(idp.claims(), rsa_key(1), headers={"kid": "k2"}))).message


async def test_without_a_key_id_the_only_fitting_key_counts(tmp_path: Path) -> None:
    one = _Provider(tmp_path, jwk(rsa_key(), None), jwk(ec_key(), None))
    await one.login(signed(one.claims(), headers={"kid": None}))
    two = _Provider(tmp_path, jwk(rsa_key()), jwk(rsa_key(1), "k2"))
    assert "publishes no key" in (await two.refusal(signed(two.claims(), headers={"kid": None}))).message


async def test_the_moment_of_the_end_has_no_grace(idp: _Provider) -> None:
    token = signed(idp.claims())
    idp.clock.advance(599_999)
    await idp.login(token)
    idp.clock.advance(1_000)
    assert "expired" in (await idp.refusal(token)).message


async def test_a_provider_whose_clock_is_a_little_ahead(idp: _Provider) -> None:
    now_s = idp.clock.now_ms() // 1000
    await idp.login(signed(idp.claims(iat=now_s + 50, nbf=now_s + 50)))


@pytest.mark.parametrize(
    ("changes", "identity", "text"),
    [
        ({}, Identity.user("bob", "w"), "is for 'alice', not for us::bob::w"),
        ({}, AGENT, "is for a principal of type user, not agent"),
        ({}, Identity.orchestrator("o", "1"), "is for a principal of type user, not orchestrator"),
        ({"ptype": "agent", "sub": "echo"}, AGENT, "names no workspace"),
        ({"ptype": "agent", "sub": "echo", "ws": "dev"}, AGENT, "does not reach workspace 'prod'"),
        ({"ptype": "agent", "sub": "other", "ws": "prod"}, AGENT, "is for 'other'"),
        ({"ptype": "agent", "sub": "ag::prod::echo::2"}, AGENT, "is for 'ag::prod::echo::2'"),
        ({"ptype": "agent", "sub": "ag::prod::echo::1", "ws": "dev"}, AGENT, "does not reach"),
        ({"ptype": "Orchestrator"}, ALICE, "may be for a user, an agent or a task only"),
        ({"ptype": "workflow_engine"}, Identity.workflow_engine(), "may be for a user"),
        ({"ptype": "WorkflowEngine"}, Identity.workflow_engine(), "may be for a user"),
        ({"ptype": "metrics_bridge"}, Identity.metrics_bridge(), "may be for a user"),
        ({"ptype": "bridge"}, Identity.bridge("b", "1"), "may be for a user"),
        ({"ptype": "service"}, Identity.service("s", "1"), "may be for a user"),
        ({"ptype": ["user"]}, ALICE, "may be for a user"),
        ({"sub": "_system"}, Identity.user("_system", "w"), "are the gateway's"),
        ({"ptype": "agent", "sub": "ag::_x::echo::1"}, AGENT, "are the gateway's"),
        ({"ws": ["prod", "_internal"]}, ALICE, "are the gateway's"),
    ],
)
async def test_a_token_for_another_principal(
    idp: _Provider, changes: dict[str, Any], identity: Identity, text: str
) -> None:
    error = await idp.refusal(signed(idp.claims(**changes)), identity)
    assert (error.status, text in error.message) == (DENIED, True), error.message


@pytest.mark.parametrize(
    ("changes", "identity", "reaches", "beyond"),
    [
        ({"ws": "prod"}, ALICE, ["prod"], ["dev"]),
        ({"ws": ["prod", "dev"]}, ALICE, ["prod", "dev"], ["test"]),
        ({"ptype": "Agent", "sub": "echo", "ws": "prod"}, AGENT, ["prod"], ["dev"]),
        ({"ptype": "agent", "sub": "ag::prod::echo::1"}, AGENT, ["prod"], ["dev", ""]),
        ({"ptype": "task", "sub": "echo", "ws": "prod"}, Identity.unique_task("prod", "echo", "7"), ["prod"], ["dev"]),
        ({"ws": "*"}, ALICE, ["*"], ["dev"]),
    ],
)
async def test_what_a_token_reaches(
    idp: _Provider, changes: dict[str, Any], identity: Identity, reaches: list[str], beyond: list[str]
) -> None:
    login = await idp.login(signed(idp.claims(**changes)), identity)
    assert all(map(login.allows_workspace, reaches))
    assert not any(map(login.allows_workspace, beyond))
    assert not login.everywhere


async def test_the_provider_gives_a_default_workspace_and_kind(tmp_path: Path) -> None:
    one = _Provider(tmp_path, default_principal="agent", default_workspace="prod")
    login = await one.login(signed(one.claims(sub="echo")), AGENT)
    assert login.workspace_patterns == ("prod",)
    assert login.identity_patterns == ("ag::*::echo::*",)
    assert login.covers(AGENT)
    assert login.covers(Identity.task("prod", "echo", "x"))
    assert not login.covers(Identity.agent("dev", "echo", "1"))
    assert not login.covers(Identity.user("echo", "1"))


async def test_groups_are_named_after_their_provider(idp: _Provider) -> None:
    login = await idp.login(signed(idp.claims(realm={"groups": ["ops", "dev", "ops"]})))
    assert login.groups == ("idp:idp:ops", "idp:idp:dev")
    assert (await idp.login(signed(idp.claims(realm="x")))).groups == ()


async def test_providers_of_one_issuer_differ_by_audience(tmp_path: Path) -> None:
    one = _Provider(tmp_path)
    two = provider(name="two", audience="second", jwks_url=None, jwks_file=str(one.file), default_workspace="w2")
    one.verifier.replace(one.verifier.prepare([one.settings, two]))
    assert (await one.login(signed(one.claims(aud="second")))).workspaces == {"w2"}
    assert (await one.login(signed(one.claims()))).workspaces is None


async def test_new_settings_take_other_keys(tmp_path: Path) -> None:
    one = _Provider(tmp_path)
    token = signed(one.claims(), rsa_key(1))
    assert "signature" in (await one.refusal(token)).message
    one.file.write_bytes(key_set(jwk(rsa_key(1))))
    one.verifier.replace(one.verifier.prepare([one.settings]))
    await one.login(token)
    one.file.write_bytes(b"nonsense")
    with pytest.raises(OSError, match="not JSON") as caught:
        one.verifier.prepare([one.settings])
    assert caught.value.filename == str(one.file)
    await one.login(token)


@pytest.mark.parametrize(
    ("credentials", "token"),
    [
        ({"bearer_token": "t"}, "t"),
        ({"authorization": "Bearer t"}, "t"),
        ({"authorization": "bearer  t "}, "t"),
        ({"authorization": "t"}, "t"),
        ({"authorization": "Basic t"}, "Basic t"),
        ({"bearer_token": "", "authorization": "Bearer t"}, "t"),
        ({"bearer_token": "a", "authorization": "Bearer t"}, "a"),
        ({"token": "t"}, None),
        ({}, None),
    ],
)
def test_where_a_token_is_found(credentials: dict[str, str], token: str | None) -> None:
    assert bearer_of(credentials) == token


# -- beside other credentials ----------------------------------------------------------------------


def claim(identity: Identity, **credentials: str) -> Claim:
    return Claim(identity, "", credentials, "", True, (), "", "")


@pytest.fixture
def checker(idp: _Provider) -> CredentialChecker:
    made = CredentialChecker(AuthSettings(), idp.clock)
    made.use(made.prepare(AuthSettings(jwt=JwtSettings(providers=(idp.settings,))), TlsSettings()))
    return made


async def test_a_session_of_a_token_has_its_end_and_groups(idp: _Provider, checker: CredentialChecker) -> None:
    token = signed(idp.claims(realm={"groups": ["ops"]}, ws="prod"))
    admitted = await checker.admit(claim(ALICE, authorization=f"Bearer {token}"), Peer("1.2.3.4:5", "grpc"))
    assert admitted.credential == "jwt:idp"
    assert admitted.expires_ms == (idp.clock.now_ms() // 1000 + 600) * 1000
    assert admitted.groups == ("idp:idp:ops",)
    assert list(admitted.accepted.workspace_limits) == [("prod",)]


async def test_the_session_ends_with_the_certificate_if_that_is_earlier(
    idp: _Provider, checker: CredentialChecker
) -> None:
    token, now_ms = signed(idp.claims()), idp.clock.now_ms()
    for in_ms in (10_000, 10_000_000):
        certificate = PeerCertificate("_anonymous", not_after_ms=now_ms + in_ms)
        admitted = await checker.admit(claim(ALICE, bearer_token=token), Peer("1.2.3.4:5", "grpc", certificate))
        assert admitted.expires_ms == min(now_ms + in_ms, (now_ms // 1000 + 600) * 1000)


async def test_wrong_tokens_count_as_failures(idp: _Provider, checker: CredentialChecker) -> None:
    for _ in range(5):
        with pytest.raises(StatusError, match="not accepted"):
            await checker.admit(claim(ALICE, bearer_token="wrong"), Peer("1.2.3.4:5", "grpc"))
    with pytest.raises(StatusError, match="throttled"):
        await checker.admit(claim(ALICE, bearer_token=signed(idp.claims())), Peer("1.2.3.4:6", "grpc"))
    await checker.admit(claim(ALICE, bearer_token=signed(idp.claims())), Peer("4.3.2.1:6", "grpc"))


async def test_a_provider_that_leaves_the_settings_ends_its_sessions(
    idp: _Provider, checker: CredentialChecker
) -> None:
    admitted = await checker.admit(claim(ALICE, bearer_token=signed(idp.claims())), Peer("1.2.3.4:5", "grpc"))
    assert checker.ended(admitted.accepted, None) is None
    checker.use(checker.prepare(AuthSettings(), TlsSettings()))
    assert "not among the settings" in (checker.ended(admitted.accepted, None) or "")
