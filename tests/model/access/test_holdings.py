"""What is sure over a pattern and what a removal gives, name by name."""

from __future__ import annotations

from itertools import product
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.access.holdings import Holder, Holdings
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.access.patterns import compile_pattern
from aether_trio.model.access.rules import Member, Rule

NAMES: Final = ["".join(letters) for size in (1, 2, 3) for letters in product("ab", repeat=size)]
PATTERNS: Final = ["*", "a*", "*b", "?", "a?", "[ab]b", "a", "ab", "b"]
HOLDER: Final = Holder("agent", "x", own_workspace="ab")
NOW: Final = 10

levels = st.sampled_from(AccessLevel)
ends = st.sampled_from([0, 20, 30, 40])
subjects = st.sampled_from(
    [("agent", "x"), ("agent", "?"), ("group", "g"), ("group", "h*"), ("wildcard", "_any_agent"), ("agent", "other")]
)


def index_of(rules: list[Rule], members: list[Member], fallback: AccessLevel, own: AccessLevel | None) -> AccessIndex:
    index = AccessIndex()
    for rule in rules:
        index.put_rule(rule)
    for member in members:
        index.put_membership(member)
    index.set_fallback("agent_workspace", fallback)
    if own is not None:
        index.put_rule(Rule("own", "wildcard", "_own_workspace", "workspace", "_own", own))
    return index


@st.composite
def indexes(draw: st.DrawFn) -> tuple[AccessIndex, AccessIndex]:
    """Access data, and what is left of them when some are removed."""
    made = draw(st.lists(st.tuples(subjects, st.sampled_from(PATTERNS), levels, ends), max_size=6))
    once = {(subject, resource): (level, end) for subject, resource, level, end in made}
    rules = [
        Rule(f"r{number}", *subject, "workspace", resource, level, expires_ms=end)
        for number, ((subject, resource), (level, end)) in enumerate(once.items())
    ]
    members = [
        Member("group", name, "agent", "x", expires_ms=draw(ends)) for name in ("g", "hh") if draw(st.booleans())
    ]
    fallback, own = draw(levels), draw(st.none() | levels)
    kept_rules = [one for one in rules if draw(st.booleans())]
    kept_members = [one for one in members if draw(st.booleans())]
    return index_of(rules, members, fallback, own), index_of(kept_rules, kept_members, fallback, own)


def level(index: AccessIndex, name: str, now_ms: int) -> AccessLevel:
    own = HOLDER.own_workspace
    return index.decide(HOLDER.principal_type, HOLDER.principal_id, "workspace", name, now_ms, own_workspace=own).level


@given(indexes(), st.sampled_from(PATTERNS), st.sampled_from([10, 20, 30, 40]))
def test_what_is_sure_is_held_on_each_name(made: tuple[AccessIndex, AccessIndex], asked: str, moment_ms: int) -> None:
    index, _ = made
    sure = Holdings(index, HOLDER, NOW).at(moment_ms).sure("workspace", asked)
    pattern = compile_pattern(asked)
    assert all(level(index, name, moment_ms) >= sure for name in NAMES if pattern.matches(name))


@given(indexes(), levels)
def test_without_a_gain_no_name_gives_more(made: tuple[AccessIndex, AccessIndex], cap: AccessLevel) -> None:
    before, after = made
    held = Holdings(before, HOLDER, NOW)
    moments = sorted({NOW, *held.ends()})
    gains = []
    for moment_ms in moments:
        then = held.at(moment_ms)
        gains.append(Holdings(after, HOLDER, moment_ms).gain(then.held_down(list(then.rules()), cap), cap))
    if any(gains):
        return
    for moment_ms in (NOW, 19, 20, 21, 29, 30, 31, 39, 40, 41, 1 << 60):
        for name in NAMES:
            old, new = (min(cap, level(one, name, moment_ms)) for one in (before, after))
            assert new <= old, (name, moment_ms)


@given(indexes())
def test_what_does_not_change_gives_nothing(made: tuple[AccessIndex, AccessIndex]) -> None:
    index, _ = made
    held = Holdings(index, HOLDER, NOW)
    assert held.gain(held.held_down(list(held.rules()), AccessLevel.SUPERADMIN), AccessLevel.SUPERADMIN) is None
    assert held.terms == Holdings(index, HOLDER, NOW).terms


def test_rights_that_are_no_less_behind_a_rule_are_no_gain() -> None:
    ban = Rule("ban", "agent", "x", "workspace", "a*", AccessLevel.NONE)
    wide = Rule("wide", "agent", "x", "workspace", "*", AccessLevel.SUPERADMIN)
    index = index_of([ban, wide], [], AccessLevel.READWRITE, None)
    held_down = Holdings(index, HOLDER, NOW).held_down([ban], AccessLevel.SUPERADMIN)
    index.remove_rule("ban")
    assert Holdings(index, HOLDER, NOW).gain(held_down, AccessLevel.SUPERADMIN) is None
    index.remove_rule("wide")
    gain = Holdings(index, HOLDER, NOW).gain(held_down, AccessLevel.SUPERADMIN)
    assert gain is not None
    assert (gain.rule, gain.new) == (ban, AccessLevel.READWRITE)
