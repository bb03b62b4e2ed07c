"""Who and with whose rights: what most operations take, as small values.

A principal is a kind and an id. Where a method takes `Principal | str`, a string is an identity
text such as "ag::prod::planner::1", or "us::ann" for a user as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from aether_trio.client.operations.records import Wire, read, write
from aether_trio.model.access import AccessLevel
from aether_trio.model.identity import Identity
from aether_trio.wire.pb import aether_pb2 as pb

__all__ = ["AccessLevel", "Authorization", "Principal", "ResourceScope", "on_behalf_of"]

_USER = "us::"


@dataclass(frozen=True, slots=True)
class Principal:
    """A participant by kind ("agent", "user", ...) and id.

    The id is the bare user id of a user, and the identity text of others.
    """

    kind: Annotated[str, Wire("principal_type")]
    id: Annotated[str, Wire("principal_id")]

    @classmethod
    def of(cls, who: Principal | str) -> Principal:
        """The principal with this identity text; any window of a user is the user.

        Raises IdentityError (a ValueError).
        """
        if isinstance(who, Principal):
            return who
        if who.startswith(_USER):
            return cls("user", who.split("::")[1])
        return cls(Identity.parse(who).type_name, who)

    @classmethod
    def user(cls, user_id: str) -> Principal:
        """The user with this id."""
        return cls("user", user_id)

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceScope:
    """Resources of one type, by glob patterns on their ids."""

    resource_type: str
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """In whose name an operation is made. Without one it is made in the caller's own."""

    mode: Annotated[str, Wire("authority_mode")] = "on_behalf_of"
    subject: Principal | None = None
    grant_id: str = ""


def on_behalf_of(subject: Principal | str, *, grant: str) -> Authorization:
    """Act for `subject`, whose grant with this id the caller holds."""
    return Authorization(subject=Principal.of(subject), grant_id=grant)


def principal_ref(who: Principal | str | None) -> pb.PrincipalRef | None:
    """For a message field; None stays unset."""
    return None if who is None else write(Principal.of(who), pb.PrincipalRef())


def authorization_context(authorization: Authorization | None) -> pb.AuthorizationContext | None:
    """For a message field; None stays unset."""
    return None if authorization is None else write(authorization, pb.AuthorizationContext())


def read_authorization(message: pb.AuthorizationContext) -> Authorization:
    """As a receiver gets it."""
    return read(Authorization, message)
