"""A client that lives for very long has very many topics: a task has another one at each
connection, a window in each workspace.
"""

from __future__ import annotations

import pytest

from aether_trio.client.connection.inbox import MAX_TOPICS, Inbox
from aether_trio.wire.framing import Channel
from tests.client.peer import incoming


@pytest.mark.parametrize("shared", [False, True])
async def test_topics_that_nothing_is_known_of_any_more_are_forgotten(shared: bool) -> None:
    inbox = Inbox(1024, 1 << 20)
    inbox.open_channel(Channel(1, "first", 0))
    inbox.deliver(1, 7, incoming(b"in the hands of the program"))
    held = await inbox.receive()
    for number in range(2 * MAX_TOPICS):
        inbox.cut()
        inbox.open_channel(Channel(1, "the same", 0))
        inbox.open_channel(Channel(2, f"ta::w::i::{number}", 0, shared=shared))
        inbox.deliver(2, 1, incoming(b"x"))
        (await inbox.receive()).ack()
    assert len(inbox._topics) <= MAX_TOPICS
    assert {"first", "the same"} <= inbox._topics.keys()
    inbox.cut()
    inbox.open_channel(Channel(1, "first", 0))
    inbox.deliver(1, 7, incoming(b"in the hands of the program"))
    assert inbox.duplicates == 1
    held.ack()
    assert inbox._topics["first"].owes
