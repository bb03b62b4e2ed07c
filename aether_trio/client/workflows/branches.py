"""A branch of a function: the function itself, or what a nursery has started.

Steps are named within their branch, so in which order branches run does not matter. A branch is
cancelled once for each reason, by the outcome of one step, which is recorded: a replay raises it at
the same place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio


@dataclass(slots=True, eq=False)
class Branch:
    """The state of one branch; `path` is "" or ends with /."""

    path: str
    now_ms: int
    code: str = ""
    """Where it was started, as file:line."""
    count: int = 0
    """Steps that it has begun."""
    uses: Counter[str] = field(default_factory=Counter)
    nurseries: int = 0
    draws: int = 0
    """Random values that it has drawn."""
    busy: bool = False
    open_key: str = ""
    """The step for whose end it waits."""
    scope: anyio.CancelScope | None = None
    """The scope of the step that its worker does now."""
    pending: bool = False
    """Whether it is to be cancelled, and was not told yet."""
    credit: int = 0
    """How often a replay has cancelled it before that was asked for."""
    children: list[Branch] = field(default_factory=list)
    patches: dict[str, bool] = field(default_factory=dict)
    parent: Branch | None = None

    def key_for(self, name: str) -> str:
        """Return the key of its next step of this name."""
        self.uses[name] += 1
        use = self.uses[name]
        return f"{self.path}{name}" if use == 1 else f"{self.path}{name}#{use}"

    @contextmanager
    def step(self) -> Iterator[None]:
        """Hold the branch for one step. Raises RuntimeError for a second one."""
        if self.busy:
            raise RuntimeError(
                "two steps of a function at once in one branch: start parallel steps in `async with flow.nursery()`, "
                "and call no flow inside of a step"
            )
        self.busy = True
        try:
            yield
        finally:
            self.busy, self.open_key, self.scope = False, "", None

    def ask_to_end(self) -> bool:
        """Note that the branch is cancelled; return False if a replay has told it already."""
        if self.credit:
            self.credit -= 1
            return False
        if self.pending:
            return False
        self.pending = True
        return True

    def was_told(self) -> None:
        """Note that the branch has been told of its cancellation."""
        if self.pending:
            self.pending = False
        else:
            self.credit += 1
