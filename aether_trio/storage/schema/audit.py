"""The audit trail, which has no tables yet.

Its first migration will be added with the audit service.
"""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = ()
