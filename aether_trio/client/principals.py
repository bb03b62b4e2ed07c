"""The client classes, one for each kind of participant: agents, users, services."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, Self, Unpack

from aether_trio.client.client import Client
from aether_trio.client.feeds import Feed
from aether_trio.client.jobs import WorkerMethods
from aether_trio.client.operations.records import read
from aether_trio.client.operations.task_values import Assignment
from aether_trio.client.options import AGENTS, ClientOptions, numbered
from aether_trio.client.output_guard import guard_output
from aether_trio.client.senders import ToEveryone, ToParticipants, ToUsersEverywhere, ToWork, WithTelemetry
from aether_trio.model.identity import Identity
from aether_trio.wire.pb import aether_pb2 as pb

__all__ = [
    "AgentClient", "BridgeClient", "MetricsBridgeClient", "OrchestratorClient", "ServiceClient", "TaskClient",
    "UserClient", "WorkflowEngineClient",
]  # fmt: skip


STARTS: Final = 4096
"""Starts that may wait for an orchestrator's program to read them."""


_WHO: Final = ("AETHER_WORKSPACE", "AETHER_IMPLEMENTATION", "AETHER_SPECIFIER")
_STARTED: Final = {"ag::": "AgentClient", "tu::": "TaskClient"}


class _StartedByOrchestrator:
    """Mixin of clients that an orchestrator may have started in this process."""

    _prefix: ClassVar[str]

    @classmethod
    def from_environment(cls, **options: Unpack[ClientOptions]) -> Self:
        """Make the client from the environment variables that an orchestrator has set.

        Reads AETHER_ADDRESS (or AETHER_GATEWAY), AETHER_WORKSPACE, AETHER_IMPLEMENTATION,
        AETHER_SPECIFIER, AETHER_IDENTITY and AETHER_AUTH_TOKEN. Raises LookupError when it was not
        started by one, or to be of another class. When the orchestrator is killed later, what the
        process prints is dropped.
        """
        said = os.environ
        missing = [name for name in _WHO if not said.get(name)]
        address = said.get("AETHER_ADDRESS") or (said.get("AETHER_GATEWAY") and f"aether://{said['AETHER_GATEWAY']}")
        if missing or not address:
            names = ", ".join(missing or ["AETHER_GATEWAY"])
            raise LookupError(f"this process was not started by an orchestrator: {names} not set in its environment")
        if said.get("AETHER_AUTH_TOKEN"):
            options.setdefault("token", said["AETHER_AUTH_TOKEN"])
        workspace, implementation, specifier = (said[name] for name in _WHO)
        wanted = said.get("AETHER_IDENTITY", "")
        prefix = wanted[: len(cls._prefix)]
        if prefix in _STARTED and prefix != cls._prefix:
            raise LookupError(f"this process was started to be {wanted}: use {_STARTED[prefix]}.from_environment()")
        if said.get("AETHER_TASK_ID"):
            guard_output()
        made: Callable[..., Self] = cls
        return made(address, workspace=workspace, implementation=implementation, specifier=specifier, **options)


class AgentClient(_StartedByOrchestrator, WorkerMethods, ToWork, ToParticipants, ToEveryone, WithTelemetry, Client):
    """Connects as a lasting agent, "ag::{workspace}::{implementation}::{specifier}"."""

    _prefix = "ag::"

    def __init__(
        self, address: str, *, workspace: str, implementation: str, specifier: str, **options: Unpack[ClientOptions]
    ) -> None:
        super().__init__(address, **options)
        self.__identity = Identity.agent(workspace, implementation, specifier)
        self._workspace = workspace

    def _identify(self, init: pb.InitConnection) -> None:
        who = self.__identity
        init.agent.CopyFrom(
            pb.AgentIdentity(workspace=who.workspace, implementation=who.implementation, specifier=who.specifier)
        )

    def _identity(self, assigned_id: str) -> Identity:
        return self.__identity


class TaskClient(_StartedByOrchestrator, WorkerMethods, ToWork, ToParticipants, ToEveryone, WithTelemetry, Client):
    """Connects as a task: a worker, with a unique specifier or one of several alike.

    With a specifier it is unique, "tu::..."; without, the gateway makes up an id ("ta::..."), and
    all of the implementation share what is sent to "tb::{workspace}::{implementation}".
    """

    _prefix = "tu::"

    def __init__(
        self,
        address: str,
        *,
        workspace: str,
        implementation: str,
        specifier: str = "",
        **options: Unpack[ClientOptions],
    ) -> None:
        super().__init__(address, **options)
        # A made-up specifier stands in until the gateway has said its own; it only checks the other
        # two parts here.
        self.__unique = bool(specifier)
        self.__given = Identity.unique_task(workspace, implementation, specifier or "unknown")
        self._workspace = workspace

    def _identify(self, init: pb.InitConnection) -> None:
        given = self.__given
        init.task.CopyFrom(
            pb.TaskIdentity(
                workspace=given.workspace,
                implementation=given.implementation,
                unique_specifier=given.specifier if self.__unique else "",
            )
        )

    def _identity(self, assigned_id: str) -> Identity:
        if self.__unique:
            return self.__given
        return Identity.task(self.__given.workspace, self.__given.implementation, assigned_id or "unknown")


class UserClient(ToWork, ToParticipants, ToEveryone, Client):
    """Connects as one browser window of a user, "us::{user_id}::{window_id}"."""

    def __init__(self, address: str, *, user_id: str, window_id: str, **options: Unpack[ClientOptions]) -> None:
        super().__init__(address, **options)
        self.__identity = Identity.user(user_id, window_id)

    def _identify(self, init: pb.InitConnection) -> None:
        who = self.__identity
        init.user.CopyFrom(pb.UserIdentity(user_id=who.user_id, window_id=who.window_id))

    def _identity(self, assigned_id: str) -> Identity:
        return self.__identity

    async def switch_workspace(self, workspace: str) -> None:
        """Move this window to a workspace, also after reconnects. Raises PermissionDenied."""
        await self.tell_confirmed(pb.UpstreamMessage(switch_workspace=pb.SwitchWorkspace(new_workspace_id=workspace)))


AGENTS_AT_ONCE: Final = 400  # names in one declaration of an orchestrator's agents, of 64 KiB


class OrchestratorClient(ToWork, Client):
    """Connects as an orchestrator, which starts agents and tasks on demand.

    `profiles` are the kinds of launches that it can do; without them it only administers. `agents`
    are the implementations that it has: it is asked for these alone, and reports how each of their
    processes ends. None: it is asked for whatever has one of its profiles. Without a specifier the
    gateway makes one up, which stays the same over reconnects.
    """

    def __init__(
        self,
        address: str,
        *,
        implementation: str,
        profiles: Sequence[str],
        agents: Sequence[str] | None = None,
        specifier: str = "",
        **options: Unpack[ClientOptions],
    ) -> None:
        super().__init__(address, **numbered(options))
        if isinstance(profiles, str):
            raise ValueError(f"profiles must be a list of texts, such as [{profiles!r}], not the text {profiles!r}")
        self.__given = Identity.orchestrator(implementation, specifier or "unknown")
        self.__named = bool(specifier)
        self.__profiles = tuple(profiles)
        if isinstance(agents, str):
            raise ValueError(f"agents must be a list of texts, such as [{agents!r}], not the text {agents!r}")
        self.__agents = None if agents is None else tuple(agents)
        # From the first moment on: what waits for an orchestrator comes right behind the answer
        # that lets it in.
        self.__starts: Feed[Assignment] = Feed(STARTS, lossy=False, convert=lambda message: read(Assignment, message))
        self._dispatch.feeds.add(self.__starts, "task_assignment")

    @property
    def starts(self) -> Feed[Assignment]:
        """A feed of the agents and tasks that this orchestrator is asked to start."""
        return self.__starts

    async def say_agents(self, agents: Sequence[str]) -> None:
        """Tell the gateway which agents this orchestrator has from now on.

        Only of one that was made with `agents`.
        """
        if self.__agents is None:
            raise ValueError("this orchestrator was made without agents, so it is asked for all of its profiles")
        self.__agents = tuple(agents)
        await self.tell(pb.UpstreamMessage(active_extensions=[AGENTS, *_arrays(self.__agents)]))

    def _identify(self, init: pb.InitConnection) -> None:
        if self.__agents is not None:
            arrays = _arrays(self.__agents)
            init.extensions.extend(pb.ExtensionDeclaration(uri=AGENTS, json_schema=array) for array in arrays)
        init.orchestrator.CopyFrom(
            pb.OrchestratorIdentity(
                implementation=self.__given.implementation,
                specifier=self.__given.specifier if self.__named else self._reconnector.assigned,
                supported_profiles=self.__profiles,
            )
        )

    def _identity(self, assigned_id: str) -> Identity:
        if self.__named:
            return self.__given
        specifier = assigned_id or self._reconnector.assigned or "unknown"
        return Identity.orchestrator(self.__given.implementation, specifier)


def _arrays(names: Sequence[str]) -> list[str]:
    """Return names as JSON arrays, each small enough for one declaration."""
    starts = range(0, max(len(names), 1), AGENTS_AT_ONCE)
    return [json.dumps(names[start : start + AGENTS_AT_ONCE]) for start in starts]


class WorkflowEngineClient(ToWork, ToParticipants, ToUsersEverywhere, ToEveryone, WithTelemetry, Client):
    """Connects as the workflow engine, of which there is one. It receives events."""

    def _identify(self, init: pb.InitConnection) -> None:
        init.workflow_engine.SetInParent()

    def _identity(self, assigned_id: str) -> Identity:
        return Identity.workflow_engine()


class MetricsBridgeClient(Client):
    """Connects as the one metrics bridge, which receives metrics and sends nothing."""

    def _identify(self, init: pb.InitConnection) -> None:
        init.metrics_bridge.SetInParent()

    def _identity(self, assigned_id: str) -> Identity:
        return Identity.metrics_bridge()


class BridgeClient(ToWork, ToParticipants, ToUsersEverywhere, ToEveryone, WithTelemetry, Client):
    """Connects as a bridge to another system, "br::{implementation}::{specifier}"."""

    def __init__(self, address: str, *, implementation: str, specifier: str, **options: Unpack[ClientOptions]) -> None:
        super().__init__(address, **options)
        self.__identity = Identity.bridge(implementation, specifier)

    def _identify(self, init: pb.InitConnection) -> None:
        who = self.__identity
        init.bridge.CopyFrom(pb.BridgeIdentity(implementation=who.implementation, specifier=who.specifier))

    def _identity(self, assigned_id: str) -> Identity:
        return self.__identity


class ServiceClient(WorkerMethods, ToWork, ToParticipants, ToUsersEverywhere, ToEveryone, WithTelemetry, Client):
    """Connects as a service, "sv::{implementation}::{specifier}".

    Without `takes_any` it is only meant when it is named in full.
    """

    def __init__(
        self,
        address: str,
        *,
        implementation: str,
        specifier: str,
        takes_any: bool = True,
        **options: Unpack[ClientOptions],
    ) -> None:
        super().__init__(address, **options)
        self.__identity = Identity.service(implementation, specifier)
        self.__takes_any = takes_any

    def _identify(self, init: pb.InitConnection) -> None:
        who = self.__identity
        init.service.CopyFrom(
            pb.ServiceIdentity(
                implementation=who.implementation, specifier=who.specifier, no_pool_consumer=not self.__takes_any
            )
        )

    def _identity(self, assigned_id: str) -> Identity:
        return self.__identity
