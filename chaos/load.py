"""The clients of a run: peers that write and count, workers, and slow readers.

They record what they see.

Each runs for the whole run, through whatever comes, as an application would: with the client of
this package, which reconnects.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Final, Unpack

import trio

from aether_trio.client import AetherError, AgentClient, Client, ConnectionLost, Refused, Retry, TaskClient, Unavailable
from aether_trio.client.message import IncomingMessage
from aether_trio.client.options import ClientOptions
from chaos.history import Counted, Delivered, History, Message, Outage, Outcome, Sent

WORKSPACE: Final = "chaos"
WORK: Final = f"tb::{WORKSPACE}::work"
WITNESS: Final = f"ag::{WORKSPACE}::witness::1"
COUNTERS: Final = ("chaos-a", "chaos-b")
SHARED: Final = tuple(f"ag::{WORKSPACE}::rival::{number}" for number in (1, 2))
"""The topics of identities that several want (rivals.py)."""
SLOW_S: Final = 0.3
"""What a slow reader takes for a message, at most, while others are being sent."""
SLOW_CREDIT: Final = 16
"""Messages that may be on their way to one: the others wait in the gateway, and then in the log."""


def options() -> ClientOptions:
    """Options of every client that stays: it notices a silent gateway within 20 s."""
    return ClientOptions(connect_timeout_s=math.inf, ping_interval_s=10.0, retry=Retry(base_s=0.1, cap_s=1.0))


Make = Callable[[ClientOptions], Client]


def options_of(given: ClientOptions, more: ClientOptions) -> ClientOptions:
    """Options of a client, with those of every client that stays."""
    both = given.copy()
    both.update(more)
    return both


@dataclass(frozen=True, slots=True)
class Rates:
    """What one peer does per second, on average."""

    peers: int = 8
    workers: int = 3
    slow: int = 2
    messages_per_s: float = 20.0
    increments_per_s: float = 4.0
    work_share: float = 0.2


class Load:
    """The load: start `run` in a nursery; end it with `finish`, then `close`."""

    def __init__(
        self, address: str, rates: Rates, history: History, now: Callable[[], float], chance: random.Random
    ) -> None:
        self.address = address
        self.history = history
        self.now = now
        self.chance = chance
        self._rates = rates
        self._numbers = count(1)
        self._delivered: set[tuple[str, Message]] = set()
        self._awaited: set[object] = set()
        self._quiet = trio.Event()
        self._over = trio.Event()
        self._news = trio.Event()
        self._busy = 0
        self._connected: dict[str, Outage | None] = {}
        self._topics = [f"ag::{WORKSPACE}::peer::{number}" for number in range(1, rates.peers + 1)]
        self._topics += [f"ag::{WORKSPACE}::slow::{number}" for number in range(1, rates.slow + 1)]
        # Those who have them in turn are to have something to tell of it.
        self._topics += SHARED * 2

    @property
    def quiet(self) -> bool:
        """Whether clients must begin nothing more."""
        return self._quiet.is_set()

    async def run(self) -> None:
        """Run every client until `close`."""
        async with trio.open_nursery() as nursery:
            for number in range(1, self._rates.peers + 1):
                make = self._agent("peer", str(number))
                nursery.start_soon(self.stay, f"peer-{number}", make, (self._send, self._count, self.read))
            for number in range(1, self._rates.slow + 1):
                make = self._agent("slow", str(number), credit_messages=SLOW_CREDIT)
                nursery.start_soon(self.stay, f"slow-{number}", make, (self._read_slowly,))
            for number in range(1, self._rates.workers + 1):
                nursery.start_soon(self.stay, f"worker-{number}", self._worker, (self.read,))
            nursery.start_soon(self.stay, "witness", self._agent("witness", "1"), (self.read,))

    async def finish(self, patience_s: float) -> None:
        """Begin nothing more; wait `patience_s` at most until all is settled and read."""
        self._quiet.set()
        with trio.move_on_after(patience_s):
            while self._busy or self._awaited or any(self._connected.values()):
                await self._news.wait()

    def close(self) -> None:
        self._over.set()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Mark work under way, for which the end waits."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._tell()

    def await_(self, thing: object) -> None:
        """Have the end wait for the arrival of a message."""
        self._awaited.add(thing)

    def arrived(self, thing: object) -> None:
        """Note the arrival of a message that the end waits for."""
        self._awaited.discard(thing)
        self._tell()

    # -- clients

    def _agent(self, implementation: str, specifier: str, **more: Unpack[ClientOptions]) -> Make:
        def make(given: ClientOptions) -> Client:
            return AgentClient(
                f"aether://{self.address}",
                workspace=WORKSPACE,
                implementation=implementation,
                specifier=specifier,
                **options_of(given, more),
            )

        return make

    def _worker(self, given: ClientOptions) -> Client:
        return TaskClient(f"aether://{self.address}", workspace=WORKSPACE, implementation="work", **given)

    async def stay(self, name: str, make: Make, works: Sequence[Callable[[str, Client], Awaitable[None]]]) -> None:
        """Run one client for the whole run, and a new one when it gives up."""
        for life in count(1):
            mine = name if life == 1 else f"{name}#{life}"
            self._disconnected(mine)
            given = options()
            given["on_connected"] = partial(self._back, mine)
            given["on_disconnected"] = partial(self._disconnected, mine)
            try:
                async with make(given) as client, trio.open_nursery() as nursery:
                    for work in works:
                        nursery.start_soon(work, mine, client)
                    await self._over.wait()
                    nursery.cancel_scope.cancel()
                return
            except* AetherError as group:
                self._back(mine)
                self.history.gave_up.append(f"{mine} gave up at {self.now():.1f} s: {_first(group)}")
            if self._over.is_set():
                return

    def _disconnected(self, name: str, _error: AetherError | None = None) -> None:
        if self._connected.get(name) is None:
            outage = self._connected[name] = Outage(name, self.now())
            self.history.outages.append(outage)

    def _back(self, name: str, _resumed: bool = False) -> None:
        outage, self._connected[name] = self._connected.get(name), None
        if outage is not None:
            outage.until_s = self.now()
        self._tell()

    # -- what they do

    async def _send(self, name: str, client: Client) -> None:
        rates = self._rates
        while not self.quiet:
            await trio.sleep(self.chance.expovariate(rates.messages_per_s))
            if self.quiet:
                return
            topic = WORK if self.chance.random() < rates.work_share else self.chance.choice(self._topics)
            await self.send(client, topic, Message(name, next(self._numbers), client.session_id))

    async def send(self, client: Client, topic: str, message: Message) -> Outcome:
        """Send a message and record its outcome; raises what ends the client."""
        started_s = self.now()
        outcome = Outcome.IN_DOUBT
        self._busy += 1
        try:
            await client.send(topic, message.encode())
            outcome = Outcome.ACCEPTED
            if (topic, message) not in self._delivered:
                self.await_((topic, message))
        except ConnectionLost as error:
            outcome = Outcome.IN_DOUBT if error.in_doubt else Outcome.REFUSED
        except (Refused, Unavailable) as error:
            outcome = Outcome.REFUSED
            await trio.sleep(min(error.retry_after_s, 1.0))
        finally:
            self._busy -= 1
            self.history.sent.append(Sent(topic, message, started_s, self.now(), outcome))
            self._tell()
        return outcome

    async def read(self, name: str, client: Client) -> None:
        async for incoming in client:
            self.took(name, client, incoming)

    async def _read_slowly(self, name: str, client: Client) -> None:
        async for incoming in client:
            self.took(name, client, incoming)
            if not self.quiet:
                await trio.sleep(self.chance.uniform(0.0, SLOW_S))

    def took(self, name: str, client: Client, incoming: IncomingMessage) -> None:
        message = Message.decode(incoming.payload)
        place = (incoming.topic, message)
        self.history.delivered.append(
            Delivered(name, incoming.topic, incoming.offset, message, self.now(), client.connections)
        )
        self._delivered.add(place)
        self.arrived(place)

    async def _count(self, name: str, client: Client) -> None:
        while not self.quiet:
            await trio.sleep(self.chance.expovariate(self._rates.increments_per_s))
            if self.quiet:
                return
            key = self.chance.choice(COUNTERS)
            started_s = self.now()
            outcome, value = Outcome.IN_DOUBT, 0
            self._busy += 1
            try:
                value = await client.kv.increment(key)
                outcome = Outcome.ACCEPTED
            except ConnectionLost as error:
                outcome = Outcome.IN_DOUBT if error.in_doubt else Outcome.REFUSED
            except AetherError as error:
                if not error.retryable:
                    raise
                # A failure of the storage: whether it was written is not known.
            finally:
                self._busy -= 1
                self.history.counted.append(Counted(key, name, started_s, self.now(), outcome, value))
                self._tell()


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
