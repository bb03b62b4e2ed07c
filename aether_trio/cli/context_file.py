"""Reads and writes saved contexts: gateways by name, and how to connect to them.

The file is `contexts.yaml` in `$XDG_CONFIG_HOME/aether`, or in `~/.config/aether`. Its mode is
0600, as it may hold API keys. It is replaced as a whole, by a rename, under a lock: two commands at
a time lose nothing of each other, and a command that is killed leaves the old file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from aether_trio.cli import exits

T = TypeVar("T")

FILE: Final = "contexts.yaml"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_BYTES: Final = 1024 * 1024
_MAX_KEY_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class SavedContext:
    """How to connect to one gateway; "" for what the context does not say."""

    gateway: str = ""
    ops: str = ""
    workspace: str = ""
    api_key: str = field(default="", repr=False)
    api_key_file: str = ""
    """A file with the API key, read by each command."""
    api_key_env: str = ""
    """The environment variable with the API key."""
    tls: bool | None = None
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""

    def credential(self) -> str:
        """Return the API key, "" if the context names none. Raises CliError."""
        if self.api_key_file:
            try:
                with Path(self.api_key_file).open(encoding="utf-8") as file:
                    return file.read(_MAX_KEY_BYTES).strip()
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "is not text"
                raise exits.CliError(
                    f"the context's file with the API key, {self.api_key_file}: {why}", exits.SETTINGS
                ) from None
        if self.api_key_env:
            key = os.environ.get(self.api_key_env, "")
            if not key:
                raise exits.CliError(
                    f"the context takes the API key from the variable {self.api_key_env}, which is not set",
                    exits.SETTINGS,
                )
            return key
        return self.api_key

    @property
    def credential_text(self) -> str:
        """Say where the credential is, without it."""
        if self.api_key_file:
            return f"an API key in {self.api_key_file}"
        if self.api_key_env:
            return f"an API key in the variable {self.api_key_env}"
        return "a saved API key" if self.api_key else ""


@dataclass(frozen=True, slots=True)
class SavedContexts:
    """All saved contexts by name, and the name of the one in use, "" for none."""

    contexts: Mapping[str, SavedContext] = field(default_factory=dict)
    current: str = ""

    def named(self, name: str) -> SavedContext:
        """Return a context. Raises CliError, with the names that there are."""
        found = self.contexts.get(name)
        if found is None:
            known = f"; there are {', '.join(sorted(self.contexts))}" if self.contexts else ""
            raise exits.CliError(
                f"there is no context {name!r}{known}; `aether context save` makes one", exits.SETTINGS
            )
        return found


def check_name(name: str) -> str:
    """Return a context's name. Raises CliError for one that cannot be."""
    if not _NAME.fullmatch(name):
        raise exits.CliError(
            f"{name!r} is no name of a context: letters, digits, '.', '_' and '-', at most 64", exits.USAGE
        )
    return name


def context_file() -> Path | None:
    """Return the path of the file, None where no directory for it is known."""
    base = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    if not base.is_absolute():  # also unset or empty, as the specification says
        try:
            base = Path(os.environ.get("HOME") or Path.home(), ".config")
        except RuntimeError:  # neither a variable nor an account
            return None
    return base / "aether" / FILE if base.is_absolute() else None


def load_contexts() -> SavedContexts:
    """Return the saved contexts, none without a file. Raises CliError."""
    path = context_file()
    if path is None:
        return SavedContexts()
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return SavedContexts()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not text"
        raise exits.CliError(f"{path}: {why}", exits.SETTINGS) from None
    if len(text) > _MAX_BYTES:
        raise _broken(path, "it has more than a million characters")
    return _parsed(path, text)


def change_contexts(change: Callable[[SavedContexts], SavedContexts]) -> SavedContexts:
    """Replace the file by what `change` makes of it. Raises CliError."""
    path = context_file()
    if path is None:
        raise exits.CliError("there is no directory for contexts: set HOME or XDG_CONFIG_HOME", exits.SETTINGS)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.parent):
            changed = change(load_contexts())
            _write(path.resolve(), changed)  # a link to a file elsewhere stays one
    except OSError as error:
        raise exits.CliError(f"{error.filename or path}: {error.strerror}", exits.SETTINGS) from None
    return changed


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, contexts: SavedContexts) -> None:
    document = {
        "current": contexts.current,
        "contexts": {
            name: {key: value for key, value in asdict(one).items() if value not in ("", None)}
            for name, one in sorted(contexts.contexts.items())
        },
    }
    # mkstemp makes files of mode 0600, whatever the umask.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{FILE}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("# Written by `aether context`.\n")
            yaml.safe_dump(document, file, sort_keys=False, allow_unicode=False)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _parsed(path: Path, text: str) -> SavedContexts:
    try:
        document = yaml.safe_load(text)
    # ValueError for a date that is none, RecursionError for brackets in brackets.
    except (yaml.YAMLError, ValueError, RecursionError):
        raise exits.CliError(f"{path} is no YAML; correct it, or delete it", exits.SETTINGS) from None
    if document is None:
        return SavedContexts()
    if not isinstance(document, dict) or not isinstance(found := document.get("contexts") or {}, dict):
        raise _broken(path, "it has no map `contexts`")
    contexts = {str(name): _context(path, str(name), values) for name, values in found.items()}
    current = document.get("current") or ""
    if not isinstance(current, str):
        raise _broken(path, "`current` is no name")
    return SavedContexts(contexts, current)


def _context(path: Path, name: str, values: Any) -> SavedContext:
    known = {one.name for one in fields(SavedContext)}
    if not isinstance(values, dict):
        raise _broken(path, f"the context {name!r} is no map")
    for key, value in values.items():
        if key not in known:
            raise _broken(path, f"the context {name!r} has the unknown key {key!r}")
        if not isinstance(value, bool if key == "tls" else str):
            raise _broken(path, f"{key} of the context {name!r} is no {'true or false' if key == 'tls' else 'text'}")
    return SavedContext(**values)


def _broken(path: Path, why: str) -> exits.CliError:
    return exits.CliError(f"{path}: {why}", exits.SETTINGS)
