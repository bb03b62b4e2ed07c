"""The way to the other nodes that write to the same log: who is told of what was committed. A single node has none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from aether_trio.log.topic_state import TopicState


class LogRelay(Protocol):
    """Made by the cluster (cluster/relay/log_relay.py). `TopicLog.relay` is set before anybody connects, or never."""

    async def expect(self, topics: Sequence[str]) -> None:
        """Make known that this node listens to these topics. Whoever reads a topic's tail afterwards misses nothing: what is not
        in it yet will be told. Raises StorageUnavailable.
        """
        ...

    def committed(self, states: Iterable[TopicState]) -> None:
        """Something of these topics is new: have the nodes that listen to them look. Never blocks."""
        ...
