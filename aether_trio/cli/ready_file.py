"""The ready file: tells a script that a gateway serves, and where.

Invariants: a program that sees the file sees all of it. While the file is there its gateway serves,
or has been killed; then the next start removes it before it opens anything. A gateway that did not
write the file leaves it alone, so a second one on the same data directory, which must fail, does
not remove the first one's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from aether_trio.cli import exits


class Node(Protocol):
    """Protocol: the process id and the addresses of a running gateway."""

    @property
    def pid(self) -> int: ...
    @property
    def gateway(self) -> str: ...
    @property
    def ops(self) -> str: ...
    @property
    def transports(self) -> Mapping[str, str]: ...


class ReadyFile:
    """Writes the ready file: `prepare` at first, `write` once all is served."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._scratch = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        self._written = False

    def prepare(self) -> None:
        """Remove a killed gateway's ready file. Raises CliError if it is not writable."""
        try:
            self._scratch.touch()
            self._scratch.unlink()
            if self._path.exists() and not self._writer_lives():
                self._path.unlink(missing_ok=True)
        except OSError as error:
            raise exits.CliError(
                f"cannot write the ready file {self._path}: {error.strerror}", exits.SETTINGS
            ) from None

    def write(self, gateway: str, ops: str, transports: Mapping[str, str], nodes: Sequence[Node] = ()) -> None:
        """Write the ready file, in one step.

        Addresses are HOST:PORT, `ops` may be empty; `transports` has one for each transport.
        `nodes` are the processes that a command has started (node_supervisor.py).
        """
        body: dict[str, Any] = {"pid": os.getpid(), "gateway": gateway, "ops": ops, "transports": dict(transports)}
        if nodes:
            body["nodes"] = [
                {"pid": node.pid, "gateway": node.gateway, "ops": node.ops, "transports": dict(node.transports)}
                for node in nodes
            ]
        self._scratch.write_text(json.dumps(body) + "\n")
        self._scratch.replace(self._path)
        self._written = True

    def remove(self) -> None:
        """Remove the ready file, if this process has written it."""
        if self._written and self._pid() == os.getpid():
            self._path.unlink(missing_ok=True)

    def _pid(self) -> int | None:
        try:
            return int(json.loads(self._path.read_text())["pid"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _writer_lives(self) -> bool:
        pid = self._pid()
        if pid is None or pid <= 0 or pid == os.getpid():
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # of another user, but alive
        return True


def prepared_ready_file(path: str | None) -> ReadyFile | None:
    """Prepare the ready file at this path, if there is one. Raises CliError."""
    ready = ReadyFile(path) if path else None
    if ready is not None:
        ready.prepare()
    return ready
