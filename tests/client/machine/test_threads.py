"""Test the blocking client in threads of chance, by the model of play.py."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
import trio

from aether_trio.client import (
    AetherError,
    AgentClient,
    ClientClosed,
    ConnectionLost,
    InvalidArgument,
    MessagesAbandoned,
    SyncClient,
    connect_sync,
)
from aether_trio.devtools.fault_proxy import open_fault_proxy
from tests.client.gateways import agent, open_test_gateway
from tests.client.machine.interrupted import Crash
from tests.client.machine.play import HOPELESS, LIMIT_S, NO_TOPIC, PATIENT, SINK, TOPIC, Ledger, Weather
from tests.client.machine.tables import kept, owes

Client = SyncClient[AgentClient]
LIVES = 6
MOVES = 20
NOTHING_S = 0.05
"""A loop ends when nothing has come for so long."""


class Threads:
    """Threads that handle messages and end or raise, or send; the main one moves."""

    def __init__(self, seed: int, proxied: str, weather: Weather, feed: Any) -> None:
        self._chance = random.Random(seed)
        self._proxied = proxied
        self._weather = weather
        self._feed = feed
        self._lock = threading.Lock()
        self.ledger = Ledger(exact=True)
        self._names = 0

    def run(self) -> None:
        for _ in range(LIVES):
            self._live(self._chance.choice(["in peace", "in peace", "raising", "hopeless"]))

    def _live(self, end: str) -> None:
        self._weather.heal()
        hopeless = end == "hopeless"
        threads: list[threading.Thread] = []
        client: Client | None = None
        try:
            with connect_sync(
                self._proxied,
                workspace="w",
                implementation="bench",
                specifier="a",
                retry=HOPELESS if hopeless else PATIENT,
                credit_messages=self._chance.choice([4, 1024]),
                connect_timeout_s=LIMIT_S,
                close_timeout_s=LIMIT_S,
            ) as client:
                for _ in range(self._chance.randint(1, MOVES)):
                    self._move(client, threads, hopeless=hopeless)
                self._end(client, threads, end)
        except Crash:
            assert end == "raising"
        except InvalidArgument:
            assert end != "hopeless"
        except AetherError:
            assert hopeless
        self._weather.heal()
        for thread in threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()
        assert client is not None
        peaceful = end == "in peace" and not client.client._dispatch.inbox._full
        left = kept(client.client, over=True, taken=self.ledger.end_life(in_peace=peaceful))
        assert not left, left

    def _end(self, client: Client, threads: list[threading.Thread], end: str) -> None:
        if end == "raising":
            raise Crash("the end")
        if end == "hopeless":
            self._weather.refuse()
            with pytest.raises(AetherError):
                client.kv.get("key")
            return
        self._weather.heal()
        for thread in threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()
        client._done_with_held()  # the messages of threads that have ended
        while True:
            try:
                client.kv.put("key", b"value")
            except ConnectionLost:
                continue
            if not owes(client.client):
                return

    def _move(self, client: Client, threads: list[threading.Thread], *, hopeless: bool) -> None:
        chance = self._chance
        what = chance.choice(["feed", "feed", "handle", "handle", "send", *(() if hopeless else ("cut", "cut later"))])
        match what:
            case "feed":
                for _ in range(chance.randint(1, 5)):
                    number, self.ledger.fed = self.ledger.fed, self.ledger.fed + 1
                    self._feed(number)
            case "cut":
                self._weather.cut()
            case "cut later":
                self._weather.cut_after(chance.randrange(1000), up=chance.random() < 0.5)
            case _:
                function = self._handle if what == "handle" else self._send
                own = random.Random(chance.getrandbits(64))
                threads.append(threading.Thread(target=self._quietly, args=(function, client, own)))
                threads[-1].start()

    def _quietly(self, function: Any, client: Client, chance: random.Random) -> None:
        try:
            function(client, chance)
        except (Crash, AetherError):
            pass

    def _handle(self, client: Client, chance: random.Random) -> None:
        """Handle messages: only the request for the next one says that one is done."""
        messages = iter(client.messages(timeout=NOTHING_S))
        hand: int | None = None
        try:
            for _ in range(chance.randint(1, 6)):
                with self._lock:  # taken and noted in one order
                    if hand is not None:
                        self.ledger.handle(hand)
                        hand = None
                    try:
                        hand = int(next(messages).text)
                    except (StopIteration, MessagesAbandoned):
                        return
                    self.ledger.take(hand)
                if chance.random() < 0.2:
                    raise Crash("a message")
        finally:
            if hand is not None:
                with self._lock:
                    self.ledger.let_fall(hand)

    def _send(self, client: Client, chance: random.Random) -> None:
        with self._lock:
            self._names += 1
            name = f"t{self._names}"
        for number in range(chance.randint(1, 6)):
            valid = chance.random() < 0.8
            try:
                with self.ledger.sending(f"{name}/{number}", valid=valid):
                    client.send(SINK if valid else NO_TOPIC, f"{name}/{number}")
            except (ConnectionLost, InvalidArgument):
                continue
            except ClientClosed:
                return


@pytest.mark.parametrize("seed", [1, 2])
async def test_threads_of_chance(seed: int) -> None:
    async with open_test_gateway() as gateway, open_fault_proxy(gateway.address) as proxy:
        direct = f"aether://{gateway.address}"
        async with agent(direct, "boss") as boss:

            def feed(number: int) -> None:
                trio.from_thread.run(boss.send, TOPIC, str(number))

            threads = Threads(seed, f"aether://{proxy.address}", Weather(proxy), feed)
            with trio.fail_after(LIMIT_S):
                await trio.to_thread.run_sync(threads.run, abandon_on_cancel=True)
                await boss.send(TOPIC, str(threads.ledger.fed))
                async with AgentClient(
                    direct, workspace="w", implementation="bench", specifier="a", manual_acks=True
                ) as rest:
                    while (number := int((await rest.receive()).text)) < threads.ledger.fed:
                        threads.ledger.take(number)
                await boss.send(SINK, "the end")
                async with agent(direct, "sink") as sink:
                    found: list[str] = []
                    while (text := (await sink.receive()).text) != "the end":
                        found.append(text)
                threads.ledger.check_sent(found)
