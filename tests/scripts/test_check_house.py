"""What scripts/check_house.py finds, and that the project has none of it."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from scripts import check_house

WIDE = " ".join(["word"] * 25)  # 124 characters


def texts(sources: dict[str, str]) -> list[str]:
    return [str(finding) for finding in check_house.check_all(sources)]


def test_the_project_has_no_finding_but_in_files_that_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_house.main([]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("word", check_house.PRIVATE_WORDS)
@pytest.mark.parametrize("spell", [str, str.capitalize, str.upper])
def test_a_private_word_is_found_in_prose_and_across_lines(word: str, spell: type[str]) -> None:
    [found] = texts({"docs/a.md": f"One.\n\nIt is {spell(word)}, it is.\n"})
    assert found.startswith("docs/a.md:3: ")
    broken = spell(word).replace(" ", "\n    # ")
    [found] = texts({"bench/a.py": f"    # It is {broken}, it is.\nx = 1\n".lstrip()})
    assert found.startswith("bench/a.py:1: ")


def test_a_word_that_is_a_name_in_quotes_is_none() -> None:
    assert texts({"bench/a.py": 'USER = "nobody"\n'}) == []


@pytest.mark.parametrize("name", check_house.RETIRED_NAMES)
def test_a_retired_name_is_found_as_a_part_of_an_identifier(name: str) -> None:
    [found] = texts({"bench/a.py": f"x = 1\nmy_{name}_3 = 2\n"})
    assert found == f'bench/a.py:2: "{name}" is a retired name: use {check_house.RETIRED_NAMES[name]}'


@pytest.mark.parametrize("text", ["planes", "Hubert", "deskside", "underwriters; other chat", "the ways to go"])
def test_a_word_that_has_such_letters_in_it_is_none(text: str) -> None:
    assert texts({"docs/a.md": text}) == []


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (f'"""Short.\n\n{WIDE}\n"""\n', 3),
        (f'class Place:\n    """Short.\n\n    {WIDE}\n    """\n', 4),
        (f'x = 1\n"""{WIDE}"""\n', 2),
        (f"# {WIDE}\n", 1),
        (f"x = 1  # {WIDE}\n", 1),
    ],
)
def test_prose_in_python_ends_at_the_last_column_allowed(source: str, line: int) -> None:
    [found] = texts({"bench/a.py": source})
    assert found.startswith(f"bench/a.py:{line}: prose ends at column ")


@pytest.mark.parametrize(
    "source",
    [
        f'x = "{WIDE[:100]}"\n',
        f"x = 1  # noqa: {WIDE}\n",
        f'"""Short.\n\nhttps://example.org/{"a" * 100}\n| {WIDE} |\n"""\n',
        f'"""Short.\n\n{WIDE[:99]}a\n"""\n',
    ],
)
def test_code_tables_addresses_and_instructions_to_tools_may_be_wider(source: str) -> None:
    assert texts({"bench/a.py": source}) == []


def test_the_first_line_of_a_docstring_is_short() -> None:
    fits = "a" * check_house.SUMMARY_CHARACTERS
    assert texts({"bench/a.py": f'def f():\n    """{fits}"""\n'}) == []
    [found] = texts({"bench/a.py": f'def f():\n    """{fits}a\n    """\n'})
    assert found == "bench/a.py:2: the first line of this docstring has 81 characters; 80 are allowed"


def test_prose_in_markdown_ends_at_the_last_column_allowed() -> None:
    [found] = texts({"docs/a.md": f"# Title\n\n{WIDE}\n"})
    assert found == "docs/a.md:3: prose ends at column 124; 100 is the last one allowed"
    assert texts({"docs/a.md": f"| {WIDE} |\n\n```\n{WIDE}\n```\n\n[short](https://example.org/{'a' * 100})\n"}) == []


def test_a_class_name_is_used_once_in_the_package() -> None:
    found = texts({"aether_trio/a.py": "class Place: ...\n", "aether_trio/b.py": "\nclass Place: ...\n"})
    assert found == [
        "aether_trio/a.py:1: another class is called Place too, in aether_trio/b.py",
        "aether_trio/b.py:2: another class is called Place too, in aether_trio/a.py",
    ]
    assert texts({"aether_trio/a.py": "class Place: ...\n", "tests/b.py": "class Place: ...\n"}) == []


def test_files_that_import_each_other_are_found_whatever_the_import() -> None:
    found = texts(
        {
            "aether_trio/__init__.py": "",
            "aether_trio/a.py": "if TYPE_CHECKING:\n    from aether_trio.b import B\n",
            "aether_trio/b.py": "def f():\n    import aether_trio.c.d\n",
            "aether_trio/c/__init__.py": "from aether_trio import a\n",
            "aether_trio/c/d.py": "from aether_trio.c import a\n",
            "aether_trio/e.py": "from aether_trio.a import A\n",
        }
    )
    assert len(found) == 1
    circle = found[0].partition("each other: ")[2].split(" -> ")
    assert circle[0] == circle[-1]
    assert set(circle) == {"aether_trio.a", "aether_trio.b", "aether_trio.c.d", "aether_trio.c"}
    pairs = list(itertools.pairwise(circle))
    assert ("aether_trio.a", "aether_trio.b") in pairs


@pytest.fixture
def project(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "clean.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "wide.py").write_text(f"# {WIDE}\n", encoding="utf-8")
    return tmp_path


def test_only_the_named_paths_are_checked(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert check_house.main([], root=project) == 1
    assert capsys.readouterr().out.startswith("wide.py:1: ")
    assert check_house.main(["clean.py", "scripts"], root=project) == 0
    assert check_house.main(["."], root=project) == 1
    assert capsys.readouterr().out.startswith("wide.py:1: ")
