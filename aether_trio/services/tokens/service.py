"""Handles clients' `token_op`: makes, lists, revokes and deletes API tokens.

An operation needs the resource admin/tokens at ADMIN. A token is no wider than its maker:

* A token for a user needs capability/mint_user_tokens at MANAGE, one for another principal than an
  agent, a task or one of the maker's own type all of admin/*; who has all of admin/* may make any.
  A principal with more administrative rights than the maker gets no token from it.
* Each of its workspace patterns is contained in those that the maker's credentials reach, and the
  maker may enter all such workspaces until the token's end. A maker that does not reach all
  workspaces sees and ends only tokens that reach no more than it does.
* It is capped at the level at which the maker's credential is, and lets in no agent or task that
  the maker's credential, if it is for the same type, does not.

These checks are made by what this node knows when the change is committed. Refusals are a typed
failure and an ErrorResponse with the code, both with the request's id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.patterns import PatternError, compile_pattern
from aether_trio.model.api_tokens import (
    CONNECT,
    EVERY,
    RESERVED,
    WORKERS,
    ApiToken,
    TokenScopeError,
    contained,
    new_token_text,
    parse_scopes,
    reserved_part,
)
from aether_trio.model.audit import AuditEvent, EventType
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import SEPARATOR, Identity, IdentityError, parse_principal_type
from aether_trio.model.ids import IdFactory
from aether_trio.model.text import TextError, check_text, shown
from aether_trio.services.access import AccessQuestion, Admin, Capability
from aether_trio.services.access.changes import Committed, Draft, with_caveat
from aether_trio.services.access.granting import Granting
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.services.tokens import rows
from aether_trio.services.tokens.store import TokenStore
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, Program, StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.wire.error_response import error_response
from aether_trio.wire.pb import aether_pb2 as pb

Op = pb.TokenOperation
T = TypeVar("T")

TOKEN: Final = "token"  # noqa: S105  # no secret
"""Their kind in changes; an item's key is a token's id."""
PAGE: Final = 100
MAX_PAGE: Final = 1000
MAX_NAME_BYTES: Final = 256
MAX_ID_BYTES: Final = 128
MAX_PATTERNS: Final = 64
MAX_SCOPES: Final = 64
MAX_HOURS: Final = 100 * 366 * 24
DEFAULT_PRINCIPAL: Final = "admin"
"""The `created_by` of a token that names none, as in the reference."""
_HOUR_MS: Final = 3_600_000
_USER: Final = "user"
_REPRESENTATIVES: Final = {
    one.type_name: one.canonical_id
    for one in (
        Identity.agent("any", "any", "any"),
        Identity.unique_task("any", "any", "any"),
        Identity.service("any", "any"),
        Identity.bridge("any", "any"),
        Identity.orchestrator("any", "any"),
        Identity.workflow_engine(),
        Identity.metrics_bridge(),
    )
}
"""By type: an identity for which no rule is meant in particular."""


class TokenChanges(Protocol):
    """Commits changes of tokens on all nodes (services/access/changes.py)."""

    async def commit(
        self, program: Callable[[Draft], Program[T]], check: Callable[[], None] | None = None
    ) -> Committed[T]:
        """Commit a change, and wait until all live nodes have applied it."""

    async def in_force_now(self) -> str:
        """Wait until all that is committed is in force; return the caveat."""


@dataclass(frozen=True, slots=True)
class TokenMaker:
    """Who makes or ends a token, for its record and the audit."""

    actor_type: str
    actor_id: str
    session_id: str = ""
    credential: str = ""
    source: str = "gateway"

    @classmethod
    def of(cls, session: Session) -> TokenMaker:
        """Return the participant of a session as the maker of a token."""
        identity = session.identity
        return cls(identity.type_name, identity.canonical_id, session.session_id, session.credential)

    def event(self, operation: str, token: ApiToken | None, token_id: str, now_ms: int) -> AuditEvent:
        """Return the audit row of what was done to a token."""
        said: dict[str, object] = {"by": self.credential} if self.credential else {}
        if token is not None:
            said |= {
                "name": token.name,
                "principal_type": token.principal_type,
                "principal_id": token.principal_id,
                "workspace_patterns": token.workspace_patterns,
                "scopes": token.scopes,
                "expires_ms": token.expires_ms,
            }
        return AuditEvent(
            at_ms=now_ms,
            event_type=EventType.ADMIN,
            operation=operation,
            actor_type=self.actor_type,
            actor_id=self.actor_id,
            session_id=self.session_id,
            resource_type="api_token",
            resource_id=token_id,
            source=self.source,
            metadata=said,
        )


def wanted_token(request: pb.TokenCreateRequest, token_id: str, maker: TokenMaker, now_ms: int) -> ApiToken:
    """Return the token that a request asks for. Raises RequestError."""
    try:
        name = check_text(request.name, "name", MAX_NAME_BYTES)
        kind = parse_principal_type(request.principal_type).type_name if request.principal_type else ""
        patterns = tuple(dict.fromkeys(request.workspace_patterns)) or (EVERY,)
        scopes = tuple(dict.fromkeys(request.scopes)) or (CONNECT,)
        if len(patterns) > MAX_PATTERNS or len(scopes) > MAX_SCOPES:
            raise TextError(f"at most {MAX_PATTERNS} workspace_patterns and {MAX_SCOPES} scopes are taken")
        for one in (*patterns, *scopes):
            check_text(one, "a pattern or scope", 1024)
        for pattern in patterns:
            compile_pattern(pattern)
            if pattern.startswith(RESERVED):
                raise TextError(f"the workspace {shown(pattern)} is the gateway's: names that begin with _ are")
        parse_scopes(scopes)
        principal = _principal(kind, request.created_by)
    except (TextError, IdentityError, PatternError, TokenScopeError) as error:
        raise RequestError(Code.INVALID_ARGUMENT, str(error)) from None
    if not name or not kind:
        raise RequestError(Code.INVALID_ARGUMENT, f"{'principal_type' if name else 'name'} is missing")
    if not 0 <= request.expires_in_hours <= MAX_HOURS:
        raise RequestError(Code.INVALID_ARGUMENT, f"expires_in_hours is 0, for never, to {MAX_HOURS}")
    return ApiToken(
        token_id,
        name,
        kind,
        principal,
        patterns,
        scopes,
        f"{maker.actor_type}:{maker.actor_id}",
        created_ms=now_ms,
        updated_ms=now_ms,
        expires_ms=now_ms + request.expires_in_hours * _HOUR_MS if request.expires_in_hours else 0,
    )


def _principal(kind: str, text: str) -> str:
    """Check a token's `created_by`: the principal id as which its holder connects."""
    if kind == _USER:
        if not text:
            raise TextError("created_by is missing: the id of the user that the token is for")
        identity = Identity.user(text, "any")
    elif SEPARATOR not in text:
        return check_text(text or DEFAULT_PRINCIPAL, "created_by", MAX_NAME_BYTES)
    else:
        identity = Identity.parse(text)
        if identity.type_name != kind:
            raise IdentityError(f"created_by is {identity.kind.with_article}, and principal_type is {kind}")
    if (part := reserved_part(identity)) is not None:
        raise IdentityError(f"{shown(part)} is a name of the gateway: names that begin with _ are")
    return text


def make_token(draft: Draft, row: rows.TokenRow, maker: TokenMaker) -> Program[None]:
    """Write a new token, its change and its audit row."""
    yield from rows.insert(row)
    draft.record(TOKEN, row.token.token_id, {"revoked_ms": 0})
    draft.audit(maker.event("token_create", row.token, row.token.token_id, draft.now_ms))


def end_token(draft: Draft, token_id: str, maker: TokenMaker, *, delete: bool) -> Program[ApiToken | None]:
    """Revoke or delete a token; return the token, None if there is none."""
    found = yield from rows.by_id(token_id)
    token = None if found is None else found.token
    done = yield from rows.delete(token_id) if delete else rows.revoke(token_id, draft.now_ms)
    if done:
        draft.record(TOKEN, token_id, None if delete else {"revoked_ms": draft.now_ms})
        draft.audit(maker.event("token_delete" if delete else "token_revoke", token, token_id, draft.now_ms))
    return token


class TokenService:
    """Handles clients' `token_op`."""

    def __init__(
        self,
        database: Database,
        store: TokenStore,
        changes: TokenChanges,
        authorizer: RuleAuthorizer,
        ids: IdFactory,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._database = database
        self._store = store
        self._changes = changes
        self._authorizer = authorizer
        self._granting = Granting(authorizer)
        self._ids = ids
        self._clock = clock
        self._random_bytes = random_bytes

    async def handle(self, session: Session, op: pb.TokenOperation) -> Sequence[pb.DownstreamMessage]:
        """Perform one token operation; return the client's messages in order."""
        response = pb.TokenResponse(request_id=op.request_id)
        try:
            self._check_administers(session)
            await self._operate(session, op, response)
            response.success = True
        except RequestError as error:
            return _refused(op, error)
        except StorageUnavailable as error:
            return _refused(op, outage(error))
        return [pb.DownstreamMessage(token=response)]

    async def _operate(self, session: Session, op: pb.TokenOperation, response: pb.TokenResponse) -> None:
        match op.op:
            case Op.LIST:
                await self._list(session, op.filter, response)
            case Op.GET:
                response.token.CopyFrom(token_info(await self._visible(session, op.token_id)))
            case Op.CREATE:
                await self._create(session, op.create_request, response)
            case Op.REVOKE | Op.DELETE:
                await self._end(session, op.token_id, response, delete=op.op == Op.DELETE)
            case _:
                raise RequestError(Code.INVALID_ARGUMENT, f"unknown token operation {op.op}")

    def _check_administers(self, session: Session) -> None:
        access = AccessQuestion("token_op", "admin", Admin.TOKENS, "", AccessLevel.ADMIN)
        self._authorizer.require(session, access)

    # -- reading -----------------------------------------------------------------------------------

    async def _list(self, session: Session, wanted: pb.TokenFilter, response: pb.TokenResponse) -> None:
        limit = min(wanted.limit, MAX_PAGE) if wanted.limit > 0 else PAGE
        offset = max(wanted.offset, 0)
        if session.reaches_everything:
            read = partial(rows.page, revoked=wanted.include_revoked, limit=limit, offset=offset)
            found, response.total_count = await self._database.read(read)
        else:
            # What it may not see is not counted either, so all rows are looked at.
            read = partial(rows.page, revoked=wanted.include_revoked, limit=2**31 - 1, offset=0)
            every, _ = await self._database.read(read)
            mine = []
            for one in every:
                if _beyond(session, one.workspace_patterns) is None:
                    mine.append(one)
                await trio.lowlevel.checkpoint()  # comparing patterns may take a while
            found, response.total_count = mine[offset : offset + limit], len(mine)
        response.tokens.extend(map(token_info, found))

    async def _visible(self, session: Session, token_id: str) -> ApiToken:
        token = await self._seen(session, token_id)
        if token is None:
            raise _unknown(token_id)
        return token

    async def _seen(self, session: Session, token_id: str) -> ApiToken | None:
        """Return a token that the caller may see, or None."""
        try:
            check_text(token_id, "token_id", MAX_ID_BYTES)
        except TextError:
            raise _unknown(token_id) from None
        row = await self._database.read_small(partial(rows.by_id, token_id))
        if row is None or _beyond(session, row.token.workspace_patterns) is not None:
            return None
        return row.token

    # -- changing ----------------------------------------------------------------------------------

    async def _create(self, session: Session, request: pb.TokenCreateRequest, response: pb.TokenResponse) -> None:
        maker = TokenMaker.of(session)
        token = wanted_token(request, self._ids.unique(), maker, self._clock.now_ms())
        keys = self._store.keys
        key_id = keys.newest
        if key_id is None:
            raise RequestError(
                Code.INVALID_ARGUMENT,
                "this gateway stores no API tokens: auth.token_hmac_keys is empty (`aether init` makes a key)",
            )
        text = new_token_text(self._random_bytes)
        token_hash = keys.hash(key_id, text)
        row = rows.TokenRow(token, token_hash, key_id, keys.seal(key_id, token_hash, token))

        def check() -> None:
            self._check_administers(session)
            self._check_width(session, token)

        committed = await self._changes.commit(partial(make_token, row=row, maker=maker), check)
        response.plaintext_token = text
        response.created_token.CopyFrom(token_info(token))
        response.message = committed.caveat or f"token {token.name!r} was made; its secret is shown this once"

    async def _end(self, session: Session, token_id: str, response: pb.TokenResponse, *, delete: bool) -> None:
        if await self._seen(session, token_id) is None:
            raise _unknown(token_id, await self._changes.in_force_now())
        maker = TokenMaker.of(session)
        program = partial(end_token, token_id=token_id, maker=maker, delete=delete)
        committed = await self._changes.commit(program, partial(self._check_administers, session))
        if committed.result is None:
            raise _unknown(token_id, committed.caveat)
        response.message = committed.caveat or f"the token was {'deleted' if delete else 'revoked'}"

    # -- no wider than the maker -------------------------------------------------------------------

    def _check_width(self, session: Session, token: ApiToken) -> None:
        """Refuse a token that is wider than its maker. Raises RequestError."""
        self._check_type(session, token)
        self._check_principal(session, token)
        if (beyond := _beyond(session, token.workspace_patterns)) is not None:
            raise _wider(f"your credential does not reach all of workspace {shown(beyond)}")
        for pattern in token.workspace_patterns:
            if self._granting.level_over(session, "workspace", pattern) < AccessLevel.READ:
                raise _wider(f"you may not enter all of workspace {shown(pattern)}")
            self._granting.lasting(session).check(
                "workspace", pattern, AccessLevel.READ, token.expires_ms, f"the token gives {{}} on workspace:{pattern}"
            )
        if token.limits.cap > session.cap:
            needed = AccessLevel(session.cap).name
            raise _wider(f"your credential is capped; give the token the scope level:{needed} or a lower one")
        if token.principal_type in WORKERS and token.principal_type == session.identity.type_name:
            inner = token.identity_patterns or (EVERY,)
            for limit in session.accepted.identity_limits:
                if contained(inner, limit) is not None:
                    raise _wider(
                        f"your credential is for {shown(', '.join(limit))}; give the token a scope "
                        "identity:PATTERN within that"
                    )

    def _check_type(self, session: Session, token: ApiToken) -> None:
        kind, own = token.principal_type, session.identity.type_name
        if kind == _USER:
            mints = AccessQuestion("token_create", "capability", Capability.MINT_USER_TOKENS, "", AccessLevel.MANAGE)
            if self._authorizer.decide(session, mints).allowed:
                return
        elif kind in WORKERS or kind == own:
            return
        for resource in Admin:
            access = AccessQuestion("token_create", "admin", resource, "", AccessLevel.ADMIN)
            decision = self._authorizer.decide(session, access)
            if not decision.allowed:
                raise _wider(f"a token for principals of type {kind} needs more than you have: {decision.reason}")

    def _check_principal(self, session: Session, token: ApiToken) -> None:
        """Refuse a token whose principal administers what its maker does not."""
        principal_id = _representative(token)
        for resource_type, resources in (("admin", Admin), ("capability", Capability)):
            for resource in resources:
                verdict = self._authorizer.index.decide(
                    token.principal_type, principal_id, resource_type, resource, self._clock.now_ms()
                )
                given = min(verdict.level, token.limits.cap)
                access = AccessQuestion("token_create", resource_type, resource, "", AccessLevel.READ)
                held = self._authorizer.decide(session, access).level
                if given > held:
                    raise _wider(
                        f"{token.principal_type} {shown(principal_id)} has {AccessLevel(given).name} on {resource}, "
                        f"and you have {AccessLevel(held).name}"
                    )


def _representative(token: ApiToken) -> str:
    """Return the principal's id, or one of its type when the token is for several."""
    if token.principal_type == _USER or SEPARATOR in token.principal_id:
        return token.principal_id
    return _REPRESENTATIVES[token.principal_type]


def _beyond(session: Session, patterns: Sequence[str]) -> str | None:
    """Return a pattern that a session's credentials do not reach, or None."""
    for limit in session.accepted.workspace_limits:
        if (beyond := contained(patterns, limit)) is not None:
            return beyond
    return None


def token_info(token: ApiToken) -> pb.TokenInfo:
    """Return what clients are told of a token; times are seconds."""
    return pb.TokenInfo(
        id=token.token_id,
        name=token.name,
        principal_type=token.principal_type,
        workspace_patterns=token.workspace_patterns,
        scopes=token.scopes,
        created_by=token.principal_id,
        expires_at=token.expires_ms // 1000,
        last_used_at=token.last_used_ms // 1000,
        revoked=bool(token.revoked_ms),
        revoked_at=token.revoked_ms // 1000,
        created_at=token.created_ms // 1000,
        updated_at=max(token.updated_ms, token.created_ms) // 1000,
    )


def _unknown(token_id: str, caveat: str = "") -> RequestError:
    text = f"there is no API token with the id {shown(token_id)}"
    return RequestError(Code.INVALID_ARGUMENT, with_caveat(text, caveat))


def _wider(why: str) -> RequestError:
    return RequestError(Code.PERMISSION_DENIED, f"a token is no wider than its maker: {why}")


def _refused(op: pb.TokenOperation, error: RequestError) -> list[pb.DownstreamMessage]:
    response = pb.TokenResponse(request_id=op.request_id, error=str(error))
    return [pb.DownstreamMessage(token=response), error_response(error, op.request_id)]
