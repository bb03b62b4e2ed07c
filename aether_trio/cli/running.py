"""Run a gateway as a command: signals, the ready line, the ready file.

Order: settings are checked, logging is set up, the gateway opens everything, and only then the
ready line and the ready file appear. The first SIGTERM or SIGINT drains; the second one stops at
once. A signal while the gateway is still opening stops it right away, because nothing has been
promised yet. A SIGHUP of that time counts when the gateway is open. A gateway that another process
has started (node_supervisor.py) takes the end of its standard input for a SIGTERM.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog
import trio

from aether_trio.cli import exits
from aether_trio.cli.hangups import Hangups
from aether_trio.cli.json_lines import begin_log
from aether_trio.cli.output import announce, wait_output_closed
from aether_trio.cli.ready_file import ReadyFile, prepared_ready_file
from aether_trio.cli.service_manager import ServiceManager
from aether_trio.cli.sidecar_process import Sidecar
from aether_trio.cli.start_errors import start_error
from aether_trio.config import Settings, service_variables
from aether_trio.storage.errors import StorageSetupError
from aether_trio.storage.postgres.hosts import where
from aether_trio.version import __version__

logger = structlog.get_logger("aether.cli")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_TRANSPORT_NAMES = {"grpc": "gRPC", "framed": "binary framing", "websocket": "WebSocket and HTTP"}


class RunningGateway(Protocol):
    """A running gateway, as far as the command line needs it (gateway.py's Gateway)."""

    @property
    def address(self) -> str: ...
    @property
    def addresses(self) -> Mapping[str, str]: ...
    @property
    def ops_address(self) -> str | None: ...
    @property
    def reload(self) -> Reload: ...
    async def wait_closed(self) -> None: ...
    async def drain(self) -> None: ...


class Reload(Protocol):
    """Takes over new settings while a gateway runs (gateway/reload.py)."""

    def apply(self, wanted: Settings) -> None:
        """Use new settings, all or none. Raises OSError."""


def refuse_open_gateway(settings: Settings) -> None:
    """Raise CliError when a gateway would be open, or credentials readable by others."""
    if settings.open_to_the_world:
        host, port = settings.gateway.host, settings.gateway.port
        raise exits.CliError(
            f"refusing to listen on {host}:{port} without credentials: a client that reaches this port could take any identity. Choose one:\n"
            "  keys         aether keys new --principal KIND, and put the record it prints into the file that you give with --config\n"
            "  certificates --set tls.cert=… --set tls.key=… --set tls.client_ca=CA.pem --set tls.require_client_cert=true\n"
            "  this machine --set gateway.host=127.0.0.1\n"
            "  a network without other users   --set auth.trust_network=true --set auth.allow_anonymous=true",
            exits.SETTINGS,
            lines=True,
        )
    match settings.credentials_in_plaintext:
        case "gateway.host":
            host, port = settings.gateway.host, settings.gateway.port
            what, tls = "credentials", "  TLS          --set tls.cert=chain.pem --set tls.key=key.pem\n"
        case "ops.host":
            host, port = settings.ops.host, settings.ops.port
            what, tls = "ops.tail_token", ""
        case _:
            return
    key = settings.credentials_in_plaintext
    raise exits.CliError(
        f"refusing to take {what} on {host}:{port} without TLS: others on the network could read and use them. Choose one:\n"
        f"{tls}"
        f"  this machine --set {key}=127.0.0.1\n"
        "  a proxy in front that ends TLS, in a private network --set tls.terminated_by_proxy=true",
        exits.SETTINGS,
        lines=True,
    )


def refuse_missing_files(settings: Settings) -> None:
    """Raise CliError that names a file of the settings that cannot be read."""
    files = {f"tls.{leaf}": getattr(settings.tls, leaf) for leaf in ("cert", "key", "client_ca", "client_crl")}
    files |= {f"the file of {key.id} of auth.token_hmac_keys": key.file for key in settings.auth.token_hmac_keys}
    for provider in settings.auth.jwt.providers:
        files[f"jwks_file of {provider.name} of auth.jwt.providers"] = provider.jwks_file
        files[f"jwks_ca of {provider.name} of auth.jwt.providers"] = provider.jwks_ca
    for what, name in files.items():
        if name is None:
            continue
        try:
            with Path(name).open("rb"):
                pass
        except OSError as error:
            raise exits.CliError(f"cannot read {what}, {name}: {error.strerror}", exits.SETTINGS) from None


def refuse_unusable_files(settings: Settings) -> None:
    """Raise CliError that names a file of the settings whose content cannot be used."""
    from aether_trio.gateway.reload import read_files

    try:
        read_files(settings)
    except OSError as error:
        raise exits.CliError(f"{error.filename}: {error.strerror}", exits.SETTINGS) from None


def run_gateway(
    settings: Settings,
    *,
    ready_file: str | None,
    until_stdin_ends: bool = False,
    sidecar: Sidecar | None = None,
    load: Callable[[], Settings] | None = None,
    hangups: Hangups | None = None,
) -> None:
    """Run a gateway until it has drained. Exits by CliError or SystemExit.

    `load` loads the settings anew, at each SIGHUP, and once for those that `hangups` has noted.
    Without it SIGHUP ends the process at once.
    """
    begin_log(settings.logging, node=settings.gateway.node_name)
    refuse_open_gateway(settings)
    refuse_missing_files(settings)
    if variables := service_variables(os.environ):
        logger.info("variables that Kubernetes sets for Services are no settings and are left alone", names=variables)
    from aether_trio.gateway import open_gateway

    raise_file_limit()
    ready = prepared_ready_file(ready_file)
    try:
        opener = partial(open_gateway, settings)
        stopped_by = trio.run(_run, settings, ready, opener, until_stdin_ends, sidecar, load, hangups or Hangups())
    except* OSError as group:
        raise start_error(exits.first_of(group), settings) from group
    except* StorageSetupError as group:
        raise exits.CliError(str(exits.first_of(group)), exits.SETTINGS, lines=True) from group
    finally:
        if ready is not None:
            ready.remove()
    if stopped_by is not None:
        raise SystemExit(128 + stopped_by)


async def _run(
    settings: Settings,
    ready: ReadyFile | None,
    opener: _Opener,
    until_stdin_ends: bool = False,
    sidecar: Sidecar | None = None,
    load: Callable[[], Settings] | None = None,
    hangups: Hangups | None = None,
) -> int | None:
    manager = ServiceManager({} if until_stdin_ends else os.environ)
    with trio.open_signal_receiver(*_SIGNALS, *([] if load is None else [signal.SIGHUP])) as signals:
        async with trio.open_nursery() as nursery:
            stop = _Stop(nursery.cancel_scope, manager, quiet=until_stdin_ends, load=load, hangups=hangups)
            nursery.start_soon(stop.watch, signals)
            if settings.gateway.dev and not until_stdin_ends:
                nursery.start_soon(stop.watch_output)
            if until_stdin_ends:
                nursery.start_soon(stop.watch_input)
            async with opener() as gateway:
                stop.gateway = gateway
                quieten_collector()
                if not until_stdin_ends:  # else the process that started it says so
                    announce(ready_text(settings, gateway), lines=True, fields=ready_fields(settings, gateway))
                manager.ready(f"serving on {gateway.address}")
                stop.take_over_noted()
                nursery.start_soon(manager.keep_alive)
                if ready is not None:
                    ready.write(gateway.address, gateway.ops_address or "", gateway.addresses)
                if sidecar is not None:
                    stop.sidecar = sidecar
                    nursery.start_soon(sidecar.run, gateway)
                await gateway.wait_closed()
            stop.done = True
            nursery.cancel_scope.cancel()
    return None if stop.done else stop.signal


def raise_file_limit() -> None:
    """Allow as many open files as this user may have: one for each connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def quieten_collector() -> None:
    """Make the cycle collector run less often, and skip what is loaded by now.

    With thousands of connections the defaults (every 700 allocations, a full pass each 25 % of
    growth) took a fifth of the CPU of a connect storm.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


class _Opener(Protocol):
    def __call__(self) -> AbstractAsyncContextManager[RunningGateway]: ...


class _Stop:
    """Turns a gateway process's signals into a drain, then into a stop."""

    def __init__(
        self,
        scope: trio.CancelScope,
        manager: ServiceManager,
        *,
        quiet: bool = False,
        load: Callable[[], Settings] | None = None,
        hangups: Hangups | None = None,
    ) -> None:
        self._hangups = hangups or Hangups()
        self._scope = scope
        self._manager = manager
        self._load = load
        self._quiet = quiet
        self.gateway: RunningGateway | None = None
        self.sidecar: Sidecar | None = None
        self.signal: int | None = None
        self.done = False
        self._draining = False

    async def watch_input(self) -> None:
        """Drain when the process that started this one closes its standard input."""
        while True:
            await trio.lowlevel.wait_readable(0)
            if not os.read(0, 4096):
                break
        os.kill(os.getpid(), signal.SIGTERM)

    async def watch_output(self) -> None:
        """Drain a development gateway whose output is closed."""
        await wait_output_closed()
        if self.gateway is None:
            self._scope.cancel()
        else:
            await self._drain(self.gateway)

    async def watch(self, signals: AsyncIterator[int]) -> None:
        async with trio.open_nursery() as nursery:
            async for number in signals:
                name = signal.Signals(number).name
                if number == signal.SIGHUP:
                    self._reload()
                    continue
                if self.gateway is None or self.signal is not None:
                    self._say(f"{name}: stopping at once")
                    self.signal = number
                    if self.sidecar is not None:
                        self.sidecar.kill()
                    self._scope.cancel()
                    return
                self.signal = number
                self._say(f"{name}: draining; clients are asked to reconnect elsewhere. Again to stop at once.")
                nursery.start_soon(self._drain, self.gateway)

    def take_over_noted(self) -> None:
        """Read the settings once more if a SIGHUP came while the gateway opened."""
        if self._hangups.came:
            self._hangups.came = False
            self._reload()

    def _reload(self) -> None:
        """Take over the settings of TLS and credentials, all or none; log what is wrong."""
        if self._load is None:
            return
        if self.gateway is None:
            self._hangups.came = True  # some files were read before
            return
        self._manager.reloading()
        try:
            settings = self._load()
            refuse_open_gateway(settings)
            refuse_missing_files(settings)
            self.gateway.reload.apply(settings)
        except exits.CliError as error:
            logger.error("the settings stay as they were: the new ones cannot be used", reason=error.message)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            logger.error(
                "the settings stay as they were: the new ones cannot be used", reason=f"{where}{error.strerror}"
            )
        finally:
            self._manager.ready(f"serving on {self.gateway.address}")

    async def _drain(self, gateway: RunningGateway) -> None:
        if self._draining:
            return
        self._draining = True
        self._manager.stopping()
        if self.sidecar is not None:
            await self.sidecar.end()
        await gateway.drain()

    def _say(self, text: str) -> None:
        if not self._quiet:
            announce(text, err=True)


def ready_text(settings: Settings, gateway: RunningGateway) -> str:
    """Return the ready line of a gateway: addresses, data, and commands to try."""
    tls = " with TLS" if settings.tls.cert else ""
    lines = [
        f"aether {__version__} is serving on {gateway.address}{tls} ({manner_text(settings)})",
        f"  transports {_transports_text(gateway)}",
        f"  data  {data_text(settings)}",
    ]
    if settings.websocket.page and "websocket" in gateway.addresses:
        lines.append(f"  page  http{'s' if settings.tls.cert else ''}://{gateway.addresses['websocket']}/")
    if gateway.ops_address:
        lines.append(f"  ops   http://{gateway.ops_address}  /healthz /readyz /metrics")
    if settings.gateway.dev:
        lines += try_lines(gateway.addresses.get("grpc"), gateway.ops_address, tls=bool(settings.tls.cert))
    lines.append("  stop  Ctrl-C drains; a second one stops at once")
    return "\n".join(lines)


def ready_fields(settings: Settings, gateway: RunningGateway) -> dict[str, object]:
    """Return what the ready line says as the fields of a line of the log."""
    return {
        "version": __version__,
        "address": gateway.address,
        "transports": dict(gateway.addresses),
        "ops": gateway.ops_address,
        "data": data_text(settings),
        "pid": os.getpid(),
    }


def data_text(settings: Settings) -> str:
    """Return the place of a gateway's data, for the ready line."""
    if settings.storage.database:
        return f"the PostgreSQL database {where(settings.storage.database)}, schema {settings.storage.schema}"
    return (
        "a temporary directory, until the end"
        if settings.gateway.ephemeral
        else str(Path(settings.gateway.data_dir).absolute())
    )


def manner_text(settings: Settings) -> str:
    """Return which clients may connect, for the ready line."""
    if settings.gateway.dev:
        return "development: this machine only, no credentials, no rates"
    if settings.refuses_every_client:
        return "no client can connect: no API key and no client authority is set"
    return "credentials required" if not settings.auth.allow_anonymous else "no credentials asked"


def try_lines(grpc: str | None, ops_address: str | None, *, tls: bool = False, indent: int = 6) -> list[str]:
    """Return lines with commands to try, for the addresses of gRPC and ops port."""
    where = "" if grpc == "127.0.0.1:50051" else f" --gateway {grpc}"
    if tls:
        where += " --tls-ca CA.pem"
    ops = "" if ops_address == "127.0.0.1:9090" else f" --ops {ops_address}"
    said = []
    if ops_address:
        said.append(("try", f"aether tail ag::default::echo::1{ops}"))
    if grpc is not None:
        said += [("", f'aether send ag::default::echo::1 "hello"{where}'), ("", f"aether sessions{where}")]
    if grpc is not None and not tls:  # with TLS it takes more than a line
        said.append(("SDK", f'AgentClient("default", "echo", "1").connect("{grpc}")'))
    return [f"  {label:<{indent}}{text}" for label, text in said]


def _transports_text(gateway: RunningGateway) -> str:
    """List the transports, with their addresses if these are not the gateway's."""
    by_address: dict[str, list[str]] = {}
    for transport, address in gateway.addresses.items():
        by_address.setdefault(address, []).append(_TRANSPORT_NAMES.get(transport, transport))
    return "; ".join(
        ", ".join(names) + ("" if address == gateway.address else f" on {address}")
        for address, names in by_address.items()
    )
