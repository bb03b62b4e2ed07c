"""Reads files of workflow documents for `apply`, `validate` and `aether dev`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aether_trio.cli import exits
from aether_trio.cli.output import say

SUFFIXES: Final = (".yaml", ".yml", ".json")
STDIN: Final = "-"


@dataclass(frozen=True, slots=True)
class WorkflowFiles:
    """What files have: JSON documents to apply, errors and warnings with positions."""

    documents: tuple[dict[str, Any], ...]
    labels: tuple[str, ...]
    """What each document is, as "workflow report"."""
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def marked_warnings(self) -> tuple[str, ...]:
        """The warnings with that word behind their positions."""
        return tuple(one.replace(": ", ": warning: ", 1) for one in self.warnings)

    def checked(self, what: str) -> WorkflowFiles:
        """Print warnings and errors, and return this. Raises CliError for errors."""
        for warning in self.marked_warnings:
            say(warning, err=True)
        if self.errors:
            for error in self.errors:
                say(error, err=True)
            count = "1 error" if len(self.errors) == 1 else f"{len(self.errors)} errors"
            raise exits.CliError(f"{count}; {what}")
        return self


def files_of(paths: Iterable[str]) -> list[Path | None]:
    """Return the files that are meant, those in directories; None for -.

    Directories are searched for YAML and JSON, but for names that begin with a dot. Raises CliError
    for what is not there.
    """
    found: list[Path | None] = []
    for given in paths:
        path = Path(given)
        if given == STDIN:
            found.append(None)
        elif path.is_dir():
            inside = sorted(workflow_files_in(path))
            if not inside:
                raise exits.CliError(f"{path} has no file that ends with {', '.join(SUFFIXES)}", exits.USAGE)
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise exits.CliError(f"there is no file or directory {path}", exits.USAGE)
    return list(dict.fromkeys(found))


def workflow_files_in(directory: Path) -> Iterator[Path]:
    """Yield the YAML and JSON files of a directory, but hidden ones, in any order."""
    for path in directory.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if path.suffix in SUFFIXES and not hidden and path.is_file():
            yield path


def read_workflow_files(files: Sequence[Path | None], workspace: str = "") -> WorkflowFiles:
    """Read and check files; `workspace` is that of documents that name none.

    Raises CliError for a file that cannot be read.
    """
    from aether_trio.services.workflows.documents.reader import document_of, identity_of, read_files

    decoded, errors = decoded_files(files)
    found = read_files(decoded, workspace=workspace)
    identities = [identity_of(one) for one in found.definitions]
    return WorkflowFiles(
        tuple(map(document_of, found.definitions)),
        tuple(f"{kind} {name}" for kind, _, name in identities),
        (*errors, *found.errors),
        found.warnings,
    )


def decoded_files(files: Sequence[Path | None]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the names and texts of files, and an error for each that is not UTF-8.

    Raises CliError for a file that cannot be read.
    """
    decoded: list[tuple[str, str]] = []
    errors: list[str] = []
    for file in files:
        name = "standard input" if file is None else str(file)
        data = sys.stdin.buffer.read() if file is None else _read(file)
        try:
            decoded.append((name, data.decode("utf-8-sig")))
        except UnicodeDecodeError as error:
            errors.append(f"{name}: byte {error.start + 1} is not UTF-8: save the file as UTF-8")
    return decoded, errors


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise exits.CliError(f"cannot read {path}: {error.strerror}") from None
