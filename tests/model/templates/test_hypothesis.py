"""No source and no data makes anything but TemplateError escape."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from aether_trio.model.templates import TemplateBudget, TemplateError, compile_template

WORDS = [
    '. .a .b .a.b .missing.x $ $x $x.a $y 1 -1 2.5 1e400 1i 0x1p \'a\' "s" "%d" `r` "\\xff" true nil ( ) | , := = - . $',
    "and or not eq ne lt le gt ge len index slice print printf println html js urlquery call nope",
    "if else end range with define template block break continue {{ }} {{- -}} /* */ \" ` '",
]
_pieces = st.sampled_from([word for line in WORDS for word in line.split()] + [" ", "\n", "x", "é", "\x00"])
_words = st.lists(_pieces, max_size=8).map(" ".join)
_open = st.sampled_from(["{{", "{{- ", "{{if ", "{{with ", "{{range ", "{{range $x := ", "{{template `t` ", "{{$x := "])
_actions = st.tuples(_open, _words, st.sampled_from(["}}", " -}}"])).map("".join)
_parts = st.one_of(
    _actions, st.sampled_from(["{{end}}", "{{else}}", "{{break}}", "text", "{{define `t`}}", "{{/* */}}"])
)
sources = st.one_of(
    st.lists(_parts, max_size=10).map("".join),
    st.lists(_pieces, max_size=20).map("".join),
    st.text(alphabet="{}-. $()|:=\"'`\\%ax1e_/*\n", max_size=30),
    st.text(max_size=30),
)
formats = st.lists(
    st.sampled_from(list("%+-# 0123456789.*[]vdtsqxXoObcUeEfFgGTpwz!é\ud800"))
    | st.sampled_from(["999999", "10000000"]),
    max_size=12,
).map("".join)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(alphabet=st.characters(), max_size=8),
    st.sampled_from(["\ud800", "\udcff", "é", "\ue0000\ue001", b"bytes", 10**400, object]),
)
data = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b", "é", "\udcff"]) | st.integers(), inner, max_size=3),
        st.tuples(inner),
    ),
    max_leaves=8,
)
SMALL = TemplateBudget(operations=500, output_bytes=2000, nesting=10)


def inside(error: TemplateError, source: str) -> bool:
    return 0 <= error.offset <= len(source) and error.line >= 1 and error.column >= 1


def check(source: str, value: object) -> None:
    try:
        template = compile_template(source)
    except TemplateError as error:
        if not inside(error, source):
            raise AssertionError("the place of an error is outside the source") from error
        return
    template.paths()
    for budget in (None, SMALL):
        try:
            text = template.render(value, budget=budget)
        except TemplateError as error:
            if not inside(error, source):
                raise AssertionError("the place of an error is outside the source") from error
            continue
        text.encode()
        marked = template.render_marked(value)
        assert marked.text.count("\ue000") == len(marked.printed)
        filled = marked.fill(marked.text, plain=False)
        assert isinstance(filled, str)
        filled.encode()


@given(source=sources, value=data)
@example(source="{{range $i := 3}}{{$i}}{{end}}", value=None)
@example(source="{{" * 1000, value=None)
def test_only_template_errors_escape(source: str, value: object) -> None:
    check(source, value)


@given(form=formats, values=st.lists(data, max_size=3))
def test_formats_of_any_kind_print_or_fail(form: str, values: list[object]) -> None:
    check(
        "{{printf .f" + "".join(f" (index .v {place})" for place in range(len(values))) + "}}", {"f": form, "v": values}
    )


@given(
    function=st.sampled_from(
        [
            "and",
            "or",
            "not",
            "eq",
            "ne",
            "lt",
            "le",
            "gt",
            "ge",
            "len",
            "index",
            "slice",
            "print",
            "printf",
            "println",
            "html",
            "js",
            "urlquery",
            "call",
        ]
    ),
    values=st.lists(data, max_size=4),
)
def test_functions_of_any_arguments_print_or_fail(function: str, values: list[object]) -> None:
    check("{{" + function + "".join(f" (index . {place})" for place in range(len(values))) + "}}", values)


@given(text=st.text())
def test_text_without_actions_is_printed_as_it_is(text: str) -> None:
    if "{{" not in text and "\ue000" not in text and "\ue001" not in text:
        template = compile_template(text)
        assert template.render(None) == text
        assert template.render_marked(None).text == text
