"""Regular expressions in linear time: RE2, whose syntax is that of Go's regexp."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

import re2

MAX_PATTERN: Final = 1_000
"""Characters of a pattern."""
MAX_PROGRAM_BYTES: Final = 1 << 20
"""The memory of one compiled pattern; RE2 refuses what needs more."""


class RegexError(ValueError):
    """A pattern is no regular expression of RE2, or is too large."""


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False  # else they are written to stderr
    options.max_mem = MAX_PROGRAM_BYTES
    options.never_capture = True
    return options


_OPTIONS: Final = _options()


@functools.lru_cache(maxsize=256)
def compile_regex(pattern: str) -> Callable[[str], bool]:
    """Return the search for a pattern, as RegexCompiler of expressions has it.

    Raises RegexError, which says what is wrong with the pattern.
    """
    if len(pattern) > MAX_PATTERN:
        raise RegexError(f"the pattern has {len(pattern)} characters; at most {MAX_PATTERN} are allowed")
    try:
        compiled = re2.compile(pattern, _OPTIONS)
    except re2.error as exc:
        message = exc.args[0] if exc.args else "it is malformed"
        raise RegexError(message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)) from None
    except (UnicodeEncodeError, OverflowError) as exc:
        raise RegexError(f"the pattern is no text: {exc}") from None

    def search(text: str) -> bool:
        try:
            return compiled.search(text) is not None
        except UnicodeEncodeError:  # a lone surrogate
            return compiled.search(text.encode("utf-8", "replace").decode()) is not None

    return search
