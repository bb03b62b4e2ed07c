"""What is read of an event: its sender as the gateway knows it, or its fault."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from aether_trio.services.workflows.events.taken_events import MAX_DEPTH, MAX_EVENT_BYTES, TakenEvent, read_event
from aether_trio.wire.pb import aether_pb2 as pb


def message(payload: bytes, source: str = "ag::prod::planner::1", workspace: str = "prod", **fields: Any) -> bytes:
    fields = {"message_type": pb.EVENT, **fields}
    incoming = pb.IncomingMessage(source_topic=source, payload=payload, workspace=workspace, **fields)
    return pb.DownstreamMessage(msg=incoming).SerializeToString()


def read(document: Any, source: str = "ag::prod::planner::1", workspace: str = "prod", **fields: Any) -> TakenEvent:
    payload = document if isinstance(document, bytes) else json.dumps(document).encode()
    event = read_event(7, message(payload, source, workspace, **fields), 1234)
    assert event is not None
    assert (event.offset, event.topic, event.at_ms, event.payload) == (7, "event::receiver0", 1234, payload)
    return event


def test_an_event_has_names_and_data() -> None:
    event = read({"event_names": ["order", "paid", "order"], "data": {"n": 1, "x": 2.5, "list": [10**20, None, True]}})
    assert (event.names, event.reason) == (("order", "paid"), "")
    assert event.data == {"n": 1.0, "x": 2.5, "list": [1e20, None, True]}
    assert isinstance(event.data["n"], float)
    assert read({"event_names": ["order"]}).data is None


@pytest.mark.parametrize(
    ("source", "workspace", "expected"),
    [
        ("ag::prod::planner::1", "prod", ("ag::prod::planner::1", "prod", "planner")),
        ("ag::prod::planner::1", "other", ("ag::prod::planner::1", "other", "planner")),
        ("ta::prod::miner::x", "prod", ("ta::prod::miner::x", "prod", "miner")),
        ("sv::mail::1", "", ("sv::mail::1", "", "mail")),
        ("sv::mail::1", "prod", ("sv::mail::1", "prod", "mail")),
        ("br::wires::1", "", ("br::wires::1", "", "wires")),
    ],
)
def test_sender_and_workspace_are_the_gateways(source: str, workspace: str, expected: tuple[str, ...]) -> None:
    claims = {"source_agent": "root", "workspace": "theirs", "principal": "us::root::1", "event_names": ["e"]}
    event = read(claims, source, workspace)
    assert (event.principal, event.workspace, event.agent) == expected
    assert (event.claimed_workspace, event.claimed_agent) == ("theirs", "root")


def test_what_the_gateway_and_the_engine_write_is_believed() -> None:
    ended = {"source_agent": "orchestrator", "workspace": "prod", "event_names": ["task.completed"]}
    event = read(ended, "tk::prod::t-1::events", "prod")
    assert (event.principal, event.workspace, event.agent) == ("tk::prod::t-1::events", "prod", "orchestrator")
    emitted = {"source_agent": "workflow-engine", "workspace": "prod", "event_names": ["e"]}
    event = read(emitted, "event::receiver0", "")
    assert (event.principal, event.workspace, event.agent) == ("wfe::shard0", "prod", "workflow-engine")


def test_one_who_acts_for_another_is_named() -> None:
    ann = pb.PrincipalRef(principal_type="user", principal_id="ann")
    assert read({"event_names": ["e"]}, on_behalf_subject=ann).subject == ("user", "ann")
    assert read({"event_names": ["e"]}).subject == ("", "")


def test_messages_of_other_types_are_none() -> None:
    for kind in (pb.OPAQUE, pb.CONTROL, pb.CHAT, pb.METRIC):
        assert read_event(1, message(b'{"event_names": ["e"]}', message_type=kind), 0) is None


def deep(levels: int) -> bytes:
    data = b"[" * (levels - 1) + b"]" * (levels - 1)
    return b'{"event_names": ["e"], "data": ' + data + b"}"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"{", "no JSON"),
        (b'"text"', "a text and no object"),
        (b"null", "null and no object"),
        (b"[]", "an array and no object"),
        (b"1", "a number and no object"),
        (b"true", "true or false and no object"),
        (b"{}", "no event_names"),
        (b'{"event_names": []}', "no event_names"),
        (b'{"event_names": "e"}', "a text and no array"),
        (b'{"event_names": [1]}', "no array of texts"),
        (b'{"event_names": [""]}', "is empty"),
        (b'{"event_names": ["a\\u0000"]}', "zero byte"),
        (b'{"event_names": ["' + b"x" * 257 + b'"]}', "256 bytes"),
        (json.dumps({"event_names": ["e"] * 65}).encode(), "65 event_names"),
        (b'{"event_names": ["e"], "workspace": 1}', "workspace is no text"),
        (b'{"event_names": ["e"], "source_agent": {}}', "source_agent is no text"),
        (b'{"event_names": ["e"], "data": NaN}', "NaN"),
        (b'{"event_names": ["e"], "data": 1e999}', "too large"),
        (b'{"event_names": ["e"], "data": [{"n": -' + b"9" * 400 + b"}]}", "too large"),
        (deep(MAX_DEPTH + 1), "nested deeper than 64"),
        (deep(100_000), "nested deeper than 64"),
        (b'{"event_names": ["e"], "data": "' + b"x" * MAX_EVENT_BYTES + b'"}', "at most 1048576"),
    ],
    ids=lambda value: value[:40].decode(errors="replace") if isinstance(value, bytes) else "",
)
def test_a_message_that_is_no_event_says_why(payload: bytes, reason: str) -> None:
    event = read(payload)
    assert reason in event.reason
    assert (event.names, event.data) == ((), None)
    assert (event.principal, event.workspace, event.agent) == ("ag::prod::planner::1", "prod", "planner")


def test_what_is_just_within_the_bounds_is_an_event() -> None:
    assert read(deep(MAX_DEPTH)).reason == ""
    wide = read({"event_names": ["e"], "data": [[n] for n in range(1000)]})
    assert (wide.reason, len(wide.data)) == ("", 1000)
    assert read(b'{"event_names": ["e"], "data": 1e308}').data == 1e308
    assert math.isclose(read(b'{"event_names": ["e"], "data": 123456789012345678901}').data, 1.2345678901234568e20)
    half = read(b'{"event_names": ["a\\ud800"], "data": {"\\uDfff": ["\\ud800\\u0000", "\\ud83d\\ude00"]}}')
    assert (half.names, half.data, half.reason) == (
        ("a\N{REPLACEMENT CHARACTER}",),
        {"\N{REPLACEMENT CHARACTER}": ["\N{REPLACEMENT CHARACTER}\0", "\N{GRINNING FACE}"]},
        "",
    )
