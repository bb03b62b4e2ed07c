"""Compiles a document of any kind: workflow, rule, schedule, machine or webhook.

The document is a JSON tree, as services/workflows reads it from JSON or YAML. Workflows and
machines may come as records, as operations have them: `{id, version, workspace, definition}` with
the document in `definition`, as a map or as its JSON text.
"""

from __future__ import annotations

from typing import Final

from aether_trio.model.workflows.compiling import Compiler, Tools, json_text
from aether_trio.model.workflows.definition import Definition, Json, Path
from aether_trio.model.workflows.graphs import compile_graph
from aether_trio.model.workflows.reading import Fields, Findings, check_tree, fold, kind_of, quoted
from aether_trio.model.workflows.records import compile_machine, compile_rule, compile_schedule
from aether_trio.model.workflows.webhooks import compile_webhook

WORKFLOW: Final = "workflow"
RULE: Final = "rule"
SCHEDULE: Final = "schedule"
MACHINE: Final = "machine"
WEBHOOK: Final = "webhook"
KINDS: Final = (WORKFLOW, RULE, SCHEDULE, MACHINE, WEBHOOK)
_BY_KEY: Final = (
    ("steps", WORKFLOW),
    ("states", MACHINE),
    ("sourceevent", RULE),
    ("destinationtemplate", RULE),
    ("rulename", RULE),
    ("scheduletype", SCHEDULE),
    ("scheduleexpr", SCHEDULE),
    ("initialstate", MACHINE),
    ("trigger", WORKFLOW),
)
_RECORD_KEYS: Final = (
    "kind",
    "id",
    "version",
    "workspace",
    "definition",
    "active",
    "created_at",
    "updated_at",
)


def kind_of_document(tree: Json) -> str:
    """Return a document's kind: its `kind`, else what its keys tell, else ""."""
    if not isinstance(tree, dict):
        return ""
    stated = tree.get("kind")
    if isinstance(stated, str):
        return stated
    keys = {fold(key) for key in tree if isinstance(key, str)}
    inner = next((one for key, one in tree.items() if isinstance(key, str) and fold(key) == "definition"), None)
    if isinstance(inner, dict):
        keys |= {fold(key) for key in inner if isinstance(key, str)}
    return next((kind for key, kind in _BY_KEY if key in keys), WORKFLOW if inner is not None else "")


def compile_document(kind: str, tree: Json, tools: Tools, *, strict: bool = True) -> tuple[Definition | None, Findings]:
    """Compile a document; the definition is None if it has errors.

    An unknown key is an error if `strict`, else it is among `findings.ignored`. So are operations
    of expressions that fail for the declared types: a document that is stored is read as before.
    """
    findings = Findings(strict=strict)
    if not check_tree(tree, findings):
        return None, findings
    if kind not in KINDS:
        findings.error((), f"{quoted(kind)} is no kind of document; there are {', '.join(KINDS)}")
        return None, findings
    if not isinstance(tree, dict):
        findings.error((), f"the document has to be a map, and is {kind_of(tree)}")
        return None, findings
    definition = _compile(kind, tree, Compiler(findings, tools, typed=strict))
    return (None if findings.errors else definition), findings


def _compile(kind: str, tree: dict[str, Json], compiler: Compiler) -> Definition | None:
    if kind == RULE:
        return compile_rule(compiler, tree, ())
    if kind == SCHEDULE:
        return compile_schedule(compiler, tree, ())
    if kind == WEBHOOK:
        return compile_webhook(compiler, tree, ())
    document: Json = tree
    path: Path = ()
    preset: dict[str, Json] = {}
    if any(fold(key) == "definition" for key in tree):
        record = Fields(tree, (), compiler.findings, _RECORD_KEYS, f"the {kind}", casings=True)
        path = record.at("definition")
        document = record.get("definition")
        preset = {key: one for key in ("id", "version", "workspace") if (one := record.get(key)) is not None}
        if isinstance(document, str):
            document = json_text(compiler.findings, document, path, "the definition")
        if document is None:
            if not compiler.findings.count:
                record.error("definition", f"the {kind} has no definition")
            return None
    if kind == MACHINE:
        return compile_machine(compiler, document, path, preset)
    return compile_graph(compiler, document, path, preset)
