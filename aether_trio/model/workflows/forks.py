"""What a fork of an execution keeps of it.

    an execution ──▶ fork from STEP ──▶ STEP and all that follows from it is done again,
                                        and what else has ended is kept with its results

A step *follows from* another one by depends_on, on_success, on_failure and on_error, transitively.
Steps that have not ended, that have failed without a handler, or that were cancelled or undone,
begin again, too, and with them the skipped steps that depend on those. Of a map or loop that begins
again for that reason the completed items or rounds are kept, as a retry keeps them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from aether_trio.model.workflows.definition import Graph, Json
from aether_trio.model.workflows.plan import GraphPlan, plan_of
from aether_trio.model.workflows.reading import did_you_mean, quoted
from aether_trio.model.workflows.state import (
    CANCELLED,
    COMPENSATED,
    COMPLETED,
    ENDED,
    FAILED,
    PENDING,
    SKIPPED,
    ExecutionStatus,
    GraphState,
    MapProgress,
    StepProgress,
)

KEPT: Final = ("plain", "steps", "order", "signals")
"""The parts of a state's JSON that a fork takes over."""


class ForkError(Exception):
    """An execution cannot be forked so; the text says why, and what to do."""


class KeptPart(NamedTuple):
    """What a fork keeps; `state` is that part of a state's JSON.

    Of the steps `whole` all is kept, of `partly` the completed items or rounds. `undone` are the
    steps that are compensated if the fork fails, in the order of their completion.
    """

    state: dict[str, Json]
    whole: tuple[str, ...]
    partly: tuple[str, ...]
    undone: tuple[str, ...]


def begins_again(progress: StepProgress | None) -> bool:
    """Return whether a step that has ended begins again when its execution goes on."""
    if progress is None:
        return False
    return progress.code in {CANCELLED, COMPENSATED} or (progress.code == FAILED and not progress.route)


def plan_fork(graph: Graph, state: GraphState, step: str) -> KeptPart:
    """Return what a fork from a step keeps; `graph` is that on which it goes on.

    `state` is that of the execution, and changes nowhere that matters. Raises ForkError.
    """
    plan = plan_of(graph)
    if step not in plan.steps:
        raise ForkError(
            f"version {graph.version} of workflow {graph.id} has no step {quoted(step)}{did_you_mean(step, plan.steps)}"
        )
    if state.status == ExecutionStatus.COMPENSATING:
        raise ForkError("the execution undoes what it has done: fork it when it has ended")
    again = _following(plan, (step,))
    reopened = _reopened(plan, state, again)
    kept = GraphState.new()
    whole: list[str] = []
    partly: list[str] = []
    for one in plan.steps:
        if one in again:
            continue
        progress = state.known(one)
        if progress is None:
            continue
        if one in reopened or progress.code not in ENDED:
            if (part := _done_part(progress)) is not None:
                kept.steps[one] = part
                partly.append(one)
        else:
            kept.steps[one] = progress
            whole.append(one)
    for one in state.order:
        if one not in plan.steps:
            raise ForkError(
                f"version {graph.version} of workflow {graph.id} has no step {quoted(one)} any more, which is done and "
                "would have to be undone: fork on the version of the execution"
            )
    kept.order = [one for one in state.order if one in whole and plan.steps[one].compensate is not None]
    kept.signals = [one for one in state.signals if one[0] in plan.signals]
    encoded = {name: value for name, value in kept.to_json().items() if name in KEPT}
    if wrong := misfits(graph, encoded):
        raise ForkError(
            f"{', '.join(map(quoted, wrong))} in version {graph.version} of workflow {graph.id}: for_each or while was "
            "added or taken away, so the results do not fit; fork on the version of the execution"
        )
    undone = [*kept.order, *(one for one in partly if plan.steps[one].compensate is not None)]
    return KeptPart(encoded, tuple(whole), tuple(partly), tuple(undone))


def misfits(graph: Graph, kept: dict[str, Json]) -> list[str]:
    """Return the kept steps that a graph does not have, or has in another shape."""
    state = kept_state(kept)
    wrong: list[str] = []
    for one in (*state.plain, *state.steps):
        step, progress = graph.steps.get(one), state.steps.get(one)
        code = state.code(one)
        if step is None:
            fits = code == SKIPPED
        elif progress is not None and progress.items is not None:
            fits = step.for_each is not None
        elif progress is not None and (progress.round or progress.most):
            fits = step.while_ is not None
        else:
            fits = code != COMPLETED or step.for_each is None
        if not fits:
            wrong.append(one)
    return wrong


def kept_state(kept: dict[str, Json]) -> GraphState:
    """Return the state of an execution that has done no more than what is kept."""
    return GraphState.from_json({"status": ExecutionStatus.RUNNING, **kept})


def _following(plan: GraphPlan, steps: Iterable[str]) -> set[str]:
    """Return steps, and all that follows from them."""
    found: set[str] = set()
    rest = list(steps)
    while rest:
        step = rest.pop()
        if step not in found:
            found.add(step)
            rest += [plan.order[number].id for number in plan.dependents[step]]
    return found


def _reopened(plan: GraphPlan, state: GraphState, again: set[str]) -> set[str]:
    """Return the ended steps besides `again` that begin again, too."""
    found: set[str] = set()
    rest = [one for one in plan.steps if begins_again(state.known(one))]
    rest += [one for one in plan.steps if state.code(one) not in ENDED]
    seen: set[str] = set()
    while rest:
        step = rest.pop()
        if step in seen:
            continue
        seen.add(step)
        if state.code(step) in ENDED and step not in again:
            found.add(step)
        for number in plan.dependents[step]:
            other = plan.order[number].id
            if state.code(other) == SKIPPED:
                rest.append(other)
    return found


def _done_part(progress: StepProgress) -> StepProgress | None:
    """Return what is done of a map or loop that begins again; None for nothing."""
    items = progress.items
    part = StepProgress(PENDING)
    if items is not None and COMPLETED in items.codes:
        part.items = MapProgress("".join(code if code == COMPLETED else PENDING for code in items.codes))
        part.items.attempts = {item: count for item, count in items.attempts.items() if items.codes[item] == COMPLETED}
    elif progress.round:
        part.round, part.most = progress.round, progress.most
    else:
        return None
    part.base = progress.highest_attempt()
    return part
