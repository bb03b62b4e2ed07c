"""The table of which kinds of participants may send to which kinds of topics.

Reference: core.md section 4.2. Every 1 is still subject to access rules; every 0 is final. One
column differs from the reference's code on purpose: no participant may send to a progress topic.
Its subscribers expect raw progress reports and would misread an envelope, the reference's
documentation forbids it too, and progress has its own operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from aether_trio.model.identity import Kind
from aether_trio.model.topics import TopicKind

_COLUMNS: Final = ("ag", "tu", "ta", "tb", "us", "uw", "gu", "ga", "uu", "pg", "tk", "event", "metric", "br", "sv")

# fmt: off
_ROWS: Final[Mapping[Kind, tuple[int, ...]]] = MappingProxyType({
    #                      ag tu ta tb us uw gu ga uu pg tk ev me br sv
    Kind.AGENT:           (1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1),
    Kind.UNIQUE_TASK:     (1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1),
    Kind.TASK:            (1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1),
    Kind.USER:            (1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 1, 1),
    Kind.SERVICE:         (1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1),
    Kind.WORKFLOW_ENGINE: (1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1),
    Kind.BRIDGE:          (1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1),
    Kind.ORCHESTRATOR:    (1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    Kind.METRICS_BRIDGE:  (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
})
# fmt: on

_ALLOWED: Final[Mapping[Kind, frozenset[TopicKind]]] = MappingProxyType(
    {
        kind: frozenset(TopicKind(column) for column, cell in zip(_COLUMNS, row, strict=True) if cell)
        for kind, row in _ROWS.items()
    }
)


def may_send(kind: Kind, topic: TopicKind) -> bool:
    """Return whether participants of a kind may send to topics of a kind."""
    return topic in _ALLOWED[kind]


def sendable(kind: Kind) -> frozenset[TopicKind]:
    """Return the kinds of topics that participants of a kind may send to."""
    return _ALLOWED[kind]
