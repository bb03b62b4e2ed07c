"""Regular expressions for the tests: those of Python stand for google-re2."""

from __future__ import annotations

import re
from collections.abc import Callable


def search_for(pattern: str) -> Callable[[str], bool]:
    """Return the search for a pattern; raise ValueError for a bad one."""
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return lambda text: compiled.search(text) is not None
