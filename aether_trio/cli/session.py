"""One connection of a command: say who we are, ask, leave.

Strictly one thing at a time: `request` sends and reads until its answer is there, so there is no background task. What
arrives in between (messages for the made-up identity, say) is not for us and is dropped; errors that belong to no request
are kept in `errors`, and events of tasks until `task_event` asks for them.
"""

from __future__ import annotations

import math
import secrets
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from aether_trio.cli import exits
from aether_trio.cli.grpc_stream import GrpcTransport, open_transport
from aether_trio.cli.identities import first_message
from aether_trio.cli.options import Target
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Identity
from aether_trio.transport.link import LinkBroken
from aether_trio.wire.pb import aether_pb2 as pb

_REFUSALS: Final = frozenset(
    {Status.UNAUTHENTICATED, Status.PERMISSION_DENIED, Status.ALREADY_EXISTS, Status.INVALID_ARGUMENT}
)
_HINTS: Final = {
    Status.UNAUTHENTICATED: "give a key with --api-key or AETHER_API_KEY, or a certificate with --tls-cert",
    Status.PERMISSION_DENIED: "the credential is for another identity; see --as",
    Status.ALREADY_EXISTS: "that identity is connected elsewhere; choose another with --as",
}
_TLS_HINTS: Final = {
    "WRONG_VERSION_NUMBER": "; is it plaintext (--no-tls)?",
    "CERTIFICATE_VERIFY_FAILED": "; --tls-ca names the authority to trust",
}
# The second half of a failed KV operation, the ErrorResponse with its reason, follows at once.
_REASON_WAIT_S: Final = 2.0


class ClientSession:
    """A connected participant. Made by `open_session`."""

    def __init__(self, transport: GrpcTransport, identity: Identity, ack: pb.ConnectionAck) -> None:
        self._transport = transport
        self.identity = identity
        self.ack = ack
        self.errors: list[pb.ErrorResponse] = []
        self._events: deque[pb.TaskEvent] = deque()

    async def tell(self, message: pb.UpstreamMessage) -> None:
        """Send something that has no answer."""
        await self._transport.send(message)

    async def request(self, message: pb.UpstreamMessage) -> pb.DownstreamMessage:
        """Send a request and return its answer. Raises CliError when the answer is an ErrorResponse."""
        which = message.WhichOneof("payload")
        assert which is not None
        request_id = f"cli-{secrets.token_hex(8)}"
        name = "client_request_id" if which == "task_subscription_op" else "request_id"
        setattr(getattr(message, which), name, request_id)
        await self._transport.send(message)
        while True:
            answer = await self._next()
            kind = answer.WhichOneof("payload")
            if kind == "error" and answer.error.request_id in {"", request_id}:
                if answer.error.request_id:
                    raise _failure(answer.error)
                self.errors.append(answer.error)
            elif kind == "task_event":
                self._events.append(answer.task_event)
            elif kind is not None and _answers(getattr(answer, kind)) == request_id:
                if kind == "kv" and not answer.kv.success:
                    raise await self._kv_failure(request_id)
                return answer

    async def task_event(self) -> pb.TaskEvent:
        """The next event of the tasks that were subscribed to."""
        while not self._events:
            answer = await self._next()
            if answer.WhichOneof("payload") == "task_event":
                self._events.append(answer.task_event)
        return self._events.popleft()

    async def barrier(self) -> None:
        """Return when everything told before is committed or refused; refusals are then in `errors`."""
        me = pb.PrincipalRef(principal_type=self.identity.type_name, principal_id=self.identity.text)
        await self.request(pb.UpstreamMessage(connection_status_request=pb.ConnectionStatusRequest(principal=me)))

    async def _next(self) -> pb.DownstreamMessage:
        answer = await self._transport.receive()
        if answer is None:
            raise exits.CliError("the gateway ended the connection", exits.UNREACHABLE)
        return answer

    async def _kv_failure(self, request_id: str) -> exits.CliError:
        with trio.move_on_after(_REASON_WAIT_S):
            while True:
                answer = await self._next()
                if answer.WhichOneof("payload") == "error" and answer.error.request_id == request_id:
                    return _failure(answer.error)
        return exits.CliError("the gateway refused the operation and gave no reason")


def _answers(payload: object) -> str:
    return str(getattr(payload, "request_id", "") or getattr(payload, "client_request_id", ""))


def _failure(error: pb.ErrorResponse) -> exits.CliError:
    hint = " (it may work later)" if error.retryable else ""
    return exits.CliError(f"{error.code}: {error.message}{hint}")


@asynccontextmanager
async def open_session(target: Target, identity: Identity, *, endless: bool = False) -> AsyncIterator[ClientSession]:
    """Connect to the gateway as `identity`. Every failure is a CliError.

    The whole block has `target.timeout_s`; `endless`, only connecting has.
    """
    try:
        with trio.fail_after(target.timeout_s) as limit:
            async with open_transport(target) as transport:
                await transport.send(first_message(identity, target.credentials))
                while True:
                    answer = await transport.receive()
                    if answer is None:
                        raise exits.CliError(f"{target} ended the connection without a word", exits.UNREACHABLE)
                    if answer.WhichOneof("payload") == "connection_ack":
                        break
                if endless:
                    limit.deadline = math.inf
                yield ClientSession(transport, identity, answer.connection_ack)
    except Exception as error:
        raise explain(target, error) from error


def explain(target: Target, error: Exception) -> Exception:
    """What to tell a person about this failure; errors that are ours come back as they are."""
    inner = _innermost(error)
    match inner:
        case exits.CliError():
            return inner
        case trio.TooSlowError():
            return exits.CliError(
                f"{target} did not answer within {target.timeout_s:g} s (--timeout)", exits.UNREACHABLE
            )
        case StatusError():
            hint = f"; {_HINTS[inner.status]}" if inner.status in _HINTS else ""
            code = exits.REFUSED if inner.status in _REFUSALS else exits.UNREACHABLE
            return exits.CliError(f"{target} said {inner.status.name}: {inner.message}{hint}", code)
        case ssl.SSLError():
            hint = _TLS_HINTS.get(inner.reason or "", "")
            return exits.CliError(f"TLS with {target} failed: {inner}{hint}", exits.UNREACHABLE)
        case LinkBroken():
            hint = "" if target.tls else " (is it the port of a gateway? if it speaks TLS, give --tls or --tls-ca)"
            return exits.CliError(f"{target} broke the connection: {inner}{hint}", exits.UNREACHABLE)
        case OSError() | trio.BrokenResourceError():
            return exits.CliError(
                f"no gateway answers on {target}; start one with `aether dev`, or name another with --gateway",
                exits.UNREACHABLE,
            )
        case _:
            return error


def _innermost(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        # Nurseries wrap what went wrong; one that we made ourselves says it best.
        ours = [one for one in error.exceptions if isinstance(one, exits.CliError)]
        error = ours[0] if ours else error.exceptions[0]
    return error
