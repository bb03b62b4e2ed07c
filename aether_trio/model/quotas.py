"""The limits that may differ from one workspace to another: quotas.

A quota has the name of the limit (model/limits.py) that it overrides in its workspace. Settings
give the limits of all other workspaces. `WorkspaceQuotas` has all overrides in memory: reading one
is a look-up, also for each message.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Final

from aether_trio.model.limits import MAX_TASK_PAYLOAD_BYTES, Limits
from aether_trio.model.text import shown

MAX_VALUE: Final = 2**53
"""Larger values are refused: a double has them exactly up to here."""


class QuotaError(ValueError):
    """There is no quota of a name, or it cannot have a value."""


@dataclass(frozen=True, slots=True)
class QuotaValues:
    """The quotas in force in one workspace; 0 is unlimited where Limits allows it."""

    connections_per_workspace: int
    workspace_rate_per_s: float
    identity_rate_per_s: float
    task_payload_bytes: int
    kv_value_bytes: int
    kv_keys_per_scope: int
    kv_bytes_per_scope: int

    @classmethod
    def of(cls, limits: Limits) -> QuotaValues:
        """Return the quotas of a workspace without overrides."""
        return cls(**{name: getattr(limits, name) for name in QUOTA_NAMES})


QUOTA_NAMES: Final = tuple(item.name for item in fields(QuotaValues))
RATES: Final = frozenset({"workspace_rate_per_s", "identity_rate_per_s"})
"""Quotas whose values may have a fraction."""
_POSITIVE: Final = frozenset({"task_payload_bytes", "kv_value_bytes"})
_MOST: Final[Mapping[str, int]] = {"task_payload_bytes": MAX_TASK_PAYLOAD_BYTES}


def check_quota_name(name: str) -> str:
    """Return the name of a quota. Raises QuotaError, which names the nearest one."""
    if name in QUOTA_NAMES:
        return name
    nearest = get_close_matches(name[:100], QUOTA_NAMES, 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else f"; there are {', '.join(QUOTA_NAMES)}"
    raise QuotaError(f"there is no quota {shown(name)}{hint}")


def parse_quota(name: str, text: str) -> float:
    """Return the value of a quota from its text. Raises QuotaError."""
    check_quota_name(name)
    if len(text) > 32 or not text.isascii():
        raise QuotaError(f"quota {name} is a number, not {shown(text)}")
    try:
        value: float = float(text) if name in RATES else int(text)
    except ValueError:
        kind = "a number" if name in RATES else "a whole number"
        raise QuotaError(f"quota {name} is {kind}, not {shown(text)}") from None
    least, most = (1 if name in _POSITIVE else 0), _MOST.get(name, MAX_VALUE)
    if not (math.isfinite(value) and least <= value <= most):
        raise QuotaError(f"quota {name} is {shown(text)}; it is at least {least} and at most {most}")
    if 0 < value < 0.001:
        raise QuotaError(f"quota {name} is {shown(text)}; a rate is 0 (unlimited), or at least 0.001")
    return value


def quota_text(value: float) -> str:
    """Return a value as `parse_quota` reads it, a whole number without a fraction."""
    return str(int(value)) if value == int(value) else repr(value)


class WorkspaceQuotas:
    """The quotas of all workspaces, in memory. No method waits."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.defaults = QuotaValues.of(limits or Limits())
        """The quotas of a workspace without overrides."""
        self._overrides: dict[str, dict[str, float]] = {}
        self._values: dict[str, QuotaValues] = {}
        self.limits_messages = False
        """Whether any workspace or identity has a rate of messages."""
        self._settle()

    def of(self, workspace: str) -> QuotaValues:
        """Return the quotas in force in a workspace."""
        return self._values.get(workspace, self.defaults)

    def overrides(self, workspace: str) -> Mapping[str, float]:
        """Return the quotas that were set for a workspace, by name."""
        return self._overrides.get(workspace, {})

    def connections(self, workspace: str) -> int:
        """Return how many connections a workspace may have; 0: any number."""
        return self.of(workspace).connections_per_workspace

    def apply(self, changed: Iterable[tuple[str, str, Any]], *, everything: bool) -> None:
        """Take over changed overrides (workspace, name, value); value None: cleared.

        With `everything` these are all there are. Unknown names are those of a newer release.
        """
        if everything:
            self._overrides, self._values = {}, {}
        touched: set[str] = set()
        for workspace, name, value in changed:
            if name not in QUOTA_NAMES:
                continue
            touched.add(workspace)
            own = self._overrides.setdefault(workspace, {})
            if value is None:
                own.pop(name, None)
            else:
                own[name] = float(value) if name in RATES else int(value)
        for workspace in touched:
            own = self._overrides[workspace]
            if own:
                self._values[workspace] = replace(self.defaults, **own)  # type: ignore[arg-type]  # by their names
            else:
                del self._overrides[workspace]
                self._values.pop(workspace, None)
        self._settle()

    def _settle(self) -> None:
        every = (self.defaults, *self._values.values())
        self.limits_messages = any(one.workspace_rate_per_s or one.identity_rate_per_s for one in every)
