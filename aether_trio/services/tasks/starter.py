"""Interfaces between the task service and the service that starts agents."""

from __future__ import annotations

from typing import Protocol

from aether_trio.model.identity import Identity
from aether_trio.model.tasks import TaskRow
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.storage.base import Program


class AgentHooks(Protocol):
    """Callbacks that schedule the start of agents after a commit on tasks."""

    def target_absent(self, identity: str) -> None:
        """Note that a task waits for this agent, which is not connected."""

    def gateway_lost(self, identity: str) -> None:
        """Note that the gateway of this started agent has ended."""

    def agent_crashed(self, identity: str) -> None:
        """Note that the process of this started agent has failed."""


class Starter(Protocol):
    """Starts agents that are not connected, for tasks that are targeted at them."""

    async def knows(self, implementation: str) -> bool:
        """Return whether an agent implementation is registered. Raises StorageUnavailable."""

    def start(self, tx: Transaction, target: Identity, cause: TaskRow) -> Program[str]:
        """Start a new task's target in the transaction that creates the task `cause`.

        A start that is in progress already is a success. Returns "", or why the target cannot be
        started, as a sentence for the creator; then nothing has been written.
        """
