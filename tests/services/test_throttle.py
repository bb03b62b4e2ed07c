"""Five refused credentials throttle an identity at the address they came from."""

from __future__ import annotations

import pytest

from aether_trio.config import AuthSettings
from aether_trio.model.errors import Status, StatusError
from aether_trio.services.credentials.throttle import Throttle, network_of
from tests.helpers.clocks import ManualClock

HERE, THERE = "192.0.2.1:1000", "192.0.2.2:1000"
AGENT = "ag::prod::echo::1"
WRONG, RIGHT = b"wrong", b"right"


class Guard:
    """A throttle, and a client that tries credentials at it."""

    def __init__(self, **auth: int) -> None:
        self.clock = ManualClock()
        self.throttle = Throttle(AuthSettings(**auth), self.clock)  # type: ignore[arg-type]

    def try_(self, proof: bytes, subject: str = AGENT, address: str = HERE) -> Status | None:
        """None: heard and right; UNAUTHENTICATED with `heard` True: heard and wrong."""
        self.heard = False
        try:
            self.throttle.check(address, subject, lambda: proof)
        except StatusError as error:
            self.text = error.message
            return error.status
        self.heard = True
        if proof == RIGHT:
            self.throttle.succeeded(address, subject, proof)
            return None
        self.throttle.failed(address, subject)
        return Status.UNAUTHENTICATED

    def fail(self, times: int, subject: str = AGENT, address: str = HERE) -> None:
        for _ in range(times):
            assert self.try_(WRONG, subject, address) is Status.UNAUTHENTICATED
            assert self.heard


@pytest.fixture
def guard() -> Guard:
    return Guard()


def test_the_sixth_try_is_refused_unheard(guard: Guard) -> None:
    guard.fail(5)
    assert guard.try_(RIGHT) is Status.UNAUTHENTICATED
    assert not guard.heard
    assert "temporarily throttled after 5 failures; try again in 30 s" in guard.text
    guard.clock.advance(29_999)
    assert guard.try_(RIGHT) is Status.UNAUTHENTICATED
    guard.clock.advance(2)
    assert guard.try_(RIGHT) is None


@pytest.mark.parametrize("address", [THERE, "[2001:db8::1]:1000", "unknown"])
def test_a_client_of_another_address_does_not_throttle_the_owner(guard: Guard, address: str) -> None:
    guard.fail(5, address=address)
    assert guard.try_(RIGHT) is None


def test_a_neighbour_does_not_throttle_a_client_that_was_admitted_before(guard: Guard) -> None:
    assert guard.try_(RIGHT) is None
    guard.fail(5)
    assert guard.try_(WRONG) is Status.UNAUTHENTICATED
    assert not guard.heard
    assert guard.try_(RIGHT) is None


def test_another_port_and_another_address_of_the_network_are_the_same_client(guard: Guard) -> None:
    guard.fail(5, address="[2001:db8:0:1::1]:1000")
    for address in ("[2001:db8:0:1::1]:2000", "[2001:db8:0:1:ffff::9]:1000"):
        assert guard.try_(RIGHT, address=address) is Status.UNAUTHENTICATED
    assert guard.try_(RIGHT, address="[2001:db8:0:2::1]:1000") is None


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1:50051", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:50051", "192.0.2.1"),
        ("[2001:db8:1:2:3:4:5:6]:50051", "2001:db8:1:2::/64"),
        ("[fe80::1%eth0]:50051", "fe80::/64"),
        ("memory:0", "memory"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_the_network_of_an_address(address: str, network: str) -> None:
    assert network_of(address) == network


def test_old_failures_do_not_count(guard: Guard) -> None:
    for _ in range(20):
        guard.fail(1)
        guard.clock.advance(7_600)  # four of them fall into any 30 s
    assert guard.try_(RIGHT) is None


def test_a_success_wipes_the_slate(guard: Guard) -> None:
    for _ in range(3):
        guard.fail(4)
        assert guard.try_(RIGHT) is None


def test_others_are_not_affected(guard: Guard) -> None:
    guard.fail(5)
    assert guard.try_(RIGHT, "ag::prod::echo::2") is None


def test_the_refusals_of_the_cool_down_do_not_prolong_it(guard: Guard) -> None:
    guard.fail(5)
    guard.clock.advance(20_000)
    for _ in range(50):
        assert guard.try_(WRONG) is Status.UNAUTHENTICATED
    guard.clock.advance(10_001)
    assert guard.try_(RIGHT) is None


def test_one_client_with_a_wrong_key_does_not_close_its_address(guard: Guard) -> None:
    for _ in range(1000):
        guard.try_(WRONG, "ag::prod::broken::1")
        guard.clock.advance(500)
    assert guard.try_(RIGHT) is None


def test_a_client_that_tries_one_identity_after_another_closes_its_address_to_new_ones(guard: Guard) -> None:
    assert guard.try_(RIGHT) is None
    for number in range(100):
        guard.fail(1, f"ag::prod::x::{number}")
    assert guard.try_(WRONG, "ag::prod::x::new") is Status.UNAVAILABLE
    assert "from your address" in guard.text
    assert guard.try_(RIGHT, "ag::prod::echo::2") is Status.UNAVAILABLE
    assert guard.try_(RIGHT) is None, "who was let in before is heard"
    assert guard.try_(RIGHT, "ag::prod::echo::2", THERE) is None
    guard.clock.advance(30_001)
    assert guard.try_(RIGHT, "ag::prod::echo::2") is None


def test_a_flood_of_made_up_identities_and_addresses_costs_bounded_memory() -> None:
    guard = Guard(max_tracked_identities=10, max_failures=2, max_failures_per_address=3)
    for number in range(300):
        for _ in range(1 + number % 2):
            guard.try_(RIGHT if number % 3 else WRONG, f"ag::prod::x::{number}", f"192.0.2.{number % 100}:1")
    assert guard.throttle.remembered <= 5 * 10


# -- senders without a fixed proof -----------------------------------------------------------------


def test_a_sender_without_proof_waits_unless_it_was_accepted(guard: Guard) -> None:
    throttle = guard.throttle
    throttle.succeeded(THERE, "w/shop")
    for address in (HERE, THERE):
        assert throttle.wait_s(address, "w/shop") == 0
        for _ in range(5):
            throttle.failed(address, "w/shop")
    assert throttle.wait_s(HERE, "w/shop") == 30
    assert throttle.wait_s(HERE, "w/bank") == 0
    assert throttle.wait_s(THERE, "w/shop") == 0
    assert (throttle.knows(HERE, "w/shop"), throttle.knows(THERE, "w/shop")) == (False, True)
    guard.clock.advance(30_001)
    assert throttle.wait_s(HERE, "w/shop") == 0


def test_a_sender_without_proof_waits_for_failures_at_many_places() -> None:
    throttle = Guard(max_failures_per_address=12).throttle
    throttle.succeeded(HERE, "w/shop")
    for number in range(12):
        assert throttle.wait_s(HERE, str(number)) == 0
        throttle.failed(HERE, str(number))
    assert throttle.wait_s(HERE, "new") == 30
    assert throttle.wait_s(HERE, "w/shop") == 0
