"""What is known of the values that expressions read: shapes, made of JSON Schemas.

A schema that names properties and says nothing about others counts as complete here: reading a
field that it does not name is an error of the document, though validation lets it pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, TypeAlias

from aether_trio.model.workflows.definition import Json, Path
from aether_trio.model.workflows.reading import Findings, did_you_mean, kind_of, quoted

_TYPES: Final = ("string", "number", "integer", "boolean", "object", "array", "null")
_SHORTHAND: Final = re.compile(r"(string|number|integer|boolean|object|array|any)((?:\[\])*)(\??)")
_MAX_LISTS: Final = 8  # "[]" after each other
_SCALARS: Final = {"a text": "string", "a number": "float", "a bool": "bool"}
_KEYWORDS: Final = frozenset(
    re.findall(
        r"\S+",
        """$id $schema $ref $anchor $dynamicRef $dynamicAnchor $vocabulary $comment $defs definitions
        allOf anyOf oneOf not if then else dependentSchemas dependentRequired prefixItems items
        contains properties patternProperties additionalProperties propertyNames unevaluatedItems
        unevaluatedProperties type const enum multipleOf maximum exclusiveMaximum minimum
        exclusiveMinimum maxLength minLength pattern maxItems minItems uniqueItems maxContains
        minContains maxProperties minProperties required format contentEncoding contentMediaType
        contentSchema title description default deprecated readOnly writeOnly examples""",
    )
)

SCHEMA_KEYWORDS: Final = frozenset(
    (
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    )
)
"""Keywords whose value is a schema."""
LIST_KEYWORDS: Final = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
"""Keywords whose value is a list of schemas."""
MAP_KEYWORDS: Final = frozenset(("$defs", "definitions", "dependentSchemas", "patternProperties", "properties"))
"""Keywords whose value has schemas by name."""


@dataclass(frozen=True, slots=True)
class AnyShape:
    """Nothing is known."""

    kind: ClassVar[None] = None

    def field(self, name: str) -> Shape | None:
        """Return nothing, as no field is known."""
        return None

    def element(self) -> Shape | None:
        """Return nothing, as no element is known."""
        return None


@dataclass(frozen=True, slots=True)
class ScalarShape:
    """A text, number, bool or null: it has no fields. `what` says which.

    `exact`: a number may be an int of an expression. Those of JSON are floats.
    """

    what: str
    exact: bool = False

    @property
    def kind(self) -> str | None:
        """Its kind in expressions."""
        return "number" if self.exact else _SCALARS.get(self.what)

    def field(self, name: str) -> Shape | None:
        """Return nothing, as it has no fields."""
        return None

    def element(self) -> Shape | None:
        """Return nothing, as it has no elements."""
        return None


@dataclass(frozen=True, slots=True)
class ListShape:
    """A list."""

    item: Shape
    kind: ClassVar[str] = "array"

    def field(self, name: str) -> Shape | None:
        """Return nothing, as it has no fields."""
        return None

    def element(self) -> Shape | None:
        """Return the shape of its elements."""
        return self.item


@dataclass(frozen=True, slots=True)
class MapShape:
    """A map; `closed`: it has no fields but these.

    `typed`: it is a map, and its fields are of their types; else only their names are known.
    """

    fields: Mapping[str, Shape] = field(default_factory=dict)
    closed: bool = True
    typed: bool = True

    @property
    def kind(self) -> str | None:
        """Its kind in expressions."""
        return "map" if self.typed else None

    def field(self, name: str) -> Shape | None:
        """Return the shape of a field whose type is known."""
        return self.fields.get(name) if self.typed else None

    def element(self) -> Shape | None:
        """Return nothing, as it has no elements."""
        return None


Shape: TypeAlias = AnyShape | ScalarShape | ListShape | MapShape
ANY: Final = AnyShape()
BOOL: Final = ScalarShape("a bool")


def shape_words(shape: Shape) -> str:
    """Return what a known shape is, in words."""
    if isinstance(shape, ScalarShape):
        return shape.what
    return "a list" if isinstance(shape, ListShape) else "a map"


def shape_at(shape: Shape, path: Path) -> Shape:
    """Return the shape of what a path of fields reads."""
    for part in path:
        if not isinstance(shape, MapShape) or not isinstance(part, str):
            return ANY
        shape = shape.fields.get(part, ANY)
    return shape


def missing_field(shape: Shape, path: Path, name: str) -> str:
    """Return what is wrong with reading `path` of a value called `name`, or ""."""
    for part in path:
        if isinstance(shape, ScalarShape):
            return f"{quoted(name)} is {shape.what} and has no field {quoted(part)}"
        if isinstance(shape, ListShape):
            if isinstance(part, str) and part not in {"*", "#"}:
                return f"{quoted(name)} is a list and has no field {quoted(part)}"
            shape = shape.item
        elif isinstance(shape, MapShape):
            found = shape.fields.get(part) if isinstance(part, str) else ANY
            if found is None:
                if shape.closed:
                    return f"{quoted(name)} has no field {quoted(part)}{did_you_mean(str(part), shape.fields)}"
                found = ANY
            shape = found
        else:
            return ""
        name = f"{name}.{part}"
    return ""


def shape_of(schema: Json) -> Shape:
    """Return the shape that a JSON Schema gives its values."""
    return _Shapes(schema).of(schema)


class _Shapes:
    """Makes shapes of the parts of one schema; each reference is followed once."""

    __slots__ = ("known", "root")

    def __init__(self, root: Json) -> None:
        self.root = root
        self.known: dict[str, Shape] = {}

    def of(self, schema: Json) -> Shape:
        if not isinstance(schema, dict):
            return ANY
        reference = schema.get("$ref")
        if isinstance(reference, str):
            if reference not in self.known:
                self.known[reference] = ANY  # within itself
                self.known[reference] = self.of(_resolve(reference, self.root))
            return self.known[reference]
        if any(key in schema for key in ("anyOf", "oneOf", "allOf", "if", "$dynamicRef", "dependentSchemas")):
            return self._combined(schema)
        kind = schema.get("type")
        if isinstance(kind, list):
            kinds = [one for one in kind if one != "null"]
            kind = kinds[0] if len(kinds) == 1 else "any"
        if not isinstance(kind, str):
            kind = "object"
        if kind in {"string", "number", "integer", "boolean", "null"}:
            return ScalarShape({"string": "a text", "boolean": "a bool", "null": "null"}.get(kind, "a number"))
        if kind == "array":
            return ListShape(ANY if "prefixItems" in schema else self.of(schema.get("items")))
        properties = schema.get("properties")
        if kind == "object" and isinstance(properties, dict):
            further = schema.get("additionalProperties", False)
            open_ = further is not False or "patternProperties" in schema or "unevaluatedProperties" in schema
            fields = {key: self.of(one) for key, one in properties.items()}
            return MapShape(fields, closed=not open_, typed="type" in schema)
        return ANY

    def _combined(self, schema: dict[str, Json]) -> Shape:
        """Return all alternatives' fields together; closed only if each of them is."""
        if any(key in schema for key in ("if", "$dynamicRef", "dependentSchemas")):
            return ANY
        own = {key: value for key, value in schema.items() if key not in {"anyOf", "oneOf", "allOf"}}
        parts = [self.of(own)] if "properties" in own else []
        for key in ("anyOf", "oneOf", "allOf"):
            alternatives = schema.get(key)
            if isinstance(alternatives, list):
                parts += [self.of(one) for one in alternatives]
        fields: dict[str, Shape] = {}
        for part in parts:
            if isinstance(part, ScalarShape) and part.what == "null":
                continue
            if not isinstance(part, MapShape) or not part.closed:
                return ANY
            for name, shape in part.fields.items():
                fields[name] = ANY if name in fields and fields[name] != shape else shape
        return MapShape(fields, typed=False) if fields else ANY


def _resolve(reference: str, root: Json) -> Json:
    if not reference.startswith("#/"):
        return root if reference == "#" else None
    found = root
    for part in reference[2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or key not in found:
            return None
        found = found[key]
    return found


def is_schema(value: Json) -> bool:
    """Return whether a map is a JSON Schema, and not the shorthand."""
    if not isinstance(value, dict):
        return isinstance(value, bool)
    return set(value) <= _KEYWORDS and any(_is_structural(key, one) for key, one in value.items())


def _is_structural(key: str, value: Json) -> bool:
    if key == "type":
        return (isinstance(value, str) and value in _TYPES) or isinstance(value, list)
    if key in {"properties", "items", "$defs", "not", "additionalProperties"}:
        return isinstance(value, dict | bool)
    if key in {"anyOf", "oneOf", "allOf", "enum"}:
        return isinstance(value, list)
    if key in {"$ref", "$schema"}:
        return isinstance(value, str)
    return key == "const"


def read_schema(value: Json, path: Path, findings: Findings, what: str) -> dict[str, Json] | None:
    """Return the JSON Schema that a schema or the shorthand stands for, or None.

    The shorthand is a type's name, such as `string`, `integer?` or `string[]`, or a map of names to
    such texts, to schemas and to further maps. A field with "?" may be absent or null.
    """
    if is_schema(value):
        return dict(value) if isinstance(value, dict) else {"not": {}} if value is False else {}
    if isinstance(value, str):
        schema, _ = _from_text(value, path, findings, what)
        return schema
    if isinstance(value, dict):
        return _from_map(value, path, findings, what, 0)
    findings.error(path, f"{what} has to be a JSON Schema or a map of names and types, and is {kind_of(value)}")
    return None


def _from_map(value: dict[str, Json], path: Path, findings: Findings, what: str, level: int) -> dict[str, Json]:
    properties: dict[str, Json] = {}
    required: list[str] = []
    for name, one in value.items():
        at = (*path, name)
        optional = False
        if isinstance(one, str):
            schema, optional = _from_text(one, at, findings, f"{what} {quoted(name)}")
        elif is_schema(one):
            schema = one
            optional = isinstance(one, dict) and "default" in one
        elif isinstance(one, dict) and level < _MAX_LISTS:
            schema = _from_map(one, at, findings, what, level + 1)
        else:
            findings.error(at, f"{what} {quoted(name)} has to be a type such as string, and is {kind_of(one)}")
            continue
        properties[name] = schema if schema is not None else {}
        if not optional:
            required.append(name)
    schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return schema


def _from_text(text: str, path: Path, findings: Findings, what: str) -> tuple[dict[str, Json] | None, bool]:
    match = _SHORTHAND.fullmatch(text.strip())
    if match is None or len(match[2]) > 2 * _MAX_LISTS:
        names = ("string", "number", "integer", "boolean", "object", "array", "any")
        word = text.strip().rstrip("?[]")
        common = {
            "int": "integer",
            "str": "string",
            "bool": "boolean",
            "float": "number",
            "list": "array",
            "map": "object",
        }
        hint = f": did you mean {quoted(common[word])}?" if word in common else did_you_mean(word, names)
        findings.error(path, f"{what} has the unknown type {quoted(text)}{hint}")
        return None, False
    name, lists, mark = match.groups()
    schema: dict[str, Json] = {} if name == "any" else {"type": name}
    for _ in range(len(lists) // 2):
        schema = {"type": "array", "items": schema}
    if mark and "type" in schema:
        schema = {**schema, "type": [schema["type"], "null"]}
    return schema, bool(mark)


def walk_schemas(schema: Json) -> Iterator[tuple[Json, Path]]:
    """Yield a schema and all schemas within it, with their paths in it."""
    open_: list[tuple[Json, Path]] = [(schema, ())]
    while open_:
        one, path = open_.pop()
        yield one, path
        if not isinstance(one, dict):
            continue
        for key, value in one.items():
            if key in SCHEMA_KEYWORDS:
                open_.append((value, (*path, key)))
            elif key in LIST_KEYWORDS and isinstance(value, list):
                open_ += [(part, (*path, key, index)) for index, part in enumerate(value)]
            elif key in MAP_KEYWORDS and isinstance(value, dict):
                open_ += [(part, (*path, key, name)) for name, part in value.items()]
