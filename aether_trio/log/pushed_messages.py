"""Messages that the committing node sends along with their notification.

    a small group ──▶ one statement: append, find the listening nodes, NOTIFY them with the messages
    a large group ──▶ append; a notification with the topics; each listening node reads the log

So a lone message needs one statement on its node and none on the receiver's. A push is a hint: the
log has the messages, and a node that missed a push, or messages in front of one, reads them.

A push is text of lines "key, message in base64, topic", put together by the database
(`aether_push`, storage/schema/cluster.py). The key (message_keys.py) has the id of the topic's row
beside the offset: a topic may have been deleted and made again, with another id. The channel of a
node for pushes is a secret in its row of `nodes`, since any role of a database may NOTIFY and
LISTEN on a channel that it knows.
"""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import Sequence
from typing import Final, NamedTuple

from aether_trio.log.message_keys import KEY_BITS

PAYLOAD_BYTES: Final = 7900
"""Bytes of one payload; PostgreSQL's limit is 7999."""
MOST_PAYLOADS: Final = 4
"""A group that needs more is read by its listeners: one read is cheaper than that many."""
LINE_BYTES: Final = 22
"""A line without its topic and message: a key of 19 digits, two blanks, the line end."""


class PushedMessage(NamedTuple):
    """A committed message that another node has pushed to this one."""

    topic: str
    key: int
    """The primary key of the message in the log."""
    frame: bytes


def split_into_payloads(topics: Sequence[str], frames: Sequence[bytes]) -> list[int] | None:
    """Return the number of each message's payload; None if they are not to be pushed."""
    if sum(map(len, frames)) + len(frames) * LINE_BYTES > MOST_PAYLOADS * PAYLOAD_BYTES:
        return None  # a large group is looked at no closer
    parts: list[int] = []
    part = size = 0
    for topic, frame in zip(topics, frames, strict=True):
        need = LINE_BYTES + len(frame) // 3 * 4 + 4 + len(topic.encode())
        if size and size + need > PAYLOAD_BYTES:
            part, size = part + 1, 0
        if need > PAYLOAD_BYTES or part >= MOST_PAYLOADS or "\n" in topic:
            return None
        parts.append(part)
        size += need
    return parts


def parse_push(body: str) -> list[PushedMessage]:
    """Return the messages of a push, which may be no node's. Raises ValueError."""
    found = []
    for line in body.split("\n"):
        digits, data, topic = line.split(" ", 2)
        key = int(digits)
        if key >> KEY_BITS:
            raise ValueError(f"{key} is the key of no message")
        found.append(PushedMessage(topic, key, a2b_base64(data)))
    return found
