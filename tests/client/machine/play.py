"""Play an application of chance, and check it against a model.

A play is some lives of one participant, "a". A life is a client's block in which moves are drawn
from a seed: messages come, tasks take them and end well, raise, or are cancelled at the n-th place
where they wait; others send, ask, and work on tasks; the connection is cut, stands still, or is
refused for a while. The last move ends the life: in peace, well, by an exception, by a
cancellation, or because there is no coming back.

The model:
* Acknowledged is handled. A life begins with the first message that the lives before have not
  handled, if the last one has ended in peace; after any other end it may begin earlier, and never
  later. Inside of a life each message comes once, in order.
* Committed is delivered, once. Refused and not sent is never delivered, in doubt at most once. What
  one task sends keeps its order.
* What a block has said of its task is what the gateway says, and no task stays with a client that
  lives on.
* Nothing grows: in peace every table is empty, or as long as what is in hand.

It is anyio, for trio and asyncio. The gateway and the fault proxy are in the test's trio run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import anyio
import anyio.abc
import anyio.lowlevel
import sniffio
import trio

from aether_trio.client import (
    AetherError,
    AgentClient,
    ClientClosed,
    ConnectionLost,
    InvalidArgument,
    JobEnd,
    Publication,
    Retry,
    State,
)
from aether_trio.client.operations import TaskStatus
from aether_trio.devtools.fault_proxy import FaultProxy
from tests.client.gateways import agent
from tests.client.jobs.shop import order, worker
from tests.client.machine.interrupted import Crash, stopped_at
from tests.client.machine.tables import kept, owes

__all__ = ["HOPELESS", "PATIENT", "SINK", "TOPIC", "Ledger", "Play", "Weather"]

SINK: Final = "ag::w::i::sink"
TOPIC: Final = "ag::w::bench::a"
NO_TOPIC: Final = "zz::nowhere"
OVER: Final = {TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED, TaskStatus.REJECTED}
PATIENT: Final = Retry(base_s=0.01, cap_s=0.05)
HOPELESS: Final = Retry(base_s=0.001, cap_s=0.001, max_attempts=1)
LIMIT_S: Final = 60.0

App = Callable[[AgentClient, random.Random], Coroutine[Any, Any, None]]
"""What a task does."""


class Weather:
    """Disturbs the connection; may be called from threads of the trio run."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._target = proxy.target

    def _call(self, function: Callable[[], None]) -> None:
        try:
            here = sniffio.current_async_library() == "trio"
        except sniffio.AsyncLibraryNotFoundError:
            here = False
        if here:
            function()
        else:
            trio.from_thread.run_sync(function)

    def cut(self) -> None:
        self._call(self._proxy.cut_all)

    def cut_after(self, size: int, *, up: bool) -> None:
        """So many bytes later, which may be in the middle of a frame, or of a replay."""

        def truncate() -> None:
            for one in self._proxy.open.values():
                (one.upstream if up else one.downstream).truncate(size, one.cut)

        self._call(truncate)

    def stall(self, *, up: bool) -> None:
        def stall() -> None:
            for one in self._proxy.open.values():
                (one.upstream if up else one.downstream).stall()

        self._call(stall)

    def refuse(self) -> None:
        def refuse() -> None:
            self._proxy.target = tuple
            self._proxy.cut_all()

        self._call(refuse)

    def heal(self) -> None:
        def heal() -> None:
            self._proxy.target = self._target
            for one in self._proxy.open.values():
                one.upstream.release()
                one.downstream.release()

        self._call(heal)


class Ledger:
    """Messages that "a" was sent, that it has handled, and that it has sent."""

    def __init__(self, *, exact: bool) -> None:
        self.exact = exact
        """The transport knows positions; WebSocket does not, and there each number comes once at
        most.
        """
        self.fed = 0
        self._handled: set[int] = set()
        self._maybe: set[int] = set()
        self._in_hand: set[int] = set()
        self._taken: list[int] = []
        self._floor = 0
        self._last = -1
        self.fates: dict[str, str] = {}
        """"committed", "never" or "maybe" of each text that "a" has sent."""
        self._open: dict[str, Publication] = {}

    # -- receiving

    def take(self, number: int) -> None:
        if not self.exact:
            assert number > self._last, f"{number} came behind {self._last}"
            self._last = number
        elif not self._taken:
            first = self._first_unhandled(self._handled | self._maybe)
            assert self._floor <= number <= first, f"began with {number}, not from {self._floor} to {first}"
            self._handled, self._maybe = set(range(number)), set()
            self._floor = number
        else:
            assert number == self._taken[-1] + 1, f"{number} came behind {self._taken[-1]}"
        self._taken.append(number)
        self._in_hand.add(number)

    def handle(self, number: int) -> None:
        self._in_hand.discard(number)
        self._handled.add(number)

    def let_fall(self, number: int) -> None:
        """The application will not be done with it."""
        self._in_hand.discard(number)

    def end_life(self, *, in_peace: bool) -> int:
        """Let messages in hand be acknowledged or not; give how many were not handled."""
        unhandled = sum(number not in self._handled for number in self._taken)
        if in_peace and self._taken:  # else it knows nothing of what a life before has handled
            self._floor = self._first_unhandled(self._handled)
        self._maybe |= self._in_hand
        self._in_hand.clear()
        self._taken.clear()
        for text, publication in self._open.items():
            assert publication.settled, f"{text} is not settled, and its client is over"
            self._note(text, publication.error)
        self._open.clear()
        return unhandled

    def end_hand(self) -> None:
        """The block was left well: what is in hand may be acknowledged from now on."""
        self._maybe |= self._in_hand

    def _first_unhandled(self, handled: set[int]) -> int:
        return next(number for number in itertools.count() if number not in handled)

    # -- sending

    @contextlib.contextmanager
    def sending(self, text: str, *, valid: bool, published: bool = False) -> Iterator[None]:
        """The block sends it, confirmed; with `published` it only takes it."""
        self.fates[text] = "never" if published or not valid else "maybe"
        try:
            yield
        except AetherError as error:
            self._note(text, error, valid=valid)
            raise
        if not published:
            self._note(text, None, valid=valid)

    def published(self, text: str, publication: Publication, *, valid: bool) -> None:
        if valid:
            self.fates[text] = "maybe"
            self._open[text] = publication

    def _note(self, text: str, error: AetherError | None, *, valid: bool = True) -> None:
        assert error is not None or valid, f"{text} was refused, and its sender was told that it was committed"
        assert not (valid and isinstance(error, InvalidArgument)), f"{text} was refused instead of another: {error}"
        if error is None:
            self.fates[text] = "committed"
        elif not valid or not (isinstance(error, ConnectionLost) and error.in_doubt):
            self.fates[text] = "never"

    def check_sent(self, found: list[str]) -> None:
        """All that has ever come from "a"."""
        counts = Counter(found)
        for text, fate in self.fates.items():
            allowed = {"committed": {1}, "never": {0}, "maybe": {0, 1}}[fate]
            assert counts[text] in allowed, f"{text} is {fate}, and came {counts[text]} times"
        assert counts.keys() <= self.fates.keys()
        by_sender: dict[str, list[int]] = defaultdict(list)
        for text in found:
            sender, _, number = text.partition("/")
            by_sender[sender].append(int(number))
        for sender, numbers in by_sender.items():
            assert numbers == sorted(numbers), f"{sender}: {numbers}"


class Play:
    def __init__(self, seed: int, direct: str, proxied: str, weather: Weather) -> None:
        self._seed = seed
        self._chance = random.Random(seed)
        self._direct = direct
        self._proxied = proxied
        self._weather = weather
        self._ledger = Ledger(exact=proxied.startswith("aether:"))
        self._names = itertools.count()
        self._jobs: list[str] = []
        self._ends: dict[str, list[JobEnd]] = defaultdict(list)
        self._running: dict[anyio.CancelScope, None] = {}
        self._quiet = anyio.Event()
        self._exhausted = False
        """All credit is in the hands of tasks that have failed, so nothing comes again that could
        be acknowledged.
        """
        self._moves: list[str] = []
        """For a failure."""

    async def run(self, lives: int, moves: int) -> None:
        try:
            async with agent(self._direct, "boss") as boss:
                self._boss = boss
                for _ in range(lives):
                    await self._live(moves)
                await self._read_the_rest()
                await boss.send(SINK, "the end")
                await self._check_sent()
        except BaseException:
            # Pytest shows it with the failure.
            print(f"seed {self._seed}:", " ".join(self._moves[-200:]))
            raise

    async def _live(self, moves: int) -> None:
        end = self._chance.choice(
            [self._in_peace, self._in_peace, self._well, self._raising, self._cancelled, self._hopeless]
        )
        self._moves.append(f"\n{end.__name__}:")
        self._weather.heal()
        client = worker(
            self._proxied,
            "a",
            retry=HOPELESS if end == self._hopeless else PATIENT,
            credit_messages=self._chance.choice([4, 16, 1024]),
            max_unsettled=self._chance.choice([2, 64]),
            connect_timeout_s=LIMIT_S,
            close_timeout_s=LIMIT_S,
        )
        outside = end != self._in_peace and self._chance.random() < 0.4
        try:
            async with anyio.create_task_group() as around:
                with anyio.CancelScope() as scope:
                    async with client, anyio.create_task_group() as inside:
                        for _ in range(self._chance.randint(1, moves)):
                            await self._move(client, around if outside else inside, hopeless=end == self._hopeless)
                        await end(client, scope)
                        inside.cancel_scope.cancel()
                around.cancel_scope.cancel()
        except* Crash:
            assert end == self._raising
        except* (InvalidArgument, ConnectionLost):  # of a publication without a waiting sender, too
            assert end != self._in_peace
        except* AetherError:
            assert end == self._hopeless
        self._weather.heal()
        left = kept(
            client, over=True, taken=self._ledger.end_life(in_peace=end == self._in_peace and not self._exhausted)
        )
        assert not left, left

    # -- how a life ends

    async def _in_peace(self, client: AgentClient, scope: anyio.CancelScope) -> None:
        """Every task is done or was cancelled, and the gateway knows all of it."""
        self._weather.heal()
        for running in list(self._running):
            running.cancel()
        with anyio.fail_after(LIMIT_S):
            while self._running:
                self._quiet = anyio.Event()
                await self._quiet.wait()
            await self._work_off(client)
            with contextlib.suppress(InvalidArgument, ConnectionLost):
                await client.flush()
            await self._ask(client)
            # What it had handled before a cut comes again, and is acknowledged then.
            while owes(client):
                await anyio.sleep(0.001)
            while (left := kept(client, over=False)) and left.keys() <= {"watches", "sends"}:
                await anyio.sleep(0.001)  # what is told without an answer takes its time
            assert not left, left
            self._exhausted = client._dispatch.inbox._full

    async def _well(self, client: AgentClient, scope: anyio.CancelScope) -> None:
        self._weather.heal()
        self._ledger.end_hand()

    async def _raising(self, client: AgentClient, scope: anyio.CancelScope) -> None:
        self._weather.heal()
        raise Crash("the end")

    async def _cancelled(self, client: AgentClient, scope: anyio.CancelScope) -> None:
        self._weather.heal()
        scope.cancel()

    async def _hopeless(self, client: AgentClient, scope: anyio.CancelScope) -> None:
        self._weather.refuse()
        with anyio.fail_after(LIMIT_S):
            await anyio.sleep_forever()

    async def _work_off(self, client: AgentClient) -> None:
        """Complete every task that was ever ordered, if this client does the rest."""

        async def work() -> None:
            async for job in client.work(concurrency=4):
                async with job:
                    pass
                self._note_end(job.id, job.end)

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            for task_id in self._jobs:
                while (task := await self._boss.tasks.get(task_id)).status not in OVER:
                    # Its worker was cut off, and it waits on.
                    if task.status is TaskStatus.WAITING_INPUT:
                        with contextlib.suppress(AetherError):
                            await self._boss.tasks.resume(task_id)
                    await anyio.sleep(0.005)
                for end in self._ends[task_id]:
                    assert end is not JobEnd.COMPLETED or task.status is TaskStatus.COMPLETED, (
                        f"{task_id} is {task.status}, its block: {end}"
                    )
            group.cancel_scope.cancel()
        self._jobs.clear()
        self._ends.clear()

    def _note_end(self, task_id: str, end: JobEnd | None) -> None:
        if end is not None:
            self._ends[task_id].append(end)
            assert self._ends[task_id].count(JobEnd.COMPLETED) <= 1, f"{task_id} was completed twice"

    # -- moves

    async def _move(self, client: AgentClient, group: anyio.abc.TaskGroup, *, hopeless: bool) -> None:
        chance = self._chance
        kinds = (
            [self._feed] * 4 + [self._handle] * 5 + [self._send] * 3 + [self._ask, self._order, self._work, self._work]
        )
        faults = [] if hopeless else ["cut", "cut_up", "cut_down", "stall", "refuse", "heal", "heal"]
        what: Any = chance.choice([*kinds, *faults, "pause", "cancel"])
        self._moves.append(what if isinstance(what, str) else what.__name__)
        match what:
            case "cut":
                self._weather.cut()
            case "cut_up" | "cut_down":
                self._weather.cut_after(chance.randrange(2000), up=what == "cut_up")
            case "stall":
                self._weather.stall(up=chance.random() < 0.5)
            case "refuse":
                self._weather.refuse()
            case "heal":
                self._weather.heal()
            case "pause":
                await anyio.sleep(chance.random() * 0.02)
            case "cancel":
                if self._running:
                    chance.choice(list(self._running)).cancel()
            case self._feed | self._order:
                await what()
            case _:
                scope = anyio.CancelScope()
                self._running[scope] = None
                group.start_soon(self._app, scope, what, client, random.Random(chance.getrandbits(64)))
        await anyio.lowlevel.checkpoint()

    async def _feed(self) -> None:
        for _ in range(self._chance.randint(1, 6)):
            number, self._ledger.fed = self._ledger.fed, self._ledger.fed + 1
            await self._boss.send(TOPIC, str(number))

    async def _order(self) -> None:
        self._jobs.append(await order(self._boss))

    async def _app(self, scope: anyio.CancelScope, what: App, client: AgentClient, chance: random.Random) -> None:
        """Run an application that ends well, raises, or is cancelled at some place."""
        at = chance.choice([None, None, chance.randint(1, 12)])
        crash = chance.random() < 0.5
        with scope:
            try:
                async with anyio.create_task_group() as own:
                    if what == self._handle:
                        own.start_soon(self._handler, client, chance, at, crash)
                    else:
                        own.start_soon(self._stopped, what(client, chance), at, crash)
            except* (Crash, AetherError):
                pass
            finally:
                del self._running[scope]
                self._quiet.set()

    async def _stopped(self, app: Coroutine[Any, Any, None], at: int | None, crash: bool) -> None:
        await stopped_at(at, app, crash=crash)

    async def _handler(self, client: AgentClient, chance: random.Random, at: int | None, crash: bool) -> None:
        """Handle messages: one is done when the next is asked for, or the block ends."""
        hand: list[int] = []
        try:
            await stopped_at(at, self._handle(client, chance, hand), crash=crash)
        except BaseException:
            for number in hand:
                self._ledger.let_fall(number)
            raise
        if sniffio.current_async_library() == "asyncio":
            # When the task has ended, as for the client: in between, the client may end.
            task: asyncio.Task[Any] | None = asyncio.current_task()
            assert task is not None
            task.add_done_callback(lambda _: self._done(client, hand))
        else:
            self._done(client, hand)

    def _done(self, client: AgentClient, hand: list[int]) -> None:
        """Note that the application is done with its messages, unless the client is over."""
        while hand and client.state is not State.CLOSED:
            self._ledger.handle(hand.pop())
        hand.clear()

    async def _handle(self, client: AgentClient, chance: random.Random, hand: list[int] | None = None) -> None:
        assert hand is not None
        name = f"h{next(self._names)}"
        messages = aiter(client)
        for turn in range(chance.randint(1, 6)):
            self._done(client, hand)
            try:
                message = await anext(messages)
            except StopAsyncIteration:
                return
            self._ledger.take(int(message.text))
            hand.append(int(message.text))
            match chance.randrange(6):
                case 0:
                    await anyio.sleep(chance.random() * 0.01)
                case 1:
                    await self._send_one(client, chance, f"{name}/{turn}")
                case 2:
                    messages = aiter(client)
                case 3 if chance.random() < 0.4:
                    raise Crash("a message")
                case _:
                    await anyio.lowlevel.checkpoint()

    async def _send(self, client: AgentClient, chance: random.Random) -> None:
        name = f"s{next(self._names)}"
        for number in range(chance.randint(1, 8)):
            await self._send_one(client, chance, f"{name}/{number}")

    async def _send_one(self, client: AgentClient, chance: random.Random, text: str) -> None:
        """A refusal does not end the one who sends."""
        valid = chance.random() < 0.8
        topic = SINK if valid else NO_TOPIC
        try:
            if chance.random() < 0.5:
                with self._ledger.sending(text, valid=valid):
                    await client.send(topic, text)
            else:
                with self._ledger.sending(text, valid=valid, published=True):
                    self._ledger.published(text, await client.publish(topic, text), valid=valid)
        except (ConnectionLost, InvalidArgument, ClientClosed):
            if client.state is State.CLOSED:
                raise

    async def _ask(self, client: AgentClient, chance: random.Random | None = None) -> None:
        """Ask again and again, as a patient program does."""
        while True:
            try:
                await client.kv.put("key", b"value")
                return
            except ConnectionLost:
                continue

    async def _work(self, client: AgentClient, chance: random.Random) -> None:
        try:
            job = await anext(client.work(concurrency=chance.randint(1, 3)))
        except StopAsyncIteration:
            return
        try:
            async with job:
                match chance.randrange(6):
                    case 0:
                        await job.progress(0.5)
                    case 1:
                        await anyio.sleep(chance.random() * 0.2)
                    case 2:
                        await job.wait_for_input()
                    case 3:
                        await job.fail("it cannot be done")
                    case 4:
                        raise Crash("a task")
                    case _:
                        pass
        finally:
            self._note_end(job.id, job.end)

    # -- what has come in all

    async def _read_the_rest(self) -> None:
        last = self._ledger.fed
        await self._boss.send(TOPIC, str(last))
        with anyio.fail_after(LIMIT_S):
            async with worker(self._direct if self._ledger.exact else self._proxied, "a", manual_acks=True) as client:
                while True:
                    number = int((await client.receive()).text)
                    self._ledger.take(number)
                    if number == last:
                        return

    async def _check_sent(self) -> None:
        found: list[str] = []
        with anyio.fail_after(LIMIT_S):
            async with agent(self._direct, "sink") as sink:
                while (text := (await sink.receive()).text) != "the end":
                    found.append(text)
        self._ledger.check_sent(found)
