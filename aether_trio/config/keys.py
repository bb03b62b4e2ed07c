"""Derives the known keys of the settings from their types, and checks values.

A key is a leaf of the tree: `grpc.drain_deadline_s`. Each knows its type, default and text, so that
loading, `aether config` and the error messages never disagree about what exists.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, Final

import msgspec

from aether_trio.config.settings import Settings
from aether_trio.model.limits import Limits

SEPARATOR: Final = "."


class SettingsError(ValueError):
    """The settings cannot be used; `problems` has one line for each mistake."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its path, type, default and description."""

    path: tuple[str, ...]
    type: Any
    default: Any
    description: str

    @property
    def name(self) -> str:
        return SEPARATOR.join(self.path)

    @property
    def environment(self) -> str:
        """The environment variable that always sets this key."""
        return "AETHER_" + "__".join(self.path).upper()

    @property
    def takes_text(self) -> bool:
        """Whether any string is a legal value, so `12345` in the environment stays text."""
        return str in _alternatives(self.type)

    @property
    def is_secret(self) -> bool:
        """Whether the setting's value may hold a credential, which is hidden by default."""
        return self.path[-1].endswith("token") or self.name == "storage.database"

    @property
    def is_switch(self) -> bool:
        return _bare(self.type) is bool

    @property
    def is_text_list(self) -> bool:
        """Whether the setting is a list of texts, also given as one text with commas."""
        return _is_text_list(_bare(self.type))

    @property
    def optional(self) -> bool:
        return NoneType in _alternatives(self.type)

    @property
    def expected(self) -> str:
        """The values that the setting takes, in words, with the unit."""
        alternatives = [one for one in _alternatives(self.type) if one is not NoneType]
        words = " or ".join(_words(one, self.path[-1]) for one in alternatives)
        return words + (" or null" if self.optional else "")

    def check(self, value: Any) -> Any:
        """Convert a value to the setting's type. Raises ValueError with the mistake."""
        if self.is_text_list and isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        try:
            return msgspec.convert(value, self.type)
        except msgspec.ValidationError as exc:
            raise ValueError(str(exc)) from None


def _bare(annotation: Any) -> Any:
    return annotation.__origin__ if typing.get_origin(annotation) is Annotated else annotation


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    bare = _bare(annotation)
    origin = typing.get_origin(bare)
    if origin is typing.Literal or origin not in {typing.Union, type(int | str)}:
        return (bare,)
    return tuple(_bare(one) for one in typing.get_args(bare))


def _is_text_list(kind: Any) -> bool:
    if typing.get_origin(kind) is not tuple:
        return False
    item = _bare(typing.get_args(kind)[0])
    return item is str or typing.get_origin(item) is typing.Literal


_NUMBER_UNITS: Final = (
    ("_per_s", "per second"),
    ("_ms", "milliseconds"),
    ("_us", "microseconds"),
    ("_bytes", "bytes"),
    ("_s", "seconds"),
)


def _words(kind: Any, name: str) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(str(one) for one in typing.get_args(kind))
    if kind is bool:
        return "true or false"
    if kind in {int, float}:
        unit = next((text for suffix, text in _NUMBER_UNITS if name.endswith(suffix)), "")
        number = "a whole number" if kind is int else "a number"
        if unit == "per second":
            return f"{number} per second"
        return f"{number} of {unit}" if unit else number
    if kind is str:
        return "text"
    if _is_text_list(kind):
        item = typing.get_args(kind)[0]
        each = "" if item is str else f", each {_words(item, name)}"
        return f"a list of texts, or one text with commas between them{each}"
    return "a list of records" if typing.get_origin(kind) is tuple else "a record"


def _fields(section: type) -> Iterator[tuple[str, Any, Any]]:
    hints = typing.get_type_hints(section, include_extras=True)
    if dataclasses.is_dataclass(section):
        for one in dataclasses.fields(section):
            yield one.name, hints[one.name], one.default
    else:
        for field in msgspec.structs.fields(section):
            yield field.name, hints[field.name], field.default


def _is_section(annotation: Any) -> bool:
    bare = _bare(annotation)
    return isinstance(bare, type) and (issubclass(bare, msgspec.Struct) or dataclasses.is_dataclass(bare))


def _description(annotation: Any) -> str:
    for extra in getattr(annotation, "__metadata__", ()):
        if isinstance(extra, msgspec.Meta) and extra.description:
            return extra.description
    return ""


def _walk(section: type, path: tuple[str, ...]) -> Iterator[Key]:
    for name, annotation, default in _fields(section):
        if _is_section(annotation):
            yield from _walk(_bare(annotation), (*path, name))
        else:
            text = LIMIT_TEXTS.get(name, "") if section is Limits else _description(annotation)
            yield Key((*path, name), annotation, default, text)


@functools.cache
def all_keys() -> Mapping[str, Key]:
    """Return every key of the settings by its dotted name, in the settings' order."""
    return {key.name: key for key in _walk(Settings, ())}


@functools.cache
def section_texts() -> Mapping[tuple[str, ...], str]:
    """Return every section of the settings, by its path, with its description."""
    return dict(_sections(Settings, ()))


def _sections(section: type, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, annotation, _ in _fields(section):
        if _is_section(annotation):
            here = (*path, name)
            yield here, _description(annotation)
            yield from _sections(_bare(annotation), here)


def nearest(word: str, known: Mapping[str, Any] | None = None) -> str | None:
    """Return the known key of the settings that resembles `word` most."""
    names = list(all_keys() if known is None else known)
    # Most slips are in the last part or in the section: compare whole names, then last parts.
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return close[0]
    by_leaf = {name.rsplit(SEPARATOR, 1)[-1]: name for name in names}
    leaf = difflib.get_close_matches(word.rsplit(SEPARATOR, 1)[-1], list(by_leaf), n=1, cutoff=0.6)
    if leaf:
        return by_leaf[leaf[0]]
    anything = difflib.get_close_matches(word, names, n=1, cutoff=0.0)
    return anything[0] if anything else None


# The model knows nothing of settings, so its limits are explained here (a test compares them).
LIMIT_TEXTS: Final[Mapping[str, str]] = {
    "payload_bytes": "Payload of one message; beyond it ERR_PAYLOAD_TOO_LARGE. At most 4127744: clients take messages of 4 MiB.",
    "task_payload_bytes": "Payload of a created task; beyond it TASK_PAYLOAD_TOO_LARGE. At most 3144704.",
    "send_rate_per_s": "Messages and progress reports of one connection; 0 is unlimited, as in development mode.",
    "send_burst": "Messages that a connection may send at once before its rate counts.",
    "workspace_rate_per_s": "Messages of one workspace, over all nodes; 0 is unlimited.",
    "identity_rate_per_s": "Messages of one identity; 0 is unlimited (the reference: 100 when quotas are on).",
    "request_rate_per_s": "Requests of one connection (KV, checkpoints, tasks, sessions, ...); 0 is unlimited, as in development mode.",
    "request_burst": "Requests that a connection may make at once before their rate counts.",
    "connections_per_workspace": "Live connections of one workspace; 0 is unlimited.",
    "init_wait_s": "How long a stream may take to say who it is.",
    "init_bytes": "The first message of a client as a whole.",
    "message_wait_s": "A message that has begun must bring 64 KiB, or its end, in so long; else its stream ends.",
    "unfinished_input_bytes": "What messages that are not finished may hold, over all connections; beyond, one is given up.",
    "credentials_per_connection": "Entries of InitConnection.credentials.",
    "credential_bytes": "The value of one credential.",
    "extensions_per_connection": "Extensions that one connection may declare.",
    "extension_uri_bytes": "Length of one extension's URI.",
    "profiles_per_orchestrator": "Launch profiles that one orchestrator serves.",
    "profile_bytes": "Length of a launch profile's name.",
    "agent_registrations": "Registered agent implementations; beyond it ERR_QUOTA_001. 0 is unlimited.",
    "metric_entries": "Entries of one metric message.",
    "metric_metadata_keys": "Metadata keys of one metric message.",
    "kv_key_bytes": "Length of a key.",
    "kv_value_bytes": "Value of one key; beyond it ERR_QUOTA_001.",
    "kv_keys_per_scope": "Keys and members of sets in one namespace of a scope; beyond it ERR_QUOTA_001. 0 is unlimited.",
    "kv_bytes_per_scope": "Keys and values in one namespace of a scope; beyond it ERR_QUOTA_001. 0 is unlimited.",
    "kv_list_page": "Keys per page when the client names no number.",
    "kv_list_page_max": "Keys per page at most, whatever the client asks for.",
    "checkpoint_bytes": "Data of one checkpoint.",
    "checkpoint_bytes_per_identity": "Checkpoints of one identity together; 0 is unlimited.",
    "checkpoint_key_bytes": "Length of a checkpoint's key.",
}
