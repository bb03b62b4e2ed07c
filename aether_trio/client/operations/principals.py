"""Values that say who does an operation of a client, and with whose rights.

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
    """A participant by kind ("agent", "user", ...) and id: identity text, or user id."""

    kind: Annotated[str, Wire("principal_type")]
    id: Annotated[str, Wire("principal_id")]

    @classmethod
    def of(cls, who: Principal | str) -> Principal:
        """Return an identity's principal; a window's is the user. Raises IdentityError."""
        if isinstance(who, Principal):
            return who
        if who.startswith(_USER):
            return cls("user", who.split("::")[1])
        return cls(Identity.parse(who).type_name, who)

    @classmethod
    def user(cls, user_id: str) -> Principal:
        """Return the principal of a user."""
        return cls("user", user_id)

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceScope:
    """Resources of one type, chosen by glob patterns on their ids."""

    resource_type: str
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """For whom an operation is done, and by which grant; by default for the caller."""

    mode: Annotated[str, Wire("authority_mode")] = "on_behalf_of"
    subject: Principal | None = None
    grant_id: str = ""


def on_behalf_of(subject: Principal | str, *, grant: str) -> Authorization:
    """Return the authorization to act for `subject` by a grant that the caller holds."""
    return Authorization(subject=Principal.of(subject), grant_id=grant)


def principal_ref(who: Principal | str | None) -> pb.PrincipalRef | None:
    """Convert a principal to its protobuf message; None stays None."""
    return None if who is None else write(Principal.of(who), pb.PrincipalRef())


def authorization_context(authorization: Authorization | None) -> pb.AuthorizationContext | None:
    """Convert an authorization to its protobuf message; None stays None."""
    return None if authorization is None else write(authorization, pb.AuthorizationContext())


def read_authorization(message: pb.AuthorizationContext) -> Authorization:
    """Convert a protobuf AuthorizationContext to an Authorization."""
    return read(Authorization, message)
