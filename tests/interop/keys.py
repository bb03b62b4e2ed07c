"""API keys for the gateways of `aether serve`: made by `aether keys new`, kept as hashes in a
settings file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SERVE = (sys.executable, "-m", "aether_trio", "serve")


def new_key(*arguments: str) -> tuple[str, dict[str, object]]:
    """The plaintext of a new key for all kinds of participants, and the record of it for the
    settings.
    """
    made = subprocess.run(
        [sys.executable, "-m", "aether_trio", "keys", "new", "--json", "--principal", "*", *arguments],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    answer = json.loads(made.stdout)
    return answer["key"], answer["record"]


def serve_arguments(directory: Path, records: Sequence[dict[str, object]]) -> list[str]:
    """Arguments for `aether serve` on loopback: a settings file that holds these key records."""
    settings = directory / "aether.yaml"
    document = {"gateway": {"host": "127.0.0.1"}, "auth": {"api_keys": list(records)}}
    settings.write_text(json.dumps(document))  # JSON is YAML
    return ["--config", str(settings)]
