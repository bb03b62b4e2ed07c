"""Test which assigned tasks wait to be begun: each once, none after a cut."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from aether_trio.client.errors import ConnectionLost, SessionEnded
from aether_trio.client.jobs import intake as intake_module
from aether_trio.client.jobs.intake import AssignmentIntake
from aether_trio.wire.pb import aether_pb2 as pb


def given(task_id: str, payload: bytes = b"") -> pb.TaskAssignment:
    return pb.TaskAssignment(task_id=task_id, payload=payload)


async def taken(intake: AssignmentIntake, count: int) -> list[tuple[str, bytes]]:
    found = [await anext(intake) for _ in range(count)]
    return [(one.task_id, one.payload) for one in found]


async def test_in_the_order_of_the_latest_assignment() -> None:
    intake = AssignmentIntake(lambda task_id: None)
    for thing in (given("a", b"1"), given("b"), given("a", b"2"), given("c")):
        intake.put(thing)
    assert len(intake) == 3
    assert await taken(intake, 3) == [("b", b""), ("a", b"2"), ("c", b"")]


async def test_what_is_in_hand_is_told_and_comes_when_it_is_put_down() -> None:
    repeated: list[str] = []
    intake = AssignmentIntake(repeated.append)
    intake.put(given("a", b"1"))
    assert await taken(intake, 1) == [("a", b"1")]
    assert repeated == []
    intake.put(given("a", b"2"))
    assert repeated == ["a"]
    found: list[tuple[str, bytes]] = []
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            found.extend(await taken(intake, 1))

        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        assert found == []
        intake.put_down("a")
    assert found == [("a", b"2")]
    intake.put(given("a", b"3"))
    intake.forget("a")
    intake.put_down("a")
    assert not intake.has("a")


async def test_a_cut_empties_it() -> None:
    intake = AssignmentIntake(lambda task_id: None)
    intake.put(given("a"))
    intake.put(ConnectionLost("cut", in_doubt=True))
    intake.put(given("b"))
    assert await taken(intake, 1) == [("b", b"")]


async def test_the_end_and_the_failure_of_the_client() -> None:
    intake = AssignmentIntake(lambda task_id: None)
    intake.put(given("a"))
    intake.close()
    intake.put(given("b"))
    assert await taken(intake, 1) == [("a", b"")]
    with pytest.raises(StopAsyncIteration):
        await anext(intake)
    intake = AssignmentIntake(lambda task_id: None)
    async with trio.open_nursery() as nursery:

        async def take() -> None:
            with pytest.raises(SessionEnded):
                await anext(intake)

        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        intake.close(SessionEnded("X", "over"))


async def test_a_program_that_takes_no_work_keeps_only_so_much_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "IDLE_COUNT", 10)
    monkeypatch.setattr(intake_module, "IDLE_BYTES", 100)
    intake = AssignmentIntake(lambda task_id: None)
    for number in range(20):
        intake.put(given(str(number)))
    assert (len(intake), intake.dropped) == (10, 10)
    intake.put(given("big", b"x" * 90))
    intake.put(given("small", b"x" * 11))
    assert not intake.has("big")
    assert intake.has("small")
    await anext(intake)
    for number in range(20, 40):
        intake.put(given(str(number), b"x" * 90))
    assert len(intake) == 20 + 0  # nothing is dropped of what is taken
