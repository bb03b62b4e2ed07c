"""Makes templates at random: structures, pipelines, variables; a few malformed."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Final

FUNCTIONS: Final = (
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
    + ["printf"] * 6
    + ["index", "print"] * 2
)
VERBS: Final = "vdtsqxXoObcUeEfFgGT%wz"
CONSTANTS: Final = (
    "1", "0", "-3", "2.5", "1e6", "1e21", '"a"', '""', '"h\\xffé"', "`raw`", "true", "false", "'x'", "1i", "nil",
    "0x1F", ".5", "2",
)  # fmt: skip
READS: Final = [
    ".",
    ".s",
    ".empty",
    ".n",
    ".f",
    ".t",
    ".no",
    ".null",
    ".list",
    ".names",
    ".none",
    ".m",
    ".m.a",
    ".m.c",
    ".m.c.d",
    ".void",
    ".u",
    ".html",
    ".missing",
    ".missing.x",
    "$",
    "$.s",
    "$.m.a",
    "$.list",
    "$x",
    "$y",
    "$x.a",
    ".k",
    ".a",
]
INDEXES: Final = (
    "index .list 0", "index .list 3 0", "index .names 1", 'index .m "c" "d"', 'index .m "zz"', 'index . "s"',
    "index .u 2", "index .list 2", "index $.list 4",
)  # fmt: skip
SLICES: Final = ("slice .names 1", "slice .s 1 3", "slice .u 0 2", "slice .list 1 4", "slice .names 0 1 2")
TEXTS: Final = (" ", "x", "\n", " a ", "\t-", "{", "}")
DAMAGE: Final = ("", "}", "{", '"', "(", ")", "|", " ", ".", "$", "é")
JUMPS: Final = ("{{break}}", "{{continue}}", "{{if .}}{{continue}}{{end}}", "{{if eq . $x}}{{break}}{{end}}")


class Grammar:
    """Draws templates from one Random, so that a seed gives the same ones again."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._choice = self._random.choice

    def templates(self, count: int) -> Iterator[str]:
        for _ in range(count):
            yield self._template()

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def _template(self) -> str:
        source = self._body(3, in_loop=False)
        if self._maybe(0.8):
            source = "{{$x := 1}}{{$y := .m}}" + source
        if "{{template" in source:
            source += '{{define "A"}}' + (self._body(1, in_loop=False) if self._maybe(0.7) else "<{{.}}>") + "{{end}}"
        if source and self._maybe(0.03):
            place = self._random.randrange(len(source))
            source = source[:place] + self._choice(DAMAGE) + source[place + 1 :]
        return source

    def _body(self, depth: int, *, in_loop: bool) -> str:
        return "".join(self._node(depth, in_loop=in_loop) for _ in range(self._random.randint(0, 3)))

    def _tag(self, text: str) -> str:
        left = "{{- " if self._maybe(0.15) else "{{"
        return left + text + (" -}}" if self._maybe(0.15) else "}}")

    def _node(self, depth: int, *, in_loop: bool) -> str:
        drawn = self._random.random()
        if drawn < 0.15:
            return self._choice(TEXTS)
        if depth <= 0 or drawn < 0.5:
            return self._tag(self._pipeline(2))
        if drawn < 0.78:
            word = "if" if drawn < 0.65 else "with"
            body = self._body(depth - 1, in_loop=in_loop)
            otherwise = self._choice(["", self._tag("else"), self._tag(f"else {word} {self._pipeline(1)}")])
            rest = self._body(depth - 1, in_loop=in_loop) if otherwise else ""
            return f"{self._tag(f'{word} {self._pipeline(2)}')}{body}{otherwise}{rest}{{{{end}}}}"
        if drawn < 0.89:
            names = self._choice(["", "", "$x := ", "$x, $y := ", "$x = ", "$y, $x = "])
            over = self._choice(
                [*[".list", ".names", ".m", ".none", "3", "$.names", ".missing", "$x"], "len .s", self._pipeline(1)]
            )
            otherwise = self._tag("else") + self._body(depth - 1, in_loop=in_loop) if self._maybe(0.3) else ""
            return f"{self._tag(f'range {names}{over}')}{self._body(depth - 1, in_loop=True)}{otherwise}{{{{end}}}}"
        if drawn < 0.93 and in_loop:
            return self._choice(JUMPS)
        if drawn < 0.97:
            return '{{template "A" ' + self._choice([".", ".m", "$x", ""]) + "}}"
        return self._tag(f"$x := {self._pipeline(1)}")

    def _pipeline(self, depth: int) -> str:
        source = self._command(depth)
        while self._maybe(0.2):
            source += self._choice([" | ", "|"]) + self._choice(FUNCTIONS) + self._choice(["", f" {self._constant()}"])
        if self._maybe(0.06):
            source = self._choice(["$x", "$y"]) + self._choice([" := ", " = "]) + source
        return source

    def _command(self, depth: int) -> str:
        if self._maybe(0.35):
            return self._term(depth)
        function = self._choice(FUNCTIONS)
        count = self._choice([0, 1, 2, 3])
        match function:
            case "printf":
                form = self._format() if self._maybe(0.9) else self._term(depth)
                return f"printf {form}" + self._terms(depth, count)
            case "index" if self._maybe(0.7):
                return self._choice(INDEXES)
            case "slice" if self._maybe(0.7):
                return self._choice(SLICES)
            case "len" | "not" | "call":
                count = 1
            case "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "index":
                count = 2
        return function + self._terms(depth, count)

    def _terms(self, depth: int, count: int) -> str:
        return "".join(f" {self._term(depth - 1)}" for _ in range(count))

    def _term(self, depth: int) -> str:
        drawn = self._random.random()
        if drawn < 0.45:
            return self._choice(READS)
        if drawn < 0.7 or depth <= 0:
            return self._constant()
        if drawn < 0.95:
            return f"({self._pipeline(depth - 1)})" + self._choice(["", "", "", ".a", ".c.d"])
        return self._choice(["print", "len"])

    def _constant(self) -> str:
        return self._choice(CONSTANTS)

    def _format(self) -> str:
        source = ""
        for _ in range(self._random.randint(1, 3)):
            flags = "".join(self._choice("+-# 0") for _ in range(self._choice([0, 0, 0, 1, 2])))
            index = self._choice(["", "[1]", "[2]", "[9]"]) if self._maybe(0.2) else ""
            width = self._choice(["", "", "3", "12", "*"])
            precision = self._choice(["", "", ".", ".2", ".*", ".[1]2", ".8"])
            source += f"{self._choice(['', 'a ', 'é', '%%'])}%{flags}{index}{width}{precision}{self._choice(VERBS)}"
        return f'"{source}"'
