"""Ends sessions whose client has read nothing for minutes."""

from __future__ import annotations

from typing import Final

import trio

from aether_trio.model.errors import Status
from aether_trio.session.registry import SessionRegistry

CHECKS_PER_TIMEOUT: Final = 10  # a stalled session ends at most a tenth of it late


async def end_stalled_sessions(registry: SessionRegistry, write_timeout_s: float) -> None:
    """End sessions whose client has long read none of the data that waits for it."""
    while True:
        await trio.sleep(write_timeout_s / CHECKS_PER_TIMEOUT)
        latest = trio.current_time() - write_timeout_s
        for session in registry:
            stalled_since = session.link.stalled_since
            if stalled_since is not None and stalled_since < latest:
                session.end(Status.UNAVAILABLE, f"this client has read nothing for {write_timeout_s:g} seconds")
