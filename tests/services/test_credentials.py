"""Which clients are admitted: API keys, certificates, development mode, guessing."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.config import ApiKey, AuthSettings
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Identity
from aether_trio.services.credentials.checker import (
    KEY_PREFIX,
    NO_CREDENTIAL,
    AcceptedCredential,
    CertificateMode,
    CredentialChecker,
    find_key,
    hash_api_key,
    new_api_key,
    parse_common_name,
)
from aether_trio.transport.link import PeerCertificate
from tests.helpers.clocks import ManualClock

AGENT = Identity.agent("prod", "echo", "1")
EVERY_KIND = [
    AGENT,
    Identity.unique_task("prod", "echo", "1"),
    Identity.task("prod", "echo", "7c7f"),
    Identity.user("alice", "w1"),
    Identity.service("billing", "1"),
    Identity.bridge("billing", "1"),
    Identity.orchestrator("local", "1"),
    Identity.workflow_engine(),
    Identity.metrics_bridge(),
]
KEY = "aek_correct"


def record(**fields: Any) -> ApiKey:
    return ApiKey(**{"id": "k", "sha256": hash_api_key(KEY), "principal": "*", **fields})


def checker(*keys: ApiKey, clock: ManualClock | None = None, **auth: Any) -> CredentialChecker:
    return CredentialChecker(AuthSettings(api_keys=keys, **auth), clock or ManualClock())


def accept(check: CredentialChecker, identity: Identity, shown: dict[str, str], name: str = "") -> AcceptedCredential:
    certified = check.check_certificate(identity, PeerCertificate(name)) if name else None
    return check.check(identity, shown, certified)


def refusal(check: CredentialChecker, identity: Identity, credentials: dict[str, str], name: str = "") -> StatusError:
    with pytest.raises(StatusError) as caught:
        accept(check, identity, credentials, name)
    return caught.value


@pytest.mark.parametrize("identity", EVERY_KIND, ids=str)
def test_outside_development_every_kind_needs_a_credential(identity: Identity) -> None:
    error = refusal(checker(record()), identity, {})
    assert error.status is Status.UNAUTHENTICATED
    assert "aether keys new" in error.message


@pytest.mark.parametrize("identity", EVERY_KIND, ids=str)
def test_in_development_everyone_gets_in(identity: Identity) -> None:
    check = checker(allow_anonymous=True)
    for credentials in ({}, {"token": "made-up"}, {"api_key": "whatever"}, {"authorization": "Bearer x"}):
        assert check.check(identity, credentials) is NO_CREDENTIAL


@pytest.mark.parametrize("name", ["api_key", "x-api-key"])
@pytest.mark.parametrize("identity", EVERY_KIND, ids=str)
def test_the_right_key_gets_in(identity: Identity, name: str) -> None:
    assert checker(record()).check(identity, {name: KEY}) == AcceptedCredential(key=record())


def test_api_key_is_looked_at_before_x_api_key() -> None:
    check = checker(record())
    assert check.check(AGENT, {"api_key": KEY, "x-api-key": "wrong"}) == AcceptedCredential(key=record())
    assert refusal(check, AGENT, {"api_key": "wrong", "x-api-key": KEY}).status is Status.UNAUTHENTICATED
    assert check.check(AGENT, {"api_key": "", "x-api-key": KEY}) == AcceptedCredential(key=record())


def test_a_wrong_key_is_refused_even_where_none_is_needed() -> None:
    check = checker(record(), allow_anonymous=True)
    assert refusal(check, AGENT, {"api_key": "wrong"}).status is Status.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("token", "task tokens"),
        ("task_token", "task tokens"),
        ("bearer_token", "bearer tokens"),
        ("authorization", "bearer tokens"),
        ("session_token", "web session tokens"),
    ],
)
def test_tokens_that_are_not_built_yet_are_refused_by_name(name: str, text: str) -> None:
    error = refusal(checker(record()), AGENT, {name: "x"})
    assert error.status is Status.UNAUTHENTICATED
    assert f"{text}" in error.message
    assert "not accepted by this gateway yet" in error.message


def test_a_token_beside_a_right_key_does_no_harm() -> None:
    assert checker(record()).check(AGENT, {"token": "x", "api_key": KEY}) == AcceptedCredential(key=record())


@pytest.mark.parametrize(
    ("fields", "identity", "text"),
    [
        ({"principal": "user"}, AGENT, "is for principals of type user, not agent"),
        ({"principal": "agent"}, Identity.task("prod", "echo", "1"), "is for principals of type agent, not task"),
        ({"identity": "ag::prod::other::*"}, AGENT, "is for ag::prod::other::*, not for ag::prod::echo::1"),
        ({"identity": "bob"}, Identity.user("alice", "w"), "is for bob"),
        ({"workspaces": ("dev*", "test")}, AGENT, "does not reach workspace 'prod' (it reaches dev*, test)"),
        ({"workspaces": ("prod",)}, Identity.service("s", "1"), "a service works in all of them"),
        ({"workspaces": ("prod",)}, Identity.workflow_engine(), "a workflow engine works in all of them"),
    ],
)
def test_a_key_for_another_identity_is_refused(fields: dict[str, Any], identity: Identity, text: str) -> None:
    error = refusal(checker(record(**fields)), identity, {"api_key": KEY})
    assert error.status is Status.PERMISSION_DENIED
    assert text in error.message


@pytest.mark.parametrize(
    ("fields", "identity"),
    [
        ({"principal": "agent"}, AGENT),
        ({"principal": "task"}, Identity.unique_task("prod", "echo", "1")),
        ({"principal": "task"}, Identity.task("prod", "echo", "1")),
        ({"identity": "ag::*::echo::*"}, AGENT),
        ({"identity": "alice"}, Identity.user("alice", "w9")),
        ({"workspaces": ("dev", "pro?")}, AGENT),
        ({"workspaces": ("dev",)}, Identity.user("alice", "w")),
    ],
)
def test_a_key_that_fits_gets_in(fields: dict[str, Any], identity: Identity) -> None:
    assert checker(record(**fields)).check(identity, {"api_key": KEY}).key is not None


def test_what_was_accepted_knows_its_workspaces_for_a_later_switch() -> None:
    accepted = checker(record(workspaces=("dev*",))).check(Identity.user("alice", "w"), {"api_key": KEY})
    assert accepted.allows_workspace("dev-1")
    assert not accepted.allows_workspace("prod")


def test_an_anonymous_certificate_is_no_credential() -> None:
    assert refusal(checker(record()), AGENT, {}, "_anonymous").status is Status.UNAUTHENTICATED
    assert accept(checker(record()), AGENT, {"api_key": KEY}, "_anonymous").key is not None


OK, DENIED, UNNAMED = None, Status.PERMISSION_DENIED, Status.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("name", "relaxed", "semi_strict", "strict"),
    [
        ("ag::prod::echo::1", OK, OK, OK),
        ("ag::prod::echo::2", OK, OK, DENIED),
        ("ag::prod::other::1", OK, DENIED, DENIED),
        ("ag::dev::echo::1", OK, DENIED, DENIED),
        ("ga::prod", OK, OK, UNNAMED),
        ("ga::dev", OK, DENIED, UNNAMED),
        ("tu::prod::echo::1", DENIED, DENIED, DENIED),
        ("tb::prod::echo", DENIED, DENIED, UNNAMED),
        ("us::alice::w1", DENIED, DENIED, DENIED),
        ("sv::echo::1", DENIED, DENIED, DENIED),
        ("wfe::shard0", DENIED, DENIED, DENIED),
        ("laptop.example", UNNAMED, UNNAMED, UNNAMED),
        ("ag::prod::::1", UNNAMED, UNNAMED, UNNAMED),
    ],
)
def test_a_certificate_against_an_agent(
    name: str, relaxed: Status | None, semi_strict: Status | None, strict: Status | None
) -> None:
    for mode, expected in (("relaxed", relaxed), ("semi-strict", semi_strict), ("strict", strict)):
        check = checker(client_cert_mode=mode)
        if expected is None:
            assert accept(check, AGENT, {}, name).certificate is not None
        else:
            assert refusal(check, AGENT, {}, name).status is expected, mode


def test_partial_certificates_of_tasks_and_users() -> None:
    task = Identity.task("prod", "echo", "uuid")
    for name in ("tb::prod::echo", "ta::prod::echo", "ta::prod::echo::uuid"):
        accept(checker(client_cert_mode="semi-strict"), task, {}, name)
    user = accept(checker(client_cert_mode="semi-strict"), Identity.user("alice", "w"), {}, "gu::prod")
    assert user.allows_workspace("prod")
    assert not user.allows_workspace("dev")


def test_a_certificate_that_names_no_identity_is_for_encryption_only() -> None:
    check, name = checker(record(), client_cert_mode="relaxed"), "laptop.example"
    assert accept(check, AGENT, {"api_key": KEY}, name).key is not None
    assert "needs a credential here" in refusal(check, AGENT, {}, name).message
    assert accept(checker(client_cert_mode="relaxed", allow_anonymous=True), AGENT, {}, name) is NO_CREDENTIAL


@pytest.mark.parametrize(
    ("own", "identity", "covered"),
    [
        ({}, Identity.orchestrator("o", "1"), True),
        ({"workspaces": ("prod",)}, Identity.orchestrator("o", "1"), False),
        ({"workspaces": ("prod",)}, AGENT, True),
        ({"workspaces": ("dev",)}, AGENT, False),
        ({"principal": "agent"}, Identity.unique_task("prod", "echo", "1"), True),
        ({"principal": "task"}, AGENT, True),
        ({"principal": "agent"}, Identity.orchestrator("o", "1"), False),
        ({"principal": "user"}, Identity.workflow_engine(), False),
        ({"principal": "user"}, AGENT, False),
        ({"identity": "ag::*::other::*"}, AGENT, False),
    ],
)
def test_a_token_reaches_no_more_than_the_key(own: dict[str, Any], identity: Identity, covered: bool) -> None:
    assert AcceptedCredential(key=record(**own)).covers(identity) is covered


@pytest.mark.parametrize(
    ("mode", "name", "covered"),
    [
        ("strict", "ag::prod::echo::1", True),
        ("strict", "ag::prod::echo::2", False),
        ("semi-strict", "ag::prod::echo::2", True),
        ("semi-strict", "ag::dev::echo::1", False),
        ("relaxed", "ag::dev::other::2", True),
        ("relaxed", "us::alice::w1", False),
    ],
)
def test_a_token_reaches_no_more_than_the_certificate(mode: CertificateMode, name: str, covered: bool) -> None:
    assert AcceptedCredential(certificate=parse_common_name(name, mode)).covers(AGENT) is covered


def test_a_wrong_key_is_refused_beside_a_good_certificate() -> None:
    assert refusal(checker(record()), AGENT, {"api_key": "wrong"}, str(AGENT)).status is Status.UNAUTHENTICATED


def test_a_new_key_has_the_prefix_and_256_bits() -> None:
    keys = {new_api_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(key.startswith(KEY_PREFIX) and len(key) == len(KEY_PREFIX) + 43 for key in keys)
    assert new_api_key(lambda n: b"\xff" * n) == "aek_" + "_" * 42 + "8"


def test_the_record_of_a_key_is_found_among_others() -> None:
    records = [record(id=str(n), sha256=hash_api_key(str(n))) for n in range(5)]
    assert [found.id for n in range(5) if (found := find_key(records, str(n)))] == ["0", "1", "2", "3", "4"]
    assert find_key(records, "5") is None
