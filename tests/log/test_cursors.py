"""Positions on their way to the disk."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from aether_trio.log.cursors import CursorStore
from aether_trio.log.topic_cache import CachedTopic


def make() -> tuple[CursorStore, CachedTopic, list[bool]]:
    """A store, a topic of it, and how often the committer was woken."""
    wakes: list[bool] = []
    state = CachedTopic("ag::w::a::1")
    state.topic_id = 7
    return CursorStore(lambda: wakes.append(True)), state, wakes


names = st.sampled_from(["me", "you", "lost"])
steps = st.one_of(
    st.tuples(st.just("advance"), names, st.integers(1, 9)),
    st.tuples(st.just("drop"), names),
    st.tuples(st.sampled_from(["begin", "end", "abort"])),
)


@given(st.lists(steps, min_size=15, max_size=40))
@example([("advance", "lost", 9), ("begin",), ("drop", "lost"), ("advance", "lost", 4), ("abort",), ("begin",)])
def test_a_cursor_is_known_until_it_is_written_and_goes_back_only_when_it_is_dropped(script: list[Any]) -> None:
    """It keeps its topic in memory, and wakes the committer when it is the first."""
    store, state, wakes = make()
    dirty: dict[str, int] = {}
    writing: dict[str, int] | None = None
    dropped: set[str] = set()
    for step in script:
        match step:
            case ("advance", name, offset):
                woken = len(wakes) + (not dirty)
                store.advance(state, name, offset)
                dirty[name] = max(offset, dirty.get(name, 0))
                assert len(wakes) == woken
            case ("drop", gone):
                store.drop(lambda name, gone=gone: name != gone)  # type: ignore[misc]
                dirty.pop(gone, None)
                dropped |= {gone} & (writing or {}).keys()
            case ("begin",) if writing is None:
                assert store.begin_flush() == [state] * len(dirty)
                writing, dirty = dirty, {}
                assert sorted(store.rows(99)) == [(7, name, writing[name], 99) for name in sorted(writing)]
            case ("end" | "abort" as how,) if writing is not None:
                store.end_flush() if how == "end" else store.abort_flush()
                back = {name: offset for name, offset in writing.items() if how == "abort" and name not in dropped}
                dirty = {name: max(back.get(name, 0), dirty.get(name, 0)) for name in back | dirty}
                writing, dropped = None, set()
        known = {name: offset for name, offset in (writing or {}).items() if name not in dropped} | dirty
        assert {name: store.unwritten(state, name) for name in ("me", "you", "lost")} == {
            name: known.get(name) for name in ("me", "you", "lost")
        }
        assert (store.dirty, store.void) == (bool(dirty), bool(dropped))
        assert state.waiting == len(dirty) + len(writing or {})
        assert state.forgettable == (not state.waiting)


def test_what_was_written_during_a_read_is_remembered_until_all_reads_are_over() -> None:
    store, state, _ = make()
    store.advance(state, "me", 5)
    with store.remembering():
        with store.remembering():
            store.begin_flush()
            store.end_flush()
            assert store.unwritten(state, "me") == 5
        assert store.unwritten(state, "me") == 5
    assert store.unwritten(state, "me") is None


async def test_saving_waits_for_what_was_dirty_and_for_nothing_later(autojump_clock: trio.testing.MockClock) -> None:
    store, state, wakes = make()
    await store.save()
    assert not store.hurry, "there was nothing to wait for"
    store.advance(state, "me", 5)
    saved: list[str] = []

    async def save(name: str) -> None:
        await store.save()
        saved.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(save, "first")
        await trio.testing.wait_all_tasks_blocked()
        assert store.hurry
        assert len(wakes) == 2
        store.begin_flush()
        nursery.start_soon(save, "second, of what is being written")
        await trio.testing.wait_all_tasks_blocked()
        store.advance(state, "me", 6)
        nursery.start_soon(save, "third")
        await trio.testing.wait_all_tasks_blocked()
        store.abort_flush()
        await trio.testing.wait_all_tasks_blocked()
        assert saved == [], "a flush that failed has saved nothing"
        store.begin_flush()
        store.advance(state, "you", 1)
        store.end_flush()
        await trio.testing.wait_all_tasks_blocked()
        assert len(saved) == 3, "what came later is not waited for"
    assert store.unwritten(state, "you") == 1


async def test_no_task_waits_for_a_dropped_cursor() -> None:
    store, state, _ = make()
    store.advance(state, "lost", 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.save)
        await trio.testing.wait_all_tasks_blocked()
        store.drop(lambda _: False)
    store.advance(state, "lost", 6)
    store.begin_flush()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.save)
        await trio.testing.wait_all_tasks_blocked()
        store.drop(lambda _: False)
        store.abort_flush()
