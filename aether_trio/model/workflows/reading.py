"""Reads the fields of a document, and collects all that is wrong with it.

A place in a document is its path: keys and indexes from the root. What is found is sorted in
errors, which refuse the document, warnings, and ignored keys, which an answer to an operation
names.
"""

from __future__ import annotations

import difflib
import functools
import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from aether_trio.model.identity import IdentityError, check_token
from aether_trio.model.text import TextError, check_text, escaped
from aether_trio.model.workflows.definition import Json, Path

MAX_PROBLEMS: Final = 100
"""Further errors of a document are counted only."""
MAX_MESSAGE: Final = 600
MAX_DEPTH: Final = 64
MAX_NODES: Final = 200_000
MAX_NAME_BYTES: Final = 128
MAX_TEXT_BYTES: Final = 16 * 1024
MAX_INTEGER: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at a place of a document.

    `of_key`: the key is meant, not its value. `line` and `column` count from 1 within the text
    there; 0 for the whole of it.
    """

    path: Path
    message: str
    of_key: bool = False
    line: int = 0
    column: int = 0

    def text(self) -> str:
        """Return the message on one line, without characters that a terminal obeys."""
        return escaped(self.message, MAX_MESSAGE)


class DefinitionErrors(ValueError):
    """Documents are wrong: `problems` has a line for each error, with its place."""

    def __init__(self, problems: Iterable[str], warnings: Iterable[str] = ()) -> None:
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        super().__init__("\n".join(self.problems))


@dataclass(slots=True)
class Findings:
    """What was found in a document; if `strict`, an unknown key is an error."""

    strict: bool = True
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    more: int = 0

    @property
    def count(self) -> int:
        """Return how many errors there are."""
        return len(self.errors) + self.more

    def error(self, path: Path, message: str, *, of_key: bool = False, line: int = 0, column: int = 0) -> None:
        """Note an error."""
        if len(self.errors) >= MAX_PROBLEMS:
            self.more += 1
            return
        self.errors.append(Problem(path, message, of_key, line, column))

    def warn(self, path: Path, message: str) -> None:
        """Note a warning."""
        if len(self.warnings) < MAX_PROBLEMS:
            self.warnings.append(Problem(path, message))

    def unknown(self, path: Path, key: str, known: Iterable[str], what: str) -> None:
        """Note a key that `what` does not have."""
        if not self.strict:
            if len(self.ignored) < MAX_PROBLEMS:
                self.ignored.append((*path, key))
            return
        self.error((*path, key), f"{what} has no key {quoted(key)}{self.hint(key, known)}", of_key=True)

    def hint(self, name: str, known: Iterable[str]) -> str:
        """Return `did_you_mean`, unless further errors are counted only."""
        return "" if len(self.errors) >= MAX_PROBLEMS else did_you_mean(name, known)


def quoted(name: object) -> str:
    """Return a name as messages quote it."""
    return f"'{escaped(str(name), 80)}'"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ": did you mean 'x'?", or the known names, or ""."""
    names = list(known)
    wanted = name[:MAX_NAME_BYTES]
    # Pairs of letters tell which few names are worth the comparison, which is slow.
    pairs = _pairs(wanted)
    nearest = heapq.nlargest(4, names, key=lambda one: _alike(pairs, _pairs(one[:MAX_NAME_BYTES])))
    near = difflib.get_close_matches(wanted, nearest, 1)
    if near:
        return f": did you mean {quoted(near[0])}?"
    if not names or len(names) > 30:
        return ""
    return f"; known are {', '.join(quoted(one)[1:-1] for one in names)}"


@functools.lru_cache(maxsize=4096)
def _pairs(name: str) -> frozenset[str]:
    text = f"^{fold(name)}$"
    return frozenset(text[place : place + 2] for place in range(len(text) - 1))


def _alike(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / (len(one) + len(other))


def fold(key: str) -> str:
    """Return a key as it is compared across casings: RuleName is rule_name."""
    return key.replace("_", "").lower()


def kind_of(value: Json) -> str:
    """Return what a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a bool"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "a list" if isinstance(value, list) else "a map"


def check_tree(tree: Json, findings: Findings) -> bool:
    """Return whether a tree is bounded JSON that every database keeps.

    At most MAX_DEPTH levels and MAX_NODES values; no zero bytes, lone surrogates, NaN or infinity.
    """
    before = findings.count
    nodes = 0
    open_: list[tuple[Json, Path]] = [(tree, ())]
    while open_:
        value, path = open_.pop()
        nodes += 1
        if nodes > MAX_NODES:
            findings.error((), f"the document has more than {MAX_NODES} values")
            return False
        if isinstance(value, str):
            if problem := _wrong_text(value):
                findings.error(path, f"a text has {problem}")
        elif isinstance(value, dict):
            if len(path) >= MAX_DEPTH:
                findings.error(path, f"the document is nested deeper than {MAX_DEPTH} levels")
                continue
            for key, one in value.items():
                if not isinstance(key, str):
                    findings.error(path, f"a key is {kind_of(key)}; keys are texts", of_key=True)
                    continue
                if problem := _wrong_text(key):
                    findings.error(path, f"the key {quoted(key)} has {problem}")
                    continue
                if len(key) > 1024:
                    findings.error(path, f"the key {quoted(key)} has {len(key)} characters; at most 1024 are allowed")
                    continue
                open_.append((one, (*path, key)))
        elif isinstance(value, list):
            if len(path) >= MAX_DEPTH:
                findings.error(path, f"the document is nested deeper than {MAX_DEPTH} levels")
                continue
            open_.extend((one, (*path, index)) for index, one in enumerate(value))
        elif isinstance(value, float) and not math.isfinite(value):
            findings.error(path, f"{value} is not a number of JSON")
        elif value is not None and not isinstance(value, bool | int | float):
            findings.error(path, f"a value of type {type(value).__name__} is not JSON")
        elif isinstance(value, int) and not -MAX_INTEGER - 1 <= value <= MAX_INTEGER:
            findings.error(path, "a whole number has more than 64 bits: write it as a text")
    return findings.count == before


def _wrong_text(text: str) -> str:
    if "\x00" in text:
        return "a zero byte"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return "a lone surrogate, which cannot be written as UTF-8"
    return ""


def any_token(text: str, what: str) -> str:
    """Check a part of an identity or "*"."""
    return text if text == "*" else check_token(text, what, last=True)


def token(text: str, what: str) -> str:
    """Check a part of an identity."""
    return check_token(text, what, last=True)


def name(text: str, what: str) -> str:
    """Check a name: a short text without control characters."""
    return check_text(text, what, MAX_NAME_BYTES)


def prose(text: str, what: str) -> str:
    """Check a text for people."""
    return check_text(text, what, MAX_TEXT_BYTES, lines=True)


Check = Callable[[str, str], str]


class Fields:
    """The fields of a map, read by name. `what` names the map in messages.

    A field that is absent, null or wrong gives the default; what is wrong is noted.
    """

    __slots__ = ("findings", "keys", "no_map", "path", "values", "what")

    def __init__(
        self, value: Json, path: Path, findings: Findings, known: Iterable[str], what: str, *, casings: bool = False
    ) -> None:
        self.findings = findings
        self.path = path
        self.what = what
        self.values: dict[str, Json] = {}
        self.keys: dict[str, str] = {}  # as the document spells them
        names = tuple(known)
        self.no_map = not isinstance(value, dict)  # then no field is missed
        if not isinstance(value, dict):
            findings.error(path, f"{what} has to be a map with keys such as {names[0]}, and is {kind_of(value)}")
            return
        # As Go's encoding/json does for operations: the exact key, else the same in another case.
        folding = fold if casings else str.lower
        folded = {} if findings.strict and not casings else {folding(one): one for one in names}
        exact = set(names)
        for key, one in value.items():
            known_as = key if key in exact else folded.get(folding(key))
            if known_as is None:
                findings.unknown(path, key, names, what)
            elif known_as in self.keys:
                findings.error((*path, key), f"{what} has {quoted(known_as)} twice", of_key=True)
            else:
                self.keys[known_as] = key
                if one is not None:
                    self.values[known_as] = one

    def at(self, key: str) -> Path:
        """Return the path of a field, or of the map if the field is absent."""
        return (*self.path, self.keys[key]) if key in self.keys else self.path

    def has(self, key: str) -> bool:
        """Return whether a field is there and not null."""
        return key in self.values

    def get(self, key: str) -> Json:
        """Return a field as it is, None if it is absent."""
        return self.values.get(key)

    def error(self, key: str, message: str) -> None:
        """Note an error of a field."""
        self.findings.error(self.at(key), message)

    def _wrong(self, key: str, wanted: str) -> None:
        self.error(key, f"{self.what}: {key} has to be {wanted}, and is {kind_of(self.values[key])}")

    def text(self, key: str, default: str = "", *, check: Check = name, required: bool = False) -> str:
        """Return a text; a number where a text is wanted is an error."""
        value = self.values.get(key)
        if value is None or value == "":
            if required and not self.no_map:
                self.findings.error(self.at(key), f"{self.what} has no {key}")
            return default
        if not isinstance(value, str):
            hint = "; quotes make a text of it" if isinstance(value, bool | int | float) else ""
            self.error(key, f"{self.what}: {key} has to be a text, and is {kind_of(value)}{hint}")
            return default
        try:
            return check(value, f"{self.what}: {key}")
        except (IdentityError, TextError) as exc:
            self.error(key, str(exc))
            return default

    def flag(self, key: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self._wrong(key, "true or false")
            return default
        return value

    def whole(self, key: str, default: int = 0, *, least: int = 0, most: int = 1_000_000) -> int:
        """Return a whole number within bounds; 3.0 is one."""
        value = self.values.get(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            wanted = "a whole number"
            if isinstance(value, float):
                self.error(key, f"{self.what}: {key} has to be {wanted}, and is {value}")
            else:
                self._wrong(key, wanted)
            return default
        if not least <= value <= most:
            self.error(key, f"{self.what}: {key} is {value}; it has to be at least {least} and at most {most}")
            return default
        return value

    def number(self, key: str, default: float = 0.0, *, least: float = 0.0, most: float = 1e15) -> float:
        """Return a number within bounds."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong(key, "a number")
            return default
        if not least <= value <= most:
            self.error(key, f"{self.what}: {key} is {value}; it has to be at least {least:g} and at most {most:g}")
            return default
        return float(value)

    def choice(self, key: str, choices: Iterable[str], default: str = "") -> str:
        """Return one of several words."""
        value = self.values.get(key, default)
        if isinstance(value, str) and value in {"", default}:
            return default
        words = tuple(choices)
        if not isinstance(value, str):
            self._wrong(key, f"one of {', '.join(words)}")
            return default
        if value not in words:
            self.error(key, f"{self.what}: {key} is {quoted(value)}; it has to be one of {', '.join(words)}")
            return default
        return value

    def texts(self, key: str, *, check: Check = name, most: int = 1_000) -> list[tuple[str, Path]]:
        """Return a list of texts with their paths; one text stands for a list of it."""
        value = self.values.get(key)
        if value is None:
            return []
        if isinstance(value, str):
            value = [value]
            paths = [self.at(key)]
        elif isinstance(value, list):
            paths = [(*self.at(key), index) for index in range(len(value))]
        else:
            self._wrong(key, "a list of texts")
            return []
        if len(value) > most:
            self.error(key, f"{self.what}: {key} has {len(value)} entries; at most {most} are allowed")
            return []
        found = []
        for one, path in zip(value, paths, strict=True):
            if not isinstance(one, str) or not one:
                wrong = "an empty text" if one == "" else kind_of(one)
                self.findings.error(path, f"{self.what}: an entry of {key} has to be a text, and is {wrong}")
                continue
            try:
                found.append((check(one, f"{self.what}: an entry of {key}"), path))
            except (IdentityError, TextError) as exc:
                self.findings.error(path, str(exc))
        return found

    def entries(self, key: str, *, most: int, what: str = "") -> Iterator[tuple[Json, Path]]:
        """Yield the entries of a list with their paths."""
        value = self.values.get(key)
        if value is None:
            return
        if not isinstance(value, list):
            self._wrong(key, "a list")
            return
        if len(value) > most:
            self.error(key, f"{self.what} has {len(value)} {what or f'entries of {key}'}; at most {most} are allowed")
            return
        for index, one in enumerate(value):
            yield one, (*self.at(key), index)

    def mapping(self, key: str, *, most: int = 1_000) -> Iterator[tuple[str, Json, Path]]:
        """Yield the keys and values of a map with their paths."""
        value = self.values.get(key)
        if value is None:
            return
        if not isinstance(value, dict):
            self._wrong(key, "a map")
            return
        if len(value) > most:
            self.error(key, f"{self.what}: {key} has {len(value)} entries; at most {most} are allowed")
            return
        for name_, one in value.items():
            yield name_, one, (*self.at(key), name_)

    def exclusive(self, keys: Iterable[str]) -> list[str]:
        """Return which of several fields are there."""
        return [key for key in keys if key in self.values]


def at_path(tree: Json, path: Path) -> Json:
    """Return what is at a path of a tree; None if there is nothing."""
    for part in path:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def parse_json(text: str | bytes) -> Json:
    """Return the tree of a JSON text. Raises a ValueError that says what is wrong.

    A key that is there twice, NaN and infinity are refused.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels") from None
    except UnicodeDecodeError as exc:
        raise ValueError(f"it is not UTF-8: {exc.reason} at byte {exc.start}") from None


def _once(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {quoted(key)} is there twice")
            seen.add(key)
    return result


def _no_constant(text: str) -> Json:
    raise ValueError(f"{text} is not JSON")


def pointer(path: Path) -> str:
    """Return a path as a JSON pointer, "/" for the whole: "/steps/1/depends_on/0"."""
    return "".join(f"/{escaped(str(part).replace('~', '~0').replace('/', '~1'), 80)}" for part in path) or "/"
