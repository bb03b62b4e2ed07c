"""Reads workflow documents: files of YAML or JSON, and the data of operations.

    read_file(name, text)     every document of a file, with all errors and their positions
    read_json(kind, data)     the document of an operation

An error of a file is `FILE:LINE:COLUMN: message`, one of an operation `/PATH: message`. Texts of
documents are escaped in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from aether_trio.model.text import escaped
from aether_trio.model.workflows.compiling import Compiler, Tools
from aether_trio.model.workflows.definition import (
    Definition,
    FunctionTerms,
    Graph,
    Json,
    MachineDefinition,
    RuleDefinition,
    ScheduleDefinition,
    WebhookDefinition,
)
from aether_trio.model.workflows.documents import (
    KINDS,
    MACHINE,
    RULE,
    SCHEDULE,
    WEBHOOK,
    WORKFLOW,
    compile_document,
    kind_of_document,
)
from aether_trio.model.workflows.feedback import feeding_circles
from aether_trio.model.workflows.reading import (
    MAX_PROBLEMS,
    DefinitionErrors,
    Findings,
    Problem,
    check_tree,
    fold,
    kind_of,
    parse_json,
    pointer,
    quoted,
)
from aether_trio.model.workflows.start_terms import compile_function_terms
from aether_trio.model.workflows.webhooks import secret_text
from aether_trio.services.workflows.documents.tools import TOOLS
from aether_trio.services.workflows.documents.yaml_reader import MAX_BYTES, YamlDocument, YamlError, read_yaml_documents

_SHOWN_NAME: Final = 200


@dataclass(frozen=True, slots=True)
class Documents:
    """What files have: definitions of all right documents, and what is wrong."""

    definitions: tuple[Definition, ...]
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    places: tuple[str, ...] = ()  # of the definitions: FILE:LINE:COLUMN
    tests: tuple[tuple[str, ...], ...] = ()  # the places of their tests
    steps: tuple[dict[str, str], ...] = ()  # the places of their steps, by id

    def checked(self) -> tuple[Definition, ...]:
        """Return the definitions; raises DefinitionErrors if anything is wrong."""
        if self.errors:
            raise DefinitionErrors(self.errors, self.warnings)
        return self.definitions


def identity_of(definition: Definition) -> tuple[str, str, str]:
    """Return what a definition is known by: kind, workspace, and id or name."""
    if isinstance(definition, Graph):
        return WORKFLOW, definition.workspace, definition.id
    if isinstance(definition, RuleDefinition):
        return RULE, definition.workspace, definition.name
    if isinstance(definition, ScheduleDefinition):
        return SCHEDULE, definition.workspace, definition.id or definition.name
    if isinstance(definition, WebhookDefinition):
        return WEBHOOK, definition.workspace, definition.name
    assert isinstance(definition, MachineDefinition)
    return MACHINE, definition.workspace, definition.id


def document_of(definition: Definition) -> dict[str, Json]:
    """Return the document that applies a definition, with its kind and secrets."""
    document: dict[str, Json] = {"kind": identity_of(definition)[0], **definition.source}
    if isinstance(definition, WebhookDefinition) and definition.secrets:
        document["secrets"] = [secret_text(key) for key in definition.secrets]
    return document


class _FileReader:
    """Collects the documents of one file, and what is wrong with it."""

    __slots__ = ("definitions", "errors", "name", "places", "seen", "steps", "tests", "tools", "warnings", "workspace")

    def __init__(self, name: str, tools: Tools, workspace: str = "") -> None:
        self.workspace = workspace
        self.name = escaped(name, _SHOWN_NAME)
        self.tools = tools
        self.definitions: list[Definition] = []
        self.places: list[str] = []  # of the definitions
        self.tests: list[tuple[str, ...]] = []
        self.steps: list[dict[str, str]] = []
        self.seen: dict[tuple[str, str, str], str] = {}
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def at(self, line: int, column: int) -> str:
        return f"{self.name}:{line}:{column}"

    def read_yaml(self, text: str) -> None:
        count = 0
        try:
            for document in read_yaml_documents(text):
                count += 1
                self._document(document.tree, document)
        except YamlError as exc:
            self.errors.append(f"{self.at(exc.line, exc.column)}: {exc.message}")
            return
        if not count:
            self.errors.append(f"{self.at(1, 1)}: there is no document")

    def read_json(self, text: str) -> None:
        try:
            if len(text) > MAX_BYTES:
                raise ValueError(f"it has {len(text)} characters; at most {MAX_BYTES} are allowed")
            tree = parse_json(text)
        except ValueError as exc:
            place = self.at(getattr(exc, "lineno", 1), getattr(exc, "colno", 1))
            self.errors.append(f"{place}: it is not JSON: {escaped(getattr(exc, 'msg', '') or str(exc), 300)}")
            return
        trees = tree if isinstance(tree, list) else [tree]
        if not trees:
            self.errors.append(f"{self.at(1, 1)}: there is no document")
        for one in trees:
            self._document(one, None)

    def _document(self, tree: Json, document: YamlDocument | None) -> None:
        def position(problem: Problem) -> tuple[int, int]:
            if document is None:
                return 0, 0
            return document.position(problem.path, of_key=problem.of_key, line=problem.line, column=problem.column)

        def located(problem: Problem) -> str:
            if document is None:
                return f"{self.name}: {pointer(problem.path)}: {_said(problem)}"
            return f"{self.at(*position(problem))}: {problem.text()}"

        whole = Problem((), "")
        place = located(whole).removesuffix(": ")
        if not isinstance(tree, dict):
            self.errors.append(
                f"{place}: a document is a map, with keys such as id and steps, and this is {kind_of(tree)}"
            )
            return
        kind = kind_of_document(tree)
        if kind not in KINDS:
            says = f"{quoted(kind)} is no kind of document" if kind else "it is not clear what this document is"
            hint = f"there are {', '.join(KINDS)}" if kind else f"write kind: and one of {', '.join(KINDS)}"
            self.errors.append(f"{place}: {says}: {hint}")
            return
        definition, findings = compile_document(kind, in_workspace(tree, self.workspace), self.tools)
        self.errors += map(located, sorted(findings.errors, key=position))
        if findings.more:
            self.errors.append(f"{place}: there are {findings.more} more errors in this document")
        self.warnings += map(located, sorted(findings.warnings, key=position))
        if definition is None:
            return
        identity = identity_of(definition)
        if identity in self.seen:
            self.errors.append(
                f"{place}: {kind} {quoted(identity[2])} is there twice: it is also at {self.seen[identity]}"
            )
            return
        self.seen[identity] = place
        self.definitions.append(definition)
        self.places.append(place)
        tests, steps = (definition.tests, definition.steps) if isinstance(definition, Graph) else ((), {})
        self.tests.append(tuple(located(Problem(one.path, "")).removesuffix(": ") for one in tests))
        self.steps.append({one.id: located(Problem(one.path, "")).removesuffix(": ") for one in steps.values()})


def _said(problem: Problem) -> str:
    """Return a problem's message with its place within a text."""
    if problem.line:
        return f"{problem.text()} (line {problem.line}, column {problem.column})"
    return problem.text()


def read_file(name: str, text: str, tools: Tools = TOOLS) -> Documents:
    """Read every document of a file.

    A file whose name ends with ".json" is JSON, others are YAML. All that is wrong is among the
    errors of the result.
    """
    return read_files([(name, text)], tools)


def in_workspace(document: Json, workspace: str) -> Json:
    """Return a document in this workspace, unless it names one or is no map."""
    if not workspace or not isinstance(document, dict):
        return document
    inner = next((value for key, value in document.items() if fold(str(key)) == "definition"), None)
    for one in (document, inner):
        if isinstance(one, dict) and any(fold(str(key)) == "workspace" for key in one):
            return document
    return {**document, "workspace": workspace}


def read_files(files: Iterable[tuple[str, str]], tools: Tools = TOOLS, *, workspace: str = "") -> Documents:
    """Read several files, given by name and text, which belong together.

    `workspace` is that of documents that name none, instead of all ("*").
    A definition that is there twice is an error. Rules and workflows that start each other without
    an end are warned of.
    """
    definitions: list[Definition] = []
    places: list[str] = []
    tests: list[tuple[str, ...]] = []
    steps: list[dict[str, str]] = []
    errors: list[str] = []
    warnings: list[str] = []
    seen: dict[tuple[str, str, str], str] = {}
    for name, text in files:
        reader = _FileReader(name, tools, workspace)
        reader.seen = seen
        if name.endswith(".json"):
            reader.read_json(text)
        else:
            reader.read_yaml(text)
        definitions += reader.definitions
        places += reader.places
        tests += reader.tests
        steps += reader.steps
        errors += reader.errors
        warnings += reader.warnings
    if not errors:
        for circle, text in feeding_circles(definitions):
            warnings.append(f"{places[circle]}: {escaped(text, 600)}")
    return Documents(tuple(definitions), tuple(errors), tuple(warnings), tuple(places), tuple(tests), tuple(steps))


def read_json(kind: str, data: Json | bytes, tools: Tools = TOOLS) -> tuple[Definition, list[str]]:
    """Compile the document of an operation: a JSON text, or its tree.

    Returns the definition, and the keys that it does not know and has ignored, as JSON pointers.
    Raises DefinitionErrors.
    """
    if isinstance(data, bytes | str):
        if len(data) > MAX_BYTES:
            raise DefinitionErrors([f"/: the document has more than {MAX_BYTES} bytes"])
        try:
            data = parse_json(data)
        except ValueError as exc:
            raise DefinitionErrors([f"/: the data is not JSON: {escaped(str(exc), 300)}"]) from None
    definition, findings = compile_document(kind, data, tools, strict=False)
    if definition is None:
        raise DefinitionErrors(_lines(findings))
    return definition, [pointer(path) for path in findings.ignored]


def read_terms(document: dict[str, Json], schema: Json, tools: Tools = TOOLS) -> FunctionTerms:
    """Compile the terms of a function whose input has this JSON Schema, or None.

    Raises DefinitionErrors.
    """
    findings = Findings()
    if not check_tree(document, findings):
        raise DefinitionErrors(_lines(findings))
    terms = compile_function_terms(Compiler(findings, tools), document, schema)
    if findings.errors:
        raise DefinitionErrors(_lines(findings))
    return terms


def _lines(findings: Findings) -> Iterator[str]:
    for problem in findings.errors[:MAX_PROBLEMS]:
        yield f"{pointer(problem.path)}: {_said(problem)}"
    if findings.more:
        yield f"/: there are {findings.more} more errors"
