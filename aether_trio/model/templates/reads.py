"""What a template reads of its data, as far as its source tells.

Variables and the cursor are followed as long as they stand for one path of the data: a field of
the data, a field of that, or `index` with constant keys. A variable that is assigned again, an
element of a loop and what a function returns have no path.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Final

from aether_trio.model.templates.nodes import (
    BodyNode,
    BranchAction,
    ChainWord,
    ConstantWord,
    DotWord,
    FieldWord,
    FunctionWord,
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
from aether_trio.model.templates.variables import VariableStack

MAX_CURSORS: Final = 16
"""With how many cursors a template is followed; a recursion has a new one at each turn."""

Path = tuple[str, ...]
Variables = VariableStack[Path | None]


def static_reads(trees: Mapping[str, NodeList], name: str) -> dict[Path, int]:
    """Return what the template `name` and those it invokes read, with the offsets.

    The offset is that of the first read, in the order of the source within each template.
    """
    walker = _ReadWalker(name)
    while walker.pending:
        invoked, dot = walker.pending.popleft()
        if invoked in trees:
            walker.template(trees[invoked], dot)
    return walker.reads


class _ReadWalker:
    """Walks trees with the path of the cursor, None where it has none."""

    def __init__(self, name: str) -> None:
        self.reads: dict[Path, int] = {}
        self.pending: deque[tuple[str, Path | None]] = deque([(name, ())])
        self._cursors: defaultdict[str, set[Path | None]] = defaultdict(set, {name: {()}})

    def template(self, nodes: NodeList, dot: Path | None) -> None:
        self._nodes(nodes, dot, VariableStack(dot))

    def _invoke(self, name: str, dot: Path | None) -> None:
        cursors = self._cursors[name]
        if len(cursors) >= MAX_CURSORS:
            dot = None
        if dot not in cursors:
            cursors.add(dot)
            self.pending.append((name, dot))

    def _nodes(self, nodes: NodeList, dot: Path | None, variables: Variables) -> None:
        mark = variables.mark()
        for node in nodes.nodes:
            self._node(node, dot, variables)
        variables.forget(mark)

    def _node(self, node: BodyNode, dot: Path | None, variables: Variables) -> None:
        match node:
            case PrintAction():
                path = self._pipeline(node.pipeline, dot, variables)
                if not node.pipeline.declared:
                    self._read(path, node.offset)
            case BranchAction():
                mark = variables.mark()
                for pipeline, nodes in node.clauses:
                    path = self._pipeline(pipeline, dot, variables)
                    self._read(path, pipeline.offset)
                    self._nodes(nodes, path if node.word == "with" else dot, variables)
                if node.otherwise:
                    self._nodes(node.otherwise, dot, variables)
                variables.forget(mark)
            case LoopAction():
                mark = variables.mark()
                self._read(self._pipeline(node.pipeline, dot, variables), node.pipeline.offset)
                for name in _assigned(node) | set(node.pipeline.declared):
                    if name in variables:
                        variables[name] = None  # at the next turn, it may have another value
                self._nodes(node.body, None, variables)
                if node.otherwise:
                    self._nodes(node.otherwise, dot, variables)
                variables.forget(mark)
            case TemplateAction():
                self._invoke(node.name, self._pipeline(node.pipeline, dot, variables) if node.pipeline else None)

    def _read(self, path: Path | None, offset: int) -> None:
        if path is not None:
            self.reads.setdefault(path, offset)

    def _pipeline(self, pipeline: TemplatePipeline, dot: Path | None, variables: Variables) -> Path | None:
        path = self._command(pipeline.commands[0], dot, variables)
        for command in pipeline.commands[1:]:
            self._read(path, pipeline.offset)
            self._command(command, dot, variables)
            path = None
        if pipeline.assigns:
            self._read(path, pipeline.offset)
        for name in pipeline.declared:
            if not pipeline.assigns:
                variables.declare(name, path)
            elif name in variables:
                variables[name] = None
        return path

    def _command(self, command: TemplateCommand, dot: Path | None, variables: Variables) -> Path | None:
        first = command.words[0]
        if not isinstance(first, FunctionWord):
            for word in command.words[1:]:
                self._read(self._word(word, dot, variables), word.offset)
            return self._word(first, dot, variables)
        if first.name == "index" and len(command.words) > 1:
            keys = [word.value for word in command.words[2:] if isinstance(word, ConstantWord)]
            names = [key for key in keys if isinstance(key, str)]
            base = self._word(command.words[1], dot, variables)
            if base is not None and len(names) == len(command.words) - 2:
                return (*base, *names)
            self._read(base, command.offset)
            rest = command.words[2:]
        else:
            rest = command.words[1:]
        for word in rest:
            self._read(self._word(word, dot, variables), word.offset)
        return None

    def _word(self, word: Word, dot: Path | None, variables: Variables) -> Path | None:
        match word:
            case DotWord():
                return dot
            case FieldWord():
                return None if dot is None else (*dot, *word.names)
            case VariableWord():
                base = variables.get(word.variable)
                return None if base is None else (*base, *word.names)
            case TemplatePipeline():
                return self._pipeline(word, dot, variables)
            case ChainWord():
                base = self._word(word.base, dot, variables)
                return None if base is None else (*base, *word.names)
            case NilWord() | ConstantWord() | FunctionWord():
                return None


def _assigned(node: BodyNode) -> set[str]:
    """Return the names that pipelines of a node and of those within it assign."""
    match node:
        case PrintAction():
            return _assigned_by(node.pipeline)
        case BranchAction():
            names: set[str] = set()
            for pipeline, body in node.clauses:
                names |= _assigned_by(pipeline)
                for inner in body.nodes:
                    names |= _assigned(inner)
            for inner in node.otherwise.nodes if node.otherwise else ():
                names |= _assigned(inner)
            return names
        case LoopAction():
            names = _assigned_by(node.pipeline)
            for inner in (*node.body.nodes, *(node.otherwise.nodes if node.otherwise else ())):
                names |= _assigned(inner)
            return names
        case TemplateAction():
            return _assigned_by(node.pipeline) if node.pipeline else set()
        case _:
            return set()


def _assigned_by(pipeline: TemplatePipeline) -> set[str]:
    names = set(pipeline.declared) if pipeline.assigns else set()
    for command in pipeline.commands:
        for word in command.words:
            if isinstance(word, TemplatePipeline):
                names |= _assigned_by(word)
            elif isinstance(word, ChainWord) and isinstance(word.base, TemplatePipeline):
                names |= _assigned_by(word.base)
    return names
