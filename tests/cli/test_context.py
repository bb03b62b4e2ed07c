"""Test `aether context`, and what commands take from a saved context."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from aether_trio.cli.context_file import context_file
from tests.cli.shell import AETHER, KEY, Shell, aether, clean_environment, fails, serving_with_a_key
from tests.helpers.gateway import GatewayProcess

SECRET = "aek_this-is-the-secret"


@pytest.fixture
def config(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path / "config")}


def out(*arguments: str, **env: str) -> str:
    done = aether("context", *arguments, **env)
    assert done.returncode == 0, done
    return done.stdout


def file_of(config: dict[str, str]) -> Path:
    return Path(config["XDG_CONFIG_HOME"], "aether", "contexts.yaml")


def test_a_link_to_a_file_elsewhere_stays_one(config: dict[str, str], tmp_path: Path) -> None:
    assert out("save", "prod", "--gateway", "gw:1", **config)
    kept = tmp_path / "dotfiles" / "contexts.yaml"
    kept.parent.mkdir()
    file_of(config).rename(kept)
    file_of(config).symlink_to(kept)
    assert out("save", "lab", "--gateway", "lab:2", **config)
    assert file_of(config).is_symlink()
    assert "lab:2" in kept.read_text(encoding="utf-8")
    assert [row["name"] for row in json.loads(out("list", "--json", **config))] == ["lab", "prod"]


def test_the_life_of_a_context(config: dict[str, str], tmp_path: Path) -> None:
    none = aether("context", "list", **config)
    assert (none.stdout, none.stderr) == ("", "no context is saved; `aether context save` makes one\n")
    assert out("save", "prod", "--gateway", "aethers://gw:1", "--workspace", "w", "--api-key", SECRET, **config)
    done = aether("context", "save", "lab", "--gateway", "lab:2", **config)
    assert done.stdout == "saved the context lab\n"
    assert done.stderr == "`aether context use lab` makes commands use it\n"
    assert out("use", "prod", **config) == "commands use the context prod\n"
    rows = json.loads(out("list", "--json", **config))
    assert [(row["name"], row["gateway"], row["in_use"]) for row in rows] == [
        ("lab", "lab:2", False),
        ("prod", "aethers://gw:1", True),
    ]
    assert json.loads(out("show", "--json", **config))["name"] == "prod"
    for shown in (out("list", **config), out("show", "prod", **config), out("list", "--json", **config)):
        assert "a saved API key" in shown
        assert SECRET not in shown
    assert file_of(config).stat().st_mode & 0o777 == 0o600
    assert file_of(config).parent.stat().st_mode & 0o777 == 0o700
    assert SECRET in file_of(config).read_text()
    assert out("delete", "prod", **config) == "deleted the context prod\n"
    assert SECRET not in file_of(config).read_text()
    fails(1, "no context is in use", "context", "show", **config)
    assert out("use", "-", **config) == "commands use no context\n"
    assert [one.name for one in file_of(config).parent.iterdir()] == ["contexts.yaml"], "no file is left behind"


def test_the_mode_of_the_file_is_set_again(config: dict[str, str]) -> None:
    out("save", "a", "--gateway", "gw:1", **config)
    file_of(config).chmod(0o644)
    out("save", "b", "--gateway", "gw:1", **config)
    assert file_of(config).stat().st_mode & 0o777 == 0o600


def test_many_saves_at_a_time_lose_nothing(config: dict[str, str]) -> None:
    running = [
        subprocess.Popen(
            [*AETHER, "context", "save", f"c{number}", "--gateway", "gw:1"],
            env=clean_environment(**config),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(6)
    ]
    assert [one.wait() for one in running] == [0] * 6
    assert len(json.loads(out("list", "--json", **config))) == 6


def test_mistakes(config: dict[str, str], tmp_path: Path) -> None:
    fails(2, "say where the gateway is, with --gateway", "context", "save", "a", **config)
    fails(2, "is no name of a context", "context", "save", "a b", "--gateway", "gw", **config)
    fails(
        2,
        "exclude each other",
        "context",
        "save",
        "a",
        "--gateway",
        "gw",
        "--api-key",
        "k",
        "--api-key-env",
        "K",
        **config,
    )
    fails(2, "belong together", "context", "save", "a", "--gateway", "gw", "--tls-cert", __file__, **config)
    fails(2, "unknown scheme", "context", "save", "a", "--gateway", "http://gw", **config)
    fails(3, "there is no context 'a'", "context", "use", "a", **config)
    out("save", "b", "--gateway", "gw", **config)
    fails(3, "there is no context 'a'; there are b", "sessions", "--context", "a", **config)
    fails(3, "there is no context 'a'; there are b", "sessions", AETHER_CONTEXT="a", **config)
    for text, why in (
        ("- x", "no map `contexts`"),
        ("contexts: {a: 1}", "is no map"),
        ("contexts: {a: {gateway: 1}}", "gateway of the context 'a' is no text"),
        ("contexts: {a: {colour: x}}", "unknown key 'colour'"),
        ("contexts: {a: {tls: x}}", "no true or false"),
        ("current: 1\ncontexts: {}", "`current` is no name"),
        ("{", "is no YAML"),
        ("contexts: {a: {gateway: 2024-99-99}}", "is no YAML"),
        ("[" * 100_000, "is no YAML"),
        ("#" * (1024 * 1024 + 1), "more than a million characters"),
    ):
        file_of(config).write_text(text)
        fails(3, why, "sessions", **config)
    file_of(config).write_bytes(b"\xff")
    fails(3, "is not text", "sessions", **config)


def test_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert context_file() == tmp_path / ".config" / "aether" / "contexts.yaml"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert context_file() == tmp_path / ".config" / "aether" / "contexts.yaml"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    assert context_file() is None
    fails(4, "no gateway answers", "sessions", "--gateway", "127.0.0.1:1", XDG_CONFIG_HOME="", HOME="/nonexistent")
    done = aether("context", "save", "a", "--gateway", "gw", XDG_CONFIG_HOME="/proc/nothing")
    assert (done.returncode, "Traceback" in done.stderr) == (3, False), done


def test_options_before_the_environment_before_the_context(gateway: GatewayProcess, config: dict[str, str]) -> None:
    out("save", "here", "--gateway", gateway.address, "--ops", gateway.ops_address, "--workspace", "shelf", **config)
    out("save", "nowhere", "--gateway", "127.0.0.1:1", "--ops", "127.0.0.1:1", **config)
    bare = Shell(gateway)
    bare.env = {
        name: value for name, value in bare.env.items() if name not in ("AETHER_GATEWAY", "AETHER_OPS")
    } | config
    put = ("kv", "put", "colour", "blue")
    assert b"127.0.0.1:50051" in bare.run(*put).stderr, "without a context the default counts"
    assert bare.out(*put, "--context", "here") == "put colour (4 bytes)\n"
    assert bare.out("kv", "get", "colour", "--context", "here") == "blue"
    assert bare.out("kv", "get", "colour", "--context", "here", "--workspace", "shelf") == "blue"
    bare.fails(1, "there is no key", "kv", "get", "colour", "--context", "here", "--workspace", "other")
    bare.env["AETHER_CONTEXT"] = "nowhere"
    bare.fails(4, "no gateway answers on 127.0.0.1:1", "kv", "get", "colour")
    assert bare.out("kv", "get", "colour", "--context", "here") == "blue"
    bare.env["AETHER_GATEWAY"] = gateway.address
    assert bare.out("kv", "get", "colour", "--workspace", "shelf") == "blue", "the environment before the context"
    bare.fails(4, "127.0.0.1:2", "kv", "get", "colour", "--gateway", "127.0.0.1:2")
    del bare.env["AETHER_CONTEXT"], bare.env["AETHER_GATEWAY"]
    out("use", "here", **config)
    assert bare.out("kv", "get", "colour") == "blue"
    bare.out("send", "ag::default::echo::9", "hello")
    assert "hello" in bare.out("tail", "ag::default::echo::9", "--no-follow"), "the ops port of the context"


def test_a_credential_goes_to_its_gateway_alone(
    tmp_path: Path, config: dict[str, str], gateway: GatewayProcess
) -> None:
    (tmp_path / "key").write_text(KEY + "\n")
    with serving_with_a_key(tmp_path, "service") as process:
        out("save", "file", "--gateway", process.address, "--api-key-file", str(tmp_path / "key"), **config)
        out("save", "variable", "--gateway", process.address, "--api-key-env", "SHELF_KEY", **config)
        out("save", "saved", "--gateway", f"aether://{process.address}", "--api-key", KEY, **config)
        bare = Shell(process, **config)
        del bare.env["AETHER_GATEWAY"]
        for name in ("file", "saved"):
            assert bare.out("kv", "put", "a", "b", "--context", name) == "put a (1 bytes)\n"
        bare.fails(3, "from the variable SHELF_KEY, which is not set", "kv", "get", "a", "--context", "variable")
        bare.env["SHELF_KEY"] = KEY
        assert bare.out("kv", "get", "a", "--context", "variable") == "b"
        bare.fails(5, "UNAUTHENTICATED", "kv", "get", "a", "--context", "saved", "--api-key", "aek_wrong")
        (tmp_path / "key").unlink()
        bare.fails(3, "No such file", "kv", "get", "a", "--context", "file")
        # Another gateway is asked without the key, and the file is not even read.
        bare.fails(1, "there is no key", "kv", "get", "a", "--context", "file", "--gateway", gateway.address)


class Eavesdropper:
    """Keeps what commands send, as one between them and the gateway could."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard = b""
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    while data := connection.recv(65536):
                        self.heard += data

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize(
    "saved",
    [("aethers://",), ("", "--tls"), ("", "--tls-ca", __file__)],
    ids=lambda saved: saved[-1].rpartition("/")[2] or "scheme",
)
def test_a_credential_of_a_context_with_tls_is_not_sent_without(config: dict[str, str], saved: tuple[str, ...]) -> None:
    scheme, *options = saved
    with contextlib.closing(Eavesdropper()) as ear:
        out("save", "prod", "--gateway", scheme + ear.address, "--api-key", SECRET, "--use", *options, **config)
        for given in (
            ("--gateway", ear.address),
            ("--gateway", f"aether://{ear.address}"),
            ("--gateway", f"grpc://{ear.address}"),
            ("--gateway", f"ws://{ear.address}"),
            ("--gateway", ear.address, "--no-tls"),
            ("--no-tls",),
        ):
            done = aether("kv", "get", "x", "--timeout", "1", *given, **config)
            assert done.returncode, done
            assert "Traceback" not in done.stderr
            assert SECRET.encode() not in ear.heard, given
        # The same address without a scheme is that gateway, with TLS.
        ear.heard = b""
        aether("kv", "get", "x", "--timeout", "1", "--gateway", ear.address, **config)
        assert ear.heard[:1] in (b"\x16", b""), "it begins a handshake of TLS, or cannot read the authority's file"


def test_an_address_names_the_transport(shell: Shell, gateway: GatewayProcess) -> None:
    for scheme in ("aether", "grpc"):
        assert shell.out("kv", "put", scheme, "x", "--gateway", f"{scheme}://{gateway.address}")
    shell.fails(5, "WebSocket", "kv", "put", "ws", "x", "--gateway", f"ws://{gateway.address}")
    assert shell.out("topics", "list", "--json", "--gateway", f"ws://{gateway.address}").startswith("[")
    shell.fails(2, "exclude each other", "kv", "get", "x", "--tls", "--gateway", f"aether://{gateway.address}")
    shell.fails(
        2, "give aethers://", "kv", "get", "x", "--tls-ca", __file__, "--gateway", f"aether://{gateway.address}"
    )
