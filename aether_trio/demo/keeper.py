"""The demo's hut keeper: an agent that a message starts (`aether dev --agents`).

It uses this package's client, and connects with the identity in its environment. It answers
messages, and books beds: a task whose first attempt fails, and whose second one asks a person.
"""

from __future__ import annotations

import os
import signal
from typing import Final

import trio

from aether_trio.client import AgentClient, Job
from aether_trio.demo import texts

_NO_ANSWER: Final = "The phone is out of order."


async def _main() -> None:
    async with AgentClient.from_environment() as keeper, trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run_tasks, _book)
        async for message in keeper:
            text = texts.KEEPER_SAYS.get(message.text, _NO_ANSWER)
            await keeper.reply(message, f"@{texts.USER} {text}")


async def _book(task: Job) -> dict[str, object]:
    """Book beds; what this returns is the result of the task."""
    if task.attempt == 1:
        raise ConnectionError(texts.BUSY)
    answer = await task.ask(texts.PAY, text="What shall I write on the bill?", of=texts.USER)
    if not answer.approved:
        await task.fail("the user did not want to pay")
    return {**texts.BOOKED, "bill": answer.text}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    trio.run(_main)
