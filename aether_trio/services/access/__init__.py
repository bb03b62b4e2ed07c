"""Who may do what: the Authorizer that services ask, and the rules behind it."""

from aether_trio.services.access.authorizer import (
    ALLOWED,
    DIRECT,
    EVERYWHERE,
    AccessDecision,
    Admin,
    Authority,
    Authorizer,
    Capability,
    DevAuthorizer,
    Reach,
)

__all__ = [
    "ALLOWED", "DIRECT", "EVERYWHERE", "AccessDecision", "Admin", "Authority", "Authorizer", "Capability",
    "DevAuthorizer", "Reach",
]  # fmt: skip
