"""`agent.tokens`: manages API tokens, with which other participants connect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.records import Seconds, read
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.TokenOperation


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An API token without its secret."""

    id: str
    name: str
    principal_type: str
    workspace_patterns: tuple[str, ...]
    scopes: tuple[str, ...]
    created_by: str
    """The principal id that a holder connects as."""
    expires_at: Seconds
    last_used_at: Seconds
    revoked: bool
    revoked_at: Seconds
    created_at: Seconds
    updated_at: Seconds


@dataclass(frozen=True, slots=True)
class NewToken:
    """A new API token and its secret, which is shown this once."""

    token: Token
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenPage:
    """A page of API tokens, and how many there are in all."""

    tokens: tuple[Token, ...]
    total: int


class Tokens(Namespace):
    """Manages API tokens, with which other participants may connect."""

    async def create(
        self,
        name: str,
        *,
        principal_type: str = "",
        principal_id: str = "",
        workspace_patterns: Sequence[str] = (),
        scopes: Sequence[str] = (),
        expires_in_hours: int = 0,
    ) -> NewToken:
        """Create an API token, which expires never if `expires_in_hours` is 0.

        A holder connects as `principal_id`; no patterns is every workspace; no scopes is "connect".
        """
        request = pb.TokenCreateRequest(
            name=name,
            principal_type=principal_type,
            workspace_patterns=workspace_patterns,
            scopes=scopes,
            expires_in_hours=expires_in_hours,
            created_by=principal_id,
        )
        answer = await self._do(_Op(op=_Op.CREATE, create_request=request))
        return NewToken(read(Token, answer.created_token), answer.plaintext_token)

    async def list(self, *, include_revoked: bool = False, limit: int = 0, offset: int = 0) -> TokenPage:
        """List the API tokens, newest first."""
        wanted = pb.TokenFilter(limit=limit, offset=offset, include_revoked=include_revoked)
        answer = await self._do(_Op(op=_Op.LIST, filter=wanted))
        return TokenPage(tuple(read(Token, one) for one in answer.tokens), answer.total_count)

    async def get(self, token_id: str) -> Token:
        """Return one API token. Raises Refused if there is none."""
        return read(Token, (await self._do(_Op(op=_Op.GET, token_id=token_id))).token)

    async def revoke(self, token_id: str) -> str:
        """Revoke an API token, and keep the record of it; return the gateway's words.

        They name the nodes that have not confirmed it, if there are any.
        """
        return (await self._do(_Op(op=_Op.REVOKE, token_id=token_id))).message

    async def delete(self, token_id: str) -> str:
        """Delete an API token, and the record of it; return the gateway's words."""
        return (await self._do(_Op(op=_Op.DELETE, token_id=token_id))).message

    async def _do(self, op: pb.TokenOperation) -> pb.TokenResponse:
        answer: pb.TokenResponse = await self._ask("token_op", op)
        return answer
