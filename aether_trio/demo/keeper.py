"""The demo's hut keeper: an agent that a message starts (`aether dev --agents`).

It uses this package's client, and connects with the identity in its environment.
"""

from __future__ import annotations

import os
import signal
from typing import Final

import trio

from aether_trio.client import AgentClient
from aether_trio.demo import texts

_NO_ANSWER: Final = "The phone is out of order."


async def _main() -> None:
    async with AgentClient.from_environment() as keeper:
        async for message in keeper:
            text = texts.KEEPER_SAYS.get(message.text, _NO_ANSWER)
            await keeper.reply(message, f"@{texts.USER} {text}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    trio.run(_main)
