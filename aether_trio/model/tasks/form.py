"""The question to a person that a task may wait for, and which inputs answer it.

A wait for input has it as `input_match["_form"]`, a JSON object: `question`, optional `choices`,
and optional `text` (true, or the label of a text field). An answer is an input whose metadata has
`decision`, APPROVE or REJECT, and may have `choice` and `text`. It names the question by the pair
`question_id`, so that an answer that comes late is none to the task's next question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from aether_trio.model.limits import KIB
from aether_trio.model.tasks.result import is_too_deep
from aether_trio.model.text import is_encodable

FORM: Final = "_form"
"""The name in `input_match`. Names that begin with _ take no part in matching."""
MAX_FORM_BYTES: Final = 16 * KIB
APPROVE: Final = "approve"
REJECT: Final = "reject"
DECISION: Final = "decision"
CHOICE: Final = "choice"
TEXT: Final = "text"
QUESTION_ID: Final = "question_id"
"""The pair of `input_match` that names a question; the gateway makes it if the worker does not."""
_MADE: Final = "_"
"""What the ids that the gateway makes begin with, and no other ones."""


class FormError(ValueError):
    """A wait's form, or one of its reserved names, is not as docs/wire.md says."""


class Form(NamedTuple):
    """A question to a person; `text`: True, or the label of a field for free text."""

    question: str
    choices: Sequence[str] = ()
    text: bool | str = False

    def is_answer(self, metadata: Mapping[str, str]) -> bool:
        """Return whether an input with this metadata answers the question."""
        if metadata.get(DECISION) not in (APPROVE, REJECT):
            return False
        choice = metadata.get(CHOICE, "")
        return not choice or choice in self.choices


def form_of(match: Mapping[str, str]) -> Form | None:
    """Return the form of a wait's `input_match`; None without one. Raises FormError."""
    text = match.get(FORM)
    return None if text is None else _read(text)


def question_id(number: int, key: str) -> str:
    """Make the id of a question: of the task's event number, and a key of the request."""
    return f"{_MADE}{number}-{key[:12]}"


def asked_by_gateway(metadata: Mapping[str, str]) -> str:
    """Return which question an input answers, if the gateway has named it; else ""."""
    named = metadata.get(QUESTION_ID, "")
    return named if named.startswith(_MADE) else ""


def check_match(match: Mapping[str, str]) -> None:
    """Check the reserved names in an `input_match`. Raises FormError."""
    own = match.get(QUESTION_ID)
    if own is not None and (not own or own.startswith(_MADE)):
        raise FormError(f"{QUESTION_ID} {own[:64]!r} of input_match is empty or begins with _, as the gateway's do")
    for name in match:
        if name.startswith("_") and name != FORM:
            raise FormError(f"input_match has {name[:64]!r}: of the names that begin with _ only {FORM} is known")
    form_of(match)


@lru_cache(maxsize=64)
def _read(text: str) -> Form:
    """Read a form, which takes up to 0.7 ms: a wait asks for it with each input."""
    size = len(text.encode())
    if size > MAX_FORM_BYTES:
        raise FormError(f"{FORM} has {size} bytes; at most {MAX_FORM_BYTES} are allowed")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise FormError(f"{FORM} is not JSON text") from None
    if not isinstance(found, dict) or is_too_deep(found):
        raise FormError(f"{FORM} is not a JSON object, or is nested too deep")
    question, choices, free = found.get("question"), found.get("choices", []), found.get("text", False)
    if not isinstance(question, str) or not _is_text(question):
        raise FormError(f"{FORM} has no question: it is a text that is not empty")
    if not isinstance(choices, list) or not all(map(_is_text, choices)) or len(set(choices)) < len(choices):
        raise FormError(f"choices of {FORM} are a list of different texts that are not empty")
    if not isinstance(free, bool) and not _is_text(free):
        raise FormError(f"text of {FORM} is true, false or a label")
    return Form(question, tuple(choices), free)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value and is_encodable(value)
