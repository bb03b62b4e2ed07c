"""The SQL of work groups where several nodes hand out work: one statement for many groups (storage/schema/work.py).

It goes into the database as arrays, one element for each group, and comes back as rows, which are sorted out here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from aether_trio.storage.base import FENCE_HERE, Fetch, Program, Row

Lease = tuple[int, int]
"""(node_id, epoch): in whose name a node has what it has."""

_EXCHANGE: Final = f"""
    SELECT w.topic, w.first, w.many, w.frame, w.held FROM (SELECT {FENCE_HERE}) AS fence, aether_work(
        $1::bigint, $2::bigint, $3::bigint, $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::boolean[],
        $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[]
    ) AS w
"""  # noqa: S608  # a constant

_LOOK: Final = "SELECT l.topic, l.waits, l.held FROM aether_work_look($1::bigint, $2::bigint, $3::bigint[]) AS l"


@dataclass(frozen=True, slots=True)
class WorkRequest:
    """What a node tells of one group, and wants of it.

    `request` numbers a node's orders, upwards; one whose answer was lost is sent again as it was, and answered as it was. `want` is how many messages at most, `max_bytes` how much they may
    have together unless the first alone has more. `done` and `returned` are offsets it has; with `all_but`, `returned` are those it keeps, and
    the rest is given back. The node has the frames of `known_from` to `known_upto` itself.
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
    """The answer to an WorkRequest: (offset, frame) of what the node has now in addition; None is a frame that it has itself.

    `more` says whether there is more to have, `held` how many offsets of the group the node has, these included.
    """

    position: int = 0
    more: bool = False
    held: int = 0
    messages: list[tuple[int, bytes | None]] = field(default_factory=list)


def exchange(lease: Lease, now_ms: int, orders: Sequence[WorkRequest]) -> Fetch:
    """The statement for these orders, one for a group at most. Its rows are for `shares`."""
    orders = sorted(orders, key=lambda order: order.topic_id)
    return Fetch(
        _EXCHANGE,
        (
            *lease,
            now_ms,
            [order.topic_id for order in orders],
            [order.request for order in orders],
            [order.want for order in orders],
            [order.max_bytes for order in orders],
            [order.all_but for order in orders],
            [order.known_from for order in orders],
            [order.known_upto for order in orders],
            [len(order.done) for order in orders],
            [offset for order in orders for offset in order.done],
            [len(order.returned) for order in orders],
            [offset for order in orders for offset in order.returned],
        ),
    )


def shares(rows: Iterable[Row]) -> dict[int, WorkResponse]:
    """The answers, by topic."""
    found: dict[int, WorkResponse] = {}
    for topic_id, first, many, frame, held in rows:
        share = found.get(topic_id)
        if share is None:
            share = found[topic_id] = WorkResponse()
        if many <= 0:
            share.position, share.more, share.held = first, many < 0, held
        elif frame is not None:
            share.messages.append((first, frame))
        else:
            share.messages += [(offset, None) for offset in range(first, first + many)]
    return found


def look(lease: Lease, topic_ids: Sequence[int]) -> Program[dict[int, tuple[bool, int]]]:
    """Of each group by its topic: whether it has something for this node, and how many offsets the node has. Locks nothing."""
    rows: list[Row] = yield Fetch(_LOOK, (*lease, topic_ids))
    return {topic_id: (waits, held) for topic_id, waits, held in rows}
