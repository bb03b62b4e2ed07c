"""`aether audit` beside a running gateway; tests/security has what `verify` finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.shell import Shell, aether, fails
from tests.helpers.gateway import start_gateway


class TestQuery:
    def test_what_was_done_is_listed_newest_first(self, shell: Shell) -> None:
        shell.out("kv", "put", "audited", "1", "--as", "ag::default::auditor::1")
        out = shell.out("audit", "query", "--type", "kv", "--actor", "ag::default::auditor::1", "--json")
        rows = [json.loads(line) for line in out.splitlines()]
        assert [(row["operation"], row["resource_id"]) for row in rows] == [("kv_put", "audited")]
        assert rows[0]["metadata"]["new_value_size"] == 1
        table = shell.out("audit", "query", "--type", "kv", "--actor", "ag::default::auditor::1")
        assert table.splitlines()[0].split() == [
            "row", "time", "type", "operation", "actor", "resource", "workspace", "result",
        ]  # fmt: skip
        assert "kv_put" in table
        newest = shell.out("audit", "query", "--limit", "2", "--since", "1h", "--json")
        assert len(newest.splitlines()) == 2
        assert shell.notice("audit", "query", "--until", "2020-01-01") == "no entry fits\n"

    def test_a_workspace_shows_its_own_rows_to_its_participants(self, shell: Shell) -> None:
        shell.out("kv", "put", "mine", "1", "--as", "ag::default::someone::1")
        out = shell.out("audit", "query", "--workspace", "default", "--as", "ag::default::someone::1", "--json")
        assert {json.loads(line)["workspace"] for line in out.splitlines()} == {"default"}
        shell.fails(1, "ERR_PERMISSION_DENIED", "audit", "query", "--as", "ag::default::someone::1")

    @pytest.mark.parametrize("text", ["yesterday", "1w", "99999999999d"])
    def test_times_that_are_none(self, shell: Shell, text: str) -> None:
        shell.fails(2, "is no time", "audit", "query", "--since", text)


class TestTail:
    def test_new_rows_are_shown_as_they_come(self, shell: Shell) -> None:
        out = shell.out("audit", "tail", "--type", "connection", "--limit", "1", "--json")
        assert json.loads(out)["operation"] == "connection_established"


class TestVerify:
    def test_beside_a_running_gateway_and_after_it(self, tmp_path: Path) -> None:
        with start_gateway(data_dir=tmp_path) as gateway:
            shell = Shell(gateway)
            shell.out("kv", "put", "k", "1")
            done = aether("audit", "verify", "--data-dir", str(tmp_path))
            assert done.returncode == 0, done
        done = aether("audit", "verify", "--data-dir", str(tmp_path))
        assert (done.returncode, done.stdout.startswith("ok: ")) == (0, True), done
        assert (tmp_path / "audit.key").stat().st_mode & 0o777 == 0o600

    def test_mistakes(self, tmp_path: Path) -> None:
        fails(3, "there is no", "audit", "verify", "--data-dir", str(tmp_path / "nowhere"))
        (tmp_path / "tasks.db").write_bytes(b"no database, but something of some length")
        fails(3, "cannot read", "audit", "verify", "--data-dir", str(tmp_path))
        fails(2, "exclude each other", "audit", "verify", "--data-dir", "x", "--database", "postgresql://x")
        fails(2, "--key", "audit", "verify", "--data-dir", str(tmp_path), "--key", "nonsense")
        fails(2, "does not exist", "audit", "verify", "--data-dir", str(tmp_path), "--heads", "nowhere")
