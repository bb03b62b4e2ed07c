"""Topics: parses where a message goes, and rewrites aliases of topics.

Reference: core.md section 3. A topic is a prefix and one to three parts joined with "::", which
obey the rules of identity parts. The reference accepts and loses a message to a wrong number of
parts; here a topic that no receiver can ever own is refused with ERR_INVALID_TOPIC and the expected
shape.

Three spellings are aliases, which are replaced before the topic is read (`rewrite_alias`):

* `event::*`, `event::` and `event::{ws}` mean `event::receiver0`, on behalf of the sender's or the
  named workspace; `metric` likewise.
* `event::receiver0` stays as it is, on behalf of the sender's workspace. (The reference declares no
  workspace then, which lets a client that spells it out pass the check on foreign workspaces.) A
  workspace called "receiver" and digits therefore cannot be named here.
* `ta::{ws}::{impl}::`, without a last part, is what the SDK sends to a class of tasks; it means
  `tb::{ws}::{impl}`.

CACHE_SIZE valid topics are remembered (4 MiB): one seen before costs 0.1 µs, a new one about 3 µs.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple

from aether_trio.model.errors import Code, RequestError
from aether_trio.model.identity import SEPARATOR, IdentityError, check_token

MAX_TOPIC_BYTES: Final = 256
CACHE_SIZE: Final = 4096  # more than a busy gateway's working set, and still small


class TopicKind(enum.StrEnum):
    """The kind of a topic, named by the topic's prefix."""

    AGENT = "ag"
    UNIQUE_TASK = "tu"
    TASK = "ta"
    TASK_CLASS = "tb"
    USER_WINDOW = "us"
    USER_IN_WORKSPACE = "uw"
    USER_EVERYWHERE = "uu"
    ALL_AGENTS = "ga"
    ALL_USERS = "gu"
    PROGRESS = "pg"
    TASK_TOPIC = "tk"
    EVENT = "event"
    METRIC = "metric"
    BRIDGE = "br"
    SERVICE = "sv"


class Topic(NamedTuple):
    """A valid topic: the parts after its prefix, and the workspace access rules check."""

    kind: TopicKind
    text: str
    parts: tuple[str, ...]
    workspace: str

    def __str__(self) -> str:
        return self.text


class Target(NamedTuple):
    """The topic of a client's message; the workspace that an event or metric names."""

    topic: Topic
    declared_workspace: str


EVENT_INTAKE: Final = "event::receiver0"
METRIC_INTAKE: Final = "metric::receiver0"
TASK_TOPICS: Final = ("events", "msg", "input")

_KINDS: Final[Mapping[str, TopicKind]] = MappingProxyType({kind.value: kind for kind in TopicKind})

_IN_WORKSPACE: Final = (("workspace", "implementation", "specifier"),)
_SHAPES: Final[Mapping[TopicKind, tuple[tuple[str, ...], ...]]] = MappingProxyType(
    {
        TopicKind.AGENT: _IN_WORKSPACE,
        TopicKind.UNIQUE_TASK: _IN_WORKSPACE,
        TopicKind.TASK: _IN_WORKSPACE,
        TopicKind.TASK_CLASS: (("workspace", "implementation"),),
        TopicKind.USER_WINDOW: (("user id", "window id"),),
        TopicKind.USER_IN_WORKSPACE: (("user id", "workspace"),),
        TopicKind.USER_EVERYWHERE: (("user id",),),
        TopicKind.ALL_AGENTS: (("workspace",),),
        TopicKind.ALL_USERS: (("workspace",),),
        TopicKind.PROGRESS: (("workspace",), ("=us", "user id")),
        TopicKind.TASK_TOPIC: tuple(("workspace", "task id", f"={kind}") for kind in TASK_TOPICS),
        TopicKind.EVENT: (("=receiver0",),),
        TopicKind.METRIC: (("=receiver0",),),
        TopicKind.BRIDGE: (("implementation", "specifier"),),
        TopicKind.SERVICE: (("implementation",), ("implementation", "specifier")),
    }
)
"""The shapes of each kind, after the prefix. "=word" stands for itself, everything else names a
part."""

_LAST_OF_IDENTITY: Final = ("specifier", "window id")
"""The parts that are last in the identity they belong to, wherever the topic has them: only these
may end with ":"."""

_RECEIVER: Final = re.compile(r"receiver[0-9]+")


def parse_topic(text: str, strict: bool = True) -> Topic:
    """Parse a topic that is no alias; RequestError if invalid (see check_token)."""
    if len(text) > MAX_TOPIC_BYTES:  # at least as many bytes; do not hash or remember a huge text
        raise _invalid(text, f"the topic is longer than {MAX_TOPIC_BYTES} bytes")
    return _parse(text, strict)


def resolve_target(text: str, sender_workspace: str, strict: bool = True) -> Target:
    """Parse a message's topic or alias; remembered. Raises RequestError."""
    if len(text) > MAX_TOPIC_BYTES:
        raise _invalid(text, f"the topic is longer than {MAX_TOPIC_BYTES} bytes")
    return _resolve(text, sender_workspace, strict)


def rewrite_alias(text: str, sender_workspace: str, strict: bool = True) -> tuple[str, str]:
    """Replace a topic alias by its topic; return any other text as it is.

    Returns the topic's text and the declared workspace: the one that an event or a metric is sent
    on behalf of, whose rules apply when it differs from the sender's. It is "" for other topics,
    and when a sender without a workspace names none. Raises RequestError(ERR_INVALID_TOPIC) for an
    alias that names an impossible workspace.
    """
    prefix, separator, rest = text.partition(SEPARATOR)
    if not separator:
        return text, ""
    if prefix in ("event", "metric"):
        if rest in ("", "*"):
            return f"{prefix}::receiver0", sender_workspace
        if _RECEIVER.fullmatch(rest):
            return text, sender_workspace
        try:
            return f"{prefix}::receiver0", check_token(rest, "workspace", strict=strict)
        except IdentityError as error:
            raise _invalid(text, str(error)) from None
    if prefix == "ta" and text.endswith(SEPARATOR) and rest.count(SEPARATOR) == 2:
        return f"tb::{rest.removesuffix(SEPARATOR)}", ""
    return text, ""


def agents_of(workspace: str) -> str:
    """Return the topic of all agents of a workspace."""
    return f"ga::{workspace}"


def users_of(workspace: str) -> str:
    """Return the topic of all user windows that are switched to a workspace."""
    return f"gu::{workspace}"


def user_in(user_id: str, workspace: str) -> str:
    """Return the topic of a user's windows that are switched to a workspace."""
    return f"uw::{user_id}::{workspace}"


def user_everywhere(user_id: str) -> str:
    """Return the topic of all windows of a user."""
    return f"uu::{user_id}"


def progress_of(workspace: str) -> str:
    """Return the topic of progress reports of a workspace."""
    return f"pg::{workspace}"


def progress_of_user(user_id: str) -> str:
    """Return the topic of progress reports that concern a user, in all workspaces."""
    return f"pg::us::{user_id}"


def workers_of(workspace: str, implementation: str) -> str:
    """Return the topic of the non-unique tasks (workers) of one implementation."""
    return f"tb::{workspace}::{implementation}"


def task_topic(workspace: str, task_id: str, kind: str) -> str:
    """Return a topic of one task; `kind` is "events", "msg" or "input"."""
    assert kind in TASK_TOPICS
    return f"tk::{workspace}::{task_id}::{kind}"


def any_service(implementation: str) -> str:
    """Return the topic for any live instance of a service."""
    return f"sv::{implementation}"


@lru_cache(maxsize=CACHE_SIZE)
def _resolve(text: str, sender_workspace: str, strict: bool) -> Target:
    rewritten, declared = rewrite_alias(text, sender_workspace, strict)
    return Target(_parse(rewritten, strict), declared)


@lru_cache(maxsize=CACHE_SIZE)
def _parse(text: str, strict: bool) -> Topic:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise _invalid(text, "the topic has a lone surrogate and cannot be written as UTF-8") from None
    if size > MAX_TOPIC_BYTES:
        raise _invalid(text, f"the topic is {size} bytes long; at most {MAX_TOPIC_BYTES} are allowed")
    prefix, *values = text.split(SEPARATOR)
    kind = _KINDS.get(prefix)
    if kind is None or not values:
        raise _invalid(text, f'a topic must begin with one of {", ".join(_KINDS)}, then "::"')
    for shape in _SHAPES[kind]:
        if _fits(shape, values):
            break
    else:
        raise _invalid(text, f"expected {' or '.join(_describe(kind, shape) for shape in _SHAPES[kind])}")
    workspace = ""
    try:
        for name, value in zip(shape, values, strict=True):
            if name.startswith("="):
                continue
            check_token(value, name, last=name in _LAST_OF_IDENTITY, strict=strict)
            if name == "workspace":
                workspace = value
    except IdentityError as error:
        raise _invalid(text, str(error)) from None
    return Topic(kind, text, tuple(values), workspace)


def _fits(shape: tuple[str, ...], values: list[str]) -> bool:
    return len(shape) == len(values) and all(
        name == f"={value}" for name, value in zip(shape, values, strict=True) if name.startswith("=")
    )


def _describe(kind: TopicKind, shape: tuple[str, ...]) -> str:
    return SEPARATOR.join([kind.value, *(name[1:] if name.startswith("=") else f"{{{name}}}" for name in shape)])


def _invalid(text: str, why: str) -> RequestError:
    shown = text if len(text) <= MAX_TOPIC_BYTES else f"{text[:MAX_TOPIC_BYTES]}..."
    return RequestError(Code.INVALID_TOPIC, f"{shown!r} is not a topic: {why}")
