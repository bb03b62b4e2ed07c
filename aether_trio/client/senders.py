"""Client methods that send messages to agents, tasks, users, services and bridges.

A gateway refuses what a kind of participant may not send. All return when the message is committed,
and raise as `send` does. `workspace` is by default the sender's own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from aether_trio.client.errors import FailedPrecondition, InvalidArgument
from aether_trio.client.message import MessageType
from aether_trio.client.operations.task_values import Task
from aether_trio.model.errors import Code
from aether_trio.model.identity import Identity, IdentityError, check_token
from aether_trio.model.topics import agents_of, any_service, task_topic, user_everywhere, user_in, users_of, workers_of
from aether_trio.wire.pb import aether_pb2 as pb

if TYPE_CHECKING:
    from aether_trio.client.client import Client as _Sender
else:
    _Sender = object

_OPAQUE: Final = MessageType.OPAQUE


def _here(sender: _Sender, workspace: str | None) -> str:
    chosen = sender.workspace if workspace is None else workspace
    if not chosen:
        raise InvalidArgument(
            Code.INVALID_TOPIC, "this participant is in no workspace, so give the receiver's with workspace="
        )
    return chosen


@contextmanager
def _invalid_topic() -> Iterator[None]:
    try:
        yield
    except IdentityError as error:
        raise InvalidArgument(Code.INVALID_TOPIC, str(error)) from None


class ToWork(_Sender):
    """Mixin of clients that may send to agents and tasks."""

    async def send_to_agent(
        self,
        implementation: str,
        specifier: str,
        payload: bytes | str,
        *,
        workspace: str | None = None,
        type: MessageType | int = _OPAQUE,
    ) -> None:
        """Send to one agent; the message waits while the agent is not connected."""
        with _invalid_topic():
            target = Identity.agent(_here(self, workspace), implementation, specifier)
        await self.send(target.topic, payload, type=type)

    async def send_to_task(
        self,
        implementation: str,
        specifier: str,
        payload: bytes | str,
        *,
        workspace: str | None = None,
        type: MessageType | int = _OPAQUE,
    ) -> None:
        """Send to the one task with this specifier."""
        with _invalid_topic():
            target = Identity.unique_task(_here(self, workspace), implementation, specifier)
        await self.send(target.topic, payload, type=type)

    async def send_to_workers(
        self,
        implementation: str,
        payload: bytes | str,
        *,
        workspace: str | None = None,
        type: MessageType | int = _OPAQUE,
    ) -> None:
        """Send to any one of the workers of this implementation that have no specifier."""
        await self.send(workers_of(_here(self, workspace), implementation), payload, type=type)

    async def send_input(
        self,
        task_id: str,
        metadata: Mapping[str, str] | None = None,
        *,
        payload: bytes = b"",
        workspace: str | None = None,
    ) -> None:
        """Send the input that a task waits for (`Job.wait_for_input`).

        Its worker reads `metadata` and `payload`. The task goes on if `metadata` has all that it
        wants to match; one that does not wait just now keeps the input for its next wait that it
        matches.
        """
        place = _here(self, workspace)
        document = {"task_id": task_id, "workspace": place, "metadata": dict(metadata or {})}
        if payload:
            document["payload_base64"] = base64.b64encode(payload).decode()
        with _invalid_topic():
            topic = task_topic(check_token(place, "workspace"), check_token(task_id, "task id"), "input")
        await self.send(topic, json.dumps(document), type=MessageType.EVENT)

    async def answer(
        self,
        task: Task | str,
        approved: bool,
        *,
        choice: str = "",
        text: str = "",
        metadata: Mapping[str, str] | None = None,
        workspace: str | None = None,
    ) -> None:
        """Answer the question that a task asks a person (`Job.ask`).

        Of a Task (from `tasks.get`, say) it is the question that was read, and the answer is void
        when that is over. By an id it is what the task asks at this moment. The answer has the
        pairs that its wait asks for; `metadata` are further ones. Raises FailedPrecondition if the
        task asks nothing.
        """
        if isinstance(task, str):
            task = await self.tasks.get(task)
        if task.question is None or task.wait_spec is None:
            raise FailedPrecondition("NO_QUESTION", f"task {task.task_id} asks no question now")
        pairs = {name: value for name, value in task.wait_spec.input_match.items() if not name.startswith("_")}
        parts = {"decision": "approve" if approved else "reject", "choice": choice, "text": text}
        given = {**pairs, **(metadata or {}), **{name: part for name, part in parts.items() if part}}
        await self.send_input(task.task_id, given, workspace=task.workspace if workspace is None else workspace)


class ToParticipants(_Sender):
    """Mixin of clients that may send to users, services and bridges."""

    async def send_to_window(
        self, user_id: str, window_id: str, payload: bytes | str, *, type: MessageType | int = _OPAQUE
    ) -> None:
        """Send to one window of a user."""
        with _invalid_topic():
            target = Identity.user(user_id, window_id)
        await self.send(target.topic, payload, type=type)

    async def send_to_user(
        self, user_id: str, payload: bytes | str, *, workspace: str | None = None, type: MessageType | int = _OPAQUE
    ) -> None:
        """Send to the windows of a user that are in the workspace."""
        await self.send(user_in(user_id, _here(self, workspace)), payload, type=type)

    async def send_to_service(
        self,
        implementation: str,
        payload: bytes | str,
        *,
        specifier: str | None = None,
        type: MessageType | int = _OPAQUE,
    ) -> None:
        """Send to one service instance, or any if not specified. Raises Unavailable."""
        with _invalid_topic():
            if specifier is None:
                target = any_service(check_token(implementation, "implementation"))
            else:
                target = Identity.service(implementation, specifier).topic
        await self.send(target, payload, type=type)

    async def send_to_bridge(
        self, implementation: str, specifier: str, payload: bytes | str, *, type: MessageType | int = _OPAQUE
    ) -> None:
        """Send to a bridge to another system."""
        with _invalid_topic():
            target = Identity.bridge(implementation, specifier)
        await self.send(target.topic, payload, type=type)


class ToEveryone(_Sender):
    """Mixin of clients that may send to all agents or users of a workspace."""

    async def send_to_agents(
        self, payload: bytes | str, *, workspace: str | None = None, type: MessageType | int = _OPAQUE
    ) -> None:
        """Send to every agent of the workspace."""
        await self.send(agents_of(_here(self, workspace)), payload, type=type)

    async def send_to_users(
        self, payload: bytes | str, *, workspace: str | None = None, type: MessageType | int = _OPAQUE
    ) -> None:
        """Send to every user's window that is in the workspace."""
        await self.send(users_of(_here(self, workspace)), payload, type=type)


class ToUsersEverywhere(_Sender):
    """Mixin of clients that may send to a user in every workspace."""

    async def send_to_user_everywhere(
        self, user_id: str, payload: bytes | str, *, type: MessageType | int = _OPAQUE
    ) -> None:
        """Send to every window of a user, in whatever workspace it is."""
        await self.send(user_everywhere(user_id), payload, type=type)


class WithTelemetry(_Sender):
    """Mixin of clients that may send events and metrics."""

    async def send_event(self, payload: bytes | str, *, workspace: str | None = None) -> None:
        """Send an event to the workflow engine, about this workspace or another one."""
        await self.send(f"event::{workspace or '*'}", payload, type=MessageType.EVENT)

    async def send_metric(self, metric: pb.Metric, *, workspace: str | None = None) -> None:
        """Send a metric to the metrics bridge. Raises InvalidArgument if malformed."""
        await self.send(f"metric::{workspace or '*'}", metric.SerializeToString(), type=MessageType.METRIC)
