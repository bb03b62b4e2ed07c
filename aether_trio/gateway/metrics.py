"""Registers the statistics of a gateway's parts as Prometheus metrics.

Parts count in records of their own (`statistics()`), which are read at each scrape
(telemetry/metrics.py). Names are the reference's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from aether_trio.delivery.ephemeral_topics import EphemeralTopics
from aether_trio.delivery.router import Router
from aether_trio.gateway.audit import AuditTrail
from aether_trio.gateway.databases import Databases
from aether_trio.gateway.membership import ClusterMembership
from aether_trio.log.retention import Retention
from aether_trio.log.topic_log import TopicLog
from aether_trio.queues.work_queues import WorkQueues
from aether_trio.services.access.changes import AccessChanges
from aether_trio.services.access.enforcement import ENDED_BY, Enforcement
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.services.agents import Autostarter
from aether_trio.services.credentials.ends import CredentialEnds
from aether_trio.services.tasks import Engine
from aether_trio.session.dispatch import Dispatcher
from aether_trio.session.expiry import SessionExpiry
from aether_trio.session.registry import SessionRegistry
from aether_trio.telemetry.metrics import MAX_SERIES, OTHER, Metrics
from aether_trio.transport.socket.ports import Ports
from aether_trio.transport.socket.unfinished_input import UnfinishedInput

REFERENCE_PREFIXES = ("aether", "aether_metering")
"""The reference counts sessions and routed messages under both."""


def watch_databases(metrics: Metrics, databases: Databases) -> None:
    """Register metrics of each logical database."""
    counters = {"groups", "programs", "rows", "failed_groups", "conflicts", "losses", "stalls"}
    metrics.watch("storage_state", databases.state.statistics, counters=counters)
    metrics.watch("storage_log", databases.log.statistics, counters=counters)
    metrics.watch("storage_tasks", databases.tasks.statistics, counters=counters)


def watch_log(metrics: Metrics, log: TopicLog, retention: Retention) -> None:
    """Register metrics of the topic log and its retention."""
    counters = {"appended", "settled", "refused", "groups", "remote_reads", "remote_messages", "pushed_messages"}
    metrics.watch("log", log.statistics, counters=counters)
    metrics.counter("aether_log_expired", "Messages that retention took", (), lambda: {(): retention.expired})
    metrics.gauge(
        "aether_topic_subscriptions_active",
        "Subscriptions of connected participants to durable topics",
        (),
        lambda: {(): log.statistics().subscriptions},
    )


def watch_audit(metrics: Metrics, audit: AuditTrail) -> None:
    """Register metrics of the audit log."""
    metrics.watch("audit", audit.writer.statistics, counters={"written", "lost", "gaps"})
    metrics.counter("aether_audit_heads", "Signed heads of the audit log", (), lambda: {(): audit.signer.signed})
    metrics.gauge(
        "aether_audit_tampered",
        "1 while nothing is signed, as stored audit rows were changed",
        (),
        lambda: {(): int(audit.signer.problem is not None)},
    )


def watch_access(
    metrics: Metrics,
    changes: AccessChanges,
    authorizer: RuleAuthorizer,
    enforcement: Enforcement,
    credential_ends: CredentialEnds,
    expiry: SessionExpiry,
) -> None:
    """Register metrics of access data, decisions, and sessions that they have ended."""
    metrics.watch("access", changes.statistics)
    metrics.watch("access_decisions", authorizer.statistics, counters={"hits", "misses"})
    metrics.counter(
        "aether_access_sessions_ended",
        "Sessions that lost what let them in, by what ended it",
        ("cause",),
        lambda: {
            **{(cause,): enforcement.ended[cause] for cause in ENDED_BY.values()},
            ("credential",): credential_ends.ended,
            ("expiry",): expiry.ended,
        },
    )


def watch_delivery(metrics: Metrics, router: Router, ephemeral_topics: EphemeralTopics, queues: WorkQueues) -> None:
    """Register metrics of routed and refused messages, progress and work queues."""
    metrics.watch("progress", ephemeral_topics.statistics, counters={"published", "delivered"})
    metrics.watch("work_queues", queues.statistics, counters={"exchanges", "taken", "returned", "failed"})
    for prefix in REFERENCE_PREFIXES:
        metrics.counter(
            f"{prefix}_messages_routed",
            "Messages accepted, by the sender's workspace",
            ("workspace", "message_type"),
            lambda: {key: messages for key, (messages, _) in router.statistics().accepted.items()},
        )
    metrics.counter("aether_metering_bytes_routed", "Payload bytes accepted", ("workspace",), lambda: _bytes(router))
    metrics.counter(
        "aether_message_errors",
        "Messages refused, by the sender's workspace and the error code",
        ("workspace", "error_type"),
        lambda: {key: count for key, count in router.statistics().refused.items()},  # noqa: C416  # widens the type
    )


def watch_sessions(metrics: Metrics, registry: SessionRegistry, dispatcher: Dispatcher) -> None:
    """Register metrics of live sessions and answered requests."""
    metrics.watch("registry", registry.statistics, counters={"claims", "takeovers", "refused"})
    for prefix in REFERENCE_PREFIXES:
        metrics.gauge(
            f"{prefix}_active_connections", "Live sessions", ("workspace", "principal_type"), lambda: _live(registry)
        )
    metrics.counter(
        "aether_requests",
        "Requests answered, by operation",
        ("operation",),
        lambda: {(case,): count for case, count in dispatcher.counts.items()},
    )


def watch_tasks(metrics: Metrics, engine: Engine, autostarter: Autostarter) -> None:
    """Register metrics of tasks, and of agents that messages start."""
    metrics.watch("tasks", engine.statistics, counters={"assignments", "due", "reports_dropped", "inputs_dropped"})
    metrics.watch("autostart", autostarter.statistics, counters={"started", "given_up"})


def watch_cluster(metrics: Metrics, membership: ClusterMembership) -> None:
    """Register metrics of the cluster's parts on this node."""
    now = {"listening", "held", "waiting", "interests", "node_id", "epoch"}
    for name, statistics in membership.statistics.items():
        metrics.watch(name, statistics, counters={one.name for one in fields(statistics()) if one.name not in now})


def watch_ports(metrics: Metrics, ports: Ports) -> None:
    """Register metrics of the ports and their listeners."""
    metrics.watch("listener", ports.listener_statistics, counters={"accepted", "refused_over_limit", "pauses"})
    metrics.watch("port", ports.statistics)
    metrics.counter(
        "aether_port_connections",
        "Connections given to a transport",
        ("transport",),
        lambda: {(transport,): count for transport, count in ports.statistics().chosen.items()},
    )
    metrics.counter(
        "aether_port_rejects",
        "Connections that reached no transport, by reason",
        ("reason",),
        lambda: {(reason,): count for reason, count in ports.statistics().rejects.items()},
    )


def watch_unfinished(metrics: Metrics, unfinished: UnfinishedInput) -> None:
    """Register metrics of messages that are only partly received."""
    metrics.watch("unfinished_input", unfinished.statistics, counters={"given_up", "too_slow"})


def watch_transport(metrics: Metrics, name: str, statistics: Callable[[], Any]) -> None:
    """Register metrics of a transport; refused connections by reason."""
    metrics.watch(name, statistics, counters={"bytes_received", "bytes_sent"})
    metrics.counter(
        f"aether_{name}_rejects",
        "What was refused or cut off on this transport, by reason",
        ("reason",),
        lambda: {(reason,): count for reason, count in statistics().rejects.items()},
    )


def _live(registry: SessionRegistry) -> dict[tuple[str, ...], float]:
    counts: dict[tuple[str, ...], float] = {}
    for session in registry:
        labels = (session.workspace, session.identity.type_name)
        if labels not in counts and len(counts) >= MAX_SERIES:
            labels = (OTHER, OTHER)
        counts[labels] = counts.get(labels, 0) + 1
    return counts


def _bytes(router: Router) -> dict[tuple[str, ...], float]:
    totals: dict[tuple[str, ...], float] = {}
    for (workspace, _), (_, payload_bytes) in router.statistics().accepted.items():
        totals[workspace,] = totals.get((workspace,), 0) + payload_bytes
    return totals
