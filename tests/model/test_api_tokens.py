"""API tokens: their text, scopes, limits."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.access import AccessLevel, patterns
from aether_trio.model.api_tokens import (
    ApiToken,
    TokenScopeError,
    contained,
    is_token_text,
    new_token_text,
    parse_scopes,
    reserved_part,
)
from aether_trio.model.identity import Identity

AGENT = Identity.agent("prod", "echo", "1")
ALICE = Identity.user("alice", "w1")


def token(**fields: Any) -> ApiToken:
    given: dict[str, Any] = {
        "token_id": "t", "name": "ci", "principal_type": "agent", "principal_id": "admin",
        "workspace_patterns": ("*",), "scopes": ("connect",), "maker": "user:admin", "created_ms": 1,
    }  # fmt: skip
    return ApiToken(**{**given, **fields})


@given(st.integers(0, 2**32))
def test_a_new_text_is_known_as_one_and_a_slip_is_not(seed: int) -> None:
    source = random.Random(seed)
    text = new_token_text(source.randbytes)
    assert is_token_text(text)
    assert text.startswith("aek_")
    assert len(text) == 52
    at = source.randrange(4, 52)
    slipped = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
    assert not is_token_text(slipped)


@given(st.text(max_size=60))
def test_any_text_may_be_asked_about(text: str) -> None:
    assert not is_token_text(text)
    assert not is_token_text("aek_" + text)


def test_the_known_scopes() -> None:
    every = parse_scopes(["*"])
    assert (every.connect, every.cap, every.identities) == (True, AccessLevel.SUPERADMIN, ())
    some = parse_scopes(["connect", "level:read", "level:MANAGE", "identity:ag::prod::*::*", "identity:alice"])
    assert (some.connect, some.cap) == (True, AccessLevel.READ)
    assert [one.text for one in some.identities] == ["ag::prod::*::*", "alice"]
    assert not parse_scopes(["level:READ"]).connect
    assert not parse_scopes([]).connect


@pytest.mark.parametrize(
    "scope",
    ["", "admin", "Connect", "level:", "level:NONE", "level:ALL", "level:20", "identity:[", "level", "connect "],
)
def test_other_scopes_are_refused(scope: str) -> None:
    with pytest.raises(TokenScopeError):
        parse_scopes(["connect", scope])


@pytest.mark.parametrize(
    ("fields", "identity", "text"),
    [
        ({}, ALICE, "is for principals of type agent"),
        ({"principal_type": "user", "principal_id": "alice"}, Identity.user("bob", "w"), "is for 'alice'"),
        ({"principal_type": "user", "principal_id": "admin"}, ALICE, "is for 'admin'"),
        ({"principal_id": "ag::prod::echo::2"}, AGENT, "is for 'ag::prod::echo::2'"),
        ({"scopes": ("connect", "identity:ag::dev::*::*")}, AGENT, "limited by its scopes"),
        ({"workspace_patterns": ("dev*", "test")}, AGENT, "does not reach workspace 'prod' (it reaches dev*, test)"),
        ({"principal_type": "service", "workspace_patterns": ("prod",)}, Identity.service("s", "1"), "works in all"),
        ({"principal_type": "task"}, AGENT, "is for principals of type task"),
    ],
)
def test_whom_a_token_does_not_let_in(fields: dict[str, Any], identity: Identity, text: str) -> None:
    assert text in (token(**fields).problem(identity) or "")


@pytest.mark.parametrize(
    ("fields", "identity"),
    [
        ({}, AGENT),
        ({"principal_id": "ag::prod::echo::1"}, AGENT),
        ({"principal_type": "user", "principal_id": "alice", "workspace_patterns": ("dev",)}, ALICE),
        ({"principal_type": "task"}, Identity.unique_task("prod", "t", "1")),
        ({"principal_type": "task"}, Identity.task("prod", "t", "1")),
        ({"scopes": ("connect", "identity:ag::dev::*", "identity:ag::prod::*")}, AGENT),
        ({"principal_type": "user", "principal_id": "alice", "scopes": ("connect", "identity:us::alice::w?")}, ALICE),
        ({"workspace_patterns": ("dev", "pro?")}, AGENT),
        ({"principal_type": "workflow_engine"}, Identity.workflow_engine()),
        ({"workspace_patterns": ("*",)}, Identity.agent("a/b", "echo", "1")),
    ],
)
def test_whom_a_token_lets_in(fields: dict[str, Any], identity: Identity) -> None:
    assert token(**fields).problem(identity) is None


def test_a_star_among_others_does_not_cross_a_slash() -> None:
    assert not token(workspace_patterns=("a*",)).allows_workspace("a/b")


@pytest.mark.parametrize(
    ("fields", "identity", "covered"),
    [
        ({}, Identity.task("prod", "x", "1"), True),
        ({}, ALICE, False),
        ({"workspace_patterns": ("dev",)}, AGENT, False),
        ({"principal_id": "ag::prod::echo::1"}, Identity.agent("prod", "echo", "2"), False),
        ({"principal_type": "service", "workspace_patterns": ("prod",)}, Identity.service("s", "1"), False),
        ({"principal_type": "service"}, Identity.service("s", "1"), True),
    ],
)
def test_which_task_tokens_it_covers(fields: dict[str, Any], identity: Identity, covered: bool) -> None:
    assert token(**fields).covers(identity) is covered


def test_when_it_ends() -> None:
    assert token().ended(10**15) is None
    assert token(expires_ms=100).ended(99) is None
    assert token(expires_ms=100).ended(100) == "has expired"
    assert token(revoked_ms=5, expires_ms=100).ended(200) == "was revoked"


@pytest.mark.parametrize(
    ("inner", "outer", "beyond"),
    [
        (("*",), ("*",), None),
        (("prod", "dev*"), ("*",), None),
        (("*",), ("prod*",), "*"),
        (("prod-1", "prod-*"), ("prod*",), None),
        (("prod", "dev"), ("prod*",), "dev"),
        (("pro?",), ("prod",), "pro?"),
        (("*",), ("*x", "[^x]*"), "*"),
        (("a",), (), "a"),
        ((), (), None),
    ],
)
def test_what_patterns_are_contained(inner: tuple[str, ...], outer: tuple[str, ...], beyond: str | None) -> None:
    assert contained(inner, outer) == beyond


def test_reserved_names() -> None:
    assert reserved_part(AGENT) is None
    assert reserved_part(Identity.workflow_engine()) is None
    assert reserved_part(Identity.user("_system", "w")) == "_system"
    assert reserved_part(Identity.agent("prod", "echo", "_1")) == "_1"


def test_many_patterns_are_compared_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 expensive patterns with 64 others stop the gateway for a moment at most."""
    steps = 0
    step = patterns._Automaton.step

    def counted(self: Any, *arguments: Any) -> int:
        nonlocal steps
        steps += 1
        return step(self, *arguments)

    monkeypatch.setattr(patterns._Automaton, "step", counted)
    outer = ["*a" + "?" * 14 + f"*{number}" for number in range(64)]
    inner = ["*a" + "[ab]" * 13 + f"b*{number}" for number in range(64)]
    assert contained(inner, outer) is not None
    assert steps <= 2 * patterns.MAX_COMPARED
