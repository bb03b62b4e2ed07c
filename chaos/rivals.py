"""Two who fight over one identity: each takes it when it can, speaks while it has it, and lets it go, or has it taken away.

What they say to a witness has their session in it, so the log tells whether anybody has spoken after his successor did.
"""

from __future__ import annotations

from itertools import count
from typing import Final

import trio

from aether_trio.client import AetherError, AgentClient, Retry
from chaos.history import Message
from chaos.load import WITNESS, WORKSPACE, Load

NAME: Final = "rival"
PAUSE_S: Final = 0.05
LONGEST_TURN_S: Final = 4.0
TAKEOVERS: Final = 0.4
"""How often one names the session of the other, which takes the identity over at once."""


class Rivals:
    """`run` until the load is quiet. `turns` counts how often one of them had the identity."""

    def __init__(self, load: Load, several: int = 2) -> None:
        self._load = load
        self._several = several
        self._numbers = count(1)
        self._last_session = ""
        self.turns = 0

    async def run(self) -> None:
        """All of them."""
        async with trio.open_nursery() as nursery:
            for number in range(1, self._several + 1):
                nursery.start_soon(self._fight, number)

    async def _fight(self, number: int) -> None:
        chance = self._load.chance
        while not self._load.quiet:
            resume = self._last_session if chance.random() < TAKEOVERS else ""
            client = AgentClient(
                f"aether://{self._load.address}",
                workspace=WORKSPACE,
                implementation=NAME,
                specifier="1",
                resume_session_id=resume,
                connect_timeout=15.0,
                ping_interval=10.0,
                close_timeout=2.0,
                retry=Retry(max_attempts=0),
            )
            try:
                async with client:
                    self.turns += 1
                    self._last_session = client.session_id
                    await self._speak(number, client, chance.uniform(0.2, LONGEST_TURN_S))
            except* AetherError:
                pass  # somebody else has it, or has taken it, or the connection was lost
            await trio.sleep(chance.uniform(0, PAUSE_S))

    async def _speak(self, number: int, client: AgentClient, seconds: float) -> None:
        session = client.session_id
        until_s = self._load.now() + seconds
        while self._load.now() < until_s and not self._load.quiet:
            message = Message(f"{NAME}/{number}", number * 10_000_000 + next(self._numbers), session)
            await self._load.send(client, WITNESS, message)
            await trio.sleep(PAUSE_S)
