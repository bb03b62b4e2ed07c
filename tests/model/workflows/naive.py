"""Interprets graphs the slow way: after each thing it looks at everything again.

It is written against the description of the semantics, with words instead of codes, all results at
hand, no plan and no paging of state. Only what a user can tell apart is the same.
"""

from __future__ import annotations

import fnmatch
import json
from datetime import UTC, datetime
from typing import Any

from aether_trio.model.workflows.definition import (
    Action,
    ActionType,
    AskStep,
    CallWorkflow,
    ContinueAs,
    EvaluationError,
    Fail,
    Graph,
    Json,
    MapMode,
    Step,
    WaitFor,
)
from aether_trio.model.workflows.happenings import (
    NO_ITEM,
    CancelAsked,
    EventReceived,
    Happening,
    ItemsEnded,
    LimitReached,
    PauseAsked,
    ResumeAsked,
    RetryAsked,
    SignalReceived,
    Started,
    StepEnded,
    StepPlace,
    TimePassed,
)
from aether_trio.model.workflows.interpreter import EXPRESSION, LIMIT, STOPPED, TIMEOUT
from tests.model.workflows.driver import as_read

OVER = ("completed", "failed", "skipped", "cancelled", "compensated")
OPEN = ("task", "call", "ask", "signal", "event", "time", "delay")


class Naive:
    """An execution; `done` lists what it did last: ("skip", place) and the like."""

    def __init__(self, graph: Graph, trigger: Json, page: int) -> None:
        self.graph, self.trigger, self.page = graph, trigger, page
        self.status = "new"
        self.words: dict[str, str] = dict.fromkeys(graph.steps, "pending")  # active: begun
        self.places: dict[StepPlace, str] = {}
        self.attempts: dict[StepPlace, int] = {}
        self.bases: dict[str, int] = {}  # attempts before the execution was retried
        self.results: dict[StepPlace, Json] = {}
        self.errors: dict[StepPlace, tuple[str, str]] = {}
        self.routes: dict[str, str] = {}
        self.lists: dict[str, list[Json]] = {}
        self.rounds: dict[str, int] = {}  # completed ones
        self.timers: dict[tuple[StepPlace, str], int] = {}
        self.questions: dict[StepPlace, tuple[int, int]] = {}  # when it was asked, escalations
        self.signals: list[tuple[str, Json, str]] = []
        self.order: list[str] = []
        self.cancelling: set[StepPlace] = set()
        self.undoing: dict[StepPlace, int] = {}
        self.failure: Any = None
        self.ending: Any = None
        self.begun = self.allowance = 0
        self.used = self.ticking = self.more = self.settled_at = 0
        self.stalled: set[str] = set()  # steps that begin no more items or rounds in this happening
        self.done: list[Any] = []

    # -- what happens ------------------------------------------------------------------------------

    def tell(self, happening: Happening, raw: dict[StepPlace, Json]) -> list[Any]:
        """Take a happening in; `raw` are the results of tasks that ended."""
        self.done = []
        self.at = happening.at_ms
        self.left = self.page
        self.taking = True
        self.failing: dict[str, tuple[str, str]] = {}
        took = self._take(happening, raw)
        self.taking = False
        for name, error in self.failing.items():
            if self.words[name] == "active":
                self._fail_step(self.graph.steps[name], *error)
        if took:
            self._settle()
            self._clock()
            self.settled_at = self.at
        return self.done

    def _take(self, happening: Happening, raw: dict[StepPlace, Json]) -> bool:
        going = self.status in ("running", "paused")
        match happening:
            case Started() if self.status == "new":
                self.status, self.started, self.allowance = "running", self.at, self.graph.budget.steps
                return True
            case StepEnded():
                return self._ended(happening, raw)
            case ItemsEnded():
                took = [self._ended(one, raw) for one in happening.ended]
                return any(took)
            case TimePassed() if self.status != "new":
                return self._time()
            case SignalReceived() if going:
                return self._signal(happening)
            case EventReceived() if going:
                return self._event(happening)
            case CancelAsked() if going:
                self._begin_end("cancelled", happening.reason or "cancelled", STOPPED, "")
                return True
            case LimitReached() if going:
                self._begin_end("failed", happening.error, happening.error_type, "")
                return True
            case PauseAsked() if self.status == "running":
                self.status = "paused"
                return True
            case ResumeAsked() if self.status == "paused":
                self.status = "running"
                if self.graph.budget.steps and self.begun >= self.allowance:
                    self.allowance = self.begun + self.graph.budget.steps
                self.stalled.clear()
                return True
            case RetryAsked() if self.status in ("failed", "cancelled"):
                self._retry()
                return True
        return False

    def _ended(self, ended: StepEnded, raw: dict[StepPlace, Json]) -> bool:
        place = ended.place
        step = self.graph.steps.get(place.step)
        if step is None:
            return False
        if ended.compensates:
            if place not in self.undoing or ended.attempt not in (0, self.undoing[place]):
                return False
            del self.undoing[place]
            self.done.append(("undone", place, ended.outcome))
            return True
        if place in self.cancelling:
            if ended.attempt not in (0, self.attempts[place]):
                return False
            self.cancelling.discard(place)
            if ended.outcome == "completed" and self.status == "compensating":
                self.results[place] = raw[place]
                self.places[place] = "completed"
                if step.while_ is not None:
                    self.rounds[step.id] = place.item + 1
                if place.item == NO_ITEM:
                    self.words[step.id] = "completed"
                if step.compensate and step.id not in self.order:
                    self.order.append(step.id)
            return True
        if self.status not in ("running", "paused") or self.places.get(place) not in ("task", "call", "ask"):
            return False
        if ended.attempt not in (0, self.attempts[place]):
            return False
        if ended.outcome == "completed":
            self._finish(step, place, raw[place])
        else:
            cancelled = ended.outcome == "cancelled"
            error = ended.error or ("cancelled" if cancelled else "failed")
            self._fail(step, place, error, ended.error_type or (STOPPED if cancelled else "FAILED"))
        return True

    def _time(self) -> bool:
        took = False
        if self.more and self.more <= self.at and self.status != "paused":
            self.more, took = 0, True
            self.stalled.clear()
        timeout = self.graph.timeout_ms
        if self.ticking and timeout and self.used + self.at - self.ticking >= timeout:
            self._begin_end("failed", f"the execution timed out after {timeout / 1000:g} s", TIMEOUT, "")
            return True
        order = list(self.graph.steps)
        due = sorted(
            (due, order.index(place.step), kind, place)
            for (place, kind), due in self.timers.items()
            if due <= self.at and not (kind == "retry" and self.status == "paused")
        )
        for _, _, kind, place in due:
            if (place, kind) not in self.timers:
                continue
            took = True
            due_ms = self.timers.pop((place, kind))
            step = self.graph.steps[place.step]
            if kind == "retry":
                if self.failure is None and step.id not in self.failing:
                    self._begin(step, place)
            elif kind == "over":
                self._finish(step, place, None)
            elif kind == "timeout":
                self._timed_out(step, place)
            else:
                self._escalate(step, place, due_ms)
        return took

    def _timed_out(self, step: Step, place: StepPlace) -> None:
        default = step.work.default  # type: ignore[union-attr]
        self._tell_cancel(place)
        error = f"timed out after {step.timeout_ms / 1000:g} s", TIMEOUT
        if default is not None:
            result, failed = self._try(step, place, default)
            if not failed:
                self._finish(step, place, result)
                return
            error = failed, EXPRESSION
        self._fail(step, place, *error)

    def _escalate(self, step: Step, place: StepPlace, due_ms: int) -> None:
        assert isinstance(step.work, AskStep)
        asked, number = self.questions[place]
        of, failed = self._try(step, place, step.work.escalate[number].of)
        question, failed_too = (None, "") if failed else self._try(step, place, step.work.question)
        if failed or failed_too:
            self._tell_cancel(place)
            self._fail(step, place, failed or failed_too, EXPRESSION)
            return
        self.done.append(("ask", place, self.attempts[place], text(question), text(of)))
        self._escalate_later(step.work, place, asked, number + 1)

    def _escalate_later(self, work: AskStep, place: StepPlace, asked: int, number: int) -> None:
        self.questions[place] = asked, number
        if number < len(work.escalate):
            self.timers[place, "escalate"] = asked + work.escalate[number].after_ms

    def _signal(self, happening: SignalReceived) -> bool:
        steps = [one for one in self.graph.steps.values() if isinstance(one.work, WaitFor)]
        steps = [one for one in steps if one.work.signal == happening.name]  # type: ignore[union-attr]
        for step in steps:
            for place in sorted(place for place in self.places if place.step == step.id):
                if self.places[place] == "signal" and self._takes(step, place, happening.data, happening.by):
                    return True
        if steps:
            self.signals.append((happening.name, happening.data, happening.by))
        return bool(steps)

    def _takes(self, step: Step, place: StepPlace, data: Json, by: str) -> bool:
        extra = {"input": data, "source": {"principal": by}}
        held, failed = self._try(step, place, step.work.condition, extra, True)  # type: ignore[union-attr]
        if failed:
            self._fail(step, place, failed, EXPRESSION)
        elif held:
            self._finish(step, place, data)
        return bool(failed or held)

    def _event(self, happening: EventReceived) -> bool:
        if self.places.get(happening.place) != "event":
            return False
        step = self.graph.steps[happening.place.step]
        return self._takes(step, happening.place, happening.data, happening.source)

    def _retry(self) -> None:
        self.status, self.failure, self.ending, self.used = "running", None, None, 0
        again = {
            name
            for name, word in self.words.items()
            if word in ("cancelled", "compensated") or (word == "failed" and not self.routes.get(name))
        }
        while True:
            more = {
                name
                for name, step in self.graph.steps.items()
                if self.words[name] == "skipped" and name not in again and again & set(sources(step))
            }
            if not more:
                break
            again |= more
        self.stalled.clear()
        for name in again:
            self.words[name] = "pending"
            self.bases[name] = max((count for one, count in self.attempts.items() if one.step == name), default=0)
            self.errors.pop(StepPlace(name), None)
            for place in [one for one in self.places if one.step == name]:
                if self.places[place] in ("failed", "cancelled", "compensated"):
                    del self.places[place]

    # -- what follows ------------------------------------------------------------------------------

    def _settle(self) -> None:
        while self.status == "running":
            if self.failure is not None:
                self._begin_end("failed", *self.failure)
            elif not any(self._step(step) for step in self.graph.steps.values()):
                if self._waits_for_something():
                    return
                self._complete()
        if self.status == "compensating":
            self._undo()

    def _waits_for_something(self) -> bool:
        return any(word in OPEN for word in self.places.values()) or bool(self.stalled or self.cancelling)

    def _step(self, step: Step) -> bool:
        """Do the next thing of a step; returns whether there was one."""
        word = self.words[step.id]
        if word == "active":
            if step.id in self.stalled:
                return False
            return self._items(step) if step.for_each else self._round(step) if step.while_ else False
        if word != "pending":
            return False
        standing = self._standing(step)
        if standing == "never":
            self._skip(step)
            return True
        if standing != "ready" or not self._afford():
            return self.status != "running"
        held, failed = self._try(step, StepPlace(step.id), step.when, {}, True)
        if failed:
            self._fail_step(step, failed, EXPRESSION)
        elif not held:
            self._skip(step)
        elif step.for_each is not None:
            if step.id not in self.lists:
                items, failed = self._try(step, StepPlace(step.id), step.for_each.items)
                if not failed and not isinstance(items, list):
                    failed = f"for_each gives {kind(items)}, not a list"
                if failed:
                    self._fail_step(step, failed, EXPRESSION)
                    return True
                self.lists[step.id] = items
            self.words[step.id] = "active"
            self.attempts[StepPlace(step.id)] = self.attempts.get(StepPlace(step.id), 0) + 1
        elif step.while_ is not None:
            self.words[step.id] = "active"
        else:
            self.words[step.id] = "active"
            self._begin(step, StepPlace(step.id))
        return True

    def _skip(self, step: Step) -> None:
        self.words[step.id] = "skipped"
        self.done.append(("skip", StepPlace(step.id)))

    def _standing(self, step: Step) -> str:
        words = [self.words[one] for one in step.depends_on]
        wanted = step.join or len(words)
        possible = sum(word == "completed" or word not in OVER for word in words)
        before = [self.words[one] for one in step.targeted_by]
        failed = any(self.words[one] == "failed" and self.routes[one] == step.id for one in step.failure_target_of)
        hopeless = step.failure_target_of and all(self.words[one] in OVER for one in step.failure_target_of)
        if possible < wanted or any(word in OVER and word != "completed" for word in before):
            return "never"
        if hopeless and not failed:
            return "never"
        if words.count("completed") < wanted or before.count("completed") < len(before):
            return "later"
        return "ready" if failed or not step.failure_target_of else "later"

    def _afford(self) -> bool:
        if self.graph.budget.steps and self.begun >= self.allowance:
            self.status = "paused"
            self.done.append(("pause",))
            return False
        return True

    def _items(self, step: Step) -> bool:
        assert step.for_each is not None
        places = [StepPlace(step.id, item) for item in range(len(self.lists[step.id]))]
        fresh = [place for place in places if place not in self.places]
        running = [place for place in places if self.places.get(place) in OPEN]
        if fresh and len(running) < (step.for_each.max_parallel or len(places)):
            if not self.left:
                self.more = self.at
                self.stalled.add(step.id)
                return False
            if self._afford():
                self.left -= 1
                self._begin(step, fresh[0])
            return True
        if fresh or running:
            return False
        results: list[Json] = []
        for place in places:
            settled = step.for_each.mode == MapMode.SETTLED
            if self.places[place] == "completed":
                result = self.results[place]
                results.append({"status": "completed", "result": result} if settled else result)
            else:
                error, error_type = self.errors[place]
                results.append({"status": "failed", "error": error, "error_type": error_type})
        self.results[StepPlace(step.id)] = results
        self._complete_step(step)
        return True

    def _round(self, step: Step) -> bool:
        assert step.while_ is not None
        number = self.rounds.get(step.id, 0)
        place = StepPlace(step.id, number)
        if place in self.places:
            return False
        if not self.left:
            self.more = self.at
            self.stalled.add(step.id)
            return False
        if not self._afford():
            return True
        held, failed = self._try(step, place, step.while_.condition, {}, True)
        if failed:
            self._fail_step(step, f"condition of round {number}: {failed}", EXPRESSION)
        elif not held:
            self.results[StepPlace(step.id)] = self.results.get(StepPlace(step.id, number - 1)) if number else None
            self._complete_step(step)
        elif number >= step.while_.max_rounds:
            error = f"the condition still holds after {step.while_.max_rounds} rounds, which is the most"
            self._fail_step(step, error, LIMIT)
        else:
            self.left -= 1
            self._begin(step, place)
        return True

    def _begin(self, step: Step, place: StepPlace) -> None:
        self.begun += 1
        self.attempts[place] = attempt = max(self.attempts.get(place, 0), self.bases.get(step.id, 0)) + 1
        work = step.work
        compute = lambda value: self._value(step, place, value)  # noqa: E731
        try:
            match work:
                case Action():
                    values = self._values(step, place, work, {})
                    self.done.append(("do", place, attempt, values))
                    if work.type == ActionType.EMIT_EVENT:
                        self._finish(step, place, None)
                    else:
                        self.places[place] = "task"
                case CallWorkflow():
                    given = compute(work.input) if work.input is not None else {}
                    self.done.append(("call", place, attempt, given))
                    self.places[place] = "call"
                case AskStep():
                    of = text(compute(work.of)) if work.of is not None else ""
                    question = text(compute(work.question))
                    self.done.append(("ask", place, attempt, question, of))
                    self.places[place] = "ask"
                    self._escalate_later(work, place, self.at, 0)
                case Fail():
                    self._end_failed(step, text(compute(work.message)), work.error_type, "")
                case ContinueAs():
                    given = compute(work.input)
                    self.words[step.id] = "completed"
                    self._cancel(step)
                    self._stop()
                    self.status = "completed"
                    self.done.append(("continue", given))
                case WaitFor(signal=""):
                    if work.event:
                        value = compute(work.equals) if work.equals is not None else None
                        self.places[place] = "event"
                        self.done.append(("wait", place, value))
                    else:
                        seconds = compute(work.duration)
                        if not seconds:
                            self._finish(step, place, None)
                            return
                        self.places[place] = "time"
                        self.timers[place, "over"] = self.at + seconds * 1000
                case WaitFor():
                    for signal in self.signals:
                        if signal[0] == work.signal and self._takes(step, place, signal[1], signal[2]):
                            self.signals.remove(signal)
                            return
                    self.places[place] = "signal"
                case _:
                    self._finish(step, place, None)
        except EvaluationError as failed:
            self._fail(step, place, str(failed), EXPRESSION)
            return
        if step.timeout_ms and self.places.get(place) in ("ask", "signal", "event", "time"):
            self.timers[place, "timeout"] = self.at + step.timeout_ms

    # -- ends --------------------------------------------------------------------------------------

    def _leave(self, place: StepPlace, word: str) -> None:
        self.places[place] = word
        for timer in [one for one in self.timers if one[0] == place]:
            del self.timers[timer]

    def _finish(self, step: Step, place: StepPlace, result: Json) -> None:
        if step.output is not None:
            result, failed = self._try(step, place, step.output, {"result": result})
            if failed:
                self._fail(step, place, failed, EXPRESSION)
                return
        self.results[place] = result
        self._leave(place, "completed")
        self.stalled.discard(step.id)
        if place.item == NO_ITEM:
            self._complete_step(step)
        elif step.while_ is not None:
            self.rounds[step.id] = place.item + 1

    def _complete_step(self, step: Step) -> None:
        self.words[step.id] = "completed"
        if step.compensate is not None:
            self.order.append(step.id)

    def _fail(self, step: Step, place: StepPlace, error: str, error_type: str) -> None:
        self._leave(place, "failed")
        final = error_type in (EXPRESSION, LIMIT, STOPPED) or any(
            fits(one, error, error_type) for one in step.retry.final
        )
        again = isinstance(step.work, (CallWorkflow, WaitFor, AskStep)) and not final
        tries = self.attempts[place] - self.bases.get(step.id, 0)
        if again and tries < step.retry.max_attempts:
            self.places[place] = "delay"
            growth = {"linear": tries, "exponential": 2 ** (tries - 1)}
            delay = step.retry.initial_ms * growth.get(step.retry.backoff, 1)
            self.timers[place, "retry"] = self.at + min(delay, step.retry.max_ms or delay)
            return
        self.stalled.discard(step.id)
        if place.item != NO_ITEM:
            self.errors[place] = error, error_type
        if place.item == NO_ITEM:
            self._fail_step(step, error, error_type)
        elif step.while_ is not None:
            self._fail_step(step, f"round {place.item}: {error}", error_type)
        elif step.for_each is not None and step.for_each.mode == MapMode.FAIL_FAST:
            if self.taking:
                self.failing.setdefault(step.id, (f"item {place.item}: {error}", error_type))
            else:
                self._fail_step(step, f"item {place.item}: {error}", error_type)

    def _fail_step(self, step: Step, error: str, error_type: str) -> None:
        self._cancel(step)
        route = step.on_failure
        for handler in step.on_error:
            if fits(handler.error, error, error_type):
                if handler.result is None:
                    route = handler.run
                    break
                extra = {"error": {"step": step.id, "type": error_type, "message": error}}
                result, failed = self._try(step, StepPlace(step.id), handler.result, extra)
                if not failed:
                    self.results[StepPlace(step.id)] = result
                    self.words[step.id] = "completed"
                    self._partly_done(step)
                    return
                error, error_type = f"{failed} (in on_error of: {error})", EXPRESSION
                break
        self._end_failed(step, error, error_type, route)

    def _end_failed(self, step: Step, error: str, error_type: str, route: str) -> None:
        self._cancel(step)
        self.stalled.discard(step.id)
        self.words[step.id] = "failed"
        self.routes[step.id] = route
        self.errors[StepPlace(step.id)] = error, error_type
        self._partly_done(step)
        if not route and self.failure is None:
            self.failure = f"step {step.id}: {error}", error_type, step.id

    def _partly_done(self, step: Step) -> None:
        done = [
            one for one, word in self.places.items() if one.step == step.id and one.item >= 0 and word == "completed"
        ]
        if done and step.compensate and step.id not in self.order:
            self.order.append(step.id)

    def _cancel(self, step: Step) -> None:
        for place in sorted(self.places):
            if place.step == step.id and self.places[place] in OPEN:
                self._tell_cancel(place)
                if self.places[place] == "call":
                    self.cancelling.add(place)
                self._leave(place, "cancelled")

    def _stop(self) -> None:
        self.failure, self.more = None, 0
        for step in self.graph.steps.values():
            if self.words[step.id] == "active":
                self._cancel(step)
                self.words[step.id] = "cancelled"
                self._partly_done(step)

    def _begin_end(self, status: str, error: str, error_type: str, step: str) -> None:
        self._stop()
        self.status = "compensating"
        self.ending = status, error, error_type, step

    def _complete(self) -> None:
        results = {
            name: self.results.get(StepPlace(name)) for name in self.graph.steps if self.words[name] == "completed"
        }
        if self.graph.outputs is not None:
            results, failed = self._try(None, StepPlace(""), self.graph.outputs)
            if failed:
                self.failure = f"outputs: {failed}", EXPRESSION, ""
                return
        self.status, self.more = "completed", 0
        self.done.append(("end", "completed", results, "", ""))

    def _undo(self) -> None:
        if self.cancelling:
            return
        while self.order:
            step = self.graph.steps[self.order[-1]]
            width = 1
            if (step.for_each or step.while_) and self.words[step.id] == "completed":
                self.words[step.id] = "compensated"
            if step.for_each is not None:
                width = min(step.for_each.max_parallel or self.page, self.page)
            while len(self.undoing) < width and (place := self._last_done(step)) is not None:
                if not self.left and place.item != NO_ITEM:
                    self.more = self.at
                    return
                self.left -= place.item != NO_ITEM
                self._undo_place(step, place)
            if self.undoing or self.more:
                return
            self.order.pop()
        status, error, error_type, _ = self.ending
        self.status, self.more = status, 0
        self.done.append(("end", status, None, error, error_type))

    def _last_done(self, step: Step) -> StepPlace | None:
        if step.for_each is None and step.while_ is None:
            return StepPlace(step.id) if self.words[step.id] == "completed" else None
        places = [one for one, word in self.places.items() if one.step == step.id and word == "completed"]
        return max(places, default=None)

    def _undo_place(self, step: Step, place: StepPlace) -> None:
        action = step.compensate
        assert action is not None
        if self.words[step.id] == "completed":
            self.words[step.id] = "compensated"
        self.places[place] = "compensated"
        if step.while_ is not None:
            self.rounds[step.id] = place.item
        attempt = self.attempts.get(place, 1)
        if step.while_ is not None:
            attempt = self.bases.get(step.id, 0) + 1
        _, error, error_type, failed_step = self.ending
        extra = {
            "error": {"step": failed_step, "type": error_type, "message": error},
            "result": self.results[place],
        }
        try:
            values = self._values(step, place, action, extra)
        except EvaluationError:
            self.done.append(("undone", place, "failed"))
            return
        self.done.append(("undo", place, attempt, values))
        if action.type == ActionType.EMIT_EVENT:
            self.done.append(("undone", place, "completed"))
        else:
            self.undoing[place] = attempt

    def _tell_cancel(self, place: StepPlace) -> None:
        if self.places[place] in ("task", "call", "ask"):
            self.done.append(("cancel", place))

    # -- time --------------------------------------------------------------------------------------

    def _clock(self) -> None:
        if self.graph.timeout_ms:
            if self.ticking:
                self.used += max(self.at - self.ticking, 0)
            self.ticking = self.at if self._works() else 0

    def _works(self) -> bool:
        words = set(self.places.values())
        if self.status != "running":
            return False
        if words & {"task", "call", "delay"} or self.more:
            return True
        return not words & set(OPEN)

    def due_ms(self) -> int:
        """Return the next due moment, 0 for none."""
        due = [due for (_, kind), due in self.timers.items() if kind != "retry" or self.status != "paused"]
        if self.more and self.status != "paused":
            due.append(self.more)
        if self.ticking:
            due.append(self.ticking + max(self.graph.timeout_ms - self.used, 0))
        return max(min(due), self.settled_at) if due else 0

    # -- values ------------------------------------------------------------------------------------

    def shown(self, name: str) -> str:
        """Return the status of a step as a user sees it."""
        word = self.words[name]
        if word != "active":
            return word
        place = self.places.get(StepPlace(name), "task")
        return "running" if place in ("task", "call", "delay") else "waiting"

    def _env(self, step: Step | None, place: StepPlace) -> dict[str, Json]:
        env: dict[str, Json] = {"trigger": self.trigger, "inputs": self.trigger, "steps": {}}
        for name, word in self.words.items():
            error, error_type = self.errors.get(StepPlace(name), ("", ""))
            has = word in ("completed", "compensated")
            env["steps"][name] = {
                "status": self.shown(name),
                "result": self.results.get(StepPlace(name)) if has else None,
                "error": error,
                "error_type": error_type,
            }
        if step is not None and step.for_each is not None and place.item >= 0:
            env |= {"item": self.lists[step.id][place.item], "index": place.item}
        if step is not None and step.while_ is not None and place.item >= 0:
            last = self.results.get(StepPlace(step.id, place.item - 1)) if place.item else None
            env |= {"round": place.item, "last": last}
        for source in step.failure_target_of if step is not None else ():
            if step is not None and self.words[source] == "failed" and self.routes[source] == step.id:
                error, error_type = self.errors[StepPlace(source)]
                env["error"] = {"step": source, "type": error_type, "message": error}
                break
        return env

    def _value(self, step: Step | None, place: StepPlace, value: Any, extra: Json = None) -> Json:
        env = as_read(self._env(step, place) | (extra or {}))
        env |= {name: int(env[name]) for name in ("index", "round") if name in env}
        return value.evaluate(env, now=lambda: datetime.fromtimestamp(self.at / 1000, UTC))

    def _values(self, step: Step, place: StepPlace, action: Action, extra: Json) -> dict[str, Json]:
        names = ("arguments", "metadata", "payload", "idempotency_key", "correlation_id")
        values = {name: getattr(action, name) for name in names}
        return {name: self._value(step, place, one, extra) for name, one in values.items() if one is not None}

    def _try(
        self, step: Any, place: StepPlace, value: Any, extra: Json = None, boolean: bool = False
    ) -> tuple[Json, str]:
        """Return a value and "", or None and what failed; a condition that is None holds."""
        if value is None:
            return True, ""
        try:
            found = self._value(step, place, value, extra)
        except EvaluationError as failed:
            return None, str(failed)
        if boolean and not isinstance(found, bool):
            return None, f"the condition gives {kind(found)}, not true or false"
        return found, ""


def sources(step: Step) -> tuple[str, ...]:
    """Return the steps on which a step's beginning depends."""
    return (*step.depends_on, *step.targeted_by, *step.failure_target_of)


def fits(pattern: str, error: str, error_type: str) -> bool:
    """Return whether a pattern fits an error's type or text."""
    return fnmatch.fnmatchcase(error_type, pattern) or fnmatch.fnmatchcase(error, pattern)


def text(value: Json) -> str:
    """Return a value as a text."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def kind(value: Json) -> str:
    """Return what a value is, in words."""
    if isinstance(value, bool):
        return "a bool"
    return {int: "a number", str: "a text", list: "a list", dict: "an object"}.get(type(value), "null")
