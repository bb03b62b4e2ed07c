"""Passes a sender's delegated authority on to the receiver of a message.

A message in the name of another principal may ask for it: the receiver gets a child of the sender's
grant, inherited or narrowed, and the message says so (`forwarded_authorization`). Only the identity
that the message goes to may use it, so the target is one agent or one service instance. The grant
is written before the message; a message that may not go to its target, or whose checked access is
not allowed, asks for none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aether_trio.model.access.grants import Audience, GrantError, GrantScope, GrantTerms, Lineage, PrincipalKey
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import Identity
from aether_trio.model.text import TextError, check_text
from aether_trio.model.topics import Topic, TopicKind
from aether_trio.services.access.authorizer import Authority
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.services.authority.fields import level_of, ref, scope_of
from aether_trio.services.authority.grants import GrantService, request_error
from aether_trio.services.authority.known_grants import UsableGrant
from aether_trio.session.session import Session
from aether_trio.storage.base import StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.wire.pb import aether_pb2 as pb

Wish = pb.AuthorityContinuationRequest

MAX_BINDING_BYTES: Final = 256
_RECEIVERS: Final = frozenset({TopicKind.AGENT, TopicKind.SERVICE})


@dataclass(frozen=True, slots=True)
class Continuations:
    """What the read loop prepares for a message: its grant, and its receiver's."""

    authorizer: RuleAuthorizer
    grants: GrantService

    async def prepare_authority(self, actor: Session, context: pb.AuthorizationContext) -> None:
        """Read the grant that a message names into memory; raise nothing."""
        await self.authorizer.prepare_authority(actor, context)

    async def forward(self, actor: Session, message: pb.SendMessage, target: Topic) -> pb.ForwardedAuthorization:
        """Make the grant by which the receiver of a message goes on. Raises RequestError."""
        wish = message.authority_continuation
        try:
            authority = await self.authorizer.authority(actor, message.authorization)
            if message.HasField("checked_access"):
                self.authorizer.check_condition(actor, message.checked_access, authority, target.text)
            lineage = _lineage(authority)
            receiver = _receiver(target)
            made = await self.grants.derive_for_receiver(actor, lineage, receiver, self._terms(lineage, receiver, wish))
        except GrantError as error:
            raise request_error(error) from None
        except TextError as error:
            raise RequestError(Code.INVALID_ARGUMENT, f"authority_continuation: {error}") from None
        except StorageUnavailable as error:
            raise outage(error) from None
        grant = made[-1]
        return pb.ForwardedAuthorization(
            authorization=pb.AuthorizationContext(
                authority_mode="on_behalf_of", subject=ref(grant.subject), grant_id=grant.grant_id
            ),
            root_grant_id=made[0].grant_id,
            expires_at_ms=grant.terms.expires_ms,
            delivery_target=target.text,
            binding_id=check_text(wish.binding_id, "binding_id", MAX_BINDING_BYTES),
            scope=_scope_message(grant.terms.scope),
        )

    @staticmethod
    def _terms(lineage: Lineage, receiver: PrincipalKey, wish: pb.AuthorityContinuationRequest) -> GrantTerms:
        """Return the terms of the receiver's grant. Raises RequestError, TextError."""
        check_text(wish.binding_id, "binding_id", MAX_BINDING_BYTES)
        above = lineage[-1].terms
        scope = above.scope
        if wish.scope_mode == Wish.SCOPE_MODE_ATTENUATE:
            given = wish.scope
            level = level_of(given.max_access_level) or scope.level
            scope = scope.narrowed(
                scope_of(min(level, scope.level), given.workspace_scope, given.resource_scope, given.operation_scope)
            )
        elif wish.scope_mode != Wish.SCOPE_MODE_INHERIT_PARENT:
            raise RequestError(
                Code.INVALID_ARGUMENT, "authority_continuation.scope_mode is INHERIT_PARENT or ATTENUATE"
            )
        elif wish.HasField("scope"):
            raise RequestError(Code.INVALID_ARGUMENT, "authority_continuation.scope goes with ATTENUATE")
        return GrantTerms(
            scope,
            Audience(*receiver),
            above.expires_ms,
            above.renewable_ms,
            max(above.hops - 1, 0),
            reason="continuation of a message",
        )


def _lineage(authority: Authority) -> Lineage:
    grant = authority.grant
    if not isinstance(grant, UsableGrant):
        raise RequestError(Code.INVALID_ARGUMENT, "authority_continuation needs a message that is sent on_behalf_of")
    return grant.lineage


def _receiver(target: Topic) -> PrincipalKey:
    if target.kind not in _RECEIVERS or (target.kind is TopicKind.SERVICE and len(target.parts) == 1):
        raise RequestError(
            Code.INVALID_ARGUMENT, f"authority_continuation goes to one agent or service instance, not to {target.text}"
        )
    return PrincipalKey.of(Identity.parse(target.text, strict=False))


def _scope_message(scope: GrantScope) -> pb.AuthorityContinuationScope:
    return pb.AuthorityContinuationScope(
        workspace_scope=scope.workspaces,
        resource_scope=[
            pb.ACLAuthorityGrantResourceScopeEntry(resource_type=one.resource_type, patterns=one.patterns)
            for one in scope.resources
        ],
        operation_scope=scope.operations,
        max_access_level=int(scope.level),
    )
