"""Tables of the audit trail: none before there is an audit service."""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = ()
