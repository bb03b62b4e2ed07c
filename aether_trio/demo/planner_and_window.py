"""The demo's planner and user's window: SDK clients in the demo's process.

Invariant: callbacks only enqueue. The SDK awaits some of them inside the loop that reads the
stream, so a callback that waits for an answer would wait for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from scitrera_aether_client import AsyncAgentClient, AsyncUserClient
from scitrera_aether_client.proto import aether_pb2 as pb

from aether_trio.demo import texts

# The demo reconnects quickly, and never gives up, as the SDK does after five tries.
CLIENT_SETTINGS: Final[dict[str, Any]] = {
    "max_retries": 0, "initial_backoff": 0.1, "max_backoff": 0.4, "tls_enabled": False
}  # fmt: skip
LIMIT_S: Final = 30.0  # seconds that any step of the story may take


class Missed(Exception):
    """A step of the demo's story did not happen."""


def answered(response: Any) -> Any:
    """Return a successful SDK response; raise Missed for a failure or no response."""
    if response is None:
        raise Missed("the gateway did not answer a request in time")
    if not response.success:
        raise Missed(f"the gateway refused a request: {getattr(response, 'error', '') or response}")
    return response


async def send_to(client: AsyncAgentClient, topic: str, text: str) -> None:
    """Send a text to the topic of an agent or of a user's window."""
    match topic.split("::"):
        case ["ag", workspace, name, specifier]:
            await client.send_message_to_agent(workspace, name, specifier, text.encode(), message_type=pb.CHAT)
        case ["us", user, window]:
            await client.send_message_to_user_session(user, window, text.encode(), message_type=pb.CHAT)


async def say(client: AsyncAgentClient, topic: str, text: str) -> None:
    """Send a text to a topic, with a copy to the user, who follows the conversation."""
    await send_to(client, topic, text)
    copy = addressed(topic.split("::")[-2], text).encode()
    await client.send_message_to_user_workspace(texts.USER, texts.WORKSPACE, copy, message_type=pb.CHAT)


def addressed(name: str, text: str) -> str:
    """Return a line of the conversation with the name of its receiver."""
    return f"@{name} {text}"


class Watched:
    """Lets tasks wait for a change of an object's state."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Wake the tasks that wait for a change of this object."""
        self._changed.set()

    async def until(self, happened: Callable[[], bool], what: str) -> None:
        """Wait until `happened` returns True. Raises Missed after LIMIT_S."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not happened():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise Missed(f"this did not happen within {LIMIT_S:g} s: {what}") from None


class Planner(Watched):
    """Turns a user's wish into questions for the researcher, and answers into a plan."""

    def __init__(self, pace_s: float) -> None:
        super().__init__()
        self._pace_s = pace_s
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.client = AsyncAgentClient(texts.WORKSPACE, texts.PLANNER, "1", **CLIENT_SETTINGS)
        self.client.on_message = self._inbox.put_nowait
        self.client.on_connect = self._connected
        self.connections = 0
        self._known: set[str] = set()
        self.asked = 0  # questions that were sent to the researcher and counted
        self.answers: list[str] = []
        """Answered questions, in order; repeated answers count again."""

    def _connected(self) -> None:
        self.connections += 1
        self.changed()

    async def work(self) -> None:
        """Handle the planner's messages until cancelled."""
        while True:
            message = await self._inbox.get()
            text = message.payload.decode()
            if message.source_topic == texts.RESEARCHER_TOPIC:
                await self._note(text)
            else:
                for question in texts.WISHES.get(text, (text,)):
                    await self._ask(question)

    async def _ask(self, question: str) -> None:
        if question in self._known:
            return  # a wish came again: at least once may be twice
        self._known.add(question)
        await say(self.client, texts.RESEARCHER_TOPIC, question)
        answered(await self.client.kv_increment(texts.COUNTER, scope="workspace"))
        self.asked += 1
        self.changed()
        await asyncio.sleep(self._pace_s / 3)

    async def _note(self, text: str) -> None:
        question, mark, _ = text.partition("?")
        if question + mark not in texts.QUESTIONS:
            return  # small talk
        complete = set(texts.QUESTIONS) <= set(self.answers)
        self.answers.append(question + mark)
        self.changed()
        if not complete and set(texts.QUESTIONS) <= set(self.answers):
            await asyncio.sleep(self._pace_s)
            await send_to(self.client, texts.WINDOW_TOPIC, addressed(texts.USER, texts.PLAN))

    async def barrier(self) -> int:
        """Read the demo's KV counter; its answer proves that all earlier sends are stored."""
        response = answered(await self.client.kv_get(texts.COUNTER, scope="workspace"))
        return int(response.value or b"0")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the conversation; the gateway vouches for the speaker's topic."""

    speaker: str
    to: str
    text: str

    @classmethod
    def read(cls, speaker: str, text: str) -> Line:
        """Read a line from a message; `to` is empty if the text names no receiver."""
        if not text.startswith("@"):
            return cls(speaker, "", text)
        name, _, rest = text[1:].partition(" ")
        return cls(speaker, name, rest)


class Window(Watched):
    """Plays the user's browser window: it follows the conversation, and can ask."""

    def __init__(self, on_line: Callable[[Line], None], on_progress: Callable[[Any], None]) -> None:
        super().__init__()
        self._on_line = on_line
        self._on_progress = on_progress
        self.client = AsyncUserClient(texts.USER, texts.WINDOW, **CLIENT_SETTINGS)
        self.client.on_message = self._message
        self.client.on_progress = self._progressed
        self.client.on_connect = self._connected
        self.connections = 0
        self.repeated = 0
        self.lines: list[Line] = []
        self.progress: list[Any] = []

    async def _connected(self) -> None:
        # A session has the workspace of a window, so each new session sets it again.
        await self.client.switch_workspace(texts.WORKSPACE)
        self.connections += 1
        self.changed()

    def _message(self, message: Any) -> None:
        line = Line.read(message.source_topic, message.payload.decode())
        if line in self.lines:
            self.repeated += 1  # at least once may be twice
        else:
            self.lines.append(line)
            self._on_line(line)
        self.changed()

    def _progressed(self, update: Any) -> None:
        self.progress.append(update)
        self._on_progress(update)
        self.changed()

    def heard(self, speaker: str) -> list[str]:
        """Return what a speaker said in the conversation, in order."""
        return [line.text for line in self.lines if line.speaker == speaker]

    def saw(self, speaker: str, *texts: str) -> bool:
        """Whether the window received all of these texts from a speaker."""
        return set(self.heard(speaker)) >= set(texts)

    async def ask(self, text: str, whom: str = texts.PLANNER) -> None:
        """Send a text of the user to the planner, or to another agent."""
        await self.client.send_message_to_agent(texts.WORKSPACE, whom, "1", text.encode(), message_type=pb.CHAT)
