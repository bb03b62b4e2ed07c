"""What a transaction keeps of the executions that it moves on."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from aether_trio.model.workflows.definition import Json
from aether_trio.model.workflows.happenings import Happening, StepPlace
from aether_trio.model.workflows.state import State
from aether_trio.services.tasks.transaction.interface import Transaction
from aether_trio.services.workflows.executions.execution_rows import ExecutionRow
from aether_trio.services.workflows.executions.families import ExecutionFamily
from aether_trio.services.workflows.executions.function_rows import RunningFunction


@dataclass(slots=True)
class LoadedExecution:
    """An execution in a transaction; `changed`: it is to be saved.

    `new`: it has no row. `given` has the encoded results of steps that end in this transaction.
    """

    row: ExecutionRow
    state: State
    changed: bool = False
    results: dict[StepPlace, Json] = field(default_factory=dict)
    given: dict[StepPlace, bytes | None] = field(default_factory=dict)
    new: bool = False
    inserted: tuple[Any, ...] = ()
    """What was written of a new execution (`execution_rows.changing`)."""

    def forget(self, place: StepPlace) -> None:
        """Forget the result of a step or item: it is written, or begun again."""
        self.results.pop(place, None)
        self.given.pop(place, None)


@dataclass(slots=True)
class ExecutionTurn:
    """What happens to executions in one transaction, in order."""

    queue: deque[tuple[str, Happening]] = field(default_factory=deque)
    loaded: dict[str, LoadedExecution] = field(default_factory=dict)
    given: dict[str, dict[StepPlace, bytes | None]] = field(default_factory=dict)
    """Of each execution, the results of steps that end."""
    ending: set[str] = field(default_factory=set)
    """Executions whose tasks end as the interpreter has said."""
    kept: dict[tuple[str, StepPlace], tuple[str, int]] = field(default_factory=dict)
    """Waits whose events are in the queue: (taker, number of the event)."""
    running: bool = False
    begun: int = 0
    """How many executions have begun."""
    cancelled: int = 0
    """How many sub-executions were cancelled."""
    families: dict[str, ExecutionFamily] = field(default_factory=dict)
    """Those of the roots below which executions were counted."""
    open: set[str] = field(default_factory=set)
    """Tasks whose steps this transaction has read to be open."""
    forgotten: int = 0
    """How many rows of executions that are forgotten were deleted."""
    functions: dict[str, RunningFunction] = field(default_factory=dict)
    """Runs of functions that the transaction has loaded (functions.py)."""


def turn_of(tx: Transaction) -> ExecutionTurn:
    if tx.workflow is None:
        tx.workflow = ExecutionTurn()
    assert isinstance(tx.workflow, ExecutionTurn)
    return tx.workflow


def functions_in(tx: Transaction) -> dict[str, RunningFunction]:
    """Return the runs of functions that a transaction has loaded."""
    return turn_of(tx).functions


def read_state(data: bytes) -> dict[str, Any]:
    """Read the JSON of a state, with integers as they are."""
    found: dict[str, Any] = json.loads(data)
    return found
