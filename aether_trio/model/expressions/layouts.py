"""Reads and writes moments and durations by the rules of Go's package time.

A layout shows how the moment 2006-01-02 15:04:05 -0700 MST is written. Where Go asks the system for
its zone, this takes UTC. Moments have microseconds and the years 1 to 9999.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Final

from aether_trio.model.expressions.errors import Fault

_MONTHS: Final = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_DAYS: Final = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_CHUNK: Final = re.compile(
    r"January|Jan(?![a-z])|Monday|Mon(?![a-z])|MST|002|0[1-6]|15|1|2006|2|__2|_2(?!006)|3|4|5|PM|pm"
    r"|[-Z]070000|[-Z]07:00:00|[-Z]0700|[-Z]07:00|[-Z]07|[.,](?:0+|9+)(?![0-9])"
)
_ZONE_LENGTHS: Final = {"07": 3, "0700": 5, "07:00": 6, "070000": 7, "07:00:00": 9}
_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,
    "\u03bcs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_DURATION_PART: Final = re.compile(r"([0-9]*)(?:(\.)([0-9]*))?([^0-9.]*)", re.DOTALL)
_MOST: Final = 1 << 63
MAX_TEXT: Final = 200
"""The characters of a layout, and of a moment or duration that is read."""


def month_name(number: int) -> str:
    """Return the name of a month from 1."""
    return _MONTHS[number - 1]


def weekday_name(number: int) -> str:
    """Return the name of a day of the week, from Sunday as 0."""
    return _DAYS[number]


def day_of_week(moment: datetime) -> int:
    """Return the day of the week, from Sunday as 0."""
    return moment.isoweekday() % 7


def zone_text(zone: tzinfo) -> str:
    """Return the name of a zone."""
    return getattr(zone, "key", None) or zone.tzname(None) or "UTC"


def offset_of(moment: datetime) -> int:
    """Return how many seconds the moment's zone is ahead of UTC."""
    offset = moment.utcoffset()
    return 0 if offset is None else offset // timedelta(seconds=1)


def _numeric(seconds: int, form: str) -> str:
    """Return an offset in a form such as `07:00`."""
    sign = "-" if seconds < 0 else "+"
    hours, rest = divmod(abs(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    parts = [f"{hours:02d}", f"{minutes:02d}", f"{rest:02d}"][: (len(form.replace(":", "")) // 2)]
    return sign + (":" if ":" in form else "").join(parts)


def _zone_name(moment: datetime) -> str:
    name = moment.tzname() or ""
    if name and not (isinstance(moment.tzinfo, timezone) and name.startswith(("UTC+", "UTC-"))):
        return name
    return _numeric(offset_of(moment), "0700")


def format_moment(moment: datetime, layout: str) -> str:
    """Return a moment as a layout shows it."""
    if len(layout) > MAX_TEXT:
        raise Fault(f"a layout has at most {MAX_TEXT} characters")
    parts: list[str] = []
    at = 0
    for match in _CHUNK.finditer(layout):
        parts += (layout[at : match.start()], _format_chunk(moment, match[0]))
        at = match.end()
    return "".join(parts) + layout[at:]


def _format_chunk(moment: datetime, chunk: str) -> str:
    if chunk[0] in ".,":
        digits = f"{moment.microsecond * 1000:09d}".ljust(len(chunk) - 1, "0")[: len(chunk) - 1]
        if chunk[1] == "9":
            digits = digits.rstrip("0")
            return chunk[0] + digits if digits else ""
        return chunk[0] + digits
    if chunk[0] == "Z" and not offset_of(moment):
        return "Z"
    if chunk[0] in "Z-":
        return _numeric(offset_of(moment), chunk[1:])
    return _WRITERS[chunk](moment)


_WRITERS: Final[dict[str, Callable[[datetime], str]]] = {
    "January": lambda moment: _MONTHS[moment.month - 1],
    "Jan": lambda moment: _MONTHS[moment.month - 1][:3],
    "1": lambda moment: str(moment.month),
    "01": lambda moment: f"{moment.month:02d}",
    "Monday": lambda moment: _DAYS[day_of_week(moment)],
    "Mon": lambda moment: _DAYS[day_of_week(moment)][:3],
    "2": lambda moment: str(moment.day),
    "_2": lambda moment: f"{moment.day:2d}",
    "02": lambda moment: f"{moment.day:02d}",
    "__2": lambda moment: f"{moment.timetuple().tm_yday:3d}",
    "002": lambda moment: f"{moment.timetuple().tm_yday:03d}",
    "15": lambda moment: f"{moment.hour:02d}",
    "3": lambda moment: str(moment.hour % 12 or 12),
    "03": lambda moment: f"{moment.hour % 12 or 12:02d}",
    "4": lambda moment: str(moment.minute),
    "04": lambda moment: f"{moment.minute:02d}",
    "5": lambda moment: str(moment.second),
    "05": lambda moment: f"{moment.second:02d}",
    "2006": lambda moment: f"{moment.year:04d}",
    "06": lambda moment: f"{moment.year % 100:02d}",
    "PM": lambda moment: "PM" if moment.hour >= 12 else "AM",
    "pm": lambda moment: "pm" if moment.hour >= 12 else "am",
    "MST": _zone_name,
}


class _MomentReader:
    """Reads the parts of one written moment."""

    def __init__(self, text: str, layout: str) -> None:
        self.text = text
        self.rest = text
        self.layout = layout
        self.year, self.month, self.day, self.year_day = 0, -1, -1, -1
        self.hour = self.minute = self.second = self.nanosecond = 0
        self.half: str | None = None
        self.utc = False
        self.offset: int | None = None
        self.zone_name = ""

    def wrong(self) -> Fault:
        return Fault(f"the text {self.text[:40]!r} is no moment of the form {self.layout[:40]!r}")

    def take(self, length: int) -> str:
        if len(self.rest) < length:
            raise self.wrong()
        taken, self.rest = self.rest[:length], self.rest[length:]
        return taken

    def number(self, least: int, most: int, low: int = 0, high: int = 99) -> int:
        """Read a number of some digits, within a range."""
        length = 0
        while length < most and length < len(self.rest) and self.rest[length] in "0123456789":
            length += 1
        if length < least:
            raise self.wrong()
        value = int(self.take(length))
        if not low <= value <= high:
            raise self.wrong()
        return value

    def name(self, names: tuple[str, ...], length: int | None) -> int:
        for index, name in enumerate(names):
            wanted = name[:length]
            if self.rest[: len(wanted)].lower() == wanted.lower():
                self.rest = self.rest[len(wanted) :]
                return index
        raise self.wrong()

    def literal(self, wanted: str) -> None:
        """Skip the text between two parts; a space stands for any number of them."""
        while wanted:
            if wanted[0] == " ":
                if self.rest and self.rest[0] != " ":
                    raise self.wrong()
                wanted, self.rest = wanted.lstrip(" "), self.rest.lstrip(" ")
            elif self.rest[:1] == wanted[0]:
                wanted, self.rest = wanted[1:], self.rest[1:]
            else:
                raise self.wrong()

    def fraction(self, length: int) -> None:
        digits = self.take(length)[1:]
        if not digits.isascii() or not digits.isdigit():
            raise self.wrong()
        self.nanosecond = int(digits[:9].ljust(9, "0"))

    def has_fraction(self) -> bool:
        return len(self.rest) > 1 and self.rest[0] in ".," and self.rest[1] in "0123456789"

    def fraction_length(self) -> int:
        length = 1
        while length < len(self.rest) and self.rest[length] in "0123456789":
            length += 1
        return length

    def chunk(self, chunk: str, following: str) -> None:
        if chunk in ("January", "Jan"):
            self.month = self.name(_MONTHS, None if chunk == "January" else 3) + 1
        elif chunk in ("Monday", "Mon"):
            self.name(_DAYS, None if chunk == "Monday" else 3)
        elif chunk in ("1", "01"):
            self.month = self.number(len(chunk), 2, 1, 12)
        elif chunk in ("2", "_2", "02"):
            if chunk == "_2" and self.rest[:1] == " ":
                self.rest = self.rest[1:]
            self.day = self.number(2 if chunk == "02" else 1, 2)
        elif chunk in ("002", "__2"):
            for _ in range(2):
                if chunk == "__2" and self.rest[:1] == " ":
                    self.rest = self.rest[1:]
            self.year_day = self.number(3 if chunk == "002" else 1, 3, 0, 999)
        elif chunk == "2006":
            self.year = self.number(4, 4, 0, 9999)
        elif chunk == "06":
            self.year = self.number(2, 2)
            self.year += 1900 if self.year >= 69 else 2000
        elif chunk == "15":
            self.hour = self.number(1, 2, 0, 23)
        elif chunk in ("3", "03"):
            self.hour = self.number(len(chunk), 2, 0, 12)
        elif chunk in ("4", "04"):
            self.minute = self.number(len(chunk), 2, 0, 59)
        elif chunk in ("5", "05"):
            self.second = self.number(len(chunk), 2, 0, 59)
            if self.has_fraction() and following[:1] not in (".", ","):
                self.fraction(self.fraction_length())
        elif chunk in ("PM", "pm"):
            self.half = self.take(2)
            if self.half not in ((chunk), chunk.replace("P", "A").replace("p", "a")):
                raise self.wrong()
        elif chunk == "MST":
            self.zone()
        elif chunk[0] in ".,":
            if chunk[1] == "0":
                if self.rest[:1] not in (".", ","):
                    raise self.wrong()
                self.fraction(len(chunk))
            elif self.has_fraction():
                self.fraction(self.fraction_length())
        elif chunk[0] == "Z" and self.rest[:1] == "Z":
            self.rest = self.rest[1:]
            self.utc = True
        else:
            self.numeric(chunk[1:])

    def numeric(self, form: str) -> None:
        text = self.take(_ZONE_LENGTHS[form])
        colon = ":" in form
        if colon and not (text[3] == ":" and (len(text) < 9 or text[6] == ":")):
            raise self.wrong()
        digits = text[1:].replace(":", "") if colon else text[1:]
        if text[0] not in "+-" or len(digits) not in (2, 4, 6) or not (digits.isascii() and digits.isdigit()):
            raise self.wrong()
        hours, minutes, seconds = (int(digits[at : at + 2] or "0") for at in (0, 2, 4))
        if hours > 24 or minutes > 60 or seconds > 60:
            raise self.wrong()
        self.offset = (hours * 3600 + minutes * 60 + seconds) * (-1 if text[0] == "-" else 1)
        if abs(self.offset) >= 86400:
            raise self.wrong()

    def zone(self) -> None:
        """Read an abbreviation of a zone: three or four capital letters, or an offset."""
        rest = self.rest
        if rest.startswith("UTC"):
            self.rest, self.utc = rest[3:], True
            return
        length = 0
        if rest.startswith(("ChST", "MeST")):
            length = 4
        elif rest.startswith("GMT"):
            length = 3 + self.signed_length(rest[3:])
        elif rest[:1] in ("+", "-"):
            length = self.signed_length(rest)
        else:
            capitals = 0
            while capitals < 6 and capitals < len(rest) and "A" <= rest[capitals] <= "Z":
                capitals += 1
            if capitals == 3 or (capitals == 4 and (rest[3] == "T" or rest[:4] == "WITA")):
                length = capitals
            elif capitals == 5 and rest[4] == "T":
                length = 5
        if len(rest) < 3 or not length:
            raise self.wrong()
        self.zone_name, self.rest = rest[:length], rest[length:]

    @staticmethod
    def signed_length(text: str) -> int:
        match = re.match(r"[+-]([0-9]+)", text)
        return match.end() if match and len(match[1]) < 9 and int(match[1]) <= 23 else 0

    def moment(self, zone: tzinfo) -> datetime:
        if self.half in ("PM", "pm") and self.hour < 12:
            self.hour += 12
        elif self.half in ("AM", "am") and self.hour == 12:
            self.hour = 0
        try:
            if self.year_day >= 0:
                self.from_year_day()
            local = datetime(
                self.year,
                1 if self.month < 0 else self.month,
                1 if self.day < 0 else self.day,
                self.hour,
                self.minute,
                self.second,
                self.nanosecond // 1000,
                tzinfo=UTC,
            )
            return self.in_zone(local, zone)
        except (ValueError, OverflowError):
            raise self.wrong() from None

    def from_year_day(self) -> None:
        first = datetime(self.year, 1, 1, tzinfo=UTC)
        found = first + timedelta(days=self.year_day - 1)
        if self.year_day < 1 or found.year != self.year:
            raise self.wrong()
        if self.month not in (-1, found.month) or self.day not in (-1, found.day):
            raise self.wrong()
        self.month, self.day = found.month, found.day

    def in_zone(self, local: datetime, zone: tzinfo) -> datetime:
        """Place what a clock shows into the zone that the text or the caller names."""
        if self.utc:
            return local
        if self.offset is not None:
            moment = local - timedelta(seconds=self.offset)
            there = moment.astimezone(zone)
            if offset_of(there) == self.offset and self.zone_name in ("", there.tzname()):
                return there
            fixed = timedelta(seconds=self.offset)
            return moment.astimezone(timezone(fixed, self.zone_name) if self.zone_name else timezone(fixed))
        if self.zone_name:
            for other in (local, local.replace(month=1, day=1), local.replace(month=7, day=1)):
                there = other.astimezone(zone)
                if there.tzname() == self.zone_name:
                    return (local - timedelta(seconds=offset_of(there))).astimezone(zone)
            hours = int(self.zone_name[3:]) if self.zone_name[:3] == "GMT" and len(self.zone_name) > 3 else 0
            return local.astimezone(timezone(timedelta(hours=hours), self.zone_name))
        return at_clock(local, zone)


def at_clock(local: datetime, zone: tzinfo) -> datetime:
    """Return when the clocks of a zone show what a moment in UTC shows.

    Where they are changed, and show it twice or never, the choice is Go's.
    """
    guess = local - timedelta(seconds=offset_of(local.astimezone(zone)))
    return (local - timedelta(seconds=offset_of(guess.astimezone(zone)))).astimezone(zone)


def parse_moment(text: str, layout: str, zone: tzinfo = UTC) -> datetime:
    """Read a moment that a layout describes; faults where the text does not fit."""
    reader = _MomentReader(text, layout)
    if max(len(text), len(layout)) > MAX_TEXT:
        raise reader.wrong()
    chunks = list(_CHUNK.finditer(layout))
    at = 0
    for index, match in enumerate(chunks):
        reader.literal(layout[at : match.start()])
        following = chunks[index + 1][0] if index + 1 < len(chunks) else ""
        reader.chunk(match[0], following)
        at = match.end()
    reader.literal(layout[at:])
    if reader.rest:
        raise reader.wrong()
    return reader.moment(zone)


def parse_duration(text: str) -> int:
    """Read a duration such as `1h30m` or `-1.5s`; return its nanoseconds."""
    wrong = Fault(f"{text[:40]!r} is no duration such as 1h30m")
    if len(text) > MAX_TEXT:
        raise wrong
    rest = text
    negative = rest[:1] == "-"
    if rest[:1] in ("-", "+"):
        rest = rest[1:]
    if rest == "0":
        return 0
    if not rest:
        raise wrong
    total = 0
    at = 0
    while at < len(rest):
        match = _DURATION_PART.match(rest, at)
        if match is None or not (match[1] or match[3]) or match[4] not in _UNITS:
            raise wrong
        unit = _UNITS[match[4]]
        if len(match[1]) > 19:
            raise wrong
        total += int(match[1] or "0") * unit
        if match[3]:
            digits = match[3][:18]
            total += int(float(int(digits)) * (float(unit) / float(10 ** len(digits))))
        if total > _MOST:
            raise wrong
        at = match.end()
    if total == _MOST and not negative:
        raise wrong
    return -total if negative else total


def format_duration(nanoseconds: int) -> str:
    """Return a duration as Go prints it: 1h30m0s, 1.5s, 20ms, 0s."""
    if nanoseconds == 0:
        return "0s"
    sign = "-" if nanoseconds < 0 else ""
    value = abs(nanoseconds)
    for unit, size in (("ns", 1), ("\u00b5s", 1_000), ("ms", 1_000_000)):
        if value < size * 1000:
            return sign + _decimal(value, size) + unit
    minutes, rest = divmod(value, _UNITS["m"])
    text = _decimal(rest, _UNITS["s"]) + "s"
    if minutes:
        hours, minutes = divmod(minutes, 60)
        text = f"{minutes}m{text}"
        if hours:
            text = f"{hours}h{text}"
    return sign + text


def _decimal(value: int, size: int) -> str:
    whole, rest = divmod(value, size)
    if not rest:
        return str(whole)
    return f"{whole}.{rest:0{len(str(size)) - 1}d}".rstrip("0")
