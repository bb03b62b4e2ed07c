"""Reading tests/wire/vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from aether_trio.wire import framing

VECTORS = Path(__file__).parents[1] / "vectors"


def load(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


def as_data(event: framing.Event) -> dict[str, Any]:
    """An event as the vectors say it: its type, and bytes in hex."""
    fields = msgspec.structs.asdict(event)
    return {"type": type(event).__name__} | {
        name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()
    }
