"""What a client keeps tables of, and how long each is: to see that nothing grows."""

from __future__ import annotations

from typing import Any, Final

from aether_trio.client import AgentClient
from aether_trio.client.connection.inbox import Inbox
from aether_trio.client.connection.topics import RECENT

__all__ = ["kept", "owes"]

TOPICS: Final = 4
"""An agent's own, its kind's, its workspace's, and one to spare."""
ANSWERED: Final = 256


def kept(client: AgentClient, *, over: bool, taken: int = 0) -> dict[str, int]:
    """Give the tables of an idle client that are longer than its work explains."""
    core: Any = client._dispatch
    bench: Any = client._WorkerMethods__manager  # type: ignore[attr-defined]
    send_queue, requests, feeds = core.send_queue, core.requests, core.feeds
    lengths = {
        "queue": len(send_queue._queue),
        "written": len(send_queue._written),
        "refused": len(send_queue._refused),
        "unsettled": send_queue.unsettled + send_queue.unsettled_bytes,
        "requests": len(requests),
        "answered": max(len(requests._answered) - ANSWERED, 0),
        "cursors": len(core.cursors._by_task),
        "feeds": max(sum(map(len, feeds._by_case.values())) - 5, 0) + max(len(feeds._all) - 4, 0),
        "jobs": len(bench._in_hand),
        "watches": len(bench._watches),
        "claimed": len(bench.intake.in_hand),
        **({} if over else _of_inbox(core.inbox)),
    }
    if over:
        lengths["instrument"] = core.cursors._ends is not None
        lengths["unacknowledged"] = max(client.statistics().unacknowledged - taken, 0)
    elif (transport := client._reconnector._transport) is not None:
        told: Any = transport.confirmations
        lengths |= {
            "sections": len(told._sections),
            "sends": len(told._open_numbers) + len(told._together),
            "refusals": len(told._refusals),
        }
    return {name: length for name, length in lengths.items() if length}


def owes(client: AgentClient) -> bool:
    """Tell whether an acknowledgement is due, and credit is left to repeat it."""
    inbox = client._dispatch.inbox
    return not inbox._full and any(topic.owes for topic in inbox._topics.values())


def _of_inbox(inbox: Inbox) -> dict[str, int]:
    explained = len(inbox) + len(inbox._abandoned)
    topics: Any = inbox._topics.values()
    return {
        "held": max(inbox.held_messages - explained, 0),
        "beyond the credit": max(inbox.held_messages - inbox.credit_messages, 0),
        "bytes": inbox.held_bytes if not explained else 0,
        "topics": max(len(inbox._topics) - TOPICS, 0),
        "outstanding": sum(
            max(len(one._outstanding) - len(one._done) - explained, 0) for one in topics if not one.shared
        ),
        "hashes": sum(max(len(one._hashes) - RECENT, 0) for one in topics),
        "done": sum(max(len(one._done) - RECENT, 0) for one in topics),
    }
