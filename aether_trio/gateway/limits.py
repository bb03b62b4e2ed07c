"""Makes the limits of each part of a gateway from the settings.

Parts know nothing of the settings: each has its own record of limits, with defaults. Each function
here spells one record out, so a setting without an effect shows as a name that no function reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aether_trio.config import GrpcSettings, Settings, TlsSettings
from aether_trio.delivery.outbox import OutboxLimits
from aether_trio.log.retention import RetentionLimits
from aether_trio.log.topic_log import LogLimits
from aether_trio.model.tasks.timed_transitions import TimeLimits
from aether_trio.storage.partitions import partition_length_ms
from aether_trio.transport.framed.limits import FramedLimits
from aether_trio.transport.grpc.limits import GrpcLimits
from aether_trio.transport.http2.limits import Allowance, Allowances
from aether_trio.transport.socket import tls
from aether_trio.transport.socket.accepted import TransportServer
from aether_trio.transport.socket.listener import TcpSettings
from aether_trio.transport.socket.ports import Ports
from aether_trio.transport.socket.unfinished_input import UnfinishedLimits

FRAMING_BYTES: Final = 64 * 1024
"""More than the framing that any transport adds to a message."""


def log_limits(settings: Settings) -> LogLimits:
    """Make the limits of the topic log."""
    log = settings.log
    return LogLimits(
        pending_bytes=log.pending_bytes,
        group_messages=log.group_max_messages,
        group_bytes=log.group_max_bytes,
        cursor_flush_s=log.offset_flush_s,
        partition_ms=partition_length_ms(log.retention_age_s),
    )


def outbox_limits(settings: Settings) -> OutboxLimits:
    """Make the limits of the messages that wait for one participant."""
    log = settings.log
    return OutboxLimits(delivery_bytes=log.outbox_bytes, ephemeral_bytes=log.ephemeral_bytes)


def retention_limits(settings: Settings) -> RetentionLimits:
    """Make the limits of what the topic log keeps, and for how long."""
    log = settings.log
    return RetentionLimits(
        age_s=log.retention_age_s,
        topic_bytes=log.retention_bytes,
        cursor_age_s=log.offset_retention_age_s,
        sweep_s=log.retention_sweep_s,
    )


def time_limits(settings: Settings) -> TimeLimits:
    """Make the deadlines of tasks, and how long tasks are kept after their end."""
    tasks = settings.tasks
    return TimeLimits(
        interactive_ms=round(tasks.interactive_ttl_s * 1000),
        startup_ms=round(tasks.startup_ttl_s * 1000),
        pool_ms=round(tasks.pool_ttl_s * 1000),
        completed_ms=round(tasks.completed_retention_s * 1000),
        failed_ms=round(tasks.failed_retention_s * 1000),
        cancelled_ms=round(tasks.cancelled_retention_s * 1000),
        resolved_ms=round(tasks.resolved_retention_s * 1000),
        workflow_letters=settings.workflow.dead_letters,
        start_timeout_ms=round(tasks.start_timeout_s * 1000),
        start_grace_ms=max(round(tasks.start_grace_s * 1000), 1),
    )


def grpc_limits(settings: GrpcSettings, opening_bytes: int) -> GrpcLimits:
    """Make the limits of gRPC; `opening_bytes` is for clients not accepted yet."""

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
    """Make the limits of the framed transport."""
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
    """Make the limits of messages that are partly received; the largest one fits."""
    largest = max(
        settings.grpc.max_receive_bytes, settings.framed.max_frame_bytes, settings.websocket.max_message_bytes
    )
    limits = settings.limits
    return UnfinishedLimits(
        total_bytes=max(limits.unfinished_input_bytes, largest + FRAMING_BYTES), wait_s=limits.message_wait_s
    )


def tcp_settings(settings: GrpcSettings) -> TcpSettings:
    """Make the TCP settings of accepted sockets."""
    return TcpSettings(
        max_connections=settings.max_connections,
        keepalive_idle_s=settings.tcp_keepalive_idle_s,
        keepalive_interval_s=settings.tcp_keepalive_interval_s,
        keepalive_probes=settings.tcp_keepalive_probes,
        user_timeout_ms=round(settings.tcp_user_timeout_s * 1000),
    )


def open_ports(settings: Settings, transports: Mapping[str, TransportServer]) -> Ports:
    """Open the transports' ports. Raises OSError, as for a bad certificate."""
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


def tls_settings(settings: TlsSettings) -> tls.TlsFiles | None:
    """Return the TLS files of the settings; None for ports without TLS."""
    if settings.cert is None or settings.key is None:
        return None
    required = settings.require_client_cert
    return tls.TlsFiles(
        cert_file=Path(settings.cert),
        key_file=Path(settings.key),
        client_ca_file=Path(settings.client_ca) if settings.client_ca else None,
        client_certificates=tls.ClientCertificates.REQUIRED if required else tls.ClientCertificates.OPTIONAL,
    )
