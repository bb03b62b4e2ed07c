"""Patterns of access rules: vectors of Go, a naive matcher, containment, cost."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from aether_trio.model.access import patterns
from aether_trio.model.access.patterns import (
    MAX_PATTERN_BYTES,
    MAX_WILDCARDS,
    Pattern,
    PatternError,
    Steps,
    TooManySteps,
    compile_pattern,
    contains,
    counterexample,
    escape,
)
from tests.model.access.naive import matches as naive

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import re._parser as sre_parser  # type: ignore[import-not-found,unused-ignore]

BAD = None
# Pattern, text, answer: the published vectors of Go's path.Match (src/path/match_test.go).
VECTORS: list[tuple[str, str, bool | None]] = [
    ("abc", "abc", True),
    ("*", "abc", True),
    ("*c", "abc", True),
    ("a*", "a", True),
    ("a*", "abc", True),
    ("a*", "ab/c", False),
    ("a*/b", "abc/b", True),
    ("a*/b", "a/c/b", False),
    ("a*b*c*d*e*/f", "axbxcxdxe/f", True),
    ("a*b*c*d*e*/f", "axbxcxdxexxx/f", True),
    ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", False),
    ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", False),
    ("a*b?c*x", "abxbbxdbxebxczzx", True),
    ("a*b?c*x", "abxbbxdbxebxczzy", False),
    ("ab[c]", "abc", True),
    ("ab[b-d]", "abc", True),
    ("ab[e-g]", "abc", False),
    ("ab[^c]", "abc", False),
    ("ab[^b-d]", "abc", False),
    ("ab[^e-g]", "abc", True),
    (r"a\*b", "a*b", True),
    (r"a\*b", "ab", False),
    ("a?b", "a☺b", True),
    ("a[^a]b", "a☺b", True),
    ("a???b", "a☺b", False),
    ("a[^a][^a][^a]b", "a☺b", False),
    ("[a-ζ]*", "α", True),  # noqa: RUF001
    ("*[a-ζ]", "A", False),
    ("a?b", "a/b", False),
    ("a*b", "a/b", False),
    (r"[\]a]", "]", True),
    (r"[\-]", "-", True),
    (r"[x\-]", "x", True),
    (r"[x\-]", "-", True),
    (r"[x\-]", "z", False),
    (r"[\-x]", "x", True),
    (r"[\-x]", "-", True),
    (r"[\-x]", "a", False),
    ("[]a]", "]", BAD),
    ("[-]", "-", BAD),
    ("[x-]", "x", BAD),
    ("[x-]", "-", BAD),
    ("[x-]", "z", BAD),
    ("[-x]", "x", BAD),
    ("[-x]", "-", BAD),
    ("[-x]", "a", BAD),
    ("\\", "a", BAD),
    ("[a-b-c]", "a", BAD),
    ("[", "a", BAD),
    ("[^", "a", BAD),
    ("[^bc", "a", BAD),
    ("a[", "a", BAD),
    ("a[", "ab", BAD),
    ("a[", "x", BAD),
    ("a/b[", "x", BAD),
    ("*x", "xxx", True),
]


@pytest.mark.parametrize(("pattern", "text", "answer"), VECTORS)
def test_vectors_of_go(pattern: str, text: str, answer: bool | None) -> None:
    if answer is BAD:
        with pytest.raises(PatternError):
            compile_pattern(pattern)
    else:
        assert compile_pattern(pattern).matches(text) is answer
        assert naive(pattern, text) is answer


def compiled(text: str) -> Pattern:
    try:
        return compile_pattern(text)
    except PatternError:
        assume(False)
        raise


pieces = st.sampled_from(
    ["*", "*", "?", "a", "b", "/", "ab", "ba", "[ab]", "[^a]", "[^/]", "[/a]", "[b-a]", r"\*", "[^b-a]"]
)
written = st.lists(pieces, max_size=7).map("".join)
texts = st.text(alphabet="ab/*", max_size=9)


@given(written, texts)
@example("*[^b]*a", "b/a")
@example("*[^b]*ab", "/ab")
@example("*a/*", "aa/")
@example("*[/a]/*b", "a//b")
def test_matches_what_the_naive_matcher_does(pattern: str, text: str) -> None:
    assert compile_pattern(pattern).matches(text) is naive(pattern, text)


@pytest.mark.parametrize(("pattern", "text", "answer"), [("*[^b]*c", "a/c", True), ("*[^a][^a]", "☺", False)])
def test_the_documentation_counts_where_go_differs_from_it(pattern: str, text: str, answer: bool) -> None:
    assert compile_pattern(pattern).matches(text) is naive(pattern, text) is answer


@given(st.text(alphabet=r"ab*?[]^-\/", max_size=8), st.text(alphabet=r"ab*?[]^-\/", max_size=6))
def test_any_text_is_refused_or_matches_as_documented(pattern: str, text: str) -> None:
    assert compiled(pattern).matches(text) is naive(pattern, text)


@given(st.lists(pieces, max_size=7).map("".join), texts)
def test_stars_may_cross_the_slash(pattern: str, text: str) -> None:
    assume("[" not in pattern)
    crossing = compile_pattern(pattern, crosses_slash=True)
    assert crossing.matches(text) is naive(pattern.replace("/", "s"), text.replace("/", "s"))
    assert contains(crossing, compile_pattern(pattern))


@given(st.text(max_size=20).filter(lambda text: "\0" not in text), st.text(max_size=20))
def test_an_escaped_text_is_its_name(text: str, other: str) -> None:
    pattern = compile_pattern(escape(text))
    assert pattern.literal == pattern.prefix == text
    assert pattern.matches(text)
    assert pattern.matches(other) is (text == other)


def test_a_name_without_escapes_is_the_same_object() -> None:
    name = "ag::prod::echo::1"
    assert compile_pattern(name).literal is name


@pytest.mark.parametrize(
    ("pattern", "literal", "prefix", "suffix"),
    [
        (r"wh\?t", "wh?t", "wh?t", ""),
        ("wh?t", None, "wh", "t"),
        (r"a\b\\c", "ab\\c", "ab\\c", ""),
        (r"\*x[ab]", None, "*x", ""),
        ("a*b?c*[de]fg", None, "a", "fg"),
        (r"a*b*\*d", None, "a", "*d"),
        ("*", None, "", ""),
        ("", "", "", ""),
        ("a]-^", "a]-^", "a]-^", ""),
    ],
)
def test_literal_parts(pattern: str, literal: str | None, prefix: str, suffix: str) -> None:
    found = compile_pattern(pattern)
    assert (found.literal, found.prefix, found.suffix) == (literal, prefix, suffix)


@pytest.mark.parametrize(
    ("pattern", "position", "reason"),
    [
        ("ab\\", 2, "escapes nothing"),
        ("ab[c", 2, "this class has no end"),
        ("ab[^", 2, "this class has no end"),
        ("ab[c\\", 2, "this class has no end"),
        ("ab[c-", 2, "this class has no end"),
        ("ab[]c]", 3, r"write \] for this one"),
        ("ab[^]c]", 4, r"write \] for this one"),
        ("[a-b-c]", 4, r"write \- for this one"),
        ("a\0*", 1, "zero byte"),
        ("a\ud800", 1, "surrogate"),
        ("a*" * (MAX_WILDCARDS + 1), 2 * MAX_WILDCARDS + 1, "this is wildcard 17; at most 16"),
        ("ä" * (MAX_PATTERN_BYTES // 2) + "b", 0, "1025 bytes"),
    ],
)
def test_malformed_patterns_name_the_place(pattern: str, position: int, reason: str) -> None:
    with pytest.raises(PatternError, match=re.escape(reason)) as caught:
        compile_pattern(pattern)
    assert caught.value.position == position
    assert reason in caught.value.reason
    assert f"character {position + 1}:" in str(caught.value)


def test_the_largest_pattern_is_accepted() -> None:
    assert compile_pattern("a?" * MAX_WILDCARDS).matches("ab" * MAX_WILDCARDS)
    assert compile_pattern("ä" * (MAX_PATTERN_BYTES // 2)).literal


def test_patterns_with_the_same_text_are_equal() -> None:
    assert compile_pattern("a*") == compile_pattern("a*") != compile_pattern("a?")
    assert compile_pattern("a*") != compile_pattern("a*", crosses_slash=True)
    assert len({compile_pattern("a*"), compile_pattern("a*")}) == 1
    assert compile_pattern("a*") != "a*"


@given(written)
def test_an_example_is_matched(text: str) -> None:
    pattern = compile_pattern(text)
    if pattern.example is None:
        assert "[b-a]" in text
    else:
        assert pattern.matches(pattern.example)


def test_examples() -> None:
    assert compile_pattern(r"ag::*::w\?[a-c][^x]?").example == "ag::x::w?ayx"
    assert compile_pattern("[b-a]").example is None


# What a match costs, counted.

BOMBS = ["*a*a*a*a*a*a*b", "*a" * 15 + "*", "?a*" * 8, "*[ab]" * 8, "*a?" * 8, "*[^b]*a" * 5 + "b", "*aab" * 15]


def nested_repeats(parsed: Any, atomic: bool = True) -> Iterator[str]:
    """Yield the repeats of a regular expression that may be tried again."""
    for operation, argument in parsed:
        name = str(operation)
        if name in {"MAX_REPEAT", "MIN_REPEAT"}:
            if not atomic:
                yield name
            assert [str(one) for one, _ in argument[2]] in (["NOT_LITERAL"], ["ANY"])
        elif name == "ATOMIC_GROUP":
            yield from nested_repeats(argument)
        else:
            assert name in {"LITERAL", "NOT_LITERAL", "IN", "ANY", "ASSERT_NOT", "FAILURE"}, name


@pytest.mark.parametrize("text", ["?a*" * 5, "*[ab]" * 8, "*a?" * 8, "a?*[^/]*b[/]c*", "*?*?*x"])
def test_every_star_but_the_last_is_in_an_atomic_group(text: str) -> None:
    chunks = patterns._chunks(patterns._parse(text, False))
    parsed = sre_parser.parse(patterns._source(chunks, False), re.DOTALL)
    repeats = [at for at, (operation, _) in enumerate(parsed) if "REPEAT" in str(operation)]
    assert len(repeats) <= 1
    assert not list(nested_repeats(parsed))
    for operation, argument in parsed:
        if str(operation) == "ATOMIC_GROUP":
            assert sum("REPEAT" in str(one) for one, _ in argument) == 1


class CountingText(str):
    """Counts the searches in it, and the characters that they were given."""

    __slots__ = ("characters",)

    def find(self, piece: str, *bounds: int) -> int:  # type: ignore[override]
        start, end = bounds
        found = super().find(piece, start, end)
        self.characters += (end if found < 0 else found + len(piece)) - start
        return found


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("text", ["a" * 128, "ab" * 64, "a" * 127 + "/", "aab" * 42])
def test_a_bomb_reads_each_character_twice_at_most(bomb: str, text: str) -> None:
    counting = CountingText(text)
    counting.characters = 0
    assert compile_pattern(bomb).matches(counting) is dynamic(bomb, text)
    assert counting.characters <= 2 * len(text)


def test_a_class_that_may_match_a_slash_costs_one_step_for_each_character(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    step = patterns._Automaton.step

    def counted(self: Any, states: int, moves: tuple[int, int]) -> int:
        steps.append(states)
        return step(self, states, moves)

    monkeypatch.setattr(patterns._Automaton, "step", counted)
    assert not compile_pattern("*[^b]*a" * 5 + "b").matches("a" * 128)
    assert len(steps) == 128


@pytest.mark.parametrize("pattern", ["*[/]b*", "*[^a]*/*[//]*", "[^a]*b*", "*b*[^a]", "*a/[^a]*"])
def test_other_classes_need_no_steps(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    certain = pattern != "*[^a]*/*[//]*"
    monkeypatch.setattr(patterns._Automaton, "step", lambda *_: pytest.fail("a step") if certain else 0)
    assert compile_pattern(pattern).matches("zz") is naive(pattern, "zz")


def dynamic(pattern: str, text: str) -> bool:
    """The documentation again, by the set of reached positions; for long texts."""
    parts = re.findall(r"\[[^\]]*\]|\\.|.", pattern, re.DOTALL)
    ends = {0}
    for part in parts:
        if part == "*":
            ends = {end for start in ends for end in range(start, len(text) + 1) if "/" not in text[start:end]}
        else:
            ends = {end + 1 for end in ends if end < len(text) and naive(part, text[end])}
    return len(text) in ends


# Containment.

SMALL = ["".join(one) for size in range(6) for one in itertools.product("ab/", repeat=size)]


@given(written, written)
@example("*", "[^b-a]")
@example("a*b", "a[^/]b")
@example("*a*", "*aa*")
@example("?*", "*?")
@example("[^a]*", "[b/]*")
def test_containment_is_exact(outer: str, inner: str) -> None:
    wide, narrow = compile_pattern(outer), compile_pattern(inner)
    witness = counterexample(wide, narrow)
    if witness is None:
        assert contains(wide, narrow)
        assert all(naive(outer, text) for text in SMALL if naive(inner, text))
    else:
        assert not contains(wide, narrow)
        assert naive(inner, witness)
        assert not naive(outer, witness)


@given(written)
def test_containment_of_itself_and_of_what_is_smaller(text: str) -> None:
    pattern = compile_pattern(text)
    assert contains(pattern, pattern)
    for one in SMALL:
        assert contains(pattern, compile_pattern(escape(one))) is pattern.matches(one)


@pytest.mark.parametrize(
    ("outer", "inner", "answer"),
    [
        ("*", "a*", True),
        ("*", "a/b", False),
        ("a*", "*", False),
        ("ag::prod::*", "ag::prod::echo::*", True),
        ("ag::prod::*", "ag::prod*", False),
        ("ag::*::echo::*", "ag::prod::echo::1", True),
        ("[a-z]*", "[b-y]?", True),
        ("[a-z]*", "[b-z]/", False),
        ("a?c", "a[b/]c", False),
        ("*a*b*", "*ab*", True),
        ("*ab*", "*a*b*", False),
        ("x[b-a]", "y[b-a]", True),  # neither matches anything
        ("", "", True),
        ("**", "*", True),
    ],
)
def test_containment(outer: str, inner: str, answer: bool) -> None:
    assert contains(compile_pattern(outer), compile_pattern(inner)) is answer


def test_a_comparison_that_takes_too_long_counts_as_wider() -> None:
    outer = compile_pattern("*a" + "?" * 14 + "*")
    inner = compile_pattern("*[ab]" * 8)
    with pytest.raises(TooManySteps):
        counterexample(outer, compile_pattern("*a" + "[ab]" * 14 + "b*"))
    assert not contains(outer, compile_pattern("*a" + "[ab]" * 14 + "b*"))
    assert not contains(outer, inner)


HUGE = "prod" + "".join(map(chr, range(0xA1, 0xA1 + 500))) + "*"
"""As long as a pattern may be, of as many characters."""


@pytest.mark.parametrize("outer", ["prod*", "*", "prod" + "?" * 8 + "*", HUGE + "x*", "*".join(HUGE[4:-1:40])])
def test_long_patterns_of_many_characters_cost_no_more(outer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    step = patterns._Automaton.step

    def counted(self: Any, *arguments: Any) -> int:
        nonlocal taken
        taken += 1
        return step(self, *arguments)

    monkeypatch.setattr(patterns._Automaton, "step", counted)
    assert contains(compile_pattern(outer), compile_pattern(HUGE)) is outer.startswith(("prod*", "*", "prod?"))
    assert taken <= 2 * patterns.MAX_STEPS


def test_many_comparisons_share_their_steps() -> None:
    outer, inner = compile_pattern("prod*"), compile_pattern(HUGE)
    steps = Steps(5000)
    assert contains(outer, inner, steps)
    assert 0 < steps.left < 4000
    assert not contains(outer, inner, Steps(100))
    while contains(outer, inner, steps):
        assert steps.left
    assert contains(outer, compile_pattern("product"), steps)  # a name is no comparison


def test_a_counterexample_is_readable() -> None:
    assert counterexample(compile_pattern("a*"), compile_pattern("*")) == ""
    found = counterexample(compile_pattern("a?"), compile_pattern("a*"))
    assert found is not None
    assert found.isprintable()
    assert counterexample(compile_pattern("[a-y]"), compile_pattern("?")) in {"0", "z"}
