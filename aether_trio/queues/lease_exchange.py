"""SQL that leases messages of many work queues to one node, in one statement.

The statement calls functions of storage/schema/work_queues.py. Requests go into the database as
arrays with one element for each queue, and come back as rows, which `responses` sorts by queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from aether_trio.storage.base import FENCE_HERE, Fetch, Program, Row

LeaseEpoch = tuple[int, int]
"""(node_id, epoch) of the node lease under which a node leases messages."""

_EXCHANGE: Final = f"""
    SELECT w.topic, w.first, w.many, w.frame, w.held FROM (SELECT {FENCE_HERE}) AS fence, aether_work(
        $1::bigint, $2::bigint, $3::bigint, $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::boolean[],
        $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[]
    ) AS w
"""  # noqa: S608  # a constant

_FIELDS: Final = ("topic_id", "request", "want", "max_bytes", "all_but", "known_from", "known_upto")

_PEEK: Final = "SELECT l.topic, l.waits, l.held FROM aether_work_look($1::bigint, $2::bigint, $3::bigint[]) AS l"


@dataclass(frozen=True, slots=True)
class WorkRequest:
    """Reports what a node has done of one work queue, and asks for more messages.

    `request` numbers a node's requests, upwards. A request whose response was lost is sent again as
    it was, and gets the same response. `want` is how many messages to lease at most, `max_bytes`
    how many bytes they may have together, unless the first alone has more. `done` and `returned`
    are offsets that the node has leased. With `all_but`, `returned` names those that the node
    keeps, and the rest is returned. The node has the frames from `known_from` to `known_upto` in
    memory.
    """

    topic_id: int
    request: int
    want: int = 0
    max_bytes: int = 0
    done: Sequence[int] = ()
    returned: Sequence[int] = ()
    all_but: bool = False
    known_from: int = 1
    known_upto: int = 0


@dataclass(slots=True)
class WorkResponse:
    """The database's response to a WorkRequest: the messages that the node leased.

    `messages` are (offset, frame); the frame is None if the node has it in memory. `position` is
    the largest offset that any node has leased, `more` says whether messages wait that no node has
    leased, `held` how many offsets of the queue the node has leased, these included.
    """

    position: int = 0
    more: bool = False
    held: int = 0
    messages: list[tuple[int, bytes | None]] = field(default_factory=list)


def exchange(lease: LeaseEpoch, now_ms: int, requests: Sequence[WorkRequest]) -> Fetch:
    """Return the SQL statement for requests of one node, each for another work queue."""
    requests = sorted(requests, key=lambda request: request.topic_id)
    return Fetch(
        _EXCHANGE,
        (
            *lease,
            now_ms,
            *([getattr(request, field) for request in requests] for field in _FIELDS),
            [len(request.done) for request in requests],
            [offset for request in requests for offset in request.done],
            [len(request.returned) for request in requests],
            [offset for request in requests for offset in request.returned],
        ),
    )


def responses(rows: Iterable[Row]) -> dict[int, WorkResponse]:
    """Read the rows of an `exchange`: a response for each work queue, by topic id."""
    found: dict[int, WorkResponse] = {}
    for topic_id, first, many, frame, held in rows:
        response = found.get(topic_id)
        if response is None:
            response = found[topic_id] = WorkResponse()
        if many <= 0:
            response.position, response.more, response.held = first, many < 0, held
        elif frame is not None:
            response.messages.append((first, frame))
        else:
            response.messages += [(offset, None) for offset in range(first, first + many)]
    return found


def peek(lease: LeaseEpoch, topic_ids: Sequence[int]) -> Program[dict[int, tuple[bool, int]]]:
    """Return by topic id whether messages wait, and how many this node has leased."""
    rows: list[Row] = yield Fetch(_PEEK, (*lease, topic_ids))
    return {topic_id: (waits, held) for topic_id, waits, held in rows}
