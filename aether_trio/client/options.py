"""The options of the Python clients, and the checks of their values."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeAlias, TypedDict, cast

from aether_trio.client.connection.address import Address, parse_address
from aether_trio.client.connection.backoff import Retry
from aether_trio.client.connection.tls import TlsOptions, context_for
from aether_trio.client.errors import AetherError
from aether_trio.wire.pb import aether_pb2 as pb

REQUEST_TIMEOUT_S = 10.0
"""How long a request waits for its answer unless the caller says; the published SDK's."""
CREDIT_MESSAGES: Final = 1024
CREDIT_BYTES: Final = 8 * 1024 * 1024
MAX_UNSETTLED: Final = 4096
"""The window of a gateway that is configured as usual."""
MAX_UNSETTLED_BYTES: Final = 16 * 1024 * 1024


WORKER_TASKS: Final = "urn:aether-trio:worker-tasks"
"""The extension whose version is how many live tasks a worker wants at most."""
NUMBERED_SENDS: Final = "urn:aether-trio:numbered-sends"
"""The refusal of the N-th send of a connection has the id "send-N"."""
DELIVERY_CREDIT: Final = "urn:aether-trio:delivery-credit"
"""The gateway delivers what it has credit for."""
CREDENTIAL_RENEWAL: Final = "urn:aether-trio:credential-renewal"
"""The gateway says when the session ends, and takes fresh credentials before."""
ASSIGNMENTS: Final = "urn:aether-trio:assignments"
"""An extension by which a gateway says the number of each assignment."""
AGENTS: Final = "urn:aether-trio:agents"
"""An extension by which an orchestrator says which agents it has."""


AskCredentials: TypeAlias = Callable[[], Mapping[str, str] | Awaitable[Mapping[str, str]]]
"""Returns fresh credentials. One that is no async function runs in a thread."""


class ClientOptions(TypedDict, total=False):
    """Keyword arguments that every client takes; each is optional."""

    api_key: str
    token: str
    """A task's token, as an orchestrator hands it to what it starts."""
    credentials: Mapping[str, str] | AskCredentials
    """Credentials by their name in the protocol, such as "bearer_token", or a function that returns
    them. It is asked for each connection, and again before the session's credential expires."""
    tls: TlsOptions | ssl.SSLContext
    """For aethers://, wss:// and grpcs://. Without it the system's authorities are trusted."""
    extensions: Sequence[pb.ExtensionDeclaration | str]
    """Protocol extensions; a text is the URI of an optional one."""
    worker_tasks: int
    """Tasks given (100) and open by `work()` (1) at once; 0 is none from pools."""
    resume_session_id: str
    """The session of an earlier process, to take over from it."""
    program: str
    """"name/version", for the gateway's log."""
    connect_timeout_s: float
    """Seconds for the first connection, in all attempts (10); math.inf waits."""
    handshake_timeout_s: float
    """For one attempt, from the socket to the gateway's answer (10)."""
    close_timeout_s: float
    """For the goodbye: what was published is settled, acknowledgements are sent (5)."""
    ping_interval_s: float | None
    """A connection silent for twice these seconds (20) is cut; None leaves it to TCP."""
    retry: Retry
    """How to come back after a cut."""
    manual_acks: bool
    """The loop does not acknowledge; the program calls `message.ack()`."""
    credit_messages: int
    credit_bytes: int
    """How much may be delivered that is not acknowledged yet (1,024 messages; 8 MiB)."""
    max_unsettled: int
    max_unsettled_bytes: int
    """How much `publish` leaves unconfirmed (4,096 messages; 16 MiB), then it waits."""
    repeat_in_doubt: bool
    """After a cut, send again what is in doubt: none is lost, some may come twice."""
    on_connected: Callable[[bool], None]
    """Called at each connection with if the session was resumed. Must not wait."""
    on_disconnected: Callable[[AetherError], None]
    """Called with the reason when a connection was lost and the client comes back."""


_TIMES: Final = frozenset({"connect_timeout_s", "handshake_timeout_s", "close_timeout_s", "ping_interval_s"})
_KINDS: Final[Mapping[str, type | tuple[type, ...]]] = MappingProxyType(
    {
        **dict.fromkeys(("api_key", "token", "resume_session_id", "program"), str),
        **dict.fromkeys(
            ("credit_messages", "credit_bytes", "max_unsettled", "max_unsettled_bytes", "worker_tasks"), int
        ),
        **dict.fromkeys(_TIMES, (int, float)),
        **dict.fromkeys(("manual_acks", "repeat_in_doubt"), bool),
        "credentials": Mapping,
        "tls": (TlsOptions, ssl.SSLContext),
        "retry": Retry,
    }
)
"""The type that each option must have, checked before a connection needs it."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The checked options of a client, with its address and TLS context."""

    address: Address
    context: ssl.SSLContext | None
    server_name: str | None
    credentials: Mapping[str, str] = field(repr=False)
    ask_credentials: AskCredentials | None
    """Asked for more credentials, beside those that do not change."""
    extensions: tuple[pb.ExtensionDeclaration, ...]
    resume_session_id: str
    program: str
    connect_timeout_s: float
    handshake_timeout_s: float
    close_timeout_s: float
    ping_interval_s: float | None
    retry: Retry
    manual_acks: bool
    worker_tasks: int | None
    credit_messages: int
    credit_bytes: int
    max_unsettled: int
    max_unsettled_bytes: int
    repeat_in_doubt: bool
    on_connected: Callable[[bool], None] | None
    on_disconnected: Callable[[AetherError], None] | None


def settings_for(address: str, options: ClientOptions) -> ClientSettings:
    """Check an address and options of a client. Raises ValueError, TypeError."""
    if unknown := sorted(options.keys() - ClientOptions.__annotations__.keys()):
        raise TypeError(f"unknown option {unknown[0]!r}; known are {', '.join(sorted(ClientOptions.__annotations__))}")
    parsed = parse_address(address)
    options = _checked(options)
    tls = options.get("tls")
    given = options.get("credentials", {})
    ask = given if callable(given) else None
    credentials = {} if callable(given) else dict(given)
    if key := options.get("api_key"):
        credentials["api_key"] = key
    if token := options.get("token"):
        credentials["token"] = token
    interval = options.get("ping_interval_s", 20.0)
    if interval is not None and interval < 10:
        raise ValueError(f"ping_interval_s is {interval:g} s; under 10 s a gateway may take the pings for a flood")
    said = options.get("extensions", ())
    extensions = [pb.ExtensionDeclaration(uri=one) if isinstance(one, str) else one for one in said]
    if ask is not None:
        extensions.append(pb.ExtensionDeclaration(uri=CREDENTIAL_RENEWAL))
    if (wanted := options.get("worker_tasks")) is not None:
        if wanted < 0:
            raise ValueError(f"worker_tasks, the number of tasks at once, is {wanted}; it must be 0 or more")
        extensions.append(pb.ExtensionDeclaration(uri=WORKER_TASKS, version=str(wanted)))
    return ClientSettings(
        address=parsed,
        context=context_for(parsed, tls),
        server_name=tls.server_name if isinstance(tls, TlsOptions) else None,
        credentials=credentials,
        ask_credentials=ask,
        extensions=tuple(extensions),
        resume_session_id=options.get("resume_session_id", ""),
        program=options.get("program", ""),
        connect_timeout_s=options.get("connect_timeout_s", 10.0),
        handshake_timeout_s=options.get("handshake_timeout_s", 10.0),
        close_timeout_s=options.get("close_timeout_s", 5.0),
        ping_interval_s=interval,
        retry=options.get("retry", Retry()),
        manual_acks=options.get("manual_acks", False),
        worker_tasks=options.get("worker_tasks"),
        credit_messages=options.get("credit_messages", CREDIT_MESSAGES),
        credit_bytes=options.get("credit_bytes", CREDIT_BYTES),
        max_unsettled=options.get("max_unsettled", MAX_UNSETTLED),
        max_unsettled_bytes=options.get("max_unsettled_bytes", MAX_UNSETTLED_BYTES),
        repeat_in_doubt=options.get("repeat_in_doubt", False),
        on_connected=options.get("on_connected"),
        on_disconnected=options.get("on_disconnected"),
    )


def _checked(options: ClientOptions) -> ClientOptions:
    """Check the types of the options, and return those that are not None."""
    given = {name: value for name, value in options.items() if value is not None or name == "ping_interval_s"}
    for name, value in given.items():
        kinds = object if name == "credentials" and callable(value) else _KINDS.get(name, object)
        if not isinstance(value, kinds) and not (name == "ping_interval_s" and value is None):
            known = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
            raise TypeError(f"the option {name} must be {known}, not {type(value).__name__}")
        if name in _TIMES and isinstance(value, int | float) and not value >= 0:
            raise ValueError(f"the option {name} is {value:g} s; it must be 0 or more")
    if isinstance(said := given.get("credentials"), Mapping):
        check_credentials(said)
    return cast("ClientOptions", given)


def check_credentials(given: Mapping[str, str]) -> None:
    """Check that all credentials are texts. Raises TypeError."""
    for name, text in given.items():
        if not isinstance(text, str):
            raise TypeError(f"credentials[{name!r}] must be a text, not {type(text).__name__}")


def numbered(options: ClientOptions) -> ClientOptions:
    """Return options with the extension that numbers the assignments of tasks."""
    changed = options.copy()
    changed["extensions"] = [*options.get("extensions", ()), ASSIGNMENTS]
    return changed
