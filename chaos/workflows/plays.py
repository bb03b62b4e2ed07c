"""The workflows of a run, and a naive account of what each must come to.

A play is a document beside a table of its steps, written apart from it: `demanded` walks through
the table with how the work of the steps has ended, and says what the execution is then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from chaos.workflows.fate import number_of, place_name

Json = Any
AGENT: Final = "mill"
HEARTBEAT_MS: Final = 4_000
"""So soon a step is given up whose worker was killed while it ran."""
ATTEMPTS: Final = 6


def act(tool: str, **arguments: Json) -> dict[str, Json]:
    """Return an action of the workers, which are told the execution's key."""
    return {
        "agent": AGENT,
        "tool_name": tool,
        "arguments": {"key": {"$expr": "trigger.key"}, **arguments},
        "metadata": {"heartbeat_timeout_ms": str(HEARTBEAT_MS)},
    }


RETRY: Final = {"max_attempts": ATTEMPTS, "initial": "50ms", "max": "400ms"}
COMPENSATION: Final = {**act("undo"), "retry": RETRY}


def step(name: str, *needs: str, **more: Json) -> dict[str, Json]:
    """Return a step of a document that the workers do, unless `more` says otherwise."""
    found: dict[str, Json] = {"id": name, **({"depends_on": list(needs)} if needs else {}), **more}
    if not {"wait", "ask", "workflow", "fail", "continue_as", "output"} & set(more):
        found = {"action": act(name), "retry": RETRY, **found}
    return found


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the work of a place has ended, by its task: completed, failed or cancelled."""

    status: str
    result: Json = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What is naively said of a step.

    `items`: how many it has, for its input. `after_failure` names the step whose failure leads to
    it. `handled`: its failure is none of its execution. `work`: it has tasks; else it ends when its
    needs have ended.
    """

    name: str
    needs: tuple[str, ...] = ()
    join: int = 0
    """So many needs suffice; 0: all."""
    items: Callable[[Json], int] | None = None
    rounds: bool = False
    settled: bool = False
    after_failure: str = ""
    when: Callable[[Json, Mapping[str, Outcome]], bool] | None = None
    handled: bool = False
    recovers: bool = False
    """Whether it is completed in spite of its failure."""
    work: bool = True
    fails: bool = False
    undone: bool = False
    """Whether it is compensated."""


@dataclass(frozen=True, slots=True)
class Demanded:
    """What an execution must have come to."""

    status: str
    steps: Mapping[str, str]
    """The status of each step; "" where any may be, as the execution has failed before."""
    result: Json
    failed: Sequence[str]
    """The steps that fail it."""
    problems: Sequence[str]
    """What cannot be: a step without work that had to be done, or one with work that had not."""


def nothing(_input: Json, _did: Mapping[str, Outcome]) -> Json:
    """Demand no certain result."""
    return NOTHING


NOTHING: Final = object()


@dataclass(frozen=True, slots=True)
class Play:
    """A workflow: its document, its steps in words of this file, and its result."""

    document: Mapping[str, Json]
    rules: tuple[Rule, ...]
    result: Callable[[Json, Mapping[str, Outcome]], Json] = nothing
    share: int = 1
    """How often it is played, relatively."""
    needs: str = ""
    """What a story must do for it: answer, event, signal, cancel."""
    function: bool = False
    extra: Callable[[Json], Json] = field(default=lambda _chance: {})
    """Draws more of its input from a random generator."""


def demanded(play: Play, given: Json, outcome_of: Callable[[str], Outcome | None], *, stopped: bool) -> Demanded:
    """Walk through a play.

    `outcome_of(place)`: how the work of a place has ended, None if none was begun. `stopped`: it
    was cancelled, so what was not begun need not be.
    """
    walk = _Walk(play, given, outcome_of)
    for rule in play.rules:
        walk.take(rule)
    # A failure anywhere ends it, and what else had begun or not is as it happened to be.
    failed = walk.failed
    loose = bool(failed) or stopped
    problems = [] if loose else walk.missing
    workless = {rule.name for rule in play.rules if not rule.work}
    steps = {
        name: "" if loose and (status == "skipped" or name in workless) else status
        for name, status in walk.status.items()
    }
    status = "failed" if failed else "cancelled" if stopped else "completed"
    result = play.result(given, walk.did) if status == "completed" and not problems else NOTHING
    return Demanded(status, steps, result, failed, [*problems, *walk.wrong])


class _Walk:
    def __init__(self, play: Play, given: Json, outcome_of: Callable[[str], Outcome | None]) -> None:
        self.play = play
        self.given = given
        self.outcome_of = outcome_of
        self.status: dict[str, str] = {}
        self.did: dict[str, Outcome] = {}
        self.failed: list[str] = []
        self.missing: list[str] = []
        self.wrong: list[str] = []

    def take(self, rule: Rule) -> None:
        name = rule.name
        ended = self._work(rule)
        if not self._due(rule):
            self.status[name] = "skipped"
            if ended is not None:
                self.wrong.append(f"{name} had work done, and was not due")
            return
        if rule.fails:
            self.status[name] = "failed"
            self.failed.append(name)
            return
        if not rule.work:
            self.status[name] = "completed"
            return
        if ended is None or ended.status == "cancelled":
            self.status[name] = ""
            self.missing.append(f"{name} was due, and its work was not done to its end")
            return
        self.did[name] = ended
        self.status[name] = "completed" if rule.recovers and ended.status == "failed" else ended.status
        if self.status[name] == "failed" and not rule.handled:
            self.failed.append(name)

    def _due(self, rule: Rule) -> bool:
        completed = sum(self.status.get(need) == "completed" for need in rule.needs)
        if completed < (rule.join or len(rule.needs)):
            return False
        if rule.after_failure and self.status.get(rule.after_failure) != "failed":
            return False
        return rule.when is None or rule.when(self.given, self.did)

    def _work(self, rule: Rule) -> Outcome | None:
        if not rule.work or rule.fails:
            return None
        if rule.items is None:
            return self.outcome_of(rule.name)
        several = [self.outcome_of(place_name(rule.name, number)) for number in range(rule.items(self.given))]
        if not any(several):
            return None
        results: list[Json] = []
        for one in several:
            if one is not None and one.status == "failed" and not rule.settled:
                return Outcome("failed")
        for one in several:
            if one is None or one.status == "cancelled":
                return None
            results.append(one if rule.settled else one.result)
        return Outcome("completed", results[-1] if rule.rounds else results)


def _n(given: Json, *places: str) -> list[int]:
    return [number_of(given["key"], place) for place in places]


def _items(given: Json) -> int:
    return int(given["items"])


def _some_items(chance: Any) -> Json:
    return {"items": chance.randint(2, 9)}


_MANY: Final = {"items": {"$expr": "map(1..trigger.items, #)"}, "max_parallel": 4}
_PAID: Final = {"event": "chaos.paid", "key": "input.order", "equals": "trigger.key"}
_WAITS: Final = {"short": 0.3, "long": 1.5, "late": 0.7}
"""Seconds that steps of these names wait, or are waited for."""

AT_ONCE: Final = 2
"""So many executions with the same `turn` run at the same time."""

PLAYS: Final[Mapping[str, Play]] = {
    "chain": Play(
        {
            "steps": [step("a"), step("b", "a"), step("c", "b")],
            "outputs": {"$expr": "[steps.a.result.n, steps.b.result.n, steps.c.result.n]"},
        },
        (Rule("a"), Rule("b", ("a",)), Rule("c", ("b",))),
        lambda given, _: _n(given, "a", "b", "c"),
        share=3,
    ),
    "leaf": Play(
        {"steps": [step("a")], "outputs": {"$expr": "steps.a.result.n"}},
        (Rule("a"),),
        lambda given, _: _n(given, "a")[0],
        share=0,
    ),
    "fan": Play(
        {
            "steps": [
                step("each", for_each=_MANY),
                step("last", "each", output={"$expr": "sum(map(steps.each.result, #.n))"}),
            ],
            "outputs": {"$expr": "steps.last.result"},
        },
        (Rule("each", items=_items), Rule("last", ("each",), work=False)),
        lambda given, _: sum(_n(given, *(place_name("each", one) for one in range(given["items"])))),
        share=2,
        extra=_some_items,
    ),
    "settled": Play(
        {
            "steps": [
                step("each", for_each={**_MANY, "mode": "settled"}),
                step("last", "each", output={"$expr": 'count(steps.each.result, #.status == "completed")'}),
            ],
            "outputs": {"$expr": "steps.last.result"},
        },
        (Rule("each", items=_items, settled=True), Rule("last", ("each",), work=False)),
        lambda _, did: sum(one.status == "completed" for one in did["each"].result),
        share=2,
        extra=_some_items,
    ),
    "trip": Play(
        {
            "steps": [
                step("hotel", compensate=COMPENSATION),
                step("flight", "hotel", compensate=COMPENSATION),
                step("car", "hotel", compensate=COMPENSATION),
                step("full", "flight", "car", when="trigger.breaks", fail={"message": "no seat", "error_type": "FULL"}),
            ],
            "outputs": {"$expr": "steps.car.result.n"},
        },
        (
            Rule("hotel", undone=True),
            Rule("flight", ("hotel",), undone=True),
            Rule("car", ("hotel",), undone=True),
            Rule("full", ("flight", "car"), when=lambda given, _: bool(given["breaks"]), fails=True),
        ),
        lambda given, _: _n(given, "car")[0],
        share=3,
        extra=lambda chance: {"breaks": chance.random() < 0.6},
    ),
    "joins": Play(
        {
            "steps": [
                *(step(one, on_error=[{"error": "*", "result": {"n": 0}}]) for one in "abc"),
                step("first", "a", "b", "c", join="any"),
                step("second", "a", "b", "c", join=2),
                step("last", "first", "second"),
            ],
            "outputs": {"$expr": "[steps.first.result.n, steps.second.result.n, steps.last.result.n]"},
        },
        (
            *(Rule(one, recovers=True) for one in "abc"),
            Rule("first", ("a", "b", "c"), join=1),
            Rule("second", ("a", "b", "c"), join=2),
            Rule("last", ("first", "second")),
        ),
        lambda given, _: _n(given, "first", "second", "last"),
        share=2,
    ),
    "timers": Play(
        {
            "steps": [
                step("short", wait="300ms"),
                step("long", wait="1500ms"),
                step("late", wait={"signal": "never", "default": {"late": True}}, timeout="700ms"),
                step("last", "short", "long", "late"),
            ],
            "outputs": {"$expr": "[steps.last.result.n, steps.late.result.late]"},
        },
        (
            *(Rule(one, work=False) for one in ("short", "long", "late")),
            Rule("last", ("short", "long", "late")),
        ),
        lambda given, _: [*_n(given, "last"), True],
        share=2,
    ),
    "parent": Play(
        {
            "steps": [
                step(
                    "one", workflow="chain", input={"key": {"$expr": 'trigger.key + "/one"'}},
                    on_error=[{"error": "*", "result": None}],
                ),
                step(
                    "many", "one", workflow="leaf", input={"key": {"$expr": 'trigger.key + "/" + string(item)'}},
                    for_each={**_MANY, "mode": "settled"},
                ),
                step("last", "many", output={"$expr": 'count(steps.many.result, #.status == "completed")'}),
            ],
            "outputs": {"$expr": "steps.last.result"},
        },
        (
            Rule("one", recovers=True),
            Rule("many", ("one",), items=_items, settled=True),
            Rule("last", ("many",), work=False),
        ),
        lambda _, did: sum(one.status == "completed" for one in did["many"].result),
        share=2,
        extra=lambda chance: {"items": chance.randint(2, 4)},
    ),
    "approval": Play(
        {
            "steps": [
                step("before"),
                step("decide", "before", ask={"question": "Grind {{.trigger.key}}?", "choices": ["now", "later"]}),
                step("last", "decide", when="steps.decide.result.approved"),
            ],
            "outputs": {"$expr": "[steps.decide.result.choice, steps.decide.result.text]"},
        },
        (
            Rule("before"),
            Rule("decide", ("before",)),
            Rule("last", ("decide",), when=lambda _, did: bool(did["decide"].result["approved"])),
        ),
        lambda _, did: [did["decide"].result["choice"], did["decide"].result["text"]],
        share=2,
        needs="answer",
    ),
    "order": Play(
        {
            "steps": [step("before"), step("paid", "before", wait=_PAID), step("last", "paid")],
            "outputs": {"$expr": "steps.paid.result.id"},
        },
        (Rule("before"), Rule("paid", ("before",), work=False), Rule("last", ("paid",))),
        share=3,
        needs="event",
    ),
    "release": Play(
        {
            "steps": [step("before"), step("go", "before", wait={"signal": "go"}), step("last", "go")],
            "outputs": {"$expr": "steps.go.result.id"},
        },
        (Rule("before"), Rule("go", ("before",), work=False), Rule("last", ("go",))),
        share=2,
        needs="signal",
    ),
    "rounds": Play(
        {
            "steps": [step("turn", **{"while": {"condition": "round < trigger.items", "max_rounds": 20}})],
            "outputs": {"$expr": "steps.turn.result.n"},
        },
        (Rule("turn", items=_items, rounds=True),),
        lambda given, _: _n(given, place_name("turn", given["items"] - 1))[0],
        extra=_some_items,
    ),
    "again": Play(
        {
            "steps": [
                step("a"),
                step(
                    "next", "a", when="trigger.left > 0",
                    continue_as={"input": {"key": {"$expr": 'trigger.key + "+"'}, "left": {"$expr": "trigger.left - 1"}}},
                ),
                step("last", "a", when="trigger.left == 0", output="done"),
            ],
            "outputs": {"$expr": "steps.last.result"},
        },
        (
            Rule("a"),
            Rule("next", ("a",), when=lambda given, _: given["left"] > 0, work=False),
            Rule("last", ("a",), when=lambda given, _: given["left"] == 0, work=False),
        ),
        lambda given, _: "done" if given["left"] == 0 else NOTHING,
        extra=lambda chance: {"left": chance.randint(1, 3)},
    ),
    "handler": Play(
        {
            "steps": [
                step("risky", on_failure="clean"),
                step("clean"),
                step("after", "risky"),
            ],
            "outputs": {"clean": {"$expr": "steps.clean.status"}, "after": {"$expr": "steps.after.status"}},
        },
        (Rule("risky", handled=True), Rule("clean", after_failure="risky"), Rule("after", ("risky",))),
        lambda _, did: {
            "clean": did["clean"].status if "clean" in did else "skipped",
            "after": did["after"].status if "after" in did else "skipped",
        },
        share=2,
    ),
    "stopped": Play(
        {
            "steps": [
                step("a", compensate=COMPENSATION),
                step("b", "a", compensate=COMPENSATION),
                step("ever", "b", wait={"signal": "never"}),
            ],
        },
        (Rule("a", undone=True), Rule("b", ("a",), undone=True), Rule("ever", ("b",), work=False)),
        share=2,
        needs="cancel",
    ),
    "begun": Play(
        {
            "trigger": {"event": "chaos.begin", "condition": 'input.id != ""'},
            "steps": [step("a"), step("last", "a")],
            "outputs": {"$expr": "[steps.a.result.n, steps.last.result.n]"},
        },
        (Rule("a"), Rule("last", ("a",))),
        lambda given, _: _n(given, "a", "last"),
        share=3,
        needs="trigger",
    ),
    "turns": Play(
        {
            "flow": {"concurrency": {"limit": AT_ONCE, "key": "trigger.turn"}},
            "steps": [step("a"), step("last", "a")],
            "outputs": {"$expr": "[steps.a.result.n, steps.last.result.n]"},
        },
        (Rule("a"), Rule("last", ("a",))),
        lambda given, _: _n(given, "a", "last"),
        share=2,
        extra=lambda chance: {"turn": chance.choice("wxyz")},
    ),
    "survey": Play({}, (), share=3, needs="signal", function=True),
}  # fmt: skip


def documents() -> list[dict[str, Json]]:
    """Return the documents of all plays, and what else events feed."""
    plays = [{"id": name, **play.document} for name, play in PLAYS.items() if not play.function]
    return [*plays, *RULES, MACHINE]


def _task(kind: str, payload: Json) -> dict[str, Json]:
    return {
        "type": "create_task",
        "task_type": kind,
        "target_implementation": AGENT,
        "payload": payload,
        "metadata": {"heartbeat_timeout_ms": str(HEARTBEAT_MS)},
        "retry": {"max_attempts": 10, "initial": "50ms", "max": "400ms"},
    }


_ID: Final = {"id": {"$expr": "input.id"}}
RULES: Final = (
    {"rule_name": "note", "source_event": "chaos.note", "destination_template": _task("noted", _ID)},
    {
        "rule_name": "far",
        "source_event": "chaos.far",
        "destination_template": {"type": "emit_event", "event_name": "chaos.near", "payload": _ID},
    },
    {"rule_name": "near", "source_event": "chaos.near", "destination_template": _task("near", _ID)},
    {
        "rule_name": "part",
        "source_event": "chaos.part",
        "destination_template": {
            "type": "join",
            "join": {
                "name": "parts",
                "correlation_key": "input.job",
                "dedup_key": "input.item",
                "expected_count": 3,
                "linger": "10m",
                "on_complete": _task("joined", {"job": {"$expr": "input.job"}}),
            },
        },
    },
)
MACHINE: Final = {
    "id": "lamp",
    "initial_state": "lit",
    "states": {
        "lit": {
            "on": {
                "tick": [
                    {
                        "to": "lit",
                        "assign": {"n": {"$expr": "(data.n ?? 0) + 1"}},
                        "action": _task("ticked", {"lamp": {"$expr": "data.id"}, "id": {"$expr": "input.tick"}}),
                    }
                ]
            },
        },
        "out": {"terminal": True},
    },
    "bus": [
        {"event": "chaos.lamp", "key": "input.id", "creates": True},
        {"event": "chaos.tick", "key": "input.id", "send": "tick"},
    ],
}
