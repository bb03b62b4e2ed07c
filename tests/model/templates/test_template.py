"""What a compiled template does beside Go's text: types of data, positions, paths."""

from __future__ import annotations

import enum
import sys

import pytest

from aether_trio.model.templates import TemplateError, compile_template


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


def render(source: str, data: object = None) -> str:
    return compile_template(source).render(data)


def failure(source: str, data: object = None) -> TemplateError:
    with pytest.raises(TemplateError) as caught:
        render(source, data)
    return caught.value


def test_ints_are_ints_and_floats_are_the_numbers_of_json() -> None:
    assert render("{{.i}} {{.f}} {{.j}}", {"i": 1_000_000, "f": 1_000_000.0, "j": 2.0}) == "1000000 1e+06 2"
    assert render('{{printf "%d %T %T" .i .i .f}}', {"i": 3, "f": 3.0}) == "3 int float64"
    assert render("{{range .}}{{.}}{{end}}", 3) == "012"


def test_subclasses_of_the_types_of_json_are_taken_as_these() -> None:
    data = {"c": Colour.RED, "l": Level.HIGH, "t": (1.0, "x")}
    assert (
        render('{{.c}} {{.l}} {{.t}} {{printf "%T %T %T" .c .l .t}}', data) == "red 3 [1 x] string int []interface {}"
    )


def test_an_int_beyond_64_bits_is_a_float() -> None:
    assert render('{{.}} {{printf "%T" .}}', 1 << 64) == "1.8446744073709552e+19 float64"
    assert "too large" in failure("{{.}}", 10**400).message


@pytest.mark.parametrize("value", [b"raw", {1, 2}, object(), 1j])
@pytest.mark.parametrize(
    ("source", "wrap"),
    [
        ("{{.}}", lambda value: value),
        ("{{.a}}", lambda value: {"a": value}),
        ("{{.a.b}}", lambda value: {"a": {"b": value}}),
        ("{{.}}", lambda value: [[value]]),
        ("{{range .}}{{end}}", lambda value: [value]),
        ("{{range .}}{{end}}", lambda value: {"a": value}),
        ("{{index . 0}}", lambda value: [value]),
        ('{{index . "a"}}', lambda value: {"a": value}),
        ("{{range slice . 0}}{{end}}", lambda value: [value]),
    ],
)
def test_values_that_json_does_not_have_are_refused(value: object, source: str, wrap: object) -> None:
    assert callable(wrap)
    assert "JSON does not have" in failure(source, wrap(value)).message


def test_keys_that_are_no_strings_are_refused() -> None:
    assert "keys are strings" in failure("{{.}}", {1: 2}).message
    assert "keys are strings" in failure("{{range .}}{{end}}", {"a": 1, 2: 3}).message


def test_data_within_themselves_end_in_an_error() -> None:
    ring: list[object] = []
    ring.append(ring)
    assert "nested more than" in failure("{{.}}", ring).message


def test_lone_surrogates_leave_as_replacement_characters() -> None:
    assert render("{{.}} {{len .}}", "a\ud800b") == "a\ufffdb 5"
    assert render("{{.}}", ["\udcff"]) == "[\ufffd]"
    compile_template("{{html .}}{{js .}}{{urlquery .}}{{printf `%q%x` . .}}").render("\ud800\udcff")


@pytest.mark.parametrize(
    ("source", "place", "words"),
    [
        ("a\nbc{{nope}}", (2, 5), "function 'nope' not defined"),
        ("{{if .a}}\n", (2, 1), "{{end}} is missing"),
        ("x\n{{ .a.b", (2, 1), "unclosed action"),
        ('a: {{"x}}', (1, 6), "unterminated quoted string"),
        ("{{$x}}", (1, 3), "undefined variable '$x'"),
        ("{{range .a}}{{end}}{{break}}", (1, 22), "outside {{range}}"),
        ("é{{.a b}}", (1, 7), "function 'b' not defined"),
        ("{{1}}{{9223372036854775808 | print}}\n", (1, 8), "overflows int"),
        ("k: v\n{{.a.b.c}}", (2, 3), "'b' is read of nil"),
        ('{{template "x"}}', (1, 3), "template 'x' not defined"),
        ("\n\n  {{len 3}}", (3, 5), "error calling len: len of type int"),
        ("{{print 1 (eq .s 3)}}", (1, 12), "incompatible types"),
        ("{{.s.t}}", (1, 3), "can't evaluate field 't' in type string"),
        ("{{range .s}}{{end}}", (1, 9), "range can't iterate over a value of type string"),
        ("{{index .s 9}}", (1, 3), "index out of range: 9"),
    ],
)
def test_errors_have_their_place(source: str, place: tuple[int, int], words: str) -> None:
    error = failure(source, {"s": "text"})
    assert (error.line, error.column) == place
    assert words in error.message
    assert str(error) == f"{error.line}:{error.column}: {error.message}"
    lines = source[: error.offset].split("\n")
    assert (len(lines), len(lines[-1]) + 1) == place


def test_a_comparison_of_an_int_with_a_number_of_json_says_what_to_write() -> None:
    assert "write 1.0 for 1" in failure("{{eq .n 1}}", {"n": 1.0}).message


@pytest.mark.parametrize("mark", ["\ue000", "\ue001", "\ud800"])
def test_sources_with_reserved_characters_are_refused(mark: str) -> None:
    error = failure(f"ab\n{mark}{{{{.}}}}")
    assert (error.line, error.column) == (2, 1)
    assert f"U+{ord(mark):04X}" in error.message


def test_a_source_that_is_too_long_is_refused() -> None:
    assert "65,536 are allowed" in failure("x" * 65_537).message
    assert len(render("x" * 65_536)) == 65_536


def test_the_main_template_has_the_name_that_it_is_given() -> None:
    template = compile_template('{{if .}}<{{template "main" (slice . 1)}}>{{end}}', "main")
    assert template.name == "main"
    assert template.render("abc") == "<<<>>>"


def test_an_unknown_function_is_explained() -> None:
    assert failure("{{input.topic}}").message == "function 'input' not defined; a field is written with a dot: .input"
    assert failure("{{lenn .}}").message == "function 'lenn' not defined; did you mean 'len'?"


@pytest.mark.parametrize(
    "source",
    [
        "{{" + "x" * 60_000 + "}}",
        "{{" + "1" * 60_000 + "}}",
        "{{" + "1" * 60_000 + "x}}",
        "{{'" + "x" * 60_000 + "'}}",
        "{{$" + "x" * 60_000 + "}}",
        "{{.a." + "x" * 60_000 + "}}",
        '{{template "' + "x" * 60_000 + '"}}',
        "{{`" + "x" * 60_000 + "`.x}}",
        '{{if "' + "x" * 60_000 + '" "x"}}{{end}}',
    ],
)
def test_an_error_is_short(source: str) -> None:
    assert len(str(failure(source, {"a": None}))) < 300


def test_one_template_serves_several_data() -> None:
    template = compile_template("{{$x := .}}{{range .}}{{$x = .}}{{end}}{{$x}}")
    assert [template.render([name]) for name in "ab"] == ["a", "b"]
    assert template.render([]) == "[]"


@pytest.mark.parametrize(
    ("source", "paths"),
    [
        ("plain", ""),
        ("{{.input.topic}}", "input.topic"),
        ("{{.a}}{{.a.b}}{{$.c}}", "a a.b c"),
        ("{{.}}", "*"),
        ("{{print $}}", "*"),
        ("{{if .a}}{{.b}}{{else if .c}}{{.d}}{{else}}{{.e}}{{end}}", "a b c d e"),
        ("{{with .a}}{{.b}}{{$.c}}{{else}}{{.d}}{{end}}", "a a.b c d"),
        ("{{range .a}}{{.b}}{{$.c}}{{else}}{{.d}}{{end}}", "a c d"),
        ("{{range $i, $x := .a}}{{$x.b}}{{end}}", "a"),
        ("{{$x := .a}}{{$x.b}}", "a.b"),
        ("{{$x := .a}}{{$x = .b}}{{$x.c}}", "b"),
        ("{{$x := .a}}{{if .t}}{{$x = .b}}{{end}}{{$x.c}}", "b t"),
        ("{{$x := .a}}{{range .l}}{{$x.c}}{{$x = .b}}{{end}}", "l"),
        ("{{(.a).b}}{{(print .c).d}}", "a.b c"),
        ('{{index .a "b" "c"}}{{index .d 0}}{{index .e .f}}', "a.b.c d e f"),
        ('{{(index .a "b").c}}', "a.b.c"),
        ("{{.a | print .b}}{{printf .c .d}}", "a b c d"),
        ("{{eq .a (len .b)}}{{and .c (or .d .e)}}", "a b c d e"),
        ('{{template "t" .a}}{{define "t"}}{{.b}}{{$.c}}{{end}}', "a.b a.c"),
        ('{{define "t"}}{{.b}}{{end}}', ""),
        ('{{template "t"}}{{define "t"}}{{.b}}{{end}}', ""),
        ('{{define "t"}}{{.v}}{{template "t" .next}}{{end}}{{with .missing}}{{template "t" 1}}{{end}}', "missing"),
    ],
)
def test_paths_are_what_the_source_reads(source: str, paths: str) -> None:
    found = {".".join(path) or "*" for path in compile_template(source).paths()}
    assert found == set(paths.split())


def test_the_paths_of_a_recursion_end() -> None:
    paths = compile_template('{{define "t"}}{{.v}}{{template "t" .next}}{{end}}{{template "t" .}}').paths()
    assert ("v",) in paths
    assert ("next", "next", "v") in paths
    assert len(paths) < 40
    source = (
        '{{define "t"}}'
        + "".join(f'{{{{template "t" .n{n}}}}}' for n in range(2000))
        + '{{.v}}{{end}}{{template "t" .}}'
    )
    assert len(compile_template(source).paths()) < 40


def test_an_assignment_in_a_branch_takes_the_path_of_a_variable() -> None:
    source = "{{$x := .a}}{{if .t}}{{$x = .b}}{{end}}{{$x.c}}{{$y := .d}}{{if .t}}{{$y := .e}}{{$y.f}}{{end}}{{$y.g}}"
    assert compile_template(source).paths() == {("b",), ("t",), ("d", "g"), ("e", "f")}


def test_reads_have_the_place_of_the_first_one() -> None:
    template = compile_template(
        "a: {{.x.y}}\nb: {{print 1 .z}}{{.x.y}}\nc: {{with .w}}{{.v}}{{end}}{{if eq .z 1.0}}{{end}}"
    )
    places = {".".join(path): template.place(offset) for path, offset in template.reads().items()}
    assert places == {"x.y": (1, 6), "z": (2, 14), "w": (3, 11), "w.v": (3, 17)}


def test_rendering_deep_within_other_calls_never_raises_recursion_error() -> None:
    deep = "{{if 1}}" * 60 + "{{" + "(" * 4 + "1" + ")" * 4 + "}}" + "{{end}}" * 60
    ready = compile_template('{{define "a"}}{{with .next}}{{template "a" .}}{{end}}{{end}}{{template "a" .}}')
    chain: dict[str, object] = {}
    for _ in range(40):
        chain = {"next": chain}
    outcomes = set()

    def descend(left: int) -> None:
        if left:
            descend(left - 1)
            return
        for attempt in (lambda: compile_template(deep), lambda: ready.render(chain)):
            try:
                attempt()
                outcomes.add("done")
            except TemplateError as error:
                outcomes.add(error.message.split(" to be ")[0])

    frames = 0
    frame = sys._getframe()
    while frame is not None:
        frame, frames = frame.f_back, frames + 1
    for left in range(50, sys.getrecursionlimit() - frames - 40, 25):
        descend(left)
    assert outcomes == {"done", "the template is nested too deep"}
