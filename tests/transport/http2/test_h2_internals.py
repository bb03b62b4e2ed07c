"""A release of h2 or hpack that changes what h2_internals.py needs fails here."""

from __future__ import annotations

import ast
from collections import OrderedDict
from pathlib import Path
from typing import Final

import h2.config
import h2.connection
import h2.exceptions
import h2.settings
import h2.stream
import hpack
import hpack.hpack
import hpack.table
import hyperframe.frame
import pytest

import aether_trio.transport
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.h2_internals import EMPTY_TABLE, LeanH2Connection, LeanSettings, LenientDecoder

CONFIG: Final = h2.config.H2Configuration(client_side=False, header_encoding=None)
PRIVATE: Final = frozenset(
    {"_closed_streams", "_current_size", "_data", "_expected_content_length", "_frame_dispatch_table", "_maxsize"}
)


def opened() -> LeanH2Connection:
    """A server's connection with a request on stream 1 that says content-length: 5."""
    connection = LeanH2Connection(CONFIG)
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    fields = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a"), ("content-length", "5")]
    client.send_headers(1, fields)
    connection.receive_data(client.data_to_send())
    return connection


def test_a_settings_record_keeps_its_values_where_ours_does() -> None:
    for client in (False, True):
        theirs, ours = h2.settings.Settings(client=client), LeanSettings(client=client)
        assert set(vars(theirs)) == {"_client", "_settings"}
        assert dict(ours) == dict(theirs)
        for code, value in ((h2.settings.SettingCodes.INITIAL_WINDOW_SIZE, 70_000), (99, 1)):
            theirs[code] = ours[code] = value
        assert ours.acknowledge().keys() == theirs.acknowledge().keys()
        assert dict(ours) == dict(theirs)


def test_a_connection_finds_its_frame_handlers_in_a_table_by_type() -> None:
    theirs = h2.connection.H2Connection(CONFIG)
    for kind in (hyperframe.frame.HeadersFrame, hyperframe.frame.DataFrame, hyperframe.frame.RstStreamFrame):
        assert callable(theirs._frame_dispatch_table[kind])
    assert len(LeanH2Connection(CONFIG)._frame_dispatch_table) == 4


def test_a_connection_remembers_how_its_closed_streams_ended() -> None:
    connection = opened()
    assert isinstance(connection._closed_streams, OrderedDict)
    assert connection._closed_streams._size_limit == LeanH2Connection.MAX_CLOSED_STREAMS == 64
    connection.forget(1, reset_by_us=True)
    assert connection._closed_streams[1] is h2.stream.StreamClosedBy.SEND_RST_STREAM
    connection.adopt_reset(3)
    assert connection._stream_closed_by(3) is h2.stream.StreamClosedBy.SEND_RST_STREAM


def test_a_stream_compares_content_length_unless_told_not_to() -> None:
    end = frames.empty_end_of_stream(1)
    with pytest.raises(h2.exceptions.InvalidBodyLengthError):
        opened().receive_data(end)
    connection = opened()
    assert connection.streams[1]._expected_content_length == 5
    connection.ignore_content_length(1)
    assert [type(event).__name__ for event in connection.receive_data(end)][-1] == "StreamEnded"


def test_a_frame_that_is_not_whole_waits_in_the_buffer() -> None:
    connection = opened()
    assert connection.buffered_bytes == 0
    connection.receive_data(frames.rst_stream(1, frames.Http2ErrorCode.CANCEL)[:-1])
    assert connection.buffered_bytes == 12


def test_a_decoders_table_can_be_carried_to_another_one() -> None:
    assert EMPTY_TABLE == LenientDecoder().table_state() == (hpack.table.HeaderTable().maxsize, 0, ())
    encoder = hpack.Encoder()
    first, second = encoder.encode([("x-one", "1"), ("x-two", "2")]), encoder.encode([("x-two", "2"), ("x-one", "1")])
    whole, resumed = LenientDecoder(), LenientDecoder()
    whole.decode(first)
    resumed.restore(whole.table_state())
    assert resumed.table_state() == whole.table_state()
    assert resumed.decode(second) == whole.decode(second) == [("x-two", "2"), ("x-one", "1")]


def test_a_peer_that_does_not_say_that_its_table_shrinks_is_let_in() -> None:
    block = hpack.Encoder().encode([(":method", "GET")])
    strict, lenient = hpack.hpack.Decoder(), LenientDecoder()
    for decoder in (strict, lenient):
        decoder.max_allowed_table_size = 0
    with pytest.raises(hpack.InvalidTableSizeError):
        strict.decode(block)
    assert lenient.decode(block) == [(":method", "GET")]
    assert lenient.header_table.maxsize == 0


def test_private_names_of_the_libraries_are_used_in_one_file() -> None:
    root = Path(next(iter(aether_trio.transport.__path__)))
    users = {
        file.name
        for file in root.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in PRIVATE
        and not (isinstance(node.value, ast.Name) and node.value.id == "self" and file.name != "h2_internals.py")
    }
    assert users == {"h2_internals.py"}
