"""All log lines have one format and the level that was asked for."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from aether_trio.config import LoggingSettings
from aether_trio.telemetry import configure_logging


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def log_to(**settings: Any) -> io.StringIO:
    out = io.StringIO()
    configure_logging(LoggingSettings(**settings), out)
    return out


def test_json_lines_from_us_and_from_libraries_have_one_shape() -> None:
    out = log_to(format="json")
    structlog.get_logger().info("listening", address="127.0.0.1:1")
    logging.getLogger("library").warning("odd %s", "thing")
    ours, theirs = (json.loads(line) for line in out.getvalue().splitlines())
    assert (ours["event"], ours["level"], ours["address"]) == ("listening", "info", "127.0.0.1:1")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == ("odd thing", "warning", "library")
    assert ours["timestamp"].endswith("Z")
    assert theirs["timestamp"].endswith("Z")


def test_an_exception_is_one_json_line() -> None:
    out = log_to(format="json")
    try:
        raise ValueError("no good")
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = out.getvalue().splitlines()
    assert json.loads(line)["exception"][0]["exc_value"] == "no good"


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_traceback_does_not_show_what_variables_held(style: str) -> None:
    out = log_to(format=style)

    def admit(credential: str) -> None:
        raise ValueError(f"{len(credential)} characters")

    try:
        admit("se" + "cret")
    except ValueError:
        structlog.get_logger().exception("failed")
        logging.getLogger("library").exception("failed too")
    assert out.getvalue().count("6 characters") == 2
    assert "secret" not in out.getvalue()


@pytest.mark.parametrize(("level", "shown"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_the_level_is_kept(level: str, shown: int) -> None:
    out = log_to(level=level)
    log = structlog.get_logger()
    log.debug("one")
    log.info("two")
    log.warning("three")
    assert len(out.getvalue().splitlines()) == shown


def test_the_debug_lines_of_libraries_stay_out() -> None:
    out = log_to(level="debug")
    logging.getLogger("hpack").debug("every header")
    assert out.getvalue() == ""


def test_console_lines_are_plain_without_a_terminal() -> None:
    out = log_to()
    structlog.get_logger().info("listening", port=1)
    assert "listening" in out.getvalue()
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("format_", ["console", "json"])
@pytest.mark.parametrize("library", [False, True])
def test_a_text_of_a_client_is_one_bounded_line_without_control_characters(format_: str, library: bool) -> None:
    evil = "a\x1b[2J\x9b31m\r\n2026-01-01 [error] forged\u202e\u2028\ud800" + "x" * 100_000
    out = log_to(format=format_)
    if library:
        logging.getLogger("library").warning("from %s", evil)
    else:
        structlog.get_logger().info("connection refused", identity=evil)
    (line,) = out.getvalue().splitlines()
    assert line.isprintable()
    assert len(line) < 3000
    shown = json.loads(line)["event" if library else "identity"] if format_ == "json" else line
    assert "a\\x1b[2J\\x9b31m\\r\\n2026" in shown.replace("\\\\", "\\")


@pytest.mark.parametrize("format_", ["console", "json"])
@pytest.mark.parametrize("library", [False, True])
def test_what_an_exception_quotes_is_escaped(format_: str, library: bool) -> None:
    out = log_to(format=format_)
    try:
        raise ValueError("\x1b]52;c;aGk=\x07\x9b2J\u202e")
    except ValueError:
        (logging.getLogger("library") if library else structlog.get_logger()).exception("odd")
    told = out.getvalue()
    assert "ValueError" in told
    assert "]52;c;aGk=" in told
    assert all(line.isprintable() for line in told.split("\n")), ascii(told)


class Closed(io.StringIO):
    def write(self, _: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_line_that_nothing_reads_raises_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LoggingSettings(), Closed())
    structlog.get_logger().info("lost")
    logging.getLogger("library").warning("lost as well")
    assert capsys.readouterr() == ("", "")
