"""A backup under load, at a small size: its figures, and what they rest on."""

from __future__ import annotations

import json
from pathlib import Path

from bench import cli


def test_figures_of_a_backup_and_its_restore(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    sizes = ["--pairs", "2", "--backup-mib", "1", "--seconds", "0.1", "--window", "0.05"]
    arguments = ["backup", "--quick", *sizes, "--transport", "framed", "--data-root", str(tmp_path), "--json", str(out)]
    assert cli.main(arguments) == 0
    [found] = json.loads(out.read_text())["scenarios"].values()
    assert found["failed"] == ""
    figures = {goal["figure"]: goal["reached"] for goal in found["goals"]}
    assert figures["size of the backup"] >= 1
    assert {"backup, for a GiB", "restore, for a GiB", "start on the restored data", "slower by"} <= set(figures)
    assert figures["messages a second beside one"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {"out.json"}


def test_a_gateway_that_runs_elsewhere_is_not_copied(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert cli.main(["backup", "--target", "127.0.0.1:1", "--json", str(out)]) == 1
