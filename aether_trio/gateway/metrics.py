"""Registers the statistics of a gateway's parts as Prometheus metrics.

Parts count in records of their own (`statistics()`), which are read at each scrape
(telemetry/metrics.py). telemetry/families.py has their names and texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from aether_trio.delivery.ephemeral_topics import EphemeralTopics
from aether_trio.delivery.router import Router
from aether_trio.gateway.audit import AuditTrail
from aether_trio.gateway.databases import Databases
from aether_trio.gateway.membership import ClusterMembership
from aether_trio.gateway.workflows import WorkflowEngines
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
from aether_trio.telemetry.health import GatewayHealth
from aether_trio.telemetry.metrics import Metrics
from aether_trio.telemetry.sampling import Sample
from aether_trio.transport.socket.ports import Ports
from aether_trio.transport.socket.unfinished_input import UnfinishedInput


def watch_databases(metrics: Metrics, databases: Databases, samples: Mapping[str, Sample]) -> None:
    """Register metrics of each logical database."""
    named = {"state": databases.state, "log": databases.log, "tasks": databases.tasks}
    for name, database in named.items():
        metrics.watch("storage", database.statistics, database=name)
    reads = {"log": samples["topics"], "tasks": samples["tasks"]}

    def up(name: str) -> bool:
        return not (named[name].statistics().failing or (name in reads and reads[name].failing))

    metrics.read("aether_database_up", lambda: {(name,): up(name) for name in named})


def watch_health(metrics: Metrics, health: GatewayHealth) -> None:
    """Register what /readyz says."""
    metrics.read("aether_ready", lambda: {(): health.readiness().ready})
    metrics.read("aether_problem", lambda: {(part,): part in health.readiness().problems for part in health.parts})


def watch_log(metrics: Metrics, log: TopicLog, retention: Retention) -> None:
    """Register metrics of the topic log and its retention."""
    metrics.watch("log", log.statistics)
    metrics.read("aether_log_expired_total", lambda: {(): retention.expired})


def watch_audit(metrics: Metrics, audit: AuditTrail) -> None:
    """Register metrics of the audit log."""
    metrics.watch("audit", audit.writer.statistics)
    metrics.read("aether_audit_heads_total", lambda: {(): audit.signer.signed})
    metrics.read("aether_audit_tampered", lambda: {(): int(audit.signer.problem is not None)})


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
    metrics.watch("access_decisions", authorizer.statistics)
    metrics.read(
        "aether_access_sessions_ended_total",
        lambda: {
            **{(cause,): enforcement.ended[cause] for cause in ENDED_BY.values()},
            ("credential",): credential_ends.ended,
            ("expiry",): expiry.ended,
        },
    )


def watch_delivery(metrics: Metrics, router: Router, ephemeral_topics: EphemeralTopics, queues: WorkQueues) -> None:
    """Register metrics of routed and refused messages, progress and work queues."""
    metrics.watch("progress", ephemeral_topics.statistics)
    metrics.watch("work_queues", queues.statistics)
    metrics.read(
        "aether_messages_routed_total",
        lambda: {key: messages for key, (messages, _) in router.statistics().accepted.items()},
    )
    metrics.read(
        "aether_messages_routed_bytes_total",
        lambda: {key: payload_bytes for key, (_, payload_bytes) in router.statistics().accepted.items()},
    )
    metrics.read("aether_message_errors_total", lambda: router.statistics().refused)


def watch_sessions(metrics: Metrics, registry: SessionRegistry, dispatcher: Dispatcher) -> None:
    """Register metrics of live sessions and answered requests."""
    metrics.watch("registry", registry.statistics)
    by_workspace = partial(_live, registry) if metrics.workspace_label else partial(_live_by_kind, registry)
    metrics.read("aether_active_connections", by_workspace)
    metrics.read("aether_requests_total", lambda: {(case,): count for case, count in dispatcher.counts.items()})


def watch_tasks(metrics: Metrics, engine: Engine, autostarter: Autostarter) -> None:
    """Register metrics of tasks, and of agents that messages start."""
    metrics.watch("tasks", engine.statistics)
    metrics.watch("autostart", autostarter.statistics)
    metrics.read(
        "aether_task_outcomes_total", lambda: {(outcome,): count for outcome, count in engine.outcomes.items()}
    )


def watch_cluster(metrics: Metrics, membership: ClusterMembership) -> None:
    """Register metrics of the cluster's parts on this node."""
    for name, statistics in membership.statistics.items():
        metrics.watch(name, statistics)


def watch_workflows(metrics: Metrics, workflows: WorkflowEngines) -> None:
    """Register metrics of the workflow engine on this node."""
    metrics.watch("workflow_engine", workflows.embedded.statistics)
    metrics.watch("workflow_events", workflows.intake.statistics)
    metrics.watch("workflow_relay", workflows.relay.statistics)


def watch_ports(metrics: Metrics, ports: Ports) -> None:
    """Register metrics of the ports and their listeners."""
    metrics.watch("listener", ports.listener_statistics)
    metrics.watch("port", ports.statistics)
    metrics.read(
        "aether_port_connections_total",
        lambda: {(transport,): count for transport, count in ports.statistics().chosen.items()},
    )
    metrics.read(
        "aether_port_rejects_total",
        lambda: {(reason,): count for reason, count in ports.statistics().rejects.items()},
    )


def watch_unfinished(metrics: Metrics, unfinished: UnfinishedInput) -> None:
    """Register metrics of messages that are only partly received."""
    metrics.watch("unfinished_input", unfinished.statistics)


def watch_transport(metrics: Metrics, name: str, statistics: Callable[[], Any]) -> None:
    """Register metrics of a transport; refused connections by reason."""
    metrics.watch(name, statistics, transport=name)
    metrics.read(
        "aether_transport_rejects_total",
        lambda: {(name, reason): count for reason, count in statistics().rejects.items()},
    )


def _live(registry: SessionRegistry) -> dict[tuple[str, ...], float]:
    return dict(Counter((session.workspace, session.identity.type_name) for session in registry))


def _live_by_kind(registry: SessionRegistry) -> dict[tuple[str, ...], float]:
    # Without a look at each session, of which there may be ten thousands.
    return {("", kind): count for kind, count in registry.statistics().live.items()}
