"""`agent.checkpoints`: saves state that a participant finds after a restart."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.records import to_time
from aether_trio.wire.pb import aether_pb2 as pb

DEFAULT_KEY: Final = "default"
SERVER_TTL: Final = -1
"""A ttl that leaves it to the gateway's settings."""

_Op = pb.CheckpointOperation


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved checkpoint: its data, and when it was saved (whole seconds)."""

    data: bytes
    saved_at: datetime | None

    @property
    def json(self) -> Any:
        """What the data means as JSON text. Raises ValueError if it is none."""
        return json.loads(self.data)


class Checkpoints(Namespace):
    """Saves and loads state that a participant needs after a restart."""

    async def save(self, data: bytes, key: str = DEFAULT_KEY, *, ttl_s: int = SERVER_TTL) -> datetime | None:
        """Save a checkpoint for `ttl_s` (0: for good, -1: gateway's choice); return when."""
        answer: pb.CheckpointResponse = await self._ask(
            "checkpoint_op", _Op(op=_Op.SAVE, key=key, data=data, ttl=ttl_s)
        )
        return to_time(answer.saved_at)

    async def load(self, key: str = DEFAULT_KEY) -> Checkpoint | None:
        """Return the checkpoint with this key, or None."""
        answer: pb.CheckpointResponse = await self._ask("checkpoint_op", _Op(op=_Op.LOAD, key=key))
        if not answer.data and not answer.saved_at:
            return None
        return Checkpoint(answer.data, to_time(answer.saved_at))

    async def delete(self, key: str = DEFAULT_KEY) -> None:
        """Delete a checkpoint. A missing one is no error."""
        await self._ask("checkpoint_op", _Op(op=_Op.DELETE, key=key))

    async def list(self) -> tuple[str, ...]:
        """List the keys of all checkpoints, in order."""
        answer: pb.CheckpointResponse = await self._ask("checkpoint_op", _Op(op=_Op.LIST))
        return tuple(answer.keys)
