"""Check that docs/errors.md is current, and that its source has every code."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from aether_trio.cli.exits import EXIT_CODES_TEXT
from aether_trio.client.errors import from_code, from_status
from aether_trio.model.error_guide import ERROR_GUIDE, Where
from aether_trio.model.errors import Code, Status
from aether_trio.transport.websocket.frames import CloseCode
from aether_trio.wire.framing.constants import ErrorCode
from scripts import errors_page

CODES = {where: {entry.code for entry in ERROR_GUIDE if entry.where is where} for where in Where}
NOT_ENDINGS = {Status.OK, Status.OUT_OF_RANGE, Status.DATA_LOSS}
"""Statuses that neither a gateway nor a client of this project uses."""


def test_the_page_is_current() -> None:
    assert errors_page.PAGE.read_text("utf-8") == errors_page.render(), "run python scripts/errors_page.py"


def test_every_refusal_has_an_entry() -> None:
    assert CODES[Where.REQUEST] == set(Code)


def test_every_status_has_an_entry() -> None:
    assert CODES[Where.ENDING] == {status.name for status in Status if status not in NOT_ENDINGS}


def test_every_framing_error_has_an_entry() -> None:
    assert CODES[Where.FRAMING] == set(ErrorCode.__members__)


def test_every_close_code_has_an_entry() -> None:
    assert CODES[Where.WEBSOCKET] >= {str(int(code)) for code in CloseCode}


def test_every_code_of_the_client_has_an_entry() -> None:
    raised = set(errors_page.client_codes())
    assert raised - CODES[Where.CLIENT] - CODES[Where.ENDING] - CODES[Where.FRAMING] == set()
    assert CODES[Where.CLIENT] - raised == set(), "an entry of a code that the client does not raise"


def test_every_exit_code_has_an_entry() -> None:
    assert CODES[Where.EXIT] == set(re.findall(r"^ {2}(\d+) ", EXIT_CODES_TEXT, re.MULTILINE)) - {"0"}


def test_a_code_has_one_entry_for_each_place() -> None:
    counts = Counter((entry.code, entry.where) for entry in ERROR_GUIDE)
    assert [key for key, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("entry", ERROR_GUIDE, ids=lambda entry: f"{entry.code}-{entry.where.name}")
def test_an_entry_has_whole_sentences(entry: errors_page.ErrorEntry) -> None:
    for text in (entry.cause, entry.remedy):
        assert text[0] == text[0].upper() or text[0] == "`"
        assert text[-1] in ".?!"


def test_the_exception_of_the_page_is_the_one_raised() -> None:
    page = errors_page.render()
    for row, raised in (
        ("ERR_OUTCOME_UNKNOWN", from_code("ERR_OUTCOME_UNKNOWN", "")),
        ("ALREADY_EXISTS", from_status(6, "", retryable=False)),
        ("CALM", from_status(0x10C, "", retryable=True)),
    ):
        assert re.search(rf"^\| `{row}` .*\| `{type(raised).__name__}` \|$", page, re.MULTILINE)
