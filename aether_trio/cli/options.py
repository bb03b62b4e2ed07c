"""Options that several commands of `aether` share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from aether_trio.cli import exits
from aether_trio.cli.context_file import SavedContext, load_contexts
from aether_trio.config import Loaded, Settings, SettingsError, load_settings_with_origins

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_PORT: Final = 50051
OPS_PORT: Final = 9090
DEFAULT_GATEWAY: Final = f"127.0.0.1:{DEFAULT_PORT}"
DEFAULT_OPS: Final = f"127.0.0.1:{OPS_PORT}"
_WITH_TLS: Final = {"aether": "aethers", "grpc": "grpcs", "ws": "wss"}
_CONTEXT: Final = "aether.context"
_LOADED: Final = "aether.loaded_context"


@dataclass(frozen=True, slots=True)
class GatewayTarget:
    """The address of a client command's gateway, with its credential and TLS files."""

    host: str
    port: int
    api_key: str | None
    tls: bool
    tls_ca: str | None
    tls_cert: str | None
    tls_key: str | None
    timeout_s: float
    scheme: str = ""
    """That of an address, which names the transport; "" for HOST:PORT."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def credentials(self) -> dict[str, str]:
        return {"api_key": self.api_key} if self.api_key else {}


def split_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Split "HOST:PORT" ("[HOST]:PORT" for IPv6). Raises click.BadParameter."""
    if "://" in text:
        scheme, _, rest = text.partition("://")
        raise click.BadParameter(f"{text!r} has a scheme; give {rest!r} without {scheme}://", param_hint="address")
    host, colon, port = text.rpartition(":")
    if text and not colon and default_port is not None:
        return text, default_port
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or (":" in host and not host.startswith("[")):
        raise click.BadParameter(f"{text!r} is not HOST:PORT", param_hint="address")
    return host.strip("[]"), int(port)


def parse_gateway(text: str) -> tuple[str, str, int]:
    """Return scheme ("" for HOST:PORT), host and port. Raises click.BadParameter."""
    if "://" not in text:
        return "", *split_address(text, DEFAULT_PORT)
    from aether_trio.client.connection.address import parse_address
    from aether_trio.client.errors import AddressError

    try:
        address = parse_address(text)
    except AddressError as error:
        raise click.BadParameter(f"{error.message}, or HOST:PORT", param_hint="--gateway") from None
    return address.scheme, address.host, address.port


# -- contexts --------------------------------------------------------------------------------------


def context_option(command: F) -> F:
    """Add --context, unless another decorator has added it."""
    if any(one.name == "context_name" for one in getattr(command, "__click_params__", ())):
        return command
    return click.option(
        "--context", "context_name", envvar="AETHER_CONTEXT", show_envvar=True, metavar="NAME", is_eager=True,
        expose_value=False, callback=_choose, shell_complete=complete_contexts,
        help="Use this saved context.  [default: that of `aether context use`]",
    )(command)  # fmt: skip


def _choose(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    ctx.meta[_CONTEXT] = value or ""


def complete_contexts(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of contexts that begin with a text, for a shell."""
    try:
        return [name for name in sorted(load_contexts().contexts) if name.startswith(incomplete)]
    except exits.CliError:
        return []


def chosen_context() -> SavedContext:
    """Return the context of the running command, or an empty one. Raises CliError."""
    meta = click.get_current_context().meta
    if _LOADED not in meta:
        known = load_contexts()
        name = meta.get(_CONTEXT) or known.current
        meta[_LOADED] = known.named(name) if name else SavedContext()
    found: SavedContext = meta[_LOADED]
    return found


def without_context(target: GatewayTarget) -> GatewayTarget:
    """Return the target without what only the context says: it is of another gateway."""
    if chosen_context() == SavedContext():
        return target
    source = click.get_current_context().get_parameter_source
    names = ("api_key", "tls_ca", "tls_cert", "tls_key")
    unsaid = {name: None for name in names if source(name) is ParameterSource.DEFAULT}
    return replace(target, **unsaid)  # type: ignore[arg-type]  # by their names


def workspace_option(command: F) -> F:
    """Add --workspace, which comes from the context if it is not given."""

    def given(ctx: click.Context, param: click.Parameter, value: str | None) -> str:
        return value if value is not None else chosen_context().workspace or "default"

    option = click.option(
        "--workspace", envvar="AETHER_WORKSPACE", show_envvar=True, metavar="NAME", callback=given,
        help="The workspace.  [default: the context's, else default]",
    )  # fmt: skip
    return context_option(option(command))


def name_and_value(text: str, option: str) -> tuple[str, str]:
    """Split the NAME=VALUE of an option. Raises click.BadParameter."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
    return name, value


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """The options that `aether dev` and `aether serve` share."""

    flags: Mapping[str, Any]
    """Values by the key of their setting; None for an option that was not given."""
    sets: tuple[str, ...] = ()
    config_file: str | None = None
    ready_file: str | None = None
    until_stdin_ends: bool = False

    def with_flags(self, flags: Mapping[str, Any]) -> ServingOptions:
        """Return these options with more `flags`, which are settings by dotted key."""
        return replace(self, flags={**self.flags, **flags})

    def load(self) -> Settings:
        """Load all layers of settings. Raises CliError with every problem."""
        from aether_trio.cli.json_lines import begin_log_early

        begin_log_early(self.flags, self.sets, os.environ)
        return load(self.config_file, self.flags, self.sets).settings


def serving_options(command: F) -> F:
    """Add the options of `aether dev` and `aether serve`, as `given`."""

    @functools.wraps(command)
    def wrapper(
        port: int | None,
        ops_port: int | None,
        data_dir: str | None,
        ephemeral: bool | None,
        log_level: str | None,
        log_format: str | None,
        sets: tuple[str, ...],
        config_file: str | None,
        ready_file: str | None,
        until_stdin_ends: bool,
        **kwargs: Any,
    ) -> Any:
        flags = {
            "gateway.port": port,
            "gateway.data_dir": data_dir,
            "gateway.ephemeral": ephemeral,
            "ops.port": ops_port,
            "logging.level": log_level,
            "logging.format": log_format,
        }
        return command(given=ServingOptions(flags, sets, config_file, ready_file, until_stdin_ends), **kwargs)

    options = [
        click.option(
            "--port", type=click.IntRange(0, 65535), help="Port of all transports; 0 picks a free one.  [default: 50051]"
        ),
        click.option(
            "--ops-port", type=click.IntRange(0, 65535),
            help="Port of the ops server; 0 picks a free one.  [default: 9090; dev: 0 with --port 0]",
        ),
        click.option(
            "--data-dir", type=click.Path(file_okay=False), help="Where the data lies.  [default: ./aether-data]"
        ),
        click.option("--ephemeral", is_flag=True, default=None, help="Keep nothing: the data is deleted at the end."),
        click.option(
            "--ready-file", type=click.Path(dir_okay=False), help="Write {pid, gateway, ops, transports} here once all is served."
        ),
        click.option("--log-level", help="debug, info, warning or error."),
        click.option("--log-format", help="console or json."),
        click.option("--until-stdin-ends", is_flag=True, hidden=True),
    ]  # fmt: skip
    for option in reversed(options):
        wrapper = option(wrapper)
    return settings_options(wrapper)  # type: ignore[return-value]  # click replaces it anyway


def client_options(command: F) -> F:
    """Add the options of a gateway's client, which the command gets as `target`."""

    @context_option
    @click.option(
        "--gateway", envvar="AETHER_GATEWAY", show_envvar=True, metavar="ADDRESS",
        help="The gateway to talk to: HOST:PORT, or an address that names the transport: aether://HOST:PORT, "
        f"aethers:// with TLS, grpc(s)://, ws(s)://.  [default: the context's, else {DEFAULT_GATEWAY}]",
    )  # fmt: skip
    @click.option("--api-key", envvar="AETHER_API_KEY", show_envvar=True, metavar="KEY", help="The API key to show.")
    @click.option(
        "--tls/--no-tls", default=None, envvar="AETHER_TLS_ENABLED", help="Use TLS; implied by the options below."
    )
    @click.option(
        "--tls-ca", envvar="AETHER_TLS_CA_CERT", show_envvar=True, type=click.Path(exists=True, dir_okay=False),
        help="PEM file of the authority to trust, instead of the system's.",
    )  # fmt: skip
    @click.option(
        "--tls-cert", envvar="AETHER_TLS_CLIENT_CERT", show_envvar=True, type=click.Path(exists=True, dir_okay=False),
        help="PEM file of the client certificate.",
    )  # fmt: skip
    @click.option(
        "--tls-key", envvar="AETHER_TLS_CLIENT_KEY", show_envvar=True, type=click.Path(exists=True, dir_okay=False),
        help="PEM file of its key.",
    )  # fmt: skip
    @click.option(
        "--timeout", "timeout_s", default=10.0, show_default=True, type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS", help="Give up after this long.",
    )  # fmt: skip
    @functools.wraps(command)
    def wrapper(
        gateway: str | None,
        api_key: str | None,
        tls: bool | None,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        timeout_s: float,
        **kwargs: Any,
    ) -> Any:
        if bool(tls_cert) != bool(tls_key):
            raise click.UsageError("--tls-cert and --tls-key belong together: give both, or neither.")
        saved = chosen_context()
        scheme, host, port = parse_gateway((saved.gateway or DEFAULT_GATEWAY) if gateway is None else gateway)
        is_plain = tls is False or scheme in _WITH_TLS
        if _is_gateway_of(saved, host, port) and not (is_plain and _speaks_tls(saved)):
            # What a context knows of its gateway is shown to no other one.
            api_key = api_key or saved.credential()
            if tls_cert is None:
                tls_cert, tls_key = saved.tls_cert or None, saved.tls_key or None
            tls_ca = tls_ca or saved.tls_ca or None
            tls = _speaks_tls(saved) if tls is None and not scheme else tls
        if scheme and tls is not None and tls != (scheme in _WITH_TLS.values()):
            raise click.UsageError(f"--{'tls' if tls else 'no-tls'} and {scheme}:// exclude each other.")
        use_tls = (scheme in _WITH_TLS.values()) if scheme and tls is None else tls
        if use_tls is None:
            use_tls = bool(tls_ca or tls_cert)
        elif not use_tls and scheme and (tls_ca or tls_cert):
            raise click.UsageError(f"{scheme}:// is without TLS; give {_WITH_TLS[scheme]}:// with the files for TLS.")
        target = GatewayTarget(host, port, api_key or None, use_tls, tls_ca, tls_cert, tls_key, timeout_s, scheme)
        return command(target=target, **kwargs)

    return wrapper  # type: ignore[return-value]  # click replaces it anyway


def _is_gateway_of(saved: SavedContext, host: str, port: int) -> bool:
    """Whether a context is of the gateway at an address."""
    return bool(saved.gateway) and (host, port) == parse_gateway(saved.gateway)[1:]


def _speaks_tls(saved: SavedContext) -> bool | None:
    """Whether a context's gateway has TLS; None if it does not say."""
    if saved.tls is not None:
        return saved.tls
    scheme = parse_gateway(saved.gateway)[0]
    return True if scheme in _WITH_TLS.values() or saved.tls_ca or saved.tls_cert else None


def _ops_of(saved: SavedContext) -> str:
    """Return the address of the ops port of a context's gateway."""
    if saved.ops or not saved.gateway:
        return saved.ops or DEFAULT_OPS
    host = parse_gateway(saved.gateway)[1]
    return f"[{host}]:{OPS_PORT}" if ":" in host else f"{host}:{OPS_PORT}"


def settings_options(command: F) -> F:
    """Add --config and --set, which the command gets as `config_file` and `sets`."""
    command = click.option(
        "--set", "sets", multiple=True, metavar="KEY.PATH=VALUE",
        help="Set one setting; may be repeated. `aether config default` lists them all.",
    )(command)  # fmt: skip
    return click.option(
        "--config", "config_file", envvar="AETHER_CONFIG", show_envvar=True, type=click.Path(dir_okay=False),
        help="YAML file with settings.",
    )(command)  # fmt: skip


def load(config_file: str | None, flags: Mapping[str, Any], sets: tuple[str, ...]) -> Loaded:
    """Load all layers of settings. Raises CliError with every problem."""
    try:
        return load_settings_with_origins(config_file, os.environ, flags, sets)
    except SettingsError as error:
        lines = "\n  ".join(error.problems)
        text = lines if len(error.problems) == 1 else f"the settings have {len(error.problems)} problems:\n  {lines}"
        raise exits.CliError(text, exits.SETTINGS, lines=True) from None


@dataclass(frozen=True, slots=True)
class OpsTarget:
    """The address of a gateway's ops port, with the token for it."""

    host: str
    port: int
    token: str | None
    timeout_s: float


def ops_options(command: F) -> F:
    """Add the options of the ops port, which the command gets as `ops`."""

    @context_option
    @click.option(
        "--ops", envvar="AETHER_OPS", show_envvar=True, metavar="HOST:PORT",
        help=f"The gateway's ops port.  [default: that of the context's gateway, else {DEFAULT_OPS}]",
    )  # fmt: skip
    @click.option(
        "--token",
        envvar="AETHER_OPS__TAIL_TOKEN",
        show_envvar=True,
        metavar="TOKEN",
        help="The gateway's ops.tail_token.",
    )
    @click.option(
        "--timeout", "timeout_s", default=10.0, show_default=True, metavar="SECONDS", help="For the gateway to answer."
    )
    @functools.wraps(command)
    def wrapper(ops: str | None, token: str | None, timeout_s: float, **kwargs: Any) -> Any:
        host, port = split_address(ops or _ops_of(chosen_context()), OPS_PORT)
        return command(ops=OpsTarget(host, port, token or None, timeout_s), **kwargs)

    return wrapper  # type: ignore[return-value]  # click replaces it anyway
