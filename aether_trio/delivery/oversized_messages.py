"""Skips stored messages that are bigger than any client accepts."""

from __future__ import annotations

from collections.abc import Callable

from aether_trio.delivery.outbox_subscription import Origin


def skip_oversized_message(
    origin: Origin, offset: int, size: int, on_oversized: Callable[[str, int, int], None] | None
) -> bool:
    """Skip a message, and report topic, offset and size in bytes; return True.

    Waiting for room would hold up the topic for ever. A later delivery moves the position.
    """
    if on_oversized is not None:
        on_oversized(origin.topic, offset, size)
    if origin.shared or origin.position_done == offset - 1:
        origin.acknowledged(offset)
    return True
