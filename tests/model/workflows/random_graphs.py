"""Graphs, and worlds in which they run, drawn from a random generator."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

from aether_trio.model.workflows.definition import (
    Action,
    ActionType,
    AskStep,
    Budget,
    CallWorkflow,
    Compute,
    ContinueAs,
    ErrorHandler,
    Escalation,
    EvaluationError,
    Fail,
    ForEach,
    Graph,
    Json,
    MapMode,
    Path,
    RetryRule,
    Step,
    Value,
    WaitFor,
    While,
    Work,
)
from tests.model.workflows.driver import graph, lit

SIGNALS = ("go", "stop")


class Number:
    """A number made of what is read of steps, and of further names.

    Every `fails`-th number cannot be computed; `make` turns the number into the value.
    """

    def __init__(
        self,
        steps: list[str],
        names: tuple[str, ...] = (),
        *,
        seed: int = 0,
        fails: int = 0,
        make: Callable[[int], Json] = lambda number: number,
        field: str = "result",
    ) -> None:
        self._steps, self._names, self._seed, self._fails = steps, names, seed, fails
        self._make, self._field = make, field
        self._paths = frozenset([*(("steps", one, field) for one in steps), *((one,) for one in names)])

    def paths(self) -> frozenset[Path]:
        """Return what it reads."""
        return self._paths

    def evaluate(self, env: Any, *, now: Callable[[], datetime]) -> Json:
        """Compute it."""
        total = self._seed
        for one in self._steps:
            total = total * 31 + number_of(env["steps"][one][self._field])
        for one in self._names:
            total = total * 31 + number_of(env.get(one))
        total %= 1009
        if self._fails and total % self._fails == 0:
            raise EvaluationError(f"{total} is no number")
        return self._make(total)


def number_of(value: Json) -> int:
    """Return a number that depends on all of a value."""
    match value:
        case None:
            return 1
        case bool():
            return int(value)
        case int():
            return 2 * value + 1
        case float():
            return int(value)
        case str():
            return sum(map(ord, value))
        case dict():
            return sum(number_of(one) for one in value.values())
        case _:
            return sum((place + 1) * number_of(one) for place, one in enumerate(value)) + len(value)


class GraphMaker:
    """Makes graphs; of a calm one the result depends on no order of ends."""

    def __init__(self, rng: random.Random, *, calm: bool = False) -> None:
        self.rng = rng
        self.calm = calm

    def chance(self, percent: int) -> bool:
        """Return whether something that has this chance happens."""
        return self.rng.randrange(100) < percent

    def graph(self) -> Graph:
        """Return a graph."""
        count = self.rng.choice((1, 2, 3, 3, 4, 5, 6, 8))
        names = [f"s{number}" for number in range(count)]
        shapes: list[dict[str, Any]] = [{"id": name} for name in names]
        for number, shape in enumerate(shapes):
            self._link(shape, names, number)
        steps = [self._step(shape, names[:number]) for number, shape in enumerate(shapes)]
        self.rng.shuffle(steps)
        return graph(
            *steps,
            outputs=self._number(names, fails=11) if self.chance(20) else None,
            timeout_ms=self.rng.choice((5_000, 20_000)) if self.chance(15) and not self.calm else 0,
            budget=Budget(steps=self.rng.randrange(1, 6)) if self.chance(10) and not self.calm else Budget(),
        )

    def _link(self, shape: dict[str, Any], names: list[str], number: int) -> None:
        before, after = names[:number], names[number + 1 :]
        needs = [one for one in before if self.chance(35)]
        shape["depends_on"] = tuple(needs)
        if needs and self.chance(30) and not self.calm:
            shape["join"] = self.rng.randrange(1, len(needs) + 1)
        if after and self.chance(15):
            shape["on_success"] = self.rng.choice(after)
        if after and self.chance(30):
            shape["on_failure"] = self.rng.choice(after)
        handlers = []
        while self.chance(20) and len(handlers) < 3:
            pattern = "*" if self.calm else self.rng.choice(("*", "X*", "*bad*", "EXPRESSION", "TIMEOUT", "FAILED"))
            if after and self.chance(50):
                handlers.append(ErrorHandler(error=pattern, run=self.rng.choice(after)))
            else:
                names_read = () if self.calm else ("error",)
                value = Number([], names_read, seed=self._seed(), fails=self._fails(5))
                handlers.append(ErrorHandler(error=pattern, result=value))
        shape["on_error"] = tuple(handlers)

    def _step(self, shape: dict[str, Any], before: list[str]) -> Step:
        if self.chance(20):
            mode = self.rng.choice(list(MapMode))
            items = Number(self._some(before), seed=self._seed(), fails=self._fails(13), make=self._list)
            shape["for_each"] = ForEach(items=items, mode=mode, max_parallel=self.rng.choice((0, 0, 1, 2, 3)))
            extra = ("item", "index")
        elif self.chance(15):
            bound = self.rng.randrange(2, 5)
            condition = Number([], ("round", "last"), seed=self._seed(), make=lambda number: number % bound > 0)
            shape["while_"] = While(condition=condition, max_rounds=self.rng.choice((3, 50)))
            extra = ("round", "last")
        else:
            extra = ()
        work = self._work(before, extra)
        if isinstance(work, Compute) or self.chance(20):
            shape["output"] = self._number(before, (*extra, "result"), fails=7)
        if self.chance(20):
            dull = 0 if self.calm else 23
            shape["when"] = Number(
                self._certain(shape, before),
                seed=self._seed(),
                fails=self._fails(17),
                make=lambda number: number % 4 > 0 if not dull or number % dull else number,
            )
        if self.chance(40):
            emits = self.chance(30)
            kind = ActionType.EMIT_EVENT if emits else ActionType.MESSAGE
            arguments = self._number(before, (*extra, "result"), fails=9) if not self.calm else lit(1)
            shape["compensate"] = Action(type=kind, agent="undo", arguments=arguments)
        if not isinstance(work, Action) and self.chance(30):
            shape["retry"] = RetryRule(
                max_attempts=self.rng.randrange(1, 4),
                backoff=self.rng.choice(("constant", "linear", "exponential")),
                initial_ms=1_000,
                max_ms=self.rng.choice((0, 1_500)),
                jitter=0,
                final=("X1",) if self.chance(30) else (),
            )
        if isinstance(work, (WaitFor, AskStep)) and self.chance(50) and not self.calm:
            shape["timeout_ms"] = self.rng.choice((1_000, 3_000, 3_000, 9_000))
        return Step(work=work, **shape)

    def _certain(self, shape: dict[str, Any], before: list[str]) -> list[str]:
        """Return steps that have ended when the step begins; any, unless it is calm."""
        return [one for one in shape["depends_on"] if self.chance(50)] if self.calm else self._some(before)

    def _work(self, before: list[str], extra: tuple[str, ...]) -> Work:
        value: Value = self._number(before, extra, fails=15)
        choice = self.rng.randrange(100)
        if choice < 35:
            return Action(agent="worker", arguments=value, payload=lit(1) if self.chance(30) else None)
        if choice < 45:
            return Action(type=ActionType.EMIT_EVENT, event_name="e", payload=value)
        if choice < 60:
            return Compute()
        if choice < 72:
            return CallWorkflow(workflow="other", input=value if self.chance(70) else None)
        if choice < 78:
            return AskStep(
                question=value,
                of=lit("us::ada") if self.chance(50) else None,
                default=self._default(before, extra),
                escalate=tuple(
                    Escalation(after_ms=after, of=self._number(before, extra, fails=15))
                    for after in (500, 2_000)[: self.rng.randrange(3)]
                )
                if not self.calm
                else (),
            )
        if choice < 84:
            condition = Number([], ("input",), seed=self._seed(), make=lambda number: number % 3 > 0)
            fits = condition if self.chance(40) and not self.calm else None
            return WaitFor(signal=self.rng.choice(SIGNALS), condition=fits, default=self._default(before, extra))
        if choice < 90:
            condition = Number(
                [], ("input",), seed=self._seed(), fails=self._fails(9), make=lambda number: number % 3 > 0
            )
            fits = None if self.calm else condition
            return WaitFor(event="e", equals=value, condition=fits, default=self._default(before, extra))
        if choice < 95 or self.calm:
            seconds = Number(self._some(before), seed=self._seed(), make=lambda number: number % 5)
            return WaitFor(duration=seconds, default=self._default(before, extra))
        if choice < 98:
            return Fail(message=value, error_type="NO")
        return ContinueAs(input=value)

    def _default(self, before: list[str], extra: tuple[str, ...]) -> Value | None:
        return self._number(before, extra, fails=5) if self.chance(40) else None

    def _number(self, before: list[str], names: tuple[str, ...] = (), fails: int = 0) -> Number:
        field = "result" if self.calm or self.chance(80) else self.rng.choice(("status", "error", "error_type"))
        steps = [] if self.calm else self._some(before)
        if self.chance(10):
            names = (*names, "trigger")
        return Number(steps, names, seed=self._seed(), fails=self._fails(fails), field=field)

    def _some(self, names: list[str]) -> list[str]:
        return [] if self.calm else [one for one in names if self.chance(30)]

    def _seed(self) -> int:
        return self.rng.randrange(1, 1000)

    def _fails(self, often: int) -> int:
        return often if often and self.chance(25) else 0

    def _list(self, number: int) -> Json:
        if number % 37 == 0 and not self.calm:
            return "no list"
        return list(range(number % 6))
