"""Test `aether topics` against a real gateway, with a consumer that is behind."""

from __future__ import annotations

import json
import time

import pytest

from aether_trio.client import connect_sync
from tests.cli.shell import AETHER, Shell, on_terminal
from tests.helpers.gateway import GatewayProcess

TOPIC = "ag::shelf::reader::1"
PLACE = ("--workspace", "shelf")


@pytest.fixture
def behind(shell: Shell, gateway: GatewayProcess) -> None:
    """The topic has two messages that its reader has, and three that it has not."""
    with connect_sync(
        f"aether://{gateway.address}", workspace="shelf", implementation="reader", specifier="1"
    ) as reader:
        for _ in range(2):
            shell.out("send", TOPIC, "read")
        for _ in range(2):
            reader.receive(timeout=60).ack()
    for _ in range(3):
        shell.out("send", TOPIC, "unread")


def test_a_topic_its_consumer_and_its_lag(shell: Shell, behind: None) -> None:
    ends_s = time.monotonic() + 60
    [row] = json.loads(shell.out("topics", "list", "--json", *PLACE))
    # Positions are written a few times a second.
    while row["most_behind"] != 3 and time.monotonic() < ends_s:
        [row] = json.loads(shell.out("topics", "list", "--json", *PLACE))
    assert (row["name"], row["messages"], row["consumers"], row["most_behind"]) == (TOPIC, 5, 1, 3)
    assert row["retained_bytes"] > 0
    assert row["oldest_at"] <= row["newest_at"]
    head, line = shell.out("topics", "list", *PLACE).splitlines()
    assert head.split() == ["topic", "messages", "bytes", "oldest", "consumers", "most", "behind"]
    assert line.split()[0] == TOPIC
    details = json.loads(shell.out("topics", "show", TOPIC, "--json"))
    assert [(one["name"], one["lag"], one["position"]) for one in details["consumers"]] == [(TOPIC, 3, 2)]
    assert TOPIC in shell.out("topics", "show", TOPIC)
    assert shell.notice("topics", "list", "--workspace", "empty") == "no topic in the workspace empty\n"
    assert TOPIC in shell.out("topics", "list", "--all", "--prefix", "ag::shelf")

    # A purge asks, and without a terminal it does not guess.
    shell.fails(2, "give --yes", "topics", "purge", TOPIC)
    purge = (*AETHER, "topics", "purge", TOPIC)
    code, shown = on_terminal(shell.env, 120, *purge, stdin=b"n\n")
    assert code == 1
    assert b"Delete 5 messages" in shown
    assert b"1 of 1 consumers have not read all of them" in shown
    assert b"nothing was deleted" in shown
    code, shown = on_terminal(shell.env, 120, *purge, stdin=b"y\n")
    assert code == 0, shown
    assert f"{TOPIC}: 5 messages are purged".encode() in shown
    assert shell.out("topics", "purge", TOPIC, "--yes") == f"{TOPIC} holds no message\n"
    entries = shell.out("audit", "query", "--operation", "admin_topic_purge", "--json").splitlines()
    assert [json.loads(one)["resource_id"] for one in entries] == [TOPIC]
