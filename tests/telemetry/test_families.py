"""The table of metrics: complete, by Prometheus' conventions, and of every record."""

from __future__ import annotations

import dataclasses
import re
import typing
from itertools import pairwise
from typing import Any

import pytest

from aether_trio.cluster.locks.cluster_locks import ClusterLocksStatistics
from aether_trio.cluster.locks.directory import DirectoryStatistics
from aether_trio.cluster.node.bus import BusStatistics
from aether_trio.cluster.node.lease import LeaseStatistics
from aether_trio.cluster.node.liveness import NodesStatistics
from aether_trio.cluster.rate_leases import RateStatistics
from aether_trio.cluster.relay.log_relay import LogRelayStatistics
from aether_trio.cluster.relay.progress_relay import ProgressRelayStatistics
from aether_trio.delivery.ephemeral_topics import EphemeralStatistics
from aether_trio.log.topic_log import LogStatistics
from aether_trio.queues.work_queues import WorkStatistics
from aether_trio.services.access.changes import ChangeStatistics
from aether_trio.services.access.rule_authorizer import DecisionStatistics
from aether_trio.services.agents.autostart import AutostartStatistics
from aether_trio.services.audit.writer import AuditStatistics
from aether_trio.services.tasks.engine import TaskStatistics
from aether_trio.services.workflows.engine.embedded import EngineStatistics
from aether_trio.services.workflows.engine.relay import RelayStatistics
from aether_trio.services.workflows.events.intake import IntakeStatistics
from aether_trio.session.registry import RegistryStatistics
from aether_trio.storage.postgres.database import PostgresStatistics
from aether_trio.storage.sqlite.database import SqliteStatistics
from aether_trio.telemetry.families import FAMILIES, RECORDS, Family
from aether_trio.transport.framed.statistics import FramedStatistics
from aether_trio.transport.http2.statistics import Http2Statistics
from aether_trio.transport.socket.listener import ListenerStatistics
from aether_trio.transport.socket.port import PortStatistics
from aether_trio.transport.socket.unfinished_input import UnfinishedStatistics
from aether_trio.transport.websocket.server import HttpStatistics

OF: dict[str, tuple[type, ...]] = {
    "access": (ChangeStatistics,),
    "access_decisions": (DecisionStatistics,),
    "audit": (AuditStatistics,),
    "autostart": (AutostartStatistics,),
    "cluster_bus": (BusStatistics,),
    "cluster_directory": (DirectoryStatistics,),
    "cluster_lease": (LeaseStatistics,),
    "cluster_locks": (ClusterLocksStatistics,),
    "cluster_log": (LogRelayStatistics,),
    "cluster_nodes": (NodesStatistics,),
    "cluster_progress": (ProgressRelayStatistics,),
    "framed": (FramedStatistics,),
    "grpc": (Http2Statistics,),
    "listener": (ListenerStatistics,),
    "log": (LogStatistics,),
    "port": (PortStatistics,),
    "progress": (EphemeralStatistics,),
    "rate_leases": (RateStatistics,),
    "registry": (RegistryStatistics,),
    "storage": (SqliteStatistics, PostgresStatistics),
    "tasks": (TaskStatistics,),
    "unfinished_input": (UnfinishedStatistics,),
    "websocket": (HttpStatistics,),
    "work_queues": (WorkStatistics,),
    "workflow_engine": (EngineStatistics,),
    "workflow_events": (IntakeStatistics,),
    "workflow_relay": (RelayStatistics,),
}
UNITS = r"(?:milli|micro|nano)?seconds?|minutes?|hours?|days?|(?:kilo|mega|kibi|mebi)?bytes?|percents?|ms|kb|mb"


def test_every_record_is_known() -> None:
    assert OF.keys() == RECORDS.keys()


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_each_number_of_a_record_is_a_metric(name: str) -> None:
    shown, left_out = set(RECORDS[name].fields), RECORDS[name].left_out
    numbers: set[str] = set()
    for record in OF[name]:
        types: dict[str, Any] = typing.get_type_hints(record)
        numbers |= {one.name for one in dataclasses.fields(record) if types[one.name] in (int, float, bool)}
    assert shown | left_out == numbers
    assert not shown & left_out


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_each_metric_keeps_prometheus_conventions(family: Family) -> None:
    """The rules of `promtool check metrics`, and a sentence that says what it is."""
    name, words = family.name, family.name.split("_")
    assert re.fullmatch("aether_[a-z][a-z_]*", name)
    assert name.endswith("_total") == (family.kind == "counter")
    if family.kind != "histogram":
        assert not name.endswith(("_count", "_sum", "_bucket", "_info")) or name == "aether_build_info"
    assert not {"counter", "gauge", "histogram", "summary", "metric"} & set(words)
    used = [word for before, word in pairwise(words) if before != "per" and re.fullmatch(UNITS, word)]
    assert set(used) <= {"seconds", "bytes"}, "base units"
    if used:
        assert name.removesuffix("_total").endswith(used[-1]), "the unit is last"
    assert not any(re.search(f"^{kind}$", name) for kind in ("le", "quantile"))
    assert {"le", "quantile", "job", "instance"}.isdisjoint(family.labels)
    assert all(re.fullmatch("[a-z][a-z_]*", label) for label in family.labels)
    assert len(family.text) > 15
    assert family.text[0].isupper() or family.text[0].isdigit() or family.text.startswith("gRPC")
    assert family.text.endswith(".")
    assert (family.kind == "histogram") == bool(family.bounds)


def test_each_text_says_something_else() -> None:
    assert len({family.text for family in FAMILIES.values()}) == len(FAMILIES)
