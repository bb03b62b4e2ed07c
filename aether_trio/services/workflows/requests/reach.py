"""Keeps what is defined with a credential within the workspaces that it reaches.

What a definition does later is decided by the rights of its owner, not by the credential with which
that had connected. So where it acts is checked when it is written. Only a rule computes that from
its events: the patterns of the credential are kept with it, and are compared whenever it acts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Final

from aether_trio.model.access.patterns import Pattern, compile_pattern
from aether_trio.model.workflows.definition import Action, Definition, Graph, MachineDefinition, RuleDefinition
from aether_trio.services.workflows.documents.reader import identity_of
from aether_trio.services.workflows.requests.asked import WorkspaceAccess
from aether_trio.session.session import Session

EVERYTHING: Final = ""
"""The reach of a credential for all workspaces; others are JSON of limits, each of patterns."""
KEPT: Final = 256


async def within_reach(access: WorkspaceAccess, session: Session, definition: Definition) -> Definition:
    """Check that a participant may act where a definition does.

    Return it, a rule with the reach of the participant. Raises OperationError.
    """
    for workspace in workspaces_of(definition):
        await access.need(session, workspace)
    if isinstance(definition, RuleDefinition):
        return replace(definition, reach=reach_of(session))
    return definition


def workspaces_of(definition: Definition) -> list[str]:
    """Return the workspaces in which a definition acts: its, and those of its actions."""
    _, workspace, _ = identity_of(definition)
    if isinstance(definition, RuleDefinition):
        return list(dict.fromkeys((workspace, *definition.workspaces)))
    return list(dict.fromkeys((workspace, *(one.workspace for one in _actions_of(definition) if one.workspace))))


def _actions_of(definition: Definition) -> Iterator[Action]:
    if isinstance(definition, Graph):
        for step in definition.steps.values():
            yield from (one for one in (step.work, step.compensate) if isinstance(one, Action))
        return
    if isinstance(definition, MachineDefinition):
        for state in definition.states.values():
            taken = (one.action for transitions in state.on.values() for one in transitions)
            yield from (one for one in (state.entry_action, state.exit_action, *taken) if one is not None)
        return
    action = getattr(definition, "action", None)
    if isinstance(action, Action):
        yield action


def reach_of(session: Session) -> str:
    """Return which workspaces the credential of a session reaches."""
    if session.reaches_everything:
        return EVERYTHING
    return json.dumps([list(limit) for limit in session.accepted.workspace_limits])


def reaches(reach: str, workspace: str) -> bool:
    """Return whether a kept reach has a workspace."""
    return all(any(one.matches(workspace) for one in limit) for limit in _limits(reach))


@lru_cache(KEPT)
def _limits(reach: str) -> tuple[tuple[Pattern, ...], ...]:
    if reach == EVERYTHING:
        return ()
    return tuple(tuple(map(compile_pattern, limit)) for limit in json.loads(reach))


def workspaces_of_action(action: Action, usual: str) -> Iterator[str]:
    """Yield where an action acts, and what a join does in the end."""
    yield action.workspace or usual
    if action.join is not None:
        ends = (action.join.on_complete, action.join.on_timeout)
        yield from (one.workspace for one in ends if one is not None and one.workspace)
