"""JSON Schemas of documents: checked when they are written, and when values come.

The dialect is draft 2020-12 without its unevaluated keywords, within one document: no reference
leads out of it. Patterns are those of RE2, and the steps of a check are counted, so neither a
schema nor a value can make a check slow. Formats are not checked, as the dialect has them as
annotations.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from itertools import islice
from typing import Any, Final

import jsonschema
from jsonschema import validators
from referencing import Registry
from referencing.exceptions import Unresolvable

from aether_trio.model.text import escaped
from aether_trio.model.workflows.definition import Json, Path
from aether_trio.model.workflows.reading import kind_of
from aether_trio.model.workflows.shapes import LIST_KEYWORDS, MAP_KEYWORDS, SCHEMA_KEYWORDS, walk_schemas
from aether_trio.services.workflows.documents.regex import RegexError, compile_regex

MAX_PROBLEMS: Final = 20
"""What is wrong with a value is said up to this number."""
MAX_STEPS: Final = 5_000
"""Keywords that are compared with values in one check, which takes 0.3 s then."""
MAX_COMMON_STEPS: Final = 2_000_000
"""The same for schemas of common keywords, which are checked much faster."""
_BRANCH_STEPS: Final = 20
"""What a reference, a pattern and a part of `anyOf` take of the common steps."""
_SHOWN: Final = 20
_SHOWN_CHARS: Final = 120
_NAMES_OF_A_STEP: Final = 8  # of a long `enum`, `required` or `properties`
_DIALECTS: Final = frozenset(
    {"https://json-schema.org/draft/2020-12/schema", "http://json-schema.org/draft-07/schema#"}
)
_META_KEYWORDS: Final = frozenset(
    ("$id", "$schema", "$ref", "$anchor", "$dynamicRef", "$dynamicAnchor", "$vocabulary", "dependencies")
)
_META: Final = jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA)


def _is_whole(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == int(value) and value >= 0


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Json) -> bool:
    return isinstance(value, str)


def _is_bool(value: Json) -> bool:
    return isinstance(value, bool)


def _is_list(value: Json) -> bool:
    return isinstance(value, list)


def _is_map(value: Json) -> bool:
    return isinstance(value, dict)


def _are_schemas(value: Json) -> bool:
    return isinstance(value, list) and bool(value)


def _are_names(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value) and len(set(value)) == len(value)


def _is_type(value: Json) -> bool:
    if isinstance(value, list):
        return bool(value) and _are_names(value) and set(value) <= _TYPES
    return isinstance(value, str) and value in _TYPES


_TYPES: Final = frozenset(("array", "boolean", "integer", "null", "number", "object", "string"))
_RIGHT: Final[dict[str, Callable[[Json], bool]]] = {
    "$comment": _is_text,
    "type": _is_type,
    "enum": _is_list,
    "multipleOf": lambda value: _is_number(value) and value > 0,
    **dict.fromkeys(("maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"), _is_number),
    **dict.fromkeys(("maxLength", "minLength", "maxItems", "minItems", "maxContains", "minContains"), _is_whole),
    **dict.fromkeys(("maxProperties", "minProperties"), _is_whole),
    **dict.fromkeys(("pattern", "format", "title", "description"), _is_text),
    **dict.fromkeys(("contentEncoding", "contentMediaType"), _is_text),
    **dict.fromkeys(("uniqueItems", "deprecated", "readOnly", "writeOnly"), _is_bool),
    "required": _are_names,
    "examples": _is_list,
    **dict.fromkeys(MAP_KEYWORDS, _is_map),
    **dict.fromkeys(LIST_KEYWORDS, _are_schemas),
    **dict.fromkeys(SCHEMA_KEYWORDS, lambda value: isinstance(value, dict | bool)),
    "dependentRequired": lambda value: isinstance(value, dict) and all(map(_are_names, value.values())),
}
"""What the dialect's metaschema says of a keyword's value, but for schemas within it.

The metaschema takes a millisecond for each part of a schema, so it is asked only for the words for
what is wrong, and for keywords that are not here.
"""
_FREE: Final = frozenset(("default", "const"))


def check_schema(schema: Json) -> Iterator[tuple[Path, str]]:
    """Yield what is wrong with a schema, with the path within it."""
    found = 0
    for part, path in walk_schemas(schema):
        for inner, message in _check_part(part, schema):
            yield (*path, *inner), message
            found += 1
            if found >= MAX_PROBLEMS:
                return


def _check_part(part: Json, schema: Json) -> Iterator[tuple[Path, str]]:
    """Yield what is wrong with a schema itself, but not with those within it."""
    if not isinstance(part, dict):
        if not isinstance(part, bool):
            yield (), f"a schema has to be a map, true or false, and is {kind_of(part)}"
        return
    for key, value in part.items():
        right = _RIGHT.get(key)
        if key in _FREE or (right is not None and right(value)):
            continue
        if right is None and key not in _META_KEYWORDS:
            continue  # an annotation
        for error in _META.iter_errors({key: value}):
            yield tuple(error.absolute_path), _message(error)
            break
    for key in ("unevaluatedItems", "unevaluatedProperties"):
        if key in part:  # jsonschema's search for what is evaluated has no bound
            yield (key,), f"{key} is not supported; use items or additionalProperties"
    dialect = part.get("$schema")
    if isinstance(dialect, str) and dialect not in _DIALECTS:
        yield ("$schema",), f"the dialect {escaped(dialect, 80)!r} is not known; it is draft 2020-12"
    for key in ("$ref", "$dynamicRef"):
        target = part.get(key)
        if isinstance(target, str):
            yield from _check_reference(target, schema, (key,))
    pattern = part.get("pattern")
    patterns: list[tuple[str, Path]] = [(pattern, ("pattern",))] if isinstance(pattern, str) else []
    more = part.get("patternProperties")
    if isinstance(more, dict):
        patterns += [(one, ("patternProperties", one)) for one in more]
    for one, at in patterns:
        try:
            compile_regex(one)
        except RegexError as exc:
            yield at, f"the pattern {escaped(one, 80)!r} is no regular expression: {exc}"


def _check_reference(target: str, schema: Json, path: Path) -> Iterator[tuple[Path, str]]:
    if not target.startswith("#"):
        yield path, f"the reference {escaped(target, 80)!r} leads out of the document; write one such as '#/$defs/name'"
        return
    if target == "#" or not target.startswith("#/"):
        return
    found = schema
    for part in target[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            yield path, f"the reference {escaped(target, 80)!r} leads nowhere"
            return


def schema_problems(schema: Mapping[str, Json], value: Json) -> list[str]:
    """Return what is wrong with a value, each with its place; [] for nothing."""
    try:
        if _fits(schema, value, [MAX_COMMON_STEPS], schema):
            return []
        value = _with_short_texts(value)
    except RecursionError:
        return ["the schema refers to itself without an end, or the value is nested too deep"]
    problems = []
    _steps_left.set([MAX_STEPS])
    try:
        for error in _Validator(schema, registry=Registry()).iter_errors(value):
            place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
            where = f"{escaped(place.removeprefix('.'), 200)}: " if place else ""
            problems.append(f"{where}{_message(error)}")
            if len(problems) >= MAX_PROBLEMS:
                break
    except Unresolvable as exc:
        problems.append(f"the schema has a reference that leads nowhere: {escaped(str(exc), 200)}")
    except RecursionError:
        problems.append("the schema refers to itself without an end")
    except _TooManySteps:
        problems.append(f"the check takes more than {MAX_STEPS} steps: use a simpler schema or a smaller value")
    return problems


_SCALARS: Final = (str, int, float, bool, type(None))
_NO_CHECKS: Final = frozenset(
    ("$comment", "$defs", "$schema", "default", "definitions", "deprecated", "description", "examples", "format")
) | frozenset(("readOnly", "title", "writeOnly"))
_OF_TYPE: Final[dict[str, Callable[[Json], bool]]] = {
    "array": _is_list,
    "boolean": _is_bool,
    "integer": lambda value: _is_number(value) and value == value // 1,
    "null": lambda value: value is None,
    "number": _is_number,
    "object": _is_map,
    "string": _is_text,
}


def _weight(wanted: Json) -> int:
    return 1 + len(wanted) // _NAMES_OF_A_STEP if isinstance(wanted, list | dict) else 1


def _fits(schema: Json, value: Json, left: list[int], root: Mapping[str, Json]) -> bool:
    """Return whether a value is right by a schema of common keywords.

    False means that it is wrong, that the schema has others, or that no steps are left: then
    jsonschema is asked, which takes twenty times as long.
    """
    if not isinstance(schema, dict):
        return schema is True
    for key, wanted in schema.items():
        left[0] -= _weight(wanted)
        if left[0] < 0:
            return False
        if key == "type":
            kinds = wanted if isinstance(wanted, list) else (wanted,)
            fits = any(kind in _OF_TYPE and _OF_TYPE[kind](value) for kind in kinds)
        elif key == "properties":
            fits = not isinstance(value, dict) or all(
                _fits(part, value[name], left, root) for name, part in wanted.items() if name in value
            )
        elif key == "required":
            fits = not isinstance(value, dict) or all(name in value for name in wanted)
        elif key == "items":
            fits = not isinstance(value, list) or all(_fits(wanted, one, left, root) for one in value)
        elif key == "enum":
            fits = isinstance(value, _SCALARS) and any(
                one == value and isinstance(one, bool) is isinstance(value, bool) for one in wanted
            )
        elif key in _BOUNDS:
            fits = not _is_number(value) or _BOUNDS[key](value, wanted)
        elif key in _LENGTHS:
            kind, right = _LENGTHS[key]
            fits = not isinstance(value, kind) or right(len(value), wanted)
        elif key == "additionalProperties" and wanted is False and "patternProperties" not in schema:
            fits = not isinstance(value, dict) or value.keys() <= schema.get("properties", {}).keys()
        elif key == "pattern":
            left[0] -= _BRANCH_STEPS
            fits = not isinstance(value, str) or _matches(wanted, value)
        elif key == "$ref":
            left[0] -= _BRANCH_STEPS
            part = _named(root, wanted)
            fits = part is not None and _fits(part, value, left, root)
        elif key == "anyOf":
            left[0] -= _BRANCH_STEPS * len(wanted)
            fits = any(_fits(part, value, left, root) for part in wanted)
        else:
            fits = key in _NO_CHECKS or (key == "additionalProperties" and wanted is True)
        if not fits:
            return False
    return True


_BOUNDS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "minimum": operator.ge,
    "maximum": operator.le,
    "exclusiveMinimum": operator.gt,
    "exclusiveMaximum": operator.lt,
}
_LENGTHS: Final[dict[str, tuple[Any, Callable[[Any, Any], bool]]]] = {
    "minLength": (str, operator.ge),
    "maxLength": (str, operator.le),
    "minItems": (list, operator.ge),
    "maxItems": (list, operator.le),
}


def _named(root: Mapping[str, Json], target: Json) -> Json:
    """Return the definition that a plain reference names; None for another one."""
    if not isinstance(target, str):
        return None
    for words in ("#/$defs/", "#/definitions/"):
        name = target.removeprefix(words)
        definitions = root.get(words[2:-1])
        if name != target and isinstance(definitions, dict) and not set("/~%") & set(name) and "$id" not in root:
            return definitions.get(name)
    return None


class _ShortMap(dict[str, Json]):
    """A map whose repr is short: jsonschema puts that into the text of each error."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name[:_SHOWN_CHARS]!r}: {value!r}" for name, value in islice(self.items(), _SHOWN))
        return f"{{{shown}{', ...' if len(self) > _SHOWN else ''}}}"[:_SHOWN_CHARS]


class _ShortList(list[Json]):
    """A list whose repr is short."""

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:_SHOWN]))
        return f"[{shown}{', ...' if len(self) > _SHOWN else ''}]"[:_SHOWN_CHARS]


class _ShortText(str):
    """A text whose repr is short."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str.__repr__(str(self[:_SHOWN_CHARS]))


def _with_short_texts(value: Json) -> Json:
    """Return an equal value whose parts have short texts, however large they are."""
    if isinstance(value, str):
        return _ShortText(value) if len(value) > _SHOWN_CHARS else value
    if isinstance(value, list):
        return _ShortList(map(_with_short_texts, value))
    if isinstance(value, dict):
        return _ShortMap((key, _with_short_texts(one)) for key, one in value.items())
    return value


def _message(error: jsonschema.ValidationError) -> str:
    return escaped(error.message, 300)


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    if isinstance(instance, str) and not _matches(pattern, instance):
        yield jsonschema.ValidationError(f"{instance[:80]!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: Any, instance: Any, schema: Any
) -> Iterator[jsonschema.ValidationError]:
    if not isinstance(instance, dict):
        return
    for pattern, subschema in patterns.items():
        for key, value in instance.items():
            if _matches(pattern, key):
                yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional_properties(
    validator: Any, further: Any, instance: Any, schema: Any
) -> Iterator[jsonschema.ValidationError]:
    if not isinstance(instance, dict):
        return
    properties = schema.get("properties", {})
    patterns = schema.get("patternProperties", {})
    extras = [key for key in instance if key not in properties and not any(_matches(one, key) for one in patterns)]
    if isinstance(further, dict):
        for key in extras:
            yield from validator.descend(instance[key], further, path=key)
    elif not further and extras:
        names = ", ".join(repr(one[:80]) for one in extras[:5])
        yield jsonschema.ValidationError(f"there is no property {names}")


def _unique_items(validator: Any, unique: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    if not unique or not isinstance(instance, list):
        return
    seen: set[str] = set()
    for one in instance:
        text = json.dumps(_as_compared(one), sort_keys=True)
        if text in seen:
            yield jsonschema.ValidationError("the list has an item twice")
            return
        seen.add(text)


def _as_compared(value: Json) -> Json:
    """Return a value so that equal numbers are written equally."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_as_compared(one) for one in value]
    if isinstance(value, dict):
        return {key: _as_compared(one) for key, one in value.items()}
    return value


def _matches(pattern: str, text: str) -> bool:
    try:
        return compile_regex(pattern)(text)
    except RegexError:  # of a schema that was not checked
        return False


class _TooManySteps(Exception):
    """A check has taken MAX_STEPS: references can double its work at each level."""


_steps_left: Final[ContextVar[list[int]]] = ContextVar("steps that a check of a value may still take")


def _counted(keyword: Any) -> Any:
    """Return the check of a keyword, which takes a step of the budget each time."""

    def check(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
        left = _steps_left.get()
        left[0] -= _weight(wanted)
        if keyword is _pattern_properties and isinstance(instance, dict):
            left[0] -= len(instance) * len(wanted)
        if left[0] < 0:
            raise _TooManySteps
        yield from keyword(validator, wanted, instance, schema) or ()

    return check


_OURS: Final[dict[str, Any]] = {
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional_properties,
    "uniqueItems": _unique_items,
}
_KEYWORDS: Final[dict[str, Any]] = {**jsonschema.Draft202012Validator.VALIDATORS, **_OURS}
_extend: Final[Any] = validators.extend  # without types
_Validator: Final = _extend(
    jsonschema.Draft202012Validator, {name: _counted(keyword) for name, keyword in _KEYWORDS.items()}
)
