"""Decides which web pages may open a WebSocket (RFC 6455 section 10.2).

Browsers say in Origin whose page it is; requests without Origin are not a page's. Allowed are the
configured origins and the gateway's own pages: Origin and Host name the same host. As an attacker's
name may point at this machine (DNS rebinding), over plain HTTP on a loopback address the host must
be "localhost" or an address; another name there (a reverse proxy's) is to be listed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

ANY: Final = "*"
_ANY_PORT: Final = ":*"
_ORIGIN: Final = re.compile(
    r"(?P<scheme>https?)://(?P<authority>(?P<name>\[[0-9a-f:.]+\]|[^\s/?#@:\[\]]+)(:[0-9]{1,5})?)"
).fullmatch
"""A page's (RFC 6454 section 7): scheme, host and port, and nothing else."""


class OriginPolicy:
    """Allows WebSockets by Origin; `allowed`: origins, ":*" for any port, "*" for all."""

    def __init__(self, allowed: Iterable[str]) -> None:
        entries = {entry.strip().rstrip("/").lower() for entry in allowed}
        self._any = ANY in entries
        self._ports = frozenset(entry.removesuffix(_ANY_PORT) for entry in entries if entry.endswith(_ANY_PORT))
        self._exact = frozenset(entries)

    def allows(self, origin: str | None, host: str, *, secure: bool, loopback: bool) -> bool:
        """Return whether a page of `origin` may connect to `host`; `secure`: over TLS."""
        if origin is None or self._any:
            return True
        origin = origin.lower()
        if origin in self._exact:
            return True
        parts = _ORIGIN(origin)
        if parts is None:
            return False
        scheme, authority, name = parts.group("scheme", "authority", "name")
        if f"{scheme}://{name}" in self._ports:
            return True
        if authority != host.lower():
            return False
        if secure:
            return bool(scheme == "https")
        return not loopback or _is_local(name)


def _is_local(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):  # browsers answer these themselves
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
