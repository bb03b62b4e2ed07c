"""What the reader is told to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_trio.demo.story import aether_command


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment's directory of scripts, below the current directory."""
    scripts = tmp_path / "env" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "aether").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    return scripts


@pytest.mark.parametrize(
    ("path", "more", "command"),
    [
        ("env/bin", {}, "aether"),
        ("/nowhere", {}, "env/bin/aether"),
        ("env/bin", {"NOX_CURRENT_SESSION": "demo"}, "env/bin/aether"),
        ("other", {}, "env/bin/aether"),
    ],
    ids=["it is on the path", "it is not", "only nox has it on the path", "another one is on the path"],
)
def test_by_name_or_by_path(environment: Path, tmp_path: Path, path: str, more: dict[str, str], command: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "aether").touch(mode=0o755)
    assert aether_command(str(environment / "python"), {"PATH": str(tmp_path / path), **more}) == command


def test_by_whole_path_from_elsewhere(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert aether_command(str(environment / "python"), {"PATH": "/nowhere"}) == str(environment / "aether")


def test_as_a_module_where_no_script_is_installed(tmp_path: Path) -> None:
    assert aether_command(str(tmp_path / "python"), {}) == f"{tmp_path}/python -m aether_trio"
