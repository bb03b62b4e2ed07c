"""A scrape of a gateway: strictly Prometheus' format, and bounded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from aether_trio.gateway.core import Core, open_core
from aether_trio.log import unread
from aether_trio.log.message_keys import key_of
from aether_trio.telemetry.families import FAMILIES
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import (
    agent,
    barrier,
    connect,
    kv_get,
    kv_put,
    message_to,
    settings_for_tests,
)
from tests.helpers.engines import PostgresEngine
from tests.services.tasks.peers import bury, create, operate, own

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@asynccontextmanager
async def opened(**sections: Any) -> AsyncIterator[Core]:
    with trio.fail_after(120):
        async with open_core(settings_for_tests(**sections)) as core:
            yield core


async def scraped(core: Core) -> Series:
    body = (await core.metrics.scrape())[1].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


async def used(core: Core, workspace: str) -> None:
    """Have a client of a workspace do something of each kind."""
    async with connect(core, agent(workspace, "a", "1")) as peer:
        peer.send(
            kv_put("k", b"v"), kv_get("k"), message_to(f"ag::{workspace}::a::1", b"x"), message_to("nonsense", b"")
        )
        peer.send(pb.UpstreamMessage(checkpoint_op=pb.CheckpointOperation(op=pb.CheckpointOperation.LIST)))
        await barrier(peer)


async def test_a_scrape_is_strictly_the_format_and_has_no_family_or_series_twice() -> None:
    async with opened(ops={"workspace_label": True}) as core:
        for workspace in ("w", "v"):
            await used(core, workspace)
        content_type, body = await core.metrics.scrape()
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    text = body.decode()
    for kind in ("HELP", "TYPE"):
        names = re.findall(rf"^# {kind} (\S+)", text, re.MULTILINE)
        assert [name for name, times in Counter(names).items() if times > 1] == []
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert [one for one, times in Counter(series).items() if times > 1] == []
    of = {family.name: family for family in text_string_to_metric_families(text)}
    assert all(family.documentation and family.type != "unknown" for family in of.values())
    for name in (name for name in of if name.startswith("aether_")):
        family = FAMILIES.get(name) or FAMILIES[f"{name}_total"]
        assert of[name].documentation == family.text
        for sample in of[name].samples:
            assert set(sample.labels) - {"le"} == set(family.labels)
    # OpenMetrics' parser is stricter: order, suffixes, each family's lines together.
    strict = re.sub(r"^# (HELP|TYPE) (\S+?)_total ", r"# \1 \2 ", text, flags=re.MULTILINE) + "# EOF\n"
    assert {family.name for family in parse_openmetrics(strict)} == of.keys()


@pytest.mark.parametrize("workspace_label", [False, True])
async def test_the_size_of_a_scrape_does_not_depend_on_workspaces(workspace_label: bool) -> None:
    sizes: list[int] = []
    async with opened(ops={"workspace_label": workspace_label}, limits={"send_rate_per_s": 0.0}) as core:
        for number in range(60):
            await used(core, f"w{number}")
            if number in (5, 59):
                sizes.append(len(await scraped(core)))
    few, many = sizes
    assert (many == few) is not workspace_label
    assert few < 700


async def test_what_waits_is_shown(engine_core: Core) -> None:
    core = engine_core
    async with connect(core, agent("w", "boss", "1")) as boss:
        for implementation in ("resize", "resize", "resize", "paint"):
            assert (await create(boss, target_implementation=implementation)).success
        waits = {"target_offline_policy": pb.TARGET_OFFLINE_POLICY_QUEUE}
        await create(boss, assignment_mode=pb.TARGETED, target_agent_id="ag::w::absent::1", **waits)
        await bury(boss)
        mine = await own(boss)
        assert (await operate(boss, pb.TaskOperation.COMPLETE, mine)).success
        boss.send(*(message_to("ag::w::absent::1", b"%d" % number) for number in range(7)))
        boss.send(*(message_to("tb::w::later", b"%d" % number) for number in range(2)))
        await barrier(boss)
        now = await scraped(core)
    assert now["aether_task_queue_tasks", (("pool", "resize"),)] == 3
    assert now["aether_task_queue_tasks", (("pool", "paint"),)] == 1
    assert 0 <= now["aether_task_queue_oldest_age_seconds", (("pool", "resize"),)] < 120
    assert now["aether_unread_messages", (("kind", "ag"),)] == 7
    assert now["aether_unread_messages", (("kind", "tb"),)] == 2
    lag = (("consumer", ""), ("topic", "ag::w::absent::1"))
    assert now["aether_consumer_lag_messages", lag] == 7
    assert 0 <= now["aether_consumer_lag_seconds", lag] < 120
    assert now["aether_dead_letters_open", ()] == 1
    assert 0 < now["aether_dead_letters_oldest_age_seconds", ()] < 120
    outcomes = {dict(labels)["outcome"]: n for (name, labels), n in now.items() if name == "aether_task_outcomes_total"}
    assert {outcome: n for outcome, n in outcomes.items() if n} == {"dead_letter": 1, "completed": 1}
    assert now["aether_task_queue_tasks", (("pool", "_targeted"),)] == 1


async def test_the_consumers_that_lag_most_are_20_of_all_pages(
    engine_core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unread, "PAGE", 7)
    core = engine_core
    async with connect(core, agent("w", "boss", "1")) as boss, connect(core, agent("w", "there", "1")) as there:
        for number in range(30):
            boss.send(*(message_to(f"ag::w::away::{number:02}", b"x") for _ in range(number + 1)))
        # Of these, nothing waits: read, for connected receivers alone, of one connection.
        boss.send(message_to("ag::w::there::1", b"x"), message_to("ga::w", b"x"), message_to("ta::w::i::gone", b"x"))
        boss.send(message_to("event::w", b"x"))
        await barrier(boss, there)
        await core.log.cursors.save()
        now = await scraped(core)
        lag = {dict(of)["topic"]: n for (name, of), n in now.items() if name == "aether_consumer_lag_messages"}
        assert lag == {f"ag::w::away::{number:02}": number + 1 for number in range(10, 30)}
        kinds = {dict(of)["kind"]: n for (name, of), n in now.items() if name == "aether_unread_messages"}
        assert kinds == {"ag": sum(range(31)), "event": 1}
        # Retention takes 12 of the 30 messages of the last topic.
        database = core.log.database
        [(topic,)] = await database.fetch("SELECT id FROM topics WHERE name = 'ag::w::away::29'")
        await database.execute("DELETE FROM messages WHERE message_key < $1 AND message_key > $2", *_keys(topic, 13))
        if not database.shared:
            await database.execute("UPDATE topics SET floor_offset = 12 WHERE id = $1", topic)
        found = unread.Unread()
        after = 0
        while True:
            rows, after = await database.read(partial(unread.page, after, shared=database.shared))
            found.add(rows)
            if not after:
                break
        lags = {one.topic: one.messages for one in await unread.oldest(database, found.most)}
        assert lags["ag::w::away::29"] == 18


def _keys(topic_id: int, offset: int) -> tuple[int, int]:
    return key_of(topic_id, offset), key_of(topic_id, 0)


@pytest.mark.parametrize("by_workspace", [False, True])
async def test_pools_beyond_the_50_longest_are_added_up(by_workspace: bool) -> None:
    async with opened(ops={"workspace_label": by_workspace}) as core, connect(core, agent("w", "boss", "1")) as boss:
        for number in range(55):
            for _ in range(2 if number < 50 else 1):
                await create(boss, target_implementation=f"i{number:02}")
        now = await scraped(core)
    found = {dict(of)["pool"]: n for (name, of), n in now.items() if name == "aether_task_queue_tasks"}
    assert found == {f"i{number:02}": 2 for number in range(50)} | {"_other": 5}
    labels = {label for (name, of), _ in now.items() if name == "aether_task_queue_tasks" for label, _ in of}
    assert labels == ({"workspace", "pool"} if by_workspace else {"pool"})


@pytest.fixture(params=["sqlite", "postgres"])
async def engine_core(request: pytest.FixtureRequest, postgres_engine: PostgresEngine) -> AsyncIterator[Core]:
    storage = {"database": postgres_engine.server.dsn(), "schema": postgres_engine.schema}
    async with opened(**({} if request.param == "sqlite" else {"storage": storage})) as core:
        yield core
