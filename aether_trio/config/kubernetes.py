"""Recognizes the variables that Kubernetes sets for each Service of a namespace.

For a Service named `aether` a pod finds AETHER_SERVICE_HOST, AETHER_PORT=tcp://10.0.0.1:50051,
AETHER_PORT_50051_TCP_ADDR and more in its environment; for `aether-ops` AETHER_OPS_PORT and so on.
They are no settings, whatever their names look like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

PREFIX: Final = "AETHER_"

_NAMES: Final = re.compile(
    r"AETHER_(?:[A-Z0-9_]+_)?"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_ADDRESS_NAMES: Final = re.compile(r"AETHER_(?:[A-Z0-9_]+_)?PORT")
"""Names that a setting may have as well; their values tell."""
_ADDRESS: Final = re.compile(r"(?:tcp|udp|sctp)://(?:\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-fA-F:.]+\]):\d{1,5}")


def is_of_a_service(name: str, value: str) -> bool:
    """Say whether Kubernetes has set a variable to tell of a Service."""
    if _NAMES.fullmatch(name):
        return True
    return _ADDRESS_NAMES.fullmatch(name) is not None and _ADDRESS.fullmatch(value) is not None


def service_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the names of all variables of Services that look like the gateway's."""
    return sorted(name for name, value in environ.items() if name.startswith(PREFIX) and is_of_a_service(name, value))
