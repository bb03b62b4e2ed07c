"""Which of many rules an event may match, found without a look at the others.

An entry (a rule, a workflow's trigger, an event of a machine, a wait) has an event name, an agent,
a workspace and the equalities of its condition: `input.kind == "order"` is (("input", "kind"),
"order"), and `input.kind in ["a", "b"]` is (("input", "kind"), ("a", "b")). The index is a tree
that divides entries by these:

    (event, agent or *, workspace or *) ─▶ level ─▶ path ─▶ literal ─▶ level ─▶ …

A level with few entries is a list. One with more is divided, each of its entries by that of its
equalities which the fewest others share, so 10,000 rules that differ in one literal each, or in a
pair of literals, are as quick to search as ten. An event walks only along paths that it has itself.

Invariants: `candidates` has every entry whose condition holds, and no entry one of whose equalities
does not. So whether the rest of a condition is evaluated (and may fail) depends on its own
equalities only, not on what else is in the index. Memory is in proportion to the entries; a removed
entry leaves nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeAlias, TypeVar

from aether_trio.model.workflows.definition import Environment, Json, Path

ANY: Final = "*"
"""The agent or workspace of an entry that takes events of all."""
MAX_EQUALITIES: Final = 16
"""How many equalities of an entry are looked at; the condition decides the others."""
MAX_ALTERNATIVES: Final = 16
"""How many literals of an `in` are looked at; the condition decides longer ones."""
UNDIVIDED: Final = 8
"""How many entries a level keeps in a list before it divides them."""

Equality: TypeAlias = tuple[Path, Json]
"""A path into the environment, and the literal that must be there, or a tuple of alternatives."""
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_Token: TypeAlias = str | float | tuple[bool] | None
"""A scalar so that tokens are equal if the language's `==` says so: 5 is 5.0, true is not 1.

Integers above 2**53 have the token of their float: one token for a few values that differ.
"""
_NAN: Final = float("nan")
_Check: TypeAlias = tuple[Path, Collection[_Token]]
_Branch: TypeAlias = tuple[Path, _Token]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events an entry takes, as far as the index knows.

    `agent` and `workspace` are exact or `*` ("" is `*`). Entries with a higher `priority` are
    first. `equalities` must hold for the entry's condition to be true.
    """

    event: str
    agent: str = ANY
    workspace: str = ANY
    equalities: tuple[Equality, ...] = ()
    priority: int = 0


class RuleIndex(Generic[K, V]):
    """Entries by key; the keys of one index can be compared with each other.

    `examined` counts the entries that `candidates` has looked at since the index was made.
    """

    __slots__ = ("_entries", "_events", "examined")

    def __init__(self) -> None:
        self._entries: dict[K, tuple[_IndexedRule[K, V], ...]] = {}
        self._events: dict[str, dict[tuple[str, str], _RuleLevel]] = {}
        self.examined = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[K]:
        return iter(self._entries)

    def has_event(self, event_name: str) -> bool:
        """Return whether any entry takes events of this name."""
        return event_name in self._events

    def add(self, key: K, accepts: EventFilter, value: V) -> None:
        """Add an entry, in the place of one with this key."""
        self.remove(key)
        sources = self._events.setdefault(accepts.event, {})
        source = (accepts.agent or ANY, accepts.workspace or ANY)
        level = sources.get(source)
        if level is None:
            level = sources[source] = _RuleLevel(accepts.event, source)
        entries = tuple(_IndexedRule(key, accepts, value, checks) for checks in _alternatives(_checks(accepts)))
        self._entries[key] = entries
        for entry in entries:
            _insert(entry, level)

    def remove(self, key: K) -> bool:
        """Remove an entry; return whether there was one."""
        entries = self._entries.pop(key, ())
        for entry in entries:
            self._take_out(entry)
        return bool(entries)

    def _take_out(self, entry: _IndexedRule[K, V]) -> None:
        level = entry.level
        assert level is not None
        del level.entries[entry]
        while level.above is not None:
            level.size -= 1
            above = level.above
            if not level.size:
                assert above.tree is not None
                assert level.branch is not None
                above.tree.prune(*level.branch)
                if above.tree.is_empty():
                    above.tree = None
            level = above
        level.size -= 1
        if not level.size:
            sources = self._events[level.event]
            del sources[level.source]
            if not sources:
                del self._events[level.event]

    def candidates(self, event_name: str, agent: str, workspace: str, env: Environment) -> list[V]:
        """Return the entries that the event may match: higher priority first, then by key.

        `env` is what their conditions are evaluated over. Missing members are null.
        """
        sources = self._events.get(event_name)
        if sources is None:
            return []
        levels = [
            level
            for source in {(agent, workspace), (agent, ANY), (ANY, workspace), (ANY, ANY)}
            if (level := sources.get(source)) is not None
        ]
        root = env if type(env) is dict else dict(env)
        found: list[_IndexedRule[K, V]] = []
        while levels:
            level = levels.pop()
            self.examined += len(level.entries)
            for entry in level.entries:
                for path, tokens in entry.checks:
                    if _token(_at(root, path)) not in tokens:
                        break
                else:
                    found.append(entry)
            if level.tree is not None:
                level.tree.collect(root, levels)
        if len(found) > 1:
            found.sort(key=lambda entry: entry.order)
        return [entry.value for entry in found]


class _IndexedRule(Generic[K, V]):
    """An entry, or one alternative of it: what is checked, and which level it is in.

    There may be 100,000: what the cycle collector has to walk along is kept to the least.
    """

    __slots__ = ("checks", "level", "order", "value")

    def __init__(self, key: K, accepts: EventFilter, value: V, checks: tuple[_Check, ...]) -> None:
        self.value = value
        self.order: tuple[int, Any] = (-accepts.priority, key)
        self.checks = checks
        self.level: _RuleLevel | None = None

    def divisible(self, level: _RuleLevel) -> list[_Branch]:
        """Return by what a level may divide this entry: null is any missing path."""
        branches = [(path, next(iter(tokens))) for path, tokens in self.checks if len(tokens) == 1]
        if level.branch is not None:
            chosen = level.chosen()
            branches = [branch for branch in branches if branch not in chosen]
        return [branch for branch in branches if branch[1] is not None]


class _RuleLevel:
    """Entries that some literals have led to, in a list and divided.

    `above` is the level that this one divides, and `branch` the literal that leads here.
    """

    __slots__ = ("above", "branch", "entries", "event", "size", "source", "tree")

    def __init__(
        self, event: str, source: tuple[str, str], above: _RuleLevel | None = None, branch: _Branch | None = None
    ) -> None:
        self.event = event
        self.source = source
        self.above = above
        self.branch = branch
        self.size = 0
        self.entries: dict[_IndexedRule[Any, Any], None] = {}
        self.tree: _PathNode | None = None

    def chosen(self) -> list[_Branch]:
        """Return the literals that lead here."""
        found = []
        level: _RuleLevel | None = self
        while level is not None and level.branch is not None:
            found.append(level.branch)
            level = level.above
        return found


@dataclass(slots=True, eq=False)
class _PathNode:
    """A place of the environment: what lies below it, and levels by the literal in it."""

    members: dict[str | int, _PathNode] = field(default_factory=dict)
    literals: dict[_Token, _RuleLevel] = field(default_factory=dict)

    def is_empty(self) -> bool:
        return not self.members and not self.literals

    def level(self, path: Path, token: _Token) -> _RuleLevel | None:
        """Return the level of a literal, if it is there."""
        node = self
        for part in path:
            below = node.members.get(part)
            if below is None:
                return None
            node = below
        return node.literals.get(token)

    def make_level(self, above: _RuleLevel, branch: _Branch) -> _RuleLevel:
        """Return the level of a literal, made if it is missing."""
        path, token = branch
        node = self
        for part in path:
            below = node.members.get(part)
            if below is None:
                below = node.members[part] = _PathNode()
            node = below
        level = node.literals.get(token)
        if level is None:
            level = node.literals[token] = _RuleLevel(above.event, above.source, above, branch)
        return level

    def prune(self, path: Path, token: _Token) -> None:
        """Remove the level of a literal, and the nodes that only led to it."""
        nodes = [self]
        for part in path:
            nodes.append(nodes[-1].members[part])
        del nodes[-1].literals[token]
        for part in reversed(path):
            if not nodes.pop().is_empty():
                return
            del nodes[-1].members[part]

    def collect(self, root: dict[str, Json], levels: list[_RuleLevel]) -> None:
        """Append the levels whose literals the environment has."""
        nodes: list[tuple[_PathNode, Json]] = [(self, root)]
        while nodes:
            node, value = nodes.pop()
            if node.literals:
                level = node.literals.get(_token(value))
                if level is not None:
                    levels.append(level)
            if node.members:
                nodes.extend(node.below(value))

    def below(self, value: Json) -> Iterator[tuple[_PathNode, Json]]:
        """Yield the members that a value has, walking over the smaller of both."""
        members = self.members
        if type(value) is dict:
            if len(members) <= len(value):
                for part, node in members.items():
                    if part in value:
                        yield node, value[part]
            else:
                for part, inner in value.items():
                    if part in members:
                        yield members[part], inner
        elif type(value) in (list, str):
            items = _items(value)
            if len(members) <= 2 * len(items):
                for part, node in members.items():
                    if type(part) is int and -len(items) <= part < len(items):
                        yield node, items[part]
            else:
                for index, inner in enumerate(items):
                    for part in (index, index - len(items)):
                        if part in members:
                            yield members[part], inner


def _insert(entry: _IndexedRule[Any, Any], level: _RuleLevel) -> None:
    """Add an entry at a level, or below it if the level is full."""
    while True:
        level.size += 1
        divisible = entry.divisible(level)
        if not divisible or (level.tree is None and len(level.entries) < UNDIVIDED):
            level.entries[entry] = None
            entry.level = level
            return
        if level.tree is None:
            _divide(level)
        level = _descend(entry, level, divisible)


def _divide(level: _RuleLevel) -> None:
    """Move the entries of a level's list below it, but for those that nothing divides."""
    level.tree = _PathNode()
    for entry in list(level.entries):
        divisible = entry.divisible(level)
        if divisible:
            del level.entries[entry]
            _insert(entry, _descend(entry, level, divisible))


def _descend(entry: _IndexedRule[Any, Any], level: _RuleLevel, divisible: list[_Branch]) -> _RuleLevel:
    """Choose the equality that the fewest entries share, and return its level."""
    tree = level.tree
    assert tree is not None
    sizes = [0 if (below := tree.level(*check)) is None else below.size for check in divisible]
    return tree.make_level(level, divisible[sizes.index(min(sizes))])


def _checks(accepts: EventFilter) -> tuple[_Check, ...]:
    """Return the equalities that the index looks at."""
    found: dict[_Check, None] = {}
    for path, wanted in accepts.equalities:
        literals = wanted if isinstance(wanted, tuple) else (wanted,)
        if path and len(literals) <= MAX_ALTERNATIVES and all(_is_scalar(literal) for literal in literals):
            tokens = {_token(literal) for literal in literals}
            found[path, tuple(tokens) if len(tokens) == 1 else frozenset(tokens)] = None
    return tuple(found)[:MAX_EQUALITIES]


def _alternatives(checks: tuple[_Check, ...]) -> list[tuple[_Check, ...]]:
    """Return the checks for each literal of the first `in`: at most one of them holds."""
    for place, (path, tokens) in enumerate(checks):
        if len(tokens) > 1:
            rest = checks[:place] + checks[place + 1 :]
            return [((path, (token,)), *rest) for token in tokens]
    return [checks]


def _is_scalar(literal: Json) -> bool:
    return literal is None or type(literal) in (str, bool, int, float)


def _token(value: Json) -> _Token:
    """Return the token of a scalar; of anything else one that equals no other."""
    kind = type(value)
    if kind is str or value is None:
        return value  # type: ignore[no-any-return]
    if kind is float:
        return value  # type: ignore[no-any-return]
    if kind is bool:
        return (value,)
    if kind is int:
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    return _NAN


def _at(value: Json, path: Path) -> Json:
    """Return what the language's members give; null where they would fail."""
    for part in path:
        kind = type(value)
        if kind is dict:
            value = value.get(part)
        elif type(part) is not int:
            return None
        elif kind is list or kind is str:
            items = _items(value)
            value = items[part] if -len(items) <= part < len(items) else None
        else:
            return None
    return value


def _items(value: list[Json] | str) -> list[Json] | bytes:
    """Return what the language's `[i]` gives: elements of a list, bytes of a string."""
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
