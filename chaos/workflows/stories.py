"""Start executions, and do for them what people and other programs do.

Each request is made until it is acknowledged.

Requests that were not acknowledged are made again under another id; both are recorded.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Final

import trio

from aether_trio.client import AetherError, AgentClient, MessageType, Refused, Retry
from chaos.workflows.history import Begun, Sent, WorkflowHistory
from chaos.workflows.plays import PLAYS, Play
from chaos.workflows.worker import WORKSPACE

CLIENTS: Final = 4
AT_ONCE: Final = 10
"""Stories of each client."""
EVENTS_SHARE: Final = 0.5
"""How often a story is followed by events for rules, joins or the machine."""
NEARLY: Final = 0.9
PAUSE_S: Final = 0.2
ASKS_NOTHING_S: Final = 0.3
PARTS: Final = 3
TICKS: Final = 3

Json = Any


class Stories:
    """Plays so many executions; `told` counts those whose story has ended."""

    def __init__(
        self,
        executions: int,
        seed: int,
        pace_s: float,
        address: Callable[[], str],
        history: WorkflowHistory,
    ) -> None:
        self.told = 0
        self.nearly = trio.Event()
        """Set when nine of ten are told."""
        self._executions = executions
        self._seed = seed
        self._pace_s = pace_s
        self._address = address
        self._history = history
        self._numbers = count(1)
        self._ids = count(1)

    async def run(self) -> None:
        """Play all; return when the clients know of their ends."""
        async with trio.open_nursery() as nursery:
            for number in range(CLIENTS):
                nursery.start_soon(self._client, number)

    def client(self, name: str) -> AgentClient:
        """Return a client of this run."""
        return AgentClient(
            f"aether://{self._address()}",
            workspace=WORKSPACE,
            implementation="teller",
            specifier=name,
            connect_timeout_s=math.inf,
            ping_interval_s=10.0,
            retry=Retry(base_s=0.1, cap_s=1.0),
        )

    async def _client(self, number: int) -> None:
        async with self.client(str(number)) as client, trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(self._tell, client)

    async def _tell(self, client: AgentClient) -> None:
        while (number := next(self._numbers)) <= self._executions:
            chance = random.Random(f"{self._seed} {number}")
            await trio.sleep(2 * self._pace_s * chance.random())
            [name] = chance.choices(list(PLAYS), [play.share for play in PLAYS.values()])
            await self._play(client, name, PLAYS[name], f"{self._seed}-{number}", chance)
            if chance.random() < EVENTS_SHARE:
                await self._events(client, f"{self._seed}-{number}", chance)
            self.told += 1
            if self.told >= self._executions * NEARLY:
                self.nearly.set()

    # -- executions

    async def _play(self, client: AgentClient, name: str, play: Play, key: str, chance: random.Random) -> None:
        given = {"key": key, **play.extra(chance)}
        if play.needs == "trigger":
            await self.send_event(client, "chaos.begin", given)
            return
        begun = self._history.begun[key] = Begun(name, key, given)
        begun.execution_id = await self._insist(
            lambda: client.workflow.run(name, given, idempotency_key=key), "start", also_refused=play.function
        )
        async with trio.open_nursery() as nursery:
            if play.needs:
                nursery.start_soon(self._help, client, begun, play.needs, chance)
            ended = await self._insist(lambda: client.workflow.wait(begun.execution_id), "wait")
            begun.ended = ended.status
            nursery.cancel_scope.cancel()

    async def _help(self, client: AgentClient, begun: Begun, needs: str, chance: random.Random) -> None:
        execution = begun.execution_id
        await trio.sleep(chance.choice((0.0, chance.uniform(0.0, 1.5))))
        match needs:
            case "signal":
                # Refused when the execution has failed before.
                await self._send(
                    "signal",
                    execution,
                    {},
                    lambda sent: client.workflow.signal(execution, "go", {"id": sent.id}),
                    once=True,
                )
            case "event":
                await self.send_event(client, "chaos.paid", {"order": begun.key})
            case "answer":
                await self._answer(client, execution, chance)
            case "cancel":
                self._history.cancelled[execution] = False
                with contextlib.suppress(Refused):  # it has ended
                    await self._insist(lambda: client.workflow.cancel(execution), "cancel")
                    self._history.cancelled[execution] = True

    async def _answer(self, client: AgentClient, execution: str, chance: random.Random) -> None:
        approved, choice = chance.random() < 0.8, chance.choice(("now", "later"))

        async def answer(sent: Sent) -> None:
            await client.workflow.answer(execution, "decide", approved=approved, choice=choice, text=sent.id)

        while True:
            if await self._send("answer", execution, {}, answer, once=True):
                return
            await trio.sleep(ASKS_NOTHING_S)

    # -- events

    async def _events(self, client: AgentClient, key: str, chance: random.Random) -> None:
        match chance.choice(("note", "far", "part", "lamp")):
            case "part":
                for item in range(PARTS):
                    await self.send_event(client, "chaos.part", {"job": key, "item": item})
            case "lamp":
                await self.send_event(client, "chaos.lamp", {"id": key}, ided=False)
                for _ in range(TICKS):
                    await self.send_event(client, "chaos.tick", {"id": key}, ided=False)
            case simple:
                await self.send_event(client, f"chaos.{simple}", {})

    async def send_event(self, client: AgentClient, name: str, data: Json, *, ided: bool = True) -> None:
        """Send an event, and again under another id until one is acknowledged.

        `ided`: its `id` is the event's id. Its `tick` always is.
        """

        async def send(sent: Sent) -> None:
            sent.data = {**data, **({"id": sent.id} if ided else {}), "tick": sent.id}
            payload = {"event_names": [name], "data": sent.data}
            await client.send("event::*", json.dumps(payload), type=MessageType.EVENT)

        await self._send("event", name, data, send)

    async def _send(
        self, kind: str, about: str, data: Json, send: Callable[[Sent], Awaitable[None]], *, once: bool = False
    ) -> bool:
        """Make a request until it is acknowledged, each time under another id.

        With `once` return False if it is refused for good.
        """
        while True:
            sent = self._history.send(Sent(f"{kind}-{self._seed}-{next(self._ids)}", kind, about, data))
            try:
                await send(sent)
            except AetherError as error:
                if isinstance(error, Refused) and not error.retryable:
                    del self._history.sent[sent.id]
                    if once:
                        return False
                    raise
                await self._note(kind, error)
                continue
            sent.acknowledged = True
            return True

    async def _insist(self, ask: Callable[[], Awaitable[Any]], what: str, *, also_refused: bool = False) -> Any:
        """Make a request that is safe to make again until it is answered."""
        while True:
            try:
                return await ask()
            except AetherError as error:
                if not error.retryable and not also_refused:
                    raise
                await self._note(what, error)

    async def _note(self, what: str, error: AetherError) -> None:
        self._history.refused[f"{what} made again: {error.code}"] += 1
        await trio.sleep(PAUSE_S)
