"""Pages of what is connected, against a plain list that is filtered and sorted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.identity import Identity, Kind
from aether_trio.model.ownership import WorkspaceUse
from aether_trio.session.roster import Roster

WORKSPACES = ("w", "w1", "w:1", "v", "wa")
NAMES = ("a", ":a", "a:b", "b", "b;", "~")


def identities() -> Iterator[Identity]:
    for workspace in WORKSPACES:
        for name in NAMES:
            yield Identity.agent(workspace, name, ":1")
            yield Identity.unique_task(workspace, name, "1")
            yield Identity.task(workspace, "t", name)
    for name in NAMES:
        yield Identity.user("ada", name)
        yield Identity.user("ada1", name)
        yield Identity.user("ad", name)
        yield Identity.orchestrator("o", name)
        yield Identity.bridge("b", name)
        yield Identity.service("s", name)
    yield Identity.workflow_engine()
    yield Identity.metrics_bridge()


ALL = tuple(identities())
USERS = tuple(identity for identity in ALL if identity.kind is Kind.USER)
STEPS = st.one_of(
    st.tuples(st.just("toggle"), st.sampled_from(ALL)),
    st.tuples(st.sampled_from(("", *WORKSPACES)), st.sampled_from(USERS)),
)


@given(
    st.lists(STEPS, max_size=60),
    st.frozensets(st.sampled_from(Kind), max_size=3),
    st.sampled_from(("", *WORKSPACES)),
    st.integers(0, 30),
    st.integers(1, 30),
)
def test_a_page_is_that_of_a_sorted_list(
    steps: list[tuple[str, Identity]], kinds: frozenset[Kind], workspace: str, offset: int, limit: int
) -> None:
    roster, model = Roster(), dict[Identity, str]()
    for what, identity in steps:
        if what != "toggle":
            if identity in model:
                roster.move(identity.text, what)
                model[identity] = what
        elif identity in model:
            roster.remove(identity)
            del model[identity]
        else:
            roster.add(identity)
            model[identity] = identity.workspace
    matching = sorted(
        identity.text
        for identity, place in model.items()
        if (not kinds or identity.kind in kinds) and (not workspace or place == workspace)
    )
    assert roster.page(kinds, workspace, offset, limit) == (matching[offset : offset + limit], len(matching))
    for user in ("ada", "ada1", "ad", "unknown"):
        assert roster.windows(user) == sorted(one.text for one in model if one.user_id == user)


def test_a_page_costs_what_is_on_it() -> None:
    """Of ten thousand sessions only those on the page are visited."""

    class Counted(list[str]):
        looked = 0

        def __getitem__(self, key: object) -> object:  # type: ignore[override]
            found = super().__getitem__(key)  # type: ignore[index]
            Counted.looked += len(found) if isinstance(key, slice) else 1
            return found

        def __iter__(self) -> Iterator[str]:
            raise AssertionError("all sessions are gone through")

    roster = Roster()
    for number in range(10_000):
        roster.add(Identity.agent("w", "a", f"{number:05}"))
    roster._kinds[Kind.AGENT] = Counted(roster._kinds[Kind.AGENT])
    found, total = roster.page((), "w", 5_000, 10)
    assert (found[0], len(found), total) == ("ag::w::a::05000", 10, 10_000)
    assert Counted.looked <= 100


@given(st.lists(STEPS, max_size=60), st.sampled_from(("", *WORKSPACES, "none")))
def test_the_use_of_workspaces_is_that_of_a_plain_count(steps: list[tuple[str, Identity]], workspace: str) -> None:
    roster, model = Roster(), dict[Identity, str]()
    for what, identity in steps:
        if what != "toggle":
            if identity in model:
                roster.move(identity.text, what)
                model[identity] = what
        elif identity in model:
            roster.remove(identity)
            del model[identity]
        else:
            roster.add(identity)
            model[identity] = identity.workspace
    columns = {Kind.AGENT: "agents", Kind.UNIQUE_TASK: "tasks", Kind.TASK: "tasks", Kind.USER: "users"}
    counts: dict[str, Counter[str]] = {}
    for identity, place in model.items():
        if place and identity.kind in columns and workspace in {"", place}:
            counts.setdefault(place, Counter())[columns[identity.kind]] += 1
    assert roster.use(workspace) == {place: WorkspaceUse(**found) for place, found in counts.items()}
