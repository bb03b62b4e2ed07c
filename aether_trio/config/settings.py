"""Declares the settings: a frozen struct per section, a documented key per field.

Units are in the names: `_s` seconds (floats), `_bytes` bytes, `_per_s` a rate per second. A rate of
0 means "not limited", a period of 0 means "never"; each field says so where it applies. Reference
values are the defaults, unless the text says why not.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from aether_trio.model.limits import Limits

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
MINUTES: Final = 60.0
HOURS: Final = 60 * MINUTES
DAYS: Final = 24 * HOURS

TRANSPORTS: Final = ("grpc", "framed", "websocket")
"""The transports; each is a section of the settings with `enabled` and `port`."""

Principal = Literal[
    "agent", "task", "user", "service", "bridge", "orchestrator", "workflow_engine", "metrics_bridge", "*"
]


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach a listener on `host`.

    A host name other than localhost counts as reachable.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of settings, such as those of gRPC."""


class GatewaySettings(Section, frozen=True):
    host: Annotated[str, Meta(description="Address to listen on. Development mode listens on 127.0.0.1.")] = "0.0.0.0"  # noqa: S104  # serve refuses to start there without credentials
    port: Annotated[int, Meta(ge=0, le=65535, description="Port that the transports share; 0 picks a free one.")] = (
        50051
    )
    data_dir: Annotated[str, Meta(min_length=1, description="Directory of the durable state.")] = "aether-data"
    ephemeral: Annotated[
        bool, Meta(description="Keep everything in a temporary directory that is deleted at the end.")
    ] = False
    dev: Annotated[
        bool, Meta(description="Development mode: loopback, no credentials, no message rates. Alias AETHER_DEV_MODE.")
    ] = False
    node_name: Annotated[
        Annotated[str, Meta(min_length=1, max_length=128)] | None,
        Meta(description="Name of this gateway in its cluster and its log; unset: the machine's name."),
    ] = None
    reuse_port: Annotated[
        bool,
        Meta(description="Let other gateways of this user listen on the same ports; the kernel spreads connections."),
    ] = False
    first_bytes_timeout_s: Annotated[
        float, Meta(gt=0, description="For TLS and for the first bytes of a connection, which tell its transport.")
    ] = 10.0
    strict_identifier_charset: Annotated[
        bool,
        Meta(
            description="Refuse identity parts outside the protocol's charset. Alias AETHER_STRICT_IDENTIFIER_CHARSET."
        ),
    ] = True


class OpsSettings(Section, frozen=True):
    enabled: Annotated[bool, Meta(description="Serve /healthz, /readyz, /metrics and /v1/tail.")] = True
    host: Annotated[str, Meta(description="Address of the ops port. Only /v1/tail asks for a credential.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(ge=0, le=65535, description="Port of the ops server; 0 picks a free one.")] = 9090
    tail: Annotated[
        bool, Meta(description="Serve /v1/tail: on loopback in development mode, elsewhere with ops.tail_token.")
    ] = True
    tail_token: Annotated[
        Annotated[str, Meta(min_length=16)] | None,
        Meta(description="Bearer token that allows /v1/tail and resolving dead letters; 16 characters or more."),
    ] = None
    max_connections: Annotated[int, Meta(ge=1, description="Ops connections at a time; more are refused.")] = 64
    max_header_bytes: Annotated[int, Meta(ge=1024, description="Largest request line and headers together.")] = 16 * KIB
    request_timeout_s: Annotated[
        float, Meta(gt=0, description="For a request to arrive, and for each write of an answer to be taken.")
    ] = 10.0
    idle_timeout_s: Annotated[float, Meta(gt=0, description="An idle keep-alive connection is closed after this.")] = (
        75.0
    )


class TlsSettings(Section, frozen=True):
    cert: Annotated[str | None, Meta(description="PEM file of the server's certificate chain; enables TLS.")] = None
    key: Annotated[str | None, Meta(description="PEM file of the server's private key.")] = None
    client_ca: Annotated[
        str | None, Meta(description="PEM file of the authorities whose client certificates are accepted.")
    ] = None
    require_client_cert: Annotated[
        bool, Meta(description="Refuse the TLS handshake of a client without a certificate (needs tls.client_ca).")
    ] = False


class ApiKey(Section, frozen=True):
    """An accepted API key, as its hash. `aether keys new` prints such a record."""

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    principal: Principal
    identity: Annotated[str, Meta(min_length=1)] = "*"
    workspaces: tuple[str, ...] = ("*",)
    created: str = ""


class AuthSettings(Section, frozen=True):
    api_keys: Annotated[
        tuple[ApiKey, ...], Meta(description="Accepted API keys, as hashes: records that `aether keys new` prints.")
    ] = ()
    allow_anonymous: Annotated[
        bool, Meta(description="Accept connections without credentials. Development mode does.")
    ] = False
    trust_network: Annotated[
        bool,
        Meta(
            description="Start without credentials on a reachable address: the network in front admits known clients only."
        ),
    ] = False
    plaintext_credentials: Annotated[
        bool,
        Meta(
            description="Accept credentials without TLS on an address that other machines reach: who listens on the "
            "network can read and use them. For a proxy in front that ends TLS."
        ),
    ] = False
    client_cert_mode: Annotated[
        Literal["strict", "semi-strict", "relaxed"],
        Meta(
            description="What a client certificate's common name decides: the whole identity, all of it but the "
            "specifier, or the kind of principal."
        ),
    ] = "strict"
    max_failures: Annotated[
        int, Meta(ge=1, description="Refused credentials of one address for one identity before the cool-down.")
    ] = 5
    max_failures_per_address: Annotated[
        int,
        Meta(
            ge=1,
            description="Refused credentials of one address, or of one IPv6 /64, for all identities before the cool-down.",
        ),
    ] = 100
    failure_window_s: Annotated[float, Meta(gt=0, description="Window in which refused credentials count.")] = 30.0
    cooldown_s: Annotated[
        float, Meta(ge=0, description="How long an address or identity over these bounds is refused without a check.")
    ] = 30.0
    max_tracked_identities: Annotated[
        int, Meta(ge=1, description="Addresses and identities whose failures are remembered, this many of each.")
    ] = 1024


class GrpcSettings(Section, frozen=True):
    enabled: Annotated[bool, Meta(description="Serve gRPC.")] = True
    port: Annotated[
        Annotated[int, Meta(ge=0, le=65535)] | None,
        Meta(description="A separate port for gRPC; unset: it shares gateway.port."),
    ] = None
    max_receive_bytes: Annotated[
        int, Meta(ge=KIB, description="Largest message taken from a client; refused before it is buffered.")
    ] = 10 * MIB
    max_concurrent_streams: Annotated[int, Meta(ge=1, description="Open streams per HTTP/2 connection.")] = 1000
    max_connections: Annotated[int, Meta(ge=1, description="Open TCP connections; more are refused.")] = 65536
    max_header_list_bytes: Annotated[int, Meta(ge=KIB, description="Largest header list of one request.")] = 16 * KIB
    stream_window_bytes: Annotated[
        int,
        Meta(
            ge=65535,
            le=2**31 - 1,
            description="Receive window of a stream: the most that is buffered while the gateway does not read.",
        ),
    ] = 64 * KIB
    connection_window_bytes: Annotated[
        int, Meta(ge=65535, le=2**31 - 1, description="Receive window of a connection.")
    ] = 1 * MIB
    handshake_timeout_s: Annotated[float, Meta(gt=0, description="For the HTTP/2 handshake of a new connection.")] = (
        10.0
    )
    idle_timeout_s: Annotated[
        float, Meta(ge=0, description="A connection without streams is closed after this; 0 is never.")
    ] = 15 * MINUTES
    min_ping_interval_s: Annotated[
        float, Meta(ge=0, description="Clients may ping this often, with and without streams.")
    ] = 10.0
    max_ping_strikes: Annotated[
        int, Meta(ge=1, description="Pings that came too early before GOAWAY ENHANCE_YOUR_CALM.")
    ] = 2
    max_connection_age_s: Annotated[
        float, Meta(ge=0, description="Connections are asked to leave after this; 0 is never (the reference: 7200).")
    ] = 0.0
    max_connection_age_grace_s: Annotated[
        float, Meta(ge=0, description="Time for the streams of an aged connection to end.")
    ] = 5.0
    drain_deadline_s: Annotated[
        float,
        Meta(
            gt=0,
            description="A drain, on every transport, ends whatever is left after this. Clients get nine tenths of it.",
        ),
    ] = 10.0
    write_timeout_s: Annotated[
        float,
        Meta(ge=0, description="A client that reads nothing of what waits for it is asked to reconnect; 0 is never."),
    ] = 5 * MINUTES
    tcp_user_timeout_s: Annotated[
        float, Meta(ge=0, description="Unacknowledged bytes end a connection after this; 0 is the kernel's choice.")
    ] = 30.0
    tcp_keepalive_idle_s: Annotated[
        int, Meta(ge=0, description="Silence before TCP probes the peer, in whole seconds; 0 is off.")
    ] = 15
    tcp_keepalive_interval_s: Annotated[int, Meta(ge=1, description="Between two TCP probes, in whole seconds.")] = 5
    tcp_keepalive_probes: Annotated[int, Meta(ge=1, description="Unanswered TCP probes that end a connection.")] = 3
    abuse_window_s: Annotated[float, Meta(gt=0, description="Window of the frame budgets below.")] = 10.0
    max_stream_resets: Annotated[int, Meta(ge=1, description="Client resets per window (rapid reset).")] = 200
    max_settings_frames: Annotated[int, Meta(ge=1, description="SETTINGS frames per window.")] = 20
    max_ping_frames: Annotated[int, Meta(ge=1, description="PING frames per window, whatever their spacing.")] = 100
    max_empty_data_frames: Annotated[int, Meta(ge=1, description="DATA frames without data per window.")] = 500
    max_continuation_frames: Annotated[int, Meta(ge=1, description="CONTINUATION frames of one header list.")] = 8
    reflection: Annotated[bool, Meta(description="Serve gRPC reflection (grpcurl and the like).")] = True


class FramedSettings(Section, frozen=True):
    enabled: Annotated[bool, Meta(description="Serve the binary framing.")] = True
    port: Annotated[
        Annotated[int, Meta(ge=0, le=65535)] | None,
        Meta(description="A separate port for the binary framing; unset: it shares gateway.port."),
    ] = None
    max_frame_bytes: Annotated[
        int, Meta(ge=4 * MIB, le=2**31 - 1, description="Longest frame taken from an accepted client.")
    ] = 10 * MIB
    publish_window: Annotated[
        int, Meta(ge=1, le=2**20, description="Messages that a client may have sent and not had acknowledged.")
    ] = 4096
    dedup_s: Annotated[
        int,
        Meta(
            ge=0,
            le=2**32 - 1,
            description="A client that comes back within this time, in seconds, may repeat what was not acknowledged.",
        ),
    ] = 3600
    control_frames_per_s: Annotated[
        float, Meta(gt=0, description="PING, CREDIT and unknown frames a client may send; ten seconds' worth at once.")
    ] = 100.0


class WebSocketSettings(Section, frozen=True):
    enabled: Annotated[bool, Meta(description="Serve WebSocket connections, and the browser's client.")] = True
    port: Annotated[
        Annotated[int, Meta(ge=0, le=65535)] | None,
        Meta(description="A separate port for HTTP/1.1 and WebSocket; unset: it shares gateway.port."),
    ] = None
    principals: Annotated[
        tuple[Principal, ...], Meta(description='Kinds of participants that may use it; "*" is all.')
    ] = ("user",)
    allowed_origins: Annotated[
        tuple[str, ...],
        Meta(
            description="Origins of pages that may connect, besides the gateway's own page: "
            '"https://app.example.com"; "*" is any, which lets every web site connect as its visitor.'
        ),
    ] = ()
    max_message_bytes: Annotated[
        int, Meta(ge=KIB, description="Largest message taken from a client, in the bytes of its codec.")
    ] = 2 * MIB
    handshake_timeout_s: Annotated[float, Meta(gt=0, description="For the HTTP request and the upgrade.")] = 10.0
    max_messages_per_s: Annotated[
        float, Meta(gt=0, description="Messages and pings a client may send; ten seconds' worth at once.")
    ] = 1000.0
    idle_timeout_s: Annotated[
        float, Meta(gt=0, description="An HTTP connection without a request is closed after this.")
    ] = 15.0
    ping_interval_s: Annotated[
        float,
        Meta(
            ge=0,
            description="A connection on which nothing was sent for this long is sent a ping, because proxies cut quiet "
            "connections; 0 is never.",
        ),
    ] = 20.0
    page: Annotated[
        bool, Meta(description="Serve the page with which a person can try the gateway. Development mode does.")
    ] = False


class StorageSettings(Section, frozen=True):
    database: Annotated[
        str | None,
        Meta(
            description="postgresql://USER:PASSWORD@HOST[,HOST...]/NAME of a database that keeps everything; unset: files in "
            "gateway.data_dir. Needs the extra packages of aether-trio[cluster]."
        ),
    ] = None
    schema: Annotated[
        str, Meta(pattern="^[a-z_][a-z0-9_]{0,50}$", description="Schema in storage.database, made when missing.")
    ] = "aether"
    synchronous: Annotated[
        Literal["full", "normal"],
        Meta(
            description="full: every commit is on the disk before it counts; normal: a power cut may lose the last. SQLite only."
        ),
    ] = "full"
    presence_retention_s: Annotated[
        float, Meta(ge=0, description="How long the gateway remembers when a participant was last seen; 0 is for ever.")
    ] = 30 * DAYS
    readers: Annotated[int, Meta(ge=1, le=32, description="Reader threads beside the one writer of a SQLite file.")] = 2


class LogSettings(Section, frozen=True):
    retention_age_s: Annotated[float, Meta(ge=0, description="Messages are kept this long; 0 is for ever.")] = 1 * DAYS
    retention_bytes: Annotated[int, Meta(ge=0, description="Bytes kept per topic; 0 is without limit.")] = 1 * GIB
    offset_retention_age_s: Annotated[
        float, Meta(ge=0, description="A subscriber's position is kept this long without use; 0 is for ever.")
    ] = 7 * DAYS
    retention_sweep_s: Annotated[float, Meta(gt=0, description="Between two sweeps for messages that are too old.")] = (
        60.0
    )
    group_max_messages: Annotated[int, Meta(ge=1, description="Messages committed as one group.")] = 1024
    group_max_bytes: Annotated[int, Meta(ge=1, description="Bytes committed as one group.")] = 4 * MIB
    pending_bytes: Annotated[
        int, Meta(ge=1, description="Bytes waiting for their commit; when it is reached, readers wait.")
    ] = 32 * MIB
    outbox_bytes: Annotated[
        int, Meta(ge=1, description="Bytes waiting per subscriber; beyond, it reads from the log again.")
    ] = 256 * KIB
    ephemeral_bytes: Annotated[
        int, Meta(ge=1, description="Bytes of progress waiting per subscriber; beyond, the oldest are dropped.")
    ] = 64 * KIB
    offset_flush_s: Annotated[
        float, Meta(gt=0, description="Subscribers' positions are written this often, and when they leave.")
    ] = 0.25


class TaskSettings(Section, frozen=True):
    worker_tasks: Annotated[
        int, Meta(ge=1, le=10_000, description="Live tasks that one worker is assigned at most; further tasks wait.")
    ] = 100
    interactive_ttl_s: Annotated[
        float, Meta(ge=0, description="An INTERACTIVE task that has not ended after this is cancelled; 0 is never.")
    ] = 1 * HOURS
    startup_ttl_s: Annotated[
        float,
        Meta(ge=0, description="The start of an agent that no orchestrator takes is cancelled after this; 0 is never."),
    ] = 0.5 * HOURS
    start_timeout_s: Annotated[
        float,
        Meta(
            ge=0, description="Time for an agent to connect after an orchestrator was asked to start it; 0 is for ever."
        ),
    ] = 60.0
    start_grace_s: Annotated[
        float, Meta(gt=0, description="Time for a started agent to reconnect after it lost its connection.")
    ] = 5.0
    pool_ttl_s: Annotated[
        float, Meta(ge=0, description="A POOL task that no worker has claimed after this is cancelled; 0 is never.")
    ] = 1 * HOURS
    completed_retention_s: Annotated[
        float, Meta(ge=0, description="How long completed and rejected tasks are kept; 0 is for ever.")
    ] = 7 * DAYS
    failed_retention_s: Annotated[float, Meta(ge=0, description="How long failed tasks are kept; 0 is for ever.")] = (
        14 * DAYS
    )
    cancelled_retention_s: Annotated[
        float, Meta(ge=0, description="How long cancelled tasks are kept; 0 is for ever.")
    ] = 7 * DAYS
    resolved_retention_s: Annotated[
        float, Meta(ge=0, description="How long dead letters are kept after they were resolved; 0 is for ever.")
    ] = 30 * DAYS


class LoggingSettings(Section, frozen=True):
    format: Annotated[
        Literal["console", "json"], Meta(description="For people, or one JSON object a line. Alias AETHER_LOG_FORMAT.")
    ] = "console"
    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="Lowest level that is logged. Alias AETHER_LOG_LEVEL."),
    ] = "info"


class Settings(Section, frozen=True):
    """All settings. `Settings()` is `aether serve` without a settings file."""

    gateway: Annotated[GatewaySettings, Meta(description="The gateway itself.")] = GatewaySettings()
    ops: Annotated[OpsSettings, Meta(description="The port for operators.")] = OpsSettings()
    tls: Annotated[TlsSettings, Meta(description="Transport security of the gateway's port.")] = TlsSettings()
    auth: Annotated[AuthSettings, Meta(description="Who may connect.")] = AuthSettings()
    limits: Annotated[Limits, Meta(description="What a client may ask for.")] = Limits()
    grpc: Annotated[GrpcSettings, Meta(description="The gRPC (HTTP/2) transport and its sockets.")] = GrpcSettings()
    framed: Annotated[FramedSettings, Meta(description="The transport of the binary framing.")] = FramedSettings()
    websocket: Annotated[WebSocketSettings, Meta(description="The WebSocket transport, for browsers.")] = (
        WebSocketSettings()
    )
    storage: Annotated[StorageSettings, Meta(description="Where data is kept.")] = StorageSettings()
    log: Annotated[LogSettings, Meta(description="The durable message log.")] = LogSettings()
    tasks: Annotated[TaskSettings, Meta(description="Tasks and their workers.")] = TaskSettings()
    logging: Annotated[LoggingSettings, Meta(description="The gateway's own log.")] = LoggingSettings()

    @property
    def open_to_the_world(self) -> bool:
        """Whether other machines reach the port and no credential is asked for."""
        if is_loopback(self.gateway.host) or self.auth.trust_network:
            return False
        anonymous = self.auth.allow_anonymous or not (self.auth.api_keys or self.tls.client_ca)
        return anonymous and not (self.tls.client_ca and self.tls.require_client_cert)

    @property
    def credentials_in_plaintext(self) -> str | None:
        """The setting whose address would take credentials of other machines without TLS.

        None when there is no such address.
        """
        if self.auth.plaintext_credentials:
            return None
        asks = bool(self.auth.api_keys) or not self.auth.allow_anonymous
        if asks and not self.tls.cert and not is_loopback(self.gateway.host):
            return "gateway.host"
        if self.ops.enabled and self.ops.tail_token and not is_loopback(self.ops.host):
            return "ops.host"
        return None

    @property
    def refuses_every_client(self) -> bool:
        """Whether clients need credentials, and the settings accept none."""
        return not (self.auth.allow_anonymous or self.auth.api_keys or self.tls.client_ca)
