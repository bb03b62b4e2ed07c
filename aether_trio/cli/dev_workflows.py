"""`aether dev --workflows`: applies the workflows of a directory, again on change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeAlias

import trio

from aether_trio.cli import exits
from aether_trio.cli.connect import is_refusal
from aether_trio.cli.identities import made_up
from aether_trio.cli.output import announce
from aether_trio.cli.sidecar_process import Served, Sidecar
from aether_trio.cli.workflows.files import SUFFIXES, WorkflowFiles, read_workflow_files, workflow_files_in
from aether_trio.cli.workflows.texts import applied_name
from aether_trio.client import AetherError, UserClient
from aether_trio.config import Settings
from aether_trio.model.identity import Kind

LOOK_S: Final = 1.0
"""Between two looks at the files."""
WORKSPACE: Final = "default"
"""Where documents are applied that name no workspace."""

_Seen: TypeAlias = tuple[tuple[str, int, int], ...]


def workflows_sidecar(directory: str, settings: Settings) -> Sidecar:
    """Make the Sidecar that applies a directory's workflows. Raises CliError."""
    path = Path(directory)
    if not path.is_dir():
        raise exits.CliError(f"--workflows: there is no directory {path}", exits.SETTINGS)
    if settings.tls.cert:
        raise exits.CliError(
            "--workflows cannot be used with TLS; run `aether workflows apply` beside `aether dev` instead",
            exits.SETTINGS,
        )
    if not (settings.framed.enabled or settings.websocket.enabled):
        raise exits.CliError("--workflows needs framed.enabled or websocket.enabled", exits.SETTINGS)
    return Sidecar(WorkflowsDirectory(path).run)


class WorkflowsDirectory:
    """Applies the files of a directory whenever they have changed, all or none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._applied: _Seen | None = None
        self._was_wrong = False

    async def run(self, gateway: Served) -> None:
        """Look at the directory until cancelled. What is wrong is said, and not applied."""
        transports = gateway.addresses
        address = f"aether://{transports['framed']}" if "framed" in transports else f"ws://{transports['websocket']}"
        who = made_up(Kind.USER)
        try:
            async with UserClient(address, user_id=who.user_id, window_id=who.window_id) as client:
                while True:
                    files, seen = await trio.to_thread.run_sync(self._look)
                    if seen != self._applied:
                        self._applied = seen
                        await self._apply(client, files)
                    await trio.sleep(LOOK_S)
        except AetherError as error:
            announce(f"workflows are not applied any more: {error.message}", err=True)

    def _look(self) -> tuple[list[Path], _Seen]:
        files = sorted(workflow_files_in(self._path))
        seen = []
        for file in files:
            try:
                found = file.stat()
            except OSError:
                continue
            seen.append((str(file), found.st_mtime_ns, found.st_size))
        return files, tuple(seen)

    async def _apply(self, client: UserClient, files: Sequence[Path]) -> None:
        if not files:
            announce(f"  workflows: {self._path} has no file that ends with {', '.join(SUFFIXES)} yet")
            return
        try:
            found: WorkflowFiles = await trio.to_thread.run_sync(read_workflow_files, files, WORKSPACE)
        except exits.CliError as error:
            announce(f"{error.message}; {_OLD}", err=True)
            return
        for warning in found.marked_warnings:
            announce(warning, err=True, level="warning")
        if found.errors:
            for text in found.errors:
                announce(text, err=True, level="error")
            self._was_wrong = True
            announce(f"{len(found.errors)} errors in {self._path}; {_OLD}".replace("1 errors", "1 error"), err=True)
            return
        try:
            applied = await client.workflow.apply(found.documents, workspace=WORKSPACE)
        except AetherError as error:
            if not is_refusal(error):
                raise
            self._was_wrong = True
            announce(f"{error.message}\n{_OLD}", err=True, lines=True, level="error")
            return
        if self._was_wrong:
            self._was_wrong = False
            announce(f"  workflows: all files of {self._path} are applied again")
        for text in applied.warnings:
            announce(f"warning: {text}", err=True, level="warning")
        for one in applied.applied:
            if one.change != "unchanged":
                announce(f"  {applied_name(one)} is {one.change} in {one.workspace}")


_OLD: Final = "nothing was applied, and what was applied before stays"
