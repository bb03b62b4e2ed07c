"""Who may do what: the Authorizer that services ask, and the rules behind it."""

from aether_trio.services.access.authorizer import (
    DIRECT,
    AccessDecision,
    AccessQuestion,
    Actor,
    Admin,
    Authority,
    Authorizer,
    Capability,
    GatewayActor,
    GrantMissing,
    Reach,
)

__all__ = [
    "DIRECT",
    "AccessDecision",
    "AccessQuestion",
    "Actor",
    "Admin",
    "Authority",
    "Authorizer",
    "Capability",
    "GatewayActor",
    "GrantMissing",
    "Reach",
]  # fmt: skip
