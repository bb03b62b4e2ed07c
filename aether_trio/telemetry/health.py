"""Tells whether the gateway lives (/healthz) and is ready for work (/readyz).

A gateway is not ready while starting, while draining, and while a probe (storage, say) reports a
problem. Probes read a flag and do no I/O, because a readiness check must be quick exactly when the
disk is not.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Probe = Callable[[], str | None]
"""Returns None when all is well, else the problem in a few words."""


class Phase(enum.StrEnum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Readiness:
    """The answer of `/readyz`; `problems` has an entry for each failing probe."""

    phase: Phase
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.phase is Phase.SERVING and not self.problems


class GatewayHealth:
    """Holds a gateway's phase (starting, serving, draining) and its readiness probes."""

    def __init__(self) -> None:
        self._phase = Phase.STARTING
        self._probes: dict[str, Probe] = {}

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the probes."""
        return tuple(self._probes)

    def add_probe(self, name: str, probe: Probe) -> None:
        """Register a probe, which every readiness check asks."""
        if name in self._probes:
            raise ValueError(f"there is already a probe {name!r} of readiness; give this one another name")
        self._probes[name] = probe

    def serving(self) -> None:
        """Mark the gateway as serving, unless it is draining already."""
        if self._phase is Phase.STARTING:
            self._phase = Phase.SERVING

    def draining(self) -> None:
        self._phase = Phase.DRAINING

    def readiness(self) -> Readiness:
        """Ask all probes whether the gateway is ready. Never raises."""
        problems: dict[str, str] = {}
        for name, probe in self._probes.items():
            try:
                problem = probe()
            except Exception as exc:
                problem = f"probe failed: {exc!r}"
            if problem:
                problems[name] = problem
        return Readiness(self._phase, problems)
