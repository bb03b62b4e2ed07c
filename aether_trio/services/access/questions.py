"""Reads what clients ask about, from the wire."""

from __future__ import annotations

from typing import Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.patterns import MAX_PATTERN_BYTES
from aether_trio.model.access.rules import checked_level, current_resource
from aether_trio.model.text import TextError, check_text
from aether_trio.services.access.authorizer import AccessQuestion
from aether_trio.wire.pb import aether_pb2 as pb

MAX_WORD_BYTES: Final = 256


def question(asked: pb.ResourceAccessRequest) -> AccessQuestion:
    """Return what a client asks about. Raises RuleError, TextError for bad input."""
    resource_type, resource_id = current_resource(
        check_text(asked.resource_type, "resource_type", MAX_WORD_BYTES),
        check_text(asked.resource_id, "resource_id", MAX_PATTERN_BYTES),
    )
    if not resource_type or not resource_id:
        raise TextError("an access check names resource_type and resource_id")
    operation = check_text(asked.operation, "operation", MAX_WORD_BYTES)
    check_text(asked.correlation_id, "correlation_id", MAX_WORD_BYTES)
    workspace = check_text(asked.workspace, "workspace", MAX_WORD_BYTES)
    if resource_type == "workspace":
        workspace = resource_id
    level = checked_level(asked.required_access_level) or AccessLevel.READ
    return AccessQuestion(operation or "access_check", resource_type, resource_id, workspace, level)
