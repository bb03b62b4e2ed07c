"""Small stand-ins: expressions of paths, literals and ==, templates of paths."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from aether_trio.model.workflows.compiling import Tools


class SyntaxFault(ValueError):
    """A text does not compile, with its place."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


_PATH = re.compile(r"[A-Za-z_]\w*(?:\??\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class StandInExpression:
    source: str

    def paths(self) -> frozenset[tuple[str | int, ...]]:
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", self.source)
        found = (tuple(re.split(r"\??\.", one)) for one in _PATH.findall(bare))
        return frozenset(one for one in found if one[0] not in {"true", "false", "nil"})

    def evaluate(self, env: Mapping[str, object], *, now: Callable[[], datetime]) -> object:
        left, _, right = self.source.partition("==")
        if right:
            return self._one(left, env) == self._one(right, env)
        return self._one(left, env)

    def equalities(self) -> tuple[tuple[tuple[str | int, ...], object], ...]:
        return ()

    def _one(self, text: str, env: Mapping[str, object]) -> object:
        text = text.strip()
        if text.startswith("'"):
            return text[1:-1]
        if _PATH.fullmatch(text) and text not in {"true", "false", "nil"}:
            value: object = env
            for part in text.split("."):
                if not isinstance(value, Mapping):
                    raise SyntaxFault(f"cannot read {part} of {value}", 1, 1)
                value = value.get(part)
            return value
        return json.loads(text.replace("nil", "null"), parse_int=float)


@dataclass(frozen=True)
class StandInMarked:
    text: str
    printed: tuple[object, ...]

    def fill(self, scalar_text: str, *, plain: bool) -> object:
        match = re.fullmatch("\ue000([0-9]+)\ue001", scalar_text)
        if match and plain and not isinstance(self.printed[int(match[1])], str):
            return self.printed[int(match[1])]
        return re.sub("\ue000([0-9]+)\ue001", lambda one: str(self.printed[int(one[1])]), scalar_text)


@dataclass(frozen=True)
class StandInTemplate:
    source: str

    def paths(self) -> frozenset[tuple[str | int, ...]]:
        return frozenset(tuple(one.split(".")) for one in re.findall(r"\{\{\s*\.([\w.]+)", self.source))

    def render_marked(self, data: Mapping[str, object]) -> StandInMarked:
        printed: list[object] = []

        def mark(match: re.Match[str]) -> str:
            value: object = data
            for part in match[1].split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            printed.append(value)
            return f"\ue000{len(printed) - 1}\ue001"

        return StandInMarked(re.sub(r"\{\{\s*\.([\w.]+)\s*\}\}", mark, self.source), tuple(printed))


class StandIns:
    def expression(self, source: str) -> StandInExpression:
        if "?!" in source:
            place = source.index("?!")
            line = source.count("\n", 0, place) + 1
            raise SyntaxFault("unexpected ?!", line, place - source.rfind("\n", 0, place))
        return StandInExpression(source)

    def template(self, source: str) -> StandInTemplate:
        if source.count("{{") != source.count("}}"):
            raise SyntaxFault("unclosed action", 1, source.index("{{") + 1)
        return StandInTemplate(source)


def read_yaml(text: str, scalar: Callable[[str, bool], object]) -> object:
    """Read "key: value" lines."""
    lines = (line.partition(": ") for line in text.splitlines() if line.strip())
    return {key: scalar(value, True) for key, _, value in lines}


TOOLS = Tools(
    languages=StandIns(),
    read_yaml=read_yaml,
    check_schema=lambda schema: [],
    check_schedule=lambda kind, expression, timezone: "",
)
