"""Loads the settings from their layers, and keeps the origin of each value.

All problems of all layers are collected and raised together.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from aether_trio.config import kubernetes
from aether_trio.config.keys import SEPARATOR, Key, SettingsError, all_keys, nearest
from aether_trio.config.settings import TRANSPORTS, JwtSettings, Settings
from aether_trio.model.patterns import identity_pattern_problem

ENVIRONMENT_PREFIX: Final = "AETHER_"

# Names that the reference or the shell history of its users know.
ALIASES: Final[Mapping[str, str]] = {
    "AETHER_DEV_MODE": "gateway.dev",
    "AETHER_STRICT_IDENTIFIER_CHARSET": "gateway.strict_identifier_charset",
    "AETHER_PORT": "gateway.port",
    "AETHER_DATA_DIR": "gateway.data_dir",
    "AETHER_OPS_PORT": "ops.port",
    "AETHER_LOG_LEVEL": "logging.level",
    "AETHER_LOG_FORMAT": "logging.format",
}

# Variables of clients (the published SDK's and ours), which the gateway ignores.
CLIENT_VARIABLES: Final = frozenset(
    {
        "AETHER_ADDRESS",
        "AETHER_API_KEY",
        "AETHER_AS",
        "AETHER_AUTH_TOKEN",
        "AETHER_CONFIG",  # the path of the settings file, read by the CLI
        "AETHER_GATEWAY",
        "AETHER_IMPLEMENTATION",
        "AETHER_MAX_RECONNECT_ATTEMPTS",
        "AETHER_OPS",
        "AETHER_SPECIFIER",
        "AETHER_TASK_TOKEN",
        "AETHER_TENANT_ID",
        "AETHER_TLS_CA_CERT",
        "AETHER_TLS_CLIENT_CERT",
        "AETHER_TLS_CLIENT_KEY",
        "AETHER_TLS_ENABLED",
        "AETHER_WORKSPACE",
    }
)
_OUT_OF_RANGE: Final = re.compile(r"Expected `(?:int|float)` (<=?|>=?) (-?[\d.]+)")
"""In msgspec's own words."""
_BOUNDS: Final = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}

CLIENT_PREFIXES: Final = ("AETHER_GRPC_KEEPALIVE_", "AETHER_GRPC_HTTP2_")

# What development mode means, as a layer right above the defaults: anything said explicitly wins.
DEV_DEFAULTS: Final[Mapping[str, Any]] = {
    "gateway.host": "127.0.0.1",
    "auth.allow_anonymous": True,
    "access.default": "open",
    "limits.send_rate_per_s": 0.0,
    "limits.workspace_rate_per_s": 0.0,
    "limits.identity_rate_per_s": 0.0,
    "limits.request_rate_per_s": 0.0,
    "limits.connections_per_workspace": 0,
    "websocket.page": True,
    "websocket.allowed_origins": ("http://localhost:*", "http://127.0.0.1:*"),
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """Loaded settings, with the origin of each value that is not a default."""

    settings: Settings
    origins: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Given:
    origin: str
    value: Any


class _StrictLoader(yaml.SafeLoader):
    """A YAML loader that refuses a mapping with two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                mark = key_node.start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice; remove one", mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_settings(
    path: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> Settings:
    """Load the settings from all layers. Raises SettingsError with every problem.

    `path` is a YAML file or None; `environ` normally os.environ; `flags` maps dotted keys to
    values, None meaning "not given"; `sets` are the KEY.PATH=VALUE texts of `--set`.
    """
    return load_settings_with_origins(path, environ, flags, sets).settings


def load_settings_with_origins(
    path: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> Loaded:
    """Load the settings as load_settings does, with the origin of each value."""
    problems: list[str] = []
    given: dict[str, _Given] = {}
    in_file = list(_from_file(path, problems))
    nothing_read = bool(problems) and not in_file
    for layer in (
        in_file,
        _from_environment(environ or {}, problems),
        _from_flags(flags or {}, problems),
        _from_sets(sets, problems),
    ):
        given.update(layer)
    values: dict[str, Any] = {}
    for name, one in given.items():
        key = all_keys()[name]
        try:
            values[name] = key.check(one.value)
        except ValueError as exc:
            problems.append(_wrong(key, one, str(exc)))
    if values.get("gateway.dev"):
        values = {**DEV_DEFAULTS, **values}
    if not nothing_read:  # else what the file says is missing
        problems.extend(_contradictions(values))
    if problems:
        raise SettingsError(*problems)
    origins = {name: given[name].origin if name in given else "development mode" for name in values}
    try:
        settings = _build(values)
    except ValueError as exc:  # a bound that the model itself holds
        raise SettingsError(f"a limit among the settings is invalid: {exc}") from None
    return Loaded(settings, origins)


def _wrong(key: Key, one: _Given, reason: str) -> str:
    shown = "(hidden)" if key.is_secret else repr(one.value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    what, _, where = reason.partition(" - at `$")  # msgspec's own words for a place inside a list
    inside = where.rstrip("`")
    if inside:
        return f"{one.origin}: {key.name}{inside} is wrong: {what}"
    if bound := _OUT_OF_RANGE.fullmatch(what):
        return f"{one.origin}: {key.name} = {shown} is out of range: it has to be {_BOUNDS[bound[1]]} {bound[2]}"
    return f"{one.origin}: {key.name} = {shown} is not {key.expected} ({what})"


def _unknown(origin: str, name: str) -> str:
    if name in _sections():
        return f"{origin}: {name} is a section; set one of its keys, such as {_first_key_of(name)}"
    close = nearest(name)
    return f"{origin}: unknown key {name}" + (f"; did you mean {close}?" if close else "")


def _from_file(path: str | Path | None, problems: list[str]) -> Iterator[tuple[str, _Given]]:
    if path is None:
        return
    origin = f"file {path}"
    try:
        document = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506  # a SafeLoader
    except OSError as exc:
        problems.append(f"{origin}: cannot be read: {exc.strerror or exc}")
        return
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        problems.append(f"{origin}: is not YAML: {' '.join(str(exc).split())}")
        return
    if document is None:
        return
    if not isinstance(document, dict):
        problems.append(f"{origin}: must be a mapping of sections")
        return
    for name, value in _leaves(document, ()):
        if name in all_keys():
            yield name, _Given(origin, value)
        else:
            problems.append(_unknown(origin, name))


def _leaves(mapping: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for part, value in mapping.items():
        here = (*path, str(part))
        name = SEPARATOR.join(here)
        if name in all_keys() or not isinstance(value, dict):
            if value is None and name in _sections():
                continue  # `grpc:` with nothing below it says nothing
            yield name, value
        elif not value and name not in _sections():
            yield name, value
        else:
            yield from _leaves(value, here)


def _first_key_of(section: str) -> str:
    return next(name for name in all_keys() if name.startswith(section + SEPARATOR))


@functools.cache
def _sections() -> frozenset[str]:
    return frozenset(SEPARATOR.join(key.path[:n]) for key in all_keys().values() for n in range(1, len(key.path)))


@functools.cache
def environment_names() -> Mapping[str, str]:
    """Return every environment variable that sets a key, with that key."""
    single: defaultdict[str, list[str]] = defaultdict(list)
    for key in all_keys().values():
        single[ENVIRONMENT_PREFIX + "_".join(key.path).upper()].append(key.name)
    names = {variable: keys[0] for variable, keys in single.items() if len(keys) == 1 and not _is_client(variable)}
    names |= ALIASES
    names |= {key.environment: key.name for key in all_keys().values()}
    return names


def _is_client(variable: str) -> bool:
    return variable in CLIENT_VARIABLES or variable.startswith(CLIENT_PREFIXES)


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> Iterator[tuple[str, _Given]]:
    known = environment_names()
    chosen: dict[str, str] = {}
    # The longer spelling of a key sorts later and wins over its alias.
    for variable in sorted((v for v in environ if v.startswith(ENVIRONMENT_PREFIX)), key=lambda v: ("__" in v, v)):
        if _is_client(variable) or kubernetes.is_of_a_service(variable, environ[variable]):
            continue
        name = known.get(variable)
        if name is None:
            close = nearest(variable, known)
            problems.append(f"environment: unknown key {variable}" + (f"; did you mean {close}?" if close else ""))
            continue
        other = chosen.setdefault(name, variable)
        if other != variable and environ[other] != environ[variable]:
            problems.append(f"environment: {other} and {variable} both set {name}, to different values")
        yield name, _parsed(f"environment {variable}", all_keys()[name], environ[variable], problems)


def _from_flags(flags: Mapping[str, Any], problems: list[str]) -> Iterator[tuple[str, _Given]]:
    for name, value in flags.items():
        if value is None:
            continue
        if name in all_keys():
            yield name, _Given("flag", value)
        else:
            problems.append(_unknown("flag", name))


def _from_sets(sets: Sequence[str], problems: list[str]) -> Iterator[tuple[str, _Given]]:
    for text in sets:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            problems.append(f"--set {text}: must look like KEY.PATH=VALUE")
        elif name in all_keys():
            yield name, _parsed(f"--set {name}", all_keys()[name], value, problems)
        else:
            problems.append(_unknown("--set", name))


def _parsed(origin: str, key: Key, text: str, problems: list[str]) -> _Given:
    """Convert the text of a setting to its value: a text, a list of texts, or YAML."""
    if key.optional and text.strip() in {"", "null", "~"}:
        return _Given(origin, None)
    if key.takes_text or (key.is_text_list and not text.lstrip().startswith(("[", "{"))):
        return _Given(origin, text)
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError:
        return _Given(origin, text)
    if key.is_switch:
        value = {"1": True, "0": False}.get(text.strip(), value)
    return _Given(origin, value)


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    if bool(values.get("tls.cert")) != bool(values.get("tls.key")):
        yield "tls.cert and tls.key belong together: set both, or neither"
    if values.get("tls.client_ca") and not values.get("tls.cert"):
        yield "tls.client_ca needs TLS: set tls.cert and tls.key too"
    if values.get("tls.require_client_cert") and not values.get("tls.client_ca"):
        yield "tls.require_client_cert needs tls.client_ca, the authorities to trust"
    database = values.get("storage.database")
    if database is not None and not database.startswith(("postgresql://", "postgres://")):
        yield "storage.database is a URL: postgresql://USER:PASSWORD@HOST/NAME"
    yield from _transports_without_a_place(values)
    if values.get("tls.client_crl") and not values.get("tls.client_ca"):
        yield "tls.client_crl needs tls.client_ca, the authorities whose certificates it revokes"
    for name, what in (("auth.api_keys", "id"), ("auth.token_hmac_keys", "id"), ("auth.jwt.providers", "name")):
        given = [getattr(one, what) for one in values.get(name, ())]
        for twice in sorted({one for one in given if given.count(one) > 1}):
            yield f"{name}: the {what} {twice!r} is used twice"
    plain = bool(values.get("auth.jwt.plain_http_on_loopback"))
    jwt = JwtSettings(providers=values.get("auth.jwt.providers", ()), plain_http_on_loopback=plain)
    yield from (f"auth.jwt.providers: {problem}" for problem in jwt.problems)
    for key in values.get("auth.api_keys", ()):
        if problem := identity_pattern_problem(key.identity):
            yield f"auth.api_keys: the identity of {key.id!r} is wrong: {problem}"


def _transports_without_a_place(values: Mapping[str, Any]) -> Iterator[str]:
    def value(name: str) -> Any:
        return values.get(name, all_keys()[name].default)

    transports = [transport for transport in TRANSPORTS if value(f"{transport}.enabled")]
    if not transports:
        yield (
            "no transport is left: " + ", ".join(f"{transport}.enabled" for transport in TRANSPORTS) + " are all false"
        )
    owners: dict[int, str] = {value("gateway.port"): "gateway.port"}
    for transport in transports:
        port = value(f"{transport}.port")
        if not port:  # unset, or any that is free
            continue
        owner = owners.setdefault(port, f"{transport}.port")
        if owner == "gateway.port":
            yield f"{transport}.port is gateway.port, {port}: leave it unset, and the transport is served there with the others"
        elif owner != f"{transport}.port":
            yield f"{owner} and {transport}.port are both {port}: a separate port has one transport"


def _build(values: Mapping[str, Any]) -> Settings:
    built: Settings = _replaced(Settings(), {all_keys()[name].path: value for name, value in values.items()})
    return built


def _replaced(section: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """Return a section of the settings with the values of these paths."""
    fields: dict[str, Any] = {}
    inner: defaultdict[str, dict[tuple[str, ...], Any]] = defaultdict(dict)
    for path, value in values.items():
        if len(path) == 1:
            fields[path[0]] = value
        else:
            inner[path[0]][path[1:]] = value
    fields |= {name: _replaced(getattr(section, name), below) for name, below in inner.items()}
    replace = dataclasses.replace if dataclasses.is_dataclass(section) else msgspec.structs.replace
    return replace(section, **fields)
