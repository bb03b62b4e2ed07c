"""Holds: one per identity, given back by comparison, counted right."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.ownership import SessionHistory
from aether_trio.session import registry as module
from aether_trio.session.registry import SessionRegistry

A1 = Identity.agent("w", "a", "1")


@dataclass(eq=False)
class Stub:
    identity: Identity
    session_id: str
    history: SessionHistory = field(init=False)
    takes_any: bool = True

    def __post_init__(self) -> None:
        self.history = SessionHistory(self.session_id, 1000, 0)


def make(identity: Identity = A1, session_id: str = "s1") -> Stub:
    return Stub(identity, session_id)


def claim(registry: SessionRegistry, session: Stub, resume: str = "") -> tuple[Stub | None, SessionHistory | None]:
    return registry.claim(session, resume)  # type: ignore[arg-type, return-value]


def test_a_held_identity_is_refused_unless_its_session_is_named() -> None:
    registry, first, second = SessionRegistry(), make(), make(session_id="s2")
    assert claim(registry, first) == (None, None)
    for resume in ("", "s0", "s2"):
        with pytest.raises(StatusError) as caught:
            claim(registry, second, resume)
        assert caught.value.status is Status.ALREADY_EXISTS
    assert registry.holder(A1.text) is first
    assert claim(registry, second, "s1") == (first, first.history)
    assert registry.holder(A1.text) is second
    assert registry.session("s1") is None
    statistics = registry.statistics()
    assert (statistics.claims, statistics.takeovers, statistics.refused) == (2, 1, 3)


def test_what_is_remembered_of_the_ended_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED_ENDS", 3)
    registry = SessionRegistry()
    for number in range(10):
        session = make(Identity.agent("w", "a", f"{number}"), f"s{number}")
        claim(registry, session)
        registry.release(session)  # type: ignore[arg-type]
    assert [number for number in range(10) if registry.remembers(f"ag::w::a::{number}")] == [7, 8, 9]


def test_services_take_turns_and_one_that_leaves_is_not_chosen() -> None:
    registry = SessionRegistry()
    instances = [make(Identity.service("s", f"{number}"), f"s{number}") for number in range(3)]
    assert registry.pick_service("s") is None
    for instance in instances:
        claim(registry, instance)
    picked = [registry.pick_service("s") for _ in range(6)]
    assert picked == [*instances, *instances]
    registry.release(instances[1])  # type: ignore[arg-type]
    assert {id(registry.pick_service("s")) for _ in range(4)} == {id(instances[0]), id(instances[2])}
    registry.release(instances[0])  # type: ignore[arg-type]
    registry.release(instances[2])  # type: ignore[arg-type]
    assert registry.pick_service("s") is None
    assert registry.instances("s") == []


def test_services_that_have_left_leave_nothing_behind() -> None:
    """Clients choose the names, so an entry for each would grow without bound."""
    registry = SessionRegistry()
    for number in range(50):
        instances = [make(Identity.service(f"s{number}", one), f"{number}-{one}") for one in ("1", "2")]
        for instance in instances:
            claim(registry, instance)
        assert registry.pick_service(f"s{number}") is instances[0]
        for instance in instances:
            assert registry.release(instance)  # type: ignore[arg-type]
    assert (registry._services, registry._turns) == ({}, {})
    assert (registry._by_identity, registry._by_id, registry._workspaces) == ({}, {}, {})


identities = st.sampled_from(
    [Identity.agent("w", "a", "1"), Identity.agent("v", "a", "1"), Identity.service("s", "1"), Identity.user("u", "1")]
)
steps = st.lists(st.tuples(identities, st.sampled_from(("connect", "resume", "end", "end an old one"))), max_size=60)


@given(steps)
def test_counts_and_indexes_agree_with_a_model(script: list[tuple[Identity, str]]) -> None:
    registry = SessionRegistry(lambda workspace: 5)
    held: dict[str, Stub] = {}
    displaced: list[Stub] = []
    for number, (identity, action) in enumerate(script):
        session = make(identity, f"s{number}")
        holder = held.get(identity.text)
        if action == "connect" and holder is None:
            claim(registry, session)
            held[identity.text] = session
        elif action == "connect":
            with pytest.raises(StatusError):
                claim(registry, session)
        elif action == "resume" and holder is not None:
            assert claim(registry, session, holder.session_id)[0] is holder
            held[identity.text] = session
            displaced.append(holder)
        elif action == "end" and holder is not None:
            assert registry.release(held.pop(identity.text))  # type: ignore[arg-type]
        elif action == "end an old one" and displaced:
            assert not registry.release(displaced.pop())  # type: ignore[arg-type]
        assert {one.session_id for one in registry} == {one.session_id for one in held.values()}
        assert all(registry.session(one.session_id) is one for one in held.values())
        live = registry.statistics().live
        assert live == {kind.value: sum(one.identity.kind is kind for one in held.values()) for kind in Kind}
        assert (registry.pick_service("s") is not None) == ("sv::s::1" in held)
        page, total = registry.page((), "", 0, 10)
        assert [one.identity.text for one in page] == sorted(held)
        assert total == len(held)
