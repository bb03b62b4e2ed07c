"""Patterns of workspaces and identities: what they match, and in which time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.identity import Identity
from aether_trio.model.patterns import fits_identity, identity_pattern_problem, matches


def one_by_one(pattern: str, text: str) -> bool:
    """The meaning of a pattern, position by position."""
    ends = {0}
    for one in pattern:
        if one == "*":
            ends = {
                further for start in ends for further in range(start, len(text) + 1) if "/" not in text[start:further]
            }
        else:
            ends = {
                end + 1 for end in ends if end < len(text) and (text[end] == one or (one == "?" and text[end] != "/"))
            }
    return len(text) in ends


@given(st.text())
def test_a_lone_star_matches_everything(text: str) -> None:
    assert matches("*", text)


@given(st.text(alphabet="ab/*?[.", max_size=10), st.text(alphabet="ab/[.", max_size=12))
def test_patterns_are_globs_that_do_not_cross_a_slash(pattern: str, text: str) -> None:
    assert matches(pattern, text) is (pattern == "*" or one_by_one(pattern, text))


def test_patterns_of_a_small_alphabet_all_of_them() -> None:
    texts = ["".join(letters) for size in range(5) for letters in itertools.product("a/b", repeat=size)]
    for size in range(5):
        for letters in itertools.product("a/*?", repeat=size):
            pattern = "".join(letters)
            if pattern != "*":
                for text in texts:
                    assert matches(pattern, text) is one_by_one(pattern, text), (pattern, text)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("*a" * 13 + "*b", "a" * 128),
        ("*" * 100 + "b", "a" * 10_000),
        ("*a?" * 100 + "b", "a" * 10_000),
        ("*aab" * 50, "a" * 10_000),
    ],
)
def test_no_pattern_is_slow(pattern: str, text: str) -> None:
    """With backtracking each of these takes years."""
    assert not matches(pattern, text)


AGENT = Identity.agent("prod", "echo", "1")


@pytest.mark.parametrize(
    ("pattern", "identity", "fits"),
    [
        ("*", Identity.orchestrator("o", "1"), True),
        ("ag::*::echo::*", AGENT, True),
        ("ag::*::*::*", AGENT, True),
        ("ag::prod::echo::1", AGENT, True),
        ("ag::pr*::e?ho::*", AGENT, True),
        ("*::prod::*::*", AGENT, True),
        ("ag::*", AGENT, False),
        ("ag::*::1", AGENT, False),
        ("*::*", AGENT, False),
        ("ag*", AGENT, False),
        ("?g::*::echo::*", Identity.unique_task("prod", "echo", "1"), False),
        ("alice", Identity.user("alice", "w"), True),
        ("al*", Identity.user("alice", "w"), True),
        ("us::alice::*", Identity.user("alice", "w"), True),
        ("us::alice", Identity.user("alice", "w"), False),
        # Parts may begin with ":", and the last may end with one: none of it separates.
        ("ag::*::echo::*", Identity.agent("prod", ":echo", "1"), False),
        ("ag::*::echo::*", Identity.agent("prod", "x", ":echo:1"), False),
        ("ag::*::echo::*", Identity.agent("prod", "echo", ":x:"), True),
        ("ag::*:::echo::*", Identity.agent("prod", ":echo", "1"), True),
        ("ag::*::echo::*", Identity.agent(":echo", "x", "1"), False),
        ("ag::*::*::*", Identity.agent("a/b", "c/d", "e/f"), True),
        ("ag::a*::*::*", Identity.agent("a/b", "c", "e"), False),
    ],
)
def test_a_pattern_is_compared_part_by_part(pattern: str, identity: Identity, fits: bool) -> None:
    assert fits_identity(pattern, identity) is fits


_PARTS = st.text(alphabet="ae:", min_size=1, max_size=5).filter(lambda part: "::" not in part)
_INNER = _PARTS.filter(lambda part: not part.endswith(":"))


@given(_INNER, _INNER, _PARTS, _INNER)
def test_no_identity_fits_the_pattern_of_another_implementation(
    workspace: str, implementation: str, specifier: str, wanted: str
) -> None:
    identity = Identity.agent(workspace, implementation, specifier)
    assert fits_identity(f"ag::*::{wanted}::*", identity) is (implementation == wanted)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("ag::prod*", "'ag::prod*' has 2 parts between '::', where an identity is ag::{workspace}::{implementation}"),
        ("us::alice", r"'us::alice' has 2 parts between '::', where an identity is us::{user id}::{window id}"),
        ("wfe", None),
        ("wfe::shard0", None),
        ("wfe::a::b", "where an identity is wfe::shard0"),
        ("agent::a::b::c", "begins with no kind of identity"),
        ("*::a::b::c::d", "has 5 parts"),
        ("*", None),
        ("alice", None),
        ("*::*", None),
        ("ag::*::echo::*", None),
        ("orc::*::*", None),
    ],
)
def test_a_pattern_that_can_match_no_identity_is_explained(pattern: str, why: str | None) -> None:
    problem = identity_pattern_problem(pattern)
    if why is None:
        assert problem is None
    else:
        assert problem is not None
        assert why in problem
