"""API keys for the gateways of `aether serve`: made by `aether keys new`, kept as hashes in a settings file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SERVE = (sys.executable, "-m", "aether_trio", "serve")


def new_key(*arguments: str) -> tuple[str, dict[str, object]]:
    """The plaintext of a new key, and the record of it for the settings."""
    made = subprocess.run(
        [sys.executable, "-m", "aether_trio", "keys", "new", "--json", *arguments],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    answer = json.loads(made.stdout)
    return answer["key"], answer["record"]


def serve_arguments(directory: Path, records: Sequence[dict[str, object]]) -> list[str]:
    """Arguments for `aether serve`: a settings file that holds these key records."""
    settings = directory / "aether.yaml"
    settings.write_text(json.dumps({"auth": {"api_keys": list(records)}}))  # JSON is YAML
    return ["--config", str(settings)]
