"""Compiles documents of workflows, for storage and for executions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from aether_trio.model.workflows.definition import FunctionTerms, Graph, Json
from aether_trio.model.workflows.start_terms import TERM_KEYS
from aether_trio.services.workflows.documents.json_values import write_json
from aether_trio.services.workflows.documents.reader import read_json, read_terms
from aether_trio.services.workflows.documents.schemas import schema_problems
from aether_trio.services.workflows.stored.definitions import StoredDefinition

WORKFLOW: Final = "workflow"
MAX_PROBLEMS: Final = 3


def compiled_for_storage(
    document: dict[str, Any], owner: str, now_ms: int
) -> tuple[StoredDefinition, Graph, list[str]]:
    """Check a document; return what is stored, its graph, and the ignored keys.

    Raises DefinitionErrors with all that is wrong.
    """
    graph, ignored = read_json(WORKFLOW, document)
    assert isinstance(graph, Graph)
    stored = StoredDefinition(
        graph.workspace,
        graph.id,
        graph.version,
        write_json(graph.source),
        bytes.fromhex(graph.digest),
        owner,
        True,
        now_ms,
        now_ms,
    )
    return stored, graph, list(ignored)


def compile_stored(stored: StoredDefinition) -> Graph:
    """Compile the document of a stored version, which was checked when it was stored."""
    record = {
        "id": stored.id,
        "version": stored.version,
        "workspace": stored.workspace,
        "definition": json.loads(stored.document),
    }
    graph, _ = read_json(WORKFLOW, record)
    assert isinstance(graph, Graph)
    return graph


def compile_stored_terms(stored: StoredDefinition) -> FunctionTerms:
    """Compile the terms of a stored function, which were checked when stored."""
    about = json.loads(stored.document)["function"]
    return read_terms({key: about[key] for key in TERM_KEYS if key in about}, about.get("input"))


def schema_problem(schema: Mapping[str, Json], value: Json) -> str:
    """Return how a value breaks a JSON Schema, with the place in it, or ""."""
    problems = schema_problems(schema, value)
    return "; ".join(problems[:MAX_PROBLEMS])
