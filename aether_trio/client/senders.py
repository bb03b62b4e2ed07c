"""Sends messages to agents, tasks, users and services by their names.

The classes are mixins: a gateway refuses what a kind of participant may not send.

All return when the message is committed, and raise as `send` does. `workspace` is by default the
sender's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from aether_trio.client.errors import InvalidArgument
from aether_trio.client.message import MessageType
from aether_trio.model.errors import Code
from aether_trio.model.identity import Identity, IdentityError, check_token
from aether_trio.model.topics import agents_of, any_service, task_topic, user_everywhere, user_in, users_of, workers_of
from aether_trio.wire.pb import aether_pb2 as pb

if TYPE_CHECKING:
    from aether_trio.client.client import Client as _Sender
else:
    _Sender = object

__all__ = ["ToEveryone", "ToParticipants", "ToUsersEverywhere", "ToWork", "WithTelemetry"]

_OPAQUE: Final = MessageType.OPAQUE


def _here(sender: _Sender, workspace: str | None) -> str:
    chosen = sender.workspace if workspace is None else workspace
    if not chosen:
        raise InvalidArgument(Code.INVALID_TOPIC, "this participant is in no workspace; say which one with workspace=")
    return chosen


def _invalid(error: IdentityError) -> InvalidArgument:
    return InvalidArgument(Code.INVALID_TOPIC, str(error))


class ToWork(_Sender):
    """Agents and tasks."""

    async def send_to_agent(
        self,
        implementation: str,
        specifier: str,
        payload: bytes | str,
        *,
        workspace: str | None = None,
        type: MessageType | int = _OPAQUE,  # noqa: A002 - the protocol's word
    ) -> None:
        """To one agent. It waits for it while it is not connected."""
        try:
            target = Identity.agent(_here(self, workspace), implementation, specifier)
        except IdentityError as error:
            raise _invalid(error) from None
        await self.send(target.topic, payload, type=type)

    async def send_to_task(
        self,
        implementation: str,
        specifier: str,
        payload: bytes | str,
        *,
        workspace: str | None = None,
        type: MessageType | int = _OPAQUE,  # noqa: A002 - the protocol's word
    ) -> None:
        """To one unique task."""
        try:
            target = Identity.unique_task(_here(self, workspace), implementation, specifier)
        except IdentityError as error:
            raise _invalid(error) from None
        await self.send(target.topic, payload, type=type)

    async def send_to_workers(
        self,
        implementation: str,
        payload: bytes | str,
        *,
        workspace: str | None = None,
        type: MessageType | int = _OPAQUE,  # noqa: A002 - the protocol's word
    ) -> None:
        """To any one of the tasks without a specifier of this implementation."""
        await self.send(workers_of(_here(self, workspace), implementation), payload, type=type)

    async def send_input(
        self, task_id: str, metadata: Mapping[str, str] | None = None, *, workspace: str | None = None
    ) -> None:
        """Send the input that a task waits for (`Job.wait_for_input`).

        The task goes on if `metadata` has all that it wants to match.

        One that does not wait just now keeps it for its next wait that it matches; the input of a
        task that has ended is dropped.
        """
        place = _here(self, workspace)
        payload = json.dumps({"task_id": task_id, "workspace": place, "metadata": dict(metadata or {})})
        try:
            topic = task_topic(check_token(place, "workspace"), check_token(task_id, "task id"), "input")
        except IdentityError as error:
            raise _invalid(error) from None
        await self.send(topic, payload, type=MessageType.EVENT)


class ToParticipants(_Sender):
    """Users' windows, services, bridges."""

    async def send_to_window(
        self,
        user_id: str,
        window_id: str,
        payload: bytes | str,
        *,
        type: MessageType | int = _OPAQUE,  # noqa: A002
    ) -> None:
        """To one window of a user."""
        try:
            target = Identity.user(user_id, window_id)
        except IdentityError as error:
            raise _invalid(error) from None
        await self.send(target.topic, payload, type=type)

    async def send_to_user(
        self,
        user_id: str,
        payload: bytes | str,
        *,
        workspace: str | None = None,
        type: MessageType | int = _OPAQUE,  # noqa: A002 - the protocol's word
    ) -> None:
        """To the windows of a user that are in the workspace."""
        await self.send(user_in(user_id, _here(self, workspace)), payload, type=type)

    async def send_to_service(
        self,
        implementation: str,
        payload: bytes | str,
        *,
        specifier: str | None = None,
        type: MessageType | int = _OPAQUE,  # noqa: A002 - the protocol's word
    ) -> None:
        """To a service; without a specifier to any live instance.

        Raises Unavailable when there is none.
        """
        try:
            if specifier is None:
                target = any_service(check_token(implementation, "implementation"))
            else:
                target = Identity.service(implementation, specifier).topic
        except IdentityError as error:
            raise _invalid(error) from None
        await self.send(target, payload, type=type)

    async def send_to_bridge(
        self,
        implementation: str,
        specifier: str,
        payload: bytes | str,
        *,
        type: MessageType | int = _OPAQUE,  # noqa: A002
    ) -> None:
        """To a bridge."""
        try:
            target = Identity.bridge(implementation, specifier)
        except IdentityError as error:
            raise _invalid(error) from None
        await self.send(target.topic, payload, type=type)


class ToEveryone(_Sender):
    """All of a kind in a workspace."""

    async def send_to_agents(
        self,
        payload: bytes | str,
        *,
        workspace: str | None = None,
        type: MessageType | int = _OPAQUE,  # noqa: A002
    ) -> None:
        """To every agent of the workspace."""
        await self.send(agents_of(_here(self, workspace)), payload, type=type)

    async def send_to_users(
        self,
        payload: bytes | str,
        *,
        workspace: str | None = None,
        type: MessageType | int = _OPAQUE,  # noqa: A002
    ) -> None:
        """To every user's window that is in the workspace."""
        await self.send(users_of(_here(self, workspace)), payload, type=type)


class ToUsersEverywhere(_Sender):
    """For services, bridges and the workflow engine."""

    async def send_to_user_everywhere(
        self,
        user_id: str,
        payload: bytes | str,
        *,
        type: MessageType | int = _OPAQUE,  # noqa: A002
    ) -> None:
        """To every window of a user, in whatever workspace."""
        await self.send(user_everywhere(user_id), payload, type=type)


class WithTelemetry(_Sender):
    """Events for the workflow engine, metrics for the metrics bridge."""

    async def send_event(self, payload: bytes | str, *, workspace: str | None = None) -> None:
        """An event, on behalf of the sender's workspace or another one."""
        await self.send(f"event::{workspace or '*'}", payload, type=MessageType.EVENT)

    async def send_metric(self, metric: pb.Metric, *, workspace: str | None = None) -> None:
        """A metric. Raises InvalidArgument when the gateway finds it malformed."""
        await self.send(f"metric::{workspace or '*'}", metric.SerializeToString(), type=MessageType.METRIC)
