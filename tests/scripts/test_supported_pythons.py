"""Which Pythons CI runs the tests on: those that are claimed, and that start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts import supported_pythons

THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def test_what_the_classifiers_claim_is_what_is_required() -> None:
    versions = supported_pythons.supported_versions()
    assert versions[0] == "3.11"
    assert THIS in versions, "it is tested, and not claimed"


def test_one_that_starts_is_found_and_others_are_not(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(
        path / "python3.11", "echo 'command not found' >&2; exit 127"
    )  # what pyenv has for a version that is switched off
    program(path / "python3.12", "echo 3.9")
    program(path / "python3.13", "echo 3.13")
    program(path / "python3.9", "echo 3.9")
    supported_pythons.main()
    assert capsys.readouterr().out.split() == [str(path / "python3.13")]


def test_this_one_is_found_for_what_it_is(path: Path) -> None:
    (path / f"python{THIS}").symlink_to(sys.executable)
    assert supported_pythons.starts(path / f"python{THIS}", THIS)
    assert not supported_pythons.starts(path / f"python{THIS}", "3.99")


def test_versions_of_pyenv_are_found(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(path / "pyenv", f"echo {tmp_path / 'root'}")
    for version in ("3.12.1", "3.13.0"):
        place = tmp_path / "root" / "versions" / version / "bin"
        place.mkdir(parents=True)
        program(place / f"python{version[:4]}", f"echo {version[:4]}")
    supported_pythons.main()
    assert [Path(line).name for line in capsys.readouterr().out.split()] == ["python3.12", "python3.13"]
