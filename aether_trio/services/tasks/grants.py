"""Interface to the service that makes the grants of tasks (services/authority/)."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from aether_trio.model.access.grants import AuthorityGrant, Lineage
from aether_trio.model.audit import AuditEvent
from aether_trio.model.identity import Identity
from aether_trio.model.tasks import TaskRow
from aether_trio.session.session import Session
from aether_trio.storage.base import Program
from aether_trio.wire.pb import aether_pb2 as pb


class MintedGrant(NamedTuple):
    """The grant of a new task, those that it is derived from, and its audit event."""

    grant: AuthorityGrant
    above: Lineage
    event: AuditEvent

    def give(self, task: TaskRow) -> None:
        """Write into a new task's row on whose behalf it is done."""
        grant = self.grant
        task.authority_mode = "on_behalf_of"
        task.subject_type, task.subject_id = task.root_subject_type, task.root_subject_id = grant.subject
        task.authority_grant_id, task.root_authority_grant_id = grant.grant_id, grant.root_id
        task.parent_authority_grant_id = grant.parent_id
        task.grants = 1


class GrantMaker(Protocol):
    """Makes the grant of a task that is created on behalf of a subject."""

    async def prepare(
        self, session: Session, request: pb.CreateTaskRequest, task: TaskRow, target: Identity | None
    ) -> MintedGrant | None:
        """Make the grant of a new task's worker; None for a task of the creator itself.

        Raises StorageUnavailable, and RequestError if the creator may not pass on its grant.
        """

    def check(self, minted: MintedGrant, now_ms: int) -> Program[str]:
        """Return why a grant cannot be made any more, "" if it can; write nothing."""

    def insert(self, minted: MintedGrant, task_id: str) -> Program[None]:
        """Write the grant of a task, before the task."""

    async def created(self, minted: MintedGrant) -> None:
        """End a task whose grant was revoked while it was created."""


class NoGrantMaker:
    """The GrantMaker of a gateway without authority."""

    async def prepare(
        self, session: Session, request: pb.CreateTaskRequest, task: TaskRow, target: Identity | None
    ) -> MintedGrant | None:
        return None

    def check(self, minted: MintedGrant, now_ms: int) -> Program[str]:
        yield from ()
        return ""

    def insert(self, minted: MintedGrant, task_id: str) -> Program[None]:
        yield from ()

    async def created(self, minted: MintedGrant) -> None:
        """Do nothing: no task has a grant."""


NO_GRANT_MAKER: Final = NoGrantMaker()
