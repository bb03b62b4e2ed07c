"""Audit events: what is stored of them, what is hidden, and the bytes of a leaf."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.audit import (
    CONTENT_CHARACTERS,
    MAX_DEPTH,
    METADATA_BYTES,
    OPERATIONS,
    REDACTED,
    TEXT_BYTES,
    TEXTS,
    AuditEvent,
    EventType,
    audit_id,
    content_text,
    is_secret,
    leaf_bytes,
    metadata_text,
    place_of,
    record_of,
    redacted,
    stored_text,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # surrogates and \0 too


def event(**fields: Any) -> AuditEvent:
    return AuditEvent(at_ms=7, event_type=EventType.KV, operation="kv_put", **fields)


def texts_of(one: AuditEvent) -> dict[str, str]:
    return dict(zip(TEXTS, record_of(one).texts, strict=True))


def test_an_event_without_a_subject_is_of_its_actor() -> None:
    found = texts_of(event(actor_type="AGENT", actor_id="ag::w::a::1"))
    assert (found["actor_type"], found["subject_type"], found["root_subject_type"]) == ("agent",) * 3
    assert found["subject_id"] == found["root_subject_id"] == "ag::w::a::1"
    assert (found["authority_mode"], found["source"], found["metadata"]) == ("direct", "gateway", "{}")


def test_a_subject_is_the_root_unless_another_one_is() -> None:
    one = event(actor_type="agent", actor_id="a", subject_type="User", subject_id="alice")
    found = texts_of(one)
    assert (found["subject_type"], found["root_subject_type"], found["root_subject_id"]) == ("user", "user", "alice")
    two = event(subject_type="agent", subject_id="b", root_subject_type="User", root_subject_id="alice")
    assert texts_of(two)["root_subject_id"] == "alice"
    assert texts_of(two)["subject_id"] == "b"


@pytest.mark.parametrize(
    "key",
    [
        "password", "Passwd", "api_key", "APIKEY", "api-key", "client.secret", "x-auth-token", "BearerThing",
        "Authorization", "credentials", "private_key", "PrivateKey", "myPrivate Key",
    ],
)  # fmt: skip
def test_what_may_be_secret_is_hidden_at_any_depth(key: str) -> None:
    assert is_secret(key)
    given = {key: "hunter2", "list": [{key: {"deep": "hunter2"}}, "shown"], "map": {"inner": {key: ["hunter2"]}}}
    assert "hunter2" not in metadata_text(given)
    assert redacted(given) == {
        key: REDACTED,
        "list": [{key: REDACTED}, "shown"],
        "map": {"inner": {key: REDACTED}},
    }


@pytest.mark.parametrize("key", ["key", "scope", "workspace", "level", "ttl_seconds", "pass", "keyed_by"])
def test_other_keys_are_shown(key: str) -> None:
    assert not is_secret(key)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(ANY_TEXT, json_values, max_size=4))
def test_metadata_is_a_json_object_in_ascii_without_zero_bytes(metadata: Mapping[str, object]) -> None:
    text = metadata_text(metadata)
    assert text.isascii()
    assert "\0" not in text
    assert len(text) <= METADATA_BYTES
    assert isinstance(json.loads(text), dict)


def test_metadata_is_bounded_in_depth_and_length() -> None:
    nested: Any = "end"
    for _ in range(10 * MAX_DEPTH):
        nested = [nested]
    assert "end" not in metadata_text({"nested": nested})
    long = json.loads(metadata_text({"long": "x" * METADATA_BYTES}))
    assert set(long) == {"omitted", "bytes"}


@given(ANY_TEXT | st.text(min_size=TEXT_BYTES - 3, max_size=TEXT_BYTES + 10))
def test_a_text_is_utf8_without_zero_bytes_and_bounded(text: str) -> None:
    stored = stored_text(text)
    data = stored.encode()  # there are no surrogates
    assert len(data) <= TEXT_BYTES
    assert b"\0" not in data
    if len(text) < 100 and "\0" not in text and not any("\ud800" <= one <= "\udfff" for one in text):
        assert stored == text


@given(st.lists(ANY_TEXT | st.text("ab", max_size=2 * TEXT_BYTES), min_size=3, max_size=3))
def test_each_text_of_a_record_is_a_stored_text(texts: list[str]) -> None:
    resource_id, workspace, error = texts
    record = record_of(event(resource_id=resource_id, workspace=workspace, error_message=error))
    stored = dict(zip(TEXTS, record.texts, strict=True))
    kept = [stored["resource_id"], stored["workspace"], stored["error_message"]]
    assert kept == [stored_text(text) for text in texts]
    assert record.size >= sum(len(text.encode()) for text in record.texts)


@given(
    st.dictionaries(st.sampled_from(["peer", "api_key", "a" * 70, "token", "ä"]), st.none() | st.booleans() | ANY_TEXT)
)
def test_plain_metadata_is_redacted_like_any(metadata: dict[str, Any]) -> None:
    nested = {"in": [metadata]}
    assert json.loads(metadata_text(nested))["in"] == [json.loads(metadata_text(metadata))]


STORED = st.binary(max_size=4).map(lambda data: data.decode("utf-8", "surrogateescape"))
"""A text as a database gives it: what is no UTF-8 in it is surrogates."""
rows = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 1),
    st.lists(STORED, min_size=len(TEXTS), max_size=len(TEXTS)).map(tuple),
)


def parse(data: bytes) -> tuple[int, int, int, tuple[str, ...]]:
    """Read the bytes of a leaf, as someone who has the description alone."""
    assert data[0] == 1
    at_ms, ts_ms = struct.unpack(">qq", data[1:17])
    lengths = struct.unpack(">20I", data[18:98])
    texts, start = [], 98
    for length in lengths:
        texts.append(data[start : start + length].decode("utf-8", "surrogateescape"))
        start += length
    assert start == len(data)
    return at_ms, ts_ms, data[17], tuple(texts)


@given(rows)
def test_a_leaf_says_all_of_its_row(row: tuple[int, int, int, tuple[str, ...]]) -> None:
    assert parse(leaf_bytes(*row)) == row


@given(rows, rows)
def test_two_rows_have_two_leaves(
    one: tuple[int, int, int, tuple[str, ...]], other: tuple[int, int, int, tuple[str, ...]]
) -> None:
    assert (leaf_bytes(*one) == leaf_bytes(*other)) == (one == other)


def test_a_known_leaf() -> None:
    """So that the format does not change unnoticed: all stored trees rest on it."""
    data = leaf_bytes(1, 2, 1, ["kv", "kv_put", *[""] * 17, "{}"])
    assert data.hex() == (
        "01" "0000000000000001" "0000000000000002" "01"
        "00000002" "00000006" + 17 * "00000000" + "00000002" + b"kvkv_put{}".hex()
    )  # fmt: skip


@given(st.integers(0, 2**22), st.integers(0, 2**40 - 2))
def test_an_id_says_its_tree_and_leaf(tree: int, leaf: int) -> None:
    assert place_of(audit_id(tree, leaf)) == (tree, leaf)
    assert 0 < audit_id(tree, leaf) < 2**63


def test_ids_of_the_first_tree_count_from_one() -> None:
    assert [audit_id(0, leaf) for leaf in range(3)] == [1, 2, 3]


def test_content_is_cut_off_and_marked() -> None:
    assert content_text(b"hello") == "hello"
    assert content_text("ä".encode() * 5000) == "ä" * CONTENT_CHARACTERS + "[truncated]"
    assert content_text(b"\xff\xfe\x00") == "[3 bytes that are no text]"
    assert content_text(b"") == ""


def test_operations_are_named_once() -> None:
    names = [name for found in OPERATIONS.values() for name in found]
    assert len(names) == len(set(names))
    assert all(name == name.lower() for name in names)
