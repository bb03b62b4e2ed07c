"""Limits: the reference's values, and refusals of values that would be no limit."""

from __future__ import annotations

import dataclasses

import pytest

from aether_trio.model.limits import Limits


def test_reference_values() -> None:
    limits = Limits()
    assert (limits.payload_bytes, limits.task_payload_bytes) == (1_048_576, 524_288)
    assert (limits.kv_value_bytes, limits.kv_key_bytes) == (1_048_576, 256)
    assert (limits.topic_bytes, limits.token_bytes) == (256, 128)
    assert (limits.send_rate_per_s, limits.send_burst) == (100, 200)
    assert (limits.workspace_rate_per_s, limits.identity_rate_per_s) == (0, 0)
    assert limits.connections_per_workspace == 1000
    assert limits.init_wait_s == 30
    assert (limits.metric_entries, limits.metric_metadata_keys) == (1024, 64)
    assert (limits.kv_list_page, limits.kv_list_page_max) == (100, 1000)


MAY_BE_OFF = (
    "send_rate_per_s",
    "workspace_rate_per_s",
    "identity_rate_per_s",
    "request_rate_per_s",
    "connections_per_workspace",
    "agent_registrations",
    "kv_keys_per_scope",
    "kv_bytes_per_scope",
    "checkpoint_bytes_per_identity",
)


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(Limits)])
def test_zero_is_unlimited_or_refused_and_negative_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"limit {name} is -1"):
        Limits(**{name: -1})
    if name in MAY_BE_OFF:
        assert getattr(Limits(**{name: 0}), name) == 0
    else:
        with pytest.raises(ValueError, match=f"limit {name} is 0; it must be positive"):
            Limits(**{name: 0})


def test_a_page_is_not_larger_than_the_largest() -> None:
    assert Limits(kv_list_page=50, kv_list_page_max=50).kv_list_page == 50
    with pytest.raises(ValueError, match="kv_list_page 51 is over kv_list_page_max 50"):
        Limits(kv_list_page=51, kv_list_page_max=50)


def test_the_protocols_own_limits_are_not_settings() -> None:
    with pytest.raises(TypeError):
        Limits(topic_bytes=512)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().payload_bytes = 1  # type: ignore[misc]
