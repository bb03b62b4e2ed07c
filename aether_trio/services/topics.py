"""Answers questions about topics, and purges them, for clients' `workspace_op`.

A GET_MESSAGE_FLOW whose `workspace.metadata` has `_topics` is not about flows:

* `list`: the topics of the workspace `workspace_id`, or of all without one; `_prefix` is what their
  names begin with.
* `show`: the topic `_topic` with its consumers.
* `purge`: the messages of `_topic` up to the offset `_through` are deleted. One request deletes for
  about two seconds; `_more` in the answer asks for the next one.

The answer repeats `_topics`, so that a client knows that it was understood. `filter.limit` bounds a
page, and `_after` in an answer begins the next one. Topics are nodes of the answer's
`message_flow`, consumers are edges with their lag as `count`; the labels are JSON.

Who may: READ on the workspace to look, ADMIN to purge. Topics of no workspace (users, services,
bridges) take `admin/workspaces` at the same levels.

What is purged counts for consumers like what retention has deleted: their unread messages are gone,
and they are told so. Offsets go on behind it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from functools import partial
from typing import Final, TypeVar

import trio

from aether_trio.log.retention import purge
from aether_trio.log.topic_overview import (
    TopicConsumer,
    TopicOverview,
    consumers_of,
    names_between,
    one_topic,
    topics_between,
)
from aether_trio.model.access import AccessLevel
from aether_trio.model.audit import AuditEvent, EventType
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import SEPARATOR, IdentityError, check_token
from aether_trio.model.topics import MAX_TOPIC_BYTES, parse_topic
from aether_trio.services.access import AccessQuestion, Admin
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.session.dispatch import Handler
from aether_trio.session.session import Session
from aether_trio.storage.base import Database, StorageUnavailable
from aether_trio.storage.outages import outage
from aether_trio.wire.error_response import error_response
from aether_trio.wire.pb import aether_pb2 as pb

M = TypeVar("M", pb.FlowNode, pb.FlowEdge)

Op = pb.WorkspaceOperation

WHAT: Final = "_topics"
"""The key of metadata by which a request is about topics: `list`, `show` or `purge`."""
DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 500
MAX_NAMES: Final = 5000
"""Names of other workspaces' topics that one request looks at."""
SLICE: Final = 50
"""Topics and consumers that are written between two checkpoints: a millisecond."""
PURGE_S: Final = 2.0
_LAST: Final = "\U0010ffff"
"""Sorts behind all names with the same beginning."""
_PARTS_BEHIND: Final = ("ag", "ta", "tb", "tk", "tu")
_ALONE: Final = ("ga", "gu")
_OF_USERS: Final = f"uw{SEPARATOR}"
"""Topics whose workspace is their last part: they lie between those of other workspaces."""


class TopicService:
    """Answers questions about topics, and hands other operations to `otherwise`."""

    def __init__(
        self,
        database: Database,
        authorizer: RuleAuthorizer,
        clock: Clock,
        audit: Callable[[AuditEvent], None],
        otherwise: Handler,
        *,
        strict: bool = True,
    ) -> None:
        self._database = database
        self._authorizer = authorizer
        self._clock = clock
        self._audit = audit
        self._otherwise = otherwise
        self._strict = strict
        self._looks = trio.Lock()
        """One page is read at a time: many clients that list cost others as much as one."""

    async def handle(self, session: Session, op: pb.WorkspaceOperation) -> Sequence[pb.DownstreamMessage]:
        """Perform one operation; a refusal is a typed answer and an ErrorResponse."""
        if op.op != Op.GET_MESSAGE_FLOW or WHAT not in op.workspace.metadata:
            return await self._otherwise(session, op)
        reply = pb.WorkspaceResponse(request_id=op.request_id)
        try:
            match op.workspace.metadata[WHAT]:
                case "list":
                    async with self._looks:
                        await self._list(session, op, reply)
                case "show":
                    async with self._looks:
                        await self._show(session, op, reply)
                case "purge":
                    await self._purge(session, op, reply)
                case _:
                    raise RequestError(Code.INVALID_ARGUMENT, f"{WHAT} in the metadata is not list, show or purge")
        except RequestError as error:
            return _refused(op, error)
        except IdentityError as error:
            return _refused(op, RequestError(Code.INVALID_IDENTIFIER, str(error)))
        except StorageUnavailable as error:
            return _refused(op, outage(error))
        reply.success = True
        reply.workspace.metadata[WHAT] = op.workspace.metadata[WHAT]
        return [pb.DownstreamMessage(workspace=reply)]

    # -- looking -----------------------------------------------------------------------------------

    async def _list(self, session: Session, op: pb.WorkspaceOperation, reply: pb.WorkspaceResponse) -> None:
        workspace = op.workspace_id
        if workspace:
            check_token(workspace, "workspace_id", strict=self._strict)
        self._check(session, "topic_list", workspace, AccessLevel.READ)
        prefix, after = _text(op, "_prefix"), _text(op, "_after")
        limit = _limit(op)
        found: list[TopicOverview] = []
        for low, high in _ranges(workspace, prefix):
            if high <= after:
                continue
            if low.startswith(_OF_USERS) and workspace:
                page, stopped_at = await self._of_users(workspace, after, low, high, limit - len(found))
                found += page
                if stopped_at:
                    reply.workspace.metadata["_after"] = stopped_at
                    break
                continue
            found += await self._database.read(partial(topics_between, after, low, high, limit - len(found)))
            if len(found) >= limit:
                reply.workspace.metadata["_after"] = found[-1].name
                break
        reply.message_flow.workspace_id = workspace
        reply.message_flow.updated_at = self._clock.now_ms() // 1000
        await _write(reply.message_flow.nodes, map(_node, found))

    async def _of_users(
        self, workspace: str, after: str, low: str, high: str, limit: int
    ) -> tuple[list[TopicOverview], str]:
        """Return topics of a workspace's users, and where it stopped, "" at the end."""
        names = await self._database.read(partial(names_between, after, low, high, MAX_NAMES))
        found: list[TopicOverview] = []
        ending = f"{SEPARATOR}{workspace}"
        for name in names:
            if not name.endswith(ending):
                continue
            overview = await self._database.read(partial(one_topic, name))
            if overview is not None:
                found.append(overview)
            if len(found) >= limit:
                return found, name
        return found, names[-1] if len(names) == MAX_NAMES else ""

    async def _show(self, session: Session, op: pb.WorkspaceOperation, reply: pb.WorkspaceResponse) -> None:
        topic = await self._find(session, op, "topic_show", AccessLevel.READ)
        limit = _limit(op)
        consumers = await self._database.read(partial(consumers_of, topic.topic_id, _text(op, "_after"), limit))
        flow = reply.message_flow
        flow.workspace_id = op.workspace_id
        flow.updated_at = self._clock.now_ms() // 1000
        flow.nodes.append(_node(topic))
        await _write(flow.edges, (_edge(topic, one) for one in consumers))
        if len(consumers) == limit:
            reply.workspace.metadata["_after"] = consumers[-1].name

    async def _find(
        self, session: Session, op: pb.WorkspaceOperation, operation: str, level: AccessLevel
    ) -> TopicOverview:
        """Find the topic that an operation names, if the caller may."""
        topic = parse_topic(_text(op, "_topic"), self._strict)
        self._check(session, operation, topic.workspace, level)
        found = await self._database.read(partial(one_topic, topic.text))
        if found is None:
            raise RequestError(Code.INVALID_TOPIC, f"no message was ever sent to {topic.text}, or all have expired")
        return found

    # -- changing ----------------------------------------------------------------------------------

    async def _purge(self, session: Session, op: pb.WorkspaceOperation, reply: pb.WorkspaceResponse) -> None:
        through = _text(op, "_through")
        if not (through.isascii() and through.isdigit()) or len(through) > 18:
            raise RequestError(Code.INVALID_ARGUMENT, "_through in the metadata is no offset")
        topic = await self._find(session, op, "topic_purge", AccessLevel.ADMIN)
        step = partial(purge, topic.topic_id, min(int(through), topic.tail))
        ends_ms = self._clock.now_ms() + int(PURGE_S * 1000)
        gone = 0
        more = True
        try:
            while more and self._clock.now_ms() < ends_ms:
                done = await self._database.run(step)
                gone += done
                more = bool(done)
        finally:
            if gone:
                self._audit(self._event(session, topic, gone, int(through)))
        left = await self._database.read(partial(one_topic, topic.name))
        reply.message_flow.nodes.append(_node(left if left is not None else topic))
        reply.workspace.metadata["_purged"] = str(gone)
        if more:
            reply.workspace.metadata["_more"] = "true"
        reply.message = f"{gone} messages of {topic.name} are purged"

    def _event(self, session: Session, topic: TopicOverview, gone: int, through: int) -> AuditEvent:
        identity = session.identity
        return AuditEvent(
            at_ms=self._clock.now_ms(),
            event_type=EventType.ADMIN,
            operation="admin_topic_purge",
            actor_type=identity.type_name,
            actor_id=identity.canonical_id,
            resource_type="topic",
            resource_id=topic.name,
            workspace=parse_topic(topic.name, strict=False).workspace,
            session_id=session.session_id,
            metadata={"messages": gone, "through": through},
        )

    # -- who may -----------------------------------------------------------------------------------

    def _check(self, session: Session, operation: str, workspace: str, level: AccessLevel) -> None:
        """Raise RequestError unless the caller may, on a workspace or ("") on all."""
        if workspace:
            access = AccessQuestion(operation, "workspace", workspace, workspace, level)
        else:
            access = AccessQuestion(operation, "admin", Admin.WORKSPACES, "", level)
        self._authorizer.require(session, access)


def _ranges(workspace: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the ranges of the names of a workspace's topics, in their order."""
    if not workspace:
        yield prefix, prefix + _LAST
        return
    every = [(f"{kind}{SEPARATOR}{workspace}{SEPARATOR}",) * 2 for kind in _PARTS_BEHIND]
    ranges = [(low, high + _LAST) for low, high in every]
    ranges += [(f"{kind}{SEPARATOR}{workspace}",) * 2 for kind in _ALONE]
    ranges.append((_OF_USERS, _OF_USERS + _LAST))
    for low, high in sorted(ranges):
        low, high = max(low, prefix), min(high, prefix + _LAST)  # noqa: PLW2901  # the part with the prefix
        if low <= high:
            yield low, high


def _limit(op: pb.WorkspaceOperation) -> int:
    return min(op.filter.limit, MAX_PAGE) if op.filter.limit > 0 else DEFAULT_PAGE


def _text(op: pb.WorkspaceOperation, key: str) -> str:
    """Return an argument of the metadata, "" if it is not there. Raises RequestError.

    Control characters are allowed, as names have them where identifiers are not strict.
    """
    text = op.workspace.metadata.get(key, "")
    if len(text.encode()) > MAX_TOPIC_BYTES:
        raise RequestError(Code.INVALID_ARGUMENT, f"{key} in the metadata has more than {MAX_TOPIC_BYTES} bytes")
    if "\0" in text:
        raise RequestError(Code.INVALID_ARGUMENT, f"{key} in the metadata has a zero byte")
    return text


async def _write(to: MutableSequence[M], parts: Iterable[M]) -> None:
    """Write nodes or edges into a reply in steps, between which others are served."""
    for number, part in enumerate(parts, 1):
        to.append(part)
        if number % SLICE == 0:
            await trio.lowlevel.checkpoint()


def _node(topic: TopicOverview) -> pb.FlowNode:
    facts = {
        "messages": topic.messages,
        "bytes": topic.retained_bytes,
        "first": topic.first,
        "last": topic.tail,
        "oldest_ms": topic.oldest_ms,
        "newest_ms": topic.newest_ms,
        "consumers": topic.consumers,
        "most_behind": topic.most_behind,
    }
    return pb.FlowNode(id=topic.name, topic=topic.name, label=json.dumps(facts))


def _edge(topic: TopicOverview, consumer: TopicConsumer) -> pb.FlowEdge:
    facts = {"position": consumer.position, "moved_ms": consumer.moved_ms}
    return pb.FlowEdge(
        **{"from": topic.name}, to=consumer.name, count=topic.lag(consumer.position), label=json.dumps(facts)
    )


def _refused(op: pb.WorkspaceOperation, error: RequestError) -> list[pb.DownstreamMessage]:
    """Make the typed answer of a refusal, and the ErrorResponse behind it."""
    reply = pb.WorkspaceResponse(request_id=op.request_id, error=str(error))
    return [pb.DownstreamMessage(workspace=reply), error_response(error, op.request_id)]
