"""One participant's live connection: what it is, what it owns, and how it ends.

A session is a block. Its nursery holds everything that runs for the participant, and whatever ends the block (the peer's
end of stream, a cut, a kick, a takeover, a drain) ends all of that and gives the identity back. `end` is how anybody
else ends it: detached at once, without a checkpoint, so that a successor owes the old stream nothing; the stream itself
is closed by its own task with the status given.

Invariants: after `detach` the session receives nothing more and holds nothing; `detach` happens exactly once; a
session never ends a live stream with OK unless the peer has ended its side, since clients take OK for a zombie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import structlog
import trio

from aether_trio.delivery.counted_sends import CountedSends
from aether_trio.delivery.outbox import Gate, Outbox, OutboxLimits
from aether_trio.delivery.receipts import Receipts, refusal_frame
from aether_trio.delivery.router import Sender
from aether_trio.log.publishers import Publisher
from aether_trio.model.containment import DEFECT, report, run_all
from aether_trio.model.errors import AetherError, Code, Status, StatusError
from aether_trio.model.identity import Identity
from aether_trio.model.limits import CLIENT_MESSAGE_BYTES
from aether_trio.model.token_bucket import TokenBucket
from aether_trio.session.registry import History, Registry
from aether_trio.session.subscriptions import Subscriptions
from aether_trio.storage.pending import Pending
from aether_trio.transport.link import Link
from aether_trio.wire.delivery import delivery_prefix
from aether_trio.wire.errors import error_response, too_large
from aether_trio.wire.pb import aether_pb2 as pb

logger = structlog.get_logger("aether.session")

_UNLIMITED = TokenBucket(0.0, 0.0)

CUT_GRACE_S = 0.5
"""How long a session may go on after its link has broken, with what had arrived before. Storage that hangs must not keep
an identity from its owner's next connection."""

ANSWER_S = 5.0
"""For the answer to a request whose client is to go. A request that hangs in storage must not keep it."""


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """What the client says of itself."""

    sdk: str = ""
    version: str = ""


class Session:
    """See the module docstring. `workspace` changes for users only; times are Unix milliseconds. `profiles`: what an orchestrator starts.

    `numbered`: its client is told the numbers of assignments. `worker_tasks` is how many live tasks it asked for at most, None if it
    said nothing of it. `gate` holds durable messages back.
    """

    __slots__ = (
        "__weakref__",
        "_detached_event",
        "_end_after_answer",
        "acknowledged",
        "allows_workspace",
        "answering",
        "client",
        "connected_ms",
        "counted",
        "covers",
        "detached",
        "ending",
        "ephemeral_behind",
        "finished",
        "history",
        "hold_epoch",
        "identity",
        "last_activity_ms",
        "leaves_when_idle",
        "leaving",
        "lineage",
        "link",
        "numbered",
        "nursery",
        "on_detached",
        "outbox",
        "pending",
        "profiles",
        "reaches_everything",
        "reading",
        "registry",
        "requests",
        "sender",
        "session_id",
        "subscriptions",
        "takes_any",
        "task_context",
        "task_id",
        "token",
        "worker_tasks",
    )

    def __init__(
        self,
        identity: Identity,
        session_id: str,
        link: Link,
        outbox_limits: OutboxLimits,
        registry: Registry,
        bucket: TokenBucket,
        now_ms: int,
        client: ClientInfo,
        allows_workspace: Callable[[str], bool],
        on_detached: Callable[[Session], None],
        takes_any: bool = True,
        profiles: tuple[str, ...] = (),
        *,
        gate: Gate,
        numbered: bool = False,
        worker_tasks: int | None = None,
    ) -> None:
        self.identity = identity
        self.session_id = session_id
        self.link = link
        self.outbox = Outbox(link, outbox_limits, self.ephemeral_dropped, self.cut, gate, self.failed, self.passed_over)
        self.registry = registry
        self.requests = _UNLIMITED
        """The rate of its requests."""
        self.client = client
        self.allows_workspace = allows_workspace
        self.on_detached = on_detached
        self.takes_any = takes_any
        self.profiles = profiles
        self.numbered = numbered
        self.counted: CountedSends | None = None
        self.worker_tasks = worker_tasks
        self.connected_ms = now_ms
        self.last_activity_ms = now_ms
        self.history = History(session_id, now_ms, 0)
        self.sender = Sender(
            identity,
            identity.workspace,
            bucket,
            delivery_prefix(identity.topic or identity.text),
            self,
            allows_workspace,
        )
        self.subscriptions: Subscriptions | None = None
        self.nursery: trio.Nursery | None = None
        self.ending: StatusError | None = None
        self.ephemeral_behind = False
        self.acknowledged = False
        self.leaving: StatusError | None = None
        """Its client was asked to go elsewhere, and this is how it ends if the client does not end it."""
        self.leaves_when_idle = False
        self.reading = False
        """Its task waits in `link.receive`."""
        self.finished = False
        """Whether its client has ended its stream by itself, and all that came before was handled."""
        self.task_id = ""
        """The task that it was let in for, by a token, or that has started it."""
        self.reaches_everything = False
        """Whether its credential is good for all workspaces, and so for what belongs to none."""
        self.covers: Callable[[Identity], bool] = _covers_nobody
        """Whether a token for that participant would be good for no more than its credential is."""
        self.token = b""
        """The hash of the task token that it was let in with, empty without one."""
        self.lineage: tuple[str, ...] = ()
        """The tasks that it may not outlive: that of its token at the end, before that those of the sessions that have made the token."""
        self.answering = False
        """Whether a request of its client is being handled."""
        self._end_after_answer: StatusError | None = None
        self.task_context: Mapping[str, str] = {}
        """What an agent that was started is told of its start."""
        self.hold_epoch = 0
        """How many have held its identity in the cluster before, and it (cluster/records.py); 0 where one node is alone."""
        self.pending: Pending | None = None
        """What was written in its name and may not be over; with what its identity's last session on this node has left. None: nothing."""
        self.detached = False
        self._detached_event: trio.Event | None = None

    def __repr__(self) -> str:
        return f"<Session {self.identity.text} {self.session_id}>"

    @property
    def who(self) -> str:
        """The session for logs: identity, session id, transport and address."""
        peer = self.link.peer
        return f"{self.identity.text}, session {self.session_id}, {peer.transport} from {peer.address}"

    @property
    def workspace(self) -> str:
        """The workspace that the participant is in; a user's changes."""
        return self.sender.workspace

    def reaches(self, identity: Identity, workspace: str = "") -> bool:
        """Whether its credential is good for a participant: for the workspace that it is in, or for all when it is in none."""
        workspace = identity.workspace or workspace
        return self.allows_workspace(workspace) if workspace else self.reaches_everything

    # -- answering ------------------------------------------------------------------------------------------------

    def put(self, *messages: pb.DownstreamMessage) -> None:
        """Queue replies, in one write if possible. Never blocks. One that no client would take is replaced by its refusal."""
        frames = [message.SerializeToString() for message in messages]
        for frame in frames:
            if len(frame) > CLIENT_MESSAGE_BYTES:
                frames = [one for pair in zip(messages, frames, strict=True) for one in self._fitting(*pair)]
                break
        self.outbox.put_control(*frames)

    def _fitting(self, message: pb.DownstreamMessage, frame: bytes) -> list[bytes]:
        if len(frame) <= CLIENT_MESSAGE_BYTES:
            return [frame]
        logger.error("an answer is too large", session=self.who, case=message.WhichOneof("payload"), bytes=len(frame))
        return [one.SerializeToString() for one in too_large(message, len(frame))]

    def put_error(self, error: AetherError, request_id: str = "") -> None:
        """Queue an ErrorResponse."""
        self.put(error_response(error, request_id))

    confirms = False
    publisher: Publisher | None = None

    def refused(self, number: int, error: AetherError) -> None:
        """See log.Author: a message that came without a number could not be committed."""
        self.outbox.put_control(refusal_frame(error))

    def settled(self, touched: set[Outbox]) -> None:
        """See log.Author."""

    def number_sends(self, receipts: Receipts) -> None:
        """This client numbers its sends: what becomes of them it is told by receipts."""
        self.outbox.receipts = receipts
        self.sender.author = receipts

    def count_sends(self, counted: CountedSends) -> None:
        """This client counts its sends: it is told which of them was refused."""
        self.counted = counted
        self.sender.author = counted

    def ephemeral_dropped(self) -> None:
        """Ephemeral updates were dropped: say so, once."""
        if not self.ephemeral_behind:
            self.ephemeral_behind = True
            self.outbox.put_control(_ephemeral_notice())

    def told_of_gap(self, topic: str, count: int) -> None:
        """Retention was faster than this client: say what is missing."""
        self.put_error(
            AetherError(
                Code.BACKPRESSURE,
                f"{count} messages of {topic} were older than the gateway keeps them and are gone",
            )
        )

    def passed_over(self, topic: str, offset: int, size: int) -> None:
        """A message in the log is larger than any client takes: it is not delivered, and what is behind it is."""
        logger.error("a message is too large to be delivered", session=self.who, topic=topic, offset=offset, bytes=size)
        text = f"message {offset} of {topic} has {size} bytes, which is more than a client takes; it was not delivered"
        self.put_error(AetherError(Code.BACKPRESSURE, text))

    def work_lost(self) -> None:
        """Others have been given what this worker was at: this gateway was taken for dead."""
        self.end(
            Status.UNAVAILABLE, "this gateway had lost its place in the cluster, and your work with it; connect again"
        )

    # -- ending ---------------------------------------------------------------------------------------------------

    def end(self, status: Status, reason: str, signal: pb.Signal.SignalType.ValueType | None = None) -> None:
        """End the session from outside: signal the client (if asked to), let go of everything, close the stream.

        A client that has not been acknowledged gets the status alone: it takes any message for "connected".
        """
        if self.ending is not None:
            return
        if signal is not None and self.acknowledged:
            self.put(pb.DownstreamMessage(signal=pb.Signal(type=signal, reason=reason)))
        self.ending = StatusError(status, reason)
        self.detach()
        if self.nursery is not None:
            self.nursery.cancel_scope.cancel()

    def leave(self, reason: str, within_s: float, signal: pb.Signal.SignalType.ValueType | None = None) -> None:
        """Let the client go elsewhere: the session ends with UNAVAILABLE, unless its client ends it before.

        It is given nothing new to work on. What it sent before it could know is served first, if it is on its way for no longer than
        `within_s`: on a transport that tells clients to go, until they have; on the others, for a round trip. Never blocks.
        """
        if not self.acknowledged or self.detached or self.nursery is None:
            self.end(Status.UNAVAILABLE, reason, signal)
        elif self.leaving is None:
            self.leaving = StatusError(Status.UNAVAILABLE, reason)
            self.outbox.takes_no_more = True
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
        """Whether it waits for its client, of which nothing has come that is not handled."""
        return self.reading and not self.link.has_input

    @property
    def ended_by_gateway(self) -> bool:
        """Whether it ends because this gateway goes: its client is not to blame, also if it was the quicker one."""
        return self.leaving is not None or (self.ending is not None and self.ending.status is Status.UNAVAILABLE)

    def end_after_answer(self, status: Status, reason: str) -> None:
        """`end`, but what is asked now is answered first, within ANSWER_S."""
        if not self.answering or self.nursery is None:
            self.end(status, reason)
        elif self._end_after_answer is None:
            self._end_after_answer = StatusError(status, reason)
            self.nursery.start_soon(self._end_in_time, name="end-after-answer")

    def answered(self) -> None:
        """A request has been handled, and its answer is on its way."""
        self.answering = False
        due = self._end_after_answer
        if due is not None:
            self.end(due.status, due.message)

    async def _end_in_time(self) -> None:
        await trio.sleep(ANSWER_S)
        self.answered()

    def cut(self) -> None:
        """The link has broken. Whoever reads from it learns so there; a session held up elsewhere ends all the same."""
        if self.nursery is not None and not self.detached:
            self.nursery.start_soon(self._end_after_cut, name="cut")

    def failed(self, error: Exception) -> None:
        """A defect of the gateway was found while this session's messages were written: it ends, and no other does."""
        report(error, self.who)
        self.end(Status.UNKNOWN, DEFECT)

    async def _end_after_cut(self) -> None:
        await trio.sleep(CUT_GRACE_S)
        assert self.nursery is not None
        self.nursery.cancel_scope.cancel()

    def detach(self) -> None:
        """Listen to nothing and hold nothing from now on. Idempotent, no checkpoint, raises nothing."""
        run_all(self.who, self._close_subscriptions, self.outbox.detach, self._release, self._tell_detached)

    def _close_subscriptions(self) -> None:
        if self.subscriptions is not None:
            self.subscriptions.close()

    def _release(self) -> None:
        self.registry.release(self)

    def _tell_detached(self) -> None:
        try:
            if not self.detached:
                # In the same step, so that nobody can find it neither connected nor gone.
                self.detached = True
                self.on_detached(self)
        finally:
            if self._detached_event is not None:
                self._detached_event.set()

    def forget(self) -> None:
        """The stream is closed: refer to nothing that refers back, so that all of it is freed at once. Raises nothing."""
        self.sender.author = _NOBODY
        self.counted = None
        self.subscriptions = None
        self.nursery = None
        self.outbox.forget()

    async def wait_detached(self) -> None:
        """Wait until the session holds nothing any more."""
        if not self.detached:
            if self._detached_event is None:
                self._detached_event = trio.Event()
            await self._detached_event.wait()


def _covers_nobody(identity: Identity) -> bool:
    return False


class _Nobody:
    """Who is told of refusals when the stream is closed."""

    confirms = False
    publisher: Publisher | None = None

    def refused(self, number: int, error: AetherError) -> None:
        """See log.Author."""

    def settled(self, touched: set[Outbox]) -> None:
        """See log.Author."""


_NOBODY = _Nobody()


@lru_cache(maxsize=1)
def _ephemeral_notice() -> bytes:
    error = AetherError(
        Code.BACKPRESSURE, "this client reads too slowly: the oldest progress updates are being dropped"
    )
    return error_response(error).SerializeToString()
