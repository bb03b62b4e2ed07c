"""Explains why a gateway could not open its ports and files, and what to do."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from aether_trio.cli import exits
from aether_trio.config.settings import TRANSPORTS
from aether_trio.transport.socket.listener import bind_tcp

if TYPE_CHECKING:
    from aether_trio.config import Settings

__all__ = ["start_error"]

_OF_ROOT = 1024
"""Ports below it are the superuser's, where nothing else is arranged."""


def start_error(error: OSError, settings: Settings) -> exits.CliError:
    """Turn the OSError of a gateway's start into an error for the person."""
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        wanted = {"gateway.host": settings.gateway.host, "ops.host": settings.ops.host}
        wrong = {name: host for name, host in wanted.items() if _fails(host, 0, error.errno)} or wanted
        named, of = " or ".join(dict.fromkeys(wrong.values())), " and ".join(wrong)
        return exits.CliError(f"this machine has no address {named}; see {of}", exits.SETTINGS)
    if error.errno == errno.EADDRINUSE:
        where, options = _failing_ports(settings, errno.EADDRINUSE)
        return exits.CliError(
            f"a port is taken{where}. Stop the other program, or choose another with {options} (0 picks a free one).",
            exits.SETTINGS,
        )
    if error.errno == errno.EACCES and not error.filename:
        where, options = _failing_ports(settings, errno.EACCES)
        return exits.CliError(
            f"may not listen{where}: ports below {_OF_ROOT} are the superuser's. Choose another with {options}.",
            exits.SETTINGS,
        )
    if error.filename:
        return exits.CliError(f"{error.filename}: {error.strerror}", exits.SETTINGS)
    return exits.CliError(f"cannot run: {error}", exits.FAILED)


def _failing_ports(settings: Settings, number: int) -> tuple[str, str]:
    """Return the ports that fail with errno `number` (or all), and their options."""
    gateway, ops = settings.gateway, settings.ops
    wanted = {"--port": (gateway.host, gateway.port)}
    for transport in TRANSPORTS:
        section = getattr(settings, transport)
        if section.enabled and section.port is not None:
            wanted[f"--set {transport}.port=PORT"] = (gateway.host, section.port)
    if ops.enabled:
        wanted["--ops-port"] = (ops.host, ops.port)
    fails = {option: place for option, place in wanted.items() if _fails(*place, number)}
    places = [f"{host}:{port}" for host, port in dict.fromkeys((fails or wanted).values())]
    return f": {' and '.join(places)}" if fails else f", of {', '.join(places)}", " or ".join(fails or wanted)


def _fails(host: str, port: int, number: int | None) -> bool:
    try:
        for bound in bind_tcp(host, port):
            bound.close()
    except OSError as error:
        return error.errno == number
    return False
