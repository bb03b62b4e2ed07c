"""Which part of a server a line of its profile belongs to: the map of files.

A stack belongs to the first part that a rule gives one of its frames, from the innermost outwards.
So what a library of C does counts for the Python line that calls it, and a function of the standard
library for its caller. Threads other than the main one are parts themselves, by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

OTHER: Final = "other"

PARTS: Final[Sequence[tuple[str, str]]] = (
    # A pattern for "function (file:line)", and the part. The first match counts.
    (r"\(trio/_core/(_io_epoll|_wakeup_socketpair)\.py", "epoll and waking up"),
    (
        r"^(\w+\.)*_?(send|send_all|_send_bursts|sendmsg) \((trio/_socket|trio/_highlevel_socket|aether_trio/transport)",
        "socket writes",
    ),
    (r"\(aether_trio/transport/socket/writer\.py", "socket writes"),
    (r"^(\w+\.)*(recv|recv_into|receive_some) \(trio/", "socket reads"),
    (r"\(aether_trio/(concurrency/readiness|transport/socket/byte_stream)\.py", "socket reads"),
    (r"\(trio/_socket\.py", "sockets"),
    (r"\((trio|outcome|attrs?|sniffio|sortedcontainers)/", "trio: run loop, tasks, locks"),
    (r"\(aether_trio/storage/", "database and its commits"),
    (r"\((sqlite3|asyncpg)/", "database and its commits"),
    (r"\(aether_trio/wire/", "protobuf, frames and encodings"),
    (r"\(google/", "protobuf, frames and encodings"),
    (r"\((aether_trio/transport/(http2|grpc)|h2|hpack|hyperframe)/", "transport: HTTP/2 and gRPC"),
    (r"\(aether_trio/transport/", "transport"),
    (r"\(aether_trio/log/", "message log"),
    (r"\(aether_trio/delivery/", "delivery"),
    (r"\(aether_trio/services/kv/", "handlers: KV"),
    (r"\(aether_trio/services/tasks/", "handlers: tasks"),
    (r"\(aether_trio/services/", "handlers"),
    (r"\(aether_trio/session/", "session"),
    (r"\(aether_trio/cluster/", "cluster"),
    (r"\(aether_trio/telemetry/", "metrics and logs"),
    (r"\(aether_trio/(gateway|queues|model|config|concurrency)/", "composition and model"),
)

_RULES: Final = [(re.compile(pattern), part) for pattern, part in PARTS]
_NUMBER: Final = re.compile(r"[-_ ]?\d+$")


def part_of(stack: Sequence[str]) -> str:
    """The part of a stack of "function (file:line)" frames, the outermost first."""
    for frame in reversed(stack):
        for rule, part in _RULES:
            if rule.search(frame):
                return part
    return OTHER


def thread_of(name: str) -> str:
    """The name of a thread without its number."""
    return _NUMBER.sub("", name)
