"""`aether backup` and `aether restore` as an operator runs them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.shell import AETHER, aether, clean_environment, fails
from tests.helpers.gateway import GatewayProcess, start_gateway

SETTINGS = """
tls: {cert: /etc/aether/server.pem, key: /etc/aether/server.key}
auth:
  token_hmac_keys: [{id: '2026', file: /etc/aether/hmac.key}]
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with start_gateway(data_dir=tmp_path_factory.mktemp("backup") / "data") as process:
        yield process


def test_what_is_not_in_a_backup_is_named(gateway: GatewayProcess, tmp_path: Path) -> None:
    (tmp_path / "aether.yaml").write_text(SETTINGS)
    data = ["--data-dir", str(gateway.data_dir)]
    done = aether("backup", "monday", *data, "--config", "aether.yaml", cwd=tmp_path)
    assert done.returncode == 0, done
    assert f"{gateway.data_dir} is backed up to monday: state.db " in done.stdout
    for left_out in ("aether.yaml", "server.pem", "server.key", "hmac.key", "audit.key: do not use it again"):
        assert left_out in done.stdout
    assert done.stderr == ""
    put_back = aether("restore", "monday", "--data-dir", "restored", cwd=tmp_path)
    assert put_back.returncode == 0, put_back
    assert "restored has the data of 20" in put_back.stdout
    assert "/etc/aether/hmac.key" in put_back.stdout


def test_the_manifest_as_json(gateway: GatewayProcess, tmp_path: Path) -> None:
    target = str(tmp_path / "monday.tar.gz")
    made = json.loads(aether("backup", target, "--data-dir", str(gateway.data_dir), "--json").stdout)
    put_back = json.loads(aether("restore", target, "--data-dir", str(tmp_path / "restored"), "--json").stdout)
    assert made == put_back
    assert [one["file"] for one in made["databases"]] == ["state.db", "log.db", "tasks.db"]


def test_a_stream_goes_through_a_pipe(gateway: GatewayProcess, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*AETHER, "backup", "-", "--data-dir", str(gateway.data_dir)],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as backup:
        restore = subprocess.run(
            [*AETHER, "restore", "-", "--data-dir", str(tmp_path / "restored")],
            env=clean_environment(),
            stdin=backup.stdout,
            capture_output=True,
            check=False,
        )
        assert backup.stderr is not None
        assert b"is backed up to standard output" in backup.stderr.read()
    assert backup.returncode == 0
    assert restore.returncode == 0, restore


def test_a_reader_that_goes_away_is_an_error(gateway: GatewayProcess) -> None:
    command = [*AETHER, "backup", "-", "--data-dir", str(gateway.data_dir)]
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | true', "bash", *command],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "standard output: Broken pipe" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("closing", "command", "text"),
    [
        (">&-", ("backup", "-"), "Standard output is closed"),
        ("<&-", ("restore", "-"), "Standard input is closed"),
        ("2>&-", ("backup", "out.tar"), ""),
    ],
)
def test_closed_streams(
    gateway: GatewayProcess, tmp_path: Path, closing: str, command: tuple[str, str], text: str
) -> None:
    data = tmp_path / "new" if command[0] == "restore" else gateway.data_dir
    done = subprocess.run(
        ["bash", "-c", f'"$@" {closing}', "bash", *AETHER, *command, "--data-dir", str(data)],
        env=clean_environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == (2 if text else 0), done
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_mistakes(gateway: GatewayProcess, tmp_path: Path) -> None:
    data = ["--data-dir", str(gateway.data_dir)]
    fails(2, "Name a directory or a file for the backup", "backup", *data)
    fails(2, "Name the backup", "restore", *data)
    fails(2, "Name the data directory with --data-dir", "restore", "monday")
    fails(1, "there is no gateway's data in", "backup", "monday", "--data-dir", str(tmp_path), cwd=tmp_path)
    fails(1, "there is no directory", "backup", str(tmp_path / "none" / "monday"), *data)
    fails(1, "there is no backup monday", "restore", "monday", "--data-dir", str(tmp_path / "new"), cwd=tmp_path)
    for name in ("monday.zip", "monday.gz", "monday.tar.bz2"):
        fails(1, "a file ends in .tar, .tar.gz or .tar.zst", "backup", str(tmp_path / name), *data)
    assert aether("backup", str(tmp_path / "monday"), *data).returncode == 0
    fails(1, "is in use by another gateway", "restore", str(tmp_path / "monday"), *data, "--force")
    fails(1, "exists, and is left as it is", "backup", str(tmp_path / "monday"), *data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["monday"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(gateway: GatewayProcess, tmp_path: Path, number: signal.Signals) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("what has started the tests, such as nohup, has this signal ignored")
    command = [*AETHER, "backup", "-", "--data-dir", str(gateway.data_dir), "--temp-dir", str(tmp_path)]
    with subprocess.Popen(
        command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as backup:
        assert backup.stdout is not None
        assert backup.stdout.read(1)  # it writes, and then waits for the reader of the pipe
        assert list(tmp_path.iterdir())
        backup.send_signal(number)
        assert backup.wait(300) == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_a_backup_that_is_killed_is_not_there_and_holds_no_gateway_up(gateway: GatewayProcess, tmp_path: Path) -> None:
    target = tmp_path / "monday"
    (tmp_path / "killing.py").write_text(KILLED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "killing.py"), str(gateway.data_dir), str(target)],
        env=clean_environment(),
        check=False,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    [left] = [path for path in tmp_path.iterdir() if path.name != "killing.py"]
    assert ".partial-" in left.name
    assert aether("kv", "put", "a", "b", "--gateway", gateway.address).returncode == 0
    assert aether("backup", str(target), "--data-dir", str(gateway.data_dir)).returncode == 0
    assert aether("restore", str(left), "--data-dir", str(tmp_path / "new")).returncode == 1


KILLED = """
import os, sys
from pathlib import Path
from aether_trio.storage.backup import archive, back_up
def killed(*_):  # all locks are given back, and the first file is copied
    os.kill(os.getpid(), 9)
archive.sha256_of = killed
back_up(Path(sys.argv[1]), sys.argv[2], made_by="a test")
"""


def test_a_password_is_not_shown() -> None:
    for command in ("backup", "restore"):
        done = aether(command, "--database", "postgresql://me:secret@db1,db2/x?sslmode=verify-full&password=secret")
        assert done.returncode == 1
        assert "secret" not in done.stdout + done.stderr
        assert "'postgresql://me@db1,db2/x?sslmode=verify-full'" in done.stderr
