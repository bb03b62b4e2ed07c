"""Declares the settings: a frozen struct per section, a documented key per field.

Units are in the names: `_s` seconds (floats), `_bytes` bytes, `_per_s` a rate per second. A rate of
0 means "not limited", a period of 0 means "never"; each field says so where it applies. Reference
values are the defaults, unless the text says why not.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import urlsplit

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


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; False for names but localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


Port = Annotated[int, Meta(ge=0, le=65535)]


def about(text: str, **bounds: Any) -> Meta:
    """Describe a setting, and bound its values as msgspec.Meta does."""
    return Meta(description=text, **bounds)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of settings, such as those of gRPC."""


class GatewaySettings(Section, frozen=True):
    host: Annotated[str, about("Address to listen on. Development mode listens on 127.0.0.1.")] = "0.0.0.0"  # noqa: S104  # serve refuses to start there without credentials
    port: Annotated[int, about("Port that the transports share; 0 picks a free one.", ge=0, le=65535)] = 50051
    data_dir: Annotated[str, about("Directory of the durable state.", min_length=1)] = "aether-data"
    ephemeral: Annotated[bool, about("Keep everything in a temporary directory that is deleted at the end.")] = False
    dev: Annotated[
        bool, about("Development mode: loopback, no credentials, no message rates. Alias AETHER_DEV_MODE.")
    ] = False
    node_name: Annotated[
        Annotated[str, Meta(min_length=1, max_length=128)] | None,
        about("Name of this gateway in its cluster and its log; unset: the machine's name."),
    ] = None
    reuse_port: Annotated[
        bool, about("Let other gateways of this user listen on the same ports; the kernel spreads connections.")
    ] = False
    first_bytes_timeout_s: Annotated[
        float, about("For TLS and for the first bytes of a connection, which tell its transport.", gt=0)
    ] = 10.0
    strict_identifier_charset: Annotated[
        bool, about("Refuse identity parts outside the protocol's charset. Alias AETHER_STRICT_IDENTIFIER_CHARSET.")
    ] = True


class OpsSettings(Section, frozen=True):
    enabled: Annotated[bool, about("Serve /healthz, /readyz, /metrics and /v1/tail.")] = True
    host: Annotated[str, about("Address of the ops port. Only /v1/tail asks for a credential.")] = "127.0.0.1"
    port: Annotated[int, about("Port of the ops server; 0 picks a free one.", ge=0, le=65535)] = 9090
    tail: Annotated[bool, about("Serve /v1/tail: on loopback in development mode, elsewhere with ops.tail_token.")] = (
        True
    )
    tail_token: Annotated[
        Annotated[str, Meta(min_length=16)] | None,
        about("Bearer token that allows /v1/tail and resolving dead letters; 16 characters or more."),
    ] = None
    workspace_label: Annotated[
        bool,
        about("Show metrics of messages, sessions, KV, checkpoints and tasks by workspace too, for 1,000 series each."),
    ] = False
    max_connections: Annotated[int, about("Ops connections at a time; more are refused.", ge=1)] = 64
    max_header_bytes: Annotated[int, about("Largest request line and headers together.", ge=1024)] = 16 * KIB
    request_timeout_s: Annotated[
        float, about("For a request to arrive, and for each write of an answer to be taken.", gt=0)
    ] = 10.0
    idle_timeout_s: Annotated[float, about("An idle keep-alive connection is closed after this.", gt=0)] = 75.0


class TlsSettings(Section, frozen=True):
    cert: Annotated[str | None, about("PEM file of the server's certificate chain; enables TLS.")] = None
    key: Annotated[str | None, about("PEM file of the server's private key.")] = None
    client_ca: Annotated[str | None, about("PEM file of the authorities whose client certificates are accepted.")] = (
        None
    )
    client_crl: Annotated[
        str | None,
        about(
            "File of the authorities' lists of revoked client certificates (PEM, one or several, or DER). Read at the "
            "start and at SIGHUP."
        ),
    ] = None
    require_client_cert: Annotated[
        bool, about("Refuse the TLS handshake of a client without a certificate (needs tls.client_ca).")
    ] = False
    terminated_by_proxy: Annotated[
        bool,
        about(
            "Accept credentials without TLS on an address that other machines reach, because a proxy in front ends "
            "TLS: who listens on the network behind the proxy can read and use them."
        ),
    ] = False


class ApiKey(Section, frozen=True):
    """An accepted API key, as its hash. `aether keys new` prints such a record."""

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    principal: Principal
    identity: Annotated[str, Meta(min_length=1)] = "*"
    workspaces: tuple[str, ...] = ("*",)
    created: str = ""


class ClaimsMapping(Section, frozen=True):
    """The claims of a JWT that say who its holder is; "" for none.

    A name with dots that is no claim is a path: `realm_access.roles`.
    """

    principal_type: str = ""
    workspace: str = ""
    identity: Annotated[str, Meta(min_length=1)] = "sub"
    groups: str = ""


JwtAlgorithm = Literal["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"]


class JwtProvider(Section, frozen=True):
    """An identity provider whose JSON Web Tokens admit clients."""

    name: Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9_-]{0,63}$")]
    issuer: Annotated[str, Meta(min_length=1)]
    audience: Annotated[str, Meta(min_length=1)]
    jwks_url: str | None = None
    jwks_file: str | None = None
    jwks_ca: str | None = None
    """PEM file of the authorities to trust at `jwks_url`, instead of the system's."""
    claims_mapping: ClaimsMapping = ClaimsMapping()
    default_principal: Literal["agent", "task", "user"] = "user"
    default_workspace: str = ""
    algorithms: Annotated[tuple[JwtAlgorithm, ...], Meta(min_length=1)] = get_args(JwtAlgorithm)


class JwtSettings(Section, frozen=True):
    providers: Annotated[
        tuple[JwtProvider, ...],
        about(
            "Identity providers whose tokens (JWT) admit clients: records with name, issuer, audience, jwks_url or "
            "jwks_file, claims_mapping, default_principal, default_workspace, algorithms."
        ),
    ] = ()
    plain_http_on_loopback: Annotated[
        bool, about("Fetch a provider's keys from http://127.0.0.1 and the like too. For development.")
    ] = False

    @property
    def problems(self) -> list[str]:
        """What is wrong with the providers; a sentence for each that cannot be used."""
        found = [(one.name, _provider_problem(one, plain=self.plain_http_on_loopback)) for one in self.providers]
        return [f"{name!r} {problem}" for name, problem in found if problem is not None]


def _provider_problem(provider: JwtProvider, *, plain: bool) -> str | None:
    """Return what is wrong with an identity provider (a sentence's end), or None."""
    if (provider.jwks_url is None) == (provider.jwks_file is None):
        return "needs jwks_url or jwks_file, its keys, and not both"
    if provider.default_workspace.startswith("_"):
        return "has a default_workspace that begins with _: such names are the gateway's"
    if provider.jwks_url is None:
        return None
    try:
        url = urlsplit(provider.jwks_url)
        host, port = url.hostname or "", url.port
    except ValueError as error:
        return f"has a jwks_url that is no URL: {error}"
    target = url.path + url.query
    if not host or port == 0 or url.username is not None or url.fragment or not target.isascii() or " " in target:
        return "has a jwks_url that is not https://HOST[:PORT]/PATH"
    if url.scheme == "http" and plain and is_loopback(host):
        return None
    return (
        None if url.scheme == "https" else "has a jwks_url that is not https: who is on the way could replace the keys"
    )


class HmacKey(Section, frozen=True):
    """A key under which API tokens are stored: a file with the base64 of 32 bytes."""

    id: Annotated[str, Meta(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    file: Annotated[str, Meta(min_length=1)]


class AuthSettings(Section, frozen=True):
    api_keys: Annotated[
        tuple[ApiKey, ...], about("Accepted API keys, as hashes: records that `aether keys new` prints.")
    ] = ()
    token_hmac_keys: Annotated[
        tuple[HmacKey, ...],
        about(
            "Keys under which API tokens are stored: records with id and file. The first is for new tokens; tokens of "
            "the others stay valid. `aether init` makes one."
        ),
    ] = ()
    jwt: Annotated[JwtSettings, about("Tokens of identity providers.")] = JwtSettings()
    allow_anonymous: Annotated[bool, about("Accept connections without credentials. Development mode does.")] = False
    trust_network: Annotated[
        bool, about("Start without credentials on a reachable address: the network in front admits known clients only.")
    ] = False
    client_cert_mode: Annotated[
        Literal["strict", "semi-strict", "relaxed"],
        about(
            "What a client certificate's common name decides: the whole identity, all of it but the "
            "specifier, or the kind of principal."
        ),
    ] = "strict"
    max_failures: Annotated[
        int, about("Refused credentials of one address for one identity before the cool-down.", ge=1)
    ] = 5
    max_failures_per_address: Annotated[
        int,
        about("Refused credentials of one address, or of one IPv6 /64, for all identities before the cool-down.", ge=1),
    ] = 100
    failure_window_s: Annotated[float, about("Window in which refused credentials count.", gt=0)] = 30.0
    cooldown_s: Annotated[
        float, about("How long an address or identity over these bounds is refused without a check.", ge=0)
    ] = 30.0
    max_tracked_identities: Annotated[
        int, about("Addresses and identities whose failures are remembered, this many of each.", ge=1)
    ] = 1024

    @property
    def asks_for_secrets(self) -> bool:
        """Whether clients may show a secret: an API key, an API token or a JWT."""
        return bool(self.api_keys or self.token_hmac_keys or self.jwt.providers)


class AccessSettings(Section, frozen=True):
    default: Annotated[
        Literal["open", "closed"],
        about(
            "The rules of a new database. closed: a participant may use its own workspace alone; open: every workspace. "
            "Development mode is open."
        ),
    ] = "closed"


class GrpcSettings(Section, frozen=True):
    enabled: Annotated[bool, about("Serve gRPC.")] = True
    port: Annotated[Port | None, about("A separate port for gRPC; unset: it shares gateway.port.")] = None
    max_receive_bytes: Annotated[
        int, about("Largest message taken from a client; refused before it is buffered.", ge=KIB)
    ] = 10 * MIB
    max_concurrent_streams: Annotated[int, about("Open streams per HTTP/2 connection.", ge=1)] = 1000
    max_connections: Annotated[int, about("Open TCP connections; more are refused.", ge=1)] = 65536
    max_header_list_bytes: Annotated[int, about("Largest header list of one request.", ge=KIB)] = 16 * KIB
    stream_window_bytes: Annotated[
        int,
        about(
            "Receive window of a stream: the most that is buffered while the gateway does not read.",
            ge=65535,
            le=2**31 - 1,
        ),
    ] = 64 * KIB
    connection_window_bytes: Annotated[int, about("Receive window of a connection.", ge=65535, le=2**31 - 1)] = 1 * MIB
    handshake_timeout_s: Annotated[float, about("For the HTTP/2 handshake of a new connection.", gt=0)] = 10.0
    idle_timeout_s: Annotated[float, about("A connection without streams is closed after this; 0 is never.", ge=0)] = (
        15 * MINUTES
    )
    min_ping_interval_s: Annotated[float, about("Clients may ping this often, with and without streams.", ge=0)] = 10.0
    max_ping_strikes: Annotated[int, about("Pings that came too early before GOAWAY ENHANCE_YOUR_CALM.", ge=1)] = 2
    max_connection_age_s: Annotated[
        float, about("Connections are asked to leave after this; 0 is never (the reference: 7200).", ge=0)
    ] = 0.0
    max_connection_age_grace_s: Annotated[float, about("Time for the streams of an aged connection to end.", ge=0)] = (
        5.0
    )
    drain_deadline_s: Annotated[
        float,
        about("A drain, on every transport, ends whatever is left after this. Clients get nine tenths of it.", gt=0),
    ] = 10.0
    write_timeout_s: Annotated[
        float, about("A client that reads nothing of what waits for it is asked to reconnect; 0 is never.", ge=0)
    ] = 5 * MINUTES
    tcp_user_timeout_s: Annotated[
        float, about("Unacknowledged bytes end a connection after this; 0 is the kernel's choice.", ge=0)
    ] = 30.0
    tcp_keepalive_idle_s: Annotated[
        int, about("Silence before TCP probes the peer, in whole seconds; 0 is off.", ge=0)
    ] = 15
    tcp_keepalive_interval_s: Annotated[int, about("Between two TCP probes, in whole seconds.", ge=1)] = 5
    tcp_keepalive_probes: Annotated[int, about("Unanswered TCP probes that end a connection.", ge=1)] = 3
    abuse_window_s: Annotated[float, about("Window of the frame budgets below.", gt=0)] = 10.0
    max_stream_resets: Annotated[int, about("Client resets per window (rapid reset).", ge=1)] = 200
    max_settings_frames: Annotated[int, about("SETTINGS frames per window.", ge=1)] = 20
    max_ping_frames: Annotated[int, about("PING frames per window, whatever their spacing.", ge=1)] = 100
    max_empty_data_frames: Annotated[int, about("DATA frames without data per window.", ge=1)] = 500
    max_continuation_frames: Annotated[int, about("CONTINUATION frames of one header list.", ge=1)] = 8
    reflection: Annotated[bool, about("Serve gRPC reflection (grpcurl and the like).")] = True


class FramedSettings(Section, frozen=True):
    enabled: Annotated[bool, about("Serve the binary framing.")] = True
    port: Annotated[Port | None, about("A separate port for the binary framing; unset: it shares gateway.port.")] = None
    max_frame_bytes: Annotated[int, about("Longest frame taken from an accepted client.", ge=4 * MIB, le=2**31 - 1)] = (
        10 * MIB
    )
    publish_window: Annotated[
        int, about("Messages that a client may have sent and not had acknowledged.", ge=1, le=2**20)
    ] = 4096
    dedup_s: Annotated[
        int,
        about(
            "A client that comes back within this time, in seconds, may repeat what was not acknowledged.",
            ge=0,
            le=2**32 - 1,
        ),
    ] = 3600
    control_frames_per_s: Annotated[
        float, about("PING, CREDIT and unknown frames a client may send; ten seconds' worth at once.", gt=0)
    ] = 100.0


class WebSocketSettings(Section, frozen=True):
    enabled: Annotated[bool, about("Serve WebSocket connections, and the browser's client.")] = True
    port: Annotated[
        Port | None, about("A separate port for HTTP/1.1 and WebSocket; unset: it shares gateway.port.")
    ] = None
    principals: Annotated[tuple[Principal, ...], about('Kinds of participants that may use it; "*" is all.')] = (
        "user",
    )
    allowed_origins: Annotated[
        tuple[str, ...],
        about(
            "Origins of pages that may connect, besides the gateway's own page: "
            '"https://app.example.com"; "*" is any, which lets every web site connect as its visitor.'
        ),
    ] = ()
    max_message_bytes: Annotated[
        int, about("Largest message taken from a client, in the bytes of its codec.", ge=KIB)
    ] = 2 * MIB
    handshake_timeout_s: Annotated[float, about("For the HTTP request and the upgrade.", gt=0)] = 10.0
    max_messages_per_s: Annotated[
        float, about("Messages and pings a client may send; ten seconds' worth at once.", gt=0)
    ] = 1000.0
    idle_timeout_s: Annotated[float, about("An HTTP connection without a request is closed after this.", gt=0)] = 15.0
    ping_interval_s: Annotated[
        float,
        about(
            "A connection on which nothing was sent for this long is sent a ping, because proxies cut quiet "
            "connections; 0 is never.",
            ge=0,
        ),
    ] = 20.0
    page: Annotated[bool, about("Serve the page with which a person can try the gateway. Development mode does.")] = (
        False
    )


class StorageSettings(Section, frozen=True):
    database: Annotated[
        str | None,
        about(
            "postgresql://USER:PASSWORD@HOST[,HOST...]/NAME of a database that keeps everything; unset: files in "
            "gateway.data_dir. Needs the extra packages of aether-trio[cluster]."
        ),
    ] = None
    schema: Annotated[
        str, about("Schema in storage.database, made when missing.", pattern="^[a-z_][a-z0-9_]{0,50}$")
    ] = "aether"
    synchronous: Annotated[
        Literal["full", "normal"],
        about(
            "full: every commit is on the disk before it counts; normal: a power cut may lose the last. SQLite only."
        ),
    ] = "full"
    presence_retention_s: Annotated[
        float, about("How long the gateway remembers when a participant was last seen; 0 is for ever.", ge=0)
    ] = 30 * DAYS
    readers: Annotated[int, about("Reader threads beside the one writer of a SQLite file.", ge=1, le=32)] = 2


class LogSettings(Section, frozen=True):
    retention_age_s: Annotated[float, about("Messages are kept this long; 0 is for ever.", ge=0)] = 1 * DAYS
    retention_bytes: Annotated[int, about("Bytes kept per topic; 0 is without limit.", ge=0)] = 1 * GIB
    offset_retention_age_s: Annotated[
        float, about("A subscriber's position is kept this long without use; 0 is for ever.", ge=0)
    ] = 7 * DAYS
    retention_sweep_s: Annotated[float, about("Between two sweeps for messages that are too old.", gt=0)] = 60.0
    group_max_messages: Annotated[int, about("Messages committed as one group.", ge=1)] = 1024
    group_max_bytes: Annotated[int, about("Bytes committed as one group.", ge=1)] = 4 * MIB
    pending_bytes: Annotated[int, about("Bytes waiting for their commit; when it is reached, readers wait.", ge=1)] = (
        32 * MIB
    )
    outbox_bytes: Annotated[int, about("Bytes waiting per subscriber; beyond, it reads from the log again.", ge=1)] = (
        256 * KIB
    )
    ephemeral_bytes: Annotated[
        int, about("Bytes of progress waiting per subscriber; beyond, the oldest are dropped.", ge=1)
    ] = 64 * KIB
    offset_flush_s: Annotated[
        float, about("Subscribers' positions are written this often, and when they leave.", gt=0)
    ] = 0.25


class TaskSettings(Section, frozen=True):
    worker_tasks: Annotated[
        int, about("Live tasks that one worker is assigned at most; further tasks wait.", ge=1, le=10_000)
    ] = 100
    interactive_ttl_s: Annotated[
        float, about("An INTERACTIVE task that has not ended after this is cancelled; 0 is never.", ge=0)
    ] = 1 * HOURS
    startup_ttl_s: Annotated[
        float, about("The start of an agent that no orchestrator takes is cancelled after this; 0 is never.", ge=0)
    ] = 0.5 * HOURS
    start_timeout_s: Annotated[
        float, about("Time for an agent to connect after an orchestrator was asked to start it; 0 is for ever.", ge=0)
    ] = 60.0
    start_grace_s: Annotated[
        float, about("Time for a started agent to reconnect after it lost its connection.", gt=0)
    ] = 5.0
    message_crashes: Annotated[
        int,
        about(
            "A message that was the first unread one at so many crashes of its agent is a dead letter; 0 is never.",
            ge=0,
            le=1_000,
        ),
    ] = 3
    pool_ttl_s: Annotated[
        float, about("A POOL task that no worker has claimed after this is cancelled; 0 is never.", ge=0)
    ] = 1 * HOURS
    completed_retention_s: Annotated[
        float, about("How long completed tasks and machine instances are kept; 0 is for ever.", ge=0)
    ] = 7 * DAYS
    failed_retention_s: Annotated[float, about("How long failed tasks are kept; 0 is for ever.", ge=0)] = 14 * DAYS
    cancelled_retention_s: Annotated[float, about("How long cancelled tasks are kept; 0 is for ever.", ge=0)] = 7 * DAYS
    resolved_retention_s: Annotated[
        float, about("How long dead letters are kept after they were resolved; 0 is for ever.", ge=0)
    ] = 30 * DAYS


class WorkflowSettings(Section, frozen=True):
    engine: Annotated[
        Literal["auto", "embedded", "external", "off"],
        about(
            "Who the workflow engine is. auto: the gateway's own, which gives way to an external one that connects; "
            "embedded: the gateway's own, others are refused; external: only one that connects; off: no workflows."
        ),
    ] = "auto"
    history_entries: Annotated[int, about("Entries in the history of an execution, beyond which it fails.", ge=100)] = (
        50_000
    )
    history_bytes: Annotated[int, about("Size of the history of an execution, beyond which it fails.", ge=64 * KIB)] = (
        50 * MIB
    )
    dead_letters: Annotated[
        int, about("Open dead letters of workflows that are kept; the oldest ones beyond are deleted.", ge=100)
    ] = 100_000
    max_concurrent_executions: Annotated[
        int,
        about(
            "Executions that run at the same time, but for those that steps of others start; further ones wait. "
            "0: any number.",
            ge=0,
        ),
    ] = 0
    max_descendants: Annotated[
        int,
        about(
            "Executions that sub-workflows start below one execution, at all depths; the step that would start a "
            "further one fails. What the execution itself starts is not counted.",
            ge=1,
        ),
    ] = 10_000
    timezone: Annotated[
        str, about("The time zone of schedules that name none, such as Europe/Berlin.", min_length=1)
    ] = "UTC"


AuditEventType = Literal[
    "connection",
    "auth",
    "message",
    "kv",
    "task",
    "authorization",
    "authority_request",
    "admin",
    "acl",
    "custom",
]


class AuditSettings(Section, frozen=True):
    enabled: Annotated[
        bool, about("Record what participants do. Changes of access rules are recorded in any case.")
    ] = True
    event_types: Annotated[
        tuple[AuditEventType, ...], about("Types of events that are recorded; none: all of them.")
    ] = ()
    verbosity: Annotated[
        Literal["low", "medium", "high"],
        about("medium: also the sizes of messages and values; high: also the begin of the payloads of new tasks."),
    ] = "low"
    retention_days: Annotated[int, about("Rows are kept this long; 0 is for ever.", ge=0)] = 90
    queue_bytes: Annotated[
        int, about("Rows that wait while the database fails; what does not fit is one row with its count.", ge=MIB)
    ] = 64 * MIB
    submits_per_s: Annotated[
        float, about("Entries that a participant may add; one second's worth at once. 0 is unlimited.", ge=0)
    ] = 100.0
    head_s: Annotated[float, about("Between two signed heads of the audit log.", gt=0)] = 60.0
    signing_key: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        about("File of the key that signs the heads, made when missing; unset: audit.key in gateway.data_dir."),
    ] = None
    heads_file: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        about("File to which each signed head is appended, for a witness on another machine; unset: none."),
    ] = None


class LoggingSettings(Section, frozen=True):
    format: Annotated[
        Literal["console", "json"], about("For people, or one JSON object a line. Alias AETHER_LOG_FORMAT.")
    ] = "console"
    level: Annotated[
        Literal["debug", "info", "warning", "error"], about("Lowest level that is logged. Alias AETHER_LOG_LEVEL.")
    ] = "info"


class Settings(Section, frozen=True):
    """All settings. `Settings()` is `aether serve` without a settings file."""

    gateway: Annotated[GatewaySettings, about("The gateway itself.")] = GatewaySettings()
    ops: Annotated[OpsSettings, about("The port for operators.")] = OpsSettings()
    tls: Annotated[TlsSettings, about("Transport security of the gateway's port.")] = TlsSettings()
    auth: Annotated[AuthSettings, about("Who may connect.")] = AuthSettings()
    access: Annotated[AccessSettings, about("What participants may do.")] = AccessSettings()
    limits: Annotated[Limits, about("What a client may ask for.")] = Limits()
    grpc: Annotated[GrpcSettings, about("The gRPC (HTTP/2) transport and its sockets.")] = GrpcSettings()
    framed: Annotated[FramedSettings, about("The transport of the binary framing.")] = FramedSettings()
    websocket: Annotated[WebSocketSettings, about("The WebSocket transport, for browsers.")] = WebSocketSettings()
    storage: Annotated[StorageSettings, about("Where data is kept.")] = StorageSettings()
    log: Annotated[LogSettings, about("The durable message log.")] = LogSettings()
    tasks: Annotated[TaskSettings, about("Tasks and their workers.")] = TaskSettings()
    workflow: Annotated[WorkflowSettings, about("Workflows and their engine.")] = WorkflowSettings()
    audit: Annotated[AuditSettings, about("The record of who did what.")] = AuditSettings()
    logging: Annotated[LoggingSettings, about("The gateway's own log.")] = LoggingSettings()

    @property
    def open_to_the_world(self) -> bool:
        """Whether other machines reach the port and no credential is asked for."""
        if is_loopback(self.gateway.host) or self.auth.trust_network:
            return False
        anonymous = self.auth.allow_anonymous or not (self.auth.asks_for_secrets or self.tls.client_ca)
        return anonymous and not (self.tls.client_ca and self.tls.require_client_cert)

    @property
    def credentials_in_plaintext(self) -> str | None:
        """The setting of an address that would take credentials without TLS, or None."""
        if self.tls.terminated_by_proxy:
            return None
        asks = self.auth.asks_for_secrets or not self.auth.allow_anonymous
        if asks and not self.tls.cert and not is_loopback(self.gateway.host):
            return "gateway.host"
        if self.ops.enabled and self.ops.tail_token and not is_loopback(self.ops.host):
            return "ops.host"
        return None

    @property
    def refuses_every_client(self) -> bool:
        """Whether clients need credentials, and the settings accept none."""
        return not (self.auth.allow_anonymous or self.auth.asks_for_secrets or self.tls.client_ca)
