"""Run commands as a person does, beside a gateway or without one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from aether_trio.cli.app import app
from aether_trio.config import ApiKey, describe, load_settings
from aether_trio.services.credentials.checker import hash_api_key
from tests.helpers.forked import ForkedProcess, run
from tests.helpers.gateway import GatewayProcess, start_gateway

ROOT = Path(__file__).parents[2]
AETHER = (sys.executable, "-m", "aether_trio")
LIMIT_S = 300
KEY = "aek_for-this-test"


def clean_environment(**changes: str) -> dict[str, str]:
    """The environment without a developer's own settings of gateways and clients."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AETHER_")}
    return clean | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "XDG_CONFIG_HOME": "/nonexistent"} | changes


def sets(*settings: str) -> list[str]:
    return [part for one in settings for part in ("--set", one)]


def aether(
    *arguments: str, cwd: Path | None = None, new_interpreter: bool = False, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `aether` where no gateway is named."""
    return (subprocess.run if new_interpreter else run)(
        [sys.executable, "-W", "error", *AETHER[1:], *arguments],
        cwd=cwd,
        env=clean_environment(COLUMNS="110", **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def fails(code: int, text: str, *arguments: str, cwd: Path | None = None, **env: str) -> None:
    done = aether(*arguments, cwd=cwd, **env)
    assert done.returncode == code, done
    assert text in done.stderr, done
    assert "Traceback" not in done.stderr


def on_terminal(env: Mapping[str, str], columns: int, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes]:
    """Run a program on a terminal; return its exit code and output."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    plain = {name: value for name, value in env.items() if name != "COLUMNS"}
    try:
        process = ForkedProcess(arguments, env=plain, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        os.write(ours, stdin)
        shown = bytearray()
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while more := os.read(ours, 65536):
                shown += more
        return process.wait(LIMIT_S), bytes(shown).replace(b"\r\n", b"\n")
    finally:
        os.close(ours)


def leaves() -> Iterator[str]:
    """Give each command that has no subcommands: "send", "kv get" and so on."""
    context = click.Context(app)
    for name in app.list_commands(context):
        yield from _leaves_of(name, app.get_command(context, name))


def _leaves_of(path: str, command: click.Command | None) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _leaves_of(f"{path} {name}", inner)
    else:
        yield path


class Command:
    """A command that runs, and what it prints."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.stdout = process.stdout
        self.stderr = process.stderr

    def line(self) -> str:
        return self.stdout.readline().decode()

    def error_line(self) -> str:
        return self.stderr.readline().decode()

    def end(self, signal: int | None = None) -> tuple[int, list[str], str]:
        """Send it the signal, if there is one, and wait: its exit code, lines and errors."""
        if signal is not None:
            self.process.send_signal(signal)
        out, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out.decode().splitlines(), err.decode()


class Shell:
    """A terminal whose environment names the gateway."""

    def __init__(self, gateway: GatewayProcess, **env: str) -> None:
        named = {"AETHER_GATEWAY": gateway.address, "AETHER_OPS": gateway.ops_address}
        self.env = clean_environment(**named | env)

    def run(self, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return run(
            [sys.executable, "-W", "error", *AETHER[1:], *arguments],
            env=self.env,
            input=stdin,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )

    def out(self, *arguments: str, stdin: bytes = b"") -> str:
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done
        assert done.stderr == b""
        return done.stdout.decode()

    def notice(self, *arguments: str) -> str:
        """Run a command that has no data to print; return what it says beside them."""
        done = self.run(*arguments)
        assert (done.returncode, done.stdout) == (0, b""), done
        return done.stderr.decode()

    def fails(self, code: int, text: str, *arguments: str) -> None:
        done = self.run(*arguments)
        assert done.returncode == code, done
        assert text in done.stderr.decode(), done
        assert b"Traceback" not in done.stderr

    def on_terminal(self, columns: int, *arguments: str) -> list[str]:
        """Run a command on a terminal of this width; return the lines that it shows."""
        code, shown = on_terminal(self.env, columns, *AETHER, *arguments)
        assert code == 0, shown
        return shown.decode().splitlines()

    def start(self, *arguments: str, program: tuple[str, ...] = AETHER, **options: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return ForkedProcess([*program, *arguments], env=self.env, **{**pipes, **options})

    @contextmanager
    def running(self, *arguments: str, **options: Any) -> Iterator[Command]:
        """Start a command, which is killed in the end if it still runs."""
        process = self.start(*arguments, **options)
        try:
            yield Command(process)
        finally:
            process.kill()
            process.communicate()


@contextmanager
def serving_with_a_key(directory: Path, principal: str, flags: Mapping[str, Any] = {}) -> Iterator[GatewayProcess]:
    """Run `aether serve` on loopback, with one key for this kind of participant.

    It may use all workspaces, as in development.
    """
    record = ApiKey(id="test", sha256=hash_api_key(KEY), principal=principal)  # type: ignore[arg-type]
    settings = load_settings(
        flags={"gateway.host": "127.0.0.1", "auth.api_keys": [record], "access.default": "open", **flags}
    )
    (directory / "aether.yaml").write_text(describe(settings))
    with start_gateway(
        ephemeral=True, command=[*AETHER, "serve", "--config", str(directory / "aether.yaml")]
    ) as process:
        yield process
