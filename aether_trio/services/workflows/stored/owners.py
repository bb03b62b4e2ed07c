"""Says what the owner of a definition may do, whenever something acts for it."""

from __future__ import annotations

from collections.abc import Callable

from aether_trio.model.access import AccessLevel
from aether_trio.model.identity import Identity, IdentityError
from aether_trio.services.access.authorizer import AccessQuestion, GatewayActor
from aether_trio.services.access.rule_authorizer import RuleAuthorizer

OPERATION = "workflow_act"
"""The operation in access rules and decisions."""


def owner_may(authorizer: RuleAuthorizer) -> Callable[[str, str, AccessLevel, int], str]:
    """Return what says why an owner may not act in a workspace at a level.

    It is asked with the time (Unix ms), and returns "" if the owner may. The credential with which
    the owner had connected counts for nothing here, nor does the engine's own power. Any thread: it
    reads what is in memory.
    """

    def problem(owner: str, workspace: str, level: AccessLevel, now_ms: int) -> str:
        try:
            identity = Identity.parse(owner, strict=False)
        except IdentityError as error:
            return f"the owner {owner}: {error}"
        access = AccessQuestion(OPERATION, "workspace", workspace, workspace, level)
        decision = authorizer.at(now_ms).decide(GatewayActor(identity), access)
        return "" if decision.allowed else f"the owner {owner} may not act in workspace {workspace}: {decision.reason}"

    return problem


def owner_may_read_key(authorizer: RuleAuthorizer) -> Callable[[str, str, str, int], str]:
    """Return what says why an owner may not read a key of a workspace, "" if it may.

    It is asked with (owner, workspace, key, Unix ms). Any thread.
    """

    def problem(owner: str, workspace: str, key: str, now_ms: int) -> str:
        try:
            identity = Identity.parse(owner, strict=False)
        except IdentityError as error:
            return f"the owner {owner}: {error}"
        decision = authorizer.at(now_ms).decide_key(GatewayActor(identity), workspace, key)
        return "" if decision.allowed else f"the owner {owner} may not read the key: {decision.reason}"

    return problem
