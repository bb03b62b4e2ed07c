"""Bounds the messages that clients have begun and not finished, in bytes and time.

    nursery.start_soon(unfinished.watch)
    account = unfinished.account("192.0.2.7")       # one for each connection
    account.note(receiver, 70_000, anew=True)       # after a read: bytes of its message
    account.note(receiver, 0)                       # nothing any more

Every transport bounds one message; this bounds all that are unfinished when a read ends together.

The deadline: a message must bring PROGRESS_BYTES, or its end, in every `wait_s` in which its
receiver waits for it. Time passes in LOOKS for each `wait_s`, so a gateway that stood still for
a minute has waited for one look.

The budget: beyond the free allowance of each connection, `total_bytes`. When it is full, one
message is given up:
* of a client that is not accepted yet, if there is any such message;
* of the host that holds the most (IPv6: its /64), so that a host fills its own part only;
* there, of those that hold at least half of an even share, the one that was too slow for the most
  looks, and of equals the one silent for the longest. So a message at the speed of its line
  outlives those that wait, and a small one is never chosen. Half: otherwise those just below an
  even share would never be chosen, and the one that grows beyond it always.

Invariants: `note` is cheap, except when the budget is full; after `give_up` the receiver holds
nothing; the budget is exceeded by no more than one read.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import trio

from aether_trio.model.errors import Status, StatusError

KIB: Final = 1024
MIB: Final = 1024 * KIB

PROGRESS_BYTES: Final = 64 * KIB
"""In each `wait_s`: 17 kbit/s, a third of what a phone has at its network's edge."""
LOOKS: Final = 6
"""In each `wait_s`: a message is given up at most a sixth too late."""
_A_TURN: Final = 256
"""Messages looked at before the connections have their turn."""


@dataclass(frozen=True, slots=True)
class UnfinishedLimits:
    """A gateway's limits on messages that clients began and did not finish."""

    total_bytes: int = 64 * MIB
    """Six of the largest messages at once; smaller ones are finished when they are seen."""
    free_bytes: int = 64 * KIB
    """Of each connection, not counted: one read."""
    wait_s: float = 30.0
    """As long as a connection may be silent before the kernel's keepalive gives it up."""


class MessageReceiver(Protocol):
    """Protocol: assembles a connection's messages one at a time; hashed by identity."""

    accepted: bool
    """Whether the client's session is accepted."""

    @property
    def awaits_rest(self) -> bool:
        """Whether the peer could send the rest now: a task reads, and there is room."""

    def give_up(self, error: StatusError) -> None:
        """Drop the unfinished message and let its reader get `error`. Never blocks."""


@dataclass(frozen=True, slots=True)
class UnfinishedStatistics:
    """Numbers of a gateway's unfinished messages, and totals of those given up."""

    messages: int
    bytes: int
    counted_bytes: int
    """Beyond the free allowances of connections: what fills the budget."""
    given_up: int
    too_slow: int


class _UnfinishedMessage:
    """One unfinished message: how much is held of it, and how it grows."""

    __slots__ = ("grown_at", "held", "looks", "mark")

    def __init__(self) -> None:
        self.held = self.mark = self.looks = 0
        self.grown_at = 0.0
        """trio time of the last bytes."""


_NOTHING_BEGUN: Final[dict[MessageReceiver, _UnfinishedMessage]] = {}
"""Of all connections without an unfinished message; never written to."""


class InputAccount:
    """Reports one connection's unfinished messages to the gateway's memory budget."""

    __slots__ = ("_address", "_budget", "begun", "counted", "held")

    def __init__(self, budget: UnfinishedInput, address: Any) -> None:
        self._budget = budget
        self._address = address
        self.begun = _NOTHING_BEGUN
        self.held = 0
        self.counted = 0

    @property
    def host(self) -> str:
        """The client's host, or network, whose messages count together."""
        return _host_of(self._address)

    def note(self, receiver: MessageReceiver, held: int, *, anew: bool = False) -> None:
        """Record the bytes of a receiver's unfinished message; `anew`: another message."""
        message = self.begun.get(receiver)
        if not held:
            if message is not None:
                del self.begun[receiver]
                self._recount(-message.held)
            return
        if message is None:
            if not self.begun:
                self.begun = {}
            message = self.begun[receiver] = _UnfinishedMessage()
        elif anew:
            message.mark = message.looks = 0
        message.grown_at = trio.current_time()
        change = held - message.held
        message.held = held
        self._recount(change)

    def _recount(self, change: int) -> None:
        self.held += change
        budget = self._budget
        counted = max(0, self.held - budget.limits.free_bytes)
        budget.count(self, counted - self.counted)
        self.counted = counted
        if change > 0 and budget.is_full:
            budget.make_room()


class UnfinishedInput:
    """A gateway's budget of memory for unfinished messages."""

    def __init__(self, limits: UnfinishedLimits | None = None) -> None:
        self.limits = limits or UnfinishedLimits()
        self._accounts: dict[InputAccount, None] = {}
        self._counted = 0
        self._given_up = self._too_slow = 0

    def account(self, address: Any) -> InputAccount:
        """Make the account of a new connection from `address`, as `accept` returns it."""
        return InputAccount(self, address)

    def statistics(self) -> UnfinishedStatistics:
        return UnfinishedStatistics(
            messages=sum(len(account.begun) for account in self._accounts),
            bytes=sum(account.held for account in self._accounts),
            counted_bytes=self._counted,
            given_up=self._given_up,
            too_slow=self._too_slow,
        )

    @property
    def is_full(self) -> bool:
        """Whether the unfinished messages exceed the budget."""
        return self._counted > self.limits.total_bytes

    def count(self, account: InputAccount, change: int) -> None:
        """Add a change in an account's counted bytes; the account calls this."""
        self._counted += change
        if account.begun:
            self._accounts[account] = None
        else:
            self._accounts.pop(account, None)

    def make_room(self) -> None:
        """Give up unfinished messages until the rest fits the budget."""
        while self.is_full:
            account, receiver = self._victim()
            self._given_up += 1
            self._end(account, receiver, Status.RESOURCE_EXHAUSTED, "the gateway holds too many unfinished messages")

    def _end(self, account: InputAccount, receiver: MessageReceiver, status: Status, text: str) -> None:
        account.note(receiver, 0)
        receiver.give_up(StatusError(status, text))

    def _victim(self) -> tuple[InputAccount, MessageReceiver]:
        candidates = [
            (account, receiver, message)
            for account in self._accounts
            if account.counted
            for receiver, message in account.begun.items()
        ]
        unaccepted = [one for one in candidates if not one[1].accepted]
        candidates = unaccepted or candidates
        hosts: dict[str, int] = {}
        for account, _, message in candidates:
            hosts[account.host] = hosts.get(account.host, 0) + message.held
        worst = max(hosts, key=hosts.__getitem__)
        candidates = [one for one in candidates if one[0].host == worst]
        least = hosts[worst] / len(candidates) / 2
        account, receiver, _ = max(
            (one for one in candidates if one[2].held >= least), key=lambda one: (one[2].looks, -one[2].grown_at)
        )
        return account, receiver

    async def watch(self) -> None:
        """Give up unfinished messages that make no progress. Runs until cancelled."""
        while True:
            await trio.sleep(self.limits.wait_s / LOOKS)
            for count, account in enumerate(tuple(self._accounts)):
                self._look(account)
                if count % _A_TURN == _A_TURN - 1:
                    await trio.lowlevel.checkpoint()

    def _look(self, account: InputAccount) -> None:
        for receiver, message in tuple(account.begun.items()):
            if message.held - message.mark >= PROGRESS_BYTES or not receiver.awaits_rest:
                message.mark, message.looks = message.held, 0
                continue
            message.looks += 1
            if message.looks > LOOKS:
                self._too_slow += 1
                wait_s = self.limits.wait_s
                self._end(
                    account,
                    receiver,
                    Status.DEADLINE_EXCEEDED,
                    f"an unfinished message made no progress within {wait_s:g} seconds",
                )


def _host_of(address: Any) -> str:
    """Return the host of an address: IPv4 as it is, IPv6 as its /64 network."""
    host = str(address[0]) if isinstance(address, tuple) and address else ""
    if ":" not in host:
        return host
    try:
        return str(ipaddress.IPv6Network((host.partition("%")[0], 64), strict=False))
    except ValueError:
        return host
