"""Compiles what all kinds of documents have: expressions, trees, actions, schemas.

Each part is compiled within a ReadScope, which says what its expressions can read. What is wrong is
noted in Findings; the compiled part is then a stand-in that is never used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import ClassVar, Final, NamedTuple

from aether_trio.model.expressions.mismatches import WORDS
from aether_trio.model.workflows.definition import (
    NO_RETRY,
    Action,
    ActionType,
    Condition,
    EndEvent,
    EvaluationError,
    JoinDefinition,
    JoinMode,
    Json,
    Path,
    RetryRule,
    Value,
)
from aether_trio.model.workflows.durations import DurationError, duration_ms
from aether_trio.model.workflows.reading import (
    Fields,
    Findings,
    any_token,
    check_tree,
    did_you_mean,
    kind_of,
    name,
    parse_json,
    quoted,
    token,
)
from aether_trio.model.workflows.shapes import (
    ANY,
    BOOL,
    AnyShape,
    MapShape,
    Shape,
    missing_field,
    read_schema,
    shape_at,
    shape_words,
    walk_schemas,
)
from aether_trio.model.workflows.values import (
    EXPRESSION_KEY,
    ExpressionValue,
    Languages,
    ListValue,
    LiteralValue,
    MapValue,
    TemplateValue,
    YamlReader,
)

MAX_SOURCE_BYTES: Final = 64 * 1024
"""The largest expression or template."""
MAX_SOURCES: Final = 5_000
"""Expressions and templates of a document: a thousand take about half a second to compile."""
MAX_SCHEMA_MAPS: Final = 20_000
"""Maps within all JSON Schemas of a document."""
MAX_CONSTANTS: Final = 50
"""Conditions that read nothing and are tried, since they always give the same."""
TEMPLATE_MARK: Final = "{{"
ACTION_KEYS: Final = (
    "type",
    "agent",
    "tool_name",
    "arguments",
    "workspace",
    "metadata",
    "task_type",
    "target_implementation",
    "payload",
    "retry",
    "event_name",
    "idempotency_key",
    "correlation_id",
    "completion_event",
    "priority",
)
RETRY_KEYS: Final = (
    "max_attempts",
    "backoff",
    "initial",
    "initial_ms",
    "max",
    "max_ms",
    "jitter",
    "final",
)
BACKOFFS: Final = ("constant", "fixed", "linear", "exponential")
JOIN_KEYS: Final = (
    "name",
    "correlation_key",
    "mode",
    "expected_count",
    "arm_on_event",
    "dedup_key",
    "expected_set",
    "member_key",
    "window",
    "timeout",
    "linger",
    "on_complete",
    "on_timeout",
    "on_partial_failure",
)
MAX_ATTEMPTS: Final = 100
_PATH: Final = re.compile(r"[^\W\d]\w*(?:\s*\??\.\s*[^\W\d]\w*)*")
_SINGLE: Final = re.compile(r"\{\{(?:(?!\}\}|\{\{).)*\}\}", re.DOTALL)
NOTHING: Final = LiteralValue(None)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_COMMA: Final = "; put quotes around an expression with a comma"

SchemaCheck = Callable[[Json], Iterable[tuple[Path, str]]]
"""Yields what is wrong with a JSON Schema, with the path within it."""


class ScheduleProblem(NamedTuple):
    """What is wrong with a schedule, in which field, and at which column of it from 1."""

    message: str
    field: str = "schedule_expr"
    column: int = 1


ScheduleCheck = Callable[[str, str, str], ScheduleProblem | None]
"""Returns what is wrong with a schedule's type, expression and timezone."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a compilation uses of the outside."""

    languages: Languages
    read_yaml: YamlReader
    check_schema: SchemaCheck
    check_schedule: ScheduleCheck


@dataclass(frozen=True, slots=True)
class _StepShapes:
    """What is known of steps: a map by their ids."""

    steps: Callable[[str], Shape | None]
    kind: ClassVar[str] = "map"

    def field(self, name: str) -> Shape | None:
        return self.steps(name)

    def element(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class ReadScope:
    """What can be read at a place: top-level names, and why others cannot be.

    `steps` gives the shape of what can be read of a step, None if it cannot be read.
    """

    names: Mapping[str, Shape]
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    steps: Callable[[str], Shape | None] | None = None
    all_steps: Iterable[str] = ()

    def having(self, **names: Shape) -> ReadScope:
        """Return this scope with further names."""
        return dataclasses.replace(self, names={**self.names, **names})

    def look(self, name: str) -> Shape | _StepShapes | None:
        """Return what is known of a name that can be read."""
        return _StepShapes(self.steps) if name == "steps" and self.steps is not None else self.names.get(name)

    def problem(self, path: Path) -> tuple[str, int]:
        """Return what is wrong with reading a path, and how much of it is right."""
        if not path:
            return "", 0
        top = str(path[0])
        if top == "steps" and self.steps is not None:
            return self._step_problem(path)
        shape = self.names.get(top)
        if shape is not None:
            return missing_field(shape, path[1:], top), 1
        if top in self.elsewhere:
            return self.elsewhere[top], 0
        known = [*self.names, *(("steps",) if self.steps is not None else ())]
        return f"there is no {quoted(top)} here{did_you_mean(top, known)}", 0

    def shape_of(self, source: str, value: Value) -> Shape:
        """Return what is known of an expression's result, if it is nothing but a path."""
        paths = value.paths()
        if len(paths) != 1 or not _PATH.fullmatch(source.strip()):
            return ANY
        path = next(iter(paths))
        if ".".join(map(str, path)) != re.sub(r"\s*\??\.\s*", ".", source.strip()):
            return ANY
        if path[0] == "steps" and self.steps is not None:
            shape = self.steps(str(path[1])) if len(path) > 1 else None
            return shape_at(shape or ANY, path[2:])
        return shape_at(self.names.get(str(path[0]), ANY), path[1:])

    def _step_problem(self, path: Path) -> tuple[str, int]:
        assert self.steps is not None
        if len(path) == 1 or not isinstance(path[1], str):
            return "", 1
        step = path[1]
        shape = self.steps(step)
        if shape is not None:
            return missing_field(shape, path[2:], f"steps.{step}"), 2
        if step in self.all_steps:
            return f"step {quoted(step)} need not have ended by then: add it to depends_on", 1
        return f"there is no step {quoted(step)}{did_you_mean(step, self.all_steps)}", 1


NO_SCOPE: Final = ReadScope(names={})
EVENT_SCOPE: Final = ReadScope(
    names={
        "input": ANY,
        "source": MapShape(dict.fromkeys(("agent", "workspace", "event", "principal"), ANY)),
    },
    elsewhere={
        "trigger": "there is no 'trigger' here: an event's data are 'input'",
        "steps": "there are no 'steps' here: this is read when an event comes",
    },
)


def digest_of(document: Mapping[str, Json]) -> str:
    """Return the digest of a canonical document but for its version."""
    content = {key: value for key, value in document.items() if key != "version"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def json_text(findings: Findings, text: str, path: Path, what: str) -> Json:
    """Return the tree of a JSON text within a document; None if it is wrong."""
    if not text.strip():
        return None
    inner = Findings(strict=findings.strict)
    try:
        tree = parse_json(text)
    except ValueError as exc:
        findings.error(
            path,
            f"{what} is not JSON: {getattr(exc, 'msg', '') or exc}",
            line=getattr(exc, "lineno", 0),
            column=getattr(exc, "colno", 0),
        )
        return None
    if check_tree(tree, inner):
        return tree
    for problem in inner.errors:
        findings.error((*path, *problem.path), problem.message)
    return None


class Compiler:
    """Compiles the parts of one document and notes what is wrong in `findings`.

    Places begin with `inside` where errors of evaluations are told with it already. `typed`:
    operations that fail for the types of what they read are errors.
    """

    __slots__ = ("constants", "findings", "inside", "schema_maps", "sources", "tools", "typed")

    def __init__(self, findings: Findings, tools: Tools, *, typed: bool = False) -> None:
        self.findings = findings
        self.typed = typed
        self.tools = tools
        self.inside = ""
        self.sources = 0  # expressions and templates so far
        self.schema_maps = 0
        self.constants = 0

    # -- expressions and templates -----------------------------------------------------------------

    def expression(self, source: Json, path: Path, scope: ReadScope, place: str, *, boolean: bool = False) -> Value:
        """Compile an expression's text."""
        if not isinstance(source, str):
            self.findings.error(path, f"{place} has to be an expression, and is {kind_of(source)}")
            return NOTHING
        if not self._bounded(source, path, place):
            return NOTHING
        if TEMPLATE_MARK in source and source.lstrip().startswith(TEMPLATE_MARK):
            self.findings.error(path, f"{place} is an expression, not a template: write it without '{{{{' and '}}}}'")
            return NOTHING
        try:
            compiled = self.tools.languages.expression(source, scope.names, scope.look if self.typed else None)
        except (ValueError, RecursionError) as exc:
            self._in_text(path, place, exc)
            return NOTHING
        value = ExpressionValue(source, compiled, self._within(place), boolean)
        self._check_paths(value, path, scope, place, source)
        for mismatch in compiled.mismatches:
            self._in_text(path, place, mismatch)
        return value

    def template(self, source: str, path: Path, scope: ReadScope, place: str) -> TemplateValue | LiteralValue:
        """Compile a text with a template."""
        if not self._bounded(source, path, place):
            return NOTHING
        try:
            compiled = self.tools.languages.template(source)
        except (ValueError, RecursionError) as exc:
            self._in_text(path, place, exc)
            return NOTHING
        value = TemplateValue(source, compiled, self._within(place), single=_SINGLE.fullmatch(source) is not None)
        self._check_paths(value, path, scope, place, source)
        return value

    def _within(self, place: str) -> str:
        """Return a place as errors of evaluations name it."""
        return place.removeprefix(self.inside).lstrip(",. ") if self.inside else place

    def condition(self, value: Json, path: Path, scope: ReadScope, place: str) -> Condition | None:
        """Compile a condition: an expression's text, or true or false. "" is none."""
        if isinstance(value, bool):
            return LiteralValue(value)
        if isinstance(value, str) and not value.strip():
            return None
        if not isinstance(value, str):
            self.findings.error(path, f"{place} has to be an expression, and is {kind_of(value)}")
            return None
        errors = self.findings.count
        compiled = self.expression(value, path, scope, place, boolean=True)
        if self.findings.count == errors:
            if not compiled.paths():
                self._check_constant(compiled, path, place)
            elif not isinstance(shape := scope.shape_of(value, compiled), AnyShape) and shape != BOOL:
                self.findings.error(path, f"{place} is {shape_words(shape)}, not true or false")
            elif isinstance(compiled, ExpressionValue) and compiled.compiled.kind not in (None, "bool"):
                self.findings.error(path, f"{place} gives {WORDS[str(compiled.compiled.kind)]}, not true or false")
        return compiled

    def _check_constant(self, value: Value, path: Path, place: str) -> None:
        """Note that a condition which reads nothing gives no bool."""
        self.constants += 1
        if self.constants > MAX_CONSTANTS:
            return
        try:
            value.evaluate({}, now=lambda: _EPOCH)
        except EvaluationError as exc:
            about = place.removesuffix(self._within(place))
            self.findings.error(path, f"{about}{exc}")

    def tree(self, tree: Json, path: Path, scope: ReadScope, place: str, *, computed: bool = True) -> Value:
        """Compile a JSON tree.

        Texts with "{{" are templates, `{$expr: …}` are expressions. `computed=False` takes the tree
        as it is: it was computed before.
        """
        if not computed:
            return LiteralValue(tree)
        if isinstance(tree, str):
            return self.template(tree, path, scope, place) if TEMPLATE_MARK in tree else LiteralValue(tree)
        if isinstance(tree, dict):
            if EXPRESSION_KEY in tree:
                at = (*path, EXPRESSION_KEY)
                if len(tree) > 1:
                    other = next(key for key in tree if key != EXPRESSION_KEY)
                    hint = "" if other.isidentifier() else _COMMA
                    self.findings.error(
                        at, f"{place}: a map with $expr has no other key, and this has {quoted(other)}{hint}"
                    )
                    return NOTHING
                return self.expression(tree[EXPRESSION_KEY], at, scope, place)
            fields = tuple(
                (key, self.tree(one, (*path, key), scope, f"{place}.{key}", computed=computed))
                for key, one in tree.items()
            )
            if all(isinstance(value, LiteralValue) for _, value in fields):
                return LiteralValue(tree)
            return MapValue(fields)
        if isinstance(tree, list):
            items = tuple(
                self.tree(one, (*path, index), scope, f"{place}[{index}]", computed=computed)
                for index, one in enumerate(tree)
            )
            if all(isinstance(value, LiteralValue) for value in items):
                return LiteralValue(tree)
            return ListValue(items)
        return LiteralValue(tree)

    def field_tree(self, fields: Fields, key: str, scope: ReadScope, *, computed: bool = True) -> Value | None:
        """Compile the tree of a field; None if it is absent."""
        if not fields.has(key):
            return None
        return self.tree(fields.get(key), fields.at(key), scope, f"{fields.what}, {key}", computed=computed)

    def field_map(self, fields: Fields, key: str, scope: ReadScope, *, computed: bool = True) -> Value | None:
        """Compile the tree of a field that has to be a map; an expression may give one."""
        value = fields.get(key)
        if value is not None and not isinstance(value, dict):
            fields.error(key, f"{fields.what}: {key} has to be a map, and is {kind_of(value)}")
            return None
        return self.field_tree(fields, key, scope, computed=computed)

    def field_expression(self, fields: Fields, key: str, scope: ReadScope) -> Value | None:
        """Compile the expression of a field: a text, or a literal of another type."""
        if not fields.has(key):
            return None
        value = fields.get(key)
        if isinstance(value, str):
            return self.expression(value, fields.at(key), scope, f"{fields.what}, {key}")
        return self.tree(value, fields.at(key), scope, f"{fields.what}, {key}")

    def join_key(self, fields: Fields, key: str, scope: ReadScope) -> Value | None:
        """Compile the expression of a join's field, which may be a number or a list, too."""
        value = fields.get(key)
        if isinstance(value, dict | bool):
            fields.error(key, f"{fields.what}: {key} has to be an expression, and is {kind_of(value)}")
            return None
        return self.field_expression(fields, key, scope)

    def field_condition(self, fields: Fields, key: str, scope: ReadScope) -> Condition | None:
        """Compile the condition of a field; None if it is absent."""
        if not fields.has(key):
            return None
        return self.condition(fields.get(key), fields.at(key), scope, f"{fields.what}, {key}")

    def field_text(self, fields: Fields, key: str, scope: ReadScope, *, computed: bool = True) -> Value | None:
        """Compile a field that gives a text: a text, a template or an expression."""
        value = fields.get(key)
        if value is None or value == "":
            return None
        if not isinstance(value, str) and not (isinstance(value, dict) and EXPRESSION_KEY in value):
            fields.error(key, f"{fields.what}: {key} has to be a text or {{$expr: …}}, and is {kind_of(value)}")
            return None
        return self.field_tree(fields, key, scope, computed=computed)

    def _bounded(self, source: str, path: Path, place: str) -> bool:
        size = len(source) if source.isascii() else len(source.encode("utf-8", "replace"))
        if size > MAX_SOURCE_BYTES:
            self.findings.error(path, f"{place} has {size} bytes; at most {MAX_SOURCE_BYTES} are allowed")
            return False
        self.sources += 1
        if self.sources > MAX_SOURCES:
            if self.sources == MAX_SOURCES + 1:
                self.findings.error(path, f"the document has more than {MAX_SOURCES} expressions and templates")
            return False
        return True

    def _in_text(self, path: Path, place: str, exc: Exception) -> None:
        message = getattr(exc, "message", None) or str(exc) or "it is nested too deeply"
        line, column = getattr(exc, "line", 0), getattr(exc, "column", 0)
        self.findings.error(path, f"{place}: {message}", line=line, column=column)

    def _check_paths(self, value: Value, path: Path, scope: ReadScope, place: str, source: str) -> None:
        """Note what a text reads though it is not there."""
        if self.findings.more:
            return  # further errors are counted only, and this is slow
        seen: set[str] = set()
        for read in sorted(value.paths(), key=lambda one: [str(part) for part in one]):
            message, right = scope.problem(read)
            if message and message not in seen:
                seen.add(message)
                line, column = _find(source, read, right)
                self.findings.error(path, f"{place}: {message}", line=line, column=column)

    # -- small parts -------------------------------------------------------------------------------

    def duration(self, fields: Fields, key: str, default: int = 0, *, positive: bool = False) -> int:
        """Return a duration text of a field in ms."""
        value = fields.get(key)
        if value is None or value == "":
            return default
        return self.duration_of(value, fields.at(key), f"{fields.what}: {key}", default, positive=positive)

    def duration_of(self, value: Json, path: Path, what: str, default: int = 0, *, positive: bool = False) -> int:
        """Return a duration text in ms."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            if value == 0:
                return 0
            self.findings.error(path, f"{what} has to be a duration with a unit, such as '{value}s', and is a number")
            return default
        if not isinstance(value, str):
            self.findings.error(path, f"{what} has to be a duration such as '1h30m', and is {kind_of(value)}")
            return default
        try:
            result = duration_ms(value.strip())
        except DurationError as exc:
            self.findings.error(path, f"{what}: {exc}")
            return default
        if positive and not result:
            self.findings.error(path, f"{what} has to be longer than 0")
        return result

    def schema(self, value: Json, path: Path, what: str) -> dict[str, Json] | None:
        """Return a checked JSON Schema that a schema or the shorthand stands for."""
        errors = self.findings.count
        schema = read_schema(value, path, self.findings, what)
        if schema is None or self.findings.count > errors:
            return schema
        self.schema_maps += sum(1 for _ in walk_schemas(schema))
        if self.schema_maps > MAX_SCHEMA_MAPS:
            self.findings.error(path, f"{what}: the document's schemas have more than {MAX_SCHEMA_MAPS} parts")
            return schema
        for inner, message in self.tools.check_schema(schema):
            self.findings.error((*path, *inner), f"{what}: {message}")
        return schema

    def retry(self, value: Json, path: Path, what: str) -> RetryRule:
        """Compile a retry rule; a number is `max_attempts`."""
        if isinstance(value, str):
            self.findings.error(path, f"{what}: retry has to be a number of attempts, or a map with max_attempts")
            return NO_RETRY
        if isinstance(value, int) and not isinstance(value, bool):
            value = {"max_attempts": value}
            fields = Fields(value, path, self.findings, RETRY_KEYS, f"{what}, retry")
            fields.keys.clear()
        else:
            fields = Fields(value, path, self.findings, RETRY_KEYS, f"{what}, retry")
        attempts = fields.whole("max_attempts", 0, most=MAX_ATTEMPTS)
        initial = fields.whole("initial_ms", 0, most=10**12) or self.duration(fields, "initial", NO_RETRY.initial_ms)
        longest = fields.whole("max_ms", 0, most=10**12) or self.duration(fields, "max")
        if longest and longest < initial:
            fields.error("max", f"{what}, retry: max is shorter than initial")
        backoff = fields.choice("backoff", BACKOFFS, "exponential")
        jitter = fields.number("jitter", NO_RETRY.jitter, most=1)
        final = tuple(one for one, _ in fields.texts("final", most=100))
        if attempts < 1:  # the reference ignores such a rule
            return dataclasses.replace(NO_RETRY, final=final)
        return RetryRule(
            max_attempts=attempts, backoff=backoff, initial_ms=initial, max_ms=longest, jitter=jitter, final=final
        )

    def action(
        self,
        value: Json,
        path: Path,
        scope: ReadScope,
        what: str,
        *,
        computed: bool = True,
        joins: bool = False,
    ) -> Action:
        """Compile an action. `joins`: it may be a join."""
        keys = (*ACTION_KEYS, "join") if joins else ACTION_KEYS
        if not joins and isinstance(value, dict) and value.get("type") == "join":
            self.findings.error((*path, "type"), f"{what}: only rules have joins; a step has depends_on and join")
            return Action()
        fields = Fields(value, path, self.findings, keys, what)
        types = tuple(one for one in ActionType if joins or one is not ActionType.JOIN)
        kind = ActionType(fields.choice("type", types, ActionType.MESSAGE) or ActionType.MESSAGE)
        join = None
        if kind is ActionType.JOIN or (joins and fields.has("join")):
            if kind is not ActionType.JOIN:
                fields.error("join", f"{what} has a join, but its type is {kind}: write type: join")
            join = self.join(fields.get("join"), fields.at("join"), scope, f"{what}, join")
        elif kind is ActionType.CREATE_TASK:
            fields.text("task_type", required=True)
        elif kind is ActionType.EMIT_EVENT:
            fields.text("event_name", required=True)
        else:
            self._check_message(fields, what)
        return Action(
            type=kind,
            agent=fields.text("agent", check=token),
            tool_name=fields.text("tool_name"),
            arguments=self.field_map(fields, "arguments", scope, computed=computed),
            workspace=fields.text("workspace", check=any_token),
            metadata=self.field_map(fields, "metadata", scope, computed=computed),
            task_type=fields.text("task_type"),
            target_implementation=fields.text("target_implementation", check=token),
            payload=self.field_tree(fields, "payload", scope, computed=computed),
            retry=self.retry(fields.get("retry"), fields.at("retry"), what) if fields.has("retry") else NO_RETRY,
            event_name=fields.text("event_name"),
            idempotency_key=self.field_text(fields, "idempotency_key", scope, computed=computed),
            correlation_id=self.field_text(fields, "correlation_id", scope, computed=computed),
            completion_event=self._end_event(fields, what),
            priority=fields.whole("priority", 0, least=-1000, most=1000),
            join=join,
        )

    def _check_message(self, fields: Fields, what: str) -> None:
        if fields.has("agent"):
            return
        for key, kind in (("task_type", ActionType.CREATE_TASK), ("event_name", ActionType.EMIT_EVENT)):
            if fields.has(key) and not fields.has("type"):
                fields.error(key, f"{what} has {key}, but no type: write type: {kind}")
                return
        fields.text("agent", required=True)

    def _end_event(self, fields: Fields, what: str) -> EndEvent:
        if not fields.has("completion_event"):
            return EndEvent()
        inner = Fields(
            fields.get("completion_event"),
            fields.at("completion_event"),
            self.findings,
            ("enabled", "event_name"),
            f"{what}, completion_event",
        )
        return EndEvent(enabled=inner.flag("enabled"), event_name=inner.text("event_name"))

    def join(self, value: Json, path: Path, scope: ReadScope, what: str) -> JoinDefinition:
        """Compile a rule's join, whose actions were rendered with it."""
        fields = Fields(value, path, self.findings, JOIN_KEYS, what)
        mode = JoinMode(fields.choice("mode", tuple(JoinMode), JoinMode.COUNT) or JoinMode.COUNT)
        if not fields.has("correlation_key"):
            fields.text("correlation_key", required=True)
        if mode is JoinMode.SET and not fields.has("member_key"):
            fields.error("mode", f"{what}: mode set needs a member_key")
        if mode is JoinMode.COUNT and not any(map(fields.has, ("expected_count", "arm_on_event", "timeout"))):
            self.findings.warn(path, f"{what} fires only if another rule says how many it expects: expected_count")
        return JoinDefinition(
            name=fields.text("name", check=name, required=True),
            correlation_key=self.join_key(fields, "correlation_key", scope) or NOTHING,
            mode=mode,
            expected_count=self.join_key(fields, "expected_count", scope),
            arm_on_event=fields.text("arm_on_event"),
            dedup_key=self.join_key(fields, "dedup_key", scope),
            expected_set=self.join_key(fields, "expected_set", scope),
            member_key=self.join_key(fields, "member_key", scope),
            window_ms=self.duration(fields, "window"),
            timeout_ms=self.duration(fields, "timeout"),
            linger_ms=self.duration(fields, "linger", 60_000),
            on_complete=self._join_action(fields, "on_complete", scope),
            on_timeout=self._join_action(fields, "on_timeout", scope),
            on_partial_failure=fields.text("on_partial_failure"),
        )

    def _join_action(self, fields: Fields, key: str, scope: ReadScope) -> Action | None:
        if not fields.has(key):
            return None
        return self.action(fields.get(key), fields.at(key), scope, f"{fields.what}, {key}", computed=False)


def _find(source: str, path: Path, right: int) -> tuple[int, int]:
    """Return line and column of a path's first wrong part in a text, or 0, 0."""
    parts = [str(part) for part in path]
    for wanted in (parts[: right + 1], parts[right : right + 1], parts[:1]):
        pattern = r"\s*\??\.\s*".join(re.escape(part) for part in wanted)
        match = re.search(rf"(?<![\w$]){pattern}(?!\w)", source)
        if match is not None:
            offset = match.end() - len(wanted[-1])
            return source.count("\n", 0, offset) + 1, offset - source.rfind("\n", 0, offset)
    return 0, 0
