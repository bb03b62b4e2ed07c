"""Test commands without a gateway: help, version, settings, keys, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import yaml
from click.testing import CliRunner

from aether_trio.cli.app import COMMANDS, app
from aether_trio.cli.running import data_text
from aether_trio.config import Settings, load_settings
from aether_trio.devtools.ports import held_port
from aether_trio.services.credentials.checker import KEY_PREFIX, hash_api_key
from aether_trio.version import __version__
from tests.cli.shell import aether, fails, leaves
from tests.helpers.gateway import start_gateway

SERVERS: Final = {"dev", "serve", "orchestrate", "backup", "restore", "init"}
OF_GATEWAYS: Final = {"aether_trio.gateway", "aether_trio.telemetry", "prometheus_client", "structlog", "sqlite3"}
SUBCOMMANDS = [*([name] for name in COMMANDS), *(one.split() for one in leaves() if " " in one)]


@pytest.mark.parametrize("command", [[], *SUBCOMMANDS], ids=lambda parts: "-".join(parts) or "aether")
def test_every_command_explains_itself(command: list[str]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"], prog_name="aether", terminal_width=110)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: aether {' '.join(command)}".rstrip())
    # Nothing is cut off, and no subcommand is left without a word.
    for line in done.stdout.splitlines()[1:]:
        assert not line.endswith("...")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_process(command: str) -> None:
    """Each command is imported when it is run, and alone."""
    done = aether(command, "--help", new_interpreter=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: aether {command} ")


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - SERVERS))
def test_a_command_of_a_client_imports_nothing_of_a_gateway(command: str) -> None:
    """Else each command takes a quarter longer."""
    script = (
        "import click, sys; from aether_trio.cli.app import app\n"
        f"app.get_command(click.Context(app), {command!r})\n"
        f"print(*sorted({OF_GATEWAYS!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    "command",
    [
        "dev",
        "serve",
        "send",
        "tail",
        "kv",
        "sessions",
        "tasks",
        "workflows",
        "dlq",
        "agents",
        "orchestrate",
        "workspaces",
        "quotas",
        "grants",
        "requests",
        "access",
        "bench",
        "config",
    ],
)
def test_the_help_has_examples(command: str) -> None:
    assert f"aether {command}" in aether(command, "--help").stdout.partition("Examples:")[2]


def test_an_overview_names_the_exit_codes_and_all_commands() -> None:
    out = aether("--help").stdout
    assert "Exit codes:" in out
    assert all(f"  {name} " in out for name in COMMANDS)


def test_version() -> None:
    assert aether("version").stdout == f"aether {__version__}\n"
    assert aether("--version").stdout == f"aether {__version__}\n"
    assert json.loads(aether("version", "--json").stdout)["aether"] == __version__


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nonsense"], "No such command 'nonsense'. The commands are dev, serve,"),
        (["dev", "--nonsense"], "No such option"),
        (["send", "ag::a::b::c"], "Missing argument 'TEXT|-'"),
        (["sessions", "--gateway", "host:port"], "'host:port' is not HOST:PORT"),
        (["sessions", "--tls-cert", __file__], "belong together"),
        (["sessions", "--as", "nonsense"], "is not an identity"),
        (["kv", "get", "k", "--scope", "user-shared"], "needs --user-id"),
        (["kv", "get", "k", "--scope", "global-exclusive"], "name it with --as"),
        (["kv", "put", "k", "v", "--if-absent", "--if-equals", "x"], "exclude each other"),
        (["kv", "increment", "k", "--delta", "0"], "not in the range"),
        (["keys", "new", "--principal", "king"], "'king' is not one of"),
        (["tasks", "create", "resize"], "either --pool IMPLEMENTATION or --target IDENTITY"),
        (["tasks", "create", "resize", "--pool", "a", "--target", "ag::a::b::c"], "either --pool"),
        (["tasks", "create", "resize", "--pool", "a", "--metadata", "x"], "is not NAME=VALUE"),
        (["tasks", "list", "--status", "lost"], "'lost' is not one of"),
        (["tasks", "list", "--creator", "nonsense"], "is not an identity"),
        (["workspaces", "create"], "Missing argument 'WORKSPACE'"),
        (["workspaces", "create", "w", "--metadata", "x"], "is not NAME=VALUE"),
        (["workspaces", "create", "w", "--metadata", "quota.kv_value_bytes=1"], "use `aether quotas set`"),
        (["workspaces", "update", "w"], "name what to change"),
        (["quotas", "set", "w"], "Missing argument 'NAME=NUMBER...'"),
        (["quotas", "set", "w", "kv_value_bytes"], "is not NAME=VALUE"),
        (["quotas", "set", "w", "kv_value_byte=1"], "did you mean kv_value_bytes?"),
        (["quotas", "set", "w", "kv_value_bytes=x"], "is a whole number"),
        (["quotas", "clear", "w"], "or give --all"),
        (["quotas", "clear", "w", "nothing"], "there is no quota"),
        (["tasks", "cancel"], "Missing argument 'TASK_ID...'"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], text: str) -> None:
    fails(2, text, *arguments)


def test_a_topic_that_cannot_be_is_refused_before_connecting() -> None:
    fails(2, "ERR_INVALID_TOPIC", "send", "nonsense", "text")


@pytest.mark.parametrize(
    "command", [["sessions"], ["kv", "get", "k"], ["send", "ag::default::echo::1", "x"]], ids=lambda parts: parts[0]
)
def test_no_gateway_is_exit_code_4_with_a_hint(command: list[str]) -> None:
    with held_port() as port:
        fails(4, "start one with `aether dev`", *command, "--gateway", f"127.0.0.1:{port}")


def test_no_ops_port_is_exit_code_4_with_a_hint() -> None:
    with held_port() as port:
        fails(4, "is the gateway running", "tail", "ag::default::echo::1", "--ops", f"127.0.0.1:{port}")


class TestConfig:
    def test_default_prints_every_setting_and_can_be_read_back(self, tmp_path: Path) -> None:
        path = tmp_path / "aether.yaml"
        path.write_text(aether("config", "default").stdout)
        assert load_settings(path) == Settings()
        path.write_text(aether("config", "default", "--dev").stdout)
        assert load_settings(path) == load_settings(flags={"gateway.dev": True})

    def test_show_says_who_set_what(self, tmp_path: Path) -> None:
        (tmp_path / "aether.yaml").write_text("log: {retention_sweep_s: 3}\n")
        done = aether(
            "config", "show", "--changed", "--config", "aether.yaml", "--set", "log.retention_age_s=5",
            cwd=tmp_path, AETHER_PORT="7",
        )  # fmt: skip
        assert "port: 7  # set by environment AETHER_PORT" in done.stdout
        assert "retention_sweep_s: 3.0  # set by file aether.yaml" in done.stdout
        assert "retention_age_s: 5.0  # set by --set log.retention_age_s" in done.stdout
        assert set(yaml.safe_load(done.stdout)) == {"gateway", "log"}

    def test_show_hides_tokens(self) -> None:
        show = ["config", "show", "--set", "ops.tail_token=0123456789abcdef"]
        assert "0123456789abcdef" not in aether(*show).stdout
        assert "0123456789abcdef" in aether(*show, "--show-secrets").stdout

    def test_the_file_may_be_named_by_the_environment(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("log: {retention_sweep_s: 3}\n")
        done = aether("config", "show", "--changed", AETHER_CONFIG=str(tmp_path / "a.yaml"))
        assert "retention_sweep_s: 3.0" in done.stdout

    def test_check_finds_every_problem(self, tmp_path: Path) -> None:
        (tmp_path / "aether.yaml").write_text("gateway: {prot: 1}\nlog: {retention_sweep_s: soon}\n")
        for problem in ("did you mean gateway.port?", "is not a number of seconds", "2 problems"):
            fails(3, problem, "config", "check", "--config", "aether.yaml", cwd=tmp_path)

    def test_check_finds_an_open_gateway(self) -> None:
        fails(3, "refusing to listen on 0.0.0.0:50051 without credentials", "config", "check")

    def test_check_reads_the_files_that_are_named(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            assert aether("init", "--dir", name, cwd=tmp_path).returncode == 0
        check = ("config", "check", "--config", "one/aether.yaml")
        assert aether(*check, cwd=tmp_path).returncode == 0
        other_key, no_certificate = "tls.key=two/secrets/server.key", "tls.cert=one/secrets/server.key"
        fails(3, "is not the key of the certificate in", *check, "--set", other_key, cwd=tmp_path)
        fails(3, "no certificate in PEM form", *check, "--set", no_certificate, cwd=tmp_path)
        (tmp_path / "one" / "secrets" / "token-hmac.key").write_text("short\n")
        fails(3, "the file holds no base64 of 32 bytes", *check, cwd=tmp_path)

    def test_check_accepts_what_is_right(self) -> None:
        done = aether("config", "check", "--set", "gateway.host=127.0.0.1", "--set", "auth.allow_anonymous=true")
        assert (done.returncode, done.stdout) == (0, "ok: 2 settings given, the rest at default\n")

    def test_variables_of_the_sdk_do_no_harm(self) -> None:
        done = aether("config", "show", "--changed", AETHER_GATEWAY="x:1", AETHER_GRPC_KEEPALIVE_TIME_MS="1")
        assert done.stdout == "# Every setting is at its default.\n"


class TestKeys:
    def test_a_new_key_fits_its_record_and_the_record_fits_the_settings(self, tmp_path: Path) -> None:
        done = aether(
            "keys", "new", "--principal", "agent", "--workspace", "prod*", "--workspace", "dev", "--id", "first"
        )
        key = next(line.strip() for line in done.stdout.splitlines() if line.strip().startswith(KEY_PREFIX))
        assert "shown this once" in done.stderr
        (tmp_path / "aether.yaml").write_text(done.stdout[done.stdout.index("auth:") :])
        (record,) = load_settings(tmp_path / "aether.yaml").auth.api_keys
        assert record.sha256 == hash_api_key(key)
        assert (record.id, record.principal, record.workspaces) == ("first", "agent", ("prod*", "dev"))
        assert key not in done.stdout[done.stdout.index("auth:") :]

    def test_json(self) -> None:
        one, two = (json.loads(aether("keys", "new", "--json", "--principal", "user").stdout) for _ in range(2))
        assert one["record"]["sha256"] == hash_api_key(one["key"])
        assert one["key"] != two["key"]
        assert one["record"]["id"] != two["record"]["id"]

    def test_whom_it_is_for_has_to_be_said(self) -> None:
        """A key for all kinds is one for administrators too, so it is never the default."""
        fails(2, "Missing option '--principal'", "keys", "new")
        assert json.loads(aether("keys", "new", "--json", "--principal", "*").stdout)["record"]["principal"] == "*"

    def test_a_pattern_that_fits_no_identity_is_refused(self) -> None:
        fails(2, "has 2 parts between '::'", "keys", "new", "--principal", "agent", "--identity", "ag::prod*")


class TestServe:
    def test_it_refuses_to_start_open_to_the_world_and_says_how_to_fix_it(self, tmp_path: Path) -> None:
        fails(3, "aether keys new", "serve", cwd=tmp_path)
        fails(3, "tls.client_ca", "serve", "--host", "192.0.2.1", cwd=tmp_path)
        fails(3, "refusing to listen", "dev", "--set", "gateway.host=0.0.0.0", cwd=tmp_path)
        fails(3, "refusing to listen", "serve", cwd=tmp_path, AETHER_AUTH__ALLOW_ANONYMOUS="true")
        assert list(tmp_path.iterdir()) == []

    def test_it_refuses_to_take_keys_of_other_machines_in_plaintext(self, tmp_path: Path) -> None:
        made = json.loads(aether("keys", "new", "--json", "--principal", "agent").stdout)
        settings = tmp_path / "aether.yaml"
        settings.write_text(json.dumps({"auth": {"api_keys": [made["record"]]}}))
        said = "refusing to take credentials on 0.0.0.0:50051 without TLS"
        fails(3, said, "serve", "--config", settings.name, cwd=tmp_path)
        fails(3, "--set tls.cert=chain.pem", "serve", "--config", settings.name, cwd=tmp_path)
        fails(3, "tls.terminated_by_proxy=true", "config", "check", "--config", settings.name, cwd=tmp_path)
        workers = ["--workers", "2", "--database", "postgresql://127.0.0.1/x"]
        fails(3, said, "serve", "--config", settings.name, *workers, cwd=tmp_path)
        token = ["--set", "ops.host=0.0.0.0", "--set", "ops.tail_token=0123456789abcdef"]
        fails(3, "refusing to take ops.tail_token on 0.0.0.0:9090 without TLS", "dev", *token, cwd=tmp_path)
        assert list(tmp_path.iterdir()) == [settings]
        for fine in ("gateway.host=127.0.0.1", "tls.terminated_by_proxy=true"):
            aether("config", "check", "--config", settings.name, "--set", fine, cwd=tmp_path)

    def test_wrong_settings_are_exit_code_3(self, tmp_path: Path) -> None:
        fails(3, "did you mean gateway.port?", "serve", "--set", "gateway.prt=1", cwd=tmp_path)
        fails(3, "none.yaml: cannot be read", "serve", "--config", "none.yaml", cwd=tmp_path)
        fails(3, "logging.level = 'loud' is not one of debug, info", "dev", "--log-level", "loud", cwd=tmp_path)


def test_the_ready_line_says_where_the_data_is(tmp_path: Path) -> None:
    files = load_settings(sets=[f"gateway.data_dir={tmp_path}"])
    shared = load_settings(sets=["storage.database=postgresql://me:secret@db-1,db-2/fabric?sslmode=require"])
    assert data_text(files) == str(tmp_path)
    assert data_text(load_settings(sets=["gateway.ephemeral=true"])) == "a temporary directory, until the end"
    assert data_text(shared) == "the PostgreSQL database db-1,db-2/fabric, schema aether"


def test_variables_of_a_kubernetes_service_are_told_of_in_one_line(tmp_path: Path) -> None:
    variables = {"AETHER_PORT": "tcp://10.0.0.1:50051", "AETHER_SERVICE_HOST": "10.0.0.1"}
    with start_gateway(ephemeral=True, env=variables) as gateway:
        told = [line for line in gateway.output().splitlines() if "Kubernetes" in line]
        assert len(told) == 1
        assert "AETHER_PORT" in told[0]
        assert "AETHER_SERVICE_HOST" in told[0]
    wrong = aether("dev", AETHER_PORT="tcp://gateway:50051")
    assert wrong.returncode == 3
    assert "environment AETHER_PORT: gateway.port" in wrong.stderr
