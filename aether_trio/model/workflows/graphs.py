"""Compiles a workflow's document, and checks how its steps hang together."""

from __future__ import annotations

import dataclasses
import graphlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from aether_trio.model.text import TextError
from aether_trio.model.workflows.cases import compile_cases
from aether_trio.model.workflows.compiling import NOTHING, Compiler, ReadScope, digest_of
from aether_trio.model.workflows.definition import (
    NO_RETRY,
    Action,
    AskStep,
    CallWorkflow,
    Compute,
    ContinueAs,
    ErrorHandler,
    Escalation,
    Fail,
    ForEach,
    Graph,
    Json,
    MapMode,
    Path,
    Step,
    Trigger,
    Value,
    WaitFor,
    While,
    Work,
)
from aether_trio.model.workflows.flow_documents import compile_flow
from aether_trio.model.workflows.reading import (
    Fields,
    any_token,
    kind_of,
    name,
    prose,
    quoted,
    token,
)
from aether_trio.model.workflows.shapes import (
    ANY,
    AnyShape,
    ListShape,
    MapShape,
    ScalarShape,
    Shape,
    shape_of,
    shape_words,
)
from aether_trio.model.workflows.sources import doubt_about
from aether_trio.model.workflows.start_terms import TERM_KEYS, compile_budget, start_scope
from aether_trio.model.workflows.values import EXPRESSION_KEY

MAX_STEPS: Final = 1_000
MAX_ITEMS: Final = 10_000
MAX_VERSION: Final = (1 << 31) - 1
GRAPH_KEYS: Final = (
    "kind",
    "id",
    "name",
    "version",
    "workspace",
    "description",
    "trigger",
    "inputs",
    "outputs",
    "output_schema",
    "timeout",
    *TERM_KEYS,
    "steps",
    "tests",
)
STEP_KEYS: Final = (
    "id",
    "description",
    "action",
    "workflow",
    "input",
    "wait",
    "ask",
    "fail",
    "continue_as",
    "depends_on",
    "on_success",
    "on_failure",
    "when",
    "join",
    "for_each",
    "while",
    "on_error",
    "retry",
    "timeout",
    "compensate",
    "output",
    "result",
)
WORK_KEYS: Final = ("action", "workflow", "wait", "ask", "fail", "continue_as")
ITEM_KEYS: Final = ("items", "max_parallel", "mode")
ROUND_KEYS: Final = ("condition", "max_rounds")
WAIT_KEYS: Final = ("duration", "until", "signal", "event", "key", "equals", "condition", "default")
ASK_KEYS: Final = ("question", "of", "choices", "text", "form", "default", "escalate")

_TEXT: Final = ScalarShape("a text")
_COUNTED: Final = ScalarShape("a number", exact=True)
_EXECUTION: Final = MapShape({"id": _TEXT, "workflow": _TEXT, "workspace": _TEXT, "started_at": ANY})
_SOURCE: Final = MapShape({"agent": ANY, "workspace": ANY, "event": ANY, "principal": ANY})
_FAILURE: Final = MapShape({"step": _TEXT, "type": _TEXT, "message": _TEXT})
_ANSWER: Final = MapShape({"approved": ANY, "choice": ANY, "text": ANY, "data": ANY, "by": ANY})
_ELSEWHERE: Final = {
    "item": "'item' is there only in a step with for_each",
    "index": "'index' is there only in a step with for_each",
    "round": "'round' is there only in a step with while",
    "last": "'last' is there only in a step with while",
    "result": "'result' is there only in a step's output; another step's is 'steps.ID.result'",
    "error": "'error' is there only in on_error, in compensate and in steps that follow a failure",
    "input": "'input' is an event's data; the input of a workflow is 'trigger' or 'inputs'",
    "source": "'source' is there only in the condition of a trigger, and in the key and condition of a wait",
}
_EVENT_ELSEWHERE: Final = {
    "trigger": "'trigger' is not there yet: the data of the event are 'input'",
    "inputs": "'inputs' is not there yet: the data of the event are 'input'",
    "steps": "'steps' is not there: this is read when an event comes",
}


@dataclass(frozen=True, slots=True)
class _Edge:
    """`after` begins after `before` has ended; `path` is where the document says so."""

    before: str
    after: str
    path: Path


@dataclass(slots=True)
class _Draft:
    """A step while it is compiled."""

    id: str
    fields: Fields
    position: int
    depends_on: list[str] = field(default_factory=list)
    join: int = 0
    on_success: str = ""
    on_failure: str = ""
    targeted_by: list[str] = field(default_factory=list)
    failure_target_of: list[str] = field(default_factory=list)
    upstream: int = 0  # bits of positions
    shape: Shape = ANY  # of what can be read of it
    result_schema: dict[str, Json] | None = None

    @property
    def what(self) -> str:
        return self.fields.what


class GraphCompiler:
    """Compiles one workflow; `preset` has the id and version of its record."""

    def __init__(self, compiler: Compiler, value: Json, path: Path, preset: Mapping[str, Json]) -> None:
        self.compiler = compiler
        self.findings = compiler.findings
        self.value = value
        self.path = path
        self.preset = preset
        self.drafts: dict[str, _Draft] = {}
        self.edges: list[_Edge] = []
        self.trigger: Shape = ANY
        self.item: Shape = ANY
        """That of a start; a run may be made of several (debounce and batch)."""

    def compile(self) -> Graph:
        """Return the graph, which is of use only if no error was found."""
        fields = Fields(self.value, self.path, self.findings, GRAPH_KEYS, "the workflow")
        preset = Fields(self.preset, (), self.findings, ("id", "version", "workspace"), "the workflow")
        identifier = preset.text("id", check=token) or fields.text("id", check=token)
        if not identifier:
            identifier = fields.text("name", check=token)
            if not identifier and not fields.has("name") and not fields.has("id") and not preset.has("id"):
                fields.text("id", required=True)
        version = preset.whole("version", 0, most=MAX_VERSION) or fields.whole("version", 1, most=MAX_VERSION)
        workspace = preset.text("workspace", check=any_token) or fields.text("workspace", "*", check=any_token)
        description = fields.text("description", check=prose)
        inputs = self._schema(fields, "inputs")
        if inputs is not None:
            self.item = self.trigger = shape_of(inputs)
        flow = fields.get("flow")
        if isinstance(flow, dict) and {"debounce", "batch"} & {str(key).lower() for key in flow}:
            self.trigger = MapShape({"items": ListShape(self.item)})
        output_schema = self._schema(fields, "output_schema")
        trigger = self._trigger(fields)
        self._read_steps(fields)
        self._link()
        steps = {one.id: self._step(one) for one in self.drafts.values()}
        if not fields.has("steps"):
            fields.text("steps", required=True)
        elif fields.get("steps") == []:
            fields.error("steps", "the workflow has no steps")
        self._warn_of_the_unreachable(steps)
        outputs = None
        if fields.has("outputs"):
            self.compiler.inside = "outputs"
            outputs = self.compiler.tree(fields.get("outputs"), fields.at("outputs"), self._scope(None), "outputs")
        self.compiler.inside = ""
        tests = compile_cases(self.compiler, fields, steps)
        source = {key: value for key, value in fields.values.items() if key not in {"name", "kind"}}
        source |= {"id": identifier, "workspace": workspace}
        if preset.has("version"):
            source["version"] = version
        return Graph(
            id=identifier,
            version=version or 1,
            workspace=workspace,
            trigger=trigger,
            steps=steps,
            input_schema=inputs,
            output_schema=output_schema,
            outputs=outputs,
            timeout_ms=self.compiler.duration(fields, "timeout"),
            budget=compile_budget(self.findings, fields),
            description=description,
            max_executions=fields.whole("max_executions", 0),
            flow=compile_flow(self.compiler, fields, start_scope(self.item)),
            tests=tests,
            source=source,
            digest=digest_of(source) if not self.findings.count else "",
        )

    # -- of the whole ------------------------------------------------------------------------------

    def _schema(self, fields: Fields, key: str) -> dict[str, Json] | None:
        if not fields.has(key):
            return None
        return self.compiler.schema(fields.get(key), fields.at(key), f"{fields.what}, {key}")

    def _trigger(self, fields: Fields) -> Trigger | None:
        if not fields.has("trigger"):
            return None
        inner = Fields(
            fields.get("trigger"),
            fields.at("trigger"),
            self.findings,
            ("event", "source_agent", "condition"),
            "the trigger",
        )
        event = inner.text("event", check=name)
        if not event and inner.values:
            inner.text("event", required=True)
        if doubt := doubt_about(event, keys=True):
            self.findings.warn(inner.at("event"), f"the trigger: {doubt}")
        condition = self.compiler.field_condition(inner, "condition", self._event_scope())
        return Trigger(event=event, source_agent=inner.text("source_agent", "*", check=any_token), condition=condition)

    def _event_scope(self) -> ReadScope:
        return ReadScope(names={"input": self.item, "source": _SOURCE}, elsewhere=_EVENT_ELSEWHERE)

    # -- how steps hang together -------------------------------------------------------------------

    def _read_steps(self, fields: Fields) -> None:
        first: dict[str, int] = {}
        for index, (one, path) in enumerate(fields.entries("steps", most=MAX_STEPS, what="steps")):
            given = one.get("id") if isinstance(one, dict) else None
            label = f"step {quoted(given)}" if isinstance(given, str) and given else f"step {index + 1}"
            inner = Fields(one, path, self.findings, STEP_KEYS, label)
            if not isinstance(one, dict):
                continue
            identifier = inner.text("id", check=_step_id, required=True)
            if not identifier:
                identifier = f"\x00{index}"  # no document can name it
            elif identifier in first:
                inner.error("id", f"{label} is there twice: it is also the id of step {first[identifier] + 1}")
                continue
            first[identifier] = index
            self.drafts[identifier] = _Draft(identifier, inner, len(self.drafts))

    def _link(self) -> None:
        for draft in self.drafts.values():
            self._read_edges(draft)
        self._break_circles()
        predecessors: dict[str, list[str]] = {one: [] for one in self.drafts}
        for edge in self.edges:
            predecessors[edge.after].append(edge.before)
        for one in graphlib.TopologicalSorter(predecessors).static_order():
            bits = 0
            for before in predecessors[one]:
                bits |= self.drafts[before].upstream | 1 << self.drafts[before].position
            self.drafts[one].upstream = bits
        for draft in self.drafts.values():
            self._read_result(draft)

    def _read_edges(self, draft: _Draft) -> None:
        fields = draft.fields
        for other, path in fields.texts("depends_on", most=MAX_STEPS):
            if other in draft.depends_on:
                self.findings.error(path, f"{draft.what} depends on {quoted(other)} twice")
            elif self._connect(other, draft.id, path, other, f"{draft.what} depends on {quoted(other)}"):
                draft.depends_on.append(other)
        draft.join = self._join(draft)
        for key, words in (("on_success", "has on_success"), ("on_failure", "has on_failure")):
            target = fields.text(key)
            if target and self._connect(
                draft.id, target, fields.at(key), target, f"{draft.what} {words} {quoted(target)}"
            ):
                after = self.drafts[target]
                setattr(draft, key, target)
                (after.targeted_by if key == "on_success" else after.failure_target_of).append(draft.id)
        for one, path in self._handlers(fields):
            run = one.get("run") if isinstance(one, dict) else None
            if not isinstance(run, str) or not run:
                continue
            if self._connect(draft.id, run, (*path, "run"), run, f"{draft.what} runs {quoted(run)} on an error"):
                after = self.drafts[run]
                if draft.id not in after.failure_target_of:
                    after.failure_target_of.append(draft.id)

    def _connect(self, before: str, after: str, path: Path, named: str, says: str) -> bool:
        if named not in self.drafts:
            hint = self.findings.hint(named, [one for one in self.drafts if not one.startswith("\x00")])
            self.findings.error(path, f"{says}{hint}" if hint else f"{says}, and there is no such step")
            return False
        if before == after:
            self.findings.error(path, f"{says}, which is itself")
            return False
        self.edges.append(_Edge(before, after, path))
        return True

    def _join(self, draft: _Draft) -> int:
        value = draft.fields.get("join")
        if value is None or value == "all":
            return 0
        most = len(draft.fields.get("depends_on") or ()) if isinstance(draft.fields.get("depends_on"), list) else 1
        if not draft.fields.has("depends_on"):
            draft.fields.error("join", f"{draft.what} has a join, but depends on no steps")
        elif value == "any":
            return 1
        elif isinstance(value, bool) or not isinstance(value, int):
            draft.fields.error("join", f"{draft.what}: join has to be all, any or a number of steps")
        elif not 1 <= value <= most:
            draft.fields.error("join", f"{draft.what}: join is {value}, and it depends on {most} steps")
        else:
            return 0 if value == most else value
        return 0

    def _handlers(self, fields: Fields) -> Iterable[tuple[Json, Path]]:
        value = fields.get("on_error")
        if isinstance(value, dict):
            return [(value, fields.at("on_error"))]
        return fields.entries("on_error", most=100)

    def _break_circles(self) -> None:
        """Note circles, and take an edge out of each so that the rest can be checked."""
        for _ in range(20):
            predecessors: dict[str, set[str]] = {one: set() for one in self.drafts}
            for edge in self.edges:
                predecessors[edge.after].add(edge.before)
            try:
                graphlib.TopologicalSorter(predecessors).prepare()
            except graphlib.CycleError as exc:
                circle = list(exc.args[1])
                # The circle as the document begins it, not as the search found it.
                circle.pop()
                begin = min(range(len(circle)), key=lambda place: self.drafts[circle[place]].position)
                circle = [*circle[begin:], *circle[:begin], circle[begin]]
                closing = next(one for one in self.edges if (one.before, one.after) == (circle[-2], circle[-1]))
                shown = circle if len(circle) <= 12 else [*circle[:10], "…", circle[-1]]
                self.findings.error(
                    closing.path,
                    f"these steps wait for each other: {' → '.join(quoted(one)[1:-1] for one in shown)}",
                )
                self.edges = [one for one in self.edges if (one.before, one.after) != (circle[-2], circle[-1])]
            else:
                return
        self.edges = []

    # -- what can be read --------------------------------------------------------------------------

    def _read_result(self, draft: _Draft) -> None:
        fields = draft.fields
        shape: Shape = ANY
        if fields.has("output"):
            shape = _shape_of_tree(fields.get("output"))
        elif fields.has("ask"):
            shape = _ANSWER
        if fields.has("result"):
            draft.result_schema = self._schema(fields, "result")
            declared = shape_of(draft.result_schema)
            shape = shape if isinstance(declared, AnyShape) else declared
        if fields.has("for_each"):  # an output and a result are those of an item
            each = fields.get("for_each")
            if isinstance(each, dict) and each.get("mode") == "settled":
                shape = MapShape({"status": _TEXT, "result": shape, "error": _TEXT, "error_type": _TEXT})
            shape = ListShape(shape)
        # An error may have another result, of any type.
        handled = any(isinstance(one, dict) and "result" in one for one, _ in self._handlers(fields))
        known = {"result": shape, "status": _TEXT, "error": ANY, "error_type": ANY}
        draft.shape = MapShape(known, typed=not handled)

    def _scope(self, draft: _Draft | None, *, everything: bool = False, itself: bool = False) -> ReadScope:
        """Return what a step can read, or what the outputs can."""

        def readable(step: str) -> Shape | None:
            other = self.drafts.get(step)
            if other is None:
                return None
            if draft is None or everything or draft.upstream >> other.position & 1 or (itself and other is draft):
                return other.shape
            return None

        names: dict[str, Shape] = {"trigger": self.trigger, "inputs": self.trigger, "execution": _EXECUTION}
        if draft is not None and draft.failure_target_of:
            names["error"] = _FAILURE
        return ReadScope(
            names=names,
            elsewhere=_ELSEWHERE,
            steps=readable,
            all_steps=self.drafts,
        )

    # -- steps -------------------------------------------------------------------------------------

    def _step(self, draft: _Draft) -> Step:
        fields, compiler = draft.fields, self.compiler
        compiler.inside = draft.what
        scope = self._scope(draft)
        items: dict[str, Shape] = {}
        if fields.has("for_each"):
            items = {"item": ANY, "index": _COUNTED}
        if fields.has("while"):
            items |= {"round": _COUNTED, "last": ANY}
            if fields.has("for_each"):
                fields.error("while", f"{draft.what} has both for_each and while: put one into a workflow")
        inner = scope.having(**items)
        work = self._work(draft, inner)
        retry = compiler.retry(fields.get("retry"), fields.at("retry"), draft.what) if fields.has("retry") else NO_RETRY
        if isinstance(work, Action):
            if fields.has("retry"):
                work = dataclasses.replace(work, retry=retry)
            else:
                retry = work.retry
        compensate = None
        if fields.has("compensate"):
            undo = self._scope(draft, everything=True).having(error=_FAILURE, result=ANY, **items)
            compensate = compiler.action(
                fields.get("compensate"), fields.at("compensate"), undo, f"{draft.what}, compensate"
            )
        result = _ANSWER if isinstance(work, AskStep) else ANY
        timeout = compiler.duration(fields, "timeout")
        if isinstance(work, WaitFor | AskStep) and work.default is not None and not timeout:
            self.findings.warn(fields.path, f"{draft.what} has a default for when its timeout passes, and no timeout")
        return Step(
            id=draft.id,
            work=work,
            depends_on=tuple(draft.depends_on),
            join=draft.join,
            on_success=draft.on_success,
            on_failure=draft.on_failure,
            targeted_by=tuple(draft.targeted_by),
            failure_target_of=tuple(draft.failure_target_of),
            when=compiler.field_condition(fields, "when", scope),
            for_each=self._for_each(draft, scope),
            while_=self._while(draft, inner),
            on_error=self._on_error(draft),
            retry=retry,
            timeout_ms=timeout,
            compensate=compensate,
            output=compiler.field_tree(fields, "output", inner.having(result=result)),
            result_schema=draft.result_schema,
            path=fields.path,
        )

    def _work(self, draft: _Draft, scope: ReadScope) -> Work:
        fields, what = draft.fields, draft.what
        given = fields.exclusive(WORK_KEYS)
        if len(given) > 1:
            fields.error(given[1], f"{what} has both {given[0]} and {given[1]}: make two steps of it")
        if fields.has("input") and "workflow" not in given:
            fields.error("input", f"{what} has an input, but no workflow that takes it")
        if not given:
            if not fields.has("output"):
                self.findings.error(fields.path, f"{what} does nothing: it has no {', '.join(WORK_KEYS)} and no output")
            return Compute()
        kind, value, path = given[0], fields.get(given[0]), fields.at(given[0])
        if kind == "action":
            return self.compiler.action(value, path, scope, f"{what}, action")
        if kind == "workflow":
            return CallWorkflow(
                workflow=fields.text("workflow", check=token, required=True),
                input=self.compiler.field_tree(fields, "input", scope),
            )
        if kind == "wait":
            return self._wait(value, path, scope, f"{what}, wait")
        if kind == "ask":
            return self._ask(value, path, scope, f"{what}, ask")
        if kind == "fail":
            inner = self._short(value, path, ("message", "error_type"), f"{what}, fail")
            message = self.compiler.field_text(inner, "message", scope)
            if message is None:
                inner.text("message", required=True)
            return Fail(message=message or NOTHING, error_type=inner.text("error_type", "FAILED"))
        inner = Fields(value, path, self.findings, ("input", "workflow"), f"{what}, continue_as")
        return ContinueAs(
            input=self.compiler.field_tree(inner, "input", scope) or NOTHING,
            workflow=inner.text("workflow", check=token),
        )

    def _short(self, value: Json, path: Path, keys: tuple[str, ...], what: str) -> Fields:
        """Return the fields of a map for which a text, as its first key, may stand."""
        if isinstance(value, str):
            fields = Fields({keys[0]: value}, path, self.findings, keys, what)
            fields.keys.clear()  # the path of the field is that of the text
            return fields
        return Fields(value, path, self.findings, keys, what)

    def _wait(self, value: Json, path: Path, scope: ReadScope, what: str) -> WaitFor:
        fields = self._short(value, path, WAIT_KEYS, what)
        kinds = fields.exclusive(("duration", "until", "signal", "event"))
        if len(kinds) != 1:
            self.findings.error(path, f"{what} has to have one of duration, until, signal and event")
        event = kinds[:1] == ["event"]
        for key in ("key", "equals", "condition"):
            if fields.has(key) and not event and not (key == "condition" and kinds[:1] == ["signal"]):
                fields.error(key, f"{what}: {key} is for events, and this waits for none")
        if fields.has("key") != fields.has("equals"):
            self.findings.error(path, f"{what}: key and equals belong together")
        key_scope = ReadScope(names={"input": ANY, "source": _SOURCE}, elsewhere=_EVENT_ELSEWHERE)
        both = scope.having(input=ANY, source=_SOURCE)
        length = None
        duration = fields.get("duration")
        if isinstance(duration, str) and "{{" not in duration:
            self.compiler.duration(fields, "duration")
            length = self.compiler.field_tree(fields, "duration", scope)
        elif isinstance(duration, bool | list):
            fields.error("duration", f"{what}: duration has to be a text such as '5m' or a number of seconds")
        else:
            if isinstance(duration, int | float) and duration < 0:
                fields.error("duration", f"{what}: duration is negative")
            length = self.compiler.field_tree(fields, "duration", scope)
        source = fields.get("key")
        if isinstance(source, dict):
            source = source.get(EXPRESSION_KEY)
        if source is not None and not isinstance(source, str):
            fields.error("key", f"{what}: key has to be an expression over the event, such as input.order")
        awaited = fields.text("event", check=name)
        if doubt := doubt_about(awaited, keys=False):
            self.findings.warn(fields.at("event"), f"{what}: {doubt}")
        return WaitFor(
            duration=length,
            until=self.compiler.field_text(fields, "until", scope),
            signal=fields.text("signal", check=name),
            event=awaited,
            key=self.compiler.field_expression(fields, "key", key_scope),
            key_source=source if isinstance(source, str) else "",
            equals=self.compiler.field_expression(fields, "equals", scope),
            condition=self.compiler.field_condition(fields, "condition", both),
            default=self.compiler.field_tree(fields, "default", scope),
        )

    def _ask(self, value: Json, path: Path, scope: ReadScope, what: str) -> AskStep:
        fields = self._short(value, path, ASK_KEYS, what)
        question = self.compiler.field_text(fields, "question", scope)
        if question is None:
            fields.text("question", required=True)
        text = fields.get("text") if fields.has("text") else False
        if not isinstance(text, bool | str):
            fields.error("text", f"{what}: text has to be true, or the text's label, and is {kind_of(text)}")
            text = False
        escalate = []
        steps = fields.get("escalate")
        entries = [(steps, fields.at("escalate"))] if isinstance(steps, dict) else fields.entries("escalate", most=16)
        for one, at in entries:
            inner = Fields(one, at, self.findings, ("after", "of"), f"{what}, escalate")
            after = self.compiler.duration(inner, "after", positive=True)
            if not inner.has("after"):
                inner.text("after", required=True)
            of = self.compiler.field_text(inner, "of", scope)
            if of is None:
                inner.text("of", required=True)
            escalate.append(Escalation(after_ms=after, of=of or NOTHING))
        form = None
        if fields.has("form"):
            form = self.compiler.schema(fields.get("form"), fields.at("form"), f"{what}, form")
        return AskStep(
            question=question or NOTHING,
            of=self.compiler.field_text(fields, "of", scope),
            choices=tuple(one for one, _ in fields.texts("choices", most=50)),
            text=text,
            form=form,
            default=self.compiler.field_tree(fields, "default", scope),
            escalate=tuple(escalate),
        )

    def _for_each(self, draft: _Draft, scope: ReadScope) -> ForEach | None:
        fields = draft.fields
        if not fields.has("for_each"):
            return None
        value, path = fields.get("for_each"), fields.at("for_each")
        what = f"{draft.what}, for_each"
        if not isinstance(value, dict) or EXPRESSION_KEY in value:
            return ForEach(items=self._items(value, path, scope, what))
        inner = Fields(value, path, self.findings, ITEM_KEYS, what)
        if not inner.has("items"):
            self.findings.error(path, f"{what} has no items")
        return ForEach(
            items=self._items(inner.get("items"), inner.at("items"), scope, what) if inner.has("items") else NOTHING,
            max_parallel=inner.whole("max_parallel", 0, most=MAX_ITEMS),
            mode=MapMode(inner.choice("mode", tuple(MapMode), MapMode.FAIL_FAST)),
        )

    def _items(self, value: Json, path: Path, scope: ReadScope, what: str) -> Value:
        if isinstance(value, str):  # a text is no list, so it can only be meant as an expression
            items = self.compiler.expression(value, path, scope, f"{what}, items")
            shape = scope.shape_of(value, items)
            if not isinstance(shape, AnyShape | ListShape):
                self.findings.error(path, f"{what}: items is {shape_words(shape)}, not a list")
            return items
        if isinstance(value, list):
            if len(value) > MAX_ITEMS:
                self.findings.error(path, f"{what} has {len(value)} items; at most {MAX_ITEMS} are allowed")
        elif not (isinstance(value, dict) and EXPRESSION_KEY in value):
            self.findings.error(path, f"{what}: items has to be a list or an expression, and is {kind_of(value)}")
            return NOTHING
        items = self.compiler.tree(value, path, scope, f"{what}, items")
        if isinstance(value, dict) and isinstance(source := value[EXPRESSION_KEY], str):
            shape = scope.shape_of(source, items)
            if not isinstance(shape, AnyShape | ListShape):
                self.findings.error((*path, EXPRESSION_KEY), f"{what}: items is {shape_words(shape)}, not a list")
        return items

    def _while(self, draft: _Draft, scope: ReadScope) -> While | None:
        fields = draft.fields
        if not fields.has("while"):
            return None
        value, path = fields.get("while"), fields.at("while")
        what = f"{draft.what}, while"
        if not isinstance(value, dict):
            return While(condition=self.compiler.condition(value, path, scope, what) or NOTHING)
        inner = Fields(value, path, self.findings, ROUND_KEYS, what)
        condition = self.compiler.field_condition(inner, "condition", scope)
        if not inner.has("condition"):
            inner.text("condition", required=True)
        return While(
            condition=condition or NOTHING, max_rounds=inner.whole("max_rounds", MAX_ITEMS, least=1, most=MAX_ITEMS)
        )

    def _on_error(self, draft: _Draft) -> tuple[ErrorHandler, ...]:
        handlers = []
        inside = self._scope(draft, itself=True).having(error=_FAILURE)
        for one, path in self._handlers(draft.fields):
            fields = Fields(one, path, self.findings, ("error", "run", "result"), f"{draft.what}, on_error")
            if len(fields.exclusive(("run", "result"))) != 1 and isinstance(one, dict) and "result" not in one:
                self.findings.error(path, f"{draft.what}, on_error has to have either run or result")
            result = self.compiler.field_tree(fields, "result", inside)
            if result is None and isinstance(one, dict) and "result" in one:
                result = NOTHING  # null is a result
            run = fields.text("run")
            handlers.append(
                ErrorHandler(
                    error=fields.text("error", "*", check=name), run=run if run in self.drafts else "", result=result
                )
            )
        return tuple(handlers)

    # -- warnings ----------------------------------------------------------------------------------

    def _warn_of_the_unreachable(self, steps: Mapping[str, Step]) -> None:
        """Warn of steps that can never run.

        A step that runs implies that others are completed, or failed. It never runs if that is a
        contradiction, or if one of them never runs or never is completed.
        """
        if self.findings.count:
            return
        completed: dict[str, int] = {}
        failed: dict[str, int] = {}
        never: dict[str, str] = {}
        predecessors: dict[str, list[str]] = {one: [] for one in steps}
        for edge in self.edges:
            predecessors[edge.after].append(edge.before)
        for one in graphlib.TopologicalSorter(predecessors).static_order():
            step = steps[one]
            needed = [*step.targeted_by, *(step.depends_on if not step.join else ())]
            routes = step.failure_target_of if len(step.failure_target_of) == 1 else ()
            done = bad = 0
            for other in needed:
                done |= 1 << self.drafts[other].position
            for other in routes:
                bad |= 1 << self.drafts[other].position
            for other in (*needed, *routes):
                done |= completed[other]
                bad |= failed[other]
            completed[one], failed[one] = done, bad
            reason = ""
            if done & bad:
                both = next(other for other in steps if done & bad & 1 << self.drafts[other].position)
                reason = f"step {quoted(both)} would have to be both completed and failed"
            elif step.when is not None and not step.when.paths() and self._is_false(step):
                reason = "its condition is always false"
            for other in needed:
                if isinstance(steps[other].work, Fail | ContinueAs):
                    reason = reason or f"step {quoted(other)} ends the execution and is never completed"
            for other in (*needed, *routes):
                if other in never:
                    reason = reason or f"step {quoted(other)} never does"
            if reason:
                never[one] = reason
        for one in steps:
            if one in never:
                self.findings.warn(self.drafts[one].fields.path, f"step {quoted(one)} can never run: {never[one]}")

    def _is_false(self, step: Step) -> bool:
        value = self.drafts[step.id].fields.get("when")
        return value is False or (isinstance(value, str) and value.strip() == "false")


def _step_id(text: str, what: str) -> str:
    """Check a step's id: it has no marks of items and compensations."""
    found = next((mark for mark in "[]~" if mark in text), None)
    if found is not None:
        raise TextError(f"{what} {quoted(text)} contains {found!r}, which is not allowed in a step's id")
    return token(text, what)


def _shape_of_tree(tree: Json) -> Shape:
    """Return the shape of what a tree computes."""
    if isinstance(tree, dict):
        if EXPRESSION_KEY in tree:
            return ANY
        return MapShape({key: _shape_of_tree(one) for key, one in tree.items()})
    if isinstance(tree, list):
        return ListShape(ANY)
    if isinstance(tree, str) and "{{" in tree:
        return ANY  # a number, perhaps
    return ScalarShape("a text" if isinstance(tree, str) else kind_of(tree))


def compile_graph(compiler: Compiler, value: Json, path: Path, preset: Mapping[str, Json]) -> Graph:
    """Compile a workflow's document; what is wrong is in the compiler's findings."""
    return GraphCompiler(compiler, value, path, preset).compile()
