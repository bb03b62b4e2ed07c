"""Checks the entries of a metric message (reference: core.md section 4.1).

The caller decodes the payload (ERR_METRIC_INVALID when it cannot) and decides what a negative
quantity requires.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from aether_trio.model.errors import Code, RequestError

MAX_ENTRIES: Final = 1024
MAX_METADATA_KEYS: Final = 64


def check_metric(
    entries: Iterable[tuple[str, float]],
    metadata_keys: int,
    *,
    max_entries: int = MAX_ENTRIES,
    max_metadata_keys: int = MAX_METADATA_KEYS,
) -> bool:
    """Check the (name, quantity) entries of a metric; return whether one is negative.

    A negative quantity needs a permission; minus zero is not negative. The receiver checks the
    kinds of entries. Raises RequestError for the first failure in the reference's order:
    ERR_METRIC_INVALID for too many metadata keys, ERR_METRIC_EMPTY for no entries and, as the
    reference does, for too many, ERR_METRIC_INVALID_ENTRY for an entry without a name or with a
    quantity that is not finite.
    """
    if metadata_keys > max_metadata_keys:
        raise RequestError(
            Code.METRIC_INVALID,
            f"the metric has {metadata_keys} metadata keys; at most {max_metadata_keys} are allowed",
        )
    listed = list(entries)
    if not listed:
        raise RequestError(Code.METRIC_EMPTY, "the metric has no entries")
    if len(listed) > max_entries:
        raise RequestError(
            Code.METRIC_EMPTY, f"the metric has {len(listed)} entries; at most {max_entries} are allowed"
        )
    negative = False
    for position, (name, quantity) in enumerate(listed):
        if not name:
            raise RequestError(Code.METRIC_INVALID_ENTRY, f"entry {position} of the metric has no name")
        if not math.isfinite(quantity):
            raise RequestError(
                Code.METRIC_INVALID_ENTRY,
                f"entry {position} of the metric, {name!r}, is {quantity}, not a finite number",
            )
        negative = negative or quantity < 0
    return negative
