"""The bounds that clients of a gateway can run into; each name ends with its unit.

The defaults are the reference's (core.md section 5.4). Bounds of a transport (message caps,
flow-control windows, flood budgets) live with the transport.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Final

from aether_trio.model.identity import MAX_TOKEN_BYTES
from aether_trio.model.metric import MAX_ENTRIES, MAX_METADATA_KEYS
from aether_trio.model.topics import MAX_TOPIC_BYTES

KIB: Final = 1024
MIB: Final = 1024 * KIB

CLIENT_MESSAGE_BYTES: Final = 4 * MIB - 1 * KIB
"""One message to a client: gRPC libraries refuse more than 4 MiB, our framing too, with its frame.
"""
MAX_PAYLOAD_BYTES: Final = CLIENT_MESSAGE_BYTES - 64 * KIB
"""The largest `payload_bytes`: a message is delivered with its topic and workspace."""
MAX_TASK_PAYLOAD_BYTES: Final = CLIENT_MESSAGE_BYTES - 1 * MIB
"""The largest `task_payload_bytes`: an assignment has metadata and launch parameters too."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes, rates and counts for clients; 0, where it is allowed, means no limit."""

    topic_bytes: ClassVar[int] = MAX_TOPIC_BYTES
    """The protocol's, not a setting: identities are stored under it."""
    token_bytes: ClassVar[int] = MAX_TOKEN_BYTES
    """The protocol's, not a setting."""

    name_bytes: ClassVar[int] = 1 * KIB
    """A name in a request: an id, a topic, a word (session/request_bounds.py). Not a setting."""
    numbers: ClassVar[int] = 1024
    """Entries of a list of numbers in a request: a request of `name_bytes` has no more."""
    text_bytes: ClassVar[int] = 16 * KIB
    """One text for people in a request, such as a description."""
    request_bytes: ClassVar[int] = 256 * KIB
    """A request without its content: metadata, parameters, scopes. It is shown in every list."""
    status_text_bytes: ClassVar[int] = 1 * KIB
    """The text of a stream's end: a header, of which gRPC clients refuse more than 8 KiB."""

    payload_bytes: int = 1 * MIB
    """Payload of one message; beyond it ERR_PAYLOAD_TOO_LARGE."""
    task_payload_bytes: int = 512 * KIB
    """Payload of a created task; beyond it TASK_PAYLOAD_TOO_LARGE."""

    send_rate_per_s: float = 100.0
    """Messages and progress reports of one connection; beyond it ERR_RATE_LIMITED."""
    send_burst: int = 200
    workspace_rate_per_s: float = 0.0
    """Messages of one workspace, burst of one second; beyond it ERR_WORKSPACE_RATE_LIMITED."""
    identity_rate_per_s: float = 0.0
    """Messages of one identity, burst of one second; beyond it ERR_QUOTA_001."""

    request_rate_per_s: float = 1000.0
    """Requests of one connection (KV, checkpoints, tasks, sessions, ...); beyond it
    ERR_RATE_LIMITED. Tens of workers behind one connection may need more."""
    request_burst: int = 4000

    connections_per_workspace: int = 1000
    """Beyond it the handshake ends with RESOURCE_EXHAUSTED."""
    init_wait_s: float = 30.0
    """How long a stream may take to its InitConnection; beyond it DEADLINE_EXCEEDED."""
    init_bytes: int = 512 * KIB
    """The whole InitConnection, on every transport: an unauthenticated client may send it."""
    message_wait_s: float = 30.0
    """A message that has begun must bring 64 KiB, or its end, in it; else DEADLINE_EXCEEDED."""
    unfinished_input_bytes: int = 64 * MIB
    """Of unfinished messages of all connections; beyond it one of them is given up."""
    credentials_per_connection: int = 16
    """Entries of InitConnection.credentials; the SDK sends at most four."""
    credential_bytes: int = 16 * KIB
    """The value of one credential. A large signed token has about 8 KiB."""
    extensions_per_connection: int = 64
    """Declared extensions, message and metadata together. The reference has no bound."""
    extension_uri_bytes: int = 1 * KIB
    profiles_per_orchestrator: int = 64
    """Launch profiles that one orchestrator serves. The reference has no bound."""
    profile_bytes: int = 256

    agent_registrations: int = 10_000
    """Registered agent implementations; beyond it ERR_QUOTA_001."""

    metric_entries: int = MAX_ENTRIES
    metric_metadata_keys: int = MAX_METADATA_KEYS

    kv_key_bytes: int = 256
    kv_value_bytes: int = 1 * MIB
    """Value of one key; beyond it ERR_QUOTA_001."""
    kv_keys_per_scope: int = 100_000
    """Keys and members of sets in one namespace of a scope; beyond it ERR_QUOTA_001."""
    kv_bytes_per_scope: int = 1024 * MIB
    """Keys and values in one such namespace, each rounded up to a KiB; else ERR_QUOTA_001."""
    kv_list_page: int = 100
    """Page size when the client names none."""
    kv_list_page_max: int = 1000
    """Page size that is given when the client asks for more."""

    checkpoint_bytes: int = 4 * MIB
    """One checkpoint. The reference has no bound, and its transport stops at 4 MiB."""
    checkpoint_key_bytes: int = 256
    checkpoint_bytes_per_identity: int = 1024 * MIB
    """Checkpoints of one identity together. The reference has no bound."""

    def __post_init__(self) -> None:
        may_be_off = {"send_rate_per_s", "workspace_rate_per_s", "identity_rate_per_s", "connections_per_workspace"}
        may_be_off |= {"request_rate_per_s", "agent_registrations"}
        may_be_off |= {"kv_keys_per_scope", "kv_bytes_per_scope", "checkpoint_bytes_per_identity"}
        for item in fields(self):
            value = getattr(self, item.name)
            if value < 0 or (value == 0 and item.name not in may_be_off):
                raise ValueError(
                    f"limit {item.name} is {value}; it must be {'at least 0' if item.name in may_be_off else 'positive'}"
                )
        for name, most in (("payload_bytes", MAX_PAYLOAD_BYTES), ("task_payload_bytes", MAX_TASK_PAYLOAD_BYTES)):
            if getattr(self, name) > most:
                raise ValueError(
                    f"limit {name} is {getattr(self, name)}; above {most} it would not fit into one message to a client"
                )
        if self.kv_list_page > self.kv_list_page_max:
            raise ValueError(f"limit kv_list_page {self.kv_list_page} is over kv_list_page_max {self.kv_list_page_max}")
