"""Quotas: names and values that are taken, and what is in force where."""

from __future__ import annotations

import pytest

from aether_trio.model.limits import MAX_TASK_PAYLOAD_BYTES, Limits
from aether_trio.model.quotas import (
    QUOTA_NAMES,
    QuotaError,
    QuotaValues,
    WorkspaceQuotas,
    check_quota_name,
    parse_quota,
    quota_text,
)


def test_each_quota_is_a_limit() -> None:
    assert QuotaValues.of(Limits()).connections_per_workspace == Limits().connections_per_workspace
    assert all(hasattr(Limits(), name) for name in QUOTA_NAMES)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("connections_per_workspace", "0", 0),
        ("connections_per_workspace", "7", 7),
        ("workspace_rate_per_s", "0.5", 0.5),
        ("identity_rate_per_s", "1e3", 1000.0),
        ("task_payload_bytes", str(MAX_TASK_PAYLOAD_BYTES), MAX_TASK_PAYLOAD_BYTES),
    ],
)
def test_values(name: str, text: str, value: float) -> None:
    assert parse_quota(name, text) == value
    assert parse_quota(name, quota_text(value)) == value


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("connections_per_workspace", "-1", "at least 0"),
        ("connections_per_workspace", "1.5", "a whole number"),
        ("connections_per_workspace", "", "a whole number"),
        ("connections_per_workspace", "9" * 40, "is a number, not"),
        ("connections_per_workspace", "٣", "is a number, not"),
        ("workspace_rate_per_s", "nan", "at least 0"),
        ("workspace_rate_per_s", "inf", "at least 0"),
        ("workspace_rate_per_s", "1e-9", "at least 0.001"),
        ("task_payload_bytes", "0", "at least 1"),
        ("task_payload_bytes", str(MAX_TASK_PAYLOAD_BYTES + 1), "at most"),
        ("workspace_rate", "1", "did you mean workspace_rate_per_s"),
        ("\x00", "1", "there are connections_per_workspace"),
    ],
)
def test_what_is_refused(name: str, text: str, says: str) -> None:
    with pytest.raises(QuotaError, match=says):
        parse_quota(name, text)


def test_names() -> None:
    assert check_quota_name("kv_value_bytes") == "kv_value_bytes"
    assert quota_text(2.0) == "2"
    assert quota_text(0.25) == "0.25"


def test_overrides_come_and_go() -> None:
    quotas = WorkspaceQuotas(Limits(connections_per_workspace=10))
    assert not quotas.limits_messages
    quotas.apply([("w", "connections_per_workspace", 3), ("w", "kv_value_bytes", 5)], everything=False)
    assert (quotas.connections("w"), quotas.connections("v"), quotas.of("w").kv_value_bytes) == (3, 10, 5)
    quotas.apply([("w", "connections_per_workspace", None), ("v", "unknown_of_later", 1)], everything=False)
    assert (quotas.connections("w"), dict(quotas.overrides("w"))) == (10, {"kv_value_bytes": 5})
    quotas.apply([("v", "identity_rate_per_s", 2.5)], everything=True)
    assert (dict(quotas.overrides("w")), dict(quotas.overrides("v"))) == ({}, {"identity_rate_per_s": 2.5})
    assert quotas.limits_messages
    quotas.apply([], everything=True)
    assert not quotas.limits_messages
    assert quotas.of("v") is quotas.defaults
