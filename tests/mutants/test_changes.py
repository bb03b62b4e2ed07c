"""What may be changed in a source, and what is left alone."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

import aether_trio.delivery.outbox
from mutants.changes import changes


def made(source: str) -> list[str]:
    source = dedent(source)
    return [one.applied(source) for one in changes(source)]


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("a < b", ["(a <= b)"]),
        ("a is b", ["(a is not b)"]),
        ("a not in b", ["(a in b)"]),
        ("a <= b < c", ["(a < b < c)", "(a <= b <= c)"]),
        ("a and b", ["(a or b)"]),
        ("a + b", ["(a - b)"]),
        ("not a", ["(a)"]),
        ("a if b else c", ["(a if not b else c)"]),
        ("True", ["False"]),
        ("7", ["8"]),
        ("max(a, b)", ["min(a, b)"]),
        ("f(a, key=1)", ["f(a, key=2)"]),
        ("'text'", []),
        ("f'{a + 1}'", []),
        ("None", []),
        ("1e300", []),
    ],
)
def test_each_kind_of_expression(was: str, now: list[str]) -> None:
    assert made(f"x = {was}\n") == [f"x = {one}\n" for one in now]


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("f()", ["pass"]),
        ("await f()", ["pass"]),
        ("yield a", ["pass"]),
        ("del a[b]", ["pass"]),
        ("raise a", ["pass"]),
        ("a.b = c", ["pass"]),
        ("a.b += c", ["pass", "a.b -= c"]),
        ("return a", ["return None"]),
        ("return None", []),
        ("a = b", []),
        ("assert a == b", []),
        ("logger.info('a', b=1)", []),
        ("'text'", []),
    ],
)
def test_each_kind_of_statement(was: str, now: list[str]) -> None:
    source = "async def f():\n    {}\n"
    assert made(source.format(was)) == [source.format(one) for one in now]


def test_blocks_are_gone_through() -> None:
    source = """\
        def f():
            for x in y:
                if x:
                    break
                elif z:
                    continue
            try:
                a()
            except E:
                b()
            finally:
                c()
            with d():
                e()
            match g:
                case 1 if h < i:
                    j()
    """
    found = {(one.was, one.text) for one in changes(dedent(source))}
    assert found == {
        *((f"{one}()", "pass") for one in "abcej"),
        ("break", "continue"),
        ("continue", "break"),
        ("x", "not (x)"),
        ("z", "not (z)"),
        ("h < i", "(h <= i)"),
    }


def test_lines_that_no_test_runs_are_left_alone() -> None:
    assert not made(
        """\
        \"\"\"A module.\"\"\"
        from typing import TYPE_CHECKING, Literal
        if TYPE_CHECKING:
            from a import b
            c = 1
        __all__ = ["f"]
        class F:
            __slots__ = ("a",)
            a: Literal[1]
            @decorated(1)
            def f(self, a: Literal[1]) -> Literal[2]:
                \"\"\"Says nothing.\"\"\"
    """
    )


def test_positions_are_those_of_the_bytes() -> None:
    assert made("x = 'äöü', a < b  # ä\ny = 1\n") == [
        "x = 'äöü', (a <= b)  # ä\ny = 1\n",
        "x = 'äöü', a < b  # ä\ny = 2\n",
    ]


def test_only_what_runs_in_a_function_is_noticed_by_the_tests_of_its_lines() -> None:
    source = """\
        LIMIT = 1
        def f(a=2):
            if (a
                    < 3):
                g(4)
        class C:
            at = 5
            def h(self):
                return [
                    6,
                ]
    """
    lines = {one.was: one.lines for one in changes(dedent(source)) if one.was.isdigit()}
    assert lines == {"1": (), "2": (), "3": (3, 4), "4": (5,), "5": (), "6": (9, 10, 11)}


def test_every_change_of_a_real_module_compiles_and_differs() -> None:
    source = Path(aether_trio.delivery.outbox.__file__).read_text()
    found = changes(source)
    assert len(found) > 100
    made_of = {one.applied(source) for one in found}
    assert len(made_of) == len(found)
    code = compile(source, "same", "exec")
    assert all(compile(one, "same", "exec") != code for one in made_of)
    assert any(one.was == "self.receipts = None" and one.text == "pass" for one in found)
