"""Bombs end in TemplateError within the budget, and honest templates fit into it."""

from __future__ import annotations

import time

import pytest

from aether_trio.model.templates import TemplateBudget, TemplateError, compile_template

LONG = "x" * 1_000_000
WIDE = "é" * 1_000_000
MANY = {f"k{number}": number for number in range(200_000)}


def nested(times: int, inner: str) -> str:
    return "{{range 100000}}" * times + inner + "{{end}}" * times


BOMBS = {
    "an empty loop": (nested(1, ""), None),
    "loops within loops": (nested(6, "x"), None),
    "a loop over nothing but continue": (nested(2, "{{continue}}"), None),
    "a loop with a long body": (nested(1, "{{$x := 1}}" * 5000), None),
    "a huge int": ("{{range 9223372036854775807}}{{end}}", None),
    "a template that calls itself": ('{{define "a"}}{{template "a"}}{{end}}{{template "a"}}', None),
    "templates that double": (
        "".join(
            f'{{{{define "{n}"}}}}{{{{template "{n + 1}"}}}}{{{{template "{n + 1}"}}}}{{{{end}}}}' for n in range(40)
        )
        + '{{define "40"}}x{{end}}{{template "0"}}',
        None,
    ),
    "a wide printf": ('{{range 1000}}{{printf "%1000000d" 1}}{{end}}', None),
    "a wide printf that is thrown away": ('{{range 1000}}{{$x := printf "%1000000d" 1}}{{end}}', None),
    "a precise printf": ('{{range 1000}}{{$x := printf "%.1000000f" 0.1}}{{end}}', None),
    "zeros in front": ('{{range 1000}}{{$x := printf "%.1000000d" 1}}{{end}}', None),
    "a width from an argument": ('{{range 1000}}{{$x := printf "%*s" 1000000 "a"}}{{end}}', None),
    "a code point with zeros": ('{{range 1000}}{{$x := printf "%.1000000U" 1}}{{end}}', None),
    "many widths in one format": ('{{printf "' + "%999999[1]d" * 1000 + '" 1}}', None),
    "many variables": (
        "".join(f"{{{{$x{number} := 1}}}}" for number in range(3500)) + nested(1, "{{$y := $x0}}"),
        None,
    ),
    "a long pipeline with an argument": (
        nested(1, "{{(and $.a" + " (print 1)" * 3000 + ").x 1}}"),
        {"a": None},
    ),
    "many fields": (nested(1, "{{$x := .a" + ".a" * 30_000 + "}}"), {"a": None}),
    "text that doubles": ("{{$x := `ab`}}" + "{{$x = print $x $x}}" * 60 + "{{len $x}}", None),
    "a long text again and again": (nested(1, "{{$}}"), LONG),
    "quotes of a long text": (nested(1, '{{$x := printf "%q" $}}'), "\x01" * 1_000_000),
    "escapes of a long text": (nested(1, "{{$x := js $}}{{$x = html $}}{{$x = urlquery $}}"), "<" * 1_000_000),
    "quotes of printable text": (nested(1, '{{$x := printf "%q" $}}'), WIDE),
    "quotes of text with one unprintable character in each piece": (
        nested(1, '{{$x := printf "%q" $}}{{$x = js $}}'),
        (WIDE[:1000] + "\u200b") * 1000,
    ),
    "quotes in ASCII": (nested(1, '{{$x := printf "%+q" $}}'), WIDE),
    "apostrophes": (nested(1, "{{$x := js $}}"), "'" * 1_000_000),
    "queries": (nested(1, "{{$x := urlquery $}}"), " é" * 500_000),
    "references": (nested(1, "{{$x := html $}}"), "&" * 1_000_000),
    "hexadecimals of a long text": (nested(1, '{{$x := printf "% x" $}}'), LONG),
    "lengths of a long text": (nested(1, "{{$x := len $}}"), WIDE),
    "pieces of a long text": (nested(1, "{{$x := slice $ 1}}"), WIDE),
    "bytes of a long text": (nested(1, "{{$x := index $ 9}}"), WIDE),
    "comparisons of a long text": (nested(1, "{{$x := eq $ $}}{{$x = lt $ $}}"), WIDE),
    "a long list printed": (nested(1, "{{$x := print $}}"), [1.5] * 300_000),
    "pieces of a long list": (nested(1, "{{$x := slice $ 1}}"), [1.5] * 300_000),
    "a loop over a long list": ("{{range .}}{{end}}", [1.5] * 300_000),
    "a loop over a large map": (nested(1, "{{range $}}{{break}}{{end}}"), MANY),
    "a large map printed": (nested(1, "{{$x := print $}}"), MANY),
    "a list of lists of one list": ("{{.}}", None),
    "literal text in a loop": (nested(1, "x" * 10_000), None),
}


def lists_of_one_list() -> object:
    value: object = "x"
    for _ in range(60):
        value = [value, value]
    return value


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_in_an_error(name: str) -> None:
    source, data = BOMBS[name]
    if name == "a list of lists of one list":
        data = lists_of_one_list()
    template = compile_template(source)
    start = time.process_time()
    for render in (template.render, template.render_marked):
        with pytest.raises(TemplateError) as caught:
            render(data)
        assert caught.value.line == 1
        assert "more than" in caught.value.message, caught.value.message
    print(f"{name}: {(time.process_time() - start) * 500:.1f} ms each")


@pytest.mark.parametrize(
    "source",
    [
        "{{" + "(" * 65 + "1" + ")" * 65 + "}}",
        "{{if 1}}" * 65 + "{{end}}" * 65,
        "{{range 1}}" * 5000,
        "{{" + "(" * 60_000,
        '{{block "a" .}}' * 1000,
        "{{with 1}}{{else}}" * 1000,
    ],
)
def test_deep_sources_are_refused(source: str) -> None:
    with pytest.raises(TemplateError, match=r"nested more than 64 deep"):
        compile_template(source)


def test_the_deepest_source_is_rendered() -> None:
    assert compile_template("{{" + "(" * 64 + "1" + ")" * 64 + "}}").render(None) == "1"
    assert compile_template("{{if 1}}" * 64 + "x" + "{{end}}" * 64).render(None) == "x"


def test_a_long_chain_of_else_if_is_not_deep() -> None:
    source = "{{if eq .n 0.0}}0" + "".join(f"{{{{else if eq .n {n}.0}}}}{n}" for n in range(1, 500)) + "{{end}}"
    assert compile_template(source).render({"n": 499.0}) == "499"


def test_a_recursion_within_the_budget_is_rendered() -> None:
    source = '{{define "t"}}{{if .next}}<{{template "t" .next}}>{{end}}{{end}}{{template "t" .}}'
    chain: dict[str, object] = {}
    for _ in range(45):
        chain = {"next": chain} if chain else {"next": {"x": 1}}
    text = compile_template(source).render(chain)
    assert text.count("<") == 45


def test_limits_can_be_chosen() -> None:
    template = compile_template("{{range 100}}x{{end}}")
    with pytest.raises(TemplateError, match=r"more than 50 operations"):
        template.render(None, budget=TemplateBudget(operations=50))
    with pytest.raises(TemplateError, match=r"more than 99 bytes"):
        template.render(None, budget=TemplateBudget(output_bytes=99))
    assert template.render(None, budget=TemplateBudget(output_bytes=100)) == "x" * 100
    deep = compile_template('{{define "a"}}{{if .}}{{template "a" (slice . 1)}}{{end}}{{end}}{{template "a" .}}')
    assert deep.render("abc", budget=TemplateBudget(nesting=20)) == ""
    with pytest.raises(TemplateError, match=r"more than 5 deep"):
        deep.render("abc", budget=TemplateBudget(nesting=5))


def test_bytes_of_the_output_are_counted_as_utf_8() -> None:
    for source in ("{{.}}", "éé", "{{range 2}}é{{end}}"):
        template = compile_template(source)
        assert template.render("éé", budget=TemplateBudget(output_bytes=4)) == "éé"
        with pytest.raises(TemplateError, match=r"more than 3 bytes"):
            template.render("éé", budget=TemplateBudget(output_bytes=3))


def test_an_honest_event_fits() -> None:
    items = [{"id": f"item-{number}", "size": float(number)} for number in range(1000)]
    source = "items:\n{{range $i, $x := .input.items}}- id: {{$x.id}}\n  n: {{$i}}\n  size: {{$x.size}}\n{{end}}"
    assert compile_template(source).render({"input": {"items": items}}).count("\n") == 3001


@pytest.mark.parametrize("function", ["js", "html", "urlquery", 'printf "%q"', "len", "print"])
@pytest.mark.parametrize(
    "line", ["Größe läuft über den Weg.\n", "工作流程\n", '{"a": "b"}\n', "plain text of a report\n"]
)
def test_an_honest_text_of_50_kilobytes_fits(function: str, line: str) -> None:
    text = line * (50_000 // len(line.encode()))
    assert compile_template(f"{{{{{function} .}}}}").render(text)
