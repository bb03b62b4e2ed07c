"""Make API keys with `aether keys new`, and settings with their hashes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.forked import run

SERVE = (sys.executable, "-m", "aether_trio", "serve")


def new_key(*arguments: str) -> tuple[str, dict[str, object]]:
    """Make a key for all kinds of participants: its plaintext and its record."""
    made = run(
        [sys.executable, "-m", "aether_trio", "keys", "new", "--json", "--principal", "*", *arguments],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    answer = json.loads(made.stdout)
    return answer["key"], answer["record"]


def serve_arguments(directory: Path, records: Sequence[dict[str, object]]) -> list[str]:
    """Give arguments for `aether serve` on loopback with these key records."""
    settings = directory / "aether.yaml"
    document = {"gateway": {"host": "127.0.0.1"}, "auth": {"api_keys": list(records)}}
    settings.write_text(json.dumps(document))  # JSON is YAML
    return ["--config", str(settings)]
