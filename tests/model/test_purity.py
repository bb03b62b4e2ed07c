"""The model imports the standard library and itself, and does no I/O."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import aether_trio.model

ROOT = Path(next(iter(aether_trio.model.__path__)))
MODULES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_only_the_standard_library_and_the_model(path: Path) -> None:
    foreign = {
        name
        for name in imports(path)
        if not name.startswith("aether_trio.model.") and name.split(".")[0] not in sys.stdlib_module_names
    }
    assert not foreign


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_touches_nothing_outside(path: Path) -> None:
    allowed = {"clock": {"time"}, "ids": {"random"}}.get(name_of(path), set())
    assert not (imports(path) & {"os", "time", "random", "socket", "pathlib", "threading", "asyncio"}) - allowed


def test_there_are_modules_to_look_at() -> None:
    assert {"identity", "topics", "permissions", "errors", "access.levels"} <= {name_of(path) for path in MODULES}
