"""What the reader is told to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from aether_trio.demo.play import aether_command


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment's directory of scripts, below the current directory."""
    scripts = tmp_path / "env" / "bin"
    scripts.mkdir(parents=True)
    (scripts / "aether").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    return scripts


def test_by_name_when_it_is_on_the_path(environment: Path) -> None:
    assert aether_command(str(environment / "python"), {"PATH": str(environment)}) == "aether"


def test_by_path_when_it_is_not(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = str(environment / "python")
    assert aether_command(python, {"PATH": "/nowhere"}) == "env/bin/aether"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert aether_command(python, {"PATH": "/nowhere"}) == str(environment / "aether")


def test_by_path_when_only_nox_has_it_on_the_path(environment: Path) -> None:
    path = {"PATH": str(environment), "NOX_CURRENT_SESSION": "demo"}
    assert aether_command(str(environment / "python"), path) == "env/bin/aether"


def test_another_aether_on_the_path_is_not_ours(environment: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "aether").touch(mode=0o755)
    assert aether_command(str(environment / "python"), {"PATH": str(other)}) == "env/bin/aether"


def test_as_a_module_where_no_script_is_installed(tmp_path: Path) -> None:
    assert aether_command(str(tmp_path / "python"), {}) == f"{tmp_path}/python -m aether_trio"
