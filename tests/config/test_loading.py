"""Every layer can set every key, later layers win, and no mistake is silent."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.config import (
    ApiKey,
    HmacKey,
    JwtProvider,
    Key,
    Settings,
    SettingsError,
    all_keys,
    describe,
    load_settings,
    load_settings_with_origins,
    service_variables,
)
from aether_trio.config.keys import LIMIT_TEXTS
from aether_trio.config.loading import ALIASES, CLIENT_PREFIXES, CLIENT_VARIABLES, environment_names
from aether_trio.model.limits import Limits

KEY = "{id: k, principal: agent, sha256: " + "ab" * 32 + "}"
KEYS = f"auth.api_keys=[{KEY}]"
TLS = {"tls.cert": "c.pem", "tls.key": "k.pem", "tls.client_ca": "ca.pem"}


def read(settings: Settings, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), settings)


ANOTHER: dict[str, Any] = {
    "auth.api_keys": [{"id": "k", "sha256": "ab" * 32, "principal": "agent"}],
    "auth.token_hmac_keys": [{"id": "2026", "file": "hmac.key"}],
    "auth.jwt.providers": [{"name": "idp", "issuer": "i", "audience": "a", "jwks_file": "keys.json"}],
    "audit.event_types": ["auth", "task"],
    "websocket.principals": ["agent", "user"],
    "websocket.allowed_origins": ["https://app.example.com"],
    "storage.database": "postgresql://aether:secret@db.example.com/aether",
    "storage.schema": "another_schema",
}


def another_value(key: Key) -> Any:
    """A legal value that is not the default."""
    default = key.default
    if key.name in ANOTHER:
        return ANOTHER[key.name]
    if key.name.endswith(".port") and default is None:
        return 4711
    if key.is_switch:
        return not default
    alternatives = [one for one in get_args(getattr(key.type, "__origin__", key.type)) if isinstance(one, str)]
    if alternatives:
        return next(one for one in alternatives if one != default)
    if isinstance(default, int):
        return default - 1 if key.name == "grpc.stream_window_bytes" else default + 1
    return default + 1.5 if isinstance(default, float) else "another-value-of-some-length"


def expected_value(key: Key) -> Any:
    value = another_value(key)
    if key.name == "auth.api_keys":
        return (ApiKey(id="k", sha256="ab" * 32, principal="agent"),)
    if key.name == "auth.token_hmac_keys":
        return (HmacKey(id="2026", file="hmac.key"),)
    if key.name == "auth.jwt.providers":
        return (JwtProvider(name="idp", issuer="i", audience="a", jwks_file="keys.json"),)
    return tuple(value) if key.is_text_list else value


def companions(name: str) -> dict[str, Any]:
    """What must be said too, for the whole to make sense."""
    return {other: value for other, value in TLS.items() if name.startswith("tls.") and other != name}


def said_in(layer: str, name: str, value: Any, folder: Path) -> dict[str, Any]:
    """The arguments of load_settings with which a layer sets one key."""
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
    if layer == "file":
        path = folder / "aether.yaml"
        nested = functools.reduce(lambda inner, part: {part: inner}, reversed(name.split(".")), value)
        path.write_text(yaml.safe_dump(nested))
        return {"path": path}
    if layer == "environment":
        return {"environ": {"AETHER_" + name.upper().replace(".", "__"): text}}
    return {"flags": {name: value}} if layer == "flag" else {"sets": [f"{name}={text}"]}


@pytest.fixture(params=list(all_keys().values()), ids=lambda key: key.name)
def key(request: pytest.FixtureRequest) -> Key:
    one: Key = request.param
    return one


@pytest.fixture(params=["file", "environment", "flag", "--set"])
def layer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_each_layer_sets_it(key: Key, layer: str, tmp_path: Path) -> None:
    arguments = said_in(layer, key.name, another_value(key), tmp_path)
    arguments["flags"] = {**companions(key.name), **arguments.get("flags", {})}
    assert read(load_settings(**arguments), key.name) == expected_value(key)


def test_a_misspelt_name_is_an_error_that_names_it(key: Key, layer: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(**said_in(layer, key.name + "x", 1, tmp_path))
    (problem,) = caught.value.problems
    assert problem.startswith(f"file {tmp_path / 'aether.yaml'}" if layer == "file" else layer)
    assert f"did you mean {key.environment if layer == 'environment' else key.name}?" in problem


def test_every_key_is_explained(key: Key) -> None:
    assert key.description.endswith(".")
    assert key.expected


# A key for text takes any text, so it has no wrong type.
@pytest.mark.parametrize("key", [key for key in all_keys().values() if not key.takes_text], ids=lambda key: key.name)
def test_a_wrong_type_names_the_key_the_value_and_what_was_expected(key: Key) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(sets=[f"{key.name}={{a: mapping}}"])
    (problem,) = caught.value.problems
    assert key.name in problem
    assert "{'a': 'mapping'}" in problem
    assert key.expected in problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("https://a.example", ("https://a.example",)),
        ("https://a.example, https://b.example,", ("https://a.example", "https://b.example")),
        ("*", ("*",)),
        ("['https://a.example', 'https://b.example']", ("https://a.example", "https://b.example")),
        ("", ()),
    ],
)
def test_a_list_of_texts_is_one_text_with_commas_too(text: str, value: tuple[str, ...], tmp_path: Path) -> None:
    name = "websocket.allowed_origins"
    path = tmp_path / "aether.yaml"
    path.write_text(f"websocket:\n  allowed_origins: {text if text.startswith('[') else json.dumps(text)}\n")
    for settings in (
        load_settings(environ={"AETHER_WEBSOCKET__ALLOWED_ORIGINS": text}),
        load_settings(sets=[f"{name}={text}"]),
        load_settings(path),
    ):
        assert settings.websocket.allowed_origins == value


@pytest.mark.parametrize(
    "sets",
    [
        ["grpc.port=0", "framed.port=0", "websocket.port=0", "gateway.port=0"],
        ["grpc.port=7000", "framed.port=7000", "framed.enabled=false"],
        ["grpc.enabled=false", "websocket.enabled=false", "framed.port=7000"],
        ["gateway.port=7000", "websocket.port=50051"],
    ],
)
def test_transports_that_have_a_place_each(sets: list[str]) -> None:
    load_settings(sets=sets)


def test_later_layers_win(tmp_path: Path) -> None:
    path = tmp_path / "aether.yaml"
    path.write_text("gateway: {port: 1}\nops: {port: 1}\ngrpc: {idle_timeout_s: 1}\nlog: {retention_sweep_s: 1}\n")
    loaded = load_settings_with_origins(
        path,
        {"AETHER_OPS__PORT": "2", "AETHER_GRPC__IDLE_TIMEOUT_S": "2", "AETHER_LOG__RETENTION_SWEEP_S": "2"},
        {"grpc.idle_timeout_s": 3, "log.retention_sweep_s": 3, "gateway.data_dir": None},
        ["log.retention_sweep_s=4"],
    )
    settings = loaded.settings
    assert (settings.gateway.port, settings.ops.port) == (1, 2)
    assert (settings.grpc.idle_timeout_s, settings.log.retention_sweep_s) == (3, 4)
    assert loaded.origins == {
        "gateway.port": f"file {path}",
        "ops.port": "environment AETHER_OPS__PORT",
        "grpc.idle_timeout_s": "flag",
        "log.retention_sweep_s": "--set log.retention_sweep_s",
    }


def test_the_short_spelling_of_a_variable_is_accepted_where_it_has_one_meaning() -> None:
    environ = {"AETHER_GRPC_DRAIN_DEADLINE_S": "3", "AETHER_TLS_CERT": "c", "AETHER_TLS_KEY": "k"}
    settings = load_settings(environ=environ)
    assert (settings.grpc.drain_deadline_s, settings.tls.cert) == (3, "c")


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("yes", True), ("0", False), ("no", False), ("false", False)]
)
def test_the_aliases_of_the_reference_are_read(text: str, value: bool) -> None:
    settings = load_settings(environ={"AETHER_DEV_MODE": text, "AETHER_STRICT_IDENTIFIER_CHARSET": text})
    assert settings.gateway.dev is value
    assert settings.gateway.strict_identifier_charset is value


def test_every_alias_names_a_key() -> None:
    assert set(ALIASES.values()) <= set(all_keys())
    assert not any(name in CLIENT_VARIABLES or name.startswith(CLIENT_PREFIXES) for name in environment_names())


def test_two_spellings_of_one_key_must_agree() -> None:
    assert load_settings(environ={"AETHER_PORT": "1", "AETHER_GATEWAY__PORT": "1"}).gateway.port == 1
    with pytest.raises(SettingsError, match="AETHER_PORT and AETHER_GATEWAY__PORT both set"):
        load_settings(environ={"AETHER_PORT": "1", "AETHER_GATEWAY__PORT": "2"})


def test_variables_of_clients_are_left_alone() -> None:
    environ = dict.fromkeys(CLIENT_VARIABLES, "x") | {
        "AETHER_GRPC_KEEPALIVE_TIME_MS": "10000",
        "AETHER_GRPC_HTTP2_MAX_PINGS_WITHOUT_DATA": "0",
        "PATH": "/bin",
    }
    assert load_settings(environ=environ) == Settings()


SERVICE_VARIABLES = {
    "AETHER_SERVICE_HOST": "10.0.0.1",
    "AETHER_SERVICE_PORT": "50051",
    "AETHER_SERVICE_PORT_GRPC": "50051",
    "AETHER_PORT": "tcp://10.0.0.1:50051",
    "AETHER_PORT_50051_TCP": "tcp://10.0.0.1:50051",
    "AETHER_PORT_50051_TCP_PROTO": "tcp",
    "AETHER_PORT_50051_TCP_PORT": "50051",
    "AETHER_PORT_50051_TCP_ADDR": "10.0.0.1",
    "AETHER_OPS_SERVICE_HOST": "10.0.0.2",
    "AETHER_OPS_PORT": "tcp://10.0.0.2:9090",
    "AETHER_OPS_PORT_9090_TCP": "tcp://10.0.0.2:9090",
    "AETHER_GATEWAY_SERVICE_PORT": "50051",
    "AETHER_GATEWAY_PORT": "tcp://[fd00::1]:50051",
}


def test_what_kubernetes_sets_for_services_of_our_name_is_left_alone() -> None:
    assert load_settings(environ=SERVICE_VARIABLES) == Settings()
    assert service_variables({**SERVICE_VARIABLES, "AETHER_LOG_LEVEL": "info"}) == sorted(SERVICE_VARIABLES)
    # A setting beside them counts, under its longer name as well.
    assert load_settings(environ={**SERVICE_VARIABLES, "AETHER_GATEWAY__PORT": "7000"}).gateway.port == 7000


@pytest.mark.parametrize(
    "value", ["tcp://gateway:50051", "tcp:/10.0.0.1:50051", "http://10.0.0.1:50051", "50051x", "tcp://10.0.0.1", ""]
)
def test_a_wrong_port_is_an_error_none_the_less(value: str) -> None:
    assert service_variables({"AETHER_PORT": value}) == []
    with pytest.raises(SettingsError, match=r"environment AETHER_PORT: gateway\.port"):
        load_settings(environ={"AETHER_PORT": value})


def test_no_setting_is_taken_for_a_variable_of_a_service() -> None:
    assert service_variables(dict.fromkeys(environment_names(), "50051")) == []


def test_the_variables_of_the_published_sdk_are_all_known_to_us() -> None:
    # Searched in the SDK's own source, so that a new release that reads a new variable is noticed
    # here.
    code = (
        "import pathlib, re, scitrera_aether_client as sdk\n"
        "root = pathlib.Path(sdk.__file__).parent\n"
        "text = ''.join(p.read_text() for p in root.rglob('*.py'))\n"
        "print(*sorted(set(re.findall(r'AETHER_[A-Z0-9_]+[A-Z0-9]', text))))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    names = [name for name in out.stdout.split() if name not in {"AETHER_TLS", "AETHER_GRPC_KEEPALIVE"}]
    assert names
    assert load_settings(environ=dict.fromkeys(names, "x")) == Settings()


def test_development_mode_changes_defaults_and_nothing_that_was_said() -> None:
    dev = load_settings(flags={"gateway.dev": True})
    assert (dev.gateway.host, dev.auth.allow_anonymous) == ("127.0.0.1", True)
    no_rates = dict.fromkeys(
        ("send_rate_per_s", "workspace_rate_per_s", "identity_rate_per_s", "request_rate_per_s"), 0
    )
    assert dev.limits == dataclasses.replace(Limits(), **no_rates, connections_per_workspace=0)
    said = load_settings(flags={"gateway.dev": True}, sets=["limits.send_rate_per_s=5", "auth.allow_anonymous=false"])
    assert (said.limits.send_rate_per_s, said.auth.allow_anonymous) == (5, False)


@pytest.mark.parametrize(
    ("sets", "open_"),
    [
        ([], True),
        (["gateway.host=127.0.0.1"], False),
        (["gateway.host=::1"], False),
        (["gateway.host=localhost"], False),
        (["gateway.host=192.0.2.1"], True),
        (["gateway.host=gateway.example"], True),
        ([KEYS], False),
        ([KEYS, "auth.allow_anonymous=true"], True),
        (["tls.cert=c", "tls.key=k"], True),
        (["tls.cert=c", "tls.key=k", "tls.client_ca=a"], False),
        (["tls.cert=c", "tls.key=k", "tls.client_ca=a", "auth.allow_anonymous=true"], True),
        (["auth.trust_network=true"], False),
        (["gateway.dev=true"], False),
        (["gateway.dev=true", "gateway.host=0.0.0.0"], True),
    ],
)
def test_open_to_the_world(sets: list[str], open_: bool) -> None:
    assert load_settings(sets=sets).open_to_the_world is open_


@pytest.mark.parametrize(
    ("sets", "where"),
    [
        ([KEYS], "gateway.host"),
        ([KEYS, "gateway.host=192.0.2.1"], "gateway.host"),
        ([KEYS, "auth.trust_network=true"], "gateway.host"),
        ([KEYS, "auth.trust_network=true", "auth.allow_anonymous=true"], "gateway.host"),
        (["auth.trust_network=true"], "gateway.host"),
        (["auth.trust_network=true", "auth.allow_anonymous=true"], None),
        ([KEYS, "gateway.host=127.0.0.1"], None),
        ([KEYS, "tls.cert=c", "tls.key=k"], None),
        ([KEYS, "tls.terminated_by_proxy=true"], None),
        (["gateway.dev=true"], None),
        (["gateway.dev=true", "ops.host=0.0.0.0"], None),
        (["gateway.dev=true", "ops.host=0.0.0.0", "ops.tail_token=0123456789abcdef"], "ops.host"),
        (["gateway.dev=true", "ops.host=0.0.0.0", "ops.tail_token=0123456789abcdef", "ops.enabled=false"], None),
        ([KEYS, "ops.host=0.0.0.0", "ops.tail_token=0123456789abcdef", "tls.terminated_by_proxy=true"], None),
    ],
)
def test_credentials_in_plaintext(sets: list[str], where: str | None) -> None:
    assert load_settings(sets=sets).credentials_in_plaintext == where


@pytest.mark.parametrize(
    ("sets", "text"),
    [
        (["tls.cert=c"], "tls.cert and tls.key belong together"),
        (["storage.database=postgresql+asyncpg://h/n"], "database is a URL: postgresql://USER:PASSWORD@HOST/NAME"),
        (["tls.client_ca=c"], "tls.client_ca needs TLS"),
        (["tls.cert=c", "tls.key=k", "tls.require_client_cert=true"], "needs tls.client_ca"),
        ([KEYS.replace("]", ", " + KEY.replace("ab", "cd") + "]")], "'k' is used twice"),
        ([KEYS.replace("ab" * 32, "short")], r"auth.api_keys\[0\].sha256"),
        ([KEYS.replace("}", ", wrokspaces: [a]}")], "wrokspaces"),
        ([KEYS.replace("principal: agent, ", "")], "missing required field `principal`"),
        (
            [KEYS.replace("sha256", "identity: 'ag::prod*', sha256")],
            "the identity of 'k' is wrong: 'ag::prod.*' has 2 parts between '::', where an identity is ag::",
        ),
        (["limits.payload_bytes=0"], "payload_bytes is 0"),
        (["limits.payload_bytes=4194304"], "above 4127744 it would not fit into one message to a client"),
        (["limits.task_payload_bytes=4194304"], "above 3144704 it would not fit into one message to a client"),
        (["grpc"], "must look like KEY.PATH=VALUE"),
        (["grpc=3"], "grpc is a section; set one of its keys, such as grpc.enabled"),
        (["ops.tail_token=short"], "(hidden)"),
        ([f"{one}.enabled=false" for one in ("grpc", "framed", "websocket")], "no transport is left: grpc.enabled"),
        (["grpc.port=7000", "framed.port=7000"], "grpc.port and framed.port are both 7000"),
        (["gateway.port=7000", "websocket.port=7000"], "websocket.port is gateway.port, 7000"),
        (["framed.port=50051"], "framed.port is gateway.port"),
        (["websocket.principals=user,robot"], r"websocket.principals\[1\] is wrong: Invalid enum value 'robot'"),
    ],
)
def test_what_makes_no_sense_is_refused(sets: list[str], text: str) -> None:
    with pytest.raises(SettingsError, match=text.replace("(hidden)", r"\(hidden\)")):
        load_settings(sets=sets)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("- a\n", "must be a mapping"),
        ("gateway: [\n", "is not YAML"),
        ("gateway: {port: 1, port: 2}\n", "'port' is given twice"),
        ("gateway: 3\n", "gateway is a section"),
        ("gatewya: {port: 3}\n", r"unknown key gatewya.port; did you mean gateway.port\?"),
        ("nonsense: {}\n", "unknown key nonsense"),
        ("gateway: {port: '3'}\n", "gateway.port = '3' is not a whole number"),
        ("gateway: {port: {deep: 1}}\n", "is not a whole number"),
        ("gateway: {port: 70000}\n", r"gateway.port = 70000 is out of range: it has to be at most 65535$"),
        ("grpc: {drain_deadline_s: -1}\n", "is out of range: it has to be more than 0"),
        ("gateway: {a: {b: {c: 1}}}\n", r"unknown key gateway\.a\.b\.c"),
    ],
)
def test_what_a_file_can_get_wrong(body: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "aether.yaml"
    path.write_text(body)
    with pytest.raises(SettingsError, match=text):
        load_settings(path)


def test_a_file_that_cannot_be_read_is_the_only_problem(tmp_path: Path) -> None:
    path = tmp_path / "aether.yaml"
    path.write_text("tls: {client_ca: ca.pem\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(path, sets=["tls.require_client_cert=true"])
    assert str(caught.value).count("problem") == 0
    assert "needs tls.client_ca" not in str(caught.value)


@pytest.mark.parametrize("body", ["", "gateway:\n", "# only a comment\n", "gateway: {}\n"])
def test_an_empty_file_says_nothing(body: str, tmp_path: Path) -> None:
    path = tmp_path / "aether.yaml"
    path.write_text(body)
    assert load_settings(path) == Settings()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_settings(tmp_path / "none.yaml")


def test_all_problems_come_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={"AETHER_GRCP_X": "1", "AETHER_PORT": "many"}, sets=["kv.x=1", "ops.port=-1"])
    assert len(caught.value.problems) == 4


def test_the_description_reads_back_as_the_same_settings(tmp_path: Path) -> None:
    for settings in (Settings(), load_settings(flags={"gateway.dev": True}), load_settings(sets=[KEYS])):
        path = tmp_path / "aether.yaml"
        path.write_text(describe(settings))
        assert load_settings(path) == settings


def test_the_description_says_who_set_what_and_hides_tokens() -> None:
    loaded = load_settings_with_origins(flags={"gateway.port": 5}, sets=["ops.tail_token=0123456789abcdef"])
    text = describe(loaded.settings, origins=loaded.origins, only_origins=True)
    assert "port: 5  # set by flag" in text
    assert "0123456789abcdef" not in text
    assert "grpc:" not in text
    assert "0123456789abcdef" in describe(loaded.settings, hide_secrets=False)


def test_every_limit_of_the_model_is_explained_and_nothing_else() -> None:
    assert set(LIMIT_TEXTS) == {field.name for field in dataclasses.fields(Limits)}


def test_every_setting_has_an_effect() -> None:
    package = Path(__file__).parents[2] / "aether_trio"
    files = [path for path in package.rglob("*.py") if path.parent.name != "config"]
    code = "\n".join(path.read_text() for path in files) + (package / "config" / "settings.py").read_text()
    assert [key.name for key in all_keys().values() if not re.search(rf"\.{key.path[-1]}\b", code)] == []


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Settings().gateway.port = 1  # type: ignore[misc]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"nonsense": 1}, Settings)


names = st.sampled_from(sorted(all_keys()))


@given(name=names, letter=st.sampled_from("abcdefghijklmnopqrstuvwxyz_"), data=st.data())
def test_one_slip_of_the_finger_is_always_put_right(name: str, letter: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    if name[at] == ".":
        return
    slipped = name[:at] + letter + name[at + 1 :]
    if slipped in all_keys():
        return
    with pytest.raises(SettingsError) as caught:
        load_settings(sets=[f"{slipped}=1"])
    suggestion = caught.value.problems[0].rpartition("did you mean ")[2].rstrip("?")
    # Some names differ from each other by little; the suggestion must then be at least as close as
    # the true one.
    assert suggestion in all_keys()
    assert sum(a != b for a, b in zip(suggestion, slipped, strict=False)) + abs(
        len(suggestion) - len(slipped)
    ) <= 1 or (suggestion == name)


@given(text=st.text(max_size=40))
def test_no_text_in_the_environment_raises_anything_but_a_settings_error(text: str) -> None:
    if "\x00" in text:
        return
    for variable in ("AETHER_GATEWAY__PORT", "AETHER_AUTH__API_KEYS", "AETHER_GRPC__IDLE_TIMEOUT_S", "AETHER_DEV_MODE"):
        with contextlib.suppress(SettingsError):
            load_settings(environ={variable: text})


def test_this_test_reads_no_environment_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "AETHER_NONSENSE", "1")
    assert load_settings() == Settings()


GOOD = "{name: idp, issuer: i, audience: a, jwks_url: 'https://idp.example/k'}"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([GOOD], None),
        ([GOOD, GOOD], "the name 'idp' is used twice"),
        (["{name: _x, issuer: i, audience: a, jwks_file: f}"], "name is wrong"),
        (["{name: x, issuer: i, jwks_file: f}"], "audience"),
        (["{name: x, issuer: i, audience: a}"], "needs jwks_url or jwks_file"),
        (["{name: x, issuer: i, audience: a, jwks_file: f, jwks_url: 'https://h/'}"], "not both"),
        (["{name: x, issuer: i, audience: a, jwks_url: 'http://h/k'}"], "is not https"),
        (["{name: x, issuer: i, audience: a, jwks_url: 'http://127.0.0.1/k'}"], "is not https"),
        (["{name: x, issuer: i, audience: a, jwks_url: 'file:///etc/passwd'}"], "is not https"),
        (["{name: x, issuer: i, audience: a, jwks_url: 'https://u:p@h/k'}"], "is not https"),
        (["{name: x, issuer: i, audience: a, jwks_url: 'https://h:99999/k'}"], "is no URL"),
        (["{name: x, issuer: i, audience: a, jwks_file: f, algorithms: [HS256]}"], "algorithms"),
        (["{name: x, issuer: i, audience: a, jwks_file: f, algorithms: [none]}"], "algorithms"),
        (["{name: x, issuer: i, audience: a, jwks_file: f, default_principal: service}"], "default_principal"),
        (["{name: x, issuer: i, audience: a, jwks_file: f, default_workspace: _w}"], "are the gateway's|gateway's"),
    ],
)
def test_identity_providers(given: list[str], text: str | None) -> None:
    sets = [f"auth.jwt.providers=[{', '.join(given)}]"]
    if text is None:
        assert load_settings(sets=sets).auth.jwt.providers
        return
    with pytest.raises(SettingsError, match=text):
        load_settings(sets=sets)


def test_plain_http_is_for_loopback_alone() -> None:
    for host, good in (("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("idp.example", False)):
        sets = [f"auth.jwt.providers=[{{name: x, issuer: i, audience: a, jwks_url: 'http://{host}:8080/k'}}]"]
        with contextlib.nullcontext() if good else pytest.raises(SettingsError, match="is not https"):
            load_settings(sets=[*sets, "auth.jwt.plain_http_on_loopback=true"])
