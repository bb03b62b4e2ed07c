"""Formats a message of a tailed topic as one JSON line, for people and scripts.

Shape: {"offset", "timestamp_ms", "topic", "kind", ...}. For a message, `source`, `type` (chat,
event, ...) and `text` when the payload is UTF-8, else `payload_base64`. For anything else `message`
has the protobuf's JSON form.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from aether_trio.wire.pb import aether_pb2 as pb


def tail_line(topic: str, offset: int, timestamp_ms: int, encoded: bytes) -> bytes:
    """Return a topic's message as one JSON line; undecodable bytes as base64 in it."""
    line: dict[str, Any] = {"offset": offset, "timestamp_ms": timestamp_ms, "topic": topic}
    message = pb.DownstreamMessage()
    try:
        message.ParseFromString(encoded)
    except DecodeError:
        line |= {"kind": "unreadable", "payload_base64": base64.b64encode(encoded).decode()}
    else:
        line |= _described(message)
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _described(message: pb.DownstreamMessage) -> dict[str, Any]:
    kind = message.WhichOneof("payload") or "empty"
    if kind != "msg":
        return {"kind": kind, "message": json_format.MessageToDict(message, preserving_proto_field_name=True)}
    incoming = message.msg
    shown: dict[str, Any] = {"kind": "msg", "source": incoming.source_topic, "type": _type_name(incoming.message_type)}
    if incoming.workspace:
        shown["workspace"] = incoming.workspace
    try:
        shown["text"] = incoming.payload.decode()
    except UnicodeDecodeError:
        shown["payload_base64"] = base64.b64encode(incoming.payload).decode()
    return shown


def _type_name(number: int) -> str:
    value = pb.MessageType.DESCRIPTOR.values_by_number.get(number)
    return value.name.lower() if value else str(number)
