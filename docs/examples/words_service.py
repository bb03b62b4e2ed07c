"""Count the words of each text that arrives, and answer with JSON, on asyncio.

    python docs/examples/words_service.py [aether://HOST:PORT] [--name 1]

Start several instances with different names: a message to "sv::words" goes to a connected one. The
service answers each message in a new task and acknowledges it after the answer (`manual_acks`), so
the gateway delivers an unanswered message again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter

from aether_trio.client import AetherError, IncomingMessage, MessageType, ServiceClient

AT_ONCE = 16


def count(text: str) -> str:
    """Return the number of words and the three most frequent ones, as JSON."""
    words = text.lower().split()
    return json.dumps({"words": len(words), "top": Counter(words).most_common(3)})


async def answer(service: ServiceClient, message: IncomingMessage, limit: asyncio.Semaphore) -> None:
    async with limit:
        try:
            await service.reply(message, count(message.payload.decode(errors="replace")), type=MessageType.CHAT)
        except AetherError as error:
            print(f"cannot answer {message.source}: {error}", flush=True)
            if error.retryable:
                return  # not acknowledged: the gateway delivers it again after the next connect
        message.ack()


async def serve(address: str, name: str) -> None:
    limit = asyncio.Semaphore(AT_ONCE)
    # The credit bounds how many questions are in this process, answered or waiting.
    async with (
        ServiceClient(
            address, implementation="words", specifier=name, manual_acks=True, credit_messages=4 * AT_ONCE
        ) as service,
        asyncio.TaskGroup() as group,
    ):
        print(f"{service.topic} is listening", flush=True)
        async for message in service:
            group.create_task(answer(service, message, limit))


def main() -> None:
    parser = argparse.ArgumentParser(description="Count words.")
    parser.add_argument("address", nargs="?", default="aether://127.0.0.1:50051")
    parser.add_argument("--name", default="1", help="the last part of its identity")
    arguments = parser.parse_args()
    try:
        asyncio.run(serve(arguments.address, arguments.name))
    except KeyboardInterrupt:
        pass
    except AetherError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
