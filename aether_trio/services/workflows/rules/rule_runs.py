"""Does the actions of rules, at once or as their flow control lets them begin.

    an event that a rule takes ─▶ flow control (flow/) ─▶ its action, over one event or several

The run of a rule is the task that its action makes, and has ended when that has; other actions end
at once. What waits is an item with its event. A run whose action is refused is a dead letter for
each of its events, which arrives anew when it is retried.
"""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import structlog

from aether_trio.model.evaluation_meter import Spend, spending
from aether_trio.model.tasks import Move
from aether_trio.model.tasks.task import WorkflowPart
from aether_trio.model.text import shown
from aether_trio.model.workflows.definition import ActionType, EvaluationError, Json, RuleDefinition
from aether_trio.model.workflows.flow_control import DropReason
from aether_trio.model.workflows.hops import TooManyHops, extend
from aether_trio.model.workflows.reading import DefinitionErrors
from aether_trio.model.workflows.records import read_action
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.actions import event_dead_letters
from aether_trio.services.workflows.actions.event_dead_letters import RULE_FAILED, FailedReaction
from aether_trio.services.workflows.actions.performer import ActionRefused, Actions, Cause, dated_id, values_of
from aether_trio.services.workflows.documents.tools import TOOLS
from aether_trio.services.workflows.events.taken_events import TakenEvent
from aether_trio.services.workflows.flow import flow_rows
from aether_trio.services.workflows.flow.admission import (
    BEGIN_PAGE,
    DROPPED,
    Admission,
    FlowEffect,
    FlowError,
    FlowStart,
    RunBegins,
    begin_later,
    compute_keys,
)
from aether_trio.services.workflows.flow.flow_rows import FlowOwner
from aether_trio.services.workflows.joins.arrivals import JoinArrival, JoinRefused, Joins
from aether_trio.services.workflows.requests.reach import reaches, workspaces_of_action
from aether_trio.services.workflows.rules.compiled_rules import CompiledRules
from aether_trio.services.workflows.rules.known import KnownRule, known_rule
from aether_trio.services.workflows.stored import rule_rows
from aether_trio.services.workflows.stored.rule_rows import StoredRule
from aether_trio.storage.base import Program

logger = structlog.get_logger("aether.workflows")

KEPT_RULES: Final = 256
"""Compiled rules in memory, of those whose events wait."""


class ReactionRefused(Exception):
    """A rule or trigger cannot act; the text says why.

    `error_type` is a word for programs. `hidden`: its owner may not read the event.
    """

    def __init__(self, message: str, error_type: str, *, hidden: bool = False) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.hidden = hidden


@dataclass(frozen=True, slots=True)
class RuleEvent:
    """An event that a rule acts on, and the name of it that matched.

    `key` tells the act from all others.
    """

    event: TakenEvent
    name: str
    key: str

    @property
    def env(self) -> dict[str, Json]:
        """What the rule is computed over."""
        return environment_of(self.event, self.name)


def environment_of(event: TakenEvent, name: str) -> dict[str, Json]:
    """Return what conditions and destinations are computed over."""
    source = {"agent": event.agent, "workspace": event.workspace, "event": name, "principal": event.principal}
    return {"input": event.data, "source": source}


class RuleRuns:
    """Acts for rules; all methods but the constructor are programs."""

    def __init__(self, actions: Actions, joins: Joins, admission: Admission) -> None:
        self._actions = actions
        self._joins = joins
        self._admission = admission
        self._definitions = CompiledRules(KEPT_RULES)

    def arrive(
        self, tx: Transaction, rule: KnownRule, definition: RuleDefinition, arrived: RuleEvent, spend: Spend
    ) -> Program[None]:
        """Act on an event, or let that wait. Raises ReactionRefused."""
        flow, now_ms = definition.flow, tx.context.now_ms
        if not flow.gates:
            yield from self._act(tx, rule, definition, (arrived,), "", spend)
            return
        event = arrived.event
        run_id = dated_id(now_ms, arrived.key)
        owner = FlowOwner(flow_rows.RULE, event.workspace, definition.workspace, str(rule.id))
        try:
            keys = spending(partial(compute_keys, flow, arrived.env, now_ms), spend)
            start = FlowStart(run_id, owner, flow, keys, _encode(arrived), keeps_data=True)
            admitted = yield from self._admission.arrive(tx, start)
        except FlowError as error:
            raise ReactionRefused(str(error), "FLOW") from None
        if admitted.dropped is DropReason.FULL:
            raise ReactionRefused(DROPPED[DropReason.FULL], "FLOW_FULL")
        if admitted.dropped is not None:
            logger.debug("an event was dropped by flow control", rule=rule.name, reason=admitted.dropped.value)
        if admitted.begins:
            try:
                goes_on = yield from self._act(tx, rule, definition, (arrived,), run_id, spend)
            except ReactionRefused:
                yield from self.perform_flow(tx, admitted.effects)
                yield from self.ended(tx, run_id)
                raise
            if not goes_on:
                yield from self.ended(tx, run_id)
        yield from self.perform_flow(tx, admitted.effects)

    def ended(self, tx: Transaction, run_id: str) -> Program[None]:
        """Let others begin as a run has ended."""
        yield from self.perform_flow(tx, (yield from self._admission.ended(tx, run_id)))

    def stop(self, tx: Transaction, run_id: str, reason: str) -> Program[None]:
        """Cancel the task of a run, or forget one that has not begun."""
        task = yield from task_rows.load(run_id)
        if task is None:
            logger.info("events of a rule are dropped by flow control", run=run_id, reason=reason)
            yield from self.ended(tx, run_id)
        elif not task.is_final:
            tx.charge(moved=1)
            yield from tx.apply(task, Move.CANCEL, tx.facts(reason=reason))

    def perform_flow(self, tx: Transaction, effects: Sequence[FlowEffect]) -> Program[None]:
        """Let runs begin, or cancel them, as flow control says."""
        pending, begun = deque(effects), 0
        while pending:
            effect = pending.popleft()
            if not isinstance(effect, RunBegins):
                yield from self.stop(tx, effect.run_id, f"{DROPPED[effect.reason]} (flow control)")
            elif begun >= BEGIN_PAGE:
                yield from begin_later(tx, flow_rows.RULE, effect.run_id)
            else:
                begun += 1
                if not (yield from self._begin(tx, effect.run_id)):
                    pending += yield from self._admission.ended(tx, effect.run_id)

    def _begin(self, tx: Transaction, run_id: str) -> Program[bool]:
        """Act for a run whose turn has come; return whether it goes on."""
        run = yield from flow_rows.load_run(run_id)
        found = None if run is None else (yield from flow_rows.load_owner(run.owner))
        if found is None:
            return False
        owner, _ = found
        stored = yield from rule_rows.load(int(owner.id))
        if stored is None or not stored.active:
            logger.info("events of a rule are dropped: it is not active any more", rule=owner.id, run=run_id)
            return False
        rule = known_rule(stored)
        events = tuple(_decode(data) for _, data in (yield from flow_rows.items_of(run_id)))
        try:
            return (yield from self._act(tx, rule, self._definition(stored), events, run_id))
        except ReactionRefused as error:
            for one in events:
                yield from bury(tx, rule, one, error)
            return False

    def _definition(self, stored: StoredRule) -> RuleDefinition:
        """Compile a rule. Raises ReactionRefused, and NotCompiledError."""
        try:
            return self._definitions.compiled(stored)
        except DefinitionErrors as error:
            raise ReactionRefused(f"this release does not understand the rule: {error}", "BAD_DEFINITION") from None

    def _act(
        self,
        tx: Transaction,
        rule: KnownRule,
        definition: RuleDefinition,
        events: Sequence[RuleEvent],
        run_id: str,
        spend: Spend = lambda _: None,
    ) -> Program[bool]:
        """Do the action of a rule; return whether a task goes on. Raises ReactionRefused."""
        last, now_ms = events[-1], tx.context.now_ms
        event, moment = last.event, datetime.fromtimestamp(now_ms / 1000, UTC)
        env: dict[str, Json] = {**last.env, "events": [one.env for one in events]}
        key = last.key if len(events) == 1 else f"{last.key}\0{len(events)}"
        try:
            document = spending(partial(definition.destination.evaluate, env, now=lambda: moment), spend)
            action = read_action(document, TOOLS, f"rule '{definition.name}'")
            longest = max((one.event.hops for one in events), key=len)
            hops = extend(longest, "rule", definition.name)
            for workspace in workspaces_of_action(action, event.workspace):
                if not reaches(definition.reach, workspace):
                    text = f"the credential that wrote the rule does not reach workspace {shown(workspace)}"
                    raise ReactionRefused(text, "PERMISSION_DENIED")
            if action.type is ActionType.JOIN:
                assert action.join is not None
                arrival = JoinArrival(
                    owner=rule.owner,
                    workspace=action.workspace or event.workspace,
                    event=last.name,
                    env=last.env,
                    hops=hops,
                    key=key,
                )
                yield from self._joins.arrived(tx, action.join, arrival)
                return False
            values = values_of(action, {}, now_ms)
        except EvaluationError as error:
            raise ReactionRefused(str(error), "EXPRESSION") from None
        except TooManyHops as error:
            raise ReactionRefused(str(error), "TOO_MANY_HOPS") from None
        except JoinRefused as error:
            raise ReactionRefused(str(error), error.error_type) from None
        cause = Cause(key, rule.owner, event.workspace, hops, task_id=run_id)
        part = WorkflowPart.FLOW if run_id else WorkflowPart.NONE
        try:
            return (yield from self._actions.perform(tx, action, values, cause, part=part)) is not None
        except ActionRefused as error:
            raise ReactionRefused(str(error), error.error_type) from None


def bury(tx: Transaction, rule: KnownRule, one: RuleEvent, error: ReactionRefused) -> Program[None]:
    """Make a dead letter of an event on which a rule could not act."""
    owner = "" if error.hidden else rule.owner
    failed = FailedReaction(RULE_FAILED, one.name, str(error), error.error_type, str(rule.id), rule.name, owner)
    yield from event_dead_letters.bury(tx, one.event, failed)


def _encode(one: RuleEvent) -> bytes:
    """Return an event as an item has it."""
    payload = base64.b64encode(one.event.payload).decode()
    kept: dict[str, Any] = {**event_dead_letters.encode_event(one.event), "payload": payload}
    return json.dumps({"event": kept, "name": one.name, "key": one.key}).encode()


def _decode(data: bytes) -> RuleEvent:
    found = json.loads(data)
    kept = found["event"]
    event = event_dead_letters.decode_event(kept, base64.b64decode(kept["payload"]))
    return RuleEvent(event, found["name"], found["key"])
