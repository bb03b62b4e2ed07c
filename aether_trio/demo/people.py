"""The planner and the user's window: clients of the published SDK, in the demo's own process.

Invariant: callbacks only enqueue. The SDK awaits some of them inside the loop that reads the stream, so a callback that
waits for an answer would wait for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from scitrera_aether_client import AsyncAgentClient, AsyncUserClient
from scitrera_aether_client.proto import aether_pb2 as pb

from aether_trio.demo import story

# The SDK gives up after five tries and doubles its pauses from a second on; a demo is in a hurry and never gives up.
CLIENT_SETTINGS: Final[dict[str, Any]] = {
    "max_retries": 0,
    "initial_backoff": 0.1,
    "max_backoff": 0.4,
    "tls_enabled": False,
}
LIMIT_S: Final = 30.0
"""How long anything that the story needs may take."""


class Missed(Exception):
    """Something did not happen as told."""


def answered(response: Any) -> Any:
    """The response, when it is one and says success; the SDK gives None when none came in time."""
    if response is None:
        raise Missed("the gateway did not answer a request in time")
    if not response.success:
        raise Missed(f"the gateway refused a request: {getattr(response, 'error', '') or response}")
    return response


async def send_to(client: AsyncAgentClient, topic: str, text: str) -> None:
    """Send to an agent or to a user's window, by its topic. The SDK has a method for each kind."""
    match topic.split("::"):
        case ["ag", workspace, implementation, specifier]:
            await client.send_message_to_agent(
                workspace, implementation, specifier, text.encode(), message_type=pb.CHAT
            )
        case ["us", user, window]:
            await client.send_message_to_user_session(user, window, text.encode(), message_type=pb.CHAT)


async def say(client: AsyncAgentClient, topic: str, text: str) -> None:
    """Send to somebody, with a copy to the user, who follows the conversation in this workspace."""
    await send_to(client, topic, text)
    copy = addressed(topic.split("::")[-2], text).encode()
    await client.send_message_to_user_workspace(story.USER, story.WORKSPACE, copy, message_type=pb.CHAT)


def addressed(name: str, text: str) -> str:
    """How a line says whom it is for."""
    return f"@{name} {text}"


class Watched:
    """Something that changes, and can be waited for."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Look again, whoever waits."""
        self._changed.set()

    async def until(self, happened: Callable[[], bool], what: str) -> None:
        """Wait until `happened`. Raises Missed after LIMIT_S."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not happened():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise Missed(f"waited {LIMIT_S:g} s in vain: {what}") from None


class Planner(Watched):
    """Turns a wish into questions for the researcher, and answers into a plan."""

    def __init__(self, pace_s: float) -> None:
        super().__init__()
        self._pace_s = pace_s
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.client = AsyncAgentClient(story.WORKSPACE, story.PLANNER, "1", **CLIENT_SETTINGS)
        self.client.on_message = self._inbox.put_nowait
        self.client.on_connect = self._connected
        self.connections = 0
        self._known: set[str] = set()
        self.asked = 0
        """Questions that the researcher has been sent and the counter has been told of."""
        self.answers: list[str] = []
        """Questions, in the order in which their answers came; twice if an answer came twice."""

    def _connected(self) -> None:
        self.connections += 1
        self.changed()

    async def work(self) -> None:
        """Handle messages for ever."""
        while True:
            message = await self._inbox.get()
            text = message.payload.decode()
            if message.source_topic == story.RESEARCHER_TOPIC:
                await self._note(text)
            else:
                for question in story.WISHES.get(text, (text,)):
                    await self._ask(question)

    async def _ask(self, question: str) -> None:
        if question in self._known:
            return  # a wish came again: at least once may be twice
        self._known.add(question)
        await say(self.client, story.RESEARCHER_TOPIC, question)
        answered(await self.client.kv_increment(story.COUNTER, scope="workspace"))
        self.asked += 1
        self.changed()
        await asyncio.sleep(self._pace_s / 3)

    async def _note(self, text: str) -> None:
        question, mark, _ = text.partition("?")
        if question + mark not in story.QUESTIONS:
            return  # small talk
        complete = set(story.QUESTIONS) <= set(self.answers)
        self.answers.append(question + mark)
        self.changed()
        if not complete and set(story.QUESTIONS) <= set(self.answers):
            await asyncio.sleep(self._pace_s)
            await send_to(self.client, story.WINDOW_TOPIC, addressed(story.USER, story.PLAN))

    async def barrier(self) -> int:
        """The shared counter. Its answer means that all that the planner sent before is on the gateway's disk."""
        response = answered(await self.client.kv_get(story.COUNTER, scope="workspace"))
        return int(response.value or b"0")


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that somebody said, as the window received it. `speaker` is a topic, and what the gateway vouches for."""

    speaker: str
    to: str
    text: str

    @classmethod
    def read(cls, speaker: str, text: str) -> Line:
        """From a message; `to` is empty when the text says nothing of it."""
        if not text.startswith("@"):
            return cls(speaker, "", text)
        name, _, rest = text[1:].partition(" ")
        return cls(speaker, name, rest)


class Window(Watched):
    """The user's browser window, without the browser: it follows the conversation, and may ask."""

    def __init__(self, on_line: Callable[[Line], None], on_progress: Callable[[Any], None]) -> None:
        super().__init__()
        self._on_line = on_line
        self._on_progress = on_progress
        self.client = AsyncUserClient(story.USER, story.WINDOW, **CLIENT_SETTINGS)
        self.client.on_message = self._message
        self.client.on_progress = self._progressed
        self.client.on_connect = self._connected
        self.connections = 0
        self.repeated = 0
        self.lines: list[Line] = []
        self.progress: list[Any] = []

    async def _connected(self) -> None:
        # Which workspace a window is in belongs to its session, so a new session says it again.
        await self.client.switch_workspace(story.WORKSPACE)
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
        """What `speaker` said, in order."""
        return [line.text for line in self.lines if line.speaker == speaker]

    def saw(self, speaker: str, *texts: str) -> bool:
        """Whether `speaker` said all of these."""
        return set(self.heard(speaker)) >= set(texts)

    async def ask(self, text: str, whom: str = story.PLANNER) -> None:
        """Tell the planner what is wanted, or somebody else."""
        await self.client.send_message_to_agent(story.WORKSPACE, whom, "1", text.encode(), message_type=pb.CHAT)
