"""An audit event: what a row of the audit log says, and the bytes of its leaf.

A row is a leaf of the Merkle tree of the node that wrote it (model/access/merkle.py). The leaf is
computed from the stored columns alone, so anyone who has a row can compute it again:

    version   1 byte, 0x01
    at_ms     8 bytes, when it happened, in Unix ms
    ts_ms     8 bytes, when it was stored; within a tree it never decreases
    success   1 byte, 0 or 1
    lengths   4 bytes for each of the texts of TEXTS, in that order: its length in bytes
    texts     the texts, UTF-8, one after another

Integers are big-endian. The lengths come before all texts, so no two rows have the same bytes.
`metadata` is the JSON text as it is stored.

Invariants of an event's texts: no zero byte (PostgreSQL's text has none), valid UTF-8, at most
TEXT_BYTES; metadata is a JSON object in ASCII of at most METADATA_BYTES, in which each value whose
key may name a secret is REDACTED.
"""

from __future__ import annotations

import enum
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, NamedTuple

TEXT_BYTES: Final = 1024
METADATA_BYTES: Final = 64 * 1024
CONTENT_CHARACTERS: Final = 1024
"""Of a payload, at verbosity `high`."""
MAX_DEPTH: Final = 16
"""Metadata that is nested deeper is left out."""
REDACTED: Final = "[REDACTED]"
CUT: Final = "…"


class EventType(enum.StrEnum):
    """The families of audit events."""

    CONNECTION = "connection"
    AUTH = "auth"
    MESSAGE = "message"
    KV = "kv"
    TASK = "task"
    AUTHORIZATION = "authorization"
    AUTHORITY_REQUEST = "authority_request"
    ADMIN = "admin"
    ACL = "acl"
    CUSTOM = "custom"


SUBMITTED_TYPES: Final = frozenset({EventType.MESSAGE, EventType.KV, EventType.TASK, EventType.CUSTOM})
"""The types of events that a participant may add."""

OPERATIONS: Final[Mapping[EventType, frozenset[str]]] = {
    EventType.CONNECTION: frozenset(
        {
            "connection_established",
            "connection_closed",
            "lock_acquired",
            "lock_rejected",
            "session_registered",
            "extension_negotiated",
        }
    ),
    EventType.AUTH: frozenset(
        {
            "auth_mtls_success",
            "auth_mtls_failure",
            "auth_token_validation",
            "credential_renewed",
            "identity_resolved",
            "identity_resolve_failed",
        }
    ),
    EventType.MESSAGE: frozenset(
        {
            "message_received",
            "message_routed",
            "message_route_failed",
            "message_delivered",
            "proxy_http_routed",
            "proxy_http_failed",
            "proxy_http_stream_closed",
            "tunnel_opened",
            "tunnel_open_failed",
            "tunnel_closed",
        }
    ),
    EventType.KV: frozenset(
        {
            "kv_get",
            "kv_put",
            "kv_delete",
            "kv_list",
            "kv_increment",
            "kv_decrement",
            "kv_increment_if",
            "kv_decrement_if",
            "kv_set_nx",
            "kv_set_add",
            "kv_set_card",
            "kv_compare_and_set",
            "kv_compare_and_delete",
        }
    ),
    EventType.TASK: frozenset({"task_create", "task_token_issue", "task_authz_denied"}),
    EventType.ADMIN: frozenset(
        {
            "admin_state_query",
            "admin_session_disconnect",
            "admin_config_change",
            "admin_topic_purge",
            "audit_started",
            "audit_stopped",
            "audit_retention",
            "audit_gap",
        }
    ),
}
"""The operations with fixed names. Those of decisions, grants and requests are their services'."""

TEXTS: Final = (
    "event_type",
    "operation",
    "actor_type",
    "actor_id",
    "resource_type",
    "resource_id",
    "workspace",
    "session_id",
    "gateway_id",
    "error_message",
    "source",
    "authority_mode",
    "subject_type",
    "subject_id",
    "root_subject_type",
    "root_subject_id",
    "authority_grant_id",
    "root_authority_grant_id",
    "parent_authority_grant_id",
    "metadata",
)
"""The text columns of a row, in the order in which its leaf has them."""

_NO_METADATA: Final[Mapping[str, object]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """Who did what to which resource, on whose authority; times are Unix ms.

    Without a subject the actor is subject and root subject. An empty `gateway_id` is the node that
    writes the row.
    """

    at_ms: int
    event_type: EventType
    operation: str
    actor_type: str = ""
    actor_id: str = ""
    resource_type: str = ""
    resource_id: str = ""
    workspace: str = ""
    session_id: str = ""
    gateway_id: str = ""
    success: bool = True
    error_message: str = ""
    metadata: Mapping[str, object] = field(default_factory=lambda: _NO_METADATA)
    subject_type: str = ""
    subject_id: str = ""
    root_subject_type: str = ""
    root_subject_id: str = ""
    authority_mode: str = "direct"
    root_authority_grant_id: str = ""
    authority_grant_id: str = ""
    parent_authority_grant_id: str = ""
    source: str = "gateway"


class AuditRecord(NamedTuple):
    """An event as it is stored: its time, its success, and its texts (TEXTS)."""

    at_ms: int
    success: int
    texts: tuple[str, ...]
    size: int
    """About the bytes of memory that the record takes."""


RECORD_BYTES: Final = 1500
"""The memory of a record besides its characters: objects and tuples."""
GATEWAY_ID: Final = TEXTS.index("gateway_id")

_PLAIN: Final = TEXTS[:-1]
_plain_texts: Final = attrgetter(*_PLAIN)
_ACTOR_TYPE: Final = _PLAIN.index("actor_type")
_ACTOR_ID: Final = _PLAIN.index("actor_id")
_SUBJECT_TYPE: Final = _PLAIN.index("subject_type")
_SUBJECT_ID: Final = _PLAIN.index("subject_id")
_ROOT_TYPE: Final = _PLAIN.index("root_subject_type")
_ROOT_ID: Final = _PLAIN.index("root_subject_id")


def record_of(event: AuditEvent) -> AuditRecord:
    """Make the stored form of an event: checked texts, redacted metadata."""
    values: list[str] = list(_plain_texts(event))
    values[_ACTOR_TYPE] = values[_ACTOR_TYPE].lower()
    if not values[_SUBJECT_TYPE] and not values[_SUBJECT_ID]:
        values[_SUBJECT_TYPE], values[_SUBJECT_ID] = values[_ACTOR_TYPE], values[_ACTOR_ID]
    else:
        values[_SUBJECT_TYPE] = values[_SUBJECT_TYPE].lower()
    if not values[_ROOT_TYPE] and not values[_ROOT_ID]:
        values[_ROOT_TYPE], values[_ROOT_ID] = values[_SUBJECT_TYPE], values[_SUBJECT_ID]
    else:
        values[_ROOT_TYPE] = values[_ROOT_TYPE].lower()
    joined = "".join(values)
    if len(joined) > TEXT_BYTES or not joined.isascii() or "\0" in joined:
        values = [stored_text(text) for text in values]
        joined = "".join(values)
    metadata = metadata_text(event.metadata)
    size = RECORD_BYTES + len(metadata) + (len(joined) if joined.isascii() else len(joined.encode()))
    return AuditRecord(event.at_ms, int(event.success), (*values, metadata), size)


def stored_text(text: str) -> str:
    """Return a text as valid UTF-8 without zero bytes, cut off at TEXT_BYTES."""
    data = text.encode("utf-8", "replace")
    if b"\0" in data:
        data = data.replace(b"\0", b"\xef\xbf\xbd")
    if len(data) <= TEXT_BYTES:
        return data.decode()
    return data[: TEXT_BYTES - len(CUT.encode())].decode("utf-8", "ignore") + CUT


def metadata_text(metadata: Mapping[str, object]) -> str:
    """Return redacted metadata as a JSON object in ASCII, with its keys in order."""
    text = _as_json(metadata) if metadata else "{}"
    if len(text) > METADATA_BYTES:
        return json.dumps({"omitted": "the metadata is too long", "bytes": len(text)}, separators=(",", ":"))
    return text


def metadata_fits(metadata: Mapping[str, object]) -> bool:
    """Whether metadata is stored as it is, but for what is redacted."""
    return len(_as_json(metadata)) <= METADATA_BYTES


_quoted: Final = json.encoder.encode_basestring_ascii
_WORDS: Final[Mapping[object, str]] = {None: "null", False: "false", True: "true"}
_encode: Final = json.JSONEncoder(ensure_ascii=True, sort_keys=True, separators=(",", ":")).encode


def _as_json(metadata: Mapping[str, object]) -> str:
    if _PLAIN_TYPES.issuperset(map(type, metadata.values())) and _are_plain(tuple(metadata)):
        return "{" + ",".join([f"{_quoted(key)}:{_plain_json(metadata[key])}" for key in sorted(metadata)]) + "}"
    return _encode(redacted(metadata))


def _plain_json(value: object) -> str:
    if type(value) is str:
        return _quoted(value)
    return _WORDS[value] if value is None or type(value) is bool else str(value)


_SECRET: Final = re.compile("password|passwd|apikey|secret|token|bearer|authorization|credential|privatekey")
_SEPARATORS: Final = re.compile(r"[\s_.\-]")


_PLAIN_TYPES: Final = frozenset({str, int, bool, type(None)})
_TEXT: Final = frozenset({str})
_REMEMBERED_KEYS: Final = 512
_REMEMBERED_AT_ONCE: Final = 8
_REMEMBERED_KEY_CHARACTERS: Final = 64


def is_secret(key: str) -> bool:
    """Whether a key of metadata may name a secret; case and separators do not matter."""
    if len(key) > _REMEMBERED_KEY_CHARACTERS:
        return _names_secret(key)
    return _names_known_secret(key)


def _names_secret(key: str) -> bool:
    return _SECRET.search(_SEPARATORS.sub("", key.lower())) is not None


_names_known_secret: Final = lru_cache(maxsize=_REMEMBERED_KEYS)(_names_secret)


def _are_plain(keys: tuple[str, ...]) -> bool:
    """Return whether these are a few short texts that name no secrets."""
    if len(keys) > _REMEMBERED_AT_ONCE or not _TEXT.issuperset(map(type, keys)):
        return False
    return max(map(len, keys), default=0) <= _REMEMBERED_KEY_CHARACTERS and _name_no_secrets(keys)


@lru_cache(maxsize=_REMEMBERED_KEYS)
def _name_no_secrets(keys: tuple[str, ...]) -> bool:
    return not any(map(_names_secret, keys))


def redacted(metadata: Mapping[str, object]) -> dict[str, Any]:
    """Return metadata as JSON has it; REDACTED, at any depth, for what may be secret."""
    return {
        str(key): REDACTED if is_secret(str(key)) else _json_value(value, MAX_DEPTH) for key, value in metadata.items()
    }


def _json_value(value: object, depth: int) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if not depth:
        return CUT
    if isinstance(value, Mapping):
        return {
            str(key): REDACTED if is_secret(str(key)) else _json_value(one, depth - 1) for key, one in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_json_value(one, depth - 1) for one in value]
    return str(value)


def content_text(payload: bytes) -> str:
    """Return a payload as verbosity `high` shows it: its begin, or a mark for no text."""
    try:
        text = payload[: 4 * CONTENT_CHARACTERS].decode("utf-8", "strict" if len(payload) <= 4096 else "ignore")
    except UnicodeDecodeError:
        return f"[{len(payload)} bytes that are no text]"
    return text if len(text) <= CONTENT_CHARACTERS else f"{text[:CONTENT_CHARACTERS]}[truncated]"


LEAF_VERSION: Final = 1
_HEAD: Final = struct.Struct(f">BqqB{len(TEXTS)}I")
_pack_head: Final = _HEAD.pack


def leaf_bytes(at_ms: int, ts_ms: int, success: int, texts: Sequence[str]) -> bytes:
    """Return the bytes of a row of which its tree has the hash.

    Surrogates stand for bytes that a stored text has and UTF-8 does not (surrogateescape).
    """
    joined = "".join(texts)
    if joined.isascii():
        return _pack_head(LEAF_VERSION, at_ms, ts_ms, success, *map(len, texts)) + joined.encode()
    encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
    return _pack_head(LEAF_VERSION, at_ms, ts_ms, success, *map(len, encoded)) + b"".join(encoded)


LEAF_BITS: Final = 40
"""An audit id is the number of its tree, then, in so many bits, the number of its leaf plus 1."""
MAX_LEAVES: Final = (1 << LEAF_BITS) - 1


def audit_id(tree: int, leaf: int) -> int:
    """Return the id of a row: 1, 2, 3, ... in the tree 0. An id holds 63 bits."""
    return tree << LEAF_BITS | leaf + 1


def place_of(row_id: int) -> tuple[int, int]:
    """Return the number of a row's tree and of its leaf there."""
    return row_id >> LEAF_BITS, (row_id & MAX_LEAVES) - 1
