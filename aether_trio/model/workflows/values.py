"""The computed values of definitions: literals, expressions, templates, and trees.

All of them are `definition.Value`: they compute JSON as Go would have encoded it, so that an
integral float is an int, and raise EvaluationError, which names the place in the document.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Protocol

from aether_trio.model.evaluation_meter import check_meter
from aether_trio.model.expressions.mismatches import Typed
from aether_trio.model.text import escaped
from aether_trio.model.workflows.definition import Environment, EvaluationError, Json, Path, Value

EXPRESSION_KEY: Final = "$expr"
_GO_EXPONENT: Final = 1e21  # from here on Go writes a float with an exponent
_MAX_LEVELS: Final = 100
_MESSAGE: Final = 500


class CompiledExpression(Protocol):
    """An expression, as model/expressions compiles it."""

    def paths(self) -> frozenset[Path]:
        """Return what it reads."""

    @property
    def mismatches(self) -> Iterable[Exception]:
        """What fails for the types that are declared, each with a line and a column."""

    @property
    def kind(self) -> str | None:
        """What it gives, by the types that are declared; None if that is not known."""

    def evaluate(self, env: Environment, *, now: Callable[[], datetime]) -> object:
        """Compute it. Raises a ValueError with its line and column."""

    def equalities(self) -> Iterable[tuple[Path, Json]]:
        """Return paths and literals that have to be equal for the result to be true."""


class MarkedText(Protocol):
    """A rendered text in which placeholders stand for what was printed."""

    @property
    def text(self) -> str:
        """The text with placeholders."""

    def fill(self, scalar_text: str, *, plain: bool) -> object:
        """Return a scalar with its placeholders replaced, typed if it is plain."""


class CompiledTemplate(Protocol):
    """A template, as model/templates compiles it."""

    def paths(self) -> frozenset[Path]:
        """Return what it reads."""

    def render_marked(self, data: Environment) -> MarkedText:
        """Render it. Raises a ValueError with its line and column."""


class Languages(Protocol):
    """Compiles the languages; both raise a ValueError with `line` and `column`."""

    def expression(
        self, source: str, variables: Collection[str], look: Callable[[str], Typed | None] | None = None
    ) -> CompiledExpression:
        """Compile an expression over variables of these names; `look` gives their types."""

    def template(self, source: str) -> CompiledTemplate:
        """Compile a template."""


YamlReader = Callable[[str, Callable[[str, bool], Json]], Json]
"""Parses one YAML document; each scalar's value is what the function makes of its text, which is
also told whether the scalar is plain. Raises a ValueError with line and column."""


def json_value(value: object, level: int = 0) -> Json:
    """Return what Go's encoding/json makes of a result, as a JSON tree.

    Raises a ValueError for NaN, an infinity, and values that JSON does not have.
    """
    if value is None or isinstance(value, bool | int | str):
        if type(value) in {int, bool, str} or value is None:
            return value
        return int(value) if isinstance(value, int) else str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"the result has {'NaN' if math.isnan(value) else 'an infinity'}, which is not JSON")
        if value.is_integer() and abs(value) < _GO_EXPONENT:
            return int(value) if abs(value) < 1 << 53 else int(Decimal(repr(value)))
        return value
    if level > _MAX_LEVELS:
        raise ValueError(f"the result is nested deeper than {_MAX_LEVELS} levels")
    if isinstance(value, dict):
        return {_key(key): json_value(one, level + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(one, level + 1) for one in value]
    if isinstance(value, datetime):
        return _rfc3339(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    nanoseconds = getattr(value, "nanoseconds", None)
    if isinstance(nanoseconds, int):  # a duration, which Go encodes so
        return nanoseconds
    number = getattr(value, "number", None)
    if isinstance(number, int):  # a month or weekday
        return number
    raise ValueError(f"the result has a {type(value).__name__}, which is not JSON")


def _key(key: object) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bool) or not isinstance(key, int | float):
        raise ValueError("the result has a map whose keys are not texts")
    return encode_json(key)


def _rfc3339(moment: datetime) -> str:
    """Return a moment as Go's time.RFC3339Nano."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    text = moment.replace(microsecond=0).isoformat()
    zone = text[19:]
    fraction = f".{moment.microsecond:06d}".rstrip("0") if moment.microsecond else ""
    return f"{text[:19]}{fraction}{'Z' if zone == '+00:00' else zone}"


def encode_json(value: Json) -> str:
    """Return the compact JSON text of a value, with floats as Go writes them.

    Raises a ValueError for what is not JSON.
    """
    return json.dumps(json_value(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _failed(place: str, exc: Exception) -> EvaluationError:
    return _problem(place, escaped(str(exc), _MESSAGE))


def _problem(place: str, text: str) -> EvaluationError:
    return EvaluationError(f"{place}: {text}" if place else text)


@dataclass(frozen=True, slots=True)
class LiteralValue:
    """A tree without anything to compute."""

    tree: Json

    def paths(self) -> frozenset[Path]:
        """Return nothing."""
        return frozenset()

    def evaluate(self, env: Environment, *, now: Callable[[], datetime]) -> Json:
        """Return the tree."""
        return self.tree


@dataclass(frozen=True, slots=True)
class ExpressionValue:
    """An expression; with `boolean` its result has to be a bool."""

    source: str
    compiled: CompiledExpression
    place: str = ""
    boolean: bool = False

    def paths(self) -> frozenset[Path]:
        """Return what the expression reads."""
        return self.compiled.paths()

    def equalities(self) -> tuple[tuple[Path, Json], ...]:
        """Return paths and literals that have to be equal for a condition to hold."""
        return tuple(self.compiled.equalities())

    def evaluate(self, env: Environment, *, now: Callable[[], datetime]) -> Json:
        """Compute the expression. Raises EvaluationError."""
        try:
            check_meter()
            result = json_value(self.compiled.evaluate(env, now=now))
        except (ValueError, ArithmeticError, RecursionError) as exc:
            raise _failed(self.place, exc) from None
        if self.boolean and not isinstance(result, bool):
            raise _problem(self.place, f"the condition gave {_brief(result)} instead of true or false")
        return result


@dataclass(frozen=True, slots=True)
class TemplateValue:
    """A text with a template; the result is a text.

    With `single` the text is one pipeline and nothing else: a number, a bool or null that it prints
    stays one.
    """

    source: str
    compiled: CompiledTemplate
    place: str = ""
    single: bool = False

    def paths(self) -> frozenset[Path]:
        """Return what the template reads."""
        return self.compiled.paths()

    def evaluate(self, env: Environment, *, now: Callable[[], datetime]) -> Json:
        """Render the template. Raises EvaluationError."""
        try:
            check_meter()
            marked = self.compiled.render_marked(env)
            return json_value(marked.fill(marked.text, plain=self.single))
        except (ValueError, ArithmeticError, RecursionError) as exc:
            raise _failed(self.place, exc) from None


@dataclass(frozen=True, slots=True)
class MapValue:
    """A map with computed values."""

    fields: tuple[tuple[str, Value], ...]

    def paths(self) -> frozenset[Path]:
        """Return what the values read."""
        return frozenset().union(*(value.paths() for _, value in self.fields))

    def evaluate(self, env: Environment, *, now: Callable[[], datetime]) -> Json:
        """Compute the values. Raises EvaluationError."""
        return {key: value.evaluate(env, now=now) for key, value in self.fields}


@dataclass(frozen=True, slots=True)
class ListValue:
    """A list with computed values."""

    items: tuple[Value, ...]

    def paths(self) -> frozenset[Path]:
        """Return what the values read."""
        return frozenset().union(*(value.paths() for value in self.items))

    def evaluate(self, env: Environment, *, now: Callable[[], datetime]) -> Json:
        """Compute the values. Raises EvaluationError."""
        return [value.evaluate(env, now=now) for value in self.items]


@dataclass(frozen=True, slots=True)
class YamlTemplateValue:
    """A template whose text is YAML, as rules have it: the result is a map.

    The text is parsed before what was printed is put in, so that a value of an event is a scalar
    wherever it stands, whatever it contains.
    """

    source: str
    compiled: CompiledTemplate
    read_yaml: YamlReader
    place: str = ""

    def paths(self) -> frozenset[Path]:
        """Return what the template reads."""
        return self.compiled.paths()

    def evaluate(self, env: Environment, *, now: Callable[[], datetime]) -> Json:
        """Render and parse. Raises EvaluationError."""
        try:
            check_meter()
            marked = self.compiled.render_marked(env)
            result = json_value(self.read_yaml(marked.text, lambda text, plain: marked.fill(text, plain=plain)))
        except (ValueError, ArithmeticError, RecursionError) as exc:
            raise _failed(self.place, exc) from None
        if not isinstance(result, dict):
            raise _problem(self.place, f"the template gave {_brief(result)} instead of a YAML map")
        return result


def _brief(value: Json) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."
