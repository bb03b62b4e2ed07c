"""Check that the files and functions that docs/architecture.md names exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
FOLDERS = [ROOT, ROOT / "aether_trio", ROOT / "aether_trio" / "transport"]
"""Where the path of a file on a page begins."""

STAY = re.compile(r"^\| (\d+) \| `([^`|]+\.py)` \| ([^|]+) \|", re.MULTILINE)
"""A row of a trip: its number, its file, its functions."""

MOST_STAYS = {"A message in the router": 5, "A connection": 15, "Creating a task": 30}


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def named_files(page: str) -> set[str]:
    """Return the Python files that a page names with their folder."""
    return {
        name
        for name in re.findall(r"`([\w./-]+\.py)(?:::\w+)?`", prose(page))
        if "/" in name and not name.startswith(("docs/", "/"))
    }


def find(name: str) -> Path | None:
    return next((folder / name for folder in FOLDERS if (folder / name).is_file()), None)


@cache
def definitions(path: Path) -> frozenset[str]:
    """Return the names that a file defines: functions, classes, and Class.method."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            members = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {node.name, *(f"{node.name}.{one.name}" for one in members)}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES)
def test_every_named_file_is_there(page: str) -> None:
    assert [name for name in sorted(named_files(page)) if find(name) is None] == []


def trips() -> dict[str, list[tuple[int, str, list[str]]]]:
    """Return the trips of docs/architecture.md: heading -> stays."""
    sections = re.split(r"^### ", prose("docs/architecture.md"), flags=re.MULTILINE)[1:]
    found = {}
    for section in sections:
        stays = [(int(number), file, re.findall(r"`([\w.]+)`", names)) for number, file, names in STAY.findall(section)]
        if stays:
            found[section.partition("\n")[0]] = stays
    return found


def test_the_stays_of_a_trip_name_functions_that_are_there() -> None:
    checked = 0
    for trip, stays in trips().items():
        for number, file, names in stays:
            path = find(file)
            assert path is not None, f"{trip}, stay {number}: {file} is not there"
            assert names, f"{trip}, stay {number} names no function"
            for name in names:
                assert name in definitions(path), f"{trip}, stay {number}: {file} has no {name}"
                checked += 1
    assert checked > 60


def test_the_classes_that_the_prose_names_are_there() -> None:
    defined = {name for path in (ROOT / "aether_trio").rglob("*.py") for name in definitions(path)}
    named = set(re.findall(r"`([A-Z][a-z]\w*(?:\.\w+)?)`", prose("docs/architecture.md"))) - {"Random"}
    assert len(named) > 20
    assert sorted(named - defined) == []


def test_the_stays_are_numbered_and_within_their_bounds() -> None:
    found = trips()
    for trip, stays in found.items():
        assert [number for number, _, _ in stays] == list(range(1, len(stays) + 1)), trip
    for beginning, most in MOST_STAYS.items():
        (trip,) = [trip for trip in found if trip.startswith(beginning)]
        assert len(found[trip]) <= most, trip


def test_the_picture_and_the_table_have_every_folder_of_the_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    picture = text.partition("```mermaid")[2].partition("```")[0]
    table = text.partition("| folder | contents |")[2].partition("\n\n")[0]
    folders = {path.parent.name for path in (ROOT / "aether_trio").glob("*/*") if path.suffix in {".py", ".html"}}
    assert set(re.findall(r"[\"\s](\w+)/", picture)) - {""} == folders
    assert set(re.findall(r"`(\w+)/`", table)) == folders


def test_a_named_file_or_function_that_is_missing_is_found() -> None:
    assert find("no/such_file.py") is None
    assert "Router.no_such_function" not in definitions(ROOT / "aether_trio" / "delivery" / "router.py")
