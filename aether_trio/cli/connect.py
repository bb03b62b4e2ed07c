"""Connects a command to a gateway, and explains a failure to the person.

A command tries the transports in the order of TRANSPORTS and goes on to the next one when the port
says that it does not speak the one before, so commands work with any set of transports that a
gateway has switched on.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, TypeVar

import trio

from aether_trio.cli import exits
from aether_trio.cli.options import GatewayTarget
from aether_trio.client import (
    AddressError,
    AetherError,
    AgentClient,
    BridgeClient,
    Client,
    ClientCertificateRefused,
    ClientClosed,
    ClientOptions,
    ConnectionLost,
    MetricsBridgeClient,
    NotImplementedByGateway,
    OrchestratorClient,
    ProtocolViolation,
    Refused,
    RequestTimeout,
    Retry,
    ServiceClient,
    SessionEnded,
    TaskClient,
    TlsOptions,
    TlsRefused,
    Unavailable,
    UserClient,
    WorkflowEngineClient,
)
from aether_trio.model.errors import Status
from aether_trio.model.identity import Identity, Kind

T = TypeVar("T")

TRANSPORTS: Final = (("aether", "aethers"), ("grpc", "grpcs"), ("ws", "wss"))
"""Schemes of addresses to try, without and with TLS; users alone may use WebSocket by default."""
NOT_SPOKEN: Final = "not spoken here"
"""What a port says that has this transport switched off."""

REFUSALS: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "ALREADY_EXISTS", "INVALID_ARGUMENT"})
"""Statuses of a refused connection for which another attempt would fail too."""
HINTS: Final = {
    "UNAUTHENTICATED": "give a key with --api-key or AETHER_API_KEY, or a certificate with --tls-cert",
    "PERMISSION_DENIED": "the credential is for another identity; see --as",
    "ALREADY_EXISTS": "that identity is connected elsewhere; choose another with --as",
}
_NO_RIGHT: Final = re.compile(r" needs ([A-Z]+) on (\S+), and (\S+) has ")
"""In the gateway's text for what its rules refuse: level, resource and identity."""
_IS_IT_A_GATEWAY: Final = "is it the port of a gateway? if it speaks TLS, give --tls or --tls-ca"
_TLS_OPTIONS: Final = {
    "name its files in TlsOptions(cert_file=..., key_file=...)": "--tls-cert FILE --tls-key FILE",
    "name the file of its certificate authority in TlsOptions(ca_file=...)": "--tls-ca FILE names the authority to trust",
    "is it plaintext": "is it without TLS (--no-tls)? plaintext is",
    "ca_file": "--tls-ca",
    "cert_file": "--tls-cert",
    "key_file": "--tls-key",
}
_STATUSES: Final = frozenset(status.name for status in Status)
"""Codes with which a gateway ends a connection, and refuses no operation."""
_ENDINGS: Final = (ClientClosed, ConnectionLost, ProtocolViolation, RequestTimeout, SessionEnded)
_TOO_LARGE: Final = frozenset({"FRAME_TOO_LARGE", "MESSAGE_TOO_LARGE"})


def addresses_of(target: GatewayTarget) -> list[str]:
    """Return the URLs to try for the gateway `target`: one for each transport."""
    if target.scheme:
        return [f"{target.scheme}://{target}"]
    return [f"{secure if target.tls else plain}://{target}" for plain, secure in TRANSPORTS]


def options_of(target: GatewayTarget) -> ClientOptions:
    """Return client options for the gateway `target`: credential, TLS and time limit."""
    # The handshake's limit is lower, because its error says more than that of the whole.
    options: ClientOptions = {"connect_timeout_s": target.timeout_s, "handshake_timeout_s": 0.9 * target.timeout_s}
    if target.api_key:
        options["api_key"] = target.api_key
    if target.tls:
        options["tls"] = TlsOptions(target.tls_ca, target.tls_cert, target.tls_key)
    return options


def client_for(identity: Identity, address: str, options: ClientOptions) -> Client:
    """Make a client that connects as `identity`. Raises AddressError."""
    workspace, implementation, specifier = identity.workspace, identity.implementation, identity.specifier
    match identity.kind:
        case Kind.AGENT:
            return AgentClient(
                address, workspace=workspace, implementation=implementation, specifier=specifier, **options
            )
        case Kind.UNIQUE_TASK:
            return TaskClient(
                address, workspace=workspace, implementation=implementation, specifier=specifier, **options
            )
        case Kind.TASK:
            return TaskClient(address, workspace=workspace, implementation=implementation, **options)
        case Kind.USER:
            return UserClient(address, user_id=identity.user_id, window_id=identity.window_id, **options)
        case Kind.ORCHESTRATOR:
            return OrchestratorClient(
                address, implementation=implementation, specifier=specifier, profiles=(), **options
            )
        case Kind.WORKFLOW_ENGINE:
            return WorkflowEngineClient(address, **options)
        case Kind.METRICS_BRIDGE:
            return MetricsBridgeClient(address, **options)
        case Kind.BRIDGE:
            return BridgeClient(address, implementation=implementation, specifier=specifier, **options)
        case Kind.SERVICE:
            # Messages to any instance of the service ("sv::cli") are not meant for a command.
            return ServiceClient(
                address, implementation=implementation, specifier=specifier, takes_any=False, **options
            )


@asynccontextmanager
async def open_client(target: GatewayTarget, identity: Identity, *, endless: bool = False) -> AsyncIterator[Client]:
    """Connect to the gateway as `identity`. Every failure is a CliError.

    The whole block has `target.timeout_s`; with `endless` only connecting has. A lost connection is
    not made again.
    """
    try:
        with trio.fail_after(target.timeout_s) as limit:
            async with AsyncExitStack() as stack:
                client = await _connect(stack, target, identity)
                if endless:
                    limit.deadline = math.inf
                try:
                    yield client
                except AetherError as error:
                    if is_refusal(error):
                        raise exits.CliError(refusal_text(error)) from error
                    raise
    except Exception as error:
        raise explained(target, error) from error


async def _connect(stack: AsyncExitStack, target: GatewayTarget, identity: Identity) -> Client:
    """Open a client on the first spoken transport. Raises the last AetherError."""
    options: ClientOptions = {"program": "aether-cli", "retry": Retry(max_attempts=0), **options_of(target)}
    *others, last = addresses_of(target)
    for address in others:
        try:
            return await stack.enter_async_context(client_for(identity, address, options))
        except AetherError as error:
            if not is_not_spoken(error):
                raise
    return await stack.enter_async_context(client_for(identity, last, options))


def on_first_spoken(addresses: Sequence[str], attempt: Callable[[str], T]) -> T:
    """Return `attempt` of the first address whose transport the gateway speaks."""
    *others, last = addresses
    for address in others:
        try:
            return attempt(address)
        except AetherError as error:
            if not is_not_spoken(error):
                raise
    return attempt(last)


def is_refusal(error: AetherError) -> bool:
    """Whether the gateway has refused an operation, and is still connected."""
    return error.code not in _TOO_LARGE | _STATUSES and not isinstance(error, _ENDINGS)


def is_not_spoken(error: AetherError) -> bool:
    """Whether a port does not speak the transport that was tried."""
    return isinstance(error, NotImplementedByGateway | Refused) and NOT_SPOKEN in error.message


def explained(target: GatewayTarget, error: Exception) -> Exception:
    """Return the CliError for a failed connection, or another error unchanged."""
    inner = innermost(error)
    match inner:
        case trio.TooSlowError() | RequestTimeout():
            text = f"{target} did not answer within {target.timeout_s:g} s (--timeout)"
            return exits.CliError(text, exits.UNREACHABLE)
        case AetherError(code="HANDSHAKE_TIMEOUT" | "CONNECT_TIMEOUT"):
            text = f"{target} did not answer within {target.timeout_s:g} s (--timeout); {_IS_IT_A_GATEWAY}"
            return exits.CliError(text, exits.UNREACHABLE)
        case AddressError():
            return exits.CliError(_with_options(inner.message), exits.USAGE)
        case TlsRefused():
            return _explained_tls(target, inner)
        case AetherError() if inner.code in _TOO_LARGE:
            return exits.CliError(f"RESOURCE_EXHAUSTED: {inner.message}", exits.FAILED)
        case ProtocolViolation():
            return exits.CliError(
                f"{target} broke the connection: {inner.message} ({_IS_IT_A_GATEWAY})", exits.UNREACHABLE
            )
        case Unavailable(code="UNREACHABLE") if isinstance(inner.__cause__, OSError) or inner.message.startswith(
            "cannot"
        ):
            text = f"no gateway answers on {target}; start one with `aether dev`, or name another with --gateway"
            return exits.CliError(text, exits.UNREACHABLE)
        case Unavailable(code="UNREACHABLE"):
            hint = "" if target.tls else f" ({_IS_IT_A_GATEWAY})"
            return exits.CliError(f"{target} broke the connection: {inner.message}{hint}", exits.UNREACHABLE)
        case ConnectionLost() | ClientClosed():
            return exits.CliError(f"{target} broke the connection: {inner.message}", exits.UNREACHABLE)
        case AetherError():
            return _explained_refusal(target, inner)
        case _:
            return inner


def innermost(error: Exception) -> Exception:
    """Return the first error in exception groups, a CliError before others."""
    while isinstance(error, ExceptionGroup):
        ours = [one for one in error.exceptions if isinstance(one, exits.CliError)]
        error = ours[0] if ours else error.exceptions[0]
    return error


def refusal_text(error: AetherError) -> str:
    """Return a refused operation's code and text, and what to do next."""
    text = error.message if error.code == "REFUSED" else f"{error.code}: {error.message}"
    if missing := _NO_RIGHT.search(error.message):
        level, resource, identity = missing.groups()
        question = shlex.join((identity, resource, level.lower()))
        return f"{text}; `aether access explain {question}` says why, `aether access grant` gives a right"
    return f"{text} (it may work later)" if error.retryable else text


def _explained_refusal(target: GatewayTarget, error: AetherError) -> exits.CliError:
    hint = f"; {HINTS[error.code]}" if error.code in HINTS else ""
    if not target.tls and "TLS is required" in error.message:
        hint = "; give --tls or --tls-ca"
    code = exits.REFUSED if error.code in REFUSALS else exits.UNREACHABLE
    return exits.CliError(f"{target} said {error.code}: {error.message}{hint}", code)


def _explained_tls(target: GatewayTarget, error: TlsRefused) -> exits.CliError:
    code = exits.REFUSED if isinstance(error, ClientCertificateRefused) else exits.UNREACHABLE
    return exits.CliError(f"TLS with {target} failed: {_with_options(error.message)}", code)


def _with_options(text: str) -> str:
    """Replace the client's arguments in an error text by the command's options."""
    for argument, option in _TLS_OPTIONS.items():
        text = text.replace(argument, option)
    return text
