"""`agent.topics`: what topics hold and how far they are read; purges them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from aether_trio.client.errors import NotImplementedByGateway
from aether_trio.client.operations.namespace import Namespace
from aether_trio.client.operations.records import to_time
from aether_trio.wire.pb import aether_pb2 as pb

_Op = pb.WorkspaceOperation


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicInfo:
    """What a topic holds."""

    name: str
    messages: int
    retained_bytes: int
    first_offset: int
    """Of the oldest message that is kept, or of the next one without any."""
    last_offset: int
    """Of the newest message, also if it is not kept any more."""
    oldest_at: datetime | None
    newest_at: datetime | None
    consumers: int
    """1,001 stands for more than 1,000."""
    most_behind: int
    """Messages that the slowest of these consumers has not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerInfo:
    """A consumer of a topic, and how far it has read."""

    name: str
    """An identity; "*" are the workers of a work queue."""
    lag: int
    """Kept messages that it has not read."""
    position: int
    """Offset of the last message that it has read."""
    moved_at: datetime | None
    """When that was written."""


@dataclass(frozen=True, slots=True)
class TopicPage:
    """A page of topics, in the order of their names."""

    topics: tuple[TopicInfo, ...]
    next_after: str
    """The `after` of the next page; "" when this is the last."""


@dataclass(frozen=True, slots=True)
class TopicDetails:
    """A topic, and a page of its consumers in the order of their names."""

    topic: TopicInfo
    consumers: tuple[ConsumerInfo, ...]
    next_after: str
    """The `after` of the next page; "" when this is the last."""


@dataclass(frozen=True, slots=True)
class Purged:
    """How many messages a request has deleted, and whether there are more to delete."""

    messages: int
    more: bool


class Topics(Namespace):
    """Says what topics hold and how far they are read; purges them."""

    async def list(self, workspace: str = "", *, prefix: str = "", limit: int = 0, after: str = "") -> TopicPage:
        """List topics of a workspace (of all: ""), 100 by default, 500 at most.

        Needs READ on the workspace, or on `admin/workspaces` for all.
        """
        answer = await self._do("list", workspace, limit, _prefix=prefix, _after=after)
        return TopicPage(tuple(map(_topic, answer.message_flow.nodes)), answer.workspace.metadata.get("_after", ""))

    async def show(self, topic: str, *, limit: int = 0, after: str = "") -> TopicDetails:
        """Return a topic with its consumers. Raises Refused if no message was sent to it."""
        answer = await self._do("show", "", limit, _topic=topic, _after=after)
        consumers = tuple(map(_consumer, answer.message_flow.edges))
        return TopicDetails(
            _topic(answer.message_flow.nodes[0]), consumers, answer.workspace.metadata.get("_after", "")
        )

    async def purge(self, topic: str, *, through: int) -> Purged:
        """Delete a topic's messages up to an offset; call it again while there are more.

        Consumers that have not read them are told that they are gone. Needs ADMIN on the workspace.
        """
        answer = await self._do("purge", "", 0, _topic=topic, _through=str(through))
        told = answer.workspace.metadata
        return Purged(int(told.get("_purged", "0")), told.get("_more", "") == "true")

    async def _do(self, what: str, workspace: str, limit: int, **arguments: str) -> pb.WorkspaceResponse:
        metadata: Mapping[str, str] = {"_topics": what} | {name: text for name, text in arguments.items() if text}
        op = _Op(
            op=_Op.GET_MESSAGE_FLOW,
            workspace_id=workspace,
            workspace=pb.WorkspaceInfo(metadata=metadata),
            filter=pb.WorkspaceFilter(limit=limit),
        )
        answer: pb.WorkspaceResponse = await self._ask("workspace_op", op)
        if answer.workspace.metadata.get("_topics") != what:
            raise NotImplementedByGateway("NOT_IMPLEMENTED", "this gateway has no operations on topics")
        return answer


def _topic(node: pb.FlowNode) -> TopicInfo:
    facts = json.loads(node.label)
    return TopicInfo(
        name=node.id,
        messages=facts["messages"],
        retained_bytes=facts["bytes"],
        first_offset=facts["first"],
        last_offset=facts["last"],
        oldest_at=to_time(facts["oldest_ms"], "ms"),
        newest_at=to_time(facts["newest_ms"], "ms"),
        consumers=facts["consumers"],
        most_behind=facts["most_behind"],
    )


def _consumer(edge: pb.FlowEdge) -> ConsumerInfo:
    facts = json.loads(edge.label)
    return ConsumerInfo(
        name=edge.to, lag=edge.count, position=facts["position"], moved_at=to_time(facts["moved_ms"], "ms")
    )
