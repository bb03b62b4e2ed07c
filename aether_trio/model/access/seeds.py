"""The rules of a new database: "open" for development, "closed" for serving.

Seeds are rules like others: `aether access` lists and removes them. The workflow engine and the
orchestrators administer a gateway by seeds, and so do the members of the role "administrators".

* open: the fallbacks of the reference gateway (security.md 2.5), and what it allows where no
  access service is configured: messages to users, services and bridges, services and bridges in all
  workspaces, keys in the scopes "global" and "workspace".
* closed: a participant's own workspace, by the rule "own", and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from aether_trio.model.access.levels import AccessLevel

OPEN: Final = "open"
CLOSED: Final = "closed"
SYSTEM: Final = "_system"
"""The principal in whose name seeds are granted."""
OWN_RULE: Final = "own"
"""The id of the rule by which a participant may use its own workspace."""
ADMINISTRATORS: Final = "administrators"
FIRST_ADMINISTRATOR: Final = ("user", "admin")


class SeedRule(NamedTuple):
    """A rule of a new database."""

    rule_id: str
    principal_type: str
    principal_id: str
    resource_type: str
    resource_id: str
    level: AccessLevel
    reason: str


class Seeds(NamedTuple):
    """The rules, fallbacks, role members of a new database."""

    rules: tuple[SeedRule, ...]
    fallbacks: Mapping[str, AccessLevel]
    administrators: tuple[tuple[str, str], ...]


_EVERYTHING: Final = (
    ("workspace", "*"),
    ("agent", "*"),
    ("task", "*"),
    ("user", "*"),
    ("session", "*"),
    ("topic", "*"),
    ("kv_key", "*"),
    ("kv_scope", "*"),
    ("kv_scope", "*/*"),
    ("service_impl", "*"),
    ("admin", "admin/*"),
    ("capability", "capability/*"),
    ("capability", "capability/*/*"),
    ("capability", "capability/*/*/*"),
)
"""Patterns of all resources: a star does not match a slash."""

_SYSTEM: Final = (
    ("workflow_engine", "wfe::*"),
    ("orchestrator", "orc::*"),
)


def _all_rights(prefix: str, principal_type: str, principal_id: str, level: AccessLevel, reason: str) -> list[SeedRule]:
    return [
        SeedRule(f"{prefix}-{number}", principal_type, principal_id, resource_type, resource_id, level, reason)
        for number, (resource_type, resource_id) in enumerate(_EVERYTHING, 1)
    ]


def _common() -> list[SeedRule]:
    rules = _all_rights(
        "administrators", "role", ADMINISTRATORS, AccessLevel.SUPERADMIN, "members of this role administer the gateway"
    )
    for principal_type, pattern in _SYSTEM:
        rules += _all_rights(
            principal_type, principal_type, pattern, AccessLevel.ADMIN, f"{principal_type}: administers the gateway"
        )
    return rules


_KINDS: Final = ("user", "agent", "task", "service", "bridge")
_OPEN_FALLBACKS: Final[Mapping[str, AccessLevel]] = {
    # The reference's.
    **dict.fromkeys(
        ("user_workspace", "agent_workspace", "task_workspace", "user_agent", "agent_agent", "global_read",
         "orchestrator_system"),
        AccessLevel.READWRITE,
    ),
    **dict.fromkeys(("user_kv_scope", "agent_kv_scope", "task_kv_scope", "service_kv_scope"), AccessLevel.NONE),
    # Messages to users, services and bridges, and the workspaces in which these answer.
    **dict.fromkeys(("service_workspace", "bridge_workspace", "metrics_bridge_workspace"), AccessLevel.READWRITE),
    **{f"{kind}_{resource}": AccessLevel.READWRITE for kind in _KINDS for resource in ("user", "service_impl", "topic")},
}  # fmt: skip
_OPEN_KEYS: Final = ("_any_agent", "_any_task", "_any_service")
_OPEN_CAPABILITIES: Final = (
    ("capability/event_broadcast", AccessLevel.READWRITE),
    ("capability/metric_broadcast", AccessLevel.READWRITE),
    ("capability/audit_submit", AccessLevel.READ),
)
"""What participants may do beyond their own workspace where all may use every workspace."""


def open_seeds() -> Seeds:
    """Return the seeds with which every participant may use every workspace."""
    rules = _common()
    for principal_id in _OPEN_KEYS:
        for scope in ("global", "workspace"):
            rules.append(
                SeedRule(
                    f"{principal_id.removeprefix('_')}-{scope}",
                    "wildcard",
                    principal_id,
                    "kv_scope",
                    scope,
                    AccessLevel.READWRITE,
                    f"all may use keys in the scope {scope}",
                )
            )
    rules.append(
        SeedRule(
            "users-agents",
            "user",
            "*",  # a pattern, so that it does not outvote the rules of administrators
            "admin",
            "admin/agents",
            AccessLevel.READ,
            "all users may see which agents can be started",
        )
    )
    for principal_type, principal_id in (*(("wildcard", one) for one in _OPEN_KEYS), ("bridge", "br::*")):
        for capability, level in _OPEN_CAPABILITIES:
            name = capability.partition("/")[2]
            rule_id = f"{principal_id.strip('_').removesuffix('::*')}-{name}"
            reason = f"all may {name.replace('_', ' ')} in every workspace"
            rules.append(SeedRule(rule_id, principal_type, principal_id, "capability", capability, level, reason))
    return Seeds(tuple(rules), _OPEN_FALLBACKS, (FIRST_ADMINISTRATOR,))


def closed_seeds() -> Seeds:
    """Return the seeds with which a participant may use its own workspace alone."""
    own = SeedRule(
        OWN_RULE,
        "wildcard",
        "_own_workspace",
        "workspace",
        "_own",
        AccessLevel.READWRITE,
        "a participant may use the workspace that it is in",
    )
    return Seeds((*_common(), own), {}, (FIRST_ADMINISTRATOR,))


def seeds(name: str) -> Seeds:
    """Return the seeds of this name, "open" or "closed"."""
    return open_seeds() if name == OPEN else closed_seeds()
