"""Decides which unconfirmed messages a client sends again after a reconnect."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aether_trio.client.connection.outgoing_messages import ClockReading, Publication


def in_doubt(publications: Sequence[Publication], *, repeat: bool, within_s: float) -> set[Publication]:
    """Return the unconfirmed messages that must not be sent again.

    A repetition might be a duplicate. With `repeat` the gateway still recognizes a message that was
    first written less than `within_s` seconds ago.
    """
    if not repeat:
        return set(publications)
    if within_s == math.inf:
        return set()
    now = ClockReading.now()
    return {one for one in publications if one.first_written and one.first_written.before_s(now) >= within_s}
