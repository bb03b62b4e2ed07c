"""State machines: events and timeouts lead instances from state to state.

    create(machine, …)            an instance in the initial state
    send(machine, instance, …)    an event, sent by a client
    receive(machine, …)           an event of the bus, which may create the instance
    time_passed(machine, …)       the moment `instance.timeout_at_ms` has come

Each returns a MachineStep: the next instance, the actions in their order, or a problem, with which
nothing changes. Moments are Unix ms.

An event takes the first of its transitions whose `when` holds. What follows, in this order: the
exit action of the state that is left, the transition's action, the state's change with `assign`
(its map is merged into the data, its values are over the data before) and the new timeout, the
entry action of the state that is entered. The transition's action sees the new data and the old
state. A transition to the same state is one like others. The caller computes the actions' values
over `MachineAction.env` and does them in the transaction that keeps the instance; one that fails
does not undo the change.

A timeout without a `timeout_action` is cleared. An event that is handled before `time_passed` is
called comes before the timeout.

A circle of timeouts in which nothing else is needed takes MIN_LAP_MS at least: `quick_lap` finds a
quicker one, which is refused when a machine is applied. Where there is one all the same, each state
that a timeout enters rests for MIN_LAP_MS.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from aether_trio.model.text import shown
from aether_trio.model.workflows.definition import (
    Action,
    BusEvent,
    Environment,
    EvaluationError,
    Json,
    MachineDefinition,
    MachineState,
    MachineTransition,
)

MAX_DATA_BYTES: Final = 512 * 1024
"""How long the data of an instance may be, as JSON."""
MIN_LAP_MS: Final = 1_000
"""The shortest time in which timeouts alone may lead to the same state again."""
TIMEOUT: Final = "timeout"
"""The name of the event by which a timeout's actions see why they are done."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LISTED: Final = 10


class MachineProblem(enum.StrEnum):
    """Why an instance does not change."""

    COMPLETED = "completed"
    TERMINAL = "terminal"
    NO_TRANSITION = "no_transition"
    UNKNOWN_STATE = "unknown_state"
    EVALUATION = "evaluation"
    BAD_DATA = "bad_data"
    NO_INSTANCE = "no_instance"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineInstance:
    """An instance; `timeout_at_ms` is the moment of its timeout, 0 without one."""

    id: str
    machine: str
    workspace: str
    state: str
    data: Json = None
    timeout_at_ms: int = 0
    completed_ms: int = 0  # 0 until it is in a terminal state
    created_ms: int = 0
    updated_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineAction:
    """An action, and what its values are over; `place` is exit, transition or entry."""

    place: str
    action: Action
    env: Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineStep:
    """What has become of an instance.

    With a `problem`, which `error` explains, it is as before.
    """

    instance: MachineInstance | None
    actions: tuple[MachineAction, ...] = ()
    problem: MachineProblem | None = None
    error: str = ""


def create(
    machine: MachineDefinition,
    instance_id: str,
    workspace: str,
    data: Json,
    now_ms: int,
    *,
    event: str = "",
    event_data: Json = None,
    source: Json = None,
    rest_ms: int = 0,
) -> MachineStep:
    """Create an instance in the initial state; a bus event may be what creates it.

    `rest_ms` is as for `send`.
    """
    instance = MachineInstance(
        id=instance_id,
        machine=machine.id,
        workspace=workspace,
        state=machine.initial_state,
        data={} if data is None else data,
        created_ms=now_ms,
        updated_ms=now_ms,
    )
    state = machine.states.get(machine.initial_state)
    if state is None:
        text = f"the initial state {shown(machine.initial_state)} is none of {_names(machine.states)}"
        return _refused(None, MachineProblem.UNKNOWN_STATE, f"machine {shown(machine.id)}: {text}")
    if refusal := _not_kept(instance.data):
        return _refused(
            None, MachineProblem.BAD_DATA, f"machine {shown(machine.id)}, instance {shown(instance_id)}: {refusal}"
        )
    instance = _entered(instance, state, now_ms, rest_ms)
    entry = _action("entry", state.entry_action, _environment(instance, event, event_data, source))
    return MachineStep(instance=instance, actions=entry)


def send(
    machine: MachineDefinition,
    instance: MachineInstance,
    event: str,
    data: Json,
    now_ms: int,
    *,
    source: Json = None,
    rest_ms: int = 0,
) -> MachineStep:
    """Let an event act on an instance; `source` is that of an event of the bus.

    `rest_ms` is how long the new state rests at least before its timeout.
    """
    where = f"instance {shown(instance.id)} of machine {shown(machine.id)}"
    if instance.completed_ms:
        text = f"{where} has completed in state {shown(instance.state)}: it takes no event"
        return _refused(instance, MachineProblem.COMPLETED, text)
    state = machine.states.get(instance.state)
    if state is None:
        text = f"{where} is in state {shown(instance.state)}, which the machine does not have any more"
        return _refused(instance, MachineProblem.UNKNOWN_STATE, f"{text}: it has {_names(machine.states)}")
    if state.terminal:
        return _refused(instance, MachineProblem.TERMINAL, f"{where} is in the terminal state {shown(state.name)}")
    transitions = state.on.get(event, ())
    if not transitions:
        text = f"{where} has no transition for event {shown(event)} in state {shown(state.name)}"
        return _refused(instance, MachineProblem.NO_TRANSITION, f"{text}: it takes {_names(state.on)}")
    env = _environment(instance, event, data, source)
    clock = _clock(now_ms)
    try:
        chosen = _choose(transitions, env, clock)
        if chosen is None:
            text = f"{where}: no condition of event {shown(event)} in state {shown(state.name)} holds"
            return _refused(instance, MachineProblem.NO_TRANSITION, text)
        assigned = _assigned(instance, chosen, env, clock)
    except EvaluationError as error:
        text = f"{where}: event {shown(event)} in state {shown(state.name)}: {error}"
        return _refused(instance, MachineProblem.EVALUATION, text)
    if refusal := _not_kept(assigned):
        return _refused(instance, MachineProblem.BAD_DATA, f"{where}: {refusal}")
    target = machine.states.get(chosen.to)
    if target is None:
        text = f"{where}: event {shown(event)} leads to state {shown(chosen.to)}"
        return _refused(instance, MachineProblem.UNKNOWN_STATE, f"{text}, which is none of {_names(machine.states)}")
    return _move(instance, state, chosen, target, env, assigned, now_ms, rest_ms)


def receive(
    machine: MachineDefinition,
    bus: BusEvent,
    instance: MachineInstance | None,
    instance_id: str,
    workspace: str,
    data: Json,
    now_ms: int,
    *,
    source: Json = None,
    rest_ms: int = 0,
) -> MachineStep:
    """Let an event of the bus act on the instance that its key names, if there is one.

    `bus.creates`: a missing one is created, with the event's data if that is an object, and the
    event acts on it if its initial state takes it. `rest_ms` is as for `send`.
    """
    event = bus.send or bus.event
    if instance is not None:
        return send(machine, instance, event, data, now_ms, source=source, rest_ms=rest_ms)
    if not bus.creates:
        text = f"machine {shown(machine.id)} has no instance {shown(instance_id)}"
        return _refused(None, MachineProblem.NO_INSTANCE, text)
    begun = data if isinstance(data, dict) else {}
    created = create(
        machine, instance_id, workspace, begun, now_ms, event=event, event_data=data, source=source, rest_ms=rest_ms
    )
    if created.instance is None:
        return created
    sent = send(machine, created.instance, event, data, now_ms, source=source, rest_ms=rest_ms)
    if sent.problem in (MachineProblem.NO_TRANSITION, MachineProblem.COMPLETED):
        return created
    if sent.problem is not None:
        return replace(sent, instance=None)
    return replace(sent, actions=created.actions + sent.actions)


def time_passed(machine: MachineDefinition, instance: MachineInstance, now_ms: int) -> MachineStep:
    """Act on the timeout of an instance; before its moment nothing changes.

    A timeout that leads to no state is cleared, with a problem.
    """
    if not 0 < instance.timeout_at_ms <= now_ms:
        return MachineStep(instance=instance)
    cleared = replace(instance, timeout_at_ms=0, updated_ms=now_ms)
    state = machine.states.get(instance.state)
    if instance.completed_ms or state is None or state.terminal or not state.timeout_action:
        return MachineStep(instance=cleared)
    target = machine.states.get(state.timeout_action)
    if target is None:
        where = f"instance {shown(instance.id)} of machine {shown(machine.id)}"
        text = f"{where}: the timeout of state {shown(state.name)} leads to state {shown(state.timeout_action)}"
        return _refused(cleared, MachineProblem.UNKNOWN_STATE, f"{text}, which is none of {_names(machine.states)}")
    env = _environment(instance, TIMEOUT, None, None)
    transition = MachineTransition(to=state.timeout_action)
    rest_ms = MIN_LAP_MS if target.timeout_ms < MIN_LAP_MS and quick_lap(machine.states, target.name) else 0
    return _move(instance, state, transition, target, env, instance.data, now_ms, rest_ms)


def quick_lap(states: Mapping[str, MachineState], name: str) -> list[str]:
    """Return the circle of states by which quick timeouts lead back to one.

    It is the first and the last of them; [] if timeouts alone do not, or take MIN_LAP_MS.
    """
    lap, left_ms = [name], MIN_LAP_MS
    while True:
        state = states.get(lap[-1])
        if state is None or state.terminal or not state.timeout_ms or not state.timeout_action:
            return []
        left_ms -= state.timeout_ms
        if left_ms <= 0:
            return []
        lap.append(state.timeout_action)
        if lap[-1] == name:
            return lap


def _move(
    instance: MachineInstance,
    state: MachineState,
    transition: MachineTransition,
    target: MachineState,
    env: Environment,
    data: Json,
    now_ms: int,
    rest_ms: int,
) -> MachineStep:
    moved = _entered(replace(instance, state=transition.to, data=data, updated_ms=now_ms), target, now_ms, rest_ms)
    entered_env = _environment(moved, env["event"], env["input"], env["source"])
    actions = (
        *_action("exit", state.exit_action, env),
        *_action("transition", transition.action, {**env, "data": data}),
        *_action("entry", target.entry_action, entered_env),
    )
    return MachineStep(instance=moved, actions=actions)


def _entered(instance: MachineInstance, state: MachineState, now_ms: int, rest_ms: int = 0) -> MachineInstance:
    """Set what a state brings: its timeout, or the end."""
    if state.terminal:
        return replace(instance, timeout_at_ms=0, completed_ms=max(now_ms, 1))
    if not state.timeout_ms:
        return replace(instance, timeout_at_ms=0)
    return replace(instance, timeout_at_ms=max(now_ms + max(state.timeout_ms, rest_ms), 1))


def _choose(
    transitions: Iterable[MachineTransition], env: Environment, clock: Callable[[], datetime]
) -> MachineTransition | None:
    for transition in transitions:
        if transition.when is None:
            return transition
        holds = transition.when.evaluate(env, now=clock)
        if not isinstance(holds, bool):
            raise EvaluationError(f"the condition of the transition to {shown(transition.to)} gives no true or false")
        if holds:
            return transition
    return None


def _assigned(
    instance: MachineInstance, transition: MachineTransition, env: Environment, clock: Callable[[], datetime]
) -> Json:
    """Return the data after a transition."""
    if transition.assign is None:
        return instance.data
    values = transition.assign.evaluate(env, now=clock)
    if not isinstance(values, dict):
        raise EvaluationError(f"assign of the transition to {shown(transition.to)} gives no object")
    if not isinstance(instance.data, dict):
        raise EvaluationError("assign needs an instance whose data is an object")
    return {**instance.data, **values}


def _environment(instance: MachineInstance, event: str, data: Json, source: Json) -> dict[str, Json]:
    return {
        "data": instance.data,
        "input": data,
        "event": event,
        "source": source,
        "machine": {
            "id": instance.machine,
            "instance": instance.id,
            "workspace": instance.workspace,
            "state": instance.state,
        },
    }


def _action(place: str, action: Action | None, env: Environment) -> tuple[MachineAction, ...]:
    return () if action is None else (MachineAction(place=place, action=action, env=env),)


def _refused(instance: MachineInstance | None, problem: MachineProblem, error: str) -> MachineStep:
    return MachineStep(instance=instance, problem=problem, error=error)


def _not_kept(data: Json) -> str:
    """Return why the data of an instance cannot be kept; "" if it can."""
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        return f"its data cannot be JSON: {shown(str(error))}"
    size = len(text.encode("utf-8", "surrogatepass"))
    return "" if size <= MAX_DATA_BYTES else f"its data would have {size} bytes; {MAX_DATA_BYTES} are allowed"


def _clock(now_ms: int) -> Callable[[], datetime]:
    moment = _EPOCH + timedelta(milliseconds=now_ms)
    return lambda: moment


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    text = ", ".join(shown(name) for name in listed[:_LISTED])
    if len(listed) > _LISTED:
        return f"{text} and {len(listed) - _LISTED} more"
    return text or "nothing"
