"""Options that several commands of `aether` share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import click

from aether_trio.cli import exits
from aether_trio.config import Loaded, Settings, SettingsError, load_settings_with_origins

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_GATEWAY: Final = "127.0.0.1:50051"
DEFAULT_OPS: Final = "127.0.0.1:9090"


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

    @click.option(
        "--gateway", default=DEFAULT_GATEWAY, show_default=True, envvar="AETHER_GATEWAY", show_envvar=True,
        metavar="HOST:PORT", help="The gateway to talk to.",
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
        gateway: str,
        api_key: str | None,
        tls: bool | None,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        timeout_s: float,
        **kwargs: Any,
    ) -> Any:
        host, port = split_address(gateway, 50051)
        if bool(tls_cert) != bool(tls_key):
            raise click.UsageError("--tls-cert and --tls-key belong together: give both, or neither.")
        use_tls = tls if tls is not None else bool(tls_ca or tls_cert)
        target = GatewayTarget(host, port, api_key or None, use_tls, tls_ca, tls_cert, tls_key, timeout_s)
        return command(target=target, **kwargs)

    return wrapper  # type: ignore[return-value]  # click replaces it anyway


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

    @click.option(
        "--ops", default=DEFAULT_OPS, show_default=True, envvar="AETHER_OPS", show_envvar=True, metavar="HOST:PORT",
        help="The gateway's ops port.",
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
    def wrapper(ops: str, token: str | None, timeout_s: float, **kwargs: Any) -> Any:
        host, port = split_address(ops, 9090)
        return command(ops=OpsTarget(host, port, token or None, timeout_s), **kwargs)

    return wrapper  # type: ignore[return-value]  # click replaces it anyway
