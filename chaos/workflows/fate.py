"""How work ends: a function of its execution's key, its place and its attempt."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

DOOMED: Final = 0.03
"""The share of places whose every attempt fails."""
OF_STEPS: Final[Mapping[str, float]] = MappingProxyType({"risky": 0.5, "last": 0.0, "noted": 0.0})
"""That share for steps whose failure is what their workflow is about, or must not be."""
FIRST_FAILS: Final = 0.1
SLOW: Final = 0.04


@dataclass(frozen=True, slots=True)
class Fate:
    """How an attempt ends after `seconds`: with an error, or else a result."""

    error: str
    seconds: float
    result: Any


def place_name(step: str, item: int | None = None, *, undo: bool = False) -> str:
    """Return the name of a place: fetch, fetch[3] or fetch~ for its compensation."""
    return f"{step}{'~' if undo else ''}{'' if item is None or item < 0 else f'[{item}]'}"


def number_of(key: str, place: str) -> int:
    """Return the number that is the result of a place's work."""
    return random.Random(f"{key} {place} result").randrange(1000)


def is_doomed(key: str, place: str) -> bool:
    """Say whether no attempt at this place succeeds."""
    share = OF_STEPS.get(place.partition("[")[0], DOOMED)
    return random.Random(f"{key} {place} doom").random() < share


def fate(key: str, place: str, attempt: int) -> Fate:
    """Return how an attempt at a place's work ends."""
    chance = random.Random(f"{key} {place} {attempt}")
    seconds = chance.uniform(0.3, 2.0) if chance.random() < SLOW else chance.uniform(0.0, 0.03)
    error = ""
    if is_doomed(key, place):
        error = "the stone has split"
    elif attempt == 1 and chance.random() < FIRST_FAILS:
        error = "the grain was damp"
    return Fate(error, seconds, {"n": number_of(key, place)})
