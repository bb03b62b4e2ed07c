"""The audit trail. Nothing is written to it yet; its first migration comes with the audit service."""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = ()
