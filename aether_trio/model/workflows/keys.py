"""The text of a key that an expression gave.

Keys of joins, of instances of machines and of flow control are compared and stored as texts. A text
is itself, a number is written in digits (1000000, where the reference's Go has 1e+06: an id that a
client sends as a text is the same key), a list or map is its compact JSON with sorted keys, so that
`[input.a, input.b]` is a key of two parts.
"""

from __future__ import annotations

import json
from typing import Final

from aether_trio.model.text import TextError, check_text, shown
from aether_trio.model.workflows.definition import Json
from aether_trio.model.workflows.values import json_value

MAX_KEY_BYTES: Final = 1024
_SIZED: Final = "::"


def key_text(value: Json, what: str) -> str:
    """Return the text of a key; raise TextError, which says why `what` is none.

    It has at most MAX_KEY_BYTES in UTF-8 and no control characters. A null, an empty text, and a
    number that JSON does not have are no keys.
    """
    if value is None or value == "":
        raise TextError(f"{what} is {'null' if value is None else 'empty'}: is a field missing in the event?")
    text = value
    if not isinstance(value, str):
        try:
            text = json.dumps(json_value(value), ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        except ValueError:
            raise TextError(f"{what} is {shown(value)}, which is not JSON") from None
    return check_text(text, what, MAX_KEY_BYTES)


def place_key(workspace: str, name: str) -> str:
    """Return a workspace and a name as one text, of which `place_of` makes them again.

    A workspace may have spaces where identifiers are not strict; then its length is before it. No
    workspace has "::".
    """
    return f"{_SIZED}{len(workspace)} {workspace}{name}" if " " in workspace else f"{workspace} {name}"


def place_of(key: str) -> tuple[str, str]:
    """Return the workspace and the name of a `place_key`. Raises ValueError."""
    workspace, space, name = key.partition(" ")
    if not space:
        raise ValueError("the key of a place has a space")
    if not workspace.startswith(_SIZED):
        return workspace, name
    digits = workspace.removeprefix(_SIZED)
    if not (digits.isascii() and digits.isdigit() and len(digits) < 6):
        raise ValueError("the key of a place has no length")
    return name[: int(digits)], name[int(digits) :]


def flow_key(value: Json, what: str) -> str:
    """Return the text of a key of flow control: "" for null, as without a key."""
    return "" if value is None or value == "" else key_text(value, what)
