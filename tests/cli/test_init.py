"""`aether init`, and `aether tokens` with what it has made."""

from __future__ import annotations

import json
import os
import sqlite3
import ssl
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from aether_trio.config import load_settings
from aether_trio.model.api_tokens import is_token_text
from aether_trio.services.tokens import read_hmac_keys
from tests.cli.shell import AETHER, Shell, aether, fails
from tests.helpers.gateway import start_gateway

SAN = ["--tls-san", "gw.example.com", "--tls-san", "192.0.2.7"]
CLIENTS = ["--client-cert", "ag::prod::echo::1", "--client-cert", "_anonymous"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run has made."""
    directory = tmp_path_factory.mktemp("init")
    done = aether("init", *SAN, *CLIENTS, cwd=directory)
    assert done.returncode == 0, done
    assert done.stderr == ""
    assert "aether serve --config aether/aether.yaml" in done.stdout
    return directory / "aether"


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "data" not in path.parts
    }


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_secrets_are_for_their_owner_alone(made: Path) -> None:
    assert stat.S_IMODE((made / "secrets").stat().st_mode) == 0o700
    secret = [*(made / "secrets").iterdir(), *(made / "clients").glob("*.key"), *(made / "data").glob("*.db")]
    assert len(secret) >= 9
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}
    assert not list(made.rglob(".*"))


def test_the_output_has_no_secret(made: Path, tmp_path: Path) -> None:
    done = aether("init", cwd=tmp_path)
    token = (tmp_path / "aether" / "secrets" / "admin.token").read_text().strip()
    assert is_token_text(token)
    assert token not in done.stdout + done.stderr
    assert token in aether("init", "--print", cwd=tmp_path).stdout


def test_the_certificates_are_what_a_strict_verifier_takes(made: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(made / "ca.pem")
    authority, server = certificate(made / "ca.pem"), certificate(made / "server.pem")
    assert 3640 <= (authority.not_valid_after_utc - authority.not_valid_before_utc).days <= 3660
    assert 364 <= (server.not_valid_after_utc - server.not_valid_before_utc).days <= 366
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost", "gw.example.com"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"127.0.0.1", "192.0.2.7"} <= {str(one) for one in names.get_values_for_type(x509.IPAddress)}
    for leaf in (server, certificate(made / "clients" / "ag.prod.echo.1.pem")):
        leaf.verify_directly_issued_by(authority)
    client = certificate(made / "clients" / "_anonymous.pem")
    assert client.subject.rfc4514_string() == "CN=_anonymous"


def test_a_second_run_changes_nothing(made: Path) -> None:
    before = files_of(made)
    done = aether("init", *SAN, *CLIENTS, cwd=made.parent)
    assert done.returncode == 0
    assert "everything is there already" in done.stdout
    assert files_of(made) == before
    listed = aether("tokens", "list", "--offline", "--config", str(made / "aether.yaml"), "--json")
    assert [one["name"] for one in json.loads(listed.stdout)] == ["administrator"]


def test_another_clients_certificate_later(made: Path) -> None:
    before = files_of(made)
    aether("init", "--client-cert", "ga::prod", cwd=made.parent)
    assert set(files_of(made)) - set(before) == {"clients/ga.prod.pem", "clients/ga.prod.key"}
    assert {name: content for name, content in files_of(made).items() if name in before} == before


def test_force_makes_all_anew(tmp_path: Path) -> None:
    aether("init", cwd=tmp_path)
    before = files_of(tmp_path / "aether")
    assert aether("init", "--force", cwd=tmp_path).returncode == 0
    after = files_of(tmp_path / "aether")
    assert set(after) == set(before)
    assert [name for name in before if before[name] == after[name]] == ["aether.yaml"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--client-cert", "laptop"], "is no identity"),
        (["--client-cert", "ag::prod"], "is no identity"),
        (["--client-cert", "ag::prod::echo::" + "x" * 64], "more than 64 characters"),
        (["--nonsense"], "No such option"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], text: str) -> None:
    fails(2, text, "init", *arguments, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_half_a_pair_is_not_overwritten(tmp_path: Path) -> None:
    aether("init", cwd=tmp_path)
    (tmp_path / "aether" / "server.pem").unlink()
    fails(3, "is there and", "init", cwd=tmp_path)


def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    aether("init", cwd=tmp_path)
    key = tmp_path / "aether" / "secrets" / "token-hmac.key"
    key.chmod(0o640)
    config = str(tmp_path / "aether" / "aether.yaml")
    with pytest.raises(OSError, match="0600"):
        read_hmac_keys(load_settings(config).auth)
    fails(3, "make its mode 0600", "serve", "--config", config, "--port", "0", "--ops-port", "0")


def test_a_secret_of_root_may_be_read_by_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So Kubernetes mounts secrets for a user that is not root."""
    aether("init", cwd=tmp_path)
    key = tmp_path / "aether" / "secrets" / "token-hmac.key"
    if key.stat().st_uid != 0:
        pytest.skip("only root makes files of root")
    settings = load_settings(str(tmp_path / "aether" / "aether.yaml"))
    monkeypatch.setattr(os, "geteuid", lambda: 10001)
    for mode, is_good in ((0o440, True), (0o640, True), (0o660, False), (0o444, False)):
        key.chmod(mode)
        if is_good:
            assert read_hmac_keys(settings.auth)
        else:
            with pytest.raises(OSError, match="0600"):
                read_hmac_keys(settings.auth)


@pytest.fixture(scope="module")
def shell(made: Path) -> Iterator[Shell]:
    """A terminal of the administrator, beside the gateway of what was made."""
    command = [*AETHER, "serve", "--config", str(made / "aether.yaml")]
    with start_gateway(data_dir=made / "data", command=command, extra_args=["--host", "127.0.0.1"]) as gateway:
        token = (made / "secrets" / "admin.token").read_text().strip()
        yield Shell(gateway, AETHER_API_KEY=token, AETHER_TLS_CA_CERT=str(made / "ca.pem"))


def test_the_gateway_starts_and_takes_the_administrators_token(shell: Shell) -> None:
    listed = json.loads(shell.out("tokens", "list", "--json"))
    assert [one["created_by"] for one in listed if one["name"] == "administrator"] == ["admin"]
    assert listed[0]["last_used_at"] is None or listed[0]["last_used_at"]


def test_the_life_of_a_token(shell: Shell) -> None:
    made = json.loads(
        shell.out("tokens", "create", "ci", "--principal-type", "agent", "--workspace", "prod*", "--json")
    )
    token_id, secret = made["token"]["id"], made["secret"]
    assert made["token"]["workspace_patterns"] == ["prod*"]
    shown = json.loads(shell.out("tokens", "show", token_id))
    assert shown["name"] == "ci"
    assert secret not in json.dumps(shown)
    assert "prod*" in shell.out("tokens", "list")
    assert shell.out("tokens", "revoke", token_id) == f"{token_id} is revoked\n"
    assert token_id.encode() not in shell.run("tokens", "list").stdout
    assert "revoked" in shell.out("tokens", "list", "--revoked")
    assert shell.out("tokens", "delete", token_id) == f"{token_id} is deleted\n"
    shell.fails(1, "there is no API token", "tokens", "show", token_id)


def test_a_token_for_a_user_says_the_secret_once(shell: Shell) -> None:
    done = shell.run(
        "tokens",
        "create",
        "al",
        "--principal-type",
        "user",
        "--principal-id",
        "alice",
        "--scope",
        "connect",
        "--expires-in-hours",
        "1",
    )
    assert b"shown this once" in done.stderr
    assert done.stdout.split() == [done.stdout.strip()], "the secret alone, for a program"
    shell.fails(2, "needs --principal-id", "tokens", "create", "al", "--principal-type", "user")
    shell.fails(
        2, "0 is not in the range", "tokens", "create", "al", "--principal-type", "agent", "--expires-in-hours", "0"
    )
    shell.fails(1, "unknown scope", "tokens", "create", "al", "--principal-type", "agent", "--scope", "root")
    shell.fails(2, "--principal-type", "tokens", "create", "al")


def test_offline_is_refused_while_the_gateway_runs(shell: Shell, made: Path) -> None:
    shell.fails(3, "is in use by another gateway", "tokens", "list", "--offline", "--config", str(made / "aether.yaml"))


def test_a_token_made_offline_is_one(tmp_path: Path) -> None:
    aether("init", cwd=tmp_path)
    offline = ["--offline", "--config", str(tmp_path / "aether" / "aether.yaml")]
    made = json.loads(
        aether(
            "tokens", "create", "rescue", "--principal-type", "user", "--principal-id", "admin", *offline, "--json"
        ).stdout
    )
    token_id = made["token"]["id"]
    assert is_token_text(made["secret"])
    assert json.loads(aether("tokens", "show", token_id, *offline).stdout)["name"] == "rescue"
    assert aether("tokens", "revoke", token_id, *offline).returncode == 0
    assert "rescue" not in aether("tokens", "list", *offline).stdout
    assert aether("tokens", "delete", token_id, *offline).returncode == 0
    fails(1, "there is no API token", "tokens", "delete", token_id, *offline)
    with closing(sqlite3.connect(tmp_path / "aether" / "data" / "tasks.db")) as database:
        rows = database.execute(
            "SELECT operation, actor_type, source FROM audit_log WHERE resource_type = 'api_token' ORDER BY audit_id"
        ).fetchall()
    assert rows == [(f"token_{one}", "operator", "offline") for one in ("create", "create", "revoke", "delete")]
    settings = yaml.safe_load((tmp_path / "aether" / "aether.yaml").read_text())
    settings["auth"]["token_hmac_keys"] = []
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(settings))
    arguments = [
        "tokens",
        "create",
        "x",
        "--principal-type",
        "agent",
        "--offline",
        "--config",
        str(tmp_path / "other.yaml"),
    ]
    fails(1, "auth.token_hmac_keys is empty", *arguments)
