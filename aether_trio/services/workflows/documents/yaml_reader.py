"""Reads YAML as JSON trees with the position of every value.

The rules are those of YAML 1.2's core schema: `on`, `yes` and dates are texts, `0o17` is a number.
Keys are texts, whatever they look like, and none is there twice. There are no tags but the core's,
and no merge keys. The tree is built of the parser's events, so depth, size and what aliases expand
to are bounded before there is a value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import yaml

from aether_trio.model.templates.placeholders import resolve_plain
from aether_trio.model.text import escaped
from aether_trio.model.workflows.definition import Json, Path
from aether_trio.model.workflows.reading import MAX_DEPTH, quoted

MAX_BYTES: Final = 1 << 20
MAX_VALUES: Final = 100_000
"""Values of one text, with what aliases repeat."""
MAX_DOCUMENTS: Final = 1_000

_PARSER: Final[Any] = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_UNPRINTABLE: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BREAK: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_TAGS: Final = "tag:yaml.org,2002:"

ScalarHook = Callable[[str, bool], Json]


class YamlError(ValueError):
    """A text is no YAML of ours; `line` and `column` count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(f"{line}:{column}: {message}")
        self.message = message
        self.line = line
        self.column = column


class Position(NamedTuple):
    """A place in a text; both count from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a value is, and where its parts are."""

    start: Position
    end: Position
    style: str = ""  # of a scalar: "", ', ", | or >
    text: str = ""  # of a scalar
    parts: dict[str, Mark] | list[Mark] | None = None
    keys: dict[str, Position] | None = None


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """A document of a text, with its positions."""

    tree: Json
    mark: Mark
    lines: list[str]

    def position(self, path: Path, *, of_key: bool = False, line: int = 0, column: int = 0) -> Position:
        """Return where a path of the tree is, or as much of it as there is.

        `of_key`: where its key is. `line` and `column`: a place within the scalar's text.
        """
        mark = self.mark
        found = mark.start
        for index, part in enumerate(path):
            parts = mark.parts
            last = index == len(path) - 1
            if isinstance(parts, dict) and isinstance(part, str) and part in parts:
                if mark.keys is not None and last and of_key:
                    return mark.keys[part]
                mark = parts[part]
            elif isinstance(parts, list) and isinstance(part, int) and 0 <= part < len(parts):
                mark = parts[part]
            else:
                return found
            found = mark.start
        return self._within(mark, line, column) if line else found

    def _within(self, mark: Mark, line: int, column: int) -> Position:
        """Return where a place in a scalar's text is, or where the scalar begins."""
        texts = mark.text.split("\n")
        if line > len(texts):
            return mark.start
        if mark.style == "|":
            number = mark.start.line + line  # the text begins in the line after the mark
            if number <= len(self.lines) and self.lines[number - 1].endswith(texts[line - 1]):
                return Position(number, len(self.lines[number - 1]) - len(texts[line - 1]) + column)
            return mark.start
        quotes = 1 if mark.style in {"'", '"'} else 0
        if mark.start.line == mark.end.line and mark.end.column - mark.start.column - 2 * quotes == len(mark.text):
            return Position(mark.start.line, mark.start.column + quotes + column - 1)
        return mark.start


@dataclass(slots=True)
class _Frame:
    """A collection that is being read."""

    mark: Position
    anchor: str | None
    tree: Any
    parts: Any
    keys: dict[str, Position] | None
    key: str | None = None
    size: int = 1


class _TreeBuilder:
    """Builds documents of the events of one text."""

    __slots__ = ("anchors", "frames", "hook", "lines", "open", "size")

    def __init__(self, text: str, hook: ScalarHook | None) -> None:
        self.lines = _BREAK.split(text)
        self.hook = hook
        self.frames: list[_Frame] = []
        self.anchors: dict[str, tuple[Json, Mark, int]] = {}
        self.open: set[str] = set()
        self.size = 0

    def documents(self, events: Iterator[Any]) -> Iterator[YamlDocument]:
        """Yield the documents that are not empty. Raises YamlError, and yaml.YAMLError."""
        count = 0
        for event in events:
            kind = type(event)
            done: tuple[Json, Mark] | None = None
            if kind is yaml.ScalarEvent:
                done = self._scalar(event)
            elif kind is yaml.AliasEvent:
                done = self._alias(event)
            elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                self._begin(event, is_map=kind is yaml.MappingStartEvent)
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                done = self._end(event)
            elif kind is yaml.DocumentStartEvent:
                count += 1
                if count > MAX_DOCUMENTS:
                    raise self._error(event, f"there are more than {MAX_DOCUMENTS} documents")
                self.anchors.clear()
            if done is not None and not self.frames:
                tree, mark = done
                if tree is not None:
                    yield YamlDocument(tree, mark, self.lines)

    def _error(self, event: Any, message: str) -> YamlError:
        return YamlError(message, *_position(event.start_mark))

    def _count(self, event: Any, size: int) -> None:
        self.size += size
        if self.size > MAX_VALUES:
            raise self._error(event, f"there are more than {MAX_VALUES} values, with what aliases repeat")

    def _begin(self, event: Any, *, is_map: bool) -> None:
        expected = "map" if is_map else "seq"
        if event.tag not in {None, "!", f"{_TAGS}{expected}"}:
            raise self._error(event, f"the tag {quoted(_tag(event.tag))} is not one of JSON's types")
        self._no_key(event)
        if len(self.frames) >= MAX_DEPTH:
            raise self._error(event, f"the document is nested deeper than {MAX_DEPTH} levels")
        self._count(event, 1)
        if event.anchor is not None:
            self.open.add(event.anchor)
        tree: Any = {} if is_map else []
        parts: Any = {} if is_map else []
        self.frames.append(_Frame(_position(event.start_mark), event.anchor, tree, parts, {} if is_map else None))

    def _end(self, event: Any) -> tuple[Json, Mark]:
        frame = self.frames.pop()
        mark = Mark(frame.mark, _position(event.end_mark), parts=frame.parts, keys=frame.keys)
        if frame.anchor is not None:
            self.open.discard(frame.anchor)
            self.anchors[frame.anchor] = (frame.tree, mark, frame.size)
        self._put(frame.tree, mark, frame.size)
        return frame.tree, mark

    def _alias(self, event: Any) -> tuple[Json, Mark]:
        name = event.anchor
        self._no_key(event)
        if name in self.open:
            raise self._error(event, f"the alias *{escaped(name, 80)} is within what it stands for")
        if name not in self.anchors:
            raise self._error(event, f"there is no anchor &{escaped(name, 80)} before this alias")
        tree, mark, size = self.anchors[name]
        self._count(event, size)
        self._put(tree, mark, size)
        return tree, mark

    def _no_key(self, event: Any) -> None:
        frame = self.frames[-1] if self.frames else None
        if frame is not None and frame.keys is not None and frame.key is None:
            raise self._error(event, "a key has to be a text")

    def _scalar(self, event: Any) -> tuple[Json, Mark] | None:
        self._count(event, 1)
        start = _position(event.start_mark)
        frame = self.frames[-1] if self.frames else None
        if frame is not None and frame.keys is not None and frame.key is None:
            self._key(event, frame, start)
            return None
        value = self._value(event)
        mark = Mark(start, _position(event.end_mark), event.style or "", event.value)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, mark, 1)
        self._put(value, mark, 1)
        return value, mark

    def _key(self, event: Any, frame: _Frame, start: Position) -> None:
        assert frame.keys is not None
        key = event.value
        if self.hook is not None:
            key = str(self.hook(key, False))
        if event.tag not in {None, "!", f"{_TAGS}str"}:
            raise self._error(event, f"the tag {quoted(_tag(event.tag))} cannot be at a key: keys are texts")
        if event.anchor is not None:
            raise self._error(event, "an anchor cannot be at a key")
        if key == "" and not event.style:
            raise self._error(event, "a key is empty")
        if key == "<<" and not event.style:
            raise self._error(event, "'<<' merges maps in YAML 1.1 only: write the keys themselves")
        if key in frame.keys:
            raise self._error(event, f"the key {quoted(key)} is there twice: also in line {frame.keys[key].line}")
        frame.keys[key] = start
        frame.key = key

    def _put(self, value: Json, mark: Mark, size: int) -> None:
        if not self.frames:
            return
        frame = self.frames[-1]
        frame.size += size
        if frame.keys is None:
            frame.tree.append(value)
            frame.parts.append(mark)
        else:
            frame.tree[frame.key] = value
            frame.parts[frame.key] = mark
            frame.key = None

    def _value(self, event: Any) -> Json:
        text, tag = event.value, event.tag
        plain = not event.style and tag is None
        if self.hook is not None:
            hooked = self.hook(text, plain)
            if not isinstance(hooked, str) or hooked != text:
                return hooked
        if tag in {"!", f"{_TAGS}str"} or (tag is None and not plain):
            return text
        value = resolve_plain(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise self._error(event, f"{quoted(text)} is not a number of JSON; quotes make a text of it")
        if tag is None:
            return value
        wanted: dict[str, tuple[type, ...]] = {
            "int": (int,),
            "float": (int, float),
            "bool": (bool,),
            "null": (type(None),),
        }
        name = _tag(tag)
        if not tag.startswith(_TAGS) or tag.removeprefix(_TAGS) not in wanted:
            raise self._error(event, f"the tag {quoted(name)} is not one of JSON's types")
        types = wanted[tag.removeprefix(_TAGS)]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise self._error(event, f"{quoted(text)} is not what its tag {quoted(name)} says")
        return float(value) if tag.endswith(":float") and isinstance(value, int) else value


def _tag(tag: str) -> str:
    return f"!!{tag.removeprefix(_TAGS)}" if tag.startswith(_TAGS) else tag


def _position(mark: Any) -> Position:
    return Position(mark.line + 1, mark.column + 1)


def read_yaml_documents(text: str, hook: ScalarHook | None = None) -> Iterator[YamlDocument]:
    """Yield the documents of a text that are not empty. Raises YamlError.

    `hook` is asked for the value of each scalar, with whether it is plain; if it gives the text
    back, the scalar has the value that YAML gives it. Of a key it is asked, too: keys are texts.
    """
    _check_text(text)
    reader = _TreeBuilder(text, hook)
    loader = _PARSER(text)
    try:
        yield from reader.documents(_events(loader))
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        message = " ".join(one for one in (exc.context, exc.problem) if one) or "it is not YAML"
        hint = _hint(message, reader.lines, mark.line) if mark is not None else ""
        place = _position(mark) if mark is not None else Position(1, 1)
        if "end of stream" in message and exc.context_mark is not None:
            began = _position(exc.context_mark)
            hint = f": what begins at {began.line}:{began.column} has no end"
        raise YamlError(f"{escaped(message, 200)}{hint}", *place) from None
    except yaml.YAMLError as exc:
        raise YamlError(escaped(" ".join(str(exc).split()), 200), 1, 1) from None
    except RecursionError:
        raise YamlError("it is nested too deep", 1, 1) from None
    finally:
        loader.dispose()


def _events(loader: Any) -> Iterator[Any]:
    while loader.check_event():
        yield loader.get_event()


def _hint(message: str, lines: list[str], line: int) -> str:
    near = lines[line] if 0 <= line < len(lines) else ""
    if "\t" in near[: len(near) - len(near.lstrip())]:
        return ": the line begins with a tab; indent with spaces"
    if "mapping values are not allowed" in message:
        return ": a text with ': ' needs quotes"
    if "parsing a flow" in message:
        return ": a text with brackets, braces or commas needs quotes there"
    return ""


def _check_text(text: str) -> None:
    size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
    if size > MAX_BYTES:
        raise YamlError(f"it has {size} bytes; at most {MAX_BYTES} are allowed", 1, 1)
    odd = _UNPRINTABLE.search(text, 1 if text.startswith("\ufeff") else 0)
    if odd is not None:
        before = _BREAK.split(text[: odd.start()])
        raise YamlError(
            f"the character U+{ord(odd[0]):04X} is not allowed in YAML; in double quotes it can be escaped",
            len(before),
            len(before[-1]) + 1,
        )


def read_yaml(text: str, hook: ScalarHook) -> Json:
    """Return the tree of a text with one document, None for none.

    Raises YamlError."""
    found = list(read_yaml_documents(text, hook))
    if len(found) > 1:
        raise YamlError("there is more than one document", *found[1].mark.start)
    return found[0].tree if found else None
