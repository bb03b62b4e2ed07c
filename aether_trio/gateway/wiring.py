"""What the settings mean to each part, and what each part shows to Prometheus. No behaviour of its own.

Parts know nothing of the settings file: each has its own record of limits, with its own defaults, and is usable without
a gateway. Here the names of the one are spelled out in the names of the other, so a setting without an effect would
be seen as a name that stands nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aether_trio.config import GrpcSettings, Settings, TlsSettings
from aether_trio.delivery.outbox import OutboxLimits
from aether_trio.log.partitions import length_ms
from aether_trio.log.retention import RetentionLimits
from aether_trio.log.topic_log import LogLimits
from aether_trio.telemetry.metrics import MAX_SERIES, OTHER, Metrics
from aether_trio.transport.framed.limits import FramedLimits
from aether_trio.transport.http2.limits import Allowance, Allowances, GrpcLimits
from aether_trio.transport.socket import tls
from aether_trio.transport.socket.listener import TcpSettings
from aether_trio.transport.socket.ports import Ports
from aether_trio.transport.socket.unfinished_input import UnfinishedInput, UnfinishedLimits

if TYPE_CHECKING:
    from aether_trio.gateway.core import Core
    from aether_trio.gateway.membership import Membership
    from aether_trio.transport.socket.accepted import TransportServer


FRAMING_BYTES: Final = 64 * 1024
"""More than any transport puts around a message."""


def log_limits(settings: Settings) -> LogLimits:
    """Of the topic log."""
    log = settings.log
    return LogLimits(
        pending_bytes=log.pending_bytes,
        group_messages=log.group_max_messages,
        group_bytes=log.group_max_bytes,
        cursor_flush_s=log.offset_flush_s,
        partition_ms=length_ms(log.retention_age_s),
    )


def outbox_limits(settings: Settings) -> OutboxLimits:
    """Of what may wait for one participant."""
    log = settings.log
    return OutboxLimits(delivery_bytes=log.outbox_bytes, ephemeral_bytes=log.ephemeral_bytes)


def retention_limits(settings: Settings) -> RetentionLimits:
    """What the log keeps."""
    log = settings.log
    return RetentionLimits(
        age_s=log.retention_age_s,
        topic_bytes=log.retention_bytes,
        cursor_age_s=log.offset_retention_age_s,
        sweep_s=log.retention_sweep_s,
    )


def grpc_limits(settings: GrpcSettings, opening_bytes: int) -> GrpcLimits:
    """Of the gRPC transport; `opening_bytes` of a message from a client that is not accepted."""

    def per_window(count: int) -> Allowance:
        return Allowance(count, count / settings.abuse_window_s)

    return GrpcLimits(
        max_receive_message_bytes=settings.max_receive_bytes,
        max_opening_message_bytes=opening_bytes,
        max_assembling_bytes=4 * settings.max_receive_bytes,
        stream_window_bytes=settings.stream_window_bytes,
        connection_window_bytes=settings.connection_window_bytes,
        max_header_list_bytes=settings.max_header_list_bytes,
        max_continuation_frames=settings.max_continuation_frames,
        max_concurrent_streams=settings.max_concurrent_streams,
        handshake_timeout_s=settings.handshake_timeout_s,
        idle_timeout_s=settings.idle_timeout_s,
        max_connection_age_s=settings.max_connection_age_s or None,
        max_connection_age_grace_s=settings.max_connection_age_grace_s,
        min_ping_interval_s=settings.min_ping_interval_s,
        max_ping_strikes=settings.max_ping_strikes,
        allowances=Allowances(
            settings=per_window(settings.max_settings_frames),
            pings=per_window(settings.max_ping_frames),
            resets=per_window(settings.max_stream_resets),
            empty_data=per_window(settings.max_empty_data_frames),
        ),
    )


def framed_limits(settings: Settings) -> FramedLimits:
    """Of the framed transport."""
    framed = settings.framed
    return FramedLimits(
        max_frame_bytes=framed.max_frame_bytes,
        payload_bytes=settings.limits.payload_bytes,
        publish_window=framed.publish_window,
        dedup_s=framed.dedup_s,
        handshake_timeout_s=settings.limits.init_wait_s,
        control_frames_per_s=framed.control_frames_per_s,
        control_frames_burst=10 * framed.control_frames_per_s,
    )


def unfinished_limits(settings: Settings) -> UnfinishedLimits:
    """Of messages that have begun. One of the largest fits in any case."""
    largest = max(
        settings.grpc.max_receive_bytes, settings.framed.max_frame_bytes, settings.websocket.max_message_bytes
    )
    limits = settings.limits
    return UnfinishedLimits(
        total_bytes=max(limits.unfinished_input_bytes, largest + FRAMING_BYTES), wait_s=limits.message_wait_s
    )


def tcp_settings(settings: GrpcSettings) -> TcpSettings:
    """Of accepted sockets."""
    return TcpSettings(
        max_connections=settings.max_connections,
        keepalive_idle_s=settings.tcp_keepalive_idle_s,
        keepalive_interval_s=settings.tcp_keepalive_interval_s,
        keepalive_probes=settings.tcp_keepalive_probes,
        user_timeout_ms=round(settings.tcp_user_timeout_s * 1000),
    )


def ports(settings: Settings, transports: Mapping[str, TransportServer]) -> Ports:
    """Where these transports are spoken, opened. Raises OSError when a port is taken or a certificate is of no use."""
    own = {"grpc": settings.grpc.port, "framed": settings.framed.port, "websocket": settings.websocket.port}
    return Ports(
        transports,
        host=settings.gateway.host,
        port=settings.gateway.port,
        own={transport: port for transport, port in own.items() if port is not None},
        tls=tls_settings(settings.tls),
        tcp=tcp_settings(settings.grpc),
        first_bytes_timeout_s=settings.gateway.first_bytes_timeout_s,
        reuse_port=settings.gateway.reuse_port,
    )


def tls_settings(settings: TlsSettings) -> tls.TlsSettings | None:
    """The certificate files; None for a port without TLS."""
    if settings.cert is None or settings.key is None:
        return None
    required = settings.require_client_cert
    return tls.TlsSettings(
        cert_file=Path(settings.cert),
        key_file=Path(settings.key),
        client_ca_file=Path(settings.client_ca) if settings.client_ca else None,
        client_certificates=tls.ClientCertificates.REQUIRED if required else tls.ClientCertificates.OPTIONAL,
    )


def watch_metrics(metrics: Metrics, core: Core, **databases: Any) -> None:
    """Show every part's statistics."""
    growing = {"appended", "settled", "refused", "groups", "followed_reads", "followed_rows"}
    metrics.watch("log", core.log.statistics, counters=growing)
    metrics.watch("progress", core.ephemeral_topics.statistics, counters={"published", "delivered"})
    metrics.watch("registry", core.registry.statistics, counters={"claims", "takeovers", "refused"})
    metrics.watch("work", core.work_queues.statistics, counters={"exchanges", "taken", "returned", "failed"})
    metrics.watch("waker", core.waker.statistics, counters={"woken", "given_up"})
    metrics.watch(
        "tasks", core.tasks.engine.statistics, counters={"assignments", "due", "reports_dropped", "inputs_dropped"}
    )
    for name, database in databases.items():
        growing = {"groups", "programs", "rows", "failed_groups", "conflicts", "losses", "stalls"}
        metrics.watch(f"storage_{name}", database.statistics, counters=growing)
    for prefix in ("aether", "aether_metering"):  # the reference has both names for these two
        metrics.gauge(
            f"{prefix}_active_connections", "Live sessions", ("workspace", "principal_type"), lambda: _live(core)
        )
        metrics.counter(
            f"{prefix}_messages_routed",
            "Messages accepted, by the sender's workspace",
            ("workspace", "message_type"),
            lambda: {key: messages for key, (messages, _) in core.router.statistics().accepted.items()},
        )
    metrics.gauge(
        "aether_topic_subscriptions_active",
        "Subscriptions of connected participants to durable topics",
        (),
        lambda: {(): core.log.statistics().subscriptions},
    )
    core.log.on_group = lambda seconds, messages: metrics.message_routing_latency.observe(seconds, times=messages)
    metrics.counter("aether_metering_bytes_routed", "Payload bytes accepted", ("workspace",), lambda: _bytes(core))
    metrics.counter(
        "aether_message_errors",
        "Messages refused, by the sender's workspace and the error code",
        ("workspace", "error_type"),
        lambda: {key: count for key, count in core.router.statistics().refused.items()},  # noqa: C416  # widens the type
    )
    metrics.counter(
        "aether_requests",
        "Requests answered, by operation",
        ("operation",),
        lambda: {(case,): count for case, count in core.dispatcher.counts.items()},
    )


def watch_cluster(metrics: Metrics, membership: Membership) -> None:
    """Show what a node of a cluster counts."""
    now = {"listening", "held", "waiting", "interests", "node_id", "epoch"}
    for name, statistics in membership.statistics.items():
        metrics.watch(name, statistics, counters={one.name for one in fields(statistics()) if one.name not in now})


def watch_ports(metrics: Metrics, ports: Ports) -> None:
    """Show what the ports and their listeners count."""
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
    """Show what is held of messages that have begun."""
    metrics.watch("unfinished_input", unfinished.statistics, counters={"given_up", "too_slow"})


def watch_transport(metrics: Metrics, name: str, statistics: Callable[[], Any]) -> None:
    """Show what a transport counts, `rejects` by reason."""
    metrics.watch(name, statistics, counters={"bytes_received", "bytes_sent"})
    metrics.counter(
        f"aether_{name}_rejects",
        "What was refused or cut off on this transport, by reason",
        ("reason",),
        lambda: {(reason,): count for reason, count in statistics().rejects.items()},
    )


def _live(core: Core) -> dict[tuple[str, ...], float]:
    counts: dict[tuple[str, ...], float] = {}
    for session in core.registry:
        labels = (session.workspace, session.identity.type_name)
        if labels not in counts and len(counts) >= MAX_SERIES:
            labels = (OTHER, OTHER)
        counts[labels] = counts.get(labels, 0) + 1
    return counts


def _bytes(core: Core) -> dict[tuple[str, ...], float]:
    totals: dict[tuple[str, ...], float] = {}
    for (workspace, _), (_, payload_bytes) in core.router.statistics().accepted.items():
        totals[workspace,] = totals.get((workspace,), 0) + payload_bytes
    return totals
