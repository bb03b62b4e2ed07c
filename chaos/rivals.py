"""Let two clients compete for one identity: each takes it, sends, reads, and ends.

Some turns end because the other client takes the identity.

What they say to a witness has their session in it, so the log tells whether a client sent after its
successor did. What they are sent they read slowly, each turn under another name, so that it shows
whether a turn goes on where the one before it was.
"""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import Final

import trio

from aether_trio.client import AetherError, AgentClient, Client, Retry
from aether_trio.client.options import ClientOptions
from chaos.history import Message, Turn
from chaos.load import SHARED, WITNESS, WORKSPACE, Load

NAME: Final = "rival"
PAUSE_S: Final = 0.1
LONGEST_TURN_S: Final = 4.0
TAKEOVERS: Final = 0.4
"""How often one names the session of the other, which takes the identity over at once."""
READS_S: Final = (0.02, 1.5)
"""For one message, at most: one of two reads all that it is sent, and one leaves nearly all to the
next holder. A position that the first one moves when the second one has the identity already is
missed by that.
"""
READ_AHEAD: Final = 8
"""Messages that may be on their way to one of them."""


class Rivals:
    """Two clients that compete for one identity; `turns` counts their sessions."""

    def __init__(self, load: Load, several: int = 2) -> None:
        self._load = load
        self._several = several
        self._numbers = count(1)
        self._last_session: dict[str, str] = {}
        self.turns = 0

    async def run(self) -> None:
        """Run both until the load is quiet, then the last owner until it is closed."""
        async with trio.open_nursery() as nursery:
            for topic in SHARED:
                nursery.start_soon(self._fight_over, topic)

    async def _fight_over(self, topic: str) -> None:
        specifier = topic.rpartition("::")[2]
        # No checkpoint between the end of the fight and the last one's begin: the end of the run
        # waits for that one, too.
        with self._load.busy():
            async with trio.open_nursery() as nursery:
                for number in range(1, self._several + 1):
                    nursery.start_soon(self._fight, topic, specifier, number)
        make, read = partial(self._last, specifier), partial(self._read_the_rest, topic)
        await self._load.stay(f"rival-{specifier}-last", make, (read,))

    async def _fight(self, topic: str, specifier: str, number: int) -> None:
        chance = self._load.chance
        while not self._load.quiet:
            resume = self._last_session.get(topic, "") if chance.random() < TAKEOVERS else ""
            client = AgentClient(
                f"aether://{self._load.address}",
                workspace=WORKSPACE,
                implementation=NAME,
                specifier=specifier,
                resume_session_id=resume,
                connect_timeout_s=15.0,
                ping_interval_s=10.0,
                close_timeout_s=2.0,
                credit_messages=READ_AHEAD,
                retry=Retry(max_attempts=0),
            )
            try:
                async with client, trio.open_nursery() as nursery:
                    self.turns += 1
                    self._last_session[topic] = client.session_id
                    reader = f"{NAME}-{specifier}-{self.turns}"
                    self._load.history.turns.append(Turn(topic, reader, self._load.now(), client.session_id))
                    nursery.start_soon(self._read_slowly, reader, client, READS_S[number % len(READS_S)])
                    await self._speak(f"{NAME}-{specifier}/{number}", client, chance.uniform(0.2, LONGEST_TURN_S))
                    nursery.cancel_scope.cancel()
            except* AetherError:
                pass  # the other client has it, or has taken it, or the connection was lost
            await trio.sleep(chance.uniform(0, PAUSE_S))

    async def _read_slowly(self, reader: str, client: Client, reads_s: float) -> None:
        async for incoming in client:
            self._load.took(reader, client, incoming)
            await trio.sleep(self._load.chance.uniform(0.0, reads_s))

    def _last(self, specifier: str, given: ClientOptions) -> Client:
        """Take the identity when the others have ended, and read what is left."""
        return AgentClient(
            f"aether://{self._load.address}", workspace=WORKSPACE, implementation=NAME, specifier=specifier, **given
        )

    async def _read_the_rest(self, topic: str, name: str, client: Client) -> None:
        self._load.history.turns.append(Turn(topic, name, self._load.now(), client.session_id))
        await self._load.read(name, client)

    async def _speak(self, name: str, client: AgentClient, seconds: float) -> None:
        session = client.session_id
        until_s = self._load.now() + seconds
        while self._load.now() < until_s and not self._load.quiet:
            message = Message(name, 10_000_000 + next(self._numbers), session)
            await self._load.send(client, WITNESS, message)
            await trio.sleep(PAUSE_S)
