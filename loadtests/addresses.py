"""Where connections come from, and how many one machine can have.

A TCP connection is known by (source address, source port, destination address, destination port).
Towards one gateway only the source varies, and Linux gives out about 28,000 source ports
(ip_local_port_range), so more connections need more source addresses. The loopback network is
127.0.0.0/8: every address of it can be bound without being configured.

The port must then be chosen at connect and not at bind: bind reserves a port for all destinations
of that address, and looks for a free one. IP_BIND_ADDRESS_NO_PORT (ip(7)) puts that off.
"""

from __future__ import annotations

import ipaddress
import resource
import socket
from collections.abc import Sequence
from pathlib import Path

PER_ADDRESS = 25_000
IP_BIND_ADDRESS_NO_PORT = 24
SPARE_DESCRIPTORS = 256
"""Files of a process that are no connections: libraries, databases, pipes."""

PATIENCE_S = 10.0
"""For a gateway that is to take one connection."""

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = int(ipaddress.IPv4Address("127.1.0.1"))
_LAST = int(ipaddress.IPv4Address("127.255.255.254"))


class TooMany(Exception):
    """This machine cannot have so many connections; the text says what to change."""


def is_loopback_v4(host: str) -> bool:
    """Whether any address of 127.0.0.0/8 can be the source towards `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def per_address() -> int:
    """Give the connections that one source address gets: PER_ADDRESS, or fewer.

    Fewer where the port range is narrow.
    """
    try:
        low, high = map(int, _RANGE.read_text().split())
    except (OSError, ValueError):
        return PER_ADDRESS
    return max(1, min(PER_ADDRESS, (high - low + 1) * 9 // 10))


def sources(host: str, users: int, given: Sequence[str] = (), each: int | None = None) -> tuple[str, ...]:
    """The source addresses for `users` connections to `host`.

    "" stands for whatever the kernel takes.

    User number n uses the one at n // each. Raises TooMany when they do not suffice.
    """
    each = each or per_address()
    blocks = -(-users // each)
    if given:
        if blocks > len(given):
            raise TooMany(
                f"{users:,} users need {blocks} source addresses ({each:,} each); --source names {len(given)}"
            )
        return tuple(given[:blocks])
    if blocks <= 1:
        return ("",)
    if not is_loopback_v4(host):
        raise TooMany(
            f"{users:,} users need {blocks} source addresses ({each:,} each): name addresses of this machine with --source"
        )
    if _FIRST + blocks - 2 > _LAST:
        raise TooMany(f"{users:,} users are more than 127.0.0.0/8 has room for")
    return ("", *(str(ipaddress.IPv4Address(_FIRST + n)) for n in range(blocks - 1)))


def is_ours(address: str) -> bool:
    """Whether connections can come from this address."""
    try:
        family, kind, proto, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True


def unreachable(host: str, port: int) -> str:
    """Why no connection can be made; empty if one can."""
    try:
        socket.create_connection((host, port), PATIENCE_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def source_of(index: int, addresses: Sequence[str], each: int) -> str:
    """The source address of user number `index`."""
    return addresses[min(index // each, len(addresses) - 1)]


def raise_descriptor_limit() -> int:
    """Allow this process and its children as many open files as it may have.

    Returns that number.

    Root may raise the hard limit as well, up to fs.nr_open; where that is forbidden the hard limit
    stays.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        wanted = max(hard, int(Path("/proc/sys/fs/nr_open").read_text()))
    except (OSError, ValueError):
        wanted = hard
    for limit in (wanted, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (OSError, ValueError):
            continue
        return limit
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def processes_for(users: int, descriptors: int, asked: int | None, *, own_gateway: bool) -> int:
    """How many worker processes the users need. Raises TooMany."""
    room = descriptors - SPARE_DESCRIPTORS
    if own_gateway and users > room:
        raise TooMany(
            f"the gateway may have {descriptors:,} files open, so at most {room:,} users; "
            "raise the hard limit (ulimit -Hn) or give --users fewer"
        )
    least = -(-users // room)
    if asked is not None and asked < least:
        raise TooMany(f"{users:,} users need {least} processes of {descriptors:,} files each; --processes says {asked}")
    return asked or least
