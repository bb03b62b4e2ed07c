"""The budget of unfinished input without sockets: who is given up, and when."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from aether_trio.model.errors import Status, StatusError
from aether_trio.transport.socket.unfinished_input import (
    LOOKS,
    PROGRESS_BYTES,
    InputAccount,
    UnfinishedInput,
    UnfinishedLimits,
)

KIB = 1024
LIMITS = UnfinishedLimits(total_bytes=1000 * KIB, free_bytes=10 * KIB, wait_s=30.0)


class Receiver:
    """Holds nothing but what it was told."""

    def __init__(self, account: InputAccount, *, accepted: bool = True) -> None:
        self.account = account
        self.accepted = accepted
        self.awaits_rest = True
        self.held = 0
        self.error: StatusError | None = None

    def take(self, size: int, *, anew: bool = False) -> None:
        """So many bytes more, or the first of another message."""
        self.held = size if anew else self.held + size
        self.account.note(self, self.held, anew=anew)

    def give_up(self, error: StatusError) -> None:
        assert self.error is None
        self.error = error
        self.held = 0
        self.account.note(self, 0)


@pytest.fixture
def budget() -> UnfinishedInput:
    return UnfinishedInput(LIMITS)


@pytest.fixture
def watched(budget: UnfinishedInput, nursery: trio.Nursery) -> UnfinishedInput:
    nursery.start_soon(budget.watch)
    return budget


def receiver(budget: UnfinishedInput, host: str = "192.0.2.1", *, accepted: bool = True) -> Receiver:
    return Receiver(budget.account((host, 1)), accepted=accepted)


def given_up(receivers: list[Receiver]) -> list[int]:
    return [number for number, one in enumerate(receivers) if one.error is not None]


async def test_what_is_within_the_allowance_of_its_connection_does_not_count(budget: UnfinishedInput) -> None:
    many = [receiver(budget) for _ in range(500)]
    for one in many:
        one.take(10 * KIB)
    assert given_up(many) == []
    found = budget.statistics()
    assert (found.messages, found.bytes, found.counted_bytes) == (500, 5000 * KIB, 0)


async def test_the_streams_of_one_connection_share_its_allowance(budget: UnfinishedInput) -> None:
    account = budget.account(("192.0.2.1", 1))
    for _ in range(10):
        Receiver(account).take(10 * KIB)
    assert budget.statistics().counted_bytes == 90 * KIB


async def test_of_equals_the_one_that_is_silent_for_the_longest_is_given_up(budget: UnfinishedInput) -> None:
    many = [receiver(budget) for _ in range(4)]
    for one in many:
        one.take(200 * KIB)
        await trio.sleep(0.1)
    many[0].take(20 * KIB)
    await trio.sleep(0.1)
    receiver(budget).take(250 * KIB)
    assert given_up(many) == [1]
    assert many[1].error is not None
    assert many[1].error.status is Status.RESOURCE_EXHAUSTED
    assert budget.statistics().given_up == 1


async def test_those_just_below_an_even_share_do_not_outlive_the_one_above_it(budget: UnfinishedInput) -> None:
    waiting = [receiver(budget) for _ in range(9)]
    for one in waiting:
        one.take(100 * KIB)
    honest = receiver(budget)
    for _ in range(10):
        await trio.sleep(0.1)
        honest.take(40 * KIB)
    assert honest.error is None
    assert len(given_up(waiting)) == 3


async def test_one_that_is_slow_goes_before_one_that_is_silent_for_a_moment(watched: UnfinishedInput) -> None:
    dripping, steady = receiver(watched), receiver(watched)
    dripping.take(400 * KIB)
    steady.take(300 * KIB)
    await trio.sleep(0.1)
    for _ in range(2 * LOOKS // 3):
        await trio.sleep(LIMITS.wait_s / LOOKS)
        steady.take(PROGRESS_BYTES)
        dripping.take(1)
    receiver(watched).take(200 * KIB)
    assert (dripping.error is not None, steady.error) == (True, None)


async def test_a_small_message_is_not_given_up_for_a_large_one(budget: UnfinishedInput) -> None:
    small = receiver(budget)
    small.take(20 * KIB)
    await trio.sleep(1)
    large = [receiver(budget) for _ in range(4)]
    for one in large:
        one.take(260 * KIB)
        await trio.sleep(1)
    assert small.error is None
    assert given_up(large) == [0]


async def test_the_host_that_holds_the_most_gives_way(budget: UnfinishedInput) -> None:
    honest = receiver(budget, "192.0.2.9")
    honest.take(400 * KIB)
    await trio.sleep(1)
    many = [receiver(budget, "192.0.2.1") for _ in range(20)]
    for one in many:
        one.take(100 * KIB)
    assert honest.error is None
    assert len(given_up(many)) >= 12


@pytest.mark.parametrize(
    ("others", "together"),
    [
        (["2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:0:8::3"], True),
        (["2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:3::1"], False),
    ],
)
async def test_a_network_is_one_host(others: list[str], together: bool, budget: UnfinishedInput) -> None:
    honest = receiver(budget, "2001:db8:9::1")
    honest.take(350 * KIB)
    await trio.sleep(1)
    for host in others:
        receiver(budget, host).take(260 * KIB)
    assert (honest.error is None) == together


async def test_clients_that_are_not_accepted_give_way_to_those_that_are(budget: UnfinishedInput) -> None:
    unaccepted = [receiver(budget, f"192.0.2.{number}", accepted=False) for number in range(5)]
    accepted = receiver(budget)
    accepted.take(800 * KIB)
    await trio.sleep(1)
    for one in unaccepted:
        one.take(80 * KIB)
    assert accepted.error is None
    assert len(given_up(unaccepted)) == 2
    assert budget.statistics().counted_bytes <= LIMITS.total_bytes


async def test_a_message_that_does_not_go_on_is_given_up_after_the_wait(watched: UnfinishedInput) -> None:
    slow, steady = receiver(watched), receiver(watched)
    slow.take(5)
    began = trio.current_time()
    while slow.error is None:
        await trio.sleep(1)
        steady.take(3 * KIB)
    assert slow.error.status is Status.DEADLINE_EXCEEDED
    assert LIMITS.wait_s <= trio.current_time() - began <= LIMITS.wait_s * (1 + 2 / LOOKS)
    assert steady.error is None
    assert watched.statistics().too_slow == 1
    await trio.sleep(10 * LIMITS.wait_s)
    assert steady.error is not None, "which has stopped as well"
    assert watched.statistics().messages == 0


async def test_messages_that_end_and_begin_in_every_read_are_not_one_slow_message(watched: UnfinishedInput) -> None:
    one = receiver(watched)
    for _ in range(100):
        one.take(100, anew=True)
        await trio.sleep(LIMITS.wait_s / 2)
    assert one.error is None


async def test_time_in_which_no_task_reads_does_not_count(watched: UnfinishedInput) -> None:
    one = receiver(watched)
    one.take(100)
    one.awaits_rest = False
    await trio.sleep(100 * LIMITS.wait_s)
    assert one.error is None
    one.awaits_rest = True
    await trio.sleep(LIMITS.wait_s / 2)
    assert one.error is None


async def test_a_gateway_that_stood_still_waited_one_look(watched: UnfinishedInput, mock_clock: MockClock) -> None:
    one = receiver(watched)
    one.take(100)
    for _ in range(LOOKS):
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(10 * LIMITS.wait_s)  # as a process that was stopped sees it
    await trio.testing.wait_all_tasks_blocked()
    assert one.error is None
    mock_clock.jump(10 * LIMITS.wait_s)
    await trio.testing.wait_all_tasks_blocked()
    assert one.error is not None
