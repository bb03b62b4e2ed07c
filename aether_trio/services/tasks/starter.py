"""What the task service needs from the part that starts agents, and what it tells it.

Without a Starter a task for somebody who is not there is refused, unless its creator wants it kept (TARGET_OFFLINE_POLICY_QUEUE).
"""

from __future__ import annotations

from typing import Protocol

from aether_trio.model.identity import Identity
from aether_trio.model.tasks import Task
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.storage.base import Program


class AgentHooks(Protocol):
    """Told after a commit which agents may have to be started. Methods may only schedule work."""

    def target_absent(self, identity: str) -> None:
        """A task waits for this participant, which is not connected."""
        ...

    def gateway_lost(self, identity: str) -> None:
        """This agent, which is started when it is needed, has lost its gateway."""
        ...


class Starter(Protocol):
    """Starts participants that are not running."""

    async def knows(self, implementation: str) -> bool:
        """Whether this implementation is registered. Raises StorageUnavailable."""
        ...

    def start(self, tx: Transaction, target: Identity, cause: Task) -> Program[str]:
        """In the transaction that creates `cause`, for `target`: see to it that the target is started.

        A start that is under way already is a success. Returns why it cannot be, as a sentence for the creator, "" if it can; then
        nothing may have been written. What it writes is seen by others when `cause` is.
        """
        ...
