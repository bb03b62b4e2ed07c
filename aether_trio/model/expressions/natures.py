"""What is known of a value's type before an expression runs.

Variables are unknown: they may have any type. Literals, operators and builtins make known ones, so
that `1 + "a"` fails when it is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


def with_article(kind: str) -> str:
    """Return a type as errors name it: nil, an int, a string, something unknown."""
    if kind in ("nil", "unknown"):
        return "nil" if kind == "nil" else "something unknown"
    return f"an {kind}" if kind[0] in "aiu" else f"a {kind}"


@dataclass(slots=True, frozen=True)
class Nature:
    """A type: its kind, that of its elements, its identity among those of a kind."""

    kind: str
    element: Nature | None = None
    identity: str = ""

    def __str__(self) -> str:
        return with_article(self.kind)

    @property
    def unknown(self) -> bool:
        return self.kind == "unknown"

    @property
    def nil(self) -> bool:
        return self.kind == "nil"

    @property
    def number(self) -> bool:
        return self.kind in ("int", "float")

    def of_elements(self) -> Nature:
        """Return the nature of an element of a list or map."""
        return UNKNOWN if self.unknown else self.element or ANY

    def is_any(self, *kinds: str) -> bool:
        """Return whether this is known and of some kind."""
        return self.kind in kinds or ("number" in kinds and self.number)

    def assignable_to(self, other: Nature) -> bool:
        """Return whether a value of this nature may be used where the other is declared."""
        if self.nil:
            return other.kind in ("array", "map", "location", "func") or other == ANY
        if self.unknown or other.unknown:
            return other == ANY and self != UNKNOWN
        return self.kind == other.kind and self.identity == other.identity

    def comparable_to(self, other: Nature) -> bool:
        """Return whether == may compare two natures."""
        return (
            self.unknown
            or other.unknown
            or self.nil
            or other.nil
            or (self.number and other.number)
            or (self.kind == other.kind and self.kind in ("array", "duration", "time"))
            or self.assignable_to(other)
        )

    def perhaps(self, other: Nature, *kinds: str) -> bool:
        """Return whether one of two is unknown and the other unknown or of some kind."""
        if self.unknown:
            return other.unknown or other.is_any(*kinds)
        return other.unknown and self.is_any(*kinds)


UNKNOWN: Final = Nature("unknown")
ANY: Final = Nature("unknown", None, "any")
"""An element of a list or map of anything: unknown too, but every known nature is one."""
NIL: Final = Nature("nil")
BOOL: Final = Nature("bool")
INT: Final = Nature("int")
FLOAT: Final = Nature("float")
STRING: Final = Nature("string")
LIST: Final = Nature("array")
STRINGS: Final = Nature("array", STRING, "strings")
MAP: Final = Nature("map", ANY)
ANY_MAP: Final = Nature("map", ANY, "any")
GROUPS: Final = Nature("map", LIST, "groups")
TIME: Final = Nature("time")
DURATION: Final = Nature("duration")
LOCATION: Final = Nature("location")
MONTH: Final = Nature("month")
WEEKDAY: Final = Nature("weekday")
FUNCTION: Final = Nature("func")


def list_of(element: Nature) -> Nature:
    """Return the nature of a list whose elements are alike."""
    return Nature("array", element)
