"""Scopes: which clients share, what an operation must name, no two spaces meet."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.identity import Identity, IdentityError
from aether_trio.services.kv.spaces import KvScope, ScopeError, after, exclusive_root, parse_scope, space_of
from aether_trio.wire.pb import aether_pb2 as pb

AGENT = Identity.agent("w1", "impl", "spec")


def test_unspecified_is_workspace_and_unknown_is_an_error() -> None:
    assert parse_scope(0) is KvScope.WORKSPACE
    assert [parse_scope(number) for number in range(1, 9)] == list(KvScope)
    with pytest.raises(ScopeError, match="unknown key-value scope 9"):
        parse_scope(9)


def test_labels_are_the_sdks() -> None:
    assert {scope.label for scope in KvScope} == {
        "global",
        "workspace",
        "user",
        "user-workspace",
        "global-exclusive",
        "workspace-exclusive",
        "user-shared",
        "user-workspace-shared",
    }


def test_the_spaces_of_one_caller_are_all_different() -> None:
    spaces = [space_of(scope, AGENT, user, ws) for scope in KvScope for user in ("u", "v") for ws in ("", "w2")]
    # 8 scopes: 2 with neither, 2 with a workspace, 2 with a user, 2 with both
    assert len(set(spaces)) == 2 * 1 + 2 * 2 + 2 * 2 + 2 * 4


@pytest.mark.parametrize("scope", KvScope)
def test_sharing(scope: KvScope) -> None:
    mine = space_of(scope, AGENT, "u", "w")
    assert (mine == space_of(scope, Identity.agent("w1", "impl", "other"), "u", "w")) is not scope.is_exclusive
    for namesake in (
        Identity.agent("elsewhere", "impl", "spec"),
        Identity.unique_task("w1", "impl", "spec"),
        Identity.service("impl", "spec"),
    ):
        assert (mine == space_of(scope, namesake, "u", "w")) is not scope.is_exclusive


def test_an_empty_workspace_is_the_callers() -> None:
    assert space_of(KvScope.WORKSPACE, AGENT, "", "") == space_of(KvScope.WORKSPACE, AGENT, "", "w1")
    with pytest.raises(ScopeError, match="workspace needs a workspace"):
        space_of(KvScope.WORKSPACE, Identity.service("impl", "spec"), "", "")


@pytest.mark.parametrize("scope", [scope for scope in KvScope if "USER" in scope.name])
def test_user_scopes_need_a_user(scope: KvScope) -> None:
    with pytest.raises(ScopeError, match="needs a user_id"):
        space_of(scope, AGENT, "", "w")


@pytest.mark.parametrize("scope", [scope for scope in KvScope if scope.is_exclusive])
@pytest.mark.parametrize(
    "identity", [Identity.workflow_engine(), Identity.metrics_bridge(), Identity.task("w1", "impl", "some-uuid")]
)
def test_exclusive_scopes_need_a_lasting_name(scope: KvScope, identity: Identity) -> None:
    with pytest.raises(ScopeError, match="needs an identity with an implementation and a specifier"):
        space_of(scope, identity, "u", "w")


def test_names_are_bounded() -> None:
    space_of(KvScope.USER_SHARED, AGENT, "u" * 256, "")
    with pytest.raises(ScopeError, match="user_id has 258 bytes; at most 256 are allowed"):
        space_of(KvScope.USER_SHARED, AGENT, "é" * 129, "")


NAMES = st.text(alphabet="ab:|_/%\x002F", min_size=1, max_size=4)


@given(st.lists(st.tuples(st.sampled_from(KvScope), NAMES, NAMES, NAMES, NAMES), min_size=2, max_size=30))
def test_different_parts_never_give_the_same_space(cases: list[tuple[KvScope, str, str, str, str]]) -> None:
    """In the reference "a:b", "a|b" and "a_b" do."""
    meanings: dict[bytes, tuple[str, ...]] = {}
    for scope, implementation, specifier, user, workspace in cases:
        try:
            identity = Identity.service(implementation, specifier)
        except IdentityError:
            continue
        meaning = (
            scope.name,
            *((implementation, specifier) if scope.is_exclusive else ()),
            *((user,) if "USER" in scope.name else ()),
            *((workspace,) if "WORKSPACE" in scope.name else ()),
        )
        space = space_of(scope, identity, user, workspace)
        assert meanings.setdefault(space, meaning) == meaning
        if scope.is_exclusive:
            assert space.startswith(exclusive_root(identity, "x"))


@given(st.text(min_size=1), st.text())
def test_after_bounds_exactly_the_prefix(prefix: str, other: str) -> None:
    start, key = prefix.encode("utf-8", "ignore") or b"p", other.encode("utf-8", "ignore")
    assert (start <= key < after(start)) == key.startswith(start)


def test_the_numbers_are_the_protocols() -> None:
    for scope in KvScope:
        assert pb.KVOperation.Scope.Name(scope) == scope.name
    assert len(KvScope) + 1 == len(pb.KVOperation.Scope.items())


def test_roots_of_different_owners_do_not_contain_each_other() -> None:
    owners = [
        Identity.agent(workspace, impl, spec)
        for workspace, impl, spec in itertools.product(("w", "wx"), ("a", "ab", "a/b"), ("b", "bc"))
    ]
    owners += [Identity.service("w", "a"), Identity.unique_task("w", "a", "b"), Identity.service("ag", "w")]
    roots = [exclusive_root(owner, "x") for owner in owners]
    assert not any(one != other and one.startswith(other) for one in roots for other in roots)
