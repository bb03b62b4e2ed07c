"""Identities of participants: nine kinds, their strings, topics and rules.

Reference: core.md section 2. An identity string is the participant's lock key, its log key and, for
most kinds, its topic, so two identities must never share one. That makes two rules stricter than
the reference's:

* No empty part. The reference tolerates `ag::ws::::x`, whose meaning then depends on its reader.
* A part that is followed by another may not end with ":". Strings are split at the leftmost "::",
  so "a:" joined to "b" gives "a:::b", which reads back as "a" and ":b". A part may *begin* with
  ":", and the last part may end with one: neither can be read in two ways.

Invariants: an `Identity` that exists is valid; `Identity.parse(str(identity)) == identity`; equal
text means equal identity. Everything derived is computed once, when the object is made.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from types import MappingProxyType
from typing import Final

from aether_trio.model.text import shown

SEPARATOR: Final = "::"
MAX_TOKEN_BYTES: Final = 128  # the longest part of an identity, in bytes of UTF-8

_MAX_TEXT_CHARACTERS: Final = 4 * (MAX_TOKEN_BYTES + len(SEPARATOR))
"""No identity is longer: what is, is refused before it is taken apart."""
_FORBIDDEN: Final = re.compile(r"[\x00-\x20\x7f*>]")


class IdentityError(ValueError):
    """A text is no identity or part of one; the message names the broken rule."""


class PrincipalType(enum.IntEnum):
    """The wire's PrincipalType; both kinds of task are TASK."""

    AGENT = 1
    TASK = 2
    USER = 3
    ORCHESTRATOR = 4
    WORKFLOW_ENGINE = 5
    METRICS_BRIDGE = 6
    BRIDGE = 7
    SERVICE = 8

    @property
    def type_name(self) -> str:
        """The name of the type in grants, access rules, tasks and credentials: snake case."""
        return _NAME_OF_TYPE[self]


_NAME_OF_TYPE: Final[Mapping[PrincipalType, str]] = MappingProxyType(
    {kind: kind.name.lower() for kind in PrincipalType}
)


_TYPE_NAMES: Final[Mapping[str, PrincipalType]] = MappingProxyType(
    {kind.type_name: kind for kind in PrincipalType}
    | {
        "unique_task": PrincipalType.TASK,
        "non_unique_task": PrincipalType.TASK,
        "workflowengine": PrincipalType.WORKFLOW_ENGINE,
        "metricsbridge": PrincipalType.METRICS_BRIDGE,
    }
)


def parse_principal_type(name: str) -> PrincipalType:
    """Parse a principal type's name, in any case, or an alias. Raises IdentityError."""
    try:
        return _TYPE_NAMES[name.lower()]
    except KeyError:
        known = ", ".join(kind.type_name for kind in PrincipalType)
        raise IdentityError(f"unknown principal type {shown(name)}; known are {known}") from None


class Kind(enum.StrEnum):
    """The kind of a participant, finer than PrincipalType: two kinds of task differ."""

    AGENT = "agent"
    UNIQUE_TASK = "unique_task"
    TASK = "task"  # a non-unique task: the gateway makes up its last part, so it never collides
    USER = "user"
    ORCHESTRATOR = "orchestrator"
    WORKFLOW_ENGINE = "workflow_engine"
    METRICS_BRIDGE = "metrics_bridge"
    BRIDGE = "bridge"
    SERVICE = "service"

    __hash__ = str.__hash__  # enum's own is a call of Python for each look-up

    @property
    def principal_type(self) -> PrincipalType:
        return _TYPE_OF_KIND[self]

    @property
    def with_article(self) -> str:
        """The kind with its article for sentences: "an agent", "a workflow engine"."""
        article = "an" if self in {Kind.AGENT, Kind.ORCHESTRATOR} else "a"
        return f"{article} {self.value.replace('_', ' ')}"


_TYPE_OF_KIND: Final[Mapping[Kind, PrincipalType]] = MappingProxyType(
    {kind: PrincipalType.TASK if kind is Kind.UNIQUE_TASK else PrincipalType[kind.name] for kind in Kind}
)


@dataclass(frozen=True, slots=True)
class _Form:
    """How an identity is written: prefix, then the (attribute, name) of each part."""

    prefix: str
    parts: tuple[tuple[str, str], ...]
    topic: str | None = None  # a topic that is not the identity string itself; "" for none
    shard: str = ""  # the fixed second part of a singleton


_WORKSPACE: Final = ("workspace", "workspace")
_IMPLEMENTATION: Final = ("implementation", "implementation")
_SPECIFIER: Final = ("specifier", "specifier")
_IN_WORKSPACE: Final = (_WORKSPACE, _IMPLEMENTATION, _SPECIFIER)
_SYSTEM: Final = (_IMPLEMENTATION, _SPECIFIER)

_FORMS: Final[Mapping[Kind, _Form]] = MappingProxyType(
    {
        Kind.AGENT: _Form("ag", _IN_WORKSPACE),
        Kind.UNIQUE_TASK: _Form("tu", _IN_WORKSPACE),
        Kind.TASK: _Form("ta", _IN_WORKSPACE),
        Kind.USER: _Form("us", (("implementation", "user id"), ("specifier", "window id"))),
        Kind.ORCHESTRATOR: _Form("orc", _SYSTEM, topic=""),
        Kind.WORKFLOW_ENGINE: _Form("wfe", (), topic="event::receiver0", shard="shard0"),
        Kind.METRICS_BRIDGE: _Form("metrics", (), topic="metric::receiver0", shard="shard0"),
        Kind.BRIDGE: _Form("br", _SYSTEM),
        Kind.SERVICE: _Form("sv", _SYSTEM),
    }
)
_CHECKS: Final[Mapping[Kind, tuple[tuple[str, str, bool], ...]]] = MappingProxyType(
    {
        kind: tuple((name, f"{kind} {what}", (name, what) == form.parts[-1]) for name, what in form.parts)
        for kind, form in _FORMS.items()
    }
)
"""By kind, of each part of an identity: attribute, name in errors, whether it is the last."""
_UNUSED: Final[Mapping[Kind, tuple[str, ...]]] = MappingProxyType(
    {
        kind: tuple(
            name
            for name in ("workspace", "implementation", "specifier")
            if name not in {used for used, _ in form.parts}
        )
        for kind, form in _FORMS.items()
    }
)
_PLAIN: Final = re.compile(r"[0-9A-Za-z_.@+=/-]{1,128}").fullmatch
"""Most parts are like this, and no rule of `check_token` forbids them."""

_KIND_OF_PREFIX: Final[Mapping[str, Kind]] = MappingProxyType({form.prefix: kind for kind, form in _FORMS.items()})


_SEPARATORS: Final[Mapping[str, int]] = MappingProxyType(
    {form.prefix: 1 if form.shard else len(form.parts) for form in _FORMS.values()}
)


def prefix_of(kind: Kind) -> str:
    """Return the prefix of the identities of a kind: "ag" for agents."""
    return _FORMS[kind].prefix


def has_all_parts(text: str) -> bool:
    """Return whether a text, unchecked, has as many parts as an identity of its kind."""
    return text.count(SEPARATOR) == _SEPARATORS.get(text.partition(SEPARATOR)[0])


def shape_of(prefix: str) -> str | None:
    """Return the shape of a prefix's identities, `ag::{workspace}::...`; else None."""
    kind = _KIND_OF_PREFIX.get(prefix)
    if kind is None:
        return None
    form = _FORMS[kind]
    return SEPARATOR.join([prefix, *(f"{{{what}}}" for _, what in form.parts), *filter(None, [form.shard])])


def check_token(text: str, what: str, *, last: bool = False, strict: bool = True) -> str:
    """Return `text` if it may be a part of an identity or topic; else IdentityError.

    A part has 1-128 bytes of UTF-8 without "*", ">", space, control bytes, DEL or "::"; the `last`
    one may end with ":". `strict=False` is the reference's AETHER_STRICT_IDENTIFIER_CHARSET=false.
    It lifts the rule on characters only (but for the zero byte), because without the other rules
    two identities could share one string. The error names `what`.
    """
    if not text:
        raise IdentityError(f"{what} is empty")
    if not isinstance(text, str):
        raise IdentityError(f"{what} is a text, not {type(text).__name__}")
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        raise IdentityError(f"{what} {shown(text)} has a lone surrogate and cannot be written as UTF-8") from None
    if size > MAX_TOKEN_BYTES:
        raise IdentityError(f"{what} is {size} bytes long; at most {MAX_TOKEN_BYTES} are allowed")
    if SEPARATOR in text:
        raise IdentityError(f'{what} {text!r} contains "::", which separates the parts of an identity')
    if not last and text.endswith(":"):
        raise IdentityError(f'{what} {text!r} ends with ":", which would merge with the "::" that follows it')
    if strict and (found := _FORBIDDEN.search(text)):
        raise IdentityError(f"{what} {text!r} contains {found[0]!r}; '*', '>', space and control bytes are not allowed")
    if "\x00" in text:  # text in PostgreSQL cannot hold it
        raise IdentityError(f"{what} {text!r} contains a zero byte, which is never allowed")
    return text


@dataclass(frozen=True, slots=True)
class Identity:
    """A participant's valid identity, made by a constructor of its kind or parsed.

    Users keep their user id in `implementation` and their window id in `specifier`. `workspace` is
    "" for each kind that has none in its string (a user's current workspace is a fact of the
    session, not of the identity).

    The text of an agent or a task can be longer than the 256 bytes of a topic when its parts are
    long. Such a participant may connect, as in the reference, but no participant can send to it.
    """

    kind: Kind
    workspace: str = ""
    implementation: str = ""
    specifier: str = ""
    strict: InitVar[bool] = True

    text: str = field(init=False, compare=False, repr=False)
    """The identity string: lock key, log key, and the name in credentials and records."""
    topic: str = field(init=False, compare=False, repr=False)
    """The topic this participant owns; "" for orchestrators, which own none."""
    canonical_id: str = field(init=False, compare=False, repr=False)
    """The id in access rules and grants: a user's id, for all windows; else the identity string."""
    type_name: str = field(init=False, compare=False, repr=False)
    """The participant's type in access rules and tasks; "task" for both kinds of task."""

    def __post_init__(self, strict: bool) -> None:
        form = _FORMS[self.kind]
        for name in _UNUSED[self.kind]:
            if getattr(self, name):
                raise IdentityError(f"{self.kind} has no {name}, but {getattr(self, name)!r} was given")
        parts = [form.prefix]
        for name, what, last in _CHECKS[self.kind]:
            part = getattr(self, name)
            if type(part) is str and _PLAIN(part):
                parts.append(part)
            else:
                parts.append(check_token(part, what, last=last, strict=strict))
        if form.shard:
            parts.append(form.shard)
        text = SEPARATOR.join(parts)
        # The class is frozen for others; these are its own, written once.
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "topic", text if form.topic is None else form.topic)
        object.__setattr__(self, "canonical_id", self.implementation if self.kind is Kind.USER else text)
        object.__setattr__(self, "type_name", self.kind.principal_type.type_name)

    def __str__(self) -> str:
        return self.text

    def __hash__(self) -> int:
        # Equal identities have equal texts, and a str remembers its hash.
        return hash(self.text)

    @property
    def wire_type(self) -> PrincipalType:
        """The participant's PrincipalType on the wire."""
        return self.kind.principal_type

    @property
    def user_id(self) -> str:
        """The user id of a user; "" for every other kind."""
        return self.implementation if self.kind is Kind.USER else ""

    @property
    def window_id(self) -> str:
        """The window id of a user; "" for every other kind."""
        return self.specifier if self.kind is Kind.USER else ""

    @classmethod
    def agent(cls, workspace: str, implementation: str, specifier: str, *, strict: bool = True) -> Identity:
        return cls(Kind.AGENT, workspace, implementation, specifier, strict)

    @classmethod
    def unique_task(cls, workspace: str, implementation: str, specifier: str, *, strict: bool = True) -> Identity:
        return cls(Kind.UNIQUE_TASK, workspace, implementation, specifier, strict)

    @classmethod
    def task(cls, workspace: str, implementation: str, uuid: str, *, strict: bool = True) -> Identity:
        """Make the identity of a non-unique task; `uuid` is new for each connection."""
        return cls(Kind.TASK, workspace, implementation, uuid, strict)

    @classmethod
    def user(cls, user_id: str, window_id: str, *, strict: bool = True) -> Identity:
        return cls(Kind.USER, "", user_id, window_id, strict)

    @classmethod
    def orchestrator(cls, implementation: str, specifier: str, *, strict: bool = True) -> Identity:
        """Make an orchestrator's identity; the gateway makes up a missing specifier."""
        return cls(Kind.ORCHESTRATOR, "", implementation, specifier, strict)

    @classmethod
    def workflow_engine(cls) -> Identity:
        """Return the identity of the workflow engine, of which there is one."""
        return cls(Kind.WORKFLOW_ENGINE)

    @classmethod
    def metrics_bridge(cls) -> Identity:
        """Return the identity of the metrics bridge, of which there is one."""
        return cls(Kind.METRICS_BRIDGE)

    @classmethod
    def bridge(cls, implementation: str, specifier: str, *, strict: bool = True) -> Identity:
        return cls(Kind.BRIDGE, "", implementation, specifier, strict)

    @classmethod
    def service(cls, implementation: str, specifier: str, *, strict: bool = True) -> Identity:
        return cls(Kind.SERVICE, "", implementation, specifier, strict)

    @classmethod
    def parse(cls, text: str, *, strict: bool = True) -> Identity:
        """Parse an identity string, the inverse of `str(identity)`. Raises IdentityError."""
        if len(text) > _MAX_TEXT_CHARACTERS:
            raise IdentityError(f"{shown(text)} is not an identity: {len(text)} characters are too many")
        prefix, *values = text.split(SEPARATOR)
        kind = _KIND_OF_PREFIX.get(prefix)
        if kind is None:
            known = ", ".join(_KIND_OF_PREFIX)
            raise IdentityError(f"{shown(text)} is not an identity: it begins with none of {known}")
        form = _FORMS[kind]
        if form.shard:
            if values != [form.shard]:
                raise IdentityError(f"{shown(text)} is not an identity: the only {kind} is {form.prefix}::{form.shard}")
            return cls(kind)
        if len(values) != len(form.parts):
            raise IdentityError(f"{shown(text)} is not an identity: expected {shape_of(prefix)}")
        named = {name: value for (name, _), value in zip(form.parts, values, strict=True)}
        return cls(kind, **named, strict=strict)
