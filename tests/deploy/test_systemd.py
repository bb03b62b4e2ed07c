"""The systemd unit: systemd finds nothing wrong, and it fits the gateway."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aether_trio.cli import exits
from aether_trio.config import Settings
from tests.cli.shell import LIMIT_S, aether

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "aether.service"
EXPOSURE = 2.0
"""systemd calls what is below it OK; a unit without hardening has 9.6."""


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def analyze(*arguments: str) -> str:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=LIMIT_S)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is too old")
    assert done.returncode == 0, done
    return done.stdout + done.stderr


def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    program = tmp_path / "aether"  # the program of the unit need not be installed here
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit.write_text(UNIT.read_text().replace("/opt/aether/bin/aether", str(program)))
    assert str(program) in unit.read_text()
    assert analyze("verify", str(unit)) == ""


def test_it_is_hardened() -> None:
    said = analyze("security", "--offline=true", str(UNIT))
    found = re.search(r"Overall exposure level for aether.service: ([\d.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= EXPOSURE


def test_it_fits_the_gateway() -> None:
    assert values("Type") == ["notify"]  # cli/service_manager.py; tests/cli/test_json_lines.py
    assert values("ExecReload") == ["/bin/kill -HUP $MAINPID"]
    assert values("StateDirectoryMode") == ["0700"]
    assert values("NoNewPrivileges") == ["yes"]
    assert int(values("TimeoutStopSec")[0]) > Settings().grpc.drain_deadline_s * 2
    # A database that is away at the start is exit code 3 as well, and comes back.
    assert values("RestartPreventExitStatus") == [f"{exits.USAGE}"]
    assert (values("Restart"), values("StartLimitIntervalSec")) == (["on-failure"], ["0"])
    [start] = values("ExecStart")
    program, *arguments = start.split()
    assert Path(program).name == "aether"
    assert arguments[arguments.index("--data-dir") + 1] == "/var/lib/aether"
    # The options exist; what is wrong is only that there is no such file on this machine.
    done = aether(*arguments)
    assert done.returncode == exits.SETTINGS
    assert "/etc/aether/aether.yaml" in done.stderr
    assert sys.executable


def test_its_user_is_made() -> None:
    [line] = UNIT.with_name("aether.sysusers.conf").read_text().splitlines()
    assert line.split()[:2] == ["u", values("User")[0]]
