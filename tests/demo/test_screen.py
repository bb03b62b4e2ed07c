"""What is printed where there is no terminal, and in one."""

from __future__ import annotations

import io

from rich.console import Console
from scitrera_aether_client.proto import aether_pb2 as pb

from aether_trio.demo import texts
from aether_trio.demo.checks import DemoCheck
from aether_trio.demo.planner_and_window import Line
from aether_trio.demo.screen import Screen


def update(done: int, total: int, completion: float, summary: str = "") -> pb.ProgressUpdate:
    step = pb.ProgressStep(sequence=done, total_steps=total)
    return pb.ProgressUpdate(completion=completion, summary=summary, step=step)


def printed(*, encoding: str = "utf-8", terminal: bool = False, width: int = 80) -> tuple[Screen, io.TextIOWrapper]:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    return Screen(Console(file=out, force_terminal=terminal, width=width, highlight=False, color_system=None)), out


def text_of(out: io.TextIOWrapper) -> str:
    buffer = out.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode(out.encoding)


def test_a_line_says_who_and_to_whom() -> None:
    screen, out = printed()
    screen.line(Line.read(texts.PLANNER_TOPIC, "@researcher How is the weather?"))
    assert text_of(out).split()[1:] == ["planner", "→", "researcher", "How", "is", "the", "weather?"]


def test_a_line_without_a_receiver() -> None:
    assert Line.read("ag::trip::cli::7", "hello all") == Line("ag::trip::cli::7", "", "hello all")


def test_without_a_terminal_each_report_is_a_line() -> None:
    screen, out = printed()
    with screen:
        screen.progress(update(1, 4, 0.25, "first"))
        screen.progress(update(4, 4, 1.0, "done"))
    first, second = text_of(out).splitlines()
    assert "━" * 6 + "─" * 18 + " 1 of 4  first" in first
    assert "━" * 24 + " 4 of 4  done" in second


def test_in_a_terminal_the_reports_are_one_line_that_stays() -> None:
    screen, out = printed(terminal=True)
    with screen:
        screen.progress(update(1, 4, 0.25))
        screen.line(Line(texts.PLANNER_TOPIC, "", "in between"))
        screen.progress(update(4, 4, 1.0))
    lines = text_of(out).splitlines()
    assert "4 of 4" in lines[-1]
    assert text_of(out).index("in between") < text_of(out).rindex("4 of 4")


def test_a_report_out_of_range_does_not_break_the_bar() -> None:
    screen, out = printed()
    screen.progress(update(9, 4, 7.5))
    screen.progress(update(0, 4, -1.0))
    full, empty = text_of(out).splitlines()
    assert "━" * 24 in full
    assert "─" * 24 in empty


def test_without_utf8_everything_is_ascii() -> None:
    screen, out = printed(encoding="ascii")
    screen.line(Line(texts.PLANNER_TOPIC, texts.RESEARCHER, "hello"))
    screen.event("kill -9 1", "gone")
    screen.progress(update(1, 2, 0.5))
    screen.verdict([DemoCheck(True, "one", "1"), DemoCheck(False, "two", "2")])
    screen.page(["a title", "a line"])
    screen.failure("no")
    assert "-- kill -9 1: gone" in text_of(out)
    assert "| a title" in text_of(out)
    assert "X two" in text_of(out)


def test_what_is_to_be_copied_is_not_wrapped() -> None:
    screen, out = printed(width=40)
    screen.suggest("aether " + "x" * 100, "why")
    assert "  aether " + "x" * 100 in text_of(out).splitlines()
