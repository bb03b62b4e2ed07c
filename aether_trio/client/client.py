"""The async Python client: the part that all kinds of participants share."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, Unpack

import anyio

from aether_trio.client.block import ClientBlock
from aether_trio.client.connection.dispatch import MessageDispatch
from aether_trio.client.connection.handshake import init_for
from aether_trio.client.connection.outgoing_messages import (
    OutgoingMessage,
    Publication,
    SendOutcome,
    bytes_of,
    checked_topic,
    checked_type,
)
from aether_trio.client.connection.reconnect import Reconnector, State
from aether_trio.client.connection.requests import PendingRequest, prepare
from aether_trio.client.errors import AetherError, ClientClosed, RequestTimeout
from aether_trio.client.feeds import CONNECTION_LOST, Feed
from aether_trio.client.message import IncomingMessage, MessageType
from aether_trio.client.messages import Messages
from aether_trio.client.operation_table import operation_of
from aether_trio.client.operations import Operations, ProgressUpdate
from aether_trio.client.options import (
    CREDENTIAL_RENEWAL,
    DELIVERY_CREDIT,
    NUMBERED_SENDS,
    REQUEST_TIMEOUT_S,
    ClientOptions,
    settings_for,
)
from aether_trio.client.statistics import ClientStatistics, statistics_of
from aether_trio.model.identity import Identity
from aether_trio.version import __version__
from aether_trio.wire.pb import aether_pb2 as pb

_OF_THE_TRANSPORT: Final = frozenset({NUMBERED_SENDS, DELIVERY_CREDIT, CREDENTIAL_RENEWAL})
"""Extensions that the client declares for itself."""


class Client(Operations, ClientBlock, abc.ABC):
    """Base of the async clients of all kinds of participants (AgentClient and so on).

        async with AgentClient("aether://localhost:50051", workspace="w", implementation="i",
        specifier="1") as agent: ...

    The block begins when the gateway has accepted the client, or raises why not; after a cut the
    client reconnects; and it ends with a goodbye, after which everything is settled. What cannot be
    mended (a refusal, an end of the session) cancels the block and is raised from it. A client has
    one block, and works inside of it only. `kv`, `tasks` and so on are the other operations.
    """

    def __init__(self, address: str, **options: Unpack[ClientOptions]) -> None:
        """Check the gateway address and the options; nothing is connected yet.

        `address` is "aether://HOST:PORT" (or aethers, ws, wss, grpc, grpcs). Raises AddressError,
        ValueError for a value that cannot be, TypeError for an unknown option.
        """
        self._settings = settings_for(address, options)
        self._workspace = ""
        program = self._settings.program or f"aether-trio/{__version__}"
        dispatch = MessageDispatch(self._settings, program, self._principal)
        super().__init__(dispatch, Reconnector(self._settings, dispatch, self._init))

    # -- who and where

    @abc.abstractmethod
    def _identify(self, init: pb.InitConnection) -> None:
        """Write the identity of this participant into its first message."""

    @abc.abstractmethod
    def _identity(self, assigned_id: str) -> Identity:
        """Return this participant's identity; the gateway may have assigned a part of it."""

    def _init(self, credentials: Mapping[str, str]) -> pb.InitConnection:
        init = init_for(self._settings, self._reconnector.session_id, credentials)
        self._identify(init)
        return init

    def _principal(self, ack: pb.ConnectionAck) -> pb.PrincipalRef:
        identity = self._identity(ack.assigned_id)
        return pb.PrincipalRef(principal_type=identity.type_name, principal_id=identity.text)

    @property
    def topic(self) -> str:
        """The identity and topic of this participant, such as "ag::default::planner::1"."""
        return self._identity(self._ack.assigned_id).text

    @property
    def assigned_id(self) -> str:
        """The part of the identity that the gateway has assigned; "" if it assigned none."""
        return self._ack.assigned_id or self._reconnector.assigned

    @property
    def workspace(self) -> str:
        """The workspace of this participant; "" if it is in none."""
        return self._workspace

    @property
    def session_id(self) -> str:
        """The id of the present session with the gateway, or of the last one."""
        return self._reconnector.session_id

    @property
    def resumed(self) -> bool:
        """Whether the present connection has resumed the session of the last one."""
        return self._reconnector.resumed

    @property
    def state(self) -> State:
        """Whether the client is new, connecting, connected, waiting to retry, or closed."""
        return self._reconnector.state

    @property
    def states(self) -> Feed[State]:
        """A feed of every change of `state` from the beginning; it keeps 64 unread ones."""
        return self._reconnector.states

    @property
    def connections(self) -> int:
        """How many connections there were; all but the first are reconnects."""
        return self._reconnector.connections

    def statistics(self) -> ClientStatistics:
        """Return counts of messages, requests and connections, also after the block."""
        return statistics_of(self._reconnector, self._dispatch)

    @property
    def negotiated_extensions(self) -> tuple[pb.NegotiatedExtension, ...]:
        """The protocol extensions that were declared, and if the gateway supports each."""
        return tuple(one for one in self._ack.negotiated_extensions if one.uri not in _OF_THE_TRANSPORT)

    @property
    def server_extensions(self) -> tuple[str, ...]:
        """Protocol extensions of the gateway that this client did not declare."""
        return tuple(self._ack.server_supported_extensions)

    @property
    def config(self) -> pb.ConfigSnapshot | None:
        """The configuration from the gateway for this agent or task; None until it comes."""
        return self._dispatch.config

    @property
    def _ack(self) -> pb.ConnectionAck:
        if self._reconnector.ack is None:
            raise ClientClosed("the client has not been connected yet; use it inside of its `async with` block")
        return self._reconnector.ack

    # -- messages

    async def send(
        self,
        target: str,
        payload: bytes | str,
        *,
        type: MessageType | int = MessageType.OPAQUE,
        details: pb.SendMessage | None = None,
    ) -> None:
        """Send a message, and return when the gateway has committed it, to be delivered.

        `target` is a topic; a text payload is sent as UTF-8. `details` holds the rarer fields of a
        SendMessage. Raises the typed refusal, or ConnectionLost when the connection was cut and the
        gateway cannot tell a repetition (`in_doubt`: it may have been committed). Cancelled, it is
        not sent any more; what this connection has written already may still be committed.
        """
        publication = await self._publish(target, payload, type, details, confirm=True)
        try:
            await publication.committed()
        except anyio.get_cancelled_exc_class():
            self._dispatch.send_queue.withdraw(publication)
            raise

    async def publish(
        self,
        target: str,
        payload: bytes | str,
        *,
        type: MessageType | int = MessageType.OPAQUE,
        details: pb.SendMessage | None = None,
    ) -> Publication:
        """Queue one of many messages to be sent, and return when there is room for more.

        `await publication.committed()` waits for this one, `flush()` for all so far. A refusal that
        no caller has waited for is raised by the next `flush`, or at the end of the block.
        """
        return await self._publish(target, payload, type, details, confirm=False)

    async def _publish(
        self, target: str, payload: bytes | str, kind: int, details: pb.SendMessage | None, *, confirm: bool
    ) -> Publication:
        topic, data, kind = checked_topic(target), bytes_of(payload), checked_type(kind)
        extra = b""
        if details is not None:
            rare = pb.SendMessage()
            rare.CopyFrom(details)
            for plain in ("target_topic", "payload", "message_type"):
                rare.ClearField(plain)
            extra = rare.SerializeToString()
        await self._check_open()
        return await self._dispatch.send_queue.publish(topic, data, kind, extra, confirm=confirm)

    async def flush(self) -> None:
        """Wait until all published so far is committed. Raises the first unseen refusal."""
        await self._dispatch.send_queue.flush()

    async def reply(
        self,
        message: IncomingMessage,
        payload: bytes | str,
        *,
        type: MessageType | int | None = None,
        details: pb.SendMessage | None = None,
    ) -> None:
        """Send an answer to the sender of `message`, by default with the same type."""
        kind = message.raw.message_type if type is None else type
        await self.send(message.source, payload, type=kind, details=details)

    async def receive(self) -> IncomingMessage:
        """Wait for the next message; the caller acknowledges it. Raises ClientClosed."""
        await self._check_open()
        try:
            return await self._dispatch.inbox.receive()
        except StopAsyncIteration:
            raise ClientClosed from None

    def __aiter__(self) -> Messages:
        """Iterate over messages; the program, or the next iteration, acknowledges each.

        Each is acknowledged when the same task asks for the next one, or leaves the block well;
        with manual_acks the program does it. Several tasks may share the messages.
        """
        self._check_begun()
        return self._dispatch.messages(manual=self._settings.manual_acks)

    # -- what is not a message

    @property
    def progress_updates(self) -> Feed[ProgressUpdate]:
        """A feed of progress that others report; it keeps the last 256 unread ones."""
        return self._dispatch.progress

    @property
    def signals(self) -> Feed[pb.Signal]:
        """A feed of gateway signals, such as that it drains or disconnects the client."""
        return self._dispatch.signals

    @property
    def errors(self) -> Feed[AetherError]:
        """A feed of refusals and notices for which no caller waits; it keeps the last 256."""
        return self._dispatch.errors

    async def request(
        self,
        message: pb.UpstreamMessage,
        *,
        timeout: float | None = REQUEST_TIMEOUT_S,
        idempotent: bool = False,
        check: bool = True,
    ) -> Any:
        """Send a request, and return the payload of the gateway's answer."""
        await self._check_open()
        requests = self._dispatch.requests
        asked, request_id = prepare(message, requests.new_id())
        pending = PendingRequest(request_id, asked, message.SerializeToString(), idempotent=idempotent)
        requests.add(pending)
        self._dispatch.ask(pending)
        try:
            with anyio.fail_after(timeout):
                return await pending.outcome(check=check)
        except TimeoutError as error:
            if isinstance(error, AetherError):
                raise
            raise RequestTimeout(f"{asked} was not answered within {timeout:g} s") from None
        finally:
            self._dispatch.forget(pending)

    async def tell(self, message: pb.UpstreamMessage) -> None:
        """Send a message that is not answered, and return when it is written."""
        await self._tell(message, settle=None)

    async def tell_confirmed(self, message: pb.UpstreamMessage, *, timeout: float | None = REQUEST_TIMEOUT_S) -> None:
        """Send a message that is answered only if refused; wait until it is accepted."""
        outcome = SendOutcome()
        try:
            with anyio.fail_after(timeout):
                await self._tell(message, settle=outcome.settle)
                await outcome.committed()
        except TimeoutError as error:
            if isinstance(error, AetherError):
                raise
            what = message.WhichOneof("payload")
            raise RequestTimeout(f"{what} was not confirmed within {timeout:g} s") from None
        if message.HasField("switch_workspace"):
            self._workspace = message.switch_workspace.new_workspace_id
            self._dispatch.restore["workspace"] = message

    async def _tell(self, message: pb.UpstreamMessage, settle: Callable[[AetherError | None], None] | None) -> None:
        await self._check_open()
        written = SendOutcome()
        operation = operation_of(message)
        upstream = OutgoingMessage(
            message.SerializeToString(),
            written.settle,
            answer=operation is not None and operation.continues_exchange,
            unanswered=operation is not None and operation.refused_without_id,
            settle=settle,
        )
        self._dispatch.send_queue.put(upstream)
        try:
            await written.committed()
        except BaseException:
            self._dispatch.send_queue.discard(upstream)
            raise

    def open_feed(
        self, *cases: str, match: Callable[[Any], bool] | None = None, capacity: int = 1024, lossy: bool = False
    ) -> AbstractContextManager[Feed[Any]]:
        """Open a feed of gateway messages of these oneof cases, while the block lasts."""
        known = pb.DownstreamMessage.DESCRIPTOR.oneofs_by_name["payload"].fields
        if unknown := set(cases) - {field.name for field in known} - {CONNECTION_LOST}:
            raise ValueError(f"{min(unknown)!r} is no case of DownstreamMessage, so a feed cannot listen to it")
        self._check_begun()
        feed: Feed[Any] = Feed(capacity, lossy=lossy, match=match)
        if self._reconnector.failure is not None:
            feed.close(self._reconnector.failure)
        return self._dispatch.feeds.opened(feed, *cases)
