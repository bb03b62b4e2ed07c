"""Who is it, and may it come in: an InitConnection, judged without I/O.

The order of the checks and the status of each refusal are the protocol's (reference: core.md section 1.1). Every
refusal is a StatusError raised before anything is sent, because a client takes the first message of any kind for
"connected".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aether_trio.model.errors import Code, Status, StatusError
from aether_trio.model.identity import Identity, IdentityError
from aether_trio.model.ids import IdFactory
from aether_trio.model.limits import Limits
from aether_trio.wire.pb import aether_pb2 as pb

EXTENSIONS_HEADER = "aether-extensions"
WORKER_TASKS = "urn:aether-trio:worker-tasks"
"""Ours: the version is how many live tasks a worker wants to be given at most; 0 is none from pools."""
ASSIGNMENTS = "urn:aether-trio:assignments"
"""Ours: the client is told the number of each assignment, and may say for which one it speaks (services/tasks/wire.py)."""
KNOWN_EXTENSIONS: frozenset[str] = frozenset({WORKER_TASKS, ASSIGNMENTS})
"""URIs of the extensions that this gateway understands."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What an InitConnection asks for. `assigned_id` is what the gateway made up for the client, if anything.

    `takes_any` is false for a service that does not stand in for its kind: `sv::impl` never means it.
    """

    identity: Identity
    assigned_id: str
    credentials: Mapping[str, str]
    resume_session_id: str
    takes_any: bool
    extensions: tuple[pb.NegotiatedExtension, ...]
    sdk: str
    version: str
    profiles: tuple[str, ...] = ()
    """What an orchestrator can start."""
    worker_tasks: int | None = None
    """How many live tasks the client wants at most; None: it has not said."""
    numbered: bool = False
    """Whether it is to be told the numbers of assignments."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """What a participant's credentials are good for: these workspaces, tokens for these identities, and the task that its token is for.

    `task_id` is "" and `token`, the hash of the token, is empty for those that were let in without one.
    """

    allows_workspace: Callable[[str], bool]
    covers: Callable[[Identity], bool]
    task_id: str = ""
    token: bytes = b""


def read_claim(
    message: pb.UpstreamMessage, metadata: Mapping[str, str], ids: IdFactory, limits: Limits, *, strict: bool
) -> Claim:
    """The claim in a stream's first message. Raises StatusError INVALID_ARGUMENT or FAILED_PRECONDITION."""
    if message.WhichOneof("payload") != "init":
        raise StatusError(Status.INVALID_ARGUMENT, "the first message of a stream must be init (InitConnection)")
    init = message.init
    identity, assigned_id = _identity(init, ids, strict)
    credentials = dict(init.credentials)
    if len(credentials) > limits.credentials_per_connection:
        raise StatusError(
            Status.INVALID_ARGUMENT,
            f"{len(credentials)} credentials; at most {limits.credentials_per_connection} are allowed",
        )
    for key, value in credentials.items():
        if len(key) + len(value) > limits.credential_bytes:
            raise StatusError(Status.INVALID_ARGUMENT, f"a credential is longer than {limits.credential_bytes} bytes")
    return Claim(
        identity,
        assigned_id,
        credentials,
        init.resume_session_id,
        not init.service.no_pool_consumer,
        _negotiate(init.extensions, metadata.get(EXTENSIONS_HEADER, ""), limits),
        init.client_sdk[:64],
        init.client_version[:64],
        _profiles(init.orchestrator.supported_profiles, limits),
        _worker_tasks(init.extensions),
        any(one.uri == ASSIGNMENTS for one in init.extensions),
    )


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
                return Identity.workflow_engine(), ""
            case "metrics_bridge":
                return Identity.metrics_bridge(), ""
            case "bridge":
                return Identity.bridge(init.bridge.implementation, init.bridge.specifier, strict=strict), ""
            case "service":
                return Identity.service(init.service.implementation, init.service.specifier, strict=strict), ""
            case _:
                raise StatusError(
                    Status.INVALID_ARGUMENT, "init says nothing of who connects: set one of its client_type fields"
                )
    except IdentityError as error:
        raise StatusError(Status.INVALID_ARGUMENT, f"invalid identity: {error}") from None


def _profiles(named: Sequence[str], limits: Limits) -> tuple[str, ...]:
    if len(named) > limits.profiles_per_orchestrator:
        raise StatusError(
            Status.INVALID_ARGUMENT,
            f"{len(named)} supported profiles; at most {limits.profiles_per_orchestrator} are allowed",
        )
    if any(not profile or len(profile.encode()) > limits.profile_bytes for profile in named):
        raise StatusError(
            Status.INVALID_ARGUMENT, f"a supported profile is empty or longer than {limits.profile_bytes} bytes"
        )
    return tuple(named)


def _negotiate(
    declared: Sequence[pb.ExtensionDeclaration], header: str, limits: Limits
) -> tuple[pb.NegotiatedExtension, ...]:
    """One entry per declaration, from the message and then from the metadata; the latter are never required.

    The reference acknowledges the connection and then refuses it when a required extension is missing, which makes the
    published SDK reconnect without a pause for ever. Here the refusal comes before the acknowledgement.
    """
    uris = [(one.uri, one.version, one.required) for one in declared]
    uris += [(uri.strip(), "", False) for uri in header.split(",") if uri.strip()]
    if len(uris) > limits.extensions_per_connection:
        raise StatusError(
            Status.INVALID_ARGUMENT,
            f"{len(uris)} extensions declared; at most {limits.extensions_per_connection} are allowed",
        )
    if any(len(uri) > limits.extension_uri_bytes for uri, _, _ in uris):
        raise StatusError(Status.INVALID_ARGUMENT, f"an extension URI is over {limits.extension_uri_bytes} bytes long")
    missing = [uri for uri, _, required in uris if required and uri not in KNOWN_EXTENSIONS]
    if missing:
        raise StatusError(
            Status.FAILED_PRECONDITION,
            f"{Code.EXTENSION_UNSUPPORTED}: this gateway does not support the required extension {', '.join(missing)}",
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


def _worker_tasks(declared: Sequence[pb.ExtensionDeclaration]) -> int | None:
    """What the last declaration of WORKER_TASKS says; None when there is none."""
    said = [one.version for one in declared if one.uri == WORKER_TASKS]
    if not said:
        return None
    if not (said[-1].isascii() and said[-1].isdigit() and len(said[-1]) <= 9):
        raise StatusError(
            Status.INVALID_ARGUMENT, f"the version of {WORKER_TASKS} is a number of tasks, not {said[-1][:32]!r}"
        )
    return int(said[-1])


def undeclared_extensions(claim: Claim) -> list[str]:
    """Known extensions that the client did not mention, for ConnectionAck.server_supported_extensions."""
    if not claim.extensions:
        return []
    return sorted(KNOWN_EXTENSIONS - {one.uri for one in claim.extensions})
