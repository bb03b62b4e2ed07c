"""Access rules of a large installation, and what their index costs.

    python -m bench.access_data             print sizes, times and memory
    python -m bench.access_data --rules N   with another number of rules

100,000 rules, a tenth of them patterns, for 40 workspaces with 8,000 principals in 1,000 groups and
roles. Names are such as people choose. Records are decoded from JSON one by one, as a gateway gets
them, so that no two share a text that they would not share there.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.rules import Member, Rule

RULES: Final = 100_000
PATTERN_SHARE: Final = 0.1
GROUPS: Final = 1_000
REPEATS: Final = 5
NOW_MS: Final = 1_790_000_000_000
_DAY_MS: Final = 86_400_000

_COMPANIES: Final = ("acme", "globex", "initech", "umbrella", "hooli", "stark", "wayne", "tyrell")
_STAGES: Final = ("prod", "staging", "dev", "qa", "sandbox")
_WORK: Final = ("billing", "search", "ingest", "report", "triage", "planner", "crawler", "notifier", "review", "deploy")
_PLACES: Final = ("eu-west", "eu-north", "us-east", "us-west", "ap-south")
_NAMES: Final = ("ana", "ben", "chi", "dora", "emil", "fay", "gus", "hana", "ivo", "jo", "kim", "lea", "max", "nia")
_TEAMS: Final = ("payments", "platform", "data", "growth", "support", "security", "mobile", "research")
_LEVELS: Final = (
    AccessLevel.NONE,
    *(AccessLevel.READ, AccessLevel.READWRITE) * 4,
    AccessLevel.MANAGE,
    AccessLevel.ADMIN,
)


@dataclass(frozen=True, slots=True)
class Population:
    """The names that rules and questions are about."""

    workspaces: tuple[str, ...]
    principals: tuple[tuple[str, str], ...]
    groups: tuple[tuple[str, str], ...]
    resources: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class AskedAccess:
    """One question: the arguments of `AccessIndex.decide`."""

    principal_type: str
    principal_id: str
    resource_type: str
    resource_id: str


def population(chance: random.Random, groups: int = GROUPS) -> Population:
    """Return principals, groups and resources, the same ones for the same chance."""
    workspaces = tuple(f"{company}-{stage}" for company in _COMPANIES for stage in _STAGES)
    implementations = [f"{work}-{kind}" for work in _WORK for kind in ("agent", "worker", "bot", "pipeline")]
    agents = {
        f"ag::{chance.choice(workspaces)}::{chance.choice(implementations)}::{chance.choice(_PLACES)}-{n % 40:02d}"
        for n in range(4_000)
    }
    tasks = {
        f"tu::{chance.choice(workspaces)}::{chance.choice(implementations)}::nightly-{n % 500:03d}"
        for n in range(1_000)
    }
    users = {
        f"{chance.choice(_NAMES)}.{chance.choice(_TEAMS)}{n % 999}@{chance.choice(_COMPANIES)}.example"
        for n in range(3_000)
    }
    services = {f"sv::{one}::{place}" for one in implementations for place in _PLACES}
    principals = [
        *(("agent", one) for one in sorted(agents)),
        *(("task", one) for one in sorted(tasks)),
        *(("user", one) for one in sorted(users)),
        *(("service", one) for one in sorted(services)),
    ]
    named = [
        ("role" if n % 5 == 0 else "group", f"{_COMPANIES[n % 8]}-{_TEAMS[n // 8 % 8]}-{n // 64:02d}")
        for n in range(groups)
    ]
    keys = [
        f"{chance.choice(_TEAMS)}/{chance.choice(_WORK)}/{chance.choice(('config', 'state', 'cursor', 'lock'))}-{n}"
        for n in range(30_000)
    ]
    resources = [
        *(("workspace", one) for one in workspaces),
        *(("kv_key", one) for one in keys),
        *(("service_impl", one) for one in implementations),
        *(("topic", f"event/{team}/{work}") for team in _TEAMS for work in _WORK),
        *(("user", one) for one in sorted(users)),
        *(("admin", f"admin/{one}") for one in ("acl", "tokens", "workspaces", "agents", "sessions", "audit")),
        *(("capability", f"capability/{one}") for one in ("create_workspace", "metric_credit", "query_connections")),
        *(("capability", f"capability/approve/{team}-{work}") for team in _TEAMS for work in _WORK),
    ]
    return Population(workspaces, tuple(principals), tuple(named), tuple(resources))


def memberships(people: Population, chance: random.Random) -> Iterator[Member]:
    """Yield some ten members of each group, and groups within groups, three deep."""
    for n, (kind, name) in enumerate(people.groups):
        for principal in chance.sample(people.principals, chance.randint(4, 16)):
            yield _member(kind, name, principal, _DAY_MS * chance.randint(1, 90) if chance.random() < 0.2 else 0)
        if n % 5 and n >= 100:  # the first hundred are what others are in
            yield _member(*people.groups[n // 10], (kind, name), 0)


def _member(kind: str, name: str, member: tuple[str, str], lifetime_ms: int) -> Member:
    record = Member(
        kind, name, *member, "us::admin::console", NOW_MS - _DAY_MS, NOW_MS + lifetime_ms if lifetime_ms else 0
    )
    return Member(**json.loads(json.dumps(asdict(record))))


def rules(people: Population, chance: random.Random, count: int = RULES) -> Iterator[Rule]:
    """Yield rules of distinct subjects and resources; a tenth are patterns."""
    seen: set[tuple[str, str, str, str]] = set()
    patterns = int(count * PATTERN_SHARE)
    while len(seen) < count:
        made = _pattern(people, chance) if len(seen) < patterns else _exact(people, chance)
        if made in seen:
            continue
        seen.add(made)
        yield _rule(made, chance)


def _rule(made: tuple[str, str, str, str], chance: random.Random) -> Rule:
    expires_ms = NOW_MS + _DAY_MS * chance.randint(-3, 90) if chance.random() < 0.2 else 0
    identifier = f"{chance.getrandbits(128):032x}"
    record = {
        "rule_id": "-".join((identifier[:8], identifier[8:12], identifier[12:16], identifier[16:20], identifier[20:])),
        "principal_type": made[0],
        "principal_id": made[1],
        "resource_type": made[2],
        "resource_id": made[3],
        "level": int(chance.choice(_LEVELS)),
        "granted_by": f"us::admin{chance.randrange(20)}::console",
        "granted_ms": NOW_MS - chance.randrange(365 * _DAY_MS),
        "expires_ms": expires_ms,
        "reason": "asked for in ticket OPS-" + str(chance.randrange(5_000)) if chance.random() < 0.3 else "",
    }
    values = json.loads(json.dumps(record))
    values["level"] = AccessLevel(values["level"])
    return Rule(**values)


def _exact(people: Population, chance: random.Random) -> tuple[str, str, str, str]:
    draw = chance.random()
    if draw < 0.001:
        subject = "wildcard", chance.choice(("_any_agent", "_any_task", "_any_authenticated_user", "_any_service"))
    else:
        subject = chance.choice(people.groups if draw < 0.35 else people.principals)
    resource_type, resource_id = chance.choice(people.resources)
    if chance.random() < 0.25:
        resource_type, resource_id = "workspace", chance.choice(people.workspaces)
    return *subject, resource_type, "*" if chance.random() < 0.01 else resource_id


def _pattern(people: Population, chance: random.Random) -> tuple[str, str, str, str]:
    draw = chance.random()
    named = chance.choice(people.groups if draw < 0.3 else people.principals)
    if draw < 0.6:
        return *named, *_resource_pattern(chance)
    subject = _subject_pattern(people, chance)
    if draw < 0.9:
        return *subject, *chance.choice(people.resources)
    return *subject, *_resource_pattern(chance)


def _resource_pattern(chance: random.Random) -> tuple[str, str]:
    company, stage, team, work = (chance.choice(one) for one in (_COMPANIES, _STAGES, _TEAMS, _WORK))
    return chance.choice(
        (
            ("workspace", f"{company}-*"),
            ("workspace", f"*-{stage}"),
            ("kv_key", f"{team}/{work}/*"),
            ("kv_key", f"{team}/*/config-{chance.randrange(1_000)}"),
            ("kv_key", f"{team}/{work}/state-{chance.randrange(300)}?"),
            ("service_impl", f"{work}-*"),
            ("topic", f"event/{team}/*"),
            ("topic", f"event/*/{work}"),
            ("admin", "admin/*"),
            ("capability", f"capability/approve/{team}-*"),
        )
    )


def _subject_pattern(people: Population, chance: random.Random) -> tuple[str, str]:
    workspace, work, place = chance.choice(people.workspaces), chance.choice(_WORK), chance.choice(_PLACES)
    return chance.choice(
        (
            ("agent", f"ag::{workspace}::{work}-*"),
            ("agent", f"ag::{workspace}::{work}-agent::{place}-*"),
            ("agent", f"ag::{workspace}::{work}-worker::{place}-[0-3]?"),
            ("agent", f"ag::*::{work}-agent::{place}-{chance.randrange(40):02d}"),
            ("task", f"tu::{workspace}::{work}-pipeline::nightly-*"),
            ("service", f"sv::{work}-*::{place}"),
            ("group", f"{chance.choice(_COMPANIES)}-{chance.choice(_TEAMS)}-*"),
        )
    )


def questions(people: Population, chance: random.Random, count: int) -> list[AskedAccess]:
    """Return questions, half of them about workspaces, as a gateway's are."""
    found = []
    for _ in range(count):
        resource = (
            ("workspace", chance.choice(people.workspaces))
            if chance.random() < 0.5
            else chance.choice(people.resources)
        )
        found.append(AskedAccess(*chance.choice(people.principals), *resource))
    return found


def fill(index: AccessIndex, people: Population, chance: random.Random, count: int = RULES) -> None:
    """Put everything into an index."""
    for member in memberships(people, chance):
        index.put_membership(member)
    for rule in rules(people, chance, count):
        index.put_rule(rule)
    for category in ("agent_workspace", "task_workspace", "user_workspace"):
        index.set_fallback(category, AccessLevel.NONE)


def times_ns(index: AccessIndex, asked: Sequence[AskedAccess], *, cold: bool, repeats: int = REPEATS) -> list[int]:
    """Return how long each answer took, the best of a few, sorted.

    A neighbour that takes the CPU makes some answers slow, and not always the same ones. `cold`
    forgets before each answer who is in which group.
    """
    best = times_in_order_ns(index, asked, cold=cold)
    for _ in range(repeats - 1):
        best = list(map(min, best, times_in_order_ns(index, asked, cold=cold)))
    return sorted(best)


def times_in_order_ns(index: AccessIndex, asked: Sequence[AskedAccess], *, cold: bool) -> list[int]:
    """Return how long each answer took, in the order of the questions."""
    clock = time.perf_counter_ns
    times = []
    for one in asked:
        arguments = one.principal_type, one.principal_id, one.resource_type, one.resource_id, NOW_MS
        if cold:
            index.forget_subjects()
        else:
            index.subjects(one.principal_type, one.principal_id, NOW_MS)
        start = clock()
        index.decide(*arguments)
        times.append(clock() - start)
    return times


def index_bytes(count: int = RULES) -> int:
    """Return the memory of a filled index, without that of its generator."""
    people = population(random.Random(1))
    gc.collect()
    tracemalloc.start()
    index = AccessIndex()
    chance = random.Random(2)
    fill(index, people, chance, count)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rules", type=int, default=RULES, help=f"how many rules (default: {RULES})")
    parser.add_argument("--questions", type=int, default=20_000, help="how many are asked (default: 20000)")
    options = parser.parse_args()
    people = population(random.Random(1))
    index = AccessIndex()
    start = time.perf_counter()
    fill(index, people, random.Random(2), options.rules)
    print(f"{options.rules} rules in {time.perf_counter() - start:.1f} s, with their generator")
    asked = questions(people, random.Random(3), options.questions)
    tiers = [0] * 7
    for one in asked:
        verdict = index.decide(one.principal_type, one.principal_id, one.resource_type, one.resource_id, NOW_MS)
        tiers[verdict.tier] += 1
    print("answers by tier: " + ", ".join(f"{tier}: {tiers[tier] * 100 / len(asked):.1f} %" for tier in range(1, 7)))
    for name, cold in (("groups known", False), ("groups looked up", True)):
        found = times_ns(index, asked, cold=cold)
        shares = ", ".join(
            f"p{share:g} {found[min(len(found) - 1, int(len(found) * share / 100))] / 1000:.1f} µs"
            for share in (50, 99, 99.9, 100)
        )
        print(f"{name}: {shares}")
    print(f"memory: {index_bytes(options.rules) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
