"""Hops: which rules and workflows led to an event or a task, so that a loop ends.

A chain is the names of its causes, oldest first: ("rule:intake", "workflow:report"). Each action
extends the chain of what it follows from by one, and what it makes carries the new chain: an event
as a member, a task in its metadata. The 17th hop is refused.

A client can send any chain, or none. What is no chain is read as an empty one; of a longer chain
the last names count, so it is refused like one that grew here. Nothing that is read, written or
said is longer than MAX_HOPS names of MAX_NAME characters.
"""

from __future__ import annotations

import json
from typing import Final, TypeAlias

from aether_trio.model.text import encodable, escaped
from aether_trio.model.workflows.definition import Json

MAX_HOPS: Final = 16
MAX_NAME: Final = 80
"""How many characters of a name a chain has."""
MAX_ENCODED: Final = 16 * 1024
"""A longer text is no chain. The longest that is written: each character an escape of 12."""

Hops: TypeAlias = tuple[str, ...]


class TooManyHops(ValueError):
    """An action would be the 17th of its chain; `chain` has those before."""

    def __init__(self, chain: Hops, name: str) -> None:
        self.chain = chain
        path = " → ".join(escaped(each, MAX_NAME) for each in (*chain, name))
        super().__init__(
            f"stopped after {len(chain)} hops: {path}. Rules or workflows cause each other: "
            "give one of them a condition that ends the loop"
        )


def extend(chain: Hops, kind: str, name: str) -> Hops:
    """Return the chain with a further cause; raise TooManyHops beyond MAX_HOPS.

    `kind` is rule, workflow, schedule, machine or join.
    """
    cause = _cut(f"{kind}:{name}")
    if len(chain) >= MAX_HOPS:
        raise TooManyHops(chain, cause)
    return (*chain, cause)


def encode(chain: Hops) -> str:
    """Return a chain as JSON in ASCII for metadata; "" for an empty one."""
    return json.dumps(chain, separators=(",", ":")) if chain else ""


def decode(value: Json) -> Hops:
    """Read a chain of a message, a list or the text of one; never raises."""
    if isinstance(value, str):
        if not 0 < len(value) <= MAX_ENCODED:
            return ()
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return ()
    if not isinstance(value, list | tuple):
        return ()
    return tuple(_cut(name) for name in value[-MAX_HOPS:] if isinstance(name, str) and name)


def _cut(name: str) -> str:
    return encodable(name[:MAX_NAME]).replace("\x00", "\ufffd")
