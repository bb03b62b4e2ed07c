"""Reads and handles a session's messages until its client ends the stream.

Invariants: the requests of one session are handled one after another, in order. A session stops
reading while the log has no room, or while too many of its answers wait to be sent, and TCP slows
its client down. After A_TURN messages other sessions have their turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio
from google.protobuf.message import DecodeError

from aether_trio.delivery.receipts import Receipts
from aether_trio.delivery.router import DelegatedRoute, Forwarded
from aether_trio.model.errors import Code, RequestError, Status, StatusError
from aether_trio.session.dependencies import SessionDependencies
from aether_trio.session.init_connection import agents_said, credit_granted
from aether_trio.session.renewal import Renewals
from aether_trio.session.session import Session
from aether_trio.transport.link import Upstream
from aether_trio.wire.framing import Send
from aether_trio.wire.pb import aether_pb2 as pb
from aether_trio.wire.upstream import UNCOUNTED_BYTES, too_many_fields

A_TURN = 64  # messages of one connection at a time: about a millisecond of work
REQUEST_COSTS = 8  # how many messages a request counts for: its answer is a write
BATCHED_REQUEST_COSTS = 3  # and one whose answer may share a write with others


class ReadLoop:
    """Reads and handles clients' messages, for all sessions of a gateway."""

    def __init__(self, dependencies: SessionDependencies) -> None:
        self._clock = dependencies.clock
        self._log = dependencies.log
        self._router = dependencies.router
        self._rules = dependencies.rules
        self._rates = dependencies.rates
        self._gate = dependencies.gate
        self._dispatcher = dependencies.dispatcher
        self._renewals = Renewals(dependencies)
        self._hooks = dependencies.hooks
        self._batched_cases = dependencies.dispatcher.batched_cases

    async def run(self, session: Session, early: Sequence[Upstream]) -> None:
        """Handle a session's messages, `early` first, until its client ends the stream.

        Raises StatusError when the session is ended or the client breaks a rule, LinkBroken.
        """
        outbox, log = session.outbox, self._log
        send_now = partial(self._send_now, session)
        batch, early = early, ()  # what was handled is not kept during the wait
        while True:
            if not batch:
                session.reading = True
                batch = await session.link.receive(send_now)
                session.reading = False
                if not batch:
                    return
            if session.ending is not None:
                raise session.ending  # the batch and the end have met
            session.touch(self._clock.now_ms())
            if self._gate.is_closed:
                await self._gate.wait()
                continue  # the session may have been ended meanwhile
            if not self._log.has_room:  # filled since this task has begun to wait
                await log.wait_room()
                continue
            await self._handle(session, batch)
            batch = ()
            if not log.has_room:
                await log.wait_room()
            if not outbox.control_has_room:
                await outbox.wait_control_room()
            if session.leaves_when_idle and session.leaving is not None and not session.link.has_input:
                raise session.leaving

    def _send_now(self, session: Session, batch: Sequence[Upstream]) -> Sequence[Upstream]:
        """Append the sends at the front of a batch; return the other messages."""
        outbox = session.outbox
        if (
            session.ending is not None
            or session.leaving is not None
            or self._gate.is_closed
            or not self._log.has_room
            or not outbox.control_has_room
        ):
            return batch
        session.touch(self._clock.now_ms())
        handled = 0
        for message in batch[:A_TURN]:
            route = None
            if isinstance(message, Send):
                if message.extra:
                    route = self._router.route_of_frame(session.sender, message.topic, message.extra)
                    if route is None:
                        break  # its grant may have to be read first
                self._publish(session, message, route=route)
            elif message.WhichOneof("payload") == "send":
                send = message.send
                if _may_read(send):
                    route = self._router.route_of(session.sender, send)
                    if route is None:
                        break
                self._send(session, send, route=route)
            else:
                break
            handled += 1
        self._write_receipts(session)
        return batch[handled:]

    async def _handle(self, session: Session, batch: Sequence[Upstream]) -> None:
        dispatcher, outbox = self._dispatcher, session.outbox
        waiting: list[pb.UpstreamMessage] = []  # requests of one type, to be answered together
        waiting_case = ""
        left = A_TURN
        for message in batch:
            route = None
            if left <= 0:
                left = A_TURN
                if waiting:
                    await self._answer_together(session, waiting_case, waiting)
                await trio.lowlevel.checkpoint()
                await self._wait_for_next(session)
            left -= 1
            if isinstance(message, Send):
                if waiting:
                    await self._answer_together(session, waiting_case, waiting)
                forwarded = None
                if message.extra:
                    route = self._router.route_of_frame(session.sender, message.topic, message.extra)
                    if route is None and (rest := _rest_or_none(message)) is not None:
                        forwarded = await self._prepare(session, message.topic, rest)
                self._publish(session, message, forwarded, route)
                continue
            case = message.WhichOneof("payload")
            if waiting and case != waiting_case:
                await self._answer_together(session, waiting_case, waiting)
            if case == "send":
                send, forwarded = message.send, None
                if _may_read(send):
                    route = self._router.route_of(session.sender, send)
                    if route is None:
                        forwarded = await self._prepare(session, send.target_topic, send)
                self._send(session, send, forwarded, route)
            elif case is None and outbox.credit_messages is not None and (grant := credit_granted(message)):
                outbox.grant(*grant)
            elif case is None and session.agents is not None and (agents := agents_said(message)) is not None:
                left -= REQUEST_COSTS
                session.agents = agents
                self._hooks.agents_changed(session)
            elif case == "init" and session.renews and message.init.WhichOneof("client_type") is None:
                left -= REQUEST_COSTS
                self._renewals.begin(session, message.init)
            elif case == "init":
                raise StatusError(Status.INVALID_ARGUMENT, "this stream has had its InitConnection already")
            else:
                refusal = self._rates.request_refusal(session.requests) if case != "progress" else None
                if refusal is None and case in self._batched_cases:
                    left -= BATCHED_REQUEST_COSTS
                    waiting_case = case
                    waiting.append(message)
                    continue
                left -= REQUEST_COSTS
                if waiting:
                    await self._answer_together(session, waiting_case, waiting)
                if refusal is None:
                    await dispatcher.dispatch(session, case, message)
                else:
                    await dispatcher.refuse(session, case, message, refusal)
                await self._wait_for_next(session)
        if waiting:
            await self._answer_together(session, waiting_case, waiting)
        self._write_receipts(session)

    @staticmethod
    def _write_receipts(session: Session) -> None:
        receipts = session.receipts
        if receipts is not None and receipts.due:
            session.link.kick()

    async def _answer_together(self, session: Session, case: str, requests: list[pb.UpstreamMessage]) -> None:
        """Answer all these requests of one type, which then are removed from the list."""
        while requests:
            del requests[: await self._dispatcher.dispatch_some(session, case, requests)]
            await self._wait_for_next(session)

    async def _wait_for_next(self, session: Session) -> None:
        """Wait until the next message of a batch may be handled. Raises the session's end."""
        if session.ending is None and not session.outbox.control_has_room:
            await session.outbox.wait_control_room()
        await self._wait_open(session)

    async def _wait_open(self, session: Session) -> None:
        """Wait while the node may handle no input, as it may have come to be meanwhile.

        Raises the session's end.
        """
        while session.ending is None and self._gate.is_closed:
            await self._gate.wait()
        if session.ending is not None:
            raise session.ending  # a wait that is over is not cancelled any more

    async def _prepare(self, session: Session, target: str, rest: pb.SendMessage) -> Forwarded:
        """Read and write what a message needs, so that the router need not wait.

        Returns the authority that it passes on, or why it passes none on. Other refusals, and a
        storage that does not answer, are the router's to tell.
        """
        forwarded: Forwarded = None
        if rest.HasField("authorization"):
            await self._rules.prepare_authority(session, rest.authorization)
        if rest.HasField("authority_continuation"):
            try:
                topic = self._router.check_target(session.sender, target, rest)
                forwarded = await self._rules.forward(session, rest, topic)
            except RequestError as error:
                forwarded = error
        await self._wait_open(session)
        return forwarded

    def _send(
        self,
        session: Session,
        send: pb.SendMessage,
        forwarded: Forwarded = None,
        route: DelegatedRoute | None = None,
    ) -> None:
        counted = session.counted
        if counted is None:
            try:
                self._router.send(session.sender, send, forwarded, route)
            except RequestError as error:
                session.put_error(error)
            return
        counted.count()
        try:
            self._router.send(session.sender, send, forwarded, route)
            counted.appended(session.sender.last_append)
        except RequestError as error:
            counted.refuse(error)

    def _publish(
        self, session: Session, send: Send, forwarded: Forwarded = None, route: DelegatedRoute | None = None
    ) -> None:
        receipts = session.receipts
        if receipts is None:
            receipts = Receipts(self._log, session.outbox, None)
            session.number_sends(receipts)
        try:
            if receipts.wanted(send.seq):
                sender = session.sender
                rest = _rest_of(send) if send.extra and route is None else None
                self._router.publish(sender, send.topic, send.payload, send.message_type, rest, forwarded, route)
                receipts.appended(send.seq, sender.last_append)
                if rest is not None:
                    self._router.remember_frame(sender, send.topic, send.extra, rest)
        except RequestError as error:
            receipts.refuse(send.seq, error)


def _may_read(send: pb.SendMessage) -> bool:
    """Return whether something may have to be read before a message can be published."""
    return send.HasField("authorization") or send.HasField("authority_continuation")


def _rest_or_none(send: Send) -> pb.SendMessage | None:
    try:
        return _rest_of(send)
    except RequestError:
        return None  # told when the message is published


def _rest_of(send: Send) -> pb.SendMessage:
    """Parse the SendMessage in field `extra` of a SEND frame. Raises RequestError."""
    if len(send.extra) > UNCOUNTED_BYTES and too_many_fields(send.extra, pb.SendMessage.DESCRIPTOR):
        raise RequestError(Code.INVALID_ARGUMENT, "field `extra` of this SEND frame has too many protobuf fields")
    try:
        return pb.SendMessage.FromString(send.extra)
    except DecodeError:
        raise RequestError(
            Code.INVALID_ARGUMENT, "field `extra` of this SEND frame is no encoded SendMessage"
        ) from None
