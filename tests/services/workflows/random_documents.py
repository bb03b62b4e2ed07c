"""Documents of workflows drawn from a random generator, and how their work ends.

What happens in them does not depend on the order in which steps end: a step reads the results of
its dependencies only, and each place has its own destiny.
"""

from __future__ import annotations

import random
from typing import Any

Json = Any
BELOW = {
    "name": "below",
    "steps": [
        {"id": "no", "when": "int(trigger.n) % 5 == 0", "fail": {"message": "five", "error_type": "FIVE"}},
        {"id": "twice", "output": {"$expr": "trigger.n * 2"}},
    ],
    "outputs": {"$expr": "steps.twice.result"},
}
"""A workflow that doubles `n`, and fails for multiples of five."""


class DocumentMaker:
    """Makes documents."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def chance(self, percent: int) -> bool:
        """Return whether something that has this chance happens."""
        return self.rng.randrange(100) < percent

    def document(self) -> dict[str, Json]:
        """Return a document."""
        names = [f"s{number}" for number in range(self.rng.randrange(2, 8))]
        steps = [self._step(names, number) for number in range(len(names))]
        self.rng.shuffle(steps)
        return {"name": "flow", "steps": steps}

    def _step(self, names: list[str], number: int) -> dict[str, Json]:
        before, after = names[:number], names[number + 1 :]
        step: dict[str, Json] = {"id": names[number]}
        reads = [one for one in before if self.chance(35)]
        if reads:
            step["depends_on"] = reads
        if after and self.chance(15):
            step["on_success"] = self.rng.choice(after)
        if after and self.chance(35):
            step["on_failure"] = self.rng.choice(after)
        elif self.chance(25):
            step["on_error"] = [{"error": "*", "result": self.rng.randrange(10)}]
        paths = [f"steps.{one}.result" for one in reads]
        if self.chance(20):
            step["when"] = f"{self._number(paths)} > 1"
        if self.chance(25):
            items = f"map(1..{self.rng.randrange(1, 8)}, # + {self._number(paths)})"
            mode = self.rng.choice(("fail_fast", "settled"))
            step["for_each"] = {"items": {"$expr": items}, "mode": mode, "max_parallel": self.rng.randrange(4)}
            paths = [*paths, "item"]
        elif self.chance(15):
            step["while"] = {"condition": f"round < {self.rng.randrange(4)}"}
            paths = [*paths, "round", "last"]
        self._work(step, paths)
        if self.chance(40):
            step["compensate"] = {"agent": "hand", "tool_name": "undo", "arguments": {"of": {"$expr": "result"}}}
        return step

    def _work(self, step: dict[str, Json], paths: list[str]) -> None:
        value = {"$expr": self._number(paths)}
        choice = self.rng.randrange(100)
        if choice < 50:
            step["action"] = {"agent": "hand", "arguments": {"n": value}}
            if self.chance(30):
                step["output"] = {"was": {"$expr": "result"}, "n": value}
        elif choice < 65:
            step["output"] = value
        elif choice < 75:
            step["action"] = {"type": "emit_event", "event_name": "heard", "payload": value}
        elif choice < 85:
            step |= {"workflow": "below", "input": {"n": value}}
        elif choice < 93:
            step["wait"] = {"duration": value}
        else:
            step["wait"] = {"signal": "go"}

    def _number(self, paths: list[str]) -> str:
        terms = [f"len(toJSON({path}))" for path in paths if self.chance(70)]
        return f"(({' + '.join([*terms, str(self.rng.randrange(100))])}) % 10)"


def destiny(seed: int, step: str, item: str, attempt: int) -> tuple[Json, str]:
    """Return the result and the error of an agent's work at a place."""
    rng = random.Random(f"{seed} {step} {item} {attempt}")
    return rng.randrange(1_000_000), "bad luck" if rng.random() < 0.12 else ""


def destiny_below(given: Json) -> tuple[Json, str]:
    """Return the result and the error of an execution of BELOW."""
    return (None, "step no: five") if given["n"] % 5 == 0 else (given["n"] * 2, "")
