"""Admits a client: from its first message to its ConnectionAck.

    first message -> claim -> authenticate -> identity lock -> subscriptions -> ack, config

A refusal ends the stream before any message, because a client takes any message for "connected".
The order is the same for all clients. The last subscriptions open in the step that queues the
acknowledgement, without a checkpoint, so a client that has its ack misses no message.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from aether_trio.delivery.receipts import CountedSends, Receipts
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Kind
from aether_trio.model.ownership import SessionHistory
from aether_trio.session.dependencies import SessionDependencies
from aether_trio.session.duplicate_grace import let_predecessor_end, yields_at_once
from aether_trio.session.init_connection import Authenticated, Claim, read_claim, undeclared_extensions
from aether_trio.session.renewal import left_ms, tell_end
from aether_trio.session.session import Session
from aether_trio.storage.base import StorageUnavailable
from aether_trio.transport.link import Link, LinkBroken, Upstream
from aether_trio.wire.framing import Send
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.session")

FRESH_S = 5.0  # how long a client waits for a node that cannot look for changed access data


class Handshake:
    """Admits clients to one gateway by their first message, and acknowledges them."""

    def __init__(self, dependencies: SessionDependencies) -> None:
        self._parts = dependencies
        self._draining = False
        self._waiting: set[trio.CancelScope] = set()  # the waits for a first message

    @property
    def draining(self) -> bool:
        """Whether new clients are refused because the gateway shuts down."""
        return self._draining

    def stop_admitting(self) -> None:
        """Refuse every client that is not admitted yet: the gateway is shutting down."""
        self._draining = True

    def turn_away(self) -> None:
        """Stop admitting clients, and end the streams that wait for a first message."""
        self._draining = True
        for waiting in self._waiting:
            waiting.cancel()

    async def admit(self, link: Link) -> tuple[Session, Claim, Sequence[Upstream], bool]:
        """Authenticate a new stream's client; return its session, owner of its identity.

        Returns (session, claim, messages right behind the first one, whether it resumes a session).
        Raises StatusError for a refusal, LinkBroken when the client has gone.
        """
        parts = self._parts
        claim: Claim | None = None
        admitted: Authenticated | None = None
        try:
            batch = await self._first_messages(link)
            if not batch:
                raise StatusError(Status.INVALID_ARGUMENT, "the stream ended before its InitConnection")
            first = batch[0]
            if isinstance(first, Send):
                raise StatusError(Status.INVALID_ARGUMENT, "the first message must be an InitConnection")
            claim = read_claim(first, link.peer.metadata, parts.ids, parts.limits, strict=parts.strict_charset)
            admitted = await parts.hooks.authenticate(claim, link.peer)
            session = self._make_session(link, claim, admitted)
            await self._wait_fresh()
            parts.hooks.authorize(session)  # a client that is refused displaces no session
            history = await self._recall(claim)
            displaced, continued = await self._take(session, claim)
            if displaced is not None:
                displaced.end(Status.CANCELLED, f"session {session.session_id} has taken over this identity")
            if (history := continued or history) is not None:
                # Before anything may fail: the client resumes the same session when it tries again.
                session.resume(history)
            try:
                if session.pending is not None:
                    await session.pending.wait_none()
                self._check_wanted(session)  # the client may have gone meanwhile
            except BaseException:
                session.detach()
                raise
        except StatusError as error:
            parts.hooks.attempted(claim, error.status, admitted is not None)
            # The client is told the reason, but an operator who is asked for it looks here.
            logger.info(
                "connection refused",
                status=error.status.name,
                identity="unknown" if claim is None else claim.identity.text,
                peer=link.peer.address,
                reason=error.message,
            )
            raise
        return session, claim, batch[1:], history is not None

    async def acknowledge(self, session: Session, claim: Claim, *, resumed: bool) -> None:
        """Open the session's subscriptions and send its ConnectionAck. Raises StatusError."""
        parts, subscriptions = self._parts, session.subscriptions
        assert subscriptions is not None
        config: pb.ConfigSnapshot | None = None
        try:
            parts.hooks.authorize(session)  # something may have changed while it took its identity
            await parts.hooks.prepare(session)
            if session.identity.kind in (Kind.AGENT, Kind.UNIQUE_TASK, Kind.TASK):
                config = await parts.hooks.config_snapshot(session)
            open_base = await subscriptions.prepare_base()
            try:
                token = session.link.peer.publisher
                find = parts.publishers.find
                claim_publisher = await find(session.identity.text, token) if token is not None else None
            except BaseException:
                # What is prepared is kept until it is opened, or closed as not needed.
                subscriptions.close()
                open_base()
                raise
        except StorageUnavailable as error:
            raise StatusError(Status.UNAVAILABLE, f"the gateway's storage does not answer: {error}") from None
        if session.ending is not None:
            # Another task has ended the session during the last wait.
            open_base()
            raise session.ending
        if claim_publisher is not None:
            session.number_sends(Receipts(parts.log, session.outbox, claim_publisher()))
        if resumed:
            before = session.history
            session.resume(SessionHistory(session.session_id, before.initial_connection_ms, before.reconnections + 1))
        ack = self._ack(session, claim, resumed=resumed)
        if config is None:
            session.acknowledge(ack)
        else:
            session.acknowledge(ack, pb.DownstreamMessage(config=config))
        parts.hooks.attempted(claim, Status.OK, True)
        open_base()
        parts.hooks.joined(session, claim)

    def _ack(self, session: Session, claim: Claim, *, resumed: bool) -> pb.DownstreamMessage:
        message = pb.DownstreamMessage()
        # Field by field, and in place: as arguments they take three times as long.
        ack = message.connection_ack
        ack.session_id = session.session_id
        ack.resumed = resumed
        ack.assigned_id = claim.assigned_id
        if claim.extensions:
            ack.negotiated_extensions.extend(claim.extensions)
            if claim.renews:
                tell_end(ack, left_ms(session, self._parts.clock.now_ms()))
            ack.server_supported_extensions.extend(undeclared_extensions(claim))
        ack.server_version = self._parts.server_version
        ack.initial_connection_unix_ms = session.history.initial_connection_ms
        ack.reconnection_count = session.history.reconnections
        return message

    async def _first_messages(self, link: Link) -> Sequence[Upstream]:
        """Return a client's first messages, sent in time. Raises StatusError."""
        if self._draining:
            raise _shutting_down()
        batch = link.receive_nowait()
        if batch:
            return batch
        wait_s = self._parts.limits.init_wait_s
        with trio.move_on_after(wait_s) as waiting:
            self._waiting.add(waiting)
            try:
                batch = await link.receive()
            finally:
                self._waiting.discard(waiting)
        if waiting.cancelled_caught and self._draining:
            raise _shutting_down()
        if waiting.cancelled_caught:
            raise StatusError(Status.DEADLINE_EXCEEDED, f"no InitConnection came within {wait_s:g} seconds")
        return batch

    async def _wait_fresh(self) -> None:
        """Wait until this node knows the latest access data. Raises StatusError."""
        if not self._parts.gate.is_closed:
            return
        with trio.move_on_after(FRESH_S):
            await self._parts.gate.wait()
            return
        raise StatusError(Status.UNAVAILABLE, "this gateway cannot look who may connect; connect again")

    def _make_session(self, link: Link, claim: Claim, admitted: Authenticated) -> Session:
        parts = self._parts
        session = Session(
            claim,
            admitted,
            parts.ids.session_id(),
            link,
            parts.outbox_limits,
            parts.registry,
            parts.rates,
            parts.clock.now_ms(),
            parts.hooks.ended,
            parts.gate,
        )
        link.attach(session.outbox)
        if link.peer.transport != "framed":  # the framed transport has its own numbers and credit
            if claim.counts_sends:
                session.count_sends(CountedSends(parts.log, session.outbox))
            if claim.credit is not None:
                session.outbox.grant(*claim.credit)
        return session

    async def _recall(self, claim: Claim) -> SessionHistory | None:
        """Look up the session to resume if it ended before this gateway started, or None."""
        if not claim.resume_session_id or self._parts.registry.remembers(claim.identity.text):
            return None
        try:
            return await self._parts.hooks.recall(claim.identity.text, claim.resume_session_id)
        except StorageUnavailable:
            return None

    async def _take(self, session: Session, claim: Claim) -> tuple[Session | None, SessionHistory | None]:
        """Lock the identity for a session. Raises StatusError, LinkBroken."""
        registry = self._parts.registry
        while True:
            await let_predecessor_end(registry, claim)
            self._check_wanted(session)
            try:
                return await self._parts.locks.take(session, claim)
            except StatusError as refusal:
                # One that gives way may have taken the identity meanwhile.
                owner = registry.holder(claim.identity.text)
                if (
                    refusal.status is not Status.ALREADY_EXISTS
                    or owner is None
                    or not yields_at_once(owner, claim.resume_session_id)
                ):
                    raise

    def _check_wanted(self, session: Session) -> None:
        if self._draining:
            raise _shutting_down()
        if session.outbox.broken:
            raise LinkBroken("the client's stream broke during its handshake")


def _shutting_down() -> StatusError:
    return StatusError(Status.UNAVAILABLE, "the gateway is shutting down; connect again")
