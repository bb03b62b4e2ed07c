"""Checks what a client asks for in its first message, the InitConnection.

The order of the checks and the status of each refusal are those of the protocol (reference: core.md
section 1.1). Every refusal is a StatusError raised before anything is sent, because a client takes
the first message of any kind for "connected".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import Code, Status, StatusError
from aether_trio.model.identity import MAX_TOKEN_BYTES, Identity, IdentityError, Kind
from aether_trio.model.ids import IdFactory
from aether_trio.model.limits import KIB, Limits
from aether_trio.model.text import TextError, check_text, shown
from aether_trio.wire.framing.constants import MAX_CREDIT
from aether_trio.wire.pb import aether_pb2 as pb

EXTENSIONS_HEADER = "aether-extensions"
WORKER_TASKS = "urn:aether-trio:worker-tasks"
"""This project's extension. Its version is how many live tasks a worker wants at most; 0 is none
from pools."""
ASSIGNMENTS = "urn:aether-trio:assignments"
"""This project's extension. The client is told the number of each assignment, and may name it in
its reports (services/tasks/protobuf.py)."""
NUMBERED_SENDS = "urn:aether-trio:numbered-sends"
"""This project's extension. The refusal of the N-th SendMessage of a connection has the request id
"send-N" (delivery/receipts.py)."""
DELIVERY_CREDIT = "urn:aether-trio:delivery-credit"
"""This project's extension. Its version is how many messages and bytes the client takes at first,
as "64/1048576"; see `credit_granted`."""
CREDENTIAL_RENEWAL = "urn:aether-trio:credential-renewal"
"""This project's extension. The client is told when its session ends, and may show a fresh
credential before (session/renewal.py)."""
AGENTS = "urn:aether-trio:agents"
"""This project's extension. Its schema is a JSON array: the agent implementations that an
orchestrator has. It may be declared several times; the names are joined. Later the orchestrator may
send another array (`agents_said`)."""
KNOWN_EXTENSIONS: frozenset[str] = frozenset(
    {WORKER_TASKS, ASSIGNMENTS, NUMBERED_SENDS, DELIVERY_CREDIT, CREDENTIAL_RENEWAL, AGENTS}
)
"""URIs of the extensions that this gateway understands."""

SESSION_ID_BYTES: Final = 128
"""Ids of this gateway have 36 bytes, those of others not more than this."""
CLIENT_TEXT_BYTES: Final = 256  # a version, or a text about the client's build: a line for people
CREDENTIAL_NAME_BYTES: Final = 256
JSON_SCHEMA_BYTES: Final = 64 * KIB  # of one extension; the gateway reads that of AGENTS alone
MAX_AGENTS: Final = 1_000  # agent implementations that one orchestrator may have
AGENTS_BYTES: Final = MAX_AGENTS * (3 * MAX_TOKEN_BYTES + 8)  # of a later message with their names


class Claim(NamedTuple):
    """What a client's InitConnection asks for: an identity, extensions, a resume.

    `assigned_id` is the id that the gateway has made for the client, "" for none. `takes_any` is
    false for a service instance that does not receive messages to its kind (`sv::impl`).
    """

    identity: Identity
    assigned_id: str
    credentials: Mapping[str, str]
    resume_session_id: str
    takes_any: bool
    extensions: tuple[pb.NegotiatedExtension, ...]
    sdk: str
    version: str
    profiles: tuple[str, ...] = ()  # what an orchestrator can start
    worker_tasks: int | None = None  # how many live tasks the client wants at most; None: no limit
    numbered: bool = False  # whether the client is told the numbers of its assignments
    counts_sends: bool = False  # whether the client is told which of its sends was refused
    credit: tuple[int, int] | None = None  # (messages, bytes) that may be delivered at first
    renews: bool = False  # whether the client is told the end of its session, and may renew it
    agents: frozenset[str] | None = None  # the implementations that it has; None: it does not say


class Reached(Protocol):
    """What credentials reach, as patterns of model/access/patterns.py.

    Each limit is a sequence of alternatives, and what is reached is within all limits.
    """

    @property
    def workspace_limits(self) -> Sequence[Sequence[str]]:
        """Limits of the workspaces; a lone "*" is every workspace."""

    @property
    def identity_limits(self) -> Sequence[Sequence[str]]:
        """Limits of the identities that may use the credentials."""


class _Everything:
    """What a client reaches that no credential limits."""

    workspace_limits: Sequence[Sequence[str]] = ()
    identity_limits: Sequence[Sequence[str]] = ()


EVERYTHING: Final[Reached] = _Everything()


class Authenticated(NamedTuple):
    """What a client's credentials permit, for how long, and which ones they are.

    `everywhere`: all workspaces, and what belongs to none. `task_id` and `token`, the hash of a
    task token, are empty for a participant that has shown no task token; `lineage` is that of
    Session. `expires_ms` is the Unix time at which the session ends, 0 for never. `groups` are
    those that an identity provider says the participant is in ("idp:PROVIDER:GROUP").
    """

    allows_workspace: Callable[[str], bool]
    covers: Callable[[Identity], bool]
    everywhere: bool
    task_id: str = ""
    token: bytes = b""
    lineage: tuple[str, ...] = ()
    credential: str = ""
    """"token:ID", "key:ID", "certificate:SERIAL", "jwt:PROVIDER", "task:ID"; "" for none."""
    expires_ms: int = 0
    cap: AccessLevel = AccessLevel.SUPERADMIN
    """The highest level of access that the session has, whatever its principal may."""
    groups: tuple[str, ...] = ()
    accepted: Reached = EVERYTHING
    """What the credentials reach as patterns; tokens that the session makes reach no more."""
    makers: tuple[str, ...] = ()
    """The principals "type:id" that have made the API token, or that of a task's creator.

    The session ends when one of them, or of `creators`, is locked.
    """
    creators: tuple[str, ...] = ()
    """The principals "type:id" that have created the tasks of the task tokens."""
    origin: str = ""
    """The API token that let it in, or with which its task token was made: it ends with that."""


def read_claim(
    message: pb.UpstreamMessage, metadata: Mapping[str, str], ids: IdFactory, limits: Limits, *, strict: bool
) -> Claim:
    """Read and check a stream's InitConnection; raise StatusError for a refusal."""
    if message.WhichOneof("payload") != "init":
        raise _invalid("the first message of a stream must be init (InitConnection)")
    init = message.init
    if init.ByteSize() > limits.init_bytes:
        raise _invalid(f"the InitConnection has {init.ByteSize()} bytes; at most {limits.init_bytes} are allowed")
    identity, assigned_id = _identity(init, ids, strict)
    extensions = init.extensions
    try:
        return Claim(
            identity,
            assigned_id,
            _credentials(init.credentials, limits),
            check_text(init.resume_session_id, "resume_session_id", SESSION_ID_BYTES),
            not init.service.no_pool_consumer,
            _negotiate(extensions, metadata.get(EXTENSIONS_HEADER, ""), limits),
            *_client(init),
            _profiles(init.orchestrator.supported_profiles, limits) if identity.kind is Kind.ORCHESTRATOR else (),
            *(_own_extensions(extensions) if extensions else ()),
        )
    except TextError as error:
        raise _invalid(f"invalid InitConnection: {error}") from None


def renewed_credentials(init: pb.InitConnection, limits: Limits) -> dict[str, str]:
    """Return the credentials of a renewal. Raises StatusError."""
    if init.ByteSize() > limits.init_bytes:
        raise _invalid(f"the renewal has {init.ByteSize()} bytes; at most {limits.init_bytes} are allowed")
    try:
        return _credentials(init.credentials, limits)
    except TextError as error:
        raise _invalid(f"invalid renewal: {error}") from None


def _invalid(text: str) -> StatusError:
    return StatusError(Status.INVALID_ARGUMENT, text)


def _client(init: pb.InitConnection) -> tuple[str, str]:
    if init.HasField("client_build_info"):
        build = init.client_build_info
        for name in ("commit", "built_at", "runtime", "os"):
            check_text(getattr(build, name), f"client_build_info.{name}", CLIENT_TEXT_BYTES)
    return (
        check_text(init.client_sdk, "client_sdk", CLIENT_TEXT_BYTES),
        check_text(init.client_version, "client_version", CLIENT_TEXT_BYTES),
    )


def _credentials(given: Mapping[str, str], limits: Limits) -> dict[str, str]:
    """Check the credentials; errors name a credential and never show its value."""
    if len(given) > limits.credentials_per_connection:
        raise TextError(
            f"the client shows {len(given)} credentials; at most {limits.credentials_per_connection} are allowed"
        )
    for key, value in given.items():
        check_text(key, "the name of one of the credentials", CREDENTIAL_NAME_BYTES)
        check_text(value, f"credentials[{shown(key)}]", limits.credential_bytes)
    return dict(given)


def _identity(init: pb.InitConnection, ids: IdFactory, strict: bool) -> tuple[Identity, str]:
    try:
        match init.WhichOneof("client_type"):
            case "agent":
                agent = init.agent
                return Identity.agent(agent.workspace, agent.implementation, agent.specifier, strict=strict), ""
            case "task":
                task = init.task
                if task.unique_specifier:
                    return (
                        Identity.unique_task(task.workspace, task.implementation, task.unique_specifier, strict=strict),
                        "",
                    )
                made_up = ids.unique()
                return Identity.task(task.workspace, task.implementation, made_up, strict=strict), made_up
            case "user":
                return Identity.user(init.user.user_id, init.user.window_id, strict=strict), ""
            case "orchestrator":
                made_up = "" if init.orchestrator.specifier else ids.short()
                specifier = init.orchestrator.specifier or made_up
                return Identity.orchestrator(init.orchestrator.implementation, specifier, strict=strict), made_up
            case "workflow_engine":
                check_text(init.workflow_engine.instance_id, "workflow_engine.instance_id", MAX_TOKEN_BYTES)
                return Identity.workflow_engine(), ""
            case "metrics_bridge":
                check_text(init.metrics_bridge.instance_id, "metrics_bridge.instance_id", MAX_TOKEN_BYTES)
                return Identity.metrics_bridge(), ""
            case "bridge":
                return Identity.bridge(init.bridge.implementation, init.bridge.specifier, strict=strict), ""
            case "service":
                return Identity.service(init.service.implementation, init.service.specifier, strict=strict), ""
            case _:
                raise _invalid("init does not say which participant connects; set one of its client_type fields")
    except (IdentityError, TextError) as error:
        raise _invalid(f"invalid identity: {error}") from None


def _profiles(named: Sequence[str], limits: Limits) -> tuple[str, ...]:
    if len(named) > limits.profiles_per_orchestrator:
        raise TextError(
            f"orchestrator.supported_profiles has {len(named)} entries; "
            f"at most {limits.profiles_per_orchestrator} are allowed"
        )
    for number, profile in enumerate(named):
        if not profile:
            raise TextError(f"orchestrator.supported_profiles[{number}] is empty; a launch profile has a name")
        check_text(profile, f"orchestrator.supported_profiles[{number}]", limits.profile_bytes)
    return tuple(named)


def _negotiate(
    declared: Sequence[pb.ExtensionDeclaration], header: str, limits: Limits
) -> tuple[pb.NegotiatedExtension, ...]:
    """Return the answer to each extension that the client declares: supported or not.

    Extensions in the metadata are never required. The reference acknowledges the connection and
    then refuses it when a required extension is missing, which makes the published SDK reconnect
    without a pause for ever. Here the refusal comes before the acknowledgement.
    """
    if not (declared or header):
        return ()
    from_header = [uri.strip() for uri in header.split(",") if uri.strip()]
    count = len(declared) + len(from_header)
    if count > limits.extensions_per_connection:
        raise TextError(
            f"the client declares {count} extensions; at most {limits.extensions_per_connection} are allowed"
        )
    for number, one in enumerate(declared):
        check_text(one.uri, f"extensions[{number}].uri", limits.extension_uri_bytes)
        check_text(one.version, f"extensions[{number}].version", CLIENT_TEXT_BYTES)
        check_text(one.json_schema, f"extensions[{number}].json_schema", JSON_SCHEMA_BYTES, lines=True)
    for uri in from_header:
        check_text(uri, f"a URI in the metadata {EXTENSIONS_HEADER}", limits.extension_uri_bytes)
    uris = [(one.uri, one.version, one.required) for one in declared]
    uris += [(uri, "", False) for uri in from_header]
    missing = [uri for uri, _, required in uris if required and uri not in KNOWN_EXTENSIONS]
    if missing:
        raise StatusError(
            Status.FAILED_PRECONDITION,
            f"{Code.EXTENSION_UNSUPPORTED}: this gateway does not support the required extension {shown(missing[0])}",
        )
    return tuple(
        pb.NegotiatedExtension(
            uri=uri,
            version=version,
            supported=uri in KNOWN_EXTENSIONS,
            rejection_reason="" if uri in KNOWN_EXTENSIONS else "not supported by this gateway",
        )
        for uri, version, _ in uris
    )


def _own_extensions(
    declared: Sequence[pb.ExtensionDeclaration],
) -> tuple[int | None, bool, bool, tuple[int, int] | None, bool, frozenset[str] | None]:
    """Return what this project's extensions ask for: the last fields of a Claim."""
    uris = {one.uri for one in declared}
    said = [one.json_schema for one in declared if one.uri == AGENTS]
    return (
        _worker_tasks(declared),
        ASSIGNMENTS in uris,
        NUMBERED_SENDS in uris,
        _credit(declared),
        CREDENTIAL_RENEWAL in uris,
        _agents(said) if said else None,
    )


def _agents(said: Sequence[str]) -> frozenset[str]:
    """Read the agent implementations that an orchestrator has, from JSON arrays."""
    found: set[str] = set()
    for text in said:
        try:
            names = msgspec.json.decode(text, type=list[str])
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            raise TextError(
                f"the schema of the extension {AGENTS} is a JSON array of texts, not {shown(text, 32)}"
            ) from None
        found.update(names)
        if len(found) > MAX_AGENTS:
            raise TextError(f"the extension {AGENTS} names {len(found)} agents; at most {MAX_AGENTS} are allowed")
    return frozenset(check_text(name, f"an agent of the extension {AGENTS}", MAX_TOKEN_BYTES) for name in found)


def agents_said(message: pb.UpstreamMessage) -> frozenset[str] | None:
    """Return the agents that a later message of an orchestrator names, or None."""
    uri, *said = message.active_extensions or ("",)
    if uri != AGENTS or sum(map(len, said)) > AGENTS_BYTES:
        return None
    try:
        return _agents(said)
    except TextError:
        return None


def _worker_tasks(declared: Sequence[pb.ExtensionDeclaration]) -> int | None:
    """Return how many live tasks the client wants at most; None: it set no limit."""
    said = [one.version for one in declared if one.uri == WORKER_TASKS]
    if not said:
        return None
    if not (said[-1].isascii() and said[-1].isdigit() and len(said[-1]) <= 9):
        raise TextError(f"the version of the extension {WORKER_TASKS} is a number of tasks, not {shown(said[-1], 32)}")
    return int(said[-1])


def _credit(declared: Sequence[pb.ExtensionDeclaration]) -> tuple[int, int] | None:
    """Return the messages and bytes that the client takes at first; None: any number."""
    said = [one.version for one in declared if one.uri == DELIVERY_CREDIT]
    if not said:
        return None
    if (credit := _two_numbers(said[-1].split("/"))) is None:
        text = shown(said[-1], 32)
        raise TextError(f"the version of the extension {DELIVERY_CREDIT} is two numbers as in 64/1048576, not {text}")
    return credit


def credit_granted(message: pb.UpstreamMessage) -> tuple[int, int] | None:
    """Return the (messages, bytes) that a message grants by DELIVERY_CREDIT, or None."""
    if len(message.active_extensions) != 1:
        return None
    uri, *numbers = message.active_extensions[0].rsplit(":", 2)
    return _two_numbers(numbers) if uri == DELIVERY_CREDIT else None


def _two_numbers(texts: Sequence[str]) -> tuple[int, int] | None:
    if len(texts) != 2 or not all(text.isascii() and text.isdigit() and len(text) <= 19 for text in texts):
        return None
    messages, size = int(texts[0]), int(texts[1])
    return (messages, size) if max(messages, size) <= MAX_CREDIT else None


def undeclared_extensions(claim: Claim) -> list[str]:
    """Return the extensions of this gateway that the client did not declare."""
    return sorted(KNOWN_EXTENSIONS - {one.uri for one in claim.extensions}) if claim.extensions else []
