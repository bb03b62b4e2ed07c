"""Reads JSON of the command line."""

from __future__ import annotations

import json
import sys
from typing import Any

import click


def json_argument(given: str, option: str) -> Any:
    """Read JSON of an argument, of standard input (-) or a file (@FILE)."""
    try:
        if given == "-":
            text = sys.stdin.buffer.read().decode()
        elif given.startswith("@"):
            with click.open_file(given[1:], "rb") as file:
                text = file.read().decode()
        else:
            text = given
        return json.loads(text)
    except OSError as error:
        raise click.BadParameter(f"cannot read {given[1:]}: {error.strerror}", param_hint=option) from None
    except ValueError as error:
        raise click.BadParameter(f"it is not JSON: {error}", param_hint=option) from None
