"""Chat with the user of the page that `aether dev` serves.

    python docs/examples/chat_agent.py                    the gateway on 127.0.0.1:50051
    python docs/examples/chat_agent.py HOST:PORT --workspace lab --name guide

The agent answers every message, and reports progress while it works: "count to 20" takes a while.

The page sends plain text at first. This agent answers JSON {"id", "text"}, so the page sends JSON
{"id", "text", "reply_to"} from then on, and the agent answers to `reply_to`, the topic of all
windows of that user in the workspace.
Progress goes to the user as well. A message may arrive twice, because the browser repeats
unconfirmed messages, so the agent remembers the ids that it has answered.
"""

from __future__ import annotations

import argparse
import json
import re
import uuid
from collections import OrderedDict
from datetime import datetime
from typing import Any

import anyio

from aether_trio.client import AgentClient, IncomingMessage, MessageType
from aether_trio.client.operations.progress import ProgressStep

HELP = """I am an example, and honest about it. Try
  count to 20 (I take half a second for each)
  what time is it?
  or anything else, and I tell you what I make of it."""
STEPS = ("reading", "thinking", "thinking again", "writing it down")
MOST_STEPS = 200
REMEMBERED = 10_000


class ChatAgent:
    """Answers each message in a new task, so a long answer delays no other one."""

    def __init__(self, client: AgentClient, pace_s: float) -> None:
        self._client = client
        self._pace_s = pace_s
        self._answered: OrderedDict[str, None] = OrderedDict()

    async def run(self) -> None:
        """Answer until cancelled."""
        async with anyio.create_task_group() as group:
            async for message in self._client:
                asked = read(message)
                if asked is not None and self._is_new(asked["id"]):
                    group.start_soon(self._answer, message, asked)
                else:
                    message.ack()

    def _is_new(self, message_id: str) -> bool:
        if message_id in self._answered:
            return False
        self._answered[message_id] = None
        if len(self._answered) > REMEMBERED:
            self._answered.popitem(last=False)
        return True

    async def _answer(self, message: IncomingMessage, asked: dict[str, Any]) -> None:
        person = message.source.split("::")[1]
        text = asked["text"]
        if re.search(r"\b(help|hello|hi)\b", text, re.IGNORECASE):
            answer = HELP
        elif re.search(r"\btime\b", text, re.IGNORECASE):
            answer = f"By my clock it is {datetime.now().astimezone():%H:%M:%S}."
        elif number := re.search(r"\bcount to (\d{1,4})", text, re.IGNORECASE):
            last = max(1, min(int(number[1]), MOST_STEPS))
            await self._work(person, asked["id"], f"counting to {last}", [str(one + 1) for one in range(last)])
            answer = f"{last}. Done!"
        else:
            await self._work(person, asked["id"], "making something of it", STEPS)
            answer = remark(text)
        payload = json.dumps({"id": str(uuid.uuid4()), "text": answer, "in_reply_to": asked["id"]})
        await self._client.send(asked["reply_to"] or message.source, payload, type=MessageType.CHAT)
        message.ack()  # after the answer: a killed agent gets the message again when it restarts

    async def _work(self, person: str, task_id: str, what: str, steps: tuple[str, ...] | list[str]) -> None:
        for done, step in enumerate([*steps, "done"]):
            await self._client.progress.report(
                task_id=task_id,
                completion=done / len(steps),
                state="completed" if done == len(steps) else "running",
                summary=f"{what}: {step}",
                step=ProgressStep(name=step, sequence=min(done + 1, len(steps)), total_steps=len(steps)),
                recipient=f"us::{person}",
            )
            await anyio.sleep(self._pace_s if done < len(steps) else 0)


def read(message: IncomingMessage) -> dict[str, Any] | None:
    """Read JSON or plain text of a user; return None for other senders."""
    if not message.source.startswith("us::"):
        return None
    text = message.payload.decode(errors="replace")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if not isinstance(value, dict):
        value = {"text": text}
    return {
        "id": str(value.get("id") or uuid.uuid4()),
        "text": str(value.get("text", "")),
        "reply_to": str(value.get("reply_to", "")),
    }


def remark(text: str) -> str:
    """Describe a text by its number of words and its longest word."""
    words = [word if len(word) <= 40 else word[:39] + "…" for word in re.findall(r"[^\W_]+", text)]
    if not words:
        return "No words, just signs. I can live with that."
    longest = max(words, key=len)
    backwards = " ".join(reversed(words[:12]))
    return f"{len(words)} word{'s' if len(words) > 1 else ''}; the longest is “{longest}”. The other way round: {backwards}."


async def main() -> None:
    """Parse the arguments, connect, answer."""
    parser = argparse.ArgumentParser(description="An agent to chat with.")
    parser.add_argument("gateway", nargs="?", default="127.0.0.1:50051", help="HOST:PORT, or an aether:// address")
    parser.add_argument("--workspace", default="default")
    parser.add_argument("--name", default="guide", help="its implementation")
    parser.add_argument("--specifier", default="1")
    parser.add_argument("--pace", type=float, default=0.5, metavar="SECONDS", help="how long one step takes")
    options = parser.parse_args()
    address = options.gateway if "://" in options.gateway else f"aether://{options.gateway}"
    async with AgentClient(
        address,
        workspace=options.workspace,
        implementation=options.name,
        specifier=options.specifier,
        manual_acks=True,
    ) as client:
        print(f"{client.topic} is here; Ctrl-C ends it", flush=True)
        await ChatAgent(client, options.pace).run()


if __name__ == "__main__":
    try:
        anyio.run(main)
    except KeyboardInterrupt:
        pass
