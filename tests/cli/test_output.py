"""Test the functions that print: what they escape, and a closed output."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest
import trio

from aether_trio.cli import output
from aether_trio.cli.exits import CliError
from aether_trio.cli.output import (
    OutputClosed,
    announce,
    leave_closed_output,
    print_bytes,
    print_facts,
    print_json,
    print_table,
    progress_line,
    run_client,
    say,
    visible,
    warn_unconfirmed,
)

WORST = "[/b]\x1b]52;c;aGk=\x07\r\n\x9b2J\u202e\u2028\u200b\ud800\U000e0041"
SEEN = r"[/b]\x1b]52;c;aGk=\x07\r\n\x9b2J\u202e\u2028\u200b\ud800\U000e0041"


def test_every_character_that_a_terminal_obeys_is_escaped() -> None:
    assert visible(WORST) == SEEN
    assert visible("é 漢字 👩\u200d🚀 \\x1b") == "é 漢字 👩\u200d🚀 \\x1b"
    assert visible("one\n\ttwo\r", lines=True) == "one\n\ttwo\\r"
    for number in range(0x110000):
        one = visible(chr(number))
        assert len(one) == 1 or one.isascii()
        if not chr(number).isprintable() and number < 0x100:
            assert len(one) > 1 or number in {0xA0, 0xAD}, hex(number)


def test_tables_lines_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("key", "value"), [(WORST, ":smile: [red]x[/red]")], "")
    say(WORST)
    print_table(("key",), [], f"nothing in {WORST}")
    captured = capsys.readouterr()
    head, row, line = captured.out.splitlines()
    [empty] = captured.err.splitlines()
    assert head.split() == ["key", "value"]
    assert row.split(maxsplit=1) == [SEEN, ":smile: [red]x[/red]"]
    assert (line, empty) == (SEEN, f"nothing in {SEEN}")
    assert CliError(WORST).message == SEEN
    assert CliError("one\n  two", lines=True).message == "one\n  two"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_stays_json(monkeypatch: pytest.MonkeyPatch, encoding: str, indent: int | None) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    value = {WORST: [WORST, "é", 1.5, None]}
    print_json(value, indent=indent)
    sys.stdout.flush()
    told = raw.getvalue().decode(encoding)
    assert ("é" in told) is (encoding == "utf-8")
    assert json.loads(told) == value
    assert visible(told, lines=True) == told


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """The end that reads, which the test closes, and the other one.

    The test prints there itself: pytest sets standard output anew once the fixtures are made.
    """
    ours, theirs = os.pipe()
    writer = os.fdopen(theirs, "w", encoding="utf-8")
    yield ours, writer
    with contextlib.suppress(BrokenPipeError):
        writer.close()


def test_one_that_waits_ends_with_its_output(pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pipe
    monkeypatch.setattr(sys, "stdout", writer)

    async def main() -> None:
        say("first")
        os.close(reader)
        await trio.sleep(60)
        pytest.fail("nothing has noticed that the output is closed")

    with pytest.raises(OutputClosed):
        run_client(main)


def test_what_is_typed_at_a_terminal_is_no_end_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_LOOK_S", 0)
    master, terminal = os.openpty()

    async def main() -> str:
        os.write(master, b"typed\n")
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        return "done"

    with os.fdopen(terminal, "w", encoding="utf-8") as writer:
        monkeypatch.setattr(sys, "stdout", writer)
        assert run_client(main) == "done"
        monkeypatch.undo()
    os.close(master)


def test_a_closed_output_is_no_failure_of_a_command(pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pipe
    monkeypatch.setattr(sys, "stdout", writer)

    os.close(reader)
    with pytest.raises(OutputClosed):
        try:
            say("lost")
        except Exception as error:
            raise AssertionError from error
    announce("lost as well")


def test_what_a_command_returns_or_raises_passes(pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pipe
    monkeypatch.setattr(sys, "stdout", writer)

    async def main(fails: bool) -> int:
        await trio.sleep(0)
        if fails:
            raise CliError("no")
        return 7

    assert run_client(main, False) == 7
    with pytest.raises(CliError, match="no"):
        run_client(main, True)
    os.close(reader)


def test_where_each_kind_of_line_goes(capsys: pytest.CaptureFixture[str]) -> None:
    announce("one\ntwo")
    announce("three\nfour", lines=True)
    announce("five", err=True)
    progress_line("six\n")
    assert capsys.readouterr() == ("one\\ntwo\nthree\nfour\n", "five\n\rsix\\n"), "this is no terminal: no escape"


def test_a_value_is_printed_as_it_is(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    print_bytes(b"\x1b\xff")
    print_bytes(b"one line\n")
    print_bytes(b"")
    assert capfdbinary.readouterr().out == b"\x1b\xffone line\n"


def test_values_and_tables_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Escaped and in one colour."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    master, terminal = os.openpty()
    with os.fdopen(terminal, "w", encoding="utf-8") as writer:
        monkeypatch.setattr(sys, "stdout", writer)
        print_bytes(b"\x1b\xff\n")
        print_facts([("a", "1.5 'x' /tmp http://localhost")])
        monkeypatch.undo()
    told = b""
    with contextlib.suppress(OSError):  # how Linux says that it was closed
        while more := os.read(master, 4096):
            told += more
    os.close(master)
    assert [line.rstrip() for line in told.split(b"\r\n")] == [rb"\x1b\xff", b"a  1.5 'x' /tmp http://localhost", b""]


def test_an_output_without_a_descriptor_is_never_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_LOOK_S", 0)

    async def main() -> str:
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        return "done"

    for stdout in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run_client(main) == "done"


def test_what_is_left_for_a_closed_output_is_lost(pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pipe
    monkeypatch.setattr(sys, "stdout", writer)
    monkeypatch.setattr(sys, "stderr", None)
    writer.write("left")
    os.close(reader)
    leave_closed_output()
    writer.flush()


def test_nodes_that_have_not_confirmed_are_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    warn_unconfirmed("the token was revoked")
    assert capsys.readouterr() == ("", "")
    warn_unconfirmed("the rule is revoked; not confirmed within 2 s by node-2: it stops the input of its clients")
    assert capsys.readouterr() == (
        "",
        "warning: not confirmed within 2 s by node-2: it stops the input of its clients\n",
    )
