"""What a template reads of its data, as far as its source tells.

Variables and the cursor are followed as long as they stand for one path of the data: a field of
the data, a field of that, or `index` with constant keys. A variable that is assigned again, an
element of a loop and what a function returns have no path.
"""

from __future__ import annotations

from collections.abc import Mapping

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

Path = tuple[str, ...]
Variables = dict[str, Path | None]


def static_reads(trees: Mapping[str, NodeList], name: str) -> frozenset[Path]:
    """Return the paths that the template `name` reads, and those that it invokes."""
    reader = _ReadWalker(trees)
    reader.template(name, ())
    return frozenset(reader.paths)


class _ReadWalker:
    """Walks the trees with the path of the cursor, None where it has none."""

    def __init__(self, trees: Mapping[str, NodeList]) -> None:
        self._trees = trees
        self._seen: set[tuple[str, Path | None]] = set()
        self.paths: set[Path] = set()

    def template(self, name: str, dot: Path | None) -> None:
        body = self._trees.get(name)
        if body is None or (name, dot) in self._seen or (dot is not None and len(dot) > len(self._trees) * 8 + 64):
            return
        self._seen.add((name, dot))
        self._body(body, dot, {"$": dot})

    def _body(self, body: NodeList, dot: Path | None, variables: Variables) -> None:
        for node in body.nodes:
            self._node(node, dot, variables)

    def _node(self, node: BodyNode, dot: Path | None, variables: Variables) -> None:
        match node:
            case PrintAction():
                path = self._pipeline(node.pipeline, dot, variables)
                if not node.pipeline.declared:
                    self._read(path)
            case BranchAction():
                inner = dict(variables)
                for pipeline, body in node.clauses:
                    path = self._pipeline(pipeline, dot, inner)
                    self._read(path)
                    self._body(body, path if node.word == "with" else dot, dict(inner))
                if node.otherwise:
                    self._body(node.otherwise, dot, dict(inner))
                _forget_assigned(node, variables)
            case LoopAction():
                inner = dict(variables)
                self._read(self._pipeline(node.pipeline, dot, inner))
                _forget_assigned(node, inner)
                inner |= dict.fromkeys(node.pipeline.declared)
                self._body(node.body, None, dict(inner))
                if node.otherwise:
                    self._body(node.otherwise, dot, inner)
                _forget_assigned(node, variables)
            case TemplateAction():
                if node.pipeline:
                    self.template(node.name, self._pipeline(node.pipeline, dot, variables))
                else:
                    self.template(node.name, None)

    def _read(self, path: Path | None) -> None:
        if path is not None:
            self.paths.add(path)

    def _pipeline(self, pipeline: TemplatePipeline, dot: Path | None, variables: Variables) -> Path | None:
        path = self._command(pipeline.commands[0], dot, variables)
        for command in pipeline.commands[1:]:
            self._read(path)
            self._command(command, dot, variables)
            path = None
        for name in pipeline.declared:
            variables[name] = None if pipeline.assigns else path
        if pipeline.assigns:
            self._read(path)
        return path

    def _command(self, command: TemplateCommand, dot: Path | None, variables: Variables) -> Path | None:
        first = command.words[0]
        if not isinstance(first, FunctionWord):
            for word in command.words[1:]:
                self._read(self._word(word, dot, variables))
            return self._word(first, dot, variables)
        if first.name == "index" and len(command.words) > 1:
            keys = [word.value for word in command.words[2:] if isinstance(word, ConstantWord)]
            names = [key for key in keys if isinstance(key, str)]
            base = self._word(command.words[1], dot, variables)
            if base is not None and len(names) == len(command.words) - 2:
                return (*base, *names)
            self._read(base)
            rest = command.words[2:]
        else:
            rest = command.words[1:]
        for word in rest:
            self._read(self._word(word, dot, variables))
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


def _forget_assigned(node: BranchAction | LoopAction, variables: Variables) -> None:
    """Take the paths of variables that a structure may assign."""
    for name in _assigned(node):
        if name in variables:
            variables[name] = None


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
