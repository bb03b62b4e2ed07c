"""A framed connection is one task, and a writer while its socket has no room."""

from __future__ import annotations

import socket
from collections import Counter

import trio
import trio.testing

from aether_trio.wire import framing
from tests.transport.framed.harness import TransportServer, agent

WRITER = "socket-writer"


def living() -> Counter[str]:
    """How many tasks of each name there are."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found: Counter[str] = Counter()
    left = [root]
    while left:
        task = left.pop()
        found[task.name] += 1
        left += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


def writers() -> int:
    return living()[WRITER]


async def test_an_idle_connection_is_one_task_of_the_gateway(transport: TransportServer) -> None:
    """The test's own ends of the connections have none."""
    await transport.connect(agent("first"))
    await trio.testing.wait_all_tasks_blocked()
    before = living()
    for number in range(20):
        await transport.connect(agent(f"a{number}"))
    # A task that comes and goes, like one that has written something, may be among either.
    with trio.move_on_after(60):
        while list((living() - before).values()) != [20]:
            await trio.sleep(0.01)
    more = living() - before
    assert list(more.values()) == [20], more
    assert writers() == 0


async def test_a_writer_lives_while_its_socket_has_no_room_and_no_longer(transport: TransportServer) -> None:
    slow = await transport.connect(agent("slow"), delivery_acks=False)
    slow.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    sender = await transport.connect(agent("sender"))
    count, payload = 100, bytes(200_000)
    for number in range(1, count + 1):
        await sender.send(framing.Send(number, "ag::w::slow::1", payload, 1))
        await sender.next(framing.Ack)
    with trio.fail_after(300):
        while not writers():
            await trio.sleep(0.01)
    assert writers() == 1
    for _ in range(count):
        await slow.delivery()
    with trio.fail_after(300):
        while writers():
            await trio.sleep(0.01)
