"""Compiles the `tests` of a workflow's document.

    tests:
      - name: two pages are read
        input: {topic: rust}
        steps:
          search: {result: {urls: [a, b]}, after: 2s}
          read: [{result: one}, {error: not there, error_type: HTTP}]
        expect: {status: failed, error: "*not there*", steps: {write: skipped}}

A list of outcomes is that of the items of a `for_each`, the rounds of a `while`, or the attempts.
Values are literal: they are no templates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from aether_trio.model.workflows.compiling import Compiler
from aether_trio.model.workflows.definition import (
    Action,
    ActionType,
    AskStep,
    CallWorkflow,
    CaseEnd,
    Json,
    Path,
    SentSignal,
    Step,
    StepOutcome,
    StepOutcomes,
    WaitFor,
    WorkflowCase,
)
from aether_trio.model.workflows.reading import Fields, kind_of, prose, quoted

START: Final = "2026-01-01T00:00:00Z"
MAX_CASES: Final = 1_000
MAX_OUTCOMES: Final = 10_000
MAX_SENT: Final = 1_000
CASE_KEYS: Final = ("name", "input", "now", "steps", "signals", "events", "cancel_at", "expect")
OUTCOME_KEYS: Final = ("result", "error", "error_type", "after", "answer", "steps")
ANSWER_KEYS: Final = ("approved", "choice", "text", "data", "by")
EXPECT_KEYS: Final = ("status", "error", "error_type", "result", "continues", "steps")
SHOWN_KEYS: Final = ("status", "error", "error_type", "result", "sent", "attempts")
ENDS: Final = ("completed", "failed", "cancelled", "running", "paused", "refused")
STATUSES: Final = ("pending", "running", "waiting", "completed", "failed", "skipped", "cancelled", "compensated")
_SIGNAL_KEYS: Final = ("name", "data", "at", "by")
_EVENT_KEYS: Final = (*_SIGNAL_KEYS, "agent")


def compile_cases(compiler: Compiler, fields: Fields, steps: Mapping[str, Step]) -> tuple[WorkflowCase, ...]:
    """Compile the cases of a document; what is wrong is in the compiler's findings."""
    return _CaseCompiler(compiler, steps).cases(fields)


class _CaseCompiler:
    def __init__(self, compiler: Compiler, steps: Mapping[str, Step]) -> None:
        self.compiler = compiler
        self.findings = compiler.findings
        self.steps = steps

    def cases(self, fields: Fields) -> tuple[WorkflowCase, ...]:
        found = []
        names: set[str] = set()
        for number, (one, path) in enumerate(fields.entries("tests", most=MAX_CASES)):
            given = one.get("name") if isinstance(one, dict) else None
            label = f"test {quoted(given)}" if isinstance(given, str) and given else f"test {number + 1}"
            inner = Fields(one, path, self.findings, CASE_KEYS, label)
            name = inner.text("name", f"test {number + 1}", check=prose)
            if name in names:
                inner.error("name", f"{label} is there twice")
            names.add(name)
            if isinstance(one, dict):
                found.append(self._case(inner, path, name))
        return tuple(found)

    def _case(self, fields: Fields, path: Path, name: str) -> WorkflowCase:
        now = fields.text("now", START)
        try:
            if datetime.fromisoformat(now).tzinfo is None:
                raise ValueError
        except ValueError:
            fields.error("now", f"{fields.what}: now has to be a moment such as '2026-11-29T18:00:00Z'")
        return WorkflowCase(
            name=name,
            path=path,
            input=fields.get("input"),
            now=now,
            outcomes=self._outcomes(fields, top=True),
            signals=self._sent(fields, "signals", _SIGNAL_KEYS),
            events=self._sent(fields, "events", _EVENT_KEYS),
            cancel_ms=self.compiler.duration(fields, "cancel_at") if fields.has("cancel_at") else -1,
            expect=self._expect(fields),
        )

    # -- what happens ------------------------------------------------------------------------------

    def _outcomes(self, fields: Fields, *, top: bool) -> StepOutcomes:
        found: dict[str, tuple[StepOutcome, ...]] = {}
        for step, value, path in fields.mapping("steps"):
            if top and not self._known(step, path, fields.what):
                continue
            if top and (problem := _no_outcome(self.steps[step])):
                self.findings.error(path, f"{fields.what}: step {quoted(step)} {problem}")
                continue
            entries = value if isinstance(value, list) else [value]
            if not entries or len(entries) > MAX_OUTCOMES:
                self.findings.error(
                    path,
                    f"{fields.what}: step {quoted(step)} has {len(entries)} outcomes; 1 to {MAX_OUTCOMES} are allowed",
                )
                continue
            paths = [(*path, index) for index in range(len(entries))] if isinstance(value, list) else [path]
            what = f"{fields.what}, step {quoted(step)}"
            found[step] = tuple(
                self._outcome(Fields(one, at, self.findings, OUTCOME_KEYS, what), self.steps[step] if top else None)
                for one, at in zip(entries, paths, strict=True)
            )
        return found

    def _known(self, step: str, path: Path, what: str) -> bool:
        if step in self.steps:
            return True
        hint = self.findings.hint(step, self.steps)
        self.findings.error(path, f"{what}: there is no step {quoted(step)}{hint}", of_key=True)
        return False

    def _outcome(self, fields: Fields, step: Step | None) -> StepOutcome:
        ways = [key for key in ("result", "error", "answer", "steps") if key in fields.keys]
        if len(ways) > 1:
            fields.error(ways[1], f"{fields.what} has both {ways[0]} and {ways[1]}")
        if fields.has("error_type") and not fields.has("error"):
            fields.error("error_type", f"{fields.what} has an error_type, but no error")
        if step is not None:
            if fields.has("answer") and not isinstance(step.work, AskStep):
                fields.error("answer", f"{fields.what} asks nothing: write result")
            if isinstance(step.work, AskStep) and not fields.has("answer") and not fields.no_map:
                self.findings.error(fields.path, f"{fields.what} asks a person: write answer")
            if fields.has("steps") and not isinstance(step.work, CallWorkflow):
                fields.error("steps", f"{fields.what} is no workflow: write result")
        return StepOutcome(
            result=fields.get("result"),
            error=fields.text("error", check=prose),
            error_type=fields.text("error_type"),
            after_ms=self.compiler.duration(fields, "after"),
            answer=self._answer(fields) if fields.has("answer") else None,
            steps=self._outcomes(fields, top=False) if fields.has("steps") else None,
        )

    def _answer(self, fields: Fields) -> dict[str, Json]:
        inner = Fields(fields.get("answer"), fields.at("answer"), self.findings, ANSWER_KEYS, f"{fields.what}, answer")
        return {
            "approved": inner.flag("approved", True),
            "choice": inner.text("choice", check=prose),
            "text": inner.text("text", check=prose),
            "data": inner.get("data"),
            "by": inner.text("by", "us::tester"),
        }

    def _sent(self, fields: Fields, key: str, known: tuple[str, ...]) -> tuple[SentSignal, ...]:
        return tuple(self._sent_ones(fields, key, known))

    def _sent_ones(self, fields: Fields, key: str, known: tuple[str, ...]) -> Iterator[SentSignal]:
        waits = [one.work for one in self.steps.values() if isinstance(one.work, WaitFor)]
        names = {one.signal if key == "signals" else one.event for one in waits} - {""}
        calls = any(isinstance(one.work, CallWorkflow) for one in self.steps.values())
        for one, path in fields.entries(key, most=MAX_SENT):
            inner = Fields(one, path, self.findings, known, f"{fields.what}, {key}")
            name = inner.text("name", required=True)
            if name and name not in names and not (calls and key == "events"):
                hint = self.findings.hint(name, names)
                inner.error("name", f"{inner.what}: no step waits for {quoted(name)}{hint}")
            yield SentSignal(
                name=name,
                data=inner.get("data"),
                at_ms=self.compiler.duration(inner, "at"),
                agent=inner.text("agent") if "agent" in known else "",
                by=inner.text("by", "us::tester"),
            )

    # -- what is expected --------------------------------------------------------------------------

    def _expect(self, fields: Fields) -> CaseEnd:
        given: Json = fields.get("expect") if fields.has("expect") else {}
        inner = Fields(given, fields.at("expect"), self.findings, EXPECT_KEYS, f"{fields.what}, expect")
        fails = inner.has("error") or inner.has("error_type")
        return CaseEnd(
            status=inner.choice("status", ENDS, "failed" if fails else "completed"),
            error=inner.text("error", check=prose) if inner.has("error") else None,
            error_type=inner.text("error_type") if inner.has("error_type") else None,
            has_result="result" in inner.keys,
            result=inner.get("result"),
            has_continues="continues" in inner.keys,
            continues=inner.get("continues"),
            steps=dict(self._expected_steps(inner, fields.what)),
        )

    def _expected_steps(self, fields: Fields, what: str) -> Iterator[tuple[str, dict[str, Json]]]:
        for step, value, path in fields.mapping("steps"):
            if not self._known(step, path, what):
                continue
            short = isinstance(value, str)
            given = {"status": value} if short else value
            inner = Fields(given, path, self.findings, SHOWN_KEYS, f"{fields.what}, step {quoted(step)}")
            if short:
                inner.keys.clear()  # the path of the status is that of the text
            expected: dict[str, Json] = {
                key: inner.get(key) for key in ("result", "sent") if isinstance(value, dict) and key in value
            }
            if inner.has("status"):
                expected["status"] = inner.choice("status", STATUSES)
            for key in ("error", "error_type"):
                if inner.has(key):
                    expected[key] = inner.text(key, check=prose)
            if inner.has("attempts"):
                expected["attempts"] = inner.whole("attempts")
            if "sent" in expected and not isinstance(expected["sent"], dict):
                inner.error("sent", f"{inner.what}: sent has to be a map, and is {kind_of(expected['sent'])}")
            yield step, expected


def _no_outcome(step: Step) -> str:
    """Return why a case can give no outcome of a step; "" if it can."""
    work = step.work
    if isinstance(work, WaitFor):
        return "waits: what it waits for is among signals or events, and time passes without being told"
    if isinstance(work, AskStep | CallWorkflow):
        return ""
    if isinstance(work, Action) and work.type is not ActionType.EMIT_EVENT:
        return ""
    return "ends at once, as it does no work outside: it needs no outcome"
