"""Connects a client, and connects again after each cut until the client ends.

* A refusal or an end that is not retryable is final: every waiting caller is told, and the client's
  block is cancelled.
* "Another client has this identity" is not final when that may be this client: an attempt whose
  answer never came may have taken it, so it is tried again for SELF_DUPLICATE_S.
* What was published and not settled is sent again when the gateway remembers it (it says for how
  long, and the identity has not changed); else it fails as in doubt. That counts from when it was
  first written: the gateway may have committed it just then.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import anyio
import anyio.abc
import anyio.lowlevel

from aether_trio.client.connection.dispatch import MessageDispatch
from aether_trio.client.connection.open_transport import certificate_refusal, open_transport
from aether_trio.client.connection.renewal import ask_credentials, keep_renewed
from aether_trio.client.connection.transport import BROKEN, ConnectionEnd, Transport
from aether_trio.client.errors import (
    AetherError,
    ClientClosed,
    ConnectionLost,
    DuplicateIdentity,
    SessionEnded,
    Unauthenticated,
    Unavailable,
)
from aether_trio.client.feeds import Feed
from aether_trio.client.options import ClientSettings
from aether_trio.wire.pb import aether_pb2 as pb

T = TypeVar("T")

logger = logging.getLogger("aether_trio.client")

SELF_DUPLICATE_S: Final = 60.0
"""How long the gateway may keep a dead connection of this client."""


class State(enum.Enum):
    """Where a client is in its life: connecting, connected, closed and so on."""

    NEW = "new"
    """Its block has not begun."""
    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"
    """The connection was lost; a pause, then the next attempt."""
    CLOSED = "closed"


class Reconnector:
    """Opens a client's connections one after another, and runs each to its end."""

    def __init__(
        self,
        settings: ClientSettings,
        dispatch: MessageDispatch,
        init: Callable[[Mapping[str, str]], pb.InitConnection],
    ) -> None:
        self.settings = settings
        self._dispatch = dispatch
        self._init = init
        self.state = State.NEW
        self.states: Feed[State] = Feed(64, lossy=True)
        self.session_id = settings.resume_session_id
        self.resumed = False
        self.connections = 0
        self.failed_attempts = 0
        """Failed attempts over the client's whole life; `_failures` counts those in a row."""
        self.failure: AetherError | None = None
        self.error: BaseException | None = None
        """A defect of the client's own."""
        self.ack: pb.ConnectionAck | None = None
        self._transport: Transport | None = None
        self._closing = False
        self._reconnecting: anyio.CancelScope | None = None
        self._remembers_s = 0.0
        self._lost_at = 0.0
        self.assigned = ""
        """The part of the identity that the gateway has assigned."""
        self._maybe_us_until = 0.0
        self._failures = 0
        self._reached = False
        """Whether the present attempt is beyond TCP and TLS."""

    # -- from the client

    async def run(self, scope: anyio.CancelScope, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Connect, and reconnect until the client ends; a later failure cancels `scope`."""
        settings = self.settings
        try:
            transport = await self._first()
            task_status.started()
            while True:
                ended = await self._connected(transport)
                with anyio.CancelScope() as scope_of_attempts:
                    self._reconnecting = scope_of_attempts
                    if self._closing:
                        return
                    transport = await self._again(ended)
                if scope_of_attempts.cancelled_caught:
                    return
        except AetherError as error:
            if self.connections == 0:
                raise
            logger.debug("%s: the client ends, and does not reconnect: %s", settings.address, error)
            self.failure = error
            await self._give_up(scope, error)
        except Exception as error:
            if self.connections == 0:
                raise
            self.error = error = _alone(error)
            self.failure = ClientClosed(f"the client has failed: {error!r}")
            await self._give_up(scope, self.failure)
        finally:
            self._set(State.CLOSED)
            self._dispatch.close(ClientClosed() if self.failure is None else self.failure)
            self.states.close()

    async def _give_up(self, scope: anyio.CancelScope, error: AetherError) -> None:
        """Tell the waiting callers why the client ends, then cancel its block."""
        self._set(State.CLOSED)
        self._dispatch.close(error)
        for _ in range(2):  # those who were woken run before the second one returns
            await anyio.lowlevel.checkpoint()
        scope.cancel()

    def leave(self) -> None:
        """Say goodbye to the gateway, and do not reconnect; `run` returns soon."""
        self._closing = True
        if self._transport is not None:
            self._transport.leave()
        elif self._reconnecting is not None:
            self._reconnecting.cancel()

    # -- connecting

    async def _first(self) -> Transport:
        """Make the first connection, within `connect_timeout_s` over all attempts."""
        last: AetherError | None = None
        with anyio.move_on_after(self.settings.connect_timeout_s):
            while True:
                try:
                    return await self._attempt()
                except AetherError as error:
                    if not self._worth_another(error):
                        raise
                    last = error
                    self._note_failure()
                    if self.settings.retry.exhausted(self._failures):
                        raise
                await anyio.sleep(self.settings.retry.pause_s(self._failures - 1, last.retry_after_s))
        limit, address = f"within {self.settings.connect_timeout_s:g} s", self.settings.address
        text = f"no connection to {address} {limit}"
        if self._reached:
            text = f"{address} takes connections, but nothing answered {limit}; is it the port of a gateway?"
        raise last or Unavailable("CONNECT_TIMEOUT", text, retryable=True)

    async def _again(self, ended: ConnectionEnd) -> Transport:
        """Reconnect after a connection has ended. Raises when that is hopeless."""
        settings = self.settings
        why: AetherError = ended.error or ConnectionLost(ended.why, in_doubt=True)
        if self._dispatch.told_to_stay_away is not None:
            raise SessionEnded("FORCE_DISCONNECT", self._dispatch.told_to_stay_away)
        fresh = isinstance(why, Unauthenticated) and settings.ask_credentials is not None
        if not (ended.retryable or fresh):  # with fresh credentials the client may be let in again
            raise why
        self._set(State.WAITING)
        self._call("on_disconnected", settings.on_disconnected, why)
        logger.info("%s: connection lost: %s", settings.address, why)
        after = why.retry_after_s
        while True:
            if settings.retry.exhausted(self._failures + 1):
                raise why
            await anyio.sleep(settings.retry.pause_s(self._failures, after))
            try:
                return await self._attempt()
            except AetherError as error:
                if not self._worth_another(error):
                    raise
                why, after = error, error.retry_after_s
                self._note_failure()
                logger.debug("%s: attempt %d to reconnect failed: %s", settings.address, self._failures, error)

    def _note_failure(self) -> None:
        self._failures += 1
        self.failed_attempts += 1

    def _worth_another(self, error: AetherError) -> bool:
        if isinstance(error, DuplicateIdentity):
            return anyio.current_time() < self._maybe_us_until
        return error.retryable

    async def _attempt(self) -> Transport:
        """Open one connection and its session. Raises AetherError."""
        settings = self.settings
        self._set(State.CONNECTING)
        self._dispatch.inbox.cut()
        transport: Transport | None = None
        self._reached = False
        try:
            with anyio.fail_after(settings.handshake_timeout_s):
                credentials = await ask_credentials(settings)
        except TimeoutError:
            text = f"the function credentials() returned nothing within {settings.handshake_timeout_s:g} s"
            raise Unavailable("HANDSHAKE_TIMEOUT", text, retryable=True) from None
        try:
            with anyio.fail_after(settings.handshake_timeout_s):
                transport = await open_transport(
                    settings.address, settings.context, settings.server_name, self._dispatch, settings.ping_interval_s
                )
                self._reached = True
                ack = await transport.open(self._init(credentials))
        except TimeoutError:
            await self._abandon(transport)
            text = f"{settings.address} did not answer within {settings.handshake_timeout_s:g} s"
            raise Unavailable("HANDSHAKE_TIMEOUT", text, retryable=True) from None
        except BROKEN as error:
            await self._abandon(transport)
            if refusal := certificate_refusal(error):
                raise refusal from error
            raise Unavailable(
                "UNREACHABLE",
                f"the connection to {settings.address} broke during the handshake: {error}",
                retryable=True,
            ) from error
        except BaseException:
            if transport is not None:
                await transport.aclose()
            raise
        self._accepted(transport, ack)
        return transport

    async def _abandon(self, transport: Transport | None) -> None:
        """Close a failed attempt's transport; the gateway may have accepted the client."""
        if transport is not None:
            self._maybe_us_until = anyio.current_time() + SELF_DUPLICATE_S
            await transport.aclose()

    def _accepted(self, transport: Transport, ack: pb.ConnectionAck) -> None:
        changed = bool(self.connections) and ack.assigned_id not in ("", self.assigned) and not ack.resumed
        if self.settings.repeat_in_doubt:
            self._dispatch.reopen(repeat=True)
        else:
            self._dispatch.reopen(repeat=not changed, within_s=min(self._remembers_s, transport.remembers_s))
        self.ack = ack
        self.session_id = ack.session_id
        self.resumed = ack.resumed
        # One that has come by its name again is told none.
        self.assigned = ack.assigned_id or self.assigned
        self._remembers_s = transport.remembers_s
        self.connections += 1

    async def _connected(self, transport: Transport) -> ConnectionEnd:
        """Run one connection to its end, and return how it ended."""
        since = anyio.current_time()
        self._transport = transport
        self._dispatch.attach(transport.wake, transport.wake_soon)
        self._set(State.CONNECTED)
        self._call("on_connected", self.settings.on_connected, self.resumed)
        if self._closing:
            transport.leave()
        try:
            ended = await self._run(transport)
        except anyio.get_cancelled_exc_class():
            await transport.last_words()
            raise
        finally:
            self._lost_at = anyio.current_time()
            self._transport = None
            self._dispatch.attach(lambda: None, lambda: None)
            with anyio.CancelScope(shield=True):
                await transport.aclose()
            transport.confirmations.cut()
            self._dispatch.cut()
        steady = self._lost_at - since >= self.settings.retry.steady_s
        self._failures = 0 if steady or ended.expected else self._failures + 1
        return ended

    async def _run(self, transport: Transport) -> ConnectionEnd:
        """Run a connection to its end, and renew its session meanwhile."""
        if self.settings.ask_credentials is None or transport.ack is None:
            return await transport.run()
        async with anyio.create_task_group() as group:
            group.start_soon(keep_renewed, self.settings, self._dispatch, transport.ack)
            ended = await transport.run()
            group.cancel_scope.cancel()
        return ended

    def _call(self, name: str, hook: Callable[[T], None] | None, what: T) -> None:
        """Call the program's callback `hook` with `what`; log its exception."""
        if hook is not None:
            try:
                hook(what)
            except Exception:
                logger.exception("%s: the callback %s raised an exception", self.settings.address, name)

    def _set(self, state: State) -> None:
        if self.state is not state:
            self.state = state
            self.states.put(state)


def _alone(error: Exception) -> Exception:
    """Unwrap exception groups that hold a single exception."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
