"""What follows events: acts of rules, starts of workflows, ends of waits, moves.

For each name of an event, independently: rules by priority, triggers of workflows, waits of
executions, then machines with it in their `bus`. What cannot be done is a dead letter, and the
others go on. Everything happens in the transaction that moves the cursor behind the event
(event_handler.py), or in one that goes on with an event that starts much.

A rule, workflow or machine of workspace * takes events of the workspaces that its owner may read.
One of a certain workspace takes the events of that one; if its owner may not read it any more, the
event is a dead letter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Final, NamedTuple

import structlog

from aether_trio.model.access import AccessLevel
from aether_trio.model.evaluation_meter import spending
from aether_trio.model.tasks import TaskRow
from aether_trio.model.workflows.definition import Condition, EvaluationError, Json
from aether_trio.model.workflows.hops import TooManyHops, extend
from aether_trio.model.workflows.reading import DefinitionErrors
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.actions import event_dead_letters
from aether_trio.services.workflows.actions.event_dead_letters import (
    EVENT_FAILED,
    MACHINE_FAILED,
    RULE_FAILED,
    TRIGGER_FAILED,
    FailedReaction,
)
from aether_trio.services.workflows.actions.performer import Actions, dated_id
from aether_trio.services.workflows.events.taken_events import KEYS, TakenEvent
from aether_trio.services.workflows.executions.advancing import Executions
from aether_trio.services.workflows.executions.new_executions import Begin, StartDropped, StartRefused
from aether_trio.services.workflows.executions.waits import WaitPosition
from aether_trio.services.workflows.machines.moves import BusArrival, MachineError, Machines
from aether_trio.services.workflows.rules import rule_runs
from aether_trio.services.workflows.rules.known import (
    KnownMachine,
    KnownMachines,
    KnownRule,
    KnownRules,
    KnownTrigger,
    KnownTriggers,
    known_rule,
    trigger_of,
)
from aether_trio.services.workflows.rules.rule_runs import ReactionRefused, RuleEvent, RuleRuns, environment_of
from aether_trio.services.workflows.stored import definitions, machine_rows, rule_rows
from aether_trio.services.workflows.stored.definitions import EVERYWHERE
from aether_trio.storage.base import Program

logger = structlog.get_logger("aether.workflows")

CONDITION_COST: Final = 1
ACTION_COST: Final = 10
TURN_COST: Final = 1_000
"""What a transaction does at most: 100 actions, or 1,000 conditions that do not hold.

What cannot be done counts like an action, as its dead letter is written.
"""
OPERATIONS_OF_COST: Final = 250
"""Operations of expressions that count as much as a condition itself."""
COMPILED_BYTES_OF_COST: Final = 32
"""Bytes of compiled documents that count as much as a condition itself."""
TIMER_COST: Final = TURN_COST // 10
"""What one timer does: many of them share a transaction."""


@dataclass(slots=True)
class Turn:
    """What one transaction has done for events, and what it knows of owners."""

    budget: int
    tx: Transaction
    cost: int = 0
    problems: dict[tuple[str, str], str] = field(default_factory=dict)
    """Why an owner may not read a workspace, by owner and workspace."""
    keys: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)
    """The keys by which executions wait, by workspace and event (executions/waits.py)."""

    def spend(self, operations: int) -> None:
        """Note that expressions have taken operations."""
        self.cost += operations // OPERATIONS_OF_COST

    @property
    def is_over(self) -> bool:
        """Whether the rest is for another transaction."""
        return self.cost >= self.budget or self.tx.is_full


class PendingReaction(NamedTuple):
    """What is left for an event.

    A rule by its id, a workflow by workspace/id, a machine by its workspace, id and the index of
    its `bus`, with spaces between. Of waits, the key is the number of the kept event, and behind
    which wait they are.
    """

    kind: str  # rule, workflow, wait or machine
    name: str
    key: str


class EventReactions:
    """Does what follows events; all methods but the constructor are programs."""

    def __init__(
        self,
        actions: Actions,
        executions: Executions,
        machines: Machines,
        runs: RuleRuns,
        may_read_key: Callable[[str, str, str, int], str],
    ) -> None:
        """`may_read_key` says why an owner may not read a key (stored/owners.py)."""
        self._may_read_key = may_read_key
        self._actions = actions
        self._executions = executions
        self._machines = machines
        self._runs = runs
        self.rules: Final = KnownRules()
        self.triggers: Final = KnownTriggers()
        self.machines: Final = KnownMachines(machines)

    def refresh(self) -> Program[None]:
        """Compare what is in memory with the tables. Raises NotLoadedError."""
        yield from self.rules.refresh()
        yield from self.triggers.refresh()
        yield from self.machines.refresh()

    def confirm(self) -> None:
        """Note that the transaction of the last `refresh` is committed."""
        self.rules.confirm()
        self.triggers.confirm()
        self.machines.confirm()

    def react(self, tx: Transaction, event: TakenEvent, turn: Turn) -> Program[list[PendingReaction]]:
        """Do what follows an event; return what is left when the turn is over."""
        left: list[PendingReaction] = []
        for name in event.names:
            env = environment_of(event, name)
            # Executions and machines take no keys, as their owners are not asked about each.
            of_key = event.source_topic.startswith(KEYS)
            number = 0 if of_key else (yield from self._keep(event, name, env, turn, tx.context.now_ms))
            for rule in self.rules.candidates(name, event.agent, event.workspace, env):
                if turn.is_over:
                    left.append(PendingReaction("rule", name, str(rule.id)))
                else:
                    yield from self._try_rule(tx, event, name, env, rule, turn)
            for known in self.triggers.candidates(name, event.agent, event.workspace, env):
                if turn.is_over:
                    left.append(PendingReaction("workflow", name, f"{known.stored.workspace} {known.stored.id}"))
                else:
                    yield from self._try_trigger(tx, event, name, env, known, turn)
            if number:
                waiting = yield from self._deliver(tx, number, WaitPosition(), turn)
                if waiting is not None:
                    left.append(PendingReaction("wait", name, f"{number}/{waiting.key}/{waiting.number}"))
            for machine in () if of_key else self.machines.candidates(name, event.agent, event.workspace, env):
                if turn.is_over:
                    left.append(PendingReaction("machine", name, _key_of(machine)))
                else:
                    yield from self._try_machine(tx, event, name, env, machine, turn)
        return left

    def go_on(
        self, tx: Transaction, event: TakenEvent, left: Sequence[PendingReaction], turn: Turn
    ) -> Program[Sequence[PendingReaction]]:
        """Do what is left for an event; return what is left then.

        What is deleted by then is passed over.
        """
        for number, (kind, name, key) in enumerate(left):
            if number and turn.is_over:
                return left[number:]
            env = environment_of(event, name)
            if kind == "rule":
                rule = yield from self._load_rule(int(key), event)
                if isinstance(rule, KnownRule):
                    yield from self._try_rule(tx, event, name, env, rule, turn)
            elif kind == "wait":
                kept, of, last = key.split("/")
                waiting = yield from self._deliver(tx, int(kept), WaitPosition(of, int(last)), turn)
                if waiting is not None:
                    return (
                        PendingReaction("wait", name, f"{kept}/{waiting.key}/{waiting.number}"),
                        *left[number + 1 :],
                    )
            elif kind == "machine":
                machine = yield from self._load_machine(name, key)
                if isinstance(machine, KnownMachine):
                    yield from self._try_machine(tx, event, name, env, machine, turn)
            else:
                known = yield from self._load_trigger(name, key)
                if isinstance(known, KnownTrigger):
                    yield from self._try_trigger(tx, event, name, env, known, turn)
        return ()

    def _keep(self, event: TakenEvent, name: str, env: dict[str, Json], turn: Turn, now_ms: int) -> Program[int]:
        """Keep an event for executions that may wait for it; return its number, or 0."""
        place = event.workspace, name
        if place not in turn.keys:
            turn.keys[place] = yield from self._executions.waits.keys(*place)
        keys = turn.keys[place]
        if not keys:
            return 0
        turn.cost += len(keys) * CONDITION_COST
        return (yield from self._executions.waits.keep(event.workspace, name, env, keys, now_ms))

    def _deliver(
        self, tx: Transaction, number: int, position: WaitPosition, turn: Turn
    ) -> Program[WaitPosition | None]:
        """Let a kept event reach open waits; return behind which the others are, if any."""
        kept = yield from self._executions.waits.kept(number)
        if kept is None:
            return None
        while True:
            limit = max((turn.budget - turn.cost) // ACTION_COST, 1)
            found = yield from self._executions.waits.waiting(number, position, limit)
            for place, wait in found:
                turn.cost += ACTION_COST
                yield from self._executions.event_arrived(tx, wait, kept)
                turn.keys.clear()  # what goes on may have started others
                position = place
                if turn.is_over:
                    return position
            if len(found) < limit:
                return None

    def poison(self, tx: Transaction, event: TakenEvent, turn: Turn) -> Program[None]:
        """Make a dead letter of an event that cannot be handled."""
        turn.cost += ACTION_COST
        yield from event_dead_letters.bury(tx, event, FailedReaction(EVENT_FAILED, "", event.reason, "BAD_EVENT"))

    def retry(self, tx: Transaction, task: TaskRow) -> Program[None]:
        """Act again for a dead letter, which is PENDING."""
        event, name, key = yield from event_dead_letters.read(task)
        problem, error_type = event.reason, "BAD_EVENT"
        if not problem:
            try:
                yield from self._again(tx, event, name, key, task)
            except ReactionRefused as error:
                problem, error_type = str(error), error.error_type
        yield from event_dead_letters.settle(tx, task, problem, error_type)

    def _again(self, tx: Transaction, event: TakenEvent, name: str, key: str, task: TaskRow) -> Program[None]:
        env, turn, again = environment_of(event, name), Turn(TURN_COST, tx), f"{task.task_id} {task.events}"
        if task.task_type == RULE_FAILED:
            rule = yield from self._load_rule(int(key), event)
            if isinstance(rule, str):
                raise ReactionRefused(rule, "NOT_FOUND")
            yield from self._act(tx, event, name, env, rule, turn, again)
        elif task.task_type == TRIGGER_FAILED:
            known = yield from self._load_trigger(name, key)
            if isinstance(known, str):
                raise ReactionRefused(known, "NOT_FOUND")
            yield from self._start(tx, event, name, env, known, turn, again)
        elif task.task_type == MACHINE_FAILED:
            machine = yield from self._load_machine(name, key)
            if isinstance(machine, str):
                raise ReactionRefused(machine, "NOT_FOUND")
            yield from self._move(tx, event, env, machine, turn, again)
        else:
            yield from event_dead_letters.append_again(tx, event, task)

    # -- rules -------------------------------------------------------------------------------------

    def _try_rule(
        self, tx: Transaction, event: TakenEvent, name: str, env: dict[str, Json], rule: KnownRule, turn: Turn
    ) -> Program[None]:
        try:
            yield from self._act(tx, event, name, env, rule, turn)
        except ReactionRefused as error:
            turn.cost += ACTION_COST
            yield from rule_runs.bury(tx, rule, RuleEvent(event, name, ""), error)

    def _act(
        self,
        tx: Transaction,
        event: TakenEvent,
        name: str,
        env: dict[str, Json],
        rule: KnownRule,
        turn: Turn,
        again: str = "",
    ) -> Program[None]:
        """Do the action of a rule if its condition holds. Raises ReactionRefused."""
        compiled = self.rules.compiled_bytes
        try:
            definition = yield from self.rules.definition(rule)
        except DefinitionErrors as error:
            raise ReactionRefused(f"this release does not understand the rule: {error}", "BAD_DEFINITION") from None
        finally:
            turn.cost += (self.rules.compiled_bytes - compiled) // COMPILED_BYTES_OF_COST
        if definition is None:
            return
        now_ms = tx.context.now_ms
        if not self._takes(tx, turn, definition.workspace, rule.owner, event, again):
            return
        try:
            if not _holds(definition.condition, env, now_ms, turn):
                return
        except EvaluationError as error:
            raise ReactionRefused(str(error), "EXPRESSION") from None
        turn.cost += ACTION_COST
        arrived = RuleEvent(event, name, _rule_key(event, name, rule, again))
        yield from self._runs.arrive(tx, rule, definition, arrived, turn.spend)

    def _takes(self, tx: Transaction, turn: Turn, workspace: str, owner: str, event: TakenEvent, again: str) -> bool:
        """Return whether a definition takes events of a workspace; see above."""
        where = event.workspace or EVERYWHERE
        if (owner, where) not in turn.problems:
            turn.problems[owner, where] = self._actions.allowed(owner, where, AccessLevel.READ, tx.context.now_ms)
        problem = turn.problems[owner, where]
        if not problem and event.source_topic.startswith(KEYS):
            problem = self._may_read_key(owner, where, str(event.data["key"]), tx.context.now_ms)
        if problem and (workspace != EVERYWHERE or again):
            raise ReactionRefused(problem, "PERMISSION_DENIED", hidden=True)
        return not problem

    def _load_rule(self, id: int, event: TakenEvent) -> Program[KnownRule | str]:  # noqa: A002
        """Load the rule that is to act again; return why it cannot, if so."""
        stored = yield from rule_rows.load(id)
        if stored is None:
            return f"rule {id} is deleted: discard this"
        if not stored.active:
            return f"rule {id} is not active: activate it first"
        if stored.workspace not in (EVERYWHERE, event.workspace):
            return f"rule {id} is of workspace {stored.workspace} by now: discard this"
        return known_rule(stored)

    # -- triggers ----------------------------------------------------------------------------------

    def _try_trigger(
        self, tx: Transaction, event: TakenEvent, name: str, env: dict[str, Json], known: KnownTrigger, turn: Turn
    ) -> Program[None]:
        try:
            yield from self._start(tx, event, name, env, known, turn)
        except ReactionRefused as error:
            turn.cost += ACTION_COST
            stored = known.stored
            failed = FailedReaction(
                TRIGGER_FAILED,
                name,
                str(error),
                error.error_type,
                f"{stored.workspace} {stored.id}",
                stored.id,
                "" if error.hidden else stored.owner,
            )
            yield from event_dead_letters.bury(tx, event, failed)

    def _start(
        self,
        tx: Transaction,
        event: TakenEvent,
        name: str,
        env: dict[str, Json],
        known: KnownTrigger,
        turn: Turn,
        again: str = "",
    ) -> Program[None]:
        """Start a workflow if the condition of its trigger holds. Raises ReactionRefused."""
        stored, now_ms = known.stored, tx.context.now_ms
        if not self._takes(tx, turn, stored.workspace, stored.owner, event, again):
            return
        try:
            if not _holds(known.trigger.condition, env, now_ms, turn):
                return
            turn.cost += ACTION_COST
            hops = extend(event.hops, "workflow", stored.id)
        except EvaluationError as error:
            raise ReactionRefused(str(error), "EXPRESSION") from None
        except TooManyHops as error:
            raise ReactionRefused(str(error), "TOO_MANY_HOPS") from None
        if not event.workspace:
            raise ReactionRefused("the event is of no workspace, and an execution needs one", "START_REFUSED")
        key = "\0".join(("event", event.topic, str(event.offset), name, "workflow", stored.workspace, stored.id, again))
        begin = Begin(event.data, stored.owner, metadata={"event": name, "source": event.principal}, hops=hops)
        try:
            turn.keys.clear()
            yield from self._executions.start(tx, stored, event.workspace, begin, task_id=dated_id(now_ms, key))
        except StartDropped as error:
            logger.debug("an event starts no workflow", workflow=stored.id, reason=str(error))
        except StartRefused as error:
            raise ReactionRefused(str(error), "START_REFUSED") from None

    def _load_trigger(self, name: str, key: str) -> Program[KnownTrigger | str]:
        """Load the trigger that is to act again; return why it cannot, if so."""
        workspace, _, id = key.rpartition(" ")  # noqa: A001
        stored = yield from definitions.newest_active(workspace, id)
        if stored is None:
            return f"workflow {id} is not active: define it again, or discard this"
        trigger = trigger_of(stored)
        if trigger is None or trigger.event != name:
            return f"workflow {id} does not start after {name} any more: discard this"
        return KnownTrigger(stored, trigger)

    # -- machines ----------------------------------------------------------------------------------

    def _try_machine(
        self, tx: Transaction, event: TakenEvent, name: str, env: dict[str, Json], known: KnownMachine, turn: Turn
    ) -> Program[None]:
        try:
            yield from self._move(tx, event, env, known, turn)
        except ReactionRefused as error:
            turn.cost += ACTION_COST
            owner = "" if error.hidden else known.stored.owner
            failed = FailedReaction(
                MACHINE_FAILED, name, str(error), error.error_type, _key_of(known), known.stored.id, owner
            )
            yield from event_dead_letters.bury(tx, event, failed)

    def _move(
        self,
        tx: Transaction,
        event: TakenEvent,
        env: dict[str, Json],
        known: KnownMachine,
        turn: Turn,
        again: str = "",
    ) -> Program[None]:
        """Let an event act on an instance of a machine. Raises ReactionRefused."""
        stored = known.stored
        if not self._takes(tx, turn, stored.workspace, stored.owner, event, again):
            return
        turn.cost += CONDITION_COST
        arrival = BusArrival(index=known.index, workspace=event.workspace, env=env, hops=event.hops)
        try:
            if (yield from self._machines.receive(tx, stored, arrival, turn.spend)):
                turn.cost += ACTION_COST
        except MachineError as error:
            raise ReactionRefused(str(error), error.error_type) from None

    def _load_machine(self, name: str, key: str) -> Program[KnownMachine | str]:
        """Load the machine that is to take an event; return why it cannot, if so."""
        workspace, id, index = key.split()  # noqa: A001
        stored = yield from machine_rows.load(workspace, id)
        if stored is None or not stored.active:
            return f"state machine {id} is not active: create it again, or discard this"
        try:
            bus = self._machines.ready(stored).bus
        except DefinitionErrors as error:
            return f"this release does not understand state machine {id}: {error}"
        found = [(number, one) for number, one in enumerate(bus) if one.event == name]
        if not found:
            return f"state machine {id} does not take {name} any more: discard this"
        number, one = next((each for each in found if each[0] == int(index)), found[0])
        return KnownMachine(stored, number, one)


def _rule_key(event: TakenEvent, name: str, rule: KnownRule, again: str) -> str:
    return "\0".join(("event", event.topic, str(event.offset), name, "rule", str(rule.id), again))


def _key_of(known: KnownMachine) -> str:
    return f"{known.stored.workspace} {known.stored.id} {known.index}"


def _holds(condition: Condition | None, env: dict[str, Json], now_ms: int, turn: Turn) -> bool:
    """Return whether a condition holds, and note its cost.

    Raises EvaluationError.
    """
    turn.cost += CONDITION_COST
    return spending(partial(holds, condition, env, datetime.fromtimestamp(now_ms / 1000, UTC)), turn.spend)


def holds(condition: Condition | None, env: dict[str, Json], moment: datetime) -> bool:
    """Return whether a condition holds; none does. Raises EvaluationError."""
    if condition is None:
        return True
    found: bool = condition.evaluate(env, now=lambda: moment)
    return found
