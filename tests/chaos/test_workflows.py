"""Workflow invariants find violations; a short real run on SQLite holds them."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aether_trio.storage.migrations import SQLITE
from aether_trio.storage.schema import tasks, workflows
from aether_trio.wire.pb import aether_pb2 as pb
from chaos import cli
from chaos.workflows.checks import Evidence, check_all
from chaos.workflows.fate import fate, is_doomed, number_of
from chaos.workflows.history import Begun, Moment, Sent, WorkflowHistory
from chaos.workflows.plays import PLAYS, Outcome, demanded, documents
from chaos.workflows.replays import replay_all
from chaos.workflows.run import WorkflowWishes, evidence_of, run
from chaos.workflows.snapshot import Snapshot
from tests.chaos.test_tasks import history as tasks_that_went_well

PLACES = (
    "each[0]",
    "each[1]",
    "a",
    "b",
    "c",
    "last",
    "before",
    "hotel",
    "flight",
    "car",
    "hotel~",
    "flight~",
    "car~",
    "left",
    "right",
)
ENDS = "every execution has ended, and nothing is open"
BEGUN = "each was begun once, and its client told its end"
DEMANDED = "it came to what its outcomes demand"
WORK = "work ended as was decided, and once"
FUNCTIONS = "functions too, and no step was done beyond its assignments"
UNDONE = "compensations are complete, and in reverse order"
EVENTS = "an acknowledged event acts once, others at most once"
HEARD = "what was answered and signalled counts"
QUEUED = "flow control lets no more work at once"
EARLY = "nothing is early"
REPLAYED = "histories replay to their states"
SHARED = "no two workers had one assignment"
FAILURES = "no gateway and no worker fails"


def key_of(name: str) -> str:
    """Return a key with which nothing is doomed."""
    return next(key for n in range(1000) if not any(is_doomed(key := f"{name}-{n}", place) for place in PLACES))


class Tables:
    """Tables of a run that went well."""

    def __init__(self) -> None:
        self.database = sqlite3.connect(":memory:")
        for text in (*tasks.STATEMENTS, *workflows.STATEMENTS):
            self.database.execute(text.format(**dataclasses.asdict(SQLITE)) if isinstance(text, str) else text(SQLITE))

    def put(self, table: str, **given: Any) -> None:
        """Insert a row whose other columns are empty."""
        columns = self.database.execute(f"PRAGMA table_info({table})").fetchall()
        row = {name: 0 if "INT" in kind else b"" if kind == "BLOB" else "" for _, name, kind, *_ in columns} | given
        self.database.execute(
            f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", list(row.values())
        )

    def execution(
        self, id_: str, play: str, given: Any, status: str, result: Any = None, *, kind: str = "graph", **more: Any
    ) -> None:
        text = json.dumps(given).encode()
        self.put(
            "workflow_executions", execution_id=id_, workflow_id=play, kind=kind, status=status, trigger_data=text,
            completed_ms=9_000, entries=1, **more,
        )  # fmt: skip
        self.put("workflow_history", execution_id=id_, number=1)
        self.task(id_, "", status, result, task_type="workflow_run", workflow=2, epoch=1)

    def task(self, task_id: str, place: str, status: str, result: Any = None, **more: Any) -> None:
        parent, _, _ = task_id.partition("/")
        meta = {"step_id": place.removesuffix("~"), **({"compensates": "true"} if place.endswith("~") else {})}
        row = {
            "task_type": "workflow", "workflow": 1, "parent_task_id": parent * (parent != task_id), "max_attempts": 6,
            "spec": pb.CreateTaskRequest(metadata=meta).SerializeToString(),
        }  # fmt: skip
        self.put("tasks", task_id=task_id, status=status, **{**row, **more})
        if result is not None:
            self.put("task_results", task_id=task_id, kind="json", data=json.dumps(result).encode())

    def step(self, execution: str, step: str, status: str, began_ms: int = 1_000, ended_ms: int = 5_000) -> None:
        self.put(
            "workflow_steps", execution_id=execution, step=step, item=-1, status=status, started_ms=began_ms,
            completed_ms=ended_ms,
        )  # fmt: skip

    def work(self, execution: str, key: str, place: str, at_ms: int = 1_000, status: str = "completed") -> None:
        """A task of a step, from `at_ms` on for 100 ms, and the step."""
        name = place.rpartition(".")[2]
        result = {"n": number_of(key, name)} if status == "completed" else None
        self.task(f"{execution}/{place}", place, status, result, created_ms=at_ms, completed_ms=at_ms + 100)
        self.step(execution, place, status)

    def event_task(self, kind: str, **payload: Any) -> None:
        number = self.database.execute("SELECT count(*) FROM tasks").fetchone()[0]
        self.put(
            "tasks", task_id=f"event-{number}", task_type=kind, status="completed", payload=json.dumps(payload).encode()
        )


@pytest.fixture
def evidence() -> Iterator[Evidence]:
    """A run that went well, with one or more things for each check."""
    tables, seen = Tables(), WorkflowHistory()
    key = key_of("k")

    def asked(play: str, execution: str, given: Any) -> None:
        seen.begun[given["key"]] = Begun(play, given["key"], given, execution, "completed")

    def sent(id_: str, kind: str, about: str, *, acknowledged: bool = True, **data: Any) -> None:
        seen.send(Sent(id_, kind, about, data, acknowledged))

    chain = {"key": key}
    asked("chain", "e1", chain)
    tables.execution("e1", "chain", chain, "completed", [number_of(key, one) for one in "abc"])
    for number, place in enumerate("abc"):
        tables.work("e1", key, place, 1_000 + 200 * number)

    trip_key = key_of("trip")
    trip = {"key": trip_key, "breaks": True}
    asked("trip", "e2", trip)
    seen.begun[trip_key].ended = "failed"
    tables.execution("e2", "trip", trip, "failed", error="step full: no seat")
    for number, place in enumerate(("hotel", "flight", "car", "car~", "flight~", "hotel~")):
        tables.work("e2", trip_key, place, 1_000 + 200 * number)
    tables.step("e2", "full", "failed")
    for number, place in enumerate(("hotel", "flight", "car"), start=2):
        entry = json.dumps({"type": "StepEnded", "place": [place, -1]}).encode()
        tables.put("workflow_history", execution_id="e2", number=number, entry=entry)
    tables.database.execute("UPDATE workflow_executions SET entries = 4 WHERE execution_id = 'e2'")

    approval_key = key_of("approval")
    asked("approval", "e3", {"key": approval_key})
    sent("lost", "answer", "e3", acknowledged=False)
    sent("answer-1", "answer", "e3")
    tables.execution("e3", "approval", {"key": approval_key}, "completed", ["now", "answer-1"])
    tables.work("e3", approval_key, "before")
    answer = {"approved": True, "choice": "now", "text": "answer-1"}
    tables.task("e3/decide", "decide", "completed", answer, task_type="workflow_question")
    tables.step("e3", "decide", "completed")
    tables.work("e3", approval_key, "last")

    survey_key = key_of("survey")
    asked("survey", "e4", {"key": survey_key})
    sent("signal-1", "signal", "e4")
    numbers = {name: number_of(survey_key, name) for name in ("first", "left", "right", "end")}
    tables.execution("e4", "survey", {"key": survey_key}, "completed", {**numbers, "go": "signal-1"}, kind="function")
    for place in ("1.1/mill.left", "1.2/mill.right"):
        tables.work("e4", survey_key, place)
    tables.step("e4", "sleep", "completed", 1_000, 1_200)
    for place in ("first", "end"):
        seen.moments.append(Moment("w1", "effect", 1_000, execution_id="e4", place=place))

    begun_key = key_of("begun")
    sent("event-1", "event", "chaos.begin", key=begun_key)
    given = {"key": begun_key, "id": "event-1"}
    tables.execution("e5", "begun", given, "completed", [number_of(begun_key, one) for one in ("a", "last")])
    for place in ("a", "last"):
        tables.work("e5", begun_key, place)

    order_key = key_of("order")
    asked("order", "e6", {"key": order_key})
    sent("paid-1", "event", "chaos.paid", order=order_key)
    tables.execution("e6", "order", {"key": order_key}, "completed", "paid-1")
    for place in ("before", "last"):
        tables.work("e6", order_key, place)
    tables.step("e6", "paid", "completed")

    fan_key = key_of("fan")
    asked("fan", "e7", {"key": fan_key, "items": 2})
    seen.begun[fan_key].ended = "failed"
    tables.execution("e7", "fan", {"key": fan_key, "items": 2}, "failed", error="step each: item 1: it has split")
    tables.step("e7", "each", "failed")
    tables.put("workflow_steps", execution_id="e7", step="each", item=-2, status="completed", completed_ms=1)
    for item, status in enumerate(("completed", "failed")):
        name = f"each[{item}]"
        result = {"n": number_of(fan_key, name)} if status == "completed" else None
        meta = {"step_id": "each", "item": str(item)}
        spec = pb.CreateTaskRequest(metadata=meta).SerializeToString()
        tables.task(f"e7/{name}", "each", status, result, spec=spec, retry_count=6 * item)

    for number in range(3):
        turn_key = key_of(f"turn{number}")
        given = {"key": turn_key, "turn": "w"}
        asked("turns", f"t{number}", given)
        tables.execution(f"t{number}", "turns", given, "completed", [number_of(turn_key, one) for one in ("a", "last")])
        for place in ("a", "last"):
            tables.work(f"t{number}", turn_key, place)
        # The third one begins when the first one has ended.
        began = 20_000 + number * 1_000
        seen.moments += [
            Moment("w1", what, at_ms, f"t{number}/a", 0) for what, at_ms in (("began", began), ("done", began + 1_500))
        ]

    for kind, name in (("noted", "note"), ("near", "far")):
        sent(f"{name}-1", "event", f"chaos.{name}")
        sent(f"{name}-2", "event", f"chaos.{name}", acknowledged=False)
        tables.event_task(kind, id=f"{name}-1")
    sent("lamp-1", "event", "chaos.lamp", id="L")
    sent("tick-1", "event", "chaos.tick", id="L")
    tables.put("workflow_instances", instance_id="L", data=b'{"n": 1}')
    tables.event_task("ticked", id="tick-1", lamp="L")
    for item in range(3):
        sent(f"part-{item}", "event", "chaos.part", job="J", item=item)
    tables.event_task("joined", job="J")

    seen.moments += [Moment("w1", "began", 1_020, "t", 1, 1), Moment("w2", "began", 3_020, "t", 2, 2)]
    replays = dict.fromkeys(("e1", "e2", "e3", "e5", "e6"), "")
    yield Evidence(seen, tasks_that_went_well(), Snapshot(tables.database), replays)
    tables.database.close()


def sql(text: str) -> Callable[[Evidence], object]:
    """Return what changes the tables."""
    return lambda evidence: evidence.snapshot.database.execute(text)


def _sent(**changes: Any) -> Callable[[Evidence], None]:
    def change(evidence: Evidence) -> None:
        for id_, fields in changes.items():
            for name, value in fields.items():
                setattr(evidence.history.sent[id_.replace("_", "-")], name, value)

    return change


def _two_begin(evidence: Evidence) -> None:
    evidence.history.moments.append(Moment("w3", "began", 4_000, "t", 2, 2))


def _done_again(evidence: Evidence) -> None:
    evidence.history.moments.append(Moment("w2", "effect", 2_000, execution_id="e4", place="first"))


def _asked_twice(evidence: Evidence) -> None:
    evidence.history.begun["other"] = Begun("chain", "other", {"key": "other"}, "e9")


def _told_wrong(evidence: Evidence) -> None:
    next(iter(evidence.history.begun.values())).ended = "failed"


VIOLATIONS: dict[str, tuple[str, Callable[[Evidence], object]]] = {
    "it runs on": (ENDS, sql("UPDATE workflow_executions SET status = 'running', completed_ms = 0")),
    "its task has another end": (ENDS, sql("UPDATE tasks SET status = 'failed' WHERE task_id = 'e1'")),
    "a step is open": (ENDS, sql("UPDATE workflow_steps SET status = 'waiting' WHERE step = 'paid'")),
    "a timer is left": (ENDS, sql("INSERT INTO workflow_timers VALUES ('execution', 'e1', 1)")),
    "a row waits": (ENDS, sql("INSERT INTO workflow_arrivals (execution_id, entry) VALUES ('e1', '')")),
    "an event is unfinished": (ENDS, sql("INSERT INTO workflow_unfinished_events VALUES ('1', 'e', '', '')")),
    "it did not come to rest": (ENDS, lambda evidence: setattr(evidence.history, "unsettled", "1 task")),
    "begun twice": (BEGUN, sql("UPDATE workflow_executions SET workflow_id = 'chain', trigger_data = "
                               "(SELECT trigger_data FROM workflow_executions WHERE execution_id = 'e1')")),
    "promised, and not there": (BEGUN, _asked_twice),
    "another end was told": (BEGUN, _told_wrong),
    "no client has asked for it": (BEGUN, lambda evidence: evidence.history.begun.pop(next(iter(evidence.history.begun)))),
    "failed without a failure": (DEMANDED, sql("UPDATE workflow_executions SET status = 'failed' WHERE execution_id = 'e1'")),
    "completed in spite of one": (DEMANDED, sql("UPDATE workflow_executions SET status = 'completed' WHERE execution_id = 'e2'")),
    "failed by another step": (DEMANDED, sql("UPDATE workflow_executions SET error = 'step car: x' WHERE execution_id = 'e2'")),
    "a step was passed over": (DEMANDED, sql("DELETE FROM tasks WHERE task_id = 'e1/b'")),
    "a step counts as skipped": (DEMANDED, sql("UPDATE workflow_steps SET status = 'skipped' WHERE step = 'b'")),
    "the result is another": (DEMANDED, sql("UPDATE task_results SET data = '[0, 0, 0]' WHERE task_id = 'e1'")),
    "a refused step has run": (
        DEMANDED, sql("""UPDATE task_results SET data = '{"approved": false, "choice": "now", "text": "answer-1"}'
                         WHERE task_id = 'e3/decide'"""),
    ),
    "a step has two tasks": (WORK, lambda evidence: evidence.executions["e1"].tasks.append(
        evidence.executions["e1"].tasks[0])),
    "a worker's result is another": (WORK, sql("""UPDATE task_results SET data = '{"n": -1}' WHERE task_id = 'e1/b'""")),
    "given up too early": (WORK, sql("UPDATE tasks SET status = 'failed', retry_count = 2 WHERE task_id = 'e1/b'")),
    "done more often than assigned": (FUNCTIONS, _done_again),
    "never done": (FUNCTIONS, lambda evidence: evidence.history.moments.pop(0)),
    "a function failed": (FUNCTIONS, sql("UPDATE workflow_executions SET status = 'failed' WHERE execution_id = 'e4'")),
    "a call gave another result": (FUNCTIONS, sql("UPDATE tasks SET status = 'failed' WHERE task_id = 'e4/1.1/mill.left'")),
    "an entry of a history is lost": (FUNCTIONS, sql("UPDATE workflow_history SET number = 2 WHERE execution_id = 'e4'")),
    "not undone": (UNDONE, sql("DELETE FROM tasks WHERE task_id = 'e2/car~'")),
    "undone without need": (UNDONE, sql("UPDATE workflow_executions SET status = 'completed' WHERE execution_id = 'e2'")),
    "undone in another order": (
        UNDONE, sql("UPDATE tasks SET created_ms = 3000, completed_ms = 3100 WHERE task_id = 'e2/car~'")
    ),
    "undone at once": (UNDONE, sql("UPDATE tasks SET created_ms = 1650 WHERE task_id = 'e2/flight~'")),
    "an event acts twice": (EVENTS, lambda evidence: evidence.payloads.append(("noted", {"id": "note-1"}))),
    "an event in doubt acts twice": (EVENTS, lambda evidence: evidence.payloads.extend([("near", {"id": "far-2"})] * 2)),
    "an event never acts": (EVENTS, sql("DELETE FROM tasks WHERE task_type = 'near'")),
    "an event starts two executions": (
        EVENTS, sql("""UPDATE workflow_executions SET workflow_id = 'begun', trigger_data = '{"id": "event-1", "key": "k"}'""")
    ),
    "an event that was not sent acts": (EVENTS, lambda evidence: evidence.history.sent.pop("note-1")),
    "a join fires twice": (EVENTS, lambda evidence: evidence.payloads.append(("joined", {"job": "J"}))),
    "a join does not fire": (EVENTS, sql("DELETE FROM tasks WHERE task_type = 'joined'")),
    "an instance is not there": (EVENTS, sql("DELETE FROM workflow_instances")),
    "an instance counts twice": (EVENTS, sql("""UPDATE workflow_instances SET data = '{"n": 2}'""")),
    "another answer counts": (HEARD, _sent(lost={"acknowledged": True})),
    "an answer that was not given": (HEARD, lambda evidence: evidence.history.sent.pop("answer-1")),
    "a signal that was not sent": (HEARD, lambda evidence: evidence.history.sent.pop("signal-1")),
    "an event of another order": (HEARD, _sent(paid_1={"data": {"order": "other"}})),
    "a third one works beside two": (
        QUEUED, lambda evidence: evidence.history.moments.extend(
            Moment("w3", what, at_ms, "t2/last", 0) for what, at_ms in (("began", 21_200), ("done", 21_300))
        )
    ),
    "a place in the flow is held for ever": (ENDS, sql("INSERT INTO workflow_flow_items VALUES (1, 'i', 'r', '')")),
    "it slept too short": (EARLY, sql("UPDATE workflow_steps SET completed_ms = 1199 WHERE step = 'sleep'")),
    "a history leads elsewhere": (REPLAYED, lambda evidence: evidence.replays.update(e1="entry 2")),  # type: ignore[attr-defined]
    "two workers, one assignment": (SHARED, _two_begin),
    "a worker ended": (FAILURES, lambda evidence: evidence.history.tracebacks.append("KeyError: 1")),
    "two epochs at once": ("one epoch at a time", lambda evidence: evidence.tasks.attempts.pop(0)),
}  # fmt: skip


def test_a_good_run_violates_nothing(evidence: Evidence) -> None:
    verdicts = check_all(evidence)
    assert [violation for verdict in verdicts for violation in verdict.violations] == []
    assert [verdict.invariant for verdict in verdicts if not verdict.looked_at] == []


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_found(evidence: Evidence, name: str) -> None:
    invariant, spoil = VIOLATIONS[name]
    spoil(evidence)
    assert invariant in [verdict.invariant for verdict in check_all(evidence) if verdict.violations]


def test_every_check_of_workflows_has_a_violation(evidence: Evidence) -> None:
    own = {ENDS, BEGUN, DEMANDED, WORK, FUNCTIONS, UNDONE, EVENTS, HEARD, QUEUED, EARLY, REPLAYED, SHARED, FAILURES}
    assert own <= {verdict.invariant for verdict in check_all(evidence)}
    assert own <= {invariant for invariant, _ in VIOLATIONS.values()}


def test_what_a_play_must_come_to() -> None:
    """By hand, where the rules of a play say more than what its tasks are."""
    done = Outcome("completed", {"n": 1})
    failed = Outcome("failed")

    def come(play: str, given: Any, **ended: Outcome) -> tuple[str, dict[str, str]]:
        found = demanded(PLAYS[play], {"key": "k", **given}, ended.get, stopped=False)
        assert found.problems == []
        return found.status, dict(found.steps)

    assert come("handler", {}, risky=failed, clean=done) == (
        "completed",
        {"risky": "failed", "clean": "completed", "after": "skipped"},
    )
    assert come("handler", {}, risky=done, after=done)[1] == {
        "risky": "completed",
        "clean": "skipped",
        "after": "completed",
    }
    assert come("joins", {}, a=failed, b=done, c=done, first=done, second=done, last=done)[0] == "completed"
    assert come("chain", {}, a=done, b=failed) == ("failed", {"a": "completed", "b": "failed", "c": ""})
    assert demanded(PLAYS["chain"], {"key": "k"}, {"a": done}.get, stopped=False).problems == [
        "b was due, and its work was not done to its end"
    ]
    assert demanded(PLAYS["handler"], {"key": "k"}, {"risky": done, "after": done, "clean": done}.get,
                    stopped=False).problems == ["clean had work done, and was not due"]  # fmt: skip


def test_work_ends_by_the_seed() -> None:
    assert fate("k", "a", 1) == fate("k", "a", 1)
    ends = [fate(f"k{number}", "a", attempt) for number in range(300) for attempt in (1, 2)]
    assert {one.error for one in ends} == {"", "the stone has split", "the grain was damp"}
    assert {one["id"] for one in documents() if "steps" in one} == {name for name in PLAYS if name != "survey"}


@pytest.mark.parametrize("wrong", [["--engine", "sqlite", "--nodes", "3"], ["--engine", "mysql"], ["--every", "0"]])
def test_wrong_arguments_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["workflows", *wrong])
    assert ended.value.code == 2
    assert "usage: python -m chaos workflows" in capsys.readouterr().err


@pytest.mark.crash
async def test_executions_outlive_a_worker_and_the_gateway_that_are_killed(tmp_path: Path) -> None:
    said: list[str] = []
    keep = tmp_path / "kept"
    wishes = WorkflowWishes(
        seed=4, executions=60, nodes=0, workers=2, mean_s=0.7, pace_s=1.0, each_once=True, keep=keep
    )
    result = await run(wishes, said.append)
    story = "\n".join(said)
    hit = {f"{what} of a {whom}": 1 for what in ("kill -9", "SIGSTOP") for whom in ("worker", "node")}
    assert result.evidence.history.faults == hit, story
    violations = [f"{verdict.invariant}: {one}" for verdict in result.verdicts for one in verdict.violations]
    assert violations == [], story
    assert [verdict.invariant for verdict in result.verdicts if not verdict.looked_at] == [], story
    kept = await evidence_of(keep)
    assert check_all(kept) == result.verdicts
    kept.snapshot.close()
    # The replay of a real history finds a state to which it does not lead, and a lost entry.
    tables = result.evidence.snapshot
    [one, other, *_] = [
        row[0] for row in tables.rows("SELECT execution_id FROM workflow_executions WHERE kind = 'graph'")
    ]
    tables.rows("UPDATE workflow_executions SET state = ? WHERE execution_id = ?", b"{}", one)
    tables.rows("DELETE FROM workflow_history WHERE number = 1 AND execution_id = ?", other)
    spoilt = {execution for execution, problem in (await replay_all(tables)).items() if problem}
    assert spoilt == {one, other}
    tables.close()
