"""Rules in a cluster: a change on one node counts at once on all."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from aether_trio.services.workflows.engine import embedded
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import NEVER_S, Fabric, Gateway, Participant, open_fabric, until
from tests.helpers.core import agent
from tests.helpers.engines import PostgresEngine
from tests.services.workflows.helpers import Client

Op = pb.WorkflowOperation


@pytest.fixture
async def fabric(postgres_engine: PostgresEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fabric]:
    # Notifications alone have to be enough.
    monkeypatch.setattr(embedded, "POLL_S", NEVER_S)
    monkeypatch.setattr(embedded, "RETURN_S", 0.2)
    async with open_fabric(postgres_engine, workflow={"engine": "auto"}) as opened:
        yield opened


def rule(said: str, **more: Any) -> dict[str, Any]:
    destination = {"agent": "hand", "tool_name": said}
    return {
        "rule_name": "first", "source_event": "made", "workspace": "w", "destination_template": destination, **more,
    }  # fmt: skip


def client(participant: Participant) -> Client:
    return Client(cast("MemoryLink", participant))


def has_engine(gateway: Gateway) -> bool:
    return gateway.core.workflows.embedded.connected


async def told(hand: Participant) -> str:
    found: str = json.loads((await hand.next("msg")).msg.payload)["tool_name"]
    return found


async def test_a_change_of_rules_counts_for_the_next_event_on_any_node(fabric: Fabric) -> None:
    one, two, three = [await fabric.start() for _ in range(3)]
    await until(lambda: has_engine(one))
    boss = client(await two.join(agent("w", "boss", "1")))
    sender = client(await three.join(agent("w", "sender", "1")))
    hand = await three.join(agent("w", "hand", "default"))
    rule_id = str((await boss.do(Op.CREATE_RULE, data=rule("0")))["ID"])
    for number in range(1, 6):
        await sender.emit("made")
        assert await told(hand) == str(number - 1)
        await boss.do(Op.UPDATE_RULE, rule_id, data=rule(str(number)))
    flow = {"name": "flow", "trigger": {"event": "made"}, "steps": [{"id": "a", "wait": {"event": "made"}}]}
    await boss.create(flow)
    await sender.emit("made")
    assert await told(hand) == "5"
    await fabric.stop(one)
    await until(lambda: has_engine(two) or has_engine(three))
    await boss.do(Op.UPDATE_RULE, rule_id, data=rule("6"))
    await boss.do(Op.DELETE_WORKFLOW, "flow")
    await sender.emit("made")
    assert await told(hand) == "6"
    [run] = await boss.do(Op.LIST_EXECUTIONS, status_filter="all")
    assert (await boss.ended(run["ExecutionID"]))["execution"]["Status"] == "completed"
    await boss.do(Op.DELETE_RULE, rule_id)
    await sender.emit("made")
    await boss.do(Op.CREATE_RULE, data=rule("7", source_event="sold"))
    await sender.emit("sold")
    assert await told(hand) == "7"
    assert len(await boss.do(Op.LIST_EXECUTIONS, status_filter="all")) == 1
