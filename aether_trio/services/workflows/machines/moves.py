"""Moves instances of state machines, in transactions on tasks.

    operation, event of the bus, timer ─▶ model/workflows/machines.py ─▶ row, timer, actions

All of it is one transaction. An action that is refused does not undo the transition: it becomes a
dead letter. Actions are done for the owner of the machine, in the workspace of the instance.

An instance is of one workspace and one machine, of that workspace or of *. What a machine is by now
counts for the instances that it has; while it is not active, they rest.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from aether_trio.model.evaluation_meter import Spend, metered, spending
from aether_trio.model.text import TextError, shown
from aether_trio.model.workflows import machines as model
from aether_trio.model.workflows.definition import (
    Action,
    EvaluationError,
    Json,
    MachineDefinition,
)
from aether_trio.model.workflows.hops import Hops, TooManyHops, decode, extend
from aether_trio.model.workflows.keys import key_text
from aether_trio.model.workflows.machines import MachineAction, MachineInstance, MachineProblem, MachineStep
from aether_trio.model.workflows.reading import DefinitionErrors
from aether_trio.services.tasks.transaction.interface import ChangeRefused, Transaction
from aether_trio.services.workflows.actions import action_dead_letters
from aether_trio.services.workflows.actions.action_dead_letters import FailedAction, RepeatedAction
from aether_trio.services.workflows.actions.performer import ActionRefused, Actions, Cause, values_of
from aether_trio.services.workflows.documents.json_values import JsonError, read_json, write_json
from aether_trio.services.workflows.documents.not_compiled import LargeDocuments
from aether_trio.services.workflows.documents.reader import read_json as read_document
from aether_trio.services.workflows.events.taken_events import MAX_DEPTH, is_deep
from aether_trio.services.workflows.stored import machine_rows, timers
from aether_trio.services.workflows.stored.machine_rows import TIMER, InstanceRow, StoredMachine
from aether_trio.storage.base import Program

MACHINE: Final = "machine"
KEPT: Final = 1024
"""Compiled machines in memory."""
RECENT: Final = 8
"""So many operations of an instance are known when the commit of one is in doubt."""
IGNORED: Final = frozenset(
    {MachineProblem.COMPLETED, MachineProblem.TERMINAL, MachineProblem.NO_TRANSITION, MachineProblem.NO_INSTANCE}
)
"""Why an event of the bus leaves an instance as it is, and nothing is wrong."""


class MachineError(ChangeRefused, ValueError):
    """A machine or instance cannot do what is asked; `error_type` is for programs."""

    def __init__(self, message: str, error_type: str = "REFUSED") -> None:
        super().__init__(message)
        self.error_type = error_type


@dataclass(frozen=True, slots=True, kw_only=True)
class BusArrival:
    """An event for an entry of a machine's `bus`; `env` is {input, source}."""

    index: int
    workspace: str
    env: Mapping[str, Json]
    hops: Hops = ()


class Machines:
    """Moves instances; all methods but the constructor and `definition` are programs."""

    def __init__(self, actions: Actions) -> None:
        self._actions = actions
        self._large = LargeDocuments()
        self._compiled: OrderedDict[str, MachineDefinition | DefinitionErrors] = OrderedDict()

    def definition(self, stored: StoredMachine) -> MachineDefinition:
        """Return a machine, compiled. Raises DefinitionErrors."""
        found = self._compiled.get(stored.digest)
        if found is None:
            try:
                made, _ = read_document(MACHINE, stored.document)
            except DefinitionErrors as error:
                self._compiled[stored.digest] = error
                raise
            assert isinstance(made, MachineDefinition)
            found = self._keep(made)
        if isinstance(found, DefinitionErrors):
            raise found
        return found

    def ready(self, stored: StoredMachine) -> MachineDefinition:
        """Return `definition` in a transaction, which does not compile a large machine.

        Raises DefinitionErrors and NotCompiledError.
        """
        if not self.is_compiled(stored):
            self._large.ask(stored.digest, len(stored.document), partial(self._try, stored))
        return self.definition(stored)

    def _try(self, stored: StoredMachine) -> None:
        with suppress(DefinitionErrors):
            self.definition(stored)

    def is_compiled(self, stored: StoredMachine) -> bool:
        """Return whether `definition` need not compile."""
        return stored.digest in self._compiled

    def _keep(self, definition: MachineDefinition) -> MachineDefinition:
        self._compiled[definition.digest] = definition
        if len(self._compiled) > KEPT:
            self._compiled.popitem(last=False)
        return definition

    def _understood(self, stored: StoredMachine) -> MachineDefinition:
        """Return a machine, compiled. Raises MachineError, and NotCompiledError."""
        try:
            return self.ready(stored)
        except DefinitionErrors as error:  # it was right when it was stored, by another release
            raise MachineError(f"this release does not understand the machine: {error}", "BAD_DEFINITION") from None

    # -- definitions -------------------------------------------------------------------------------

    def put(self, tx: Transaction, definition: MachineDefinition, owner: str) -> Program[StoredMachine]:
        """Write a machine, new or in place of what it was; its instances go on with it."""
        now_ms = tx.context.now_ms
        before = yield from machine_rows.load(definition.workspace, definition.id)
        created_ms = now_ms if before is None else before.created_ms
        document = write_json(definition.source)
        stored = StoredMachine(
            definition.workspace, definition.id, document, definition.digest, owner, True, created_ms, now_ms
        )
        yield from machine_rows.put(stored)
        self._keep(definition)
        if before is not None and not before.active:
            _note_due(tx, (yield from machine_rows.set_timers(stored.workspace, stored.id)))
        return stored

    # -- instances ---------------------------------------------------------------------------------

    def create(
        self, tx: Transaction, stored: StoredMachine, workspace: str, instance_id: str, data: Json, operation: str
    ) -> Program[InstanceRow]:
        """Create an instance for an operation with this id. Raises MachineError."""
        known = yield from machine_rows.load_instance(workspace, stored.workspace, stored.id, instance_id)
        if known is not None:
            if _is_done(known, operation):
                return known
            raise MachineError(f"machine {stored.id} has an instance {shown(instance_id)} in workspace {workspace}")
        definition = self._understood(stored)
        with metered():
            step = model.create(definition, instance_id, workspace, data, tx.context.now_ms)
        return (yield from self._follow(tx, stored, None, step, (), operation))

    def send(self, tx: Transaction, row: InstanceRow, event: str, data: Json, operation: str) -> Program[InstanceRow]:
        """Let an event of a client act, for an operation with this id.

        `row` says which instance; it is read again. Raises MachineError.
        """
        stored = yield from machine_rows.load(row.defined_in, row.machine_id)
        current = yield from machine_rows.load_instance(row.workspace, row.defined_in, row.machine_id, row.instance_id)
        if stored is None or current is None:
            raise MachineError(f"instance {shown(row.instance_id)} not found", "NOT_FOUND")
        if _is_done(current, operation):
            return current
        if not stored.active:
            raise MachineError(f"machine {stored.id} is not active: its instances rest until it is created again")
        definition = self._understood(stored)
        with metered():
            step = model.send(definition, _instance(current), event, data, tx.context.now_ms)
        return (yield from self._follow(tx, stored, current, step, (), operation))

    def receive(self, tx: Transaction, stored: StoredMachine, arrival: BusArrival, spend: Spend) -> Program[bool]:
        """Let an event of the bus act on the instance that its key names.

        Return whether it did. Raises MachineError, and has written nothing then.
        """
        now_ms, env = tx.context.now_ms, arrival.env
        definition = self._understood(stored)
        bus = definition.bus[arrival.index]
        moment = datetime.fromtimestamp(now_ms / 1000, UTC)
        try:
            found = spending(partial(bus.key.evaluate, env, now=lambda: moment), spend)
            key = key_text(found, f"the key of bus event {shown(bus.event)}")
        except EvaluationError as error:
            raise MachineError(str(error), "EXPRESSION") from None
        except TextError as error:
            raise MachineError(str(error), "BAD_KEY") from None
        if not arrival.workspace:
            raise MachineError("the event is of no workspace, and an instance needs one", "BAD_EVENT")
        row = yield from machine_rows.load_instance(arrival.workspace, stored.workspace, stored.id, key)
        # A timeout begins a new chain of hops, so an event that the machine has caused may go in
        # circles with it.
        caused = arrival.hops and extend((), MACHINE, stored.id)[0] in arrival.hops
        receive = partial(
            model.receive,
            definition,
            bus,
            None if row is None else _instance(row),
            key,
            arrival.workspace,
            env["input"],
            now_ms,
            source=env["source"],
            rest_ms=model.MIN_LAP_MS if caused else 0,
        )
        step = spending(receive, spend)
        if step.problem in IGNORED:
            return False
        yield from self._follow(tx, stored, row, step, arrival.hops, "")
        return True

    def time_passed(self, tx: Transaction, key: str) -> Program[None]:
        """Act on the timeout of an instance, or forget it: the handler of its timer."""
        row = yield from machine_rows.of_timer(key)
        if row is not None and row.completed_ms:
            due_ms = _due_ms(tx, row)
            if 0 < due_ms <= tx.context.now_ms:
                yield from machine_rows.delete_instance(row)
                due_ms = 0
            yield from timers.set_timer(TIMER, key, due_ms)
            return
        stored = None if row is None else (yield from machine_rows.load(row.defined_in, row.machine_id))
        if row is None or stored is None or not stored.active or not row.timeout_ms:
            yield from timers.set_timer(TIMER, key, 0)
            return
        if row.timeout_ms > tx.context.now_ms:
            yield from timers.set_timer(TIMER, key, row.timeout_ms)
            return
        definition = self.ready(stored)
        with metered():
            step = model.time_passed(definition, _instance(row), tx.context.now_ms)
        if step.problem is not None and step.instance is not None:
            # The machine was changed meanwhile: the timeout is cleared, and the instance stays.
            step = MachineStep(instance=step.instance)
        yield from self._follow(tx, stored, row, step, (), "")

    def _follow(
        self,
        tx: Transaction,
        stored: StoredMachine,
        before: InstanceRow | None,
        step: MachineStep,
        hops: Hops,
        operation: str,
    ) -> Program[InstanceRow]:
        """Write what has become of an instance, and do the actions."""
        if step.problem is not None or step.instance is None:
            raise MachineError(step.error, (step.problem or MachineProblem.UNKNOWN_STATE).upper())
        row = _row(stored, before, step.instance, operation)
        if before is None:
            if not (yield from machine_rows.insert_instance(row)):
                raise MachineError(f"machine {stored.id} has an instance {shown(row.instance_id)}")
        else:
            yield from machine_rows.update_instance(row)
        due_ms = _due_ms(tx, row)
        if due_ms != (0 if before is None else _due_ms(tx, before)):
            yield from timers.set_timer(TIMER, row.timer_key, due_ms)
            _note_due(tx, due_ms)
        for number, action in enumerate(step.actions):
            yield from self._act(tx, stored, row, number, action, hops)
        return row

    # -- actions -----------------------------------------------------------------------------------

    def _act(
        self, tx: Transaction, stored: StoredMachine, row: InstanceRow, number: int, one: MachineAction, hops: Hops
    ) -> Program[None]:
        key = f"machine\0{row.timer_key}\0{row.created_ms}\0{row.transitions}\0{number}"
        try:
            yield from self._perform(tx, stored, row.workspace, one.action, one.env, key, hops)
        except ActionRefused as error:
            machine = one.env["machine"]
            transitions = self.definition(stored).states[machine["state"]].on.get(one.env["event"], ())
            index = next((index for index, each in enumerate(transitions) if each.action is one.action), 0)
            place = {
                "defined_in": stored.workspace,
                "machine": stored.id,
                "workspace": row.workspace,
                "place": one.place,
                "index": index,
                "hops": list(hops),
            }
            failed = FailedAction(
                kind=MACHINE,
                name=stored.id,
                key=key,
                workspace=row.workspace,
                owner=stored.owner,
                reason=f"the {one.place} action of instance {shown(row.instance_id)} failed: {error}",
                error_type=error.error_type,
                place=place,
                over=dict(one.env),
            )
            yield from action_dead_letters.bury(tx, failed)

    def act_again(self, tx: Transaction, again: RepeatedAction) -> Program[None]:
        """Do an action that has failed as the machine has it by now. Raises ActionRefused."""
        place, action = again.place, None
        stored = yield from machine_rows.load(place["defined_in"], place["machine"])
        if stored is None or not stored.active:
            raise ActionRefused(f"machine {place['machine']} is not active: create it again first", "NOT_FOUND")
        env = read_json(again.over)
        try:
            if env is not None:
                action = _find_action(self.ready(stored), place["place"], place["index"], env)
        except DefinitionErrors as error:
            raise ActionRefused(f"this release does not understand the machine: {error}", "BAD_DEFINITION") from None
        if action is None:
            raise ActionRefused(f"machine {stored.id} has no such action any more: discard this", "NOT_FOUND")
        yield from self._perform(tx, stored, place["workspace"], action, env, again.key, decode(place["hops"]))

    def _perform(
        self,
        tx: Transaction,
        stored: StoredMachine,
        workspace: str,
        action: Action,
        env: Mapping[str, Json],
        key: str,
        hops: Hops,
    ) -> Program[None]:
        try:
            values = values_of(action, env, tx.context.now_ms)
            chain = extend(hops, MACHINE, stored.id)
        except EvaluationError as error:
            raise ActionRefused(str(error), "EXPRESSION") from None
        except TooManyHops as error:
            raise ActionRefused(str(error), "TOO_MANY_HOPS") from None
        yield from self._actions.perform(tx, action, values, Cause(key, stored.owner, workspace, chain))


def _find_action(machine: MachineDefinition, place: str, index: int, env: Mapping[str, Any]) -> Action | None:
    state = machine.states.get(env["machine"]["state"])
    if state is None:
        return None
    if place == "transition":
        transitions: Sequence[Any] = state.on.get(env["event"], ())
        action: Action | None = transitions[index].action if index < len(transitions) else None
        return action
    return state.exit_action if place == "exit" else state.entry_action


def _instance(row: InstanceRow) -> MachineInstance:
    return MachineInstance(
        id=row.instance_id,
        machine=row.machine_id,
        workspace=row.workspace,
        state=row.state,
        data=read_json(row.data),
        timeout_at_ms=row.timeout_ms,
        completed_ms=row.completed_ms,
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
    )


def _row(stored: StoredMachine, before: InstanceRow | None, instance: MachineInstance, operation: str) -> InstanceRow:
    """Make the row of an instance. Raises MachineError if its data cannot be kept."""
    try:
        if is_deep(instance.data):
            raise JsonError(f"it is nested deeper than {MAX_DEPTH} levels")
        data = write_json(instance.data)
    except JsonError as error:
        raise MachineError(f"the data of instance {shown(instance.id)} cannot be kept: {error}", "BAD_DATA") from None
    recent = [] if before is None else before.recent.split()
    if operation:
        recent = [*recent, operation][-RECENT:]
    return InstanceRow(
        instance.workspace,
        stored.workspace,
        stored.id,
        instance.id,
        instance.state,
        data,
        1 if before is None else before.transitions + 1,
        " ".join(recent),
        instance.timeout_at_ms,
        instance.completed_ms,
        instance.created_ms,
        instance.updated_ms,
    )


def _is_done(row: InstanceRow, operation: str) -> bool:
    return operation in row.recent.split()


def _due_ms(tx: Transaction, row: InstanceRow) -> int:
    """Return the next moment of an instance, its timeout or its end; 0: none.

    A completed one is forgotten then.
    """
    if not row.completed_ms:
        return row.timeout_ms
    keep_ms = tx.context.limits.completed_ms
    return row.completed_ms + keep_ms if keep_ms else 0


def _note_due(tx: Transaction, due_ms: int) -> None:
    tx.effects.note_due(due_ms)
