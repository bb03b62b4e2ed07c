"""One client's session: its identity, outbox and subscriptions, and how it ends.

A session is a block, and its nursery holds all tasks that run for the client. The end of the block
ends them and gives the identity back. `end` ends the session from any other task: it is detached at
once, without a checkpoint, so its successor waits for nothing of the old stream; the session's own
task then closes the stream with the status given.

Invariants: after `detach` the session receives nothing more and owns nothing; `detach` happens
exactly once; a session never ends a live stream with OK unless the peer has ended its side, since
clients take OK for a dead connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

import structlog
import trio

from aether_trio.concurrency.kicks import Kickable
from aether_trio.delivery.outbox import DeliveryGate, Outbox, OutboxLimits
from aether_trio.delivery.rates import Rates
from aether_trio.delivery.receipts import CountedSends, Receipts, refusal_frame
from aether_trio.delivery.router import Sender
from aether_trio.log.deduplication import Publisher
from aether_trio.model.containment import DEFECT, report, run_all
from aether_trio.model.errors import Code, RequestError, Status, StatusError
from aether_trio.model.identity import Identity
from aether_trio.model.limits import CLIENT_MESSAGE_BYTES
from aether_trio.model.ownership import IdentityLock, SessionHistory, SessionRecord
from aether_trio.session.init_connection import Authenticated, Claim
from aether_trio.session.subscriptions import Subscriptions
from aether_trio.storage.session_writes import SessionWrites
from aether_trio.transport.link import Link
from aether_trio.wire.delivery import delivery_prefix
from aether_trio.wire.error_response import error_response, too_large
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.session")

GONE_S: Final = 1.0  # for the end of the stream of a client that is known to have gone
INPUT_S: Final = 5.0  # for what such a client has sent
CUT_GRACE_S = 0.5  # for what had arrived before the link broke, as storage may hang

ANSWER_S = 5.0  # how long the answer to the last request of a client that has to go may take


_NO_CONTEXT: Final[Mapping[str, str]] = MappingProxyType({})


class IdentityRegistry(Protocol):
    """The registry to which an ending session gives its identity back."""

    def release(self, session: Session) -> bool:
        """Free the identity of a session, if the session still owns it; else return False."""


class ClientInfo(NamedTuple):
    """The name and version of a client's library, as the client says."""

    sdk: str = ""
    version: str = ""


class Session:
    """A client's connection, from authentication to its end; times are Unix ms."""

    __slots__ = (
        "__weakref__", "_detached_event", "_end_after_answer", "_on_detached", "_registry", "accepted", "acknowledged", "agents",
        "allows_workspace", "answering", "authorized", "cap", "client", "connected_ms", "counted", "covers", "creators",
        "credential", "detached",
        "ending", "ephemeral_behind", "expires_ms", "finished", "groups", "history", "identity", "last_activity_ms",
        "leaves_when_idle", "leaving",
        "lineage", "link", "lock", "makers", "numbered", "nursery", "origin", "outbox", "pending", "profiles", "reaches_everything",
        "reading", "receipts", "renewing", "renews", "requests", "sender", "session_id", "subscriptions", "takes_any", "task_context",
        "task_id", "token", "worker_tasks",
    )  # fmt: skip

    def __init__(
        self,
        claim: Claim,
        admitted: Authenticated,
        session_id: str,
        link: Link,
        outbox_limits: OutboxLimits,
        registry: IdentityRegistry,
        rates: Rates,
        now_ms: int,
        on_detached: Callable[[Session], None],
        gate: DeliveryGate,
    ) -> None:
        self.identity = identity = claim.identity
        self.session_id = session_id
        self.link = link
        self.outbox = Outbox(
            link, outbox_limits, self.ephemeral_dropped, self.cut, gate, self.failed, self.oversized_skipped
        )
        self._registry = registry
        self._on_detached = on_detached
        self.requests = rates.request_bucket()  # the rate of its requests
        self.client = ClientInfo(claim.sdk, claim.version)
        self.takes_any = claim.takes_any
        self.profiles = claim.profiles  # what an orchestrator can start
        self.agents = claim.agents  # those that an orchestrator has; None: it does not say
        self.numbered = claim.numbered  # whether the client is told the numbers of its assignments
        self.worker_tasks = claim.worker_tasks  # how many live tasks it takes; None: no limit
        self.renews = claim.renews  # whether the client may show another credential (renewal.py)
        self.renewing = False  # whether one that it has shown is being checked
        self.counted: CountedSends | None = None
        self.receipts: Receipts | None = None
        self.connected_ms = now_ms
        self.last_activity_ms = now_ms
        self.history = SessionHistory(session_id, now_ms, 0)
        self.allows_workspace = admitted.allows_workspace
        self.sender = Sender(
            self,
            identity,
            identity.workspace,
            rates.connection_bucket(),
            delivery_prefix(identity.topic or identity.text),
            self,
            session_id=session_id,
        )
        self.subscriptions: Subscriptions | None = None
        self.nursery: trio.Nursery | None = None
        self.ending: StatusError | None = None
        self.ephemeral_behind = False
        self.acknowledged = False
        self.leaving: StatusError | None = None  # how it ends after its client was asked to leave
        self.leaves_when_idle = False
        self.reading = False  # whether its task waits in `link.receive`
        self.finished = False  # whether the client's end of the stream is handled
        self.task_id = admitted.task_id  # of the task whose token it showed, or that started it
        self.reaches_everything = admitted.everywhere
        """Whether it may access all workspaces, and what is in none."""
        self.covers = admitted.covers
        """Whether its credential permits no less than a token for an identity."""
        self.token = admitted.token  # the hash of the task token that it showed
        self.lineage = admitted.lineage
        """Tasks it may not outlive: its token's last, before it those that made the token."""
        self.credential = admitted.credential
        """Which credential let it in, for audits and revocations: "token:ID" and the like."""
        self.expires_ms = admitted.expires_ms  # when its credential ends; 0: never
        self.cap = admitted.cap  # the highest level of access that its credential permits
        self.groups = admitted.groups  # those of its identity provider
        self.makers = admitted.makers  # the principals that have made its API token
        self.creators = admitted.creators  # the principals that have created the tasks of its token
        self.authorized = (-1, 0)
        """Since which change the rules let it be here, and until when (Unix ms; 0: no end)."""
        self.origin = admitted.origin  # the API token with which it ends
        self.accepted = admitted.accepted  # what its credentials reach, as patterns
        self.answering = False  # whether a request of its client is being handled
        self._end_after_answer: StatusError | None = None
        self.task_context = _NO_CONTEXT  # what a started agent is told of its start
        self.lock: IdentityLock | None = None  # None on a gateway without a cluster
        self.pending: SessionWrites | None = None
        """Its writes, and those of the identity's last session here, that may not be over."""
        self.detached = False
        self._detached_event: trio.Event | None = None

    def __repr__(self) -> str:
        return f"<Session {self.identity.text} {self.session_id}>"

    def __str__(self) -> str:
        return self.who

    @property
    def who(self) -> str:
        """The session in a log line: identity, session id, transport and address."""
        peer = self.link.peer
        return f"{self.identity.text}, session {self.session_id}, {peer.transport} from {peer.address}"

    @property
    def workspace(self) -> str:
        """The workspace that the participant is in, which a user can switch."""
        return self.sender.workspace

    @property
    def record(self) -> SessionRecord:
        """The facts of the session that listings show."""
        return SessionRecord(
            self.session_id,
            self.identity,
            self.workspace,
            self.connected_ms,
            self.link.peer.address,
            self.last_activity_ms,
        )

    def reaches(self, identity: Identity, workspace: str = "") -> bool:
        """Whether the session's credential permits access to another participant."""
        workspace = identity.workspace or workspace
        return self.allows_workspace(workspace) if workspace else self.reaches_everything

    # -- the steps of its life ---------------------------------------------------------------------

    def own(self, pending: SessionWrites | None = None, lock: IdentityLock | None = None) -> None:
        """Keep the identity's lock, and its earlier session's writes that may not be over."""
        self.pending = pending
        self.lock = lock

    def resume(self, history: SessionHistory) -> None:
        """Note which earlier session the client resumes in this session."""
        self.history = history

    def start(self, nursery: trio.Nursery, subscriptions: Subscriptions) -> None:
        """Keep the nursery of the session's tasks, and the session's subscriptions."""
        self.nursery = nursery
        self.subscriptions = subscriptions

    def start_agent(self, task_id: str, task_context: Mapping[str, str]) -> None:
        """Note the task that started this agent; the task id of a shown token stays."""
        self.task_id = self.task_id or task_id
        self.task_context = task_context

    def acknowledge(self, *messages: pb.DownstreamMessage) -> None:
        """Send the ConnectionAck and messages after it; allow long messages from now on."""
        self.acknowledged = True
        self.link.accept()
        self.put(*messages)

    def touch(self, now_ms: int) -> None:
        """Note the time of the client's latest activity."""
        self.last_activity_ms = now_ms

    def begin_request(self) -> SessionWrites:
        """Begin a client's request; return the counter of the session's unfinished writes."""
        self.answering = True
        return self.count_writes()

    def count_writes(self) -> SessionWrites:
        """Return the counter of the session's unfinished writes."""
        if self.pending is None:
            self.pending = SessionWrites()
        return self.pending

    @property
    def admission(self) -> Authenticated:
        """What the session's credential permits, and which one it is."""
        return Authenticated(
            self.allows_workspace,
            self.covers,
            self.reaches_everything,
            self.task_id,
            self.token,
            self.lineage,
            self.credential,
            self.expires_ms,
            self.cap,
            self.groups,
            self.accepted,
            self.makers,
            self.creators,
            self.origin,
        )

    def renew(self, admitted: Authenticated) -> None:
        """Rest on another credential from now on; its task and its lineage stay."""
        self.allows_workspace = admitted.allows_workspace
        self.covers = admitted.covers
        self.reaches_everything = admitted.everywhere
        self.credential = admitted.credential
        self.expires_ms = admitted.expires_ms
        self.cap = admitted.cap
        self.groups = admitted.groups
        self.accepted = admitted.accepted
        self.makers = admitted.makers
        self.creators = admitted.creators
        self.origin = admitted.origin
        self.sender.forget_decisions()

    def finish(self) -> None:
        """Note that the client ended its stream, and that all before the end is handled."""
        self.finished = self.ending is None and self.leaving is None

    def fail(self, error: StatusError) -> None:
        """End the client's stream with this error, unless the session is ending already."""
        self.ending = self.ending or error

    # -- answering ---------------------------------------------------------------------------------

    def put(self, *messages: pb.DownstreamMessage) -> None:
        """Queue messages to the client, too large ones as refusals. Never blocks."""
        frames = [message.SerializeToString() for message in messages]
        for frame in frames:
            if len(frame) > CLIENT_MESSAGE_BYTES:
                frames = [one for pair in zip(messages, frames, strict=True) for one in self._fitting(*pair)]
                break
        self.outbox.put_control(*frames)

    def put_encoded(self, frame: bytes) -> None:
        """Queue a serialized message to the client. Never blocks."""
        if len(frame) > CLIENT_MESSAGE_BYTES:
            self.put(pb.DownstreamMessage.FromString(frame))
        else:
            self.outbox.put_control(frame)

    def _fitting(self, message: pb.DownstreamMessage, frame: bytes) -> list[bytes]:
        if len(frame) <= CLIENT_MESSAGE_BYTES:
            return [frame]
        logger.error(
            "an answer is too large for the client, which gets an error instead",
            session=self.who,
            case=message.WhichOneof("payload"),
            bytes=len(frame),
        )
        return [one.SerializeToString() for one in too_large(message, len(frame))]

    def put_error(self, error: RequestError, request_id: str = "") -> None:
        """Queue an ErrorResponse to the client."""
        self.put(error_response(error, request_id))

    confirms = False
    publisher: Publisher | None = None

    def refused(self, number: int, error: RequestError) -> None:
        """Tell the client that a message without a sequence number was not committed."""
        self.outbox.put_control(refusal_frame(error))

    def settled(self, touched: set[Kickable]) -> None:
        """Do nothing at a commit: messages without a sequence number get no ACK."""

    def number_sends(self, receipts: Receipts) -> None:
        """Confirm the client's messages by sequence number from now on, with `receipts`."""
        self.receipts = receipts
        self.outbox.report_receipts(receipts)
        self.sender.author = receipts

    def count_sends(self, counted: CountedSends) -> None:
        """Tell the client from now on which of its messages, by count, were refused."""
        self.counted = counted
        self.sender.author = counted

    def ephemeral_dropped(self) -> None:
        """Tell the client, once, that progress updates to it were dropped."""
        if not self.ephemeral_behind:
            self.ephemeral_behind = True
            self.outbox.put_control(_ephemeral_notice())

    def gap_reported(self, topic: str, count: int) -> None:
        """Tell the client how many messages were deleted, as too old, before it read them."""
        self.put_error(
            RequestError(
                Code.BACKPRESSURE,
                f"{count} messages of {topic} were older than the gateway keeps them and are gone",
            )
        )

    def oversized_skipped(self, topic: str, offset: int, size: int) -> None:
        """Tell the client that a message larger than clients take was skipped."""
        logger.error(
            "a message is too large for its client and is skipped",
            session=self.who,
            topic=topic,
            offset=offset,
            bytes=size,
        )
        text = f"message {offset} of {topic} has {size} bytes, which is more than a client takes; it was not delivered"
        self.put_error(RequestError(Code.BACKPRESSURE, text))

    def work_lost(self) -> None:
        """End the session of a worker whose queue messages went to other workers."""
        self.end(
            Status.UNAVAILABLE, "this gateway had lost its place in the cluster, and your work with it; connect again"
        )

    # -- ending ------------------------------------------------------------------------------------

    def end(self, status: Status, reason: str, signal: pb.Signal.SignalType.ValueType | None = None) -> None:
        """End the session from any task: signal the client, detach, close the stream.

        A client that is not acknowledged gets the status alone: any message means "connected" to
        it.
        """
        if self.ending is not None:
            return
        if signal is not None and self.acknowledged:
            self.put(pb.DownstreamMessage(signal=pb.Signal(type=signal, reason=reason)))
        self.ending = StatusError(status, reason)
        self.detach()
        if self.nursery is not None:
            self.nursery.cancel_scope.cancel()

    def disconnect(self, reason: str) -> None:
        """End the session for an operator; the client is told not to connect again."""
        self.end(Status.CANCELLED, reason or "disconnected by an operator", pb.Signal.FORCE_DISCONNECT)

    def leave(self, reason: str, within_s: float, signal: pb.Signal.SignalType.ValueType | None = None) -> None:
        """Ask the client to connect to another gateway; end the session after that.

        The session ends with UNAVAILABLE, and its client is given no new work. What it sent before
        it could know is served first, if it arrives within `within_s`: on a transport that tells
        clients to leave, until they have left; on the others, within a round trip. Never blocks.
        """
        if not self.acknowledged or self.detached or self.nursery is None:
            self.end(Status.UNAVAILABLE, reason, signal)
        elif self.leaving is None:
            self.leaving = StatusError(Status.UNAVAILABLE, reason)
            self.outbox.stop_deliveries()
            if signal is not None:
                self.put(pb.DownstreamMessage(signal=pb.Signal(type=signal, reason=reason)))
            self.nursery.start_soon(self._leave, within_s, name="leave")

    async def _leave(self, within_s: float) -> None:
        assert self.leaving is not None
        with trio.move_on_after(within_s):
            await self.link.round_trip()
            if not self.idle:
                self.leaves_when_idle = True
                await trio.sleep_forever()
        self.end(self.leaving.status, self.leaving.message)

    @property
    def idle(self) -> bool:
        """Whether all messages that have arrived from the client are handled."""
        return self.reading and not self.link.has_input

    @property
    def ended_by_gateway(self) -> bool:
        """Whether the gateway's shutdown ends the session, even if its client left first."""
        return self.leaving is not None or (self.ending is not None and self.ending.status is Status.UNAVAILABLE)

    def end_after_answer(self, status: Status, reason: str) -> None:
        """End the session once its current request is answered, within ANSWER_S."""
        if not self.answering or self.nursery is None:
            self.end(status, reason)
        elif self._end_after_answer is None:
            self._end_after_answer = StatusError(status, reason)
            self.nursery.start_soon(self._end_in_time, name="end-after-answer")

    def end_after_input(self, status: Status, reason: str) -> None:
        """End the session of a client that has gone, once what it has sent is handled.

        Its stream has ended as a rule, unless that was lost on the way. Never blocks.
        """
        if self.nursery is None or self.detached:
            self.end(status, reason)
        else:
            self.nursery.start_soon(self._end_after_input, status, reason, name="end-after-input")

    async def _end_after_input(self, status: Status, reason: str) -> None:
        await trio.sleep(GONE_S)
        if not self.idle:
            await trio.sleep(INPUT_S)
        self.end(status, reason)

    def answered(self) -> None:
        """Note that the client's current request is handled and its answer is queued."""
        self.answering = False
        due = self._end_after_answer
        if due is not None:
            self.end(due.status, due.message)

    async def _end_in_time(self) -> None:
        await trio.sleep(ANSWER_S)
        self.answered()

    def cut(self) -> None:
        """End the session within CUT_GRACE_S, as its connection broke."""
        if self.nursery is not None and not self.detached:
            self.nursery.start_soon(self._end_after_cut, name="cut")

    def failed(self, error: Exception) -> None:
        """Report a defect met while writing to the client; end this session alone."""
        report(error, self.who)
        self.end(Status.UNKNOWN, DEFECT)

    async def _end_after_cut(self) -> None:
        await trio.sleep(CUT_GRACE_S)
        assert self.nursery is not None
        self.nursery.cancel_scope.cancel()

    def detach(self) -> None:
        """Close all subscriptions and give the identity back. Idempotent, never raises."""
        run_all(self, self._close_subscriptions, self.outbox.detach, self._release, self._report_detached)

    def _close_subscriptions(self) -> None:
        if self.subscriptions is not None:
            self.subscriptions.close()

    def _release(self) -> None:
        self._registry.release(self)

    def _report_detached(self) -> None:
        try:
            if not self.detached:
                # In the same step, so that no other task finds it neither connected nor ended.
                self.detached = True
                self._on_detached(self)
        finally:
            if self._detached_event is not None:
                self._detached_event.set()

    def forget(self) -> None:
        """Drop references back to the closed session, so that its memory is freed at once."""
        self.sender.author = _NO_AUTHOR
        self.sender.actor = _NO_ACTOR
        self.counted = None
        self.receipts = None
        self.subscriptions = None
        self.nursery = None
        self.outbox.forget()

    async def wait_detached(self) -> None:
        """Wait until the session has given its identity back."""
        if not self.detached:
            if self._detached_event is None:
                self._detached_event = trio.Event()
            await self._detached_event.wait()


class _NoAuthor:
    """The sender of a closed stream: refusals of its messages go nowhere."""

    confirms = False
    publisher: Publisher | None = None

    def refused(self, number: int, error: RequestError) -> None:
        """Drop the refusal: the sender's stream is closed."""

    def settled(self, touched: set[Kickable]) -> None:
        """Do nothing: the sender's stream is closed."""


_NO_AUTHOR = _NoAuthor()


class _NoActor:
    """The sender of a closed stream, as access rules see it: it may do nothing."""

    def __init__(self) -> None:
        self.identity = Identity.metrics_bridge()
        self.allows_workspace: Callable[[str], bool] = lambda workspace: False


_NO_ACTOR = _NoActor()


@lru_cache(maxsize=1)
def _ephemeral_notice() -> bytes:
    error = RequestError(
        Code.BACKPRESSURE, "this client reads too slowly: the oldest progress updates are being dropped"
    )
    return error_response(error).SerializeToString()
