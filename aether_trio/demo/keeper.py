"""The keeper of the hut: an agent that nobody starts. The gateway does, when somebody writes to it (`aether dev --agents`).

It is written with this package's own client, and is who its environment says.
"""

from __future__ import annotations

import os
import signal
from typing import Final

import trio

from aether_trio.client import AgentClient
from aether_trio.demo import story

_NOBODY: Final = "The phone is out of order."


async def _main() -> None:
    async with AgentClient.from_environment() as keeper:
        async for message in keeper:
            text = story.KEEPER_SAYS.get(message.text, _NOBODY)
            await keeper.reply(message, f"@{story.USER} {text}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    trio.run(_main)
