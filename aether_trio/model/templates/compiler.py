"""Turns the trees of a template into closures, which render it.

Two kinds of closures: an Evaluation yields the value of a pipeline, command or word, and a Step
executes a node and tells how it ended. Both get the frame (variables, output, meter) and the
cursor. nil is None where Go has a nil interface, and NO_VALUE where it has no value at all: a
pipeline turns the former into the latter, and fields of None fail while fields of NO_VALUE do not.

Each body is charged when it begins, with the number of the words and fields in its pipelines, so
loops and recursion cannot run on for free; functions charge for the sizes of their arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, cast

from aether_trio.model.templates.errors import RenderFault
from aether_trio.model.templates.functions import FUNCTIONS, TemplateFunction
from aether_trio.model.templates.literals import OverflowingInteger
from aether_trio.model.templates.nodes import (
    BodyNode,
    BranchAction,
    ChainWord,
    ConstantWord,
    DotWord,
    FieldWord,
    FunctionWord,
    JumpAction,
    LiteralText,
    LoopAction,
    NilWord,
    NodeList,
    PrintAction,
    TemplateAction,
    TemplateCommand,
    TemplatePipeline,
    VariableWord,
    Word,
)
from aether_trio.model.templates.rendering import Frame
from aether_trio.model.templates.values import NO_VALUE, Uint8, from_data, size_of, sorted_keys, type_name
from aether_trio.model.text import shown

Evaluation = Callable[[Frame, object], object]
PipedEvaluation = Callable[[Frame, object, object], object]
Step = Callable[[Frame, object], int]

DONE: Final = 0
BREAK: Final = 1
CONTINUE: Final = 2

_DATA_TYPES: Final = frozenset({type(None), bool, float, str, list, dict})


def compile_bodies(trees: Mapping[str, NodeList]) -> dict[str, Step]:
    """Return the step of each template, by name."""
    steps: dict[str, Step] = {}
    for name, body in trees.items():
        steps[name] = _BodyCompiler(steps).body(body)
    return steps


def _fields(value: object, names: tuple[str, ...], offset: int) -> object:
    """Return a field of a field of ... a value, as Go does with `missingkey=zero`."""
    for name in names:
        if value is NO_VALUE:
            return NO_VALUE
        if type(value) is not dict:
            try:
                value = from_data(value)
            except RenderFault as fault:
                fault.at(offset)
            if value is None:
                raise RenderFault(f"{shown(name)} is read of nil: the field before it is missing or null", offset)
            if type(value) is not dict:
                raise RenderFault(f"can't evaluate field {shown(name)} in type {type_name(value)}", offset)
        value = value.get(name)
    if type(value) in _DATA_TYPES or value is NO_VALUE:
        return value
    try:
        return from_data(value)
    except RenderFault as fault:
        fault.at(offset)


class _BodyCompiler:
    """Compiles one tree; `steps` are all templates', filled while they are compiled."""

    def __init__(self, steps: Mapping[str, Step]) -> None:
        self._steps = steps
        self._depth = 0
        self._cost = 0

    # Nodes

    def body(self, body: NodeList) -> Step:
        outer_cost, self._cost = self._cost, 1
        steps = tuple([self._node(node) for node in body.nodes])
        cost, self._cost = self._cost, outer_cost
        offset = body.offset

        def run(frame: Frame, dot: object) -> int:
            meter = frame.rendering.meter
            meter.operations -= cost
            if meter.operations < 0:
                _charge(frame, 0, offset)
            for step in steps:
                ended = step(frame, dot)
                if ended:
                    return ended
            return DONE

        return run

    def _node(self, node: BodyNode) -> Step:
        match node:
            case LiteralText():
                return self._text(node)
            case PrintAction():
                return self._action(node)
            case BranchAction():
                return self._branch(node)
            case LoopAction():
                return self._loop(node)
            case JumpAction():
                ended = BREAK if node.word == "break" else CONTINUE
                return lambda _frame, _dot: ended
            case TemplateAction():
                return self._invocation(node)

    def _text(self, node: LiteralText) -> Step:
        text, size, offset = node.text, size_of(node.text), node.offset

        def write(frame: Frame, _dot: object) -> int:
            rendering = frame.rendering
            meter = rendering.meter
            meter.room -= size
            if meter.room < 0:
                try:
                    meter.take_room(0)
                except RenderFault as fault:
                    fault.at(offset)
            rendering.pieces.append(text)
            return DONE

        return write

    def _action(self, node: PrintAction) -> Step:
        evaluate, offset = self.pipeline(node.pipeline), node.offset
        if node.pipeline.declared:

            def declare(frame: Frame, dot: object) -> int:
                evaluate(frame, dot)
                return DONE

            return declare

        def print_value(frame: Frame, dot: object) -> int:
            value = evaluate(frame, dot)
            try:
                frame.rendering.print_value(value)
            except RenderFault as fault:
                fault.at(offset)
            return DONE

        return print_value

    def _branch(self, node: BranchAction) -> Step:
        self._depth += 1
        clauses: list[tuple[int, Evaluation, Step]] = []
        for pipeline, body in node.clauses:
            before = self._cost
            evaluate = self.pipeline(pipeline)
            cost = 0
            if clauses:  # it is evaluated only if those before it are false
                cost, self._cost = self._cost - before, before
            clauses.append((cost, evaluate, self.body(body)))
        otherwise = self.body(node.otherwise) if node.otherwise else None
        self._depth -= 1
        moves_dot, offset = node.word == "with", node.offset

        def branch(frame: Frame, dot: object) -> int:
            mark = frame.mark()
            ended = DONE
            for cost, evaluate, run in clauses:
                if cost:
                    _charge(frame, cost, offset)
                value = evaluate(frame, dot)
                if value:
                    ended = run(frame, value if moves_dot else dot)
                    break
            else:
                if otherwise is not None:
                    ended = otherwise(frame, dot)
            frame.forget(mark)
            return ended

        return branch

    def _loop(self, node: LoopAction) -> Step:
        self._depth += 1
        evaluate = self.pipeline(node.pipeline)
        run = self.body(node.body)
        otherwise = self.body(node.otherwise) if node.otherwise else None
        self._depth -= 1
        bind = _loop_variables(node.pipeline)
        variables = len(node.pipeline.declared)
        offset = node.pipeline.offset

        def loop(frame: Frame, dot: object) -> int:
            outer = frame.mark()
            value = evaluate(frame, dot)
            mark = frame.mark()
            empty = True
            try:
                for index, element in _elements(frame, value, variables):
                    empty = False
                    if bind is not None:
                        bind(frame, index, element)
                    ended = run(frame, element)
                    frame.forget(mark)
                    if ended == BREAK:
                        break
            except RenderFault as fault:
                fault.at(offset)
            ended = DONE
            if empty and otherwise is not None and otherwise(frame, dot) == CONTINUE:
                ended = CONTINUE  # of the loop around this one; a break ends this one, as in Go
            frame.forget(outer)
            return ended

        return loop

    def _invocation(self, node: TemplateAction) -> Step:
        self._cost += 1
        name, offset, steps = node.name, node.offset, self._steps
        evaluate = self.pipeline(node.pipeline) if node.pipeline else None
        depth = self._depth + 1

        def invoke(frame: Frame, dot: object) -> int:
            step = steps.get(name)
            if step is None:
                raise RenderFault(f"template {shown(name)} not defined", offset)
            meter = frame.rendering.meter
            value = NO_VALUE if evaluate is None else evaluate(frame, dot)
            meter.depth += depth
            if meter.depth > meter.budget.nesting:
                raise RenderFault(
                    f"templates are nested more than {meter.budget.nesting} deep; a template may call itself", offset
                )
            step(Frame(frame.rendering, value), value)
            meter.depth -= depth
            return DONE

        return invoke

    # Pipelines

    def pipeline(self, node: TemplatePipeline) -> Evaluation:
        first = self._first_command(node.commands[0])
        rest = tuple([self._piped_command(command) for command in node.commands[1:]])
        declared, assigns, offset = node.declared, node.assigns, node.offset
        if not rest and not declared:

            def evaluate_one(frame: Frame, dot: object) -> object:
                value = first(frame, dot)
                return NO_VALUE if value is None else value

            return evaluate_one

        def evaluate(frame: Frame, dot: object) -> object:
            value = first(frame, dot)
            if value is None:
                value = NO_VALUE
            for command in rest:
                value = command(frame, dot, value)
                if value is None:
                    value = NO_VALUE
            for name in declared:
                if assigns:
                    _assign(frame, name, value, offset)
                else:
                    frame.declare(name, value)
            return value

        return evaluate

    def _first_command(self, command: TemplateCommand) -> Evaluation:
        self._cost += len(command.words)
        word = command.words[0]
        if isinstance(word, FunctionWord):
            return self._call(word, command)
        if isinstance(word, NilWord):
            return _failing("nil is not a command", word.offset)
        if len(command.words) == 1:
            return self.word(word)
        return self._refusing_arguments(word)

    def _piped_command(self, command: TemplateCommand) -> PipedEvaluation:
        self._cost += len(command.words)
        word = command.words[0]
        if isinstance(word, FunctionWord):
            return self._piped_call(word, command)
        refuse = self._refusing_arguments(word)
        return lambda frame, dot, _final: refuse(frame, dot)

    def _refusing_arguments(self, word: Word) -> Evaluation:
        """Return what a value does with arguments: it fails, but for a field of no value."""
        refuse = _failing("can't give an argument to what is not a function", word.offset)
        match word:
            case FieldWord(offset=offset, names=names) | ChainWord(offset=offset, names=names):
                pass
            case VariableWord(offset=offset, names=names) if names:
                pass
            case _:
                return refuse
        base = self._base(word)

        def read(frame: Frame, dot: object) -> object:
            if _fields(base(frame, dot), names[:-1], offset) is NO_VALUE:
                return NO_VALUE
            return refuse(frame, dot)

        return read

    # Words

    def word(self, word: Word) -> Evaluation:
        match word:
            case DotWord():
                return lambda _frame, dot: dot
            case NilWord():
                return lambda _frame, _dot: None
            case ConstantWord():
                return self._constant(word)
            case TemplatePipeline():
                return self.pipeline(word)
            case FunctionWord():
                return self._call(word, TemplateCommand(word.offset, (word,)))
            case FieldWord() | VariableWord() | ChainWord():
                base = self._base(word)
                if isinstance(word, VariableWord) and not word.names:
                    return base
                return self._field(word, base)

    def _base(self, word: FieldWord | VariableWord | ChainWord) -> Evaluation:
        """Return what the fields of a word are read of."""
        match word:
            case FieldWord():
                return lambda _frame, dot: dot
            case VariableWord():
                name, offset = word.variable, word.offset
                return _variable(name, offset)
            case ChainWord():
                return self.word(word.base)

    def _field(self, word: FieldWord | VariableWord | ChainWord, base: Evaluation) -> Evaluation:
        names, offset = word.names, word.offset
        self._cost += len(names) - 1
        if not isinstance(word, FieldWord):
            return lambda frame, dot: _fields(base(frame, dot), names, offset)
        if len(names) == 2:
            return _two_fields(names, offset)
        return lambda _frame, dot: _fields(dot, names, offset)

    def _constant(self, word: ConstantWord) -> Evaluation:
        value = word.value
        if isinstance(value, OverflowingInteger):
            return _failing(f"{word.text} overflows int", word.offset)
        return lambda _frame, _dot: value

    # Functions

    def _arguments(self, command: TemplateCommand) -> tuple[Evaluation, ...]:
        return tuple([self.word(word) for word in command.words[1:]])

    def _call(self, word: FunctionWord, command: TemplateCommand) -> Evaluation:
        function, arguments, offset = FUNCTIONS[word.name], self._arguments(command), word.offset
        if problem := _wrong_count(word.name, function, len(arguments)):
            return _failing(problem, offset)
        if word.name in {"and", "or"}:
            return _shortcut(arguments, stops_at=word.name == "or")
        body, prefix = function.body, f"error calling {word.name}: "

        def call(frame: Frame, dot: object) -> object:
            values = [argument(frame, dot) for argument in arguments]
            if NO_VALUE in values:
                values = _without_no_value(values)
            try:
                return body(frame.rendering.meter, values)
            except RenderFault as fault:
                fault.at(offset, prefix)

        return call

    def _piped_call(self, word: FunctionWord, command: TemplateCommand) -> PipedEvaluation:
        function, arguments, offset = FUNCTIONS[word.name], self._arguments(command), word.offset
        if problem := _wrong_count(word.name, function, len(arguments) + 1):
            fail = _failing(problem, offset)
            return lambda frame, dot, _final: fail(frame, dot)
        if word.name in {"and", "or"}:
            stops_at = word.name == "or"

            def choose(frame: Frame, dot: object, final: object) -> object:
                for argument in arguments:
                    value = argument(frame, dot)
                    if bool(value) is stops_at:
                        return value
                return final

            return choose
        body, prefix = function.body, f"error calling {word.name}: "

        def call(frame: Frame, dot: object, final: object) -> object:
            values = [argument(frame, dot) for argument in arguments]
            values.append(final)
            values = _without_no_value(values)
            try:
                return body(frame.rendering.meter, values)
            except RenderFault as fault:
                fault.at(offset, prefix)

        return call


def _charge(frame: Frame, operations: int, offset: int) -> None:
    try:
        frame.rendering.meter.charge(operations)
    except RenderFault as fault:
        fault.at(offset)


def _without_no_value(values: list[object]) -> list[object]:
    """Return arguments with None for NO_VALUE, as functions take nil."""
    return [None if value is NO_VALUE else value for value in values]


def _wrong_count(name: str, function: TemplateFunction, count: int) -> str | None:
    if count < function.least:
        least = "at least " if function.most != function.least else ""
        return f"wrong number of args for {name}: want {least}{function.least} got {count}"
    if function.most is not None and count > function.most:
        return f"wrong number of args for {name}: want {function.most} got {count}"
    return None


def _shortcut(arguments: tuple[Evaluation, ...], *, stops_at: bool) -> Evaluation:
    """Return `or` or `and`: the first argument with this truth, or the last one."""

    def choose(frame: Frame, dot: object) -> object:
        value: object = None
        for argument in arguments:
            value = argument(frame, dot)
            if bool(value) is stops_at:
                return value
        return value

    return choose


def _failing(message: str, offset: int) -> Evaluation:
    def fail(_frame: Frame, _dot: object) -> object:
        raise RenderFault(message, offset)

    return fail


def _variable(name: str, offset: int) -> Evaluation:
    def read(frame: Frame, _dot: object) -> object:
        try:
            return frame[name]
        except KeyError:
            raise RenderFault(f"undefined variable {shown(name)}: its declaration was skipped", offset) from None

    return read


def _assign(frame: Frame, name: str, value: object, offset: int) -> None:
    try:
        frame[name] = value
    except KeyError:
        raise RenderFault(f"undefined variable {shown(name)}; declare it with :=", offset) from None


def _two_fields(names: tuple[str, ...], offset: int) -> Evaluation:
    """Return the reading of `.a.b`, the most frequent one, without a loop."""
    first, second = names

    def read(_frame: Frame, dot: object) -> object:
        if type(dot) is dict:
            inner = dot.get(first)
            if type(inner) is dict:
                value = inner.get(second)
                if type(value) in _DATA_TYPES:
                    return cast("object", value)
        return _fields(dot, names, offset)

    return read


# Loops


def _loop_variables(pipeline: TemplatePipeline) -> Callable[[Frame, object, object], None] | None:
    """Return what puts an index and an element into the variables of a loop."""
    declared, offset = pipeline.declared, pipeline.offset
    if not declared:
        return None
    if pipeline.assigns:

        def assign(frame: Frame, index: object, element: object) -> None:
            if len(declared) > 1:
                _assign(frame, declared[0], index, offset)
            _assign(frame, declared[-1], element, offset)

        return assign
    if len(declared) == 1:
        return lambda frame, _index, element: frame.rebind(declared, (element,))
    return lambda frame, index, element: frame.rebind(declared, (index, element))


def _elements(frame: Frame, value: object, variables: int) -> Iterator[tuple[object, object]]:
    """Yield the index and element of each turn of a loop."""
    match value:
        case list():
            for index, element in enumerate(value):
                yield index, from_data(element)
        case dict():
            frame.rendering.meter.charge(len(value) >> 3)
            for key in sorted_keys(value):
                yield key, from_data(value[key])
        case int() if not isinstance(value, bool):
            if variables > 1:
                raise RenderFault(f"can't use {value} to iterate over more than one variable")
            kind = type(value)
            for number in range(value):
                yield NO_VALUE, Uint8(number) if kind is Uint8 else number
        case _:
            if value is not NO_VALUE:
                raise RenderFault(f"range can't iterate over a value of type {type_name(value)}")
