"""Who may do what, as pure decisions: levels, rules, patterns, a ladder of tiers.

Standard library only, no I/O and no clock: callers give the moment in Unix milliseconds. The
services load rules from the database into these structures and ask them.
"""

from __future__ import annotations

from aether_trio.model.access.levels import AccessLevel

__all__ = ["AccessLevel"]
