"""What docs/operations.md tells an operator to look at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aether_trio.gateway.core import Core
from tests.cluster.across.fabric import Fabric, until
from tests.helpers.core import agent, message_to, payloads, task

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"


def figures(core: Core) -> dict[str, float]:
    text = core.metrics.render()[1].decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


SECTIONS = ("### Is the cluster well?", "### Are rights in force, and is the audit written?")


def documented(heading: str) -> list[str]:
    """Names of a section's table; "_wakes_total" continues the name before it."""
    section = OPERATIONS.read_text().partition(heading)[2].partition("\n#")[0]
    return re.findall(r"`(?:aether)?(_[a-z_]+)`", section)


@pytest.mark.parametrize("heading", SECTIONS)
async def test_every_figure_that_is_documented_is_shown(fabric: Fabric, heading: str) -> None:
    text = (await fabric.start()).core.metrics.render()[1].decode()
    shown = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    names = documented(heading)
    assert len(names) > 12
    assert [name for name in names if not any(one.endswith(name) for one in shown)] == []


async def test_what_work_queues_do_is_counted(fabric: Fabric) -> None:
    one, two = await fabric.start_many(2)
    boss, worker = await one.join(agent("w", "boss", "1")), await two.join(task("w", "resize"))
    boss.send(*(message_to("tb::w::resize", b"%d" % number) for number in range(5)))
    await until(lambda: len(payloads(worker)) == 5)
    mine, its = figures(one.core), figures(two.core)
    assert (mine["aether_work_queues_workers"], its["aether_work_queues_workers"]) == (0, 1)
    assert (mine["aether_work_queues_taken_total"], its["aether_work_queues_taken_total"]) == (0, 5)
    assert its["aether_work_queues_exchanges_total"] > 0
    assert its["aether_cluster_lease_held"] == 1
    assert mine["aether_cluster_lease_node_id"] != its["aether_cluster_lease_node_id"]
