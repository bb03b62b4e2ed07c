"""What the sessions of a gateway use: its log, queues, limits, and service hooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from aether_trio.delivery.ephemeral_topics import EphemeralTopics
from aether_trio.delivery.outbox import OutboxLimits
from aether_trio.delivery.rates import Rates
from aether_trio.delivery.router import Router
from aether_trio.log.deduplication import PublisherStore
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Status
from aether_trio.model.ids import IdFactory
from aether_trio.model.limits import Limits
from aether_trio.model.ownership import SessionHistory
from aether_trio.model.topics import Topic
from aether_trio.queues.work_queues import WorkQueues
from aether_trio.session.dispatch import Dispatcher
from aether_trio.session.identity_locks import IdentityLocks
from aether_trio.session.init_connection import Authenticated, Claim
from aether_trio.session.lease_gate import LeaseGate
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session
from aether_trio.transport.link import Peer
from aether_trio.wire.pb import aether_pb2 as pb

__all__ = ["SessionDependencies", "SessionHooks"]


class SessionHooks(Protocol):
    """What the services do at each step of a client's connection, in this order.

    Hooks that are not `async` are one step, without a checkpoint; the others raise
    StorageUnavailable.
    """

    async def authenticate(self, claim: Claim, peer: Peer) -> Authenticated:
        """Return what the client's credentials permit; raise StatusError to refuse them."""

    def authorize(self, session: Session) -> None:
        """Check that a client may be connected as what it claims; raise StatusError."""

    async def recall(self, identity: str, session_id: str) -> SessionHistory | None:
        """Look up a session to resume that ended before this gateway started, or None."""

    async def prepare(self, session: Session) -> None:
        """Give the session of a started agent its task, before its ConnectionAck."""

    async def config_snapshot(self, session: Session) -> pb.ConfigSnapshot:
        """Return the configuration that an agent or task gets after its ConnectionAck."""

    async def renew(self, session: Session, credentials: Mapping[str, str]) -> None:
        """Let a session rest on these credentials; raise StatusError to refuse them."""

    def attempted(self, claim: Claim | None, status: Status, authenticated: bool) -> None:
        """Count a handshake that ended with `status`; no `claim`: no valid InitConnection."""

    def joined(self, session: Session, claim: Claim) -> None:
        """Note that a session is acknowledged and its subscriptions are open."""

    def agents_changed(self, session: Session) -> None:
        """Note that an orchestrator has other agents from now on."""

    def ended(self, session: Session) -> None:
        """Note, once per session, that the session has given up its identity."""


class SendPreparation(Protocol):
    """What has to be read before a message can be checked without a wait."""

    async def prepare_authority(self, actor: Session, context: pb.AuthorizationContext) -> None:
        """Read the grant that a message's context names; raise nothing."""

    async def forward(self, actor: Session, message: pb.SendMessage, target: Topic) -> pb.ForwardedAuthorization:
        """Make the grant by which the receiver of a message goes on. Raises RequestError."""


@dataclass(frozen=True, slots=True)
class SessionDependencies:
    """The parts of a gateway that its sessions use: log, router, queues, hooks."""

    clock: Clock
    ids: IdFactory
    limits: Limits
    outbox_limits: OutboxLimits
    log: TopicLog
    publishers: PublisherStore
    ephemeral_topics: EphemeralTopics
    work_queues: WorkQueues
    rates: Rates
    router: Router
    rules: SendPreparation
    registry: SessionRegistry
    gate: LeaseGate
    locks: IdentityLocks
    dispatcher: Dispatcher
    hooks: SessionHooks
    server_version: str
    strict_charset: bool = True
