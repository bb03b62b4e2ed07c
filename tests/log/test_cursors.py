"""Positions on their way to the disk."""

from __future__ import annotations

import trio
import trio.testing

from aether_trio.log.cached_topic import CachedTopic
from aether_trio.log.cursors import CursorStore


class Wakes:
    """Counts wake-ups of the committer."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def make() -> tuple[CursorStore, CachedTopic, Wakes]:
    wakes = Wakes()
    state = CachedTopic("ag::w::a::1")
    state.topic_id = 7
    return CursorStore(wakes), state, wakes


def test_a_cursor_wakes_the_committer_once_and_never_moves_back() -> None:
    store, state, wakes = make()
    store.advance(state, "me", 5)
    store.advance(state, "me", 3)
    store.advance(state, "you", 1)
    assert (store.unwritten(state, "me"), store.unwritten(state, "you")) == (5, 1)
    assert wakes.count == 1
    assert store.begin_flush() == [state, state]
    assert sorted(store.rows(99)) == [(7, "me", 5, 99), (7, "you", 1, 99)]


def test_what_is_being_written_is_still_known_and_pins_its_topic() -> None:
    store, state, _ = make()
    store.advance(state, "me", 5)
    assert state.waiting == 1
    store.begin_flush()
    assert not store.dirty
    assert store.unwritten(state, "me") == 5
    assert not state.forgettable
    store.end_flush()
    assert store.unwritten(state, "me") is None
    assert state.forgettable


def test_a_flush_that_failed_is_merged_with_what_came_since() -> None:
    store, state, wakes = make()
    store.advance(state, "me", 5)
    store.advance(state, "you", 2)
    store.begin_flush()
    store.advance(state, "me", 6)
    assert wakes.count == 2
    store.abort_flush()
    assert (store.unwritten(state, "me"), store.unwritten(state, "you")) == (6, 2)
    assert state.waiting == 2
    store.begin_flush()
    store.end_flush()
    assert state.forgettable


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
        assert wakes.count == 2
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


def test_what_was_dropped_is_not_written_any_more_and_pins_nothing() -> None:
    store, state, _ = make()
    store.advance(state, "mine", 5)
    store.advance(state, "lost", 3)
    store.drop("mine".__eq__)
    assert (store.unwritten(state, "mine"), store.unwritten(state, "lost")) == (5, None)
    assert state.waiting == 1
    store.begin_flush()
    assert store.rows(99) == [(7, "mine", 5, 99)]
    store.end_flush()
    assert state.forgettable


def test_what_is_dropped_on_its_way_does_not_come_back_when_it_was_refused() -> None:
    store, state, _ = make()
    store.advance(state, "mine", 5)
    store.advance(state, "lost", 3)
    store.begin_flush()
    assert not store.void
    store.drop("mine".__eq__)
    assert store.void
    assert (store.unwritten(state, "mine"), store.unwritten(state, "lost")) == (5, None)
    store.abort_flush()
    assert not store.void
    assert (store.unwritten(state, "mine"), store.unwritten(state, "lost")) == (5, None)
    assert state.waiting == 1


def test_a_later_session_of_the_same_name_moves_its_own() -> None:
    store, state, _ = make()
    store.advance(state, "lost", 9)
    store.begin_flush()
    store.drop(lambda _: False)
    store.advance(state, "lost", 4)
    store.abort_flush()
    assert store.unwritten(state, "lost") == 4
    store.begin_flush()
    store.end_flush()
    assert state.forgettable


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
