"""Fill a gateway with idle agents, messages or keys, through the protocol.

So the gateway holds what clients gave it, in whatever form it stores it, and knows it. A million
messages take less than a minute.

- agents: most are in other workspaces than the agents that work, as many in one as the reference
  allows.
- messages: a half is on many topics of agents that never connect. The other half is on a few long
  topics, whose receivers have read all of it.
- keys: in the scope of the workspace where the agents work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from bench import wire
from bench.numbered import filler
from bench.world import Participant, ScenarioFailed, World

NEIGHBOURS: Final = 500
"""How many idle agents at most are in the workspace of those that work."""
WORKSPACE: Final = 1000
TOPIC_MESSAGES: Final = 50
"""Messages of each of the many topics."""
WRITERS: Final = 10
WORKING_KEYS: Final = 40
"""Keys of the agents that work, `kv`'s; by default a scope is full with 100,000."""
BATCH: Final = 64
STEP: Final = 20_000
"""Each of so many must be stored within the patience of the world."""


def lay(world: World, what: str, size: int, working: int, long_topics: Sequence[tuple[str, int]]) -> None:
    """Fill the gateway up to `size` of `what`, with `working` agents and their keys.

    `long_topics` are the agents, as (implementation, index), with the long topics. Raises
    ScenarioFailed.
    """
    if what == "agents":
        _connect(world, size - working)
    elif what == "messages":
        _publish(world, size, long_topics)
    else:
        _put(world, max(0, size - WORKING_KEYS))
    if world.errors:
        raise ScenarioFailed(f"filling the gateway with {size} {what}{world.refusals()}")


def _connect(world: World, count: int) -> None:
    near = min(count, NEIGHBOURS)
    world.agents("idle", near)
    for start in range(near, count, WORKSPACE):
        world.agents("idle", min(WORKSPACE, count - start), f"{world.workspace}-{start}")


def _publish(world: World, count: int, long_topics: Sequence[tuple[str, int]]) -> None:
    payload = filler(world.options.payload)
    long_count = count // 2
    received = 0

    def delivered(receiver: Participant, messages: list[bytes]) -> None:
        nonlocal received
        for message in messages:
            if message[0] == wire.DELIVERY:
                received += 1
            else:
                world.other(receiver, message)

    readers = []
    for implementation, index in long_topics:
        init = wire.agent_init(world.workspace, implementation, str(index), world.options.credentials)
        readers += world.open([init], implementation)
    for reader in readers:
        reader.handler = delivered
    longer = [_prefix(world, implementation, index, len(payload)) for implementation, index in long_topics]
    many = [_prefix(world, "stored", n, len(payload)) for n in range(max(1, (count - long_count) // TOPIC_MESSAGES))]

    def message(number: int) -> bytes:
        prefixes = longer if number < long_count else many
        return prefixes[number % len(prefixes)] + payload

    _write(world, count, message, "messages in the log", lambda: received < long_count)
    world.close_all(readers)


def _prefix(world: World, implementation: str, index: int, payload_bytes: int) -> bytes:
    return world.transport.publication_prefix(world.topic(implementation, index), payload_bytes)


def _put(world: World, count: int) -> None:
    value = bytes(world.options.payload)
    _write(world, count, lambda number: wire.kv_put(f"stored/{number}", value, "stored"), "keys", lambda: False)


def _write(world: World, count: int, message: Callable[[int], bytes], what: str, unread: Callable[[], bool]) -> None:
    """Have writers send `count` messages, each a batch at a time, and wait.

    Behind every batch is a request whose answer says that the batch is stored.
    """
    begun = finished = 0

    def batch(writer: Participant) -> None:
        nonlocal begun
        for number in range(begun, min(begun + BATCH, count)):
            writer.send(message(number))
        if begun < count:
            begun += BATCH
            writer.send(wire.kv_get("bench/barrier", "barrier"))

    def answered(writer: Participant, messages: list[bytes]) -> None:
        nonlocal finished
        for one in messages:
            if one[0] != wire.KV:
                world.other(writer, one)
            elif wire.read_kv(one)[2] == "barrier":
                finished += BATCH
                batch(writer)

    writers = world.agents("writer", WRITERS)
    for writer in writers:
        writer.handler = answered
        batch(writer)
    while finished < count:
        step = min(count, finished + STEP)
        world.wait(lambda: finished >= step, what)  # noqa: B023  it is called in this turn only
    world.wait(lambda: not unread(), f"reading the {what}")
    world.close_all(writers)
