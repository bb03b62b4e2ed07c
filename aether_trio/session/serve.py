"""One connection's life, from its first message to the close of its stream.

    admit (refusals end the stream before any message) -> hold the identity -> subscribe -> ack, config -> read loop
    -> detach -> close the stream with a status

Everything up to the acknowledgement happens in one order for all; the hold, the subscriptions and the acknowledgement
are taken in one step without a checkpoint, so a client that has its ack misses nothing.

Invariants: requests of one session are handled one after another, in order; a client that floods is read no further
while the log has no room or its own answers pile up, and TCP tells it; the stream is closed exactly once, in bounded time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog
import trio
from google.protobuf.message import DecodeError

from aether_trio.delivery.counted_sends import CountedSends
from aether_trio.delivery.ephemeral_topics import EphemeralTopics
from aether_trio.delivery.outbox import OutboxLimits
from aether_trio.delivery.rates import Rates
from aether_trio.delivery.receipts import Receipts
from aether_trio.delivery.router import Router
from aether_trio.log.publishers import PublisherStore
from aether_trio.log.topic_log import TopicLog
from aether_trio.model.clock import Clock
from aether_trio.model.containment import DEFECT, report, run_all
from aether_trio.model.errors import AetherError, Code, Status, StatusError
from aether_trio.model.identity import Kind
from aether_trio.model.ids import IdFactory
from aether_trio.model.limits import Limits
from aether_trio.queues.work_queues import WorkQueues
from aether_trio.session.admission import Admitted, Claim, credit_granted, read_claim, undeclared_extensions
from aether_trio.session.dispatch import Dispatcher
from aether_trio.session.identity_locks import IdentityLocks
from aether_trio.session.registry import History, Registry
from aether_trio.session.session import ClientInfo, Session
from aether_trio.session.subscriptions import Subscriptions
from aether_trio.storage.base import StorageUnavailable
from aether_trio.transport.link import Link, LinkBroken, Peer, Upstream
from aether_trio.wire.framing import Send
from aether_trio.wire.pb import aether_pb2 as pb
from aether_trio.wire.upstream import UNCOUNTED_BYTES, too_many_fields

logger = structlog.get_logger("aether.session")

CLOSE_S = 5.0
"""How long the end of a stream waits for its peer to read the answers to what it asked before."""

A_TURN = 64
"""Messages of one connection that are handled before the others have their turn: about a millisecond."""
REQUEST_COSTS = 8
"""...of which a request counts for so many: it has an answer, which is a write."""

DUPLICATE_GRACE_S = 0.1
"""How long a second holder of an identity waits for the first one's end before it is refused."""


@dataclass(frozen=True, slots=True)
class SessionDependencies:
    """What a session is made from. The hooks are the services' and are called in this order:

    `authenticate(claim, peer)` raises StatusError, or says what the credentials are good for;
    `recall(identity, session_id)` finds a session that ended before this gateway started;
    `joins(session)` is called before the acknowledgement, when the identity is held; `config_snapshot(session)` is what an agent or task
    is told first; `attempted(claim, status, known)` is told how each
    handshake ended (OK: acknowledged; no claim: nobody could tell whose; not known: the claim has not been proven); `joined(session, claim)` is called when it is acknowledged;
    `ended(session)` once, when it lets go.
    """

    clock: Clock
    ids: IdFactory
    limits: Limits
    outbox_limits: OutboxLimits
    log: TopicLog
    publishers: PublisherStore
    ephemeral_topics: EphemeralTopics
    groups: WorkQueues
    rates: Rates
    router: Router
    registry: Registry
    holding: IdentityLocks
    dispatcher: Dispatcher
    authenticate: Callable[[Claim, Peer], Awaitable[Admitted]]
    recall: Callable[[str, str], Awaitable[History | None]]
    joins: Callable[[Session], Awaitable[None]]
    config_snapshot: Callable[[Session], Awaitable[pb.ConfigSnapshot]]
    attempted: Callable[[Claim | None, Status, bool], None]
    joined: Callable[[Session, Claim], None]
    ended: Callable[[Session], None]
    server_version: str
    strict_charset: bool = True


class SessionServer:
    """Serves links. One per gateway; `serve` runs once per stream, in that stream's own task."""

    def __init__(self, parts: SessionDependencies) -> None:
        self._parts = parts
        self.draining = False
        self._unknown: set[trio.CancelScope] = set()
        """Of those that wait for the first message of a client."""

    def turn_away(self) -> None:
        """End the streams whose clients have not said who they are: a drain does not wait for them."""
        self.draining = True
        for waiting in self._unknown:
            waiting.cancel()

    async def serve(self, link: Link) -> None:
        """The whole life of one stream. Raises only cancellation; what is unexpected ends this stream with UNKNOWN."""
        session: Session | None = None
        status: Status | None
        try:
            try:
                session, claim, early, resumed = await self._come_in(link)
                status, text = await self._live(session, claim, early, resumed=resumed)
            except StatusError as error:
                status, text = error.status, error.message
                # Sessions are let go by counting references, not by the cycle collector (cli/running.py makes that one
                # rare): a traceback holds the frames that hold the session that holds the error.
                error.__traceback__ = None
            except LinkBroken as error:
                status, text = None, ""
                error.__traceback__ = None
            except Exception as error:
                status, text = Status.UNKNOWN, DEFECT
                report(error, session.who if session is not None else _who(link))
                error.__traceback__ = None
            if status is not None:
                await link.close(status, text)
        except Exception as error:  # of `close`; the caller closes the socket
            report(error, session.who if session is not None else _who(link))
        finally:
            if session is not None:
                run_all(session.who, partial(self._release_publisher, session), session.forget)

    def _release_publisher(self, session: Session) -> None:
        receipts = session.outbox.receipts
        if receipts is not None and receipts.publisher is not None:
            self._parts.publishers.release(receipts.publisher, receipts)

    async def _come_in(self, link: Link) -> tuple[Session, Claim, Sequence[Upstream], bool]:
        """(session that holds its identity, claim, what came right behind it, whether it resumes another)."""
        parts = self._parts
        claim: Claim | None = None
        admitted: Admitted | None = None
        try:
            claim, early = await self._first_message(link)
            admitted = await parts.authenticate(claim, link.peer)
            session, continued = await self._admit(link, claim, admitted)
        except StatusError as error:
            parts.attempted(claim, error.status, admitted is not None)
            # The client knows why, if somebody looks there. An operator who is asked "why can it not connect?" looks here.
            who = "nobody yet" if claim is None else claim.identity.text
            logger.info(
                "connection refused",
                status=error.status.name,
                identity=who,
                peer=link.peer.address,
                reason=error.message,
            )
            raise
        if continued is not None:
            # Until the acknowledgement carries the new session id, the old one is what the client knows to resume.
            session.history = continued
        return session, claim, early, continued is not None

    async def _live(
        self, session: Session, claim: Claim, early: Sequence[Upstream], *, resumed: bool
    ) -> tuple[Status, str]:
        broken: LinkBroken | None = None
        async with trio.open_nursery() as nursery:
            session.nursery = nursery
            try:
                await self._open(session, claim, nursery, resumed=resumed)
                await self._read(session, early)
                session.finished = session.ending is None and session.leaving is None
            except StatusError as error:
                session.ending = session.ending or error
            except LinkBroken as error:
                broken = error
            finally:
                # Here, where the nursery is open: a subscription that begins to lag starts a task in it.
                session.detach()
            nursery.cancel_scope.cancel()
        if broken is not None and session.ending is None:
            raise broken
        await self._finish(session)
        if session.ending is not None:
            raise session.ending
        return Status.OK, ""

    async def _finish(self, session: Session) -> None:
        """Let a client that reads have its last answers and signals, and hear what of its messages was not stored."""
        log, outbox, last_append = self._parts.log, session.outbox, session.sender.last_append
        if outbox.control_bytes or not log.is_settled(last_append):
            with trio.move_on_after(CLOSE_S):
                await log.wait_settled(last_append)
                await outbox.wait_control_sent()

    # -- coming in ------------------------------------------------------------------------------------------------

    async def _first_message(self, link: Link) -> tuple[Claim, Sequence[Upstream]]:
        parts, wait_s = self._parts, self._parts.limits.init_wait_s
        if self.draining:
            raise _shutting_down()
        with trio.move_on_after(wait_s) as waiting:
            self._unknown.add(waiting)
            try:
                batch = await link.receive()
            finally:
                self._unknown.discard(waiting)
        if waiting.cancelled_caught and self.draining:
            raise _shutting_down()
        if waiting.cancelled_caught:
            raise StatusError(Status.DEADLINE_EXCEEDED, f"no InitConnection came within {wait_s:g} seconds")
        if not batch:
            raise StatusError(Status.INVALID_ARGUMENT, "the stream ended before its InitConnection")
        first = batch[0]
        if isinstance(first, Send):
            raise StatusError(Status.INVALID_ARGUMENT, "the first message must be an InitConnection")
        claim = read_claim(first, link.peer.metadata, parts.ids, parts.limits, strict=parts.strict_charset)
        return claim, batch[1:]

    async def _recall(self, claim: Claim) -> History | None:
        """What an earlier life of the gateway remembers of the session to be resumed."""
        if not claim.resume_session_id or self._parts.registry.remembers(claim.identity.text):
            return None
        try:
            return await self._parts.recall(claim.identity.text, claim.resume_session_id)
        except StorageUnavailable:
            return None

    async def _let_predecessor_end(self, claim: Claim) -> None:
        """Give a holder that is just leaving the moment that it needs.

        A script that closes its client and opens the next one races against itself: the new stream can be here before
        the end of the old one is. Only then is a duplicate refused.
        """
        holder = self._parts.registry.holder(claim.identity.text)
        if holder is not None and holder.session_id != claim.resume_session_id:
            with trio.move_on_after(DUPLICATE_GRACE_S):
                await holder.wait_detached()
            if not holder.detached and holder.link.peer_has_ended():
                holder.end(Status.CANCELLED, "the stream had ended")  # and its task hangs in storage

    async def _admit(self, link: Link, claim: Claim, admitted: Admitted) -> tuple[Session, History | None]:
        """Duplicates, the hold: (session, history that it continues). Raises StatusError."""
        parts = self._parts
        session = self._make_session(link, claim, admitted)
        history = await self._recall(claim)
        await self._let_predecessor_end(claim)
        self._check_wanted(session)
        displaced, continued = await parts.holding.take(session, claim)
        continued = continued or history
        if displaced is not None:
            displaced.end(Status.CANCELLED, f"session {session.session_id} has taken over this identity")
        try:
            await parts.holding.wait_over(session)
            self._check_wanted(session)  # it may have taken a while
        except BaseException:
            session.detach()
            raise
        return session, continued

    def _check_wanted(self, session: Session) -> None:
        if self.draining:
            raise _shutting_down()
        if session.outbox.broken:
            raise LinkBroken("the stream broke while it was admitted")

    def _make_session(self, link: Link, claim: Claim, admitted: Admitted) -> Session:
        parts = self._parts
        session = Session(
            identity=claim.identity,
            session_id=parts.ids.session_id(),
            link=link,
            outbox_limits=parts.outbox_limits,
            registry=parts.registry,
            bucket=parts.rates.connection_bucket(),
            now_ms=parts.clock.now_ms(),
            client=ClientInfo(claim.sdk, claim.version),
            allows_workspace=admitted.allows_workspace,
            on_detached=parts.ended,
            takes_any=claim.takes_any,
            profiles=claim.profiles,
            gate=parts.holding,
            numbered=claim.numbered,
            worker_tasks=claim.worker_tasks,
        )
        session.requests = parts.rates.request_bucket()
        session.task_id = admitted.task_id
        session.covers = admitted.covers
        session.reaches_everything = admitted.everywhere
        session.token = admitted.token
        session.lineage = admitted.lineage
        if link.peer.transport != "framed":  # which has numbers and credit of its own
            if claim.counts_sends:
                session.count_sends(CountedSends(parts.log, session.outbox))
            if claim.credit is not None:
                session.outbox.credit_messages, session.outbox.credit_bytes = claim.credit
        link.attach(session.outbox)
        return session

    async def _open(self, session: Session, claim: Claim, nursery: trio.Nursery, *, resumed: bool) -> None:
        parts = self._parts
        identity = session.identity
        config: pb.ConfigSnapshot | None = None
        subscriptions = Subscriptions(
            identity,
            session.outbox,
            parts.log,
            parts.ephemeral_topics,
            parts.groups,
            nursery,
            session.told_of_gap,
            session.work_lost,
        )
        session.subscriptions = subscriptions
        try:
            await parts.joins(session)
            if identity.kind in (Kind.AGENT, Kind.UNIQUE_TASK, Kind.TASK):
                config = await parts.config_snapshot(session)
            open_base = await subscriptions.prepare_base()
            token = session.link.peer.publisher
            try:
                claim_publisher = await parts.publishers.find(identity.text, token) if token is not None else None
            except BaseException:
                # What was prepared is held until it is opened, or told that nobody wants it any more.
                subscriptions.close()
                open_base()
                raise
        except StorageUnavailable as error:
            raise StatusError(Status.UNAVAILABLE, f"the gateway's storage does not answer: {error}") from None
        if session.ending is not None:
            # Ended by somebody else while the last answer was on its way here.
            open_base()
            raise session.ending
        if claim_publisher is not None:
            session.number_sends(Receipts(parts.log, session.outbox, claim_publisher()))
        before = session.history
        if resumed:
            session.history = History(session.session_id, before.initial_connection_ms, before.reconnections + 1)
        ack = pb.ConnectionAck(
            session_id=session.session_id,
            resumed=resumed,
            assigned_id=claim.assigned_id,
            negotiated_extensions=claim.extensions,
            server_supported_extensions=undeclared_extensions(claim),
            server_version=parts.server_version,
            initial_connection_unix_ms=session.history.initial_connection_ms,
            reconnection_count=session.history.reconnections,
        )
        greeting = [pb.DownstreamMessage(connection_ack=ack)]
        if config is not None:
            greeting.append(pb.DownstreamMessage(config=config))
        session.acknowledged = True
        session.link.accept()
        session.put(*greeting)
        parts.attempted(claim, Status.OK, True)
        open_base()
        parts.joined(session, claim)

    # -- the read loop --------------------------------------------------------------------------------------------

    async def _read(self, session: Session, early: Sequence[Upstream]) -> None:
        link, outbox, log, holding = session.link, session.outbox, self._parts.log, self._parts.holding
        session.reading = not early
        batch = early or await link.receive()
        session.reading = False
        while batch:
            if session.ending is not None:
                raise session.ending  # the batch and the end have met
            session.last_activity_ms = self._parts.clock.now_ms()
            if holding.paused:
                await holding.wait_input()
                continue  # it may have been ended meanwhile
            await self._handle_batch(session, batch)
            batch = ()  # not kept while it waits
            if not log.has_room:
                await log.wait_room()
            if not outbox.control_has_room:
                await outbox.wait_control_room()
            if session.leaves_when_idle and session.leaving is not None and not link.has_input:
                raise session.leaving
            session.reading = True
            batch = await link.receive()
            session.reading = False

    async def _handle_batch(self, session: Session, batch: Sequence[Upstream]) -> None:
        dispatcher, rates, outbox = self._parts.dispatcher, self._parts.rates, session.outbox
        left = A_TURN
        for message in batch:
            if left <= 0:
                left = A_TURN
                await trio.lowlevel.checkpoint()
                if session.ending is not None:
                    raise session.ending
            left -= 1
            if isinstance(message, Send):
                self._publish(session, message)
                continue
            case = message.WhichOneof("payload")
            if case == "send":
                self._send(session, message.send)
            elif case is None and outbox.credit_messages is not None and (grant := credit_granted(message)):
                outbox.grant(*grant)
            elif case == "init":
                raise StatusError(Status.INVALID_ARGUMENT, "this stream has had its InitConnection already")
            else:
                left -= REQUEST_COSTS
                refusal = rates.request_refusal(session.requests) if case != "progress" else None
                if refusal is None:
                    await dispatcher.dispatch(session, case, message)
                else:
                    await dispatcher.refuse(session, case, message, refusal)
                if session.ending is not None:
                    raise session.ending
                if not session.outbox.control_has_room:
                    await session.outbox.wait_control_room()
        receipts = session.outbox.receipts
        if receipts is not None and receipts.due:
            session.link.kick()

    def _send(self, session: Session, send: pb.SendMessage) -> None:
        """Take one send without a number of its own."""
        counted = session.counted
        if counted is None:
            try:
                self._parts.router.send(session.sender, send)
            except AetherError as error:
                session.put_error(error)
            return
        counted.came()
        try:
            self._parts.router.send(session.sender, send)
            counted.appended(session.sender.last_append)
        except AetherError as error:
            counted.refuse(error)

    def _publish(self, session: Session, send: Send) -> None:
        """Take one numbered send."""
        receipts = session.outbox.receipts
        if receipts is None:
            receipts = Receipts(self._parts.log, session.outbox, None)
            session.number_sends(receipts)
        try:
            if receipts.wanted(send.seq):
                rest = _rest_of(send) if send.extra else None
                self._parts.router.publish(session.sender, send.topic, send.payload, send.message_type, rest)
                receipts.appended(send.seq, session.sender.last_append)
        except AetherError as error:
            receipts.refuse(send.seq, error)


def _shutting_down() -> StatusError:
    return StatusError(Status.UNAVAILABLE, "the gateway is shutting down; connect again")


def _who(link: Link) -> str:
    return f"not admitted yet, {link.peer.transport} from {link.peer.address}"


def _rest_of(send: Send) -> pb.SendMessage:
    """The rarer fields of a numbered send. Raises AetherError."""
    if len(send.extra) > UNCOUNTED_BYTES and too_many_fields(send.extra, pb.SendMessage.DESCRIPTOR):
        raise AetherError(Code.INVALID_ARGUMENT, "the extra part of this SEND has too many fields")
    try:
        return pb.SendMessage.FromString(send.extra)
    except DecodeError:
        raise AetherError(Code.INVALID_ARGUMENT, "the extra part of this SEND is not a SendMessage") from None
