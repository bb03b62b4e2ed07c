"""Blocks made by hand mean to any HPACK decoder what they should."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.transport.grpc import response_headers

TEXTS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=400)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=300)


def decoded(block: bytes) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in hpack.Decoder(10**6).decode(block)]


@given(fields=st.lists(st.tuples(NAMES, TEXTS), max_size=5))
def test_metadata_of_any_length_decodes_to_itself(fields: list[tuple[str, str]]) -> None:
    assert decoded(response_headers.metadata(fields)) == fields


def test_a_response_says_what_grpc_wants() -> None:
    assert decoded(response_headers.RESPONSE) == [
        (":status", "200"),
        ("content-type", "application/grpc+proto"),
        ("grpc-accept-encoding", "identity,deflate,gzip"),
    ]


@pytest.mark.parametrize("status", range(17))
def test_every_status_has_its_trailers(status: int) -> None:
    assert decoded(response_headers.trailers(status, None)) == [("grpc-status", str(status))]
    assert decoded(response_headers.trailers(status, "wörds")) == [
        ("grpc-status", str(status)),
        ("grpc-message", "w%C3%B6rds"),
    ]


@pytest.mark.parametrize("http_status", [200, 400, 405, 415])
def test_a_refusal_is_a_whole_response(http_status: int) -> None:
    fields = dict(decoded(response_headers.refusal(http_status, 12, "no")))
    assert (fields[":status"], fields["grpc-status"], fields["grpc-message"]) == (str(http_status), "12", "no")
