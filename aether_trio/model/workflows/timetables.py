"""The moments that a schedule's expression names: its *slots*, in Unix ms.

    */15 8-17 * * MON-FRI          five fields, as Debian's cron reads them; also L, LW, 5L, MON#1
    @daily   @every 90m            short forms
    TZ=Europe/Berlin 30 2 * * *    a timezone of the IANA; or the schedule's field `timezone`
    90s                            schedule_type interval: counted from the schedule's creation
    2026-07-01T12:00:00Z           schedule_type once

When a zone's offset changes, the rules are those of Debian's cron. An expression whose minute and
hour both begin with something else than `*` names times of the day: a time that is skipped is the
first moment after the gap, a time that is repeated is the first of both, and slots that fall
together are one. Any other expression names each minute that the clock really shows.

The enumeration of wall clock minutes is handed in (`CronMatches`); which moments they are is
decided here, as the libraries err where an offset changes by half an hour or at midnight.
"""

from __future__ import annotations

import difflib
import functools
import re
import sys
import zoneinfo
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from typing import Final, Protocol, TypeAlias

from aether_trio.model.workflows.durations import DurationError, duration_ms

CronMatches: TypeAlias = Callable[[str, datetime], Iterator[datetime]]
"""Gives the minutes after a naive moment that match five checked fields, as if there were no zones.

It ends, perhaps after some decades, when there are no more.
"""

MAX_EXPRESSION: Final = 256
MIN_INTERVAL_MS: Final = 1_000
TYPES: Final = ("cron", "interval", "once", "event_delayed")

_MINUTE: Final = timedelta(minutes=1)
_DAY: Final = timedelta(days=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS: Final = 250_000_000_000_000  # in the year 9892: no later slot is named
_SHORT: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FORMS: Final = "five fields (minute hour day-of-month month day-of-week), @daily and so on, or @every 5m"
_TIMESTAMP: Final = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?(?:[Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


class TimetableError(ValueError):
    """A schedule's expression is wrong: in the field `field`, at `column` from 1."""

    def __init__(self, message: str, column: int = 1, field: str = "schedule_expr") -> None:
        super().__init__(message)
        self.column = column
        self.field = field


class Timetable(Protocol):
    """The slots of a schedule, in order; `anchor_ms` is when it was created."""

    def after(self, moment_ms: int, anchor_ms: int) -> Iterator[int]:
        """Give the slots after a moment, earliest first."""


def next_after(timetable: Timetable, moment_ms: int, anchor_ms: int) -> int:
    """Return the first slot after a moment, 0 for none."""
    return next(timetable.after(moment_ms, anchor_ms), 0)


def latest(timetable: Timetable, after_ms: int, until_ms: int, anchor_ms: int, most: int) -> list[int]:
    """Return the last `most` slots in (after_ms, until_ms], in order.

    If there are more, it looks back in windows that double: a long outage costs little.
    """
    found = slots_between(timetable, after_ms + 1, until_ms + 1, anchor_ms, most + 1)
    window_ms = 60_000
    while len(found) > most:
        since_ms = max(after_ms, until_ms - window_ms)
        recent = slots_between(timetable, since_ms + 1, until_ms + 1, anchor_ms, sys.maxsize)
        if len(recent) >= most or since_ms <= after_ms:
            return recent[-most:]
        window_ms *= 2
    return found


def slots_between(timetable: Timetable, from_ms: int, until_ms: int, anchor_ms: int, most: int) -> list[int]:
    """Return the first `most` slots in [from_ms, until_ms)."""
    found: list[int] = []
    for slot in islice(timetable.after(from_ms - 1, anchor_ms), most):
        if slot >= until_ms:
            break
        found.append(slot)
    return found


@dataclass(frozen=True, slots=True)
class NoSlots:
    """Slots are not named by time: each event plans one, `delay_ms` later."""

    delay_ms: int

    def after(self, moment_ms: int, anchor_ms: int) -> Iterator[int]:
        return iter(())


@dataclass(frozen=True, slots=True)
class OnceAt:
    """One slot."""

    at_ms: int

    def after(self, moment_ms: int, anchor_ms: int) -> Iterator[int]:
        if self.at_ms > moment_ms:
            yield self.at_ms


@dataclass(frozen=True, slots=True)
class Every:
    """Slots at a distance of `every_ms`, counted from the schedule's creation."""

    every_ms: int

    def after(self, moment_ms: int, anchor_ms: int) -> Iterator[int]:
        slot = anchor_ms + ((moment_ms - anchor_ms) // self.every_ms + 1) * self.every_ms
        while slot <= _LAST_MS:
            yield slot
            slot += self.every_ms


@dataclass(frozen=True, slots=True)
class CronTable:
    """Slots of five fields in a zone; `fixed` if they name times of the day."""

    fields: str
    zone: tzinfo
    matches: CronMatches
    fixed: bool

    def after(self, moment_ms: int, anchor_ms: int) -> Iterator[int]:
        moment = _EPOCH + timedelta(milliseconds=max(min(moment_ms, _LAST_MS), 0))
        found = self._times_of_day(moment) if self.fixed else self._shown_minutes(moment)
        for one in found:
            yield (one - _EPOCH) // timedelta(milliseconds=1)

    def _times_of_day(self, moment: datetime) -> Iterator[datetime]:
        last = moment
        for wall in self.matches(self.fields, moment.astimezone(self.zone).replace(tzinfo=None)):
            shown = wall
            while not (slot := _shows(shown, self.zone)):
                shown += _MINUTE
            if slot > last:
                yield slot
                last = slot

    def _shown_minutes(self, moment: datetime) -> Iterator[datetime]:
        begin: datetime | None = moment.replace(second=0, microsecond=0) + _MINUTE
        while begin is not None:
            offset = _offset(begin, self.zone)
            seen, first = begin, (begin + offset).replace(tzinfo=None)
            begin = None
            for wall in self.matches(self.fields, first - timedelta(seconds=1)):
                slot = wall.replace(tzinfo=UTC) - offset
                if begin := _change(seen, slot, offset, self.zone):
                    break
                yield slot
                seen = slot


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()


def _shows(wall: datetime, zone: tzinfo) -> datetime | None:
    """Return the first moment at which clocks show this; None if they skip it."""
    moment = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    return moment if moment.astimezone(zone).replace(tzinfo=None) == wall else None


def _change(after: datetime, until: datetime, offset: timedelta, zone: tzinfo) -> datetime | None:
    """Return the first minute in (after, until] with another offset, or None."""
    while after < until:
        later = min(after + _DAY, until)
        if _offset(later, zone) != offset:
            while later - after > _MINUTE:
                middle = after + (later - after) // _MINUTE // 2 * _MINUTE
                if _offset(middle, zone) == offset:
                    after = middle
                else:
                    later = middle
            return later
        after = later
    return None


# -- reading -------------------------------------------------------------------------------------


def read_timetable(
    schedule_type: str, expression: str, *, timezone: str = "", default_zone: str = "UTC", matches: CronMatches
) -> Timetable:
    """Read the expression of a schedule of this type. Raises TimetableError.

    `timezone` is the schedule's field, `default_zone` what counts without one.
    """
    if len(expression) > MAX_EXPRESSION:
        raise TimetableError(f"the expression has more than {MAX_EXPRESSION} characters", MAX_EXPRESSION + 1)
    odd = next((place for place, one in enumerate(expression) if not (one.isascii() and one.isprintable())), None)
    if odd is not None:
        raise TimetableError(f"the character {expression[odd]!a} has no place in an expression", odd + 1)
    zone = read_zone(timezone, field="timezone") if timezone else None
    match schedule_type:
        case "cron":
            return _read_cron(expression, zone, timezone, default_zone, matches)
        case "interval":
            return Every(_least(_duration(expression, 0), 0))
        case "once":
            return OnceAt(read_moment(expression))
        case "event_delayed":
            return NoSlots(_duration(expression, 0))
    near = difflib.get_close_matches(schedule_type[:64], TYPES, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(TYPES)}"
    raise TimetableError(f"schedule_type {schedule_type[:64]!a} is unknown: {hint}", 1, "schedule_type")


def read_moment(text: str) -> int:
    """Return the Unix ms of an RFC 3339 text. Raises TimetableError."""
    if not _TIMESTAMP.fullmatch(text):
        raise TimetableError(f"{text[:64]!a} is not a moment such as 2026-07-01T12:00:00Z (RFC 3339)")
    try:
        moment = datetime.fromisoformat(text.upper())
        return (moment - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError) as error:
        raise TimetableError(f"{text!a} is not a moment: {error}") from None


def read_zone(name: str, column: int = 1, field: str = "schedule_expr") -> tzinfo:
    """Return the timezone of the IANA with this name. Raises TimetableError."""
    try:
        return _zone(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
    near = difflib.get_close_matches(name[:64], known, 1)
    near = near or [one for one in sorted(known) if one.rpartition("/")[2].lower() == name.lower()]
    hint = f"did you mean {near[0]}?" if near else "names are those of the IANA, such as Europe/Berlin or UTC"
    raise TimetableError(f"the timezone {name[:64]!a} is unknown: {hint}", column, field)


@functools.lru_cache(maxsize=64)
def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    if not name or name == "localtime":
        raise ValueError(name)
    return zoneinfo.ZoneInfo(name)


def _duration(text: str, before: int) -> int:
    try:
        return duration_ms(text)
    except DurationError as error:
        raise TimetableError(str(error), before + error.column) from None


def _least(interval_ms: int, before: int) -> int:
    if interval_ms < MIN_INTERVAL_MS:
        raise TimetableError("the interval is shorter than a second", before + 1)
    return interval_ms


def _read_cron(
    expression: str, zone: tzinfo | None, timezone: str, default_zone: str, matches: CronMatches
) -> Timetable:
    words = [(found[0], found.start()) for found in re.finditer(r"\S+", expression)]
    if words and words[0][0].startswith(("TZ=", "CRON_TZ=")):
        (prefix, place), words = words[0], words[1:]
        name = prefix.partition("=")[2]
        if zone is not None and name != timezone:
            raise TimetableError(f"the timezone is {name[:64]!a} here and {timezone[:64]!a} in `timezone`", place + 1)
        zone = read_zone(name, place + prefix.index("=") + 2)
    if not words:
        raise TimetableError(f"the expression is empty: it is {_FORMS}", len(expression) + 1)
    first, place = words[0]
    if first.startswith("@"):
        if first == "@every":
            if len(words) != 2:
                raise TimetableError("@every needs one duration: @every 5m", place + 1)
            return Every(_least(_duration(*words[1]), words[1][1]))
        fields = _SHORT.get(first.lower())
        if fields is None:
            near = difflib.get_close_matches(first.lower(), (*_SHORT, "@every"), 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join((*_SHORT, '@every'))}"
            raise TimetableError(f"{first!a} is unknown: {hint}", place + 1)
        if len(words) > 1:
            raise TimetableError(f"nothing may follow {first}", words[1][1] + 1)
    else:
        fields = _read_fields(words, len(expression))
    minute, hour = fields.split()[:2]
    fixed = not minute.startswith("*") and not hour.startswith("*")
    table = CronTable(fields, zone or read_zone(default_zone), matches, fixed)
    try:
        never = not next_after(table, 0, 0)
    except ValueError as error:
        raise TimetableError(f"no day has all that the fields ask for ({error})", place + 1) from None
    if never:
        raise TimetableError("no day has all that the fields ask for, so it would never fire", place + 1)
    return table


@dataclass(frozen=True, slots=True)
class _CronField:
    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()
    first: int = 0  # the number of the first of `names`


_DAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_MONTHS: Final = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_FIELDS: Final = (
    _CronField("minute", 0, 59),
    _CronField("hour", 0, 23),
    _CronField("day-of-month", 1, 31),
    _CronField("month", 1, 12, _MONTHS, 1),
    _CronField("day-of-week", 0, 7, _DAYS),
)
_MAX_NTH: Final = 5


def _read_fields(words: list[tuple[str, int]], end: int) -> str:
    """Check five fields; return them in capitals."""
    if len(words) != len(_FIELDS):
        what = "1 field" if len(words) == 1 else f"{len(words)} fields"
        column = words[5][1] + 1 if len(words) > len(_FIELDS) else end + 1
        seconds = "; there are no seconds" if len(words) == len(_FIELDS) + 1 else ""
        raise TimetableError(f"the expression has {what}: it is {_FORMS}{seconds}", column)
    checked: list[str] = []
    for field, (word, place) in zip(_FIELDS, words, strict=True):
        column, terms = place + 1, []
        for term in word.upper().split(","):
            terms.append(_term(field, term, column))
            column += len(term) + 1
        checked.append(",".join(terms))
    return " ".join(checked)


def _term(field: _CronField, term: str, column: int) -> str:
    base, slash, step = term.partition("/")
    if slash and not (step.isdigit() and 0 < int(step[:4]) <= 999):
        raise TimetableError(
            f"the step {step[:32]!a} of the {field.name} is not a number from 1", column + len(base) + 1
        )
    if base in {"*", "?"}:
        return f"*{slash}{step}"
    if not slash and field.name == "day-of-month" and base in {"L", "LW"}:
        return base
    if not slash and field.name == "day-of-week" and "#" in base:
        day, _, nth = base.partition("#")
        if not (nth.isdigit() and 1 <= int(nth[:4]) <= _MAX_NTH):
            raise TimetableError(f"{nth[:32]!a} is not a week of the month, 1 to 5", column + len(day) + 1)
        return f"{_number(field, day, column)}#{int(nth)}"
    if not slash and field.name == "day-of-week" and base.endswith("L") and len(base) > 1:
        return f"{_number(field, base[:-1], column)}L"
    low, dash, high = base.partition("-")
    least = _number(field, low, column)
    if not dash:
        return f"{least}{slash}{step}"
    most = _number(field, high, column + len(low) + 1)
    if most < least:
        end = min(field.most, field.first + len(field.names) - 1) if field.names else field.most
        hint = (
            f": write {low}-{end},{field.least}-{high}"
            if most or not field.names
            else f": write {low}-7, as Sunday is 7 too"
        )
        raise TimetableError(f"the range {base} of the {field.name} runs backwards{hint}", column)
    return f"{least}-{most}{slash}{step}"


def _number(field: _CronField, text: str, column: int) -> int:
    if text in field.names:
        return field.first + field.names.index(text)
    if text.isdigit() and field.least <= int(text[:4]) <= field.most:
        return int(text[:4])
    allowed = f"{field.least} to {field.most}" + (f" or {field.names[0]} to {field.names[-1]}" if field.names else "")
    if not text:
        raise TimetableError(f"a {field.name} is missing here: it is {allowed}", column)
    near = difflib.get_close_matches(text[:32], field.names, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near and not text.isdigit() else f"it is {allowed}"
    raise TimetableError(f"{text[:32]!a} is not a {field.name}: {hint}", column)
