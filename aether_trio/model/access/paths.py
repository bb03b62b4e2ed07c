"""Finds the ways by which rules let a principal reach a level on a resource.

A principal reaches a level by a rule (for it, its groups and roles, its wildcard, or a fallback),
or by a power that rules give:

| power | what it makes of its holder |
|---|---|
| ADMIN on admin/tokens | makes a token for an agent, a task or one of the same type, and is that |
| the same, and MANAGE on capability/mint_user_tokens | ... for a user with no more administration |
| ADMIN on all of admin/* | ... for any principal |
| MANAGE on capability/exchange_authority_grants, or below it | acts for a user |

Who may write rules (ADMIN on admin/acl, MANAGE of a workspace) gives others no more than it has on
the resource (services/access/granting.py), and gains nothing by it. So writing adds no way.

A way is the list of its steps. It rests on rules, memberships and fallbacks: of two ways, one that
rests on all that the other does and more is left out. Rules are those of the tier that decides; a
later tier, which decides when they are gone, is not looked at. The search errs on the side of too
many ways: credentials may not reach as far as rules do, which `reaches` can say.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from aether_trio.model.access.ladder import AccessIndex, Contribution
from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.access.patterns import Pattern, compile_pattern, literal_of
from aether_trio.model.access.rules import ANY, GROUP, MAX_DEPTH, MEMBER_TYPES, ROLE, WILDCARD, WILDCARDS, Rule
from aether_trio.model.identity import Identity, IdentityError

MOST_PATHS: Final = 100
MOST_CHAINS: Final = 8  # of memberships between two subjects
MOST_ROUTES: Final = 4  # to one principal
MOST_TAKEOVERS: Final = 20_000  # of principals, that are looked at

_SPARE: Final = 4  # ways that are looked at for each that is asked for: some are not the least

ACL: Final = ("admin", "admin/acl")
TOKENS: Final = ("admin", "admin/tokens")
MINT_USERS: Final = ("capability", "capability/mint_user_tokens")
EXCHANGE: Final = ("capability", "capability/exchange_authority_grants")
ADMINISTRATION: Final = tuple(
    ("admin", f"admin/{name}") for name in ("acl", "agents", "audit", "sessions", "tokens", "workspaces")
)
CAPABILITIES: Final = tuple(
    ("capability", f"capability/{name}")
    for name in (
        "audit_submit",
        "authority_intermediary",
        "create_workspace",
        "event_broadcast",
        "exchange_authority_grants",
        "kv_purge_identity",
        "metric_broadcast",
        "metric_credit",
        "mint_user_tokens",
        "query_connections",
        "resolve_authority",
    )
)
NO_WORKSPACE: Final = "_no_workspace"
_PRINCIPAL_TYPES: Final = frozenset(MEMBER_TYPES) - {GROUP, ROLE}
_WORKERS: Final = frozenset({"agent", "task"})


class StepKind(enum.StrEnum):
    """What happens in one step of a path."""

    MEMBER = "member"
    RULE = "rule"
    FALLBACK = "fallback"
    TOKEN = "token"  # noqa: S105
    EXCHANGE = "exchange"


@dataclass(frozen=True, slots=True)
class PathStep:
    """One step: who, by what, and the rule that allows it ("" for a consequence)."""

    kind: StepKind
    subject: str
    object: str
    rule_id: str = ""
    level: AccessLevel = AccessLevel.NONE

    def __str__(self) -> str:
        if self.kind is StepKind.MEMBER:
            return f"{self.subject} is in {self.object}"
        if self.kind is StepKind.RULE:
            return f"{self.subject} has {self.level.name} on {self.object} (rule {self.rule_id})"
        if self.kind is StepKind.FALLBACK:
            return f"{self.subject} has {self.level.name} on {self.object} (fallback)"
        verb = "makes a token of" if self.kind is StepKind.TOKEN else "acts for"
        return f"{self.subject} {verb} {self.object}"

    @property
    def evidence(self) -> str:
        """What would have to go for the step to be closed; "" for a consequence."""
        if self.kind is StepKind.MEMBER:
            return f"{self.subject} in {self.object}"
        if self.kind is StepKind.RULE:
            return self.rule_id
        return f"{self.subject} {self.object}" if self.kind is StepKind.FALLBACK else ""


@dataclass(frozen=True, slots=True)
class Paths:
    """The ways that were found, the shortest first; `complete`: there are no others."""

    paths: tuple[tuple[PathStep, ...], ...]
    complete: bool

    def __str__(self) -> str:
        return "\n".join(", ".join(map(str, path)) for path in self.paths)


_Steps = tuple[PathStep, ...]
_Principal = tuple[str, str]


def paths_to(
    index: AccessIndex,
    principal: tuple[str, str],
    resource: tuple[str, str] = ACL,
    level: AccessLevel = AccessLevel.ADMIN,
    *,
    now_ms: int,
    reaches: Callable[[str, str], bool] = lambda principal_type, principal_id: True,
    workspaces: Iterable[str] = (),
    most: int = MOST_PATHS,
) -> Paths:
    """Return the ways by which a principal (type, id) reaches a level on a resource.

    `reaches` says whether a token that the principal makes may be of another one. `workspaces` are
    those of the narrow forms of the exchange capability, beside the ones that rules name.
    """
    return _Search(index, now_ms, reaches, workspaces).run(principal, resource, level, most)


class _Search:
    """One search, breadth first over the principals that can be taken over."""

    def __init__(
        self, index: AccessIndex, now_ms: int, reaches: Callable[[str, str], bool], workspaces: Iterable[str]
    ) -> None:
        self._index = index
        self._now_ms = now_ms
        self._reaches = reaches
        others = sorted(_principals(index))
        self._users = [one for one in others if one[0] == "user"]
        self._others = [one for one in others if one[0] != "user"]
        names = {NO_WORKSPACE, *workspaces, *_named_workspaces(index.rules())}
        self._narrow = [
            (rule, exchanges)
            for rule in index.rules()
            if rule.resource_type == EXCHANGE[0] and (exchanges := self._exchanges_of(rule, sorted(names)))
        ]
        """Rules on narrow forms of the exchange capability: the user and id of each form."""
        self._levels: dict[_Principal, tuple[AccessLevel, ...]] = {}
        self._complete = True

    def run(self, first: _Principal, resource: tuple[str, str], level: AccessLevel, most: int) -> Paths:
        found: list[_Steps] = []
        rests_on: list[frozenset[str]] = []
        """Of each way that was found: what rests on this and more is not worth a look."""
        routes: dict[_Principal, list[frozenset[str]]] = {}
        waiting: deque[tuple[_Principal, _Steps]] = deque()

        def reach(principal: _Principal, steps: _Steps) -> None:
            known = routes.setdefault(principal, [])
            evidence = _evidence(steps)
            if any(one <= evidence for one in known) or any(one <= evidence for one in rests_on):
                return
            if len(known) >= MOST_ROUTES:
                self._complete = False
                return
            known.append(evidence)
            waiting.append((principal, steps))

        reach(first, ())
        takeovers = 0
        while waiting:
            if len(found) >= _SPARE * most:
                self._complete = False
                break
            principal, steps = waiting.popleft()
            if self._is_locked(principal):
                continue
            for way in self._ways(principal, resource, level):
                whole = _once(steps + way)
                evidence = _evidence(whole)
                if not any(one <= evidence for one in rests_on):
                    found.append(whole)
                    rests_on.append(evidence)
            for other, way in self._becomes(principal):
                if takeovers >= MOST_TAKEOVERS:
                    self._complete = False
                    break
                takeovers += 1
                if other != first:
                    reach(other, _once(steps + way))
        least = _least(found, most + 1)
        return Paths(tuple(least[:most]), self._complete and len(least) <= most)

    def _becomes(self, principal: _Principal) -> Iterator[tuple[_Principal, _Steps]]:
        """Yield the principals that this one can make a token of or act for."""
        broad = self._ways(principal, EXCHANGE, AccessLevel.MANAGE)
        yield from self._each(StepKind.EXCHANGE, principal, self._users, broad)
        if self._narrow:
            subjects = self._index.subjects(*principal, self._now_ms)
            for rule, exchanges in self._narrow:
                pattern = compile_pattern(rule.subject)
                if rule.principal_type == WILDCARD or any(map(pattern.matches, subjects)):
                    for user, capability in exchanges:
                        ways = self._ways(principal, (EXCHANGE[0], capability), AccessLevel.MANAGE)
                        yield from self._each(StepKind.EXCHANGE, principal, [user], ways)
        tokens = self._ways(principal, TOKENS, AccessLevel.ADMIN)
        if not tokens:
            return
        every = self._all_of_administration(principal)
        of_users = every or [
            _once((*token, *of_user))
            for token in tokens
            for of_user in self._ways(principal, MINT_USERS, AccessLevel.MANAGE)
        ]
        for other in self._others:
            ways = tokens if other[0] in _WORKERS or other[0] == principal[0] else every
            if ways and self._reaches(*other):
                yield from self._each(StepKind.TOKEN, principal, [other], ways)
        for other in self._users if of_users else ():
            if self._reaches(*other) and not self._administers_more(other, principal):
                yield from self._each(StepKind.TOKEN, principal, [other], of_users)

    def _all_of_administration(self, principal: _Principal) -> list[_Steps]:
        """Return one way to all of admin/*, or none."""
        ways = [self._ways(principal, one, AccessLevel.ADMIN) for one in ADMINISTRATION]
        return [_once(tuple(step for way in ways for step in way[0]))] if all(ways) else []

    def _administers_more(self, other: _Principal, principal: _Principal) -> bool:
        """Whether a user has a higher level than this principal in any administration."""
        return any(
            theirs > mine for theirs, mine in zip(self._administers(other), self._administers(principal), strict=True)
        )

    def _administers(self, principal: _Principal) -> tuple[AccessLevel, ...]:
        known = self._levels.get(principal)
        if known is None:
            known = self._levels[principal] = tuple(
                self._index.decide(*principal, *one, self._now_ms).level for one in (*ADMINISTRATION, *CAPABILITIES)
            )
        return known

    def _each(
        self, kind: StepKind, principal: _Principal, others: Iterable[_Principal], ways: list[_Steps]
    ) -> Iterator[tuple[_Principal, _Steps]]:
        for other in others if ways else ():
            if other != principal:
                step = PathStep(kind, _text(principal), _text(other))
                yield from ((other, (*way, step)) for way in ways)

    def _exchanges_of(self, rule: Rule, workspaces: list[str]) -> list[tuple[_Principal, str]]:
        """Return the users for whom a rule on a narrow form lets act, with the forms."""
        pattern = compile_pattern(rule.resource_id)
        prefix = f"{EXCHANGE[1]}/"
        if (
            rule.level < AccessLevel.MANAGE
            or rule.resource_id == ANY
            or not (
                pattern.prefix.startswith(prefix) or (pattern.literal is None and prefix.startswith(pattern.prefix))
            )
        ):
            return []
        forms = ((one, f"{prefix}{workspace}/{one[1]}") for one in self._users for workspace in workspaces)
        return [(one, form) for one, form in forms if pattern.matches(form)]

    def _ways(self, principal: _Principal, resource: tuple[str, str], level: AccessLevel) -> list[_Steps]:
        """Return the ways by rules and memberships alone, of the tier that decides."""
        own_workspace = _workspace_of(principal)
        verdict = self._index.decide(*principal, *resource, self._now_ms, own_workspace)
        if verdict.level < level:
            return []
        explanation = self._index.explain(*principal, *resource, self._now_ms, own_workspace)
        return [
            (*chain, _step(one, principal))
            for one in explanation.contributions
            if one.tier == verdict.tier and not one.expired and one.level >= level
            for chain in self._chains(_text(principal), one)
        ]

    def _chains(self, start: str, contribution: Contribution) -> list[_Steps]:
        """Return the chains of memberships from a principal to the subject of a rule."""
        goal = contribution.subject
        if goal == start or contribution.tier in {2, 4, 6}:
            return [()]
        found: list[_Steps] = []
        waiting: deque[tuple[str, _Steps]] = deque([(start, ())])
        while waiting:
            text, steps = waiting.popleft()
            if text == goal:
                found.append(steps)
                if len(found) >= MOST_CHAINS:
                    self._complete = False
                    break
            elif len(steps) < MAX_DEPTH:
                for container in sorted(
                    one.container for one in self._index.memberships_of(text) if one.is_live(self._now_ms)
                ):
                    waiting.append((container, (*steps, PathStep(StepKind.MEMBER, text, container))))
        return found

    def _is_locked(self, principal: _Principal) -> bool:
        principal_type, principal_id = principal
        identity_text = f"us::{principal_id}::" if principal_type == "user" else principal_id
        return self._index.locked(principal_type, principal_id, identity_text, self._now_ms) is not None


def _text(pair: tuple[str, str]) -> str:
    return ":".join(pair)


def _step(contribution: Contribution, principal: _Principal) -> PathStep:
    if not contribution.rule_id:
        return PathStep(StepKind.FALLBACK, _text(principal), contribution.resource, level=contribution.level)
    return PathStep(
        StepKind.RULE, contribution.subject, contribution.resource, contribution.rule_id, contribution.level
    )


def _once(steps: _Steps) -> _Steps:
    return tuple(dict.fromkeys(steps))


def _evidence(steps: _Steps) -> frozenset[str]:
    """Return what a way rests on."""
    return frozenset(one.evidence for one in steps) - {""}


def _least(found: Iterable[_Steps], most: int) -> list[_Steps]:
    """Return the first ways that rest on less than all others, the shortest first."""
    least: list[_Steps] = []
    known: list[frozenset[str]] = []
    for steps in sorted(found, key=lambda one: (len(one), [str(step) for step in one])):
        evidence = _evidence(steps)
        if not any(one <= evidence for one in known):
            least.append(steps)
            known.append(evidence)
            if len(least) == most:
                break
    return least


def _workspace_of(principal: _Principal) -> str:
    try:
        return Identity.parse(principal[1]).workspace
    except IdentityError:
        return ""


def _narrow_form(rule: Rule) -> Pattern | None:
    """Return the resource of a rule, if it is below the exchange capability."""
    if rule.resource_type != EXCHANGE[0]:
        return None
    pattern = compile_pattern(rule.resource_id)
    return pattern if pattern.prefix.startswith(f"{EXCHANGE[1]}/") else None


def _named_workspaces(rules: Iterable[Rule]) -> Iterator[str]:
    for rule in rules:
        if rule.resource_type == "workspace" and (name := literal_of(rule.resource_id)) is not None:
            yield name
        elif (form := _narrow_form(rule)) is not None:
            name, slash, _ = form.prefix.removeprefix(f"{EXCHANGE[1]}/").partition("/")
            if slash:
                yield name


def _principals(index: AccessIndex) -> set[_Principal]:
    """Return the principals that rules and memberships name, and examples of patterns.

    A name that a pattern or a wildcard stands for can be made up: so one example of each counts.
    A narrow form of the exchange capability names a user too.
    """
    found = {(one.member_type, one.member_id) for one in index.memberships()}
    for rule in index.rules():
        if (form := _narrow_form(rule)) is not None and form.example is not None:
            found.add(("user", form.example.removeprefix(f"{EXCHANGE[1]}/").partition("/")[2]))
        if rule.principal_type == WILDCARD:
            found.update((kind, f"_any_{kind}") for kind, name in WILDCARDS.items() if name == rule.principal_id)
        else:
            name = literal_of(rule.principal_id)
            found.add((rule.principal_type, name or compile_pattern(rule.principal_id).example or ""))
    for category in index.fallbacks():
        found.update((kind, f"_any_{kind}") for kind in _PRINCIPAL_TYPES if category.startswith(f"{kind}_"))
    return {one for one in found if one[0] in _PRINCIPAL_TYPES and one[1]}
