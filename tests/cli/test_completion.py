"""Test the completion of commands, options and contexts in bash, zsh and fish."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shell import AETHER, LIMIT_S, aether, clean_environment


def completed(*words: str, shell: str = "bash", **env: str) -> list[str]:
    """Ask as the shell does at the end of these words; return what it may put there."""
    if shell == "fish":
        asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": words[-1]}
    else:
        asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-W", "error", *AETHER[1:]],
        env=clean_environment(**asked, _AETHER_COMPLETE=f"{shell}_complete", **env),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done
    assert done.stderr == ""
    return done.stdout.splitlines()


def names(*words: str, **env: str) -> list[str]:
    return [line.partition(",")[2] for line in completed(*words, **env) if line]


def test_commands_and_their_subcommands() -> None:
    assert names("aether", "to") == ["topics", "tokens"]
    assert {"dev", "serve", "topics", "context"} <= set(names("aether", ""))
    assert names("aether", "topics", "") == ["list", "purge", "show"]
    assert names("aether", "access", "unl") == ["unlock"]


def test_options() -> None:
    assert {"--gateway", "--context", "--api-key"} <= set(names("aether", "kv", "get", "--"))
    assert names("aether", "kv", "put", "k", "v", "--if-a") == ["--if-absent"]
    assert names("aether", "--v") == ["--version"]
    assert names("aether", "tasks", "list", "--status", "comp") == ["completed"]


def test_contexts(tmp_path: Path) -> None:
    config = {"XDG_CONFIG_HOME": str(tmp_path)}
    for name in ("prod", "preview", "lab"):
        assert aether("context", "save", name, "--gateway", "gw:1", **config).returncode == 0
    assert names("aether", "sessions", "--context", "pr", **config) == ["preview", "prod"]
    assert names("aether", "context", "use", "", **config) == ["lab", "preview", "prod"]
    (tmp_path / "aether" / "contexts.yaml").write_text("- broken")
    assert names("aether", "context", "use", "", **config) == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_the_meaning_as_well(shell: str) -> None:
    told = "\n".join(completed("aether", "topi", shell=shell))
    assert "topics" in told
    assert "Show topics, their consumers and their lag" in told


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(shell: str, tmp_path: Path) -> None:
    done = aether(_AETHER_COMPLETE=f"{shell}_source")
    assert done.returncode == 0, done
    assert "_AETHER_COMPLETE" in done.stdout
    if (program := shutil.which(shell)) is not None:
        script = tmp_path / "script"
        script.write_text(done.stdout)
        subprocess.run([program, "-n", str(script)], check=True, timeout=LIMIT_S)
