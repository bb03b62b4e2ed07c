"""Changes that are applied at once have the effect of the same changes one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.rules import Member
from aether_trio.services.access import records
from aether_trio.services.access.authorizer import NoDecisions, NoGrants
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from tests.helpers.clocks import ManualClock

Change = tuple[str, str, Any]


class Recorder:
    """Collects the listeners of an authorizer, as AccessChanges does."""

    def __init__(self) -> None:
        self.listeners: dict[str, Any] = {}
        self.index = AccessIndex()
        RuleAuthorizer(self.index, ManualClock(), NoGrants(), NoDecisions()).follow(self)  # type: ignore[arg-type]

    def when_applied(self, kind: str, listener: Any, loader: Any = None) -> None:
        self.listeners[kind] = listener

    def when_expired(self, next_expiry: Any, call: Any) -> None:
        """Nothing expires."""

    def apply(self, page: Sequence[Change]) -> None:
        by_kind: dict[str, list[tuple[str, Any]]] = {}
        for kind, key, value in page:
            by_kind.setdefault(kind, []).append((key, value))
        for kind, items in by_kind.items():
            self.listeners[kind](items, False)

    def state(self) -> tuple[Any, ...]:
        index = self.index
        members = sorted((one.kind, one.name, one.member_type, one.member_id) for one in index.memberships())
        return (
            sorted((one.rule_id, one.principal_id, one.resource_id, one.level) for one in index.rules()),
            members,
            dict(index.fallbacks()),
            sorted(one.lock_id for one in index.locks()),
        )


def _member(name: str, member: str) -> str:
    return records.member_key(Member("group", name, "agent", member, "", 0, 0))


RULES = st.builds(
    lambda number, level: (
        (records.RULE, f"r{number}", level and ["agent", f"a{number % 2}", "workspace", "w", level, "by", 0, 0, ""])
    ),
    st.integers(0, 3),
    st.sampled_from((None, 10, 20)),
)
MEMBERS = st.builds(
    lambda name, member, there: (records.MEMBER, _member(name, member), ["by", 0, 0] if there else None),
    st.sampled_from("gh"),
    st.sampled_from("ab"),
    st.booleans(),
)
FALLBACKS = st.builds(
    lambda category, level: (records.FALLBACK, category, level),
    st.sampled_from(("agent_workspace", "user_workspace")),
    st.sampled_from((None, 10, 20)),
)
LOCKS = st.builds(
    lambda number, there: (records.LOCK, f"l{number}", ["ag::*", "", "by", 0, 0] if there else None),
    st.integers(0, 2),
    st.booleans(),
)


@given(st.lists(st.one_of(RULES, MEMBERS, FALLBACKS, LOCKS), max_size=12))
def test_a_page_is_applied_like_its_changes_one_by_one(changes: list[Change]) -> None:
    at_once, one_by_one = Recorder(), Recorder()
    at_once.apply(changes)
    for change in changes:
        one_by_one.apply([change])
    assert at_once.state() == one_by_one.state()
