"""Tells the services when a session connects, joins, moves and ends.

The session server (session/lifecycle.py) knows no service: it calls these hooks. A service that
raises keeps no other service from its call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from aether_trio.gateway.audit import AuditTrail
from aether_trio.model.clock import Clock
from aether_trio.model.containment import tell_all
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Kind
from aether_trio.model.ownership import SessionHistory
from aether_trio.services.access.enforcement import Enforcement
from aether_trio.services.agents import AgentStarter, AutostartQueue
from aether_trio.services.credentials.checker import CredentialChecker
from aether_trio.services.credentials.renewal import check_renewal
from aether_trio.services.kv import KvService
from aether_trio.services.last_seen import LastSeenStore
from aether_trio.services.tasks import TaskService
from aether_trio.services.tasks.delivery.conversations import Conversations
from aether_trio.services.tasks.transaction.startup import task_context
from aether_trio.services.workflows.engine.embedded import EngineSessions
from aether_trio.session.directory import SessionDirectory
from aether_trio.session.expiry import SessionExpiry
from aether_trio.session.identity_locks import IdentityLocks
from aether_trio.session.init_connection import Authenticated, Claim
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session
from aether_trio.telemetry.metrics import Metrics
from aether_trio.transport.link import Peer
from aether_trio.wire.pb import aether_pb2 as pb

_EMPTY_CONFIG: Final = pb.ConfigSnapshot()
_PART_OF_GATEWAY: Final = Authenticated(lambda workspace: True, lambda identity: True, everywhere=True)
"""What a client in the gateway's own process may, which shows no credential."""


class WorkspaceMoves:
    """Tells the services when a session has switched its workspace."""

    def __init__(self, directory: SessionDirectory, conversations: Conversations) -> None:
        self._directory = directory
        self._conversations = conversations

    def moved(self, session: Session) -> None:
        """Tell the services of a session's new workspace."""
        self._directory.moved(session.record)
        self._conversations.moved(session)


@dataclass(frozen=True, slots=True)
class ServiceHooks:
    """The SessionHooks of a gateway: call the services at each step of a session."""

    clock: Clock
    metrics: Metrics
    registry: SessionRegistry
    locks: IdentityLocks
    directory: SessionDirectory
    credentials: CredentialChecker
    enforcement: Enforcement
    expiry: SessionExpiry
    presence: LastSeenStore
    kv: KvService
    tasks: TaskService
    conversations: Conversations
    starter: AgentStarter
    autostart_queue: AutostartQueue
    audit: AuditTrail
    engines: EngineSessions

    async def authenticate(self, claim: Claim, peer: Peer) -> Authenticated:
        """Check the credentials of a client's first message. Raises StatusError."""
        if peer.part_of_gateway:
            return _PART_OF_GATEWAY
        if self.audit.writer.failing and not await self.audit.writer.wait_writable():
            raise StatusError(Status.UNAVAILABLE, "this gateway cannot record who connects; try again")
        try:
            admitted = await self.credentials.admit(claim, peer)
        except StatusError as error:
            self.audit.authenticated(claim, peer, None, error)
            raise
        self.audit.authenticated(claim, peer, admitted, None)
        return admitted

    def authorize(self, session: Session) -> None:
        """Check that a client may be connected now. Raises StatusError.

        Its credential may have ended since `authenticate`, and access rules may refuse it.
        """
        self.credentials.confirm(session)
        self.enforcement.authorize(session)
        self.engines.authorize(session)

    async def renew(self, session: Session, credentials: Mapping[str, str]) -> None:
        """Let a session rest on other credentials. Raises StatusError."""
        client, peer = session.client, session.link.peer
        claim = Claim(session.identity, "", credentials, "", False, (), client.sdk, client.version)
        admitted = await self.authenticate(claim, peer)
        if session.ending is not None:
            raise session.ending
        before = session.admission
        try:
            check_renewal(before, admitted)
            session.renew(admitted)
            try:
                self.authorize(session)
            except StatusError:
                session.renew(before)
                raise
        except StatusError as error:
            self.audit.renewed(session, before, admitted, error)
            raise
        self.expiry.watch(session)
        self.audit.renewed(session, before, admitted, None)
        await self.enforcement.renewed(session)

    async def recall(self, identity: str, session_id: str) -> SessionHistory | None:
        """Find an earlier session's history in the storage. Raises StorageUnavailable."""
        return await self.presence.recall(identity, session_id)

    def attempted(self, claim: Claim | None, status: Status, authenticated: bool) -> None:
        """Count a client's handshake by its outcome.

        The workspace is a label only of an authenticated client: others could make up workspaces
        until there is no room left for those that exist.
        """
        kind = "unknown" if claim is None else claim.identity.type_name
        workspace = claim.identity.workspace if claim is not None and authenticated else ""
        self.metrics.connection_attempts.add((workspace, kind, _attempt_label(status)))
        if claim is not None and authenticated and status is Status.ALREADY_EXISTS:
            self.audit.lock_rejected(claim)

    async def prepare(self, session: Session) -> None:
        """Give a started agent the task of its start (reference: tasks.md 4.4).

        From now on the session ends with its credential.
        """
        self.expiry.watch(session)
        await self.engines.prepare(session)
        start = await self.starter.current_start(session.identity)
        if start is not None:
            session.start_agent(start.task_id, task_context(start))

    async def config_snapshot(self, session: Session) -> pb.ConfigSnapshot:
        """Make a session's first message to its client: its task and exclusive KV entries."""
        in_workspace, everywhere = await self.kv.exclusive_snapshot(session.identity)
        if not (in_workspace or everywhere or session.task_context):
            return _EMPTY_CONFIG
        return pb.ConfigSnapshot(
            task_context=session.task_context, workspace_exclusive_kv=in_workspace, global_exclusive_kv=everywhere
        )

    def joined(self, session: Session, claim: Claim) -> None:
        """Tell the services of a session that was acknowledged."""
        self.audit.connected(session, resumed=bool(claim.resume_session_id))
        self._join(session, resumed=bool(claim.resume_session_id))

    def node_renewed(self) -> None:
        """Tell the services of all sessions again after this node counted as dead."""
        self.tasks.engine.renewed()
        for session in self.registry:
            if session.acknowledged:
                self._join(session, resumed=True, rejoined=True)
        self.tasks.engine.rejoined()

    def _join(self, session: Session, *, resumed: bool, rejoined: bool = False) -> None:
        self.tasks.sessions.joined(session, resumed=resumed, rejoined=rejoined)
        if session.identity.kind is Kind.ORCHESTRATOR:
            self.starter.joined(session, resumed=resumed, rejoined=rejoined)

    def agents_changed(self, session: Session) -> None:
        """Tell the services that an orchestrator has other agents from now on."""
        self.starter.agents_changed(session)

    def ended(self, session: Session) -> None:
        """Tell the services of a session's end, once for each session."""
        tell_all(
            session,
            self.locks.release,
            self.presence.ended,
            self.tasks.ended,
            self.conversations.ended,
            self._agent_ended,
            self.engines.ended,
            self.audit.disconnected,
        )
        self.metrics.connection_duration.observe(
            (self.clock.now_ms() - session.connected_ms) / 1000,
            (session.identity.workspace, session.identity.type_name),
        )

    def _agent_ended(self, session: Session) -> None:
        if session.identity.kind is Kind.ORCHESTRATOR:
            self.starter.ended(session)
        elif session.task_context:
            self.autostart_queue.agent_ended(session.identity.text)
        else:
            self.autostart_queue.unstarted_ended(session.identity.text)


@lru_cache(maxsize=256)
def _attempt_label(status: Status) -> str:
    """Return the metric label of a handshake's status, as in the reference gateway."""
    words = {Status.OK: "success", Status.ALREADY_EXISTS: "lock_failed", Status.RESOURCE_EXHAUSTED: "quota_exceeded"}
    return words.get(status, status.name.lower())
