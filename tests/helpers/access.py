"""Authorizers with rules in memory, for tests of single services."""

from __future__ import annotations

from itertools import count
from typing import Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.rules import WILDCARDS, Rule
from aether_trio.services.access.authorizer import NoDecisions, NoGrants
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.services.access.seeding import seeded_index
from tests.helpers.clocks import ManualClock

_numbers = count(1)

KINDS: Final = ("user", "agent", "task", "service", "bridge", "orchestrator", "workflow_engine", "metrics_bridge")


def authorizer(seeds: str = "open", *granted: str, shared_keys: bool = False) -> RuleAuthorizer:
    """The rules of a new database; `granted` are capabilities that all have at ADMIN.

    `shared_keys`: all may use all shared keys.
    """
    index = seeded_index(seeds)
    for capability in granted:
        for kind in KINDS:
            put(index, kind, "*", "capability", str(capability), AccessLevel.ADMIN)
    if shared_keys:
        for wildcard in WILDCARDS.values():
            put(index, "wildcard", wildcard, "kv_scope", "*", AccessLevel.READWRITE)
        for kind in KINDS:
            index.set_fallback(f"{kind}_kv_scope", AccessLevel.READWRITE)
    return RuleAuthorizer(index, ManualClock(), NoGrants(), NoDecisions())


def put(
    index: AccessIndex, principal_type: str, principal_id: str, resource_type: str, resource_id: str, level: AccessLevel
) -> str:
    """Add a rule; return its id."""
    rule_id = f"test-{next(_numbers)}"
    index.put_rule(Rule(rule_id, principal_type, principal_id, resource_type, resource_id, level))
    return rule_id
