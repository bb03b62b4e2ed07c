"""Reads and bounds what clients say of grants and requests; writes messages.

A principal is given as {type, id}; the id of a user is the bare name, that of any other participant
its identity. Times on the wire are Unix seconds. Everything that does not fit its bound is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.grants import (
    MAX_TIME_MS,
    Audience,
    AuthorityGrant,
    GrantError,
    GrantProblem,
    GrantScope,
    Lineage,
    PrincipalKey,
    ResourcePatterns,
)
from aether_trio.model.access.requests import RequestRecord, Route
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity, IdentityError, PrincipalType, check_token, parse_principal_type
from aether_trio.model.text import TextError, check_text, shown
from aether_trio.wire.pb import aether_pb2 as pb

MAX_ID_BYTES: Final = 1024
"""Of a principal or an audience; an identity has at most half of it."""
MAX_REASON_BYTES: Final = 4096
MAX_METADATA: Final = 64
MAX_METADATA_BYTES: Final = 16 * 1024
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
MAX_OFFSET: Final = 1_000_000


def bad(text: str) -> RequestError:
    """Make the refusal of a malformed request."""
    return RequestError(Code.INVALID_ARGUMENT, text)


def short_text(text: str, what: str, most: int = MAX_ID_BYTES) -> str:
    """Return a client's text of one line. Raises RequestError."""
    try:
        return check_text(text, what, most)
    except TextError as error:
        raise bad(str(error)) from None


def reason_of(text: str) -> str:
    """Return the reason that a client gives. Raises RequestError."""
    try:
        return check_text(text, "reason", MAX_REASON_BYTES, lines=True)
    except TextError as error:
        raise bad(str(error)) from None


def principal_of(ref: pb.PrincipalRef, what: str, *, strict: bool) -> PrincipalKey:
    """Return the principal that a client names. Raises RequestError."""
    name = short_text(ref.principal_id, what)
    try:
        kind = parse_principal_type(short_text(ref.principal_type, what))
        if kind is PrincipalType.USER and not name.startswith("us::"):
            return PrincipalKey(kind.type_name, check_token(name, f"{what}: user id", strict=strict))
        identity = Identity.parse(name, strict=strict)
    except IdentityError as error:
        raise bad(f"{what}: {error}") from None
    if identity.type_name != kind.type_name:
        raise bad(f"{what}: {shown(name)} is {identity.kind.with_article}, not of type {kind.type_name}")
    return PrincipalKey.of(identity)


def level_of(number: int) -> AccessLevel:
    """Return the access level with a number. Raises GrantError."""
    try:
        return AccessLevel(number)
    except ValueError:
        raise GrantError(GrantProblem.INVALID, f"invalid access level {number}") from None


def wire_level(number: int, what: str) -> AccessLevel | None:
    """Return the level of a wire AccessLevel, None for 0. Raises RequestError."""
    if not number:
        return None
    try:
        return AccessLevel.from_wire(number)
    except ValueError as error:
        raise bad(f"{what}: {error}") from None


def scope_of(
    level: AccessLevel, workspaces: Iterable[str], resources: Iterable[Any], operations: Iterable[str]
) -> GrantScope:
    """Return the scope that a client gives. Raises RequestError."""
    return GrantScope(
        level,
        tuple(dict.fromkeys(short_text(one, "workspace_scope") for one in workspaces)),
        tuple(
            ResourcePatterns(
                short_text(one.resource_type, "resource_scope"),
                tuple(dict.fromkeys(short_text(text, "resource_scope") for text in one.patterns)),
            )
            for one in resources
        ),
        operations_of(operations),
    )


def operations_of(given: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns of operations that a client gives. Raises RequestError."""
    return tuple(dict.fromkeys(short_text(one, "operation_scope") for one in given))


def audience_of(type_name: str, name: str) -> Audience:
    """Return the audience that a client names. Raises RequestError."""
    return Audience(short_text(type_name, "audience_type").lower(), short_text(name, "audience_id"))


def moment_ms(seconds: int, what: str) -> int:
    """Return a time in Unix ms, 0 for none. Raises RequestError."""
    if not 0 <= seconds * 1000 <= MAX_TIME_MS:
        raise bad(f"{what} {seconds} is not a Unix time in seconds")
    return seconds * 1000


def metadata_of(given: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata that a client gives. Raises RequestError."""
    size = sum(len(key.encode()) + len(value.encode()) for key, value in given.items())
    if len(given) > MAX_METADATA or size > MAX_METADATA_BYTES:
        raise bad(f"metadata has at most {MAX_METADATA} keys, and {MAX_METADATA_BYTES} bytes in all")
    return dict(given)


def page_of(limit: int, offset: int) -> tuple[int, int]:
    """Return the (limit, offset) of a list."""
    return min(limit, MAX_PAGE) if limit > 0 else DEFAULT_PAGE, min(max(offset, 0), MAX_OFFSET)


# -- writing ---------------------------------------------------------------------------------------


def ref(key: PrincipalKey) -> pb.PrincipalRef:
    """Make the message of a principal."""
    return pb.PrincipalRef(principal_type=key.type_name, principal_id=key.id)


def grant_info(lineage: Lineage) -> pb.ACLAuthorityGrantInfo:
    """Make the message of a grant; it is revoked if any of its lineage is."""
    grant = lineage[-1]
    terms = grant.terms
    revoked_ms = min((one.revoked_ms for one in lineage if one.revoked_ms), default=0)
    return pb.ACLAuthorityGrantInfo(
        grant_id=grant.grant_id,
        root_grant_id=grant.root_id,
        subject=ref(grant.subject),
        delegate=ref(grant.delegate),
        issued_by=ref(grant.issued_by),
        root_subject=ref(grant.subject),
        parent_grant_id=grant.parent_id,
        may_delegate=grant.may_delegate,
        remaining_hops=terms.hops,
        workspace_scope=terms.scope.workspaces,
        resource_scope=[
            pb.ACLAuthorityGrantResourceScopeEntry(resource_type=kind, patterns=patterns)
            for kind, patterns in terms.scope.resources
        ],
        operation_scope=terms.scope.operations,
        max_access_level=int(terms.scope.level),
        access_level_name=terms.scope.level.name,
        audience_type=terms.audience.type_name,
        audience_id=terms.audience.id,
        valid_while_audience_active=terms.while_active,
        expires_at=terms.expires_ms // 1000,
        renewable_until=terms.renewable_ms // 1000,
        renewed_at=grant.renewed_ms // 1000,
        revoked=bool(revoked_ms),
        revoked_at=revoked_ms // 1000,
        reason=terms.reason,
        metadata=terms.metadata,
        created_at=grant.created_ms // 1000,
    )


def short_info(grant: AuthorityGrant) -> pb.AuthorityGrantInfo:
    """Make the message of a valid grant's limits, for those who enforce them."""
    terms = grant.terms
    return pb.AuthorityGrantInfo(
        grant_id=grant.grant_id,
        subject_type=grant.subject.type_name,
        subject_id=grant.subject.id,
        root_subject_type=grant.subject.type_name,
        root_subject_id=grant.subject.id,
        audience_type=terms.audience.type_name,
        audience_id=terms.audience.id,
        max_access_level=int(terms.scope.level),
        workspace_scope=["*"] if terms.scope.any_workspace and terms.scope.workspaces else terms.scope.workspaces,
        expires_at=terms.expires_ms // 1000,
    )


def route_of(given: pb.AuthorityRequestRoutingTarget, *, strict: bool) -> Route:
    """Return whom a client asks. Raises RequestError."""
    principal = principal_of(given.principal, "routing_target", strict=strict) if given.HasField("principal") else None
    return Route(principal, short_text(given.capability, "routing_target.capability"))


def request_info(record: RequestRecord) -> pb.AuthorityRequest:
    """Make the message of an authority request."""
    route = pb.AuthorityRequestRoutingTarget(
        principal=ref(record.route.principal) if record.route.principal else None, capability=record.route.capability
    )
    return pb.AuthorityRequest(
        request_id=record.request_id,
        status=pb.AuthorityRequestStatus.ValueType(record.status.wire),
        requesting_actor=ref(record.requester),
        target_subject=ref(record.subject) if record.subject else None,
        desired_workspace_scope=record.wish.workspaces,
        desired_resource_scope=[
            pb.AuthorityRequestResourceScopeEntry(resource_type=kind, patterns=patterns)
            for kind, patterns in record.wish.resources
        ],
        desired_operation_scope=record.wish.operations,
        requested_access_level=pb.AccessLevel.ValueType(record.wish.level.wire),
        requested_duration_seconds=record.duration_s,
        audience_type=record.audience.type_name,
        audience_id=record.audience.id,
        routing_target=route,
        reason=record.reason,
        task_id=record.task_id,
        metadata=record.metadata,
        created_at=record.created_ms // 1000,
        expires_at=record.expires_ms // 1000,
        resolved_at=record.resolved_ms // 1000,
        granted_grant_id=record.grant_id,
        resolved_by=ref(record.resolved_by) if record.resolved_by else None,
        resolution_reason=record.resolution_reason,
    )


def request_event(record: RequestRecord, now_ms: int) -> pb.AuthorityRequestEvent:
    """Make the event that tells of a request's present state."""
    return pb.AuthorityRequestEvent(
        event_type=pb.AuthorityRequestEvent.EventType.ValueType(record.status.wire),
        request=request_info(record),
        emitted_at=now_ms // 1000,
    )
