"""What the task service calls of the part that starts agents, and tells it."""

from __future__ import annotations

from typing import Protocol

from aether_trio.model.identity import Identity
from aether_trio.model.tasks import TaskRow
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.storage.base import Program


class AgentHooks(Protocol):
    """Told after a commit which agents may have to be started.

    The methods may only schedule work.
    """

    def target_absent(self, identity: str) -> None:
        """Note that a task waits for this participant, which is not connected."""
        ...

    def gateway_lost(self, identity: str) -> None:
        """Note that the gateway of this started agent has ended."""
        ...


class Starter(Protocol):
    """Starts agents that are not running."""

    async def knows(self, implementation: str) -> bool:
        """Return whether this implementation is registered. Raises StorageUnavailable."""
        ...

    def start(self, tx: Transaction, target: Identity, cause: TaskRow) -> Program[str]:
        """Start the target of `cause`, in the transaction that creates `cause`.

        A start that is in progress already is a success. Returns "", or why the target cannot be
        started, as a sentence for the creator; then nothing has been written.
        """
        ...
