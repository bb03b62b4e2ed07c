"""The methods of moments and durations: `now().Year()`, `duration("90m").Hours()`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final

from aether_trio.model.expressions import layouts
from aether_trio.model.expressions.errors import Fault
from aether_trio.model.expressions.formatting import MOMENT
from aether_trio.model.expressions.natures import (
    BOOL,
    DURATION,
    FLOAT,
    INT,
    LOCATION,
    MONTH,
    STRING,
    TIME,
    WEEKDAY,
    Nature,
)
from aether_trio.model.expressions.values import (
    Duration,
    Month,
    Weekday,
    between,
    described,
    later,
    nanoseconds,
    wrap,
)

_HOUR: Final = 3_600_000_000_000
_MINUTE: Final = 60_000_000_000
_SECOND: Final = 1_000_000_000
_MOST: Final = (1 << 63) - 1
_TYPES: Final[dict[str, type]] = {
    "int": int,
    "string": str,
    "time": datetime,
    "duration": Duration,
    "location": tzinfo,
}


@dataclass(frozen=True, slots=True)
class Method:
    """A method: its function of the value and arguments, what it gives and takes."""

    run: Callable[..., Any]
    result: Nature
    takes: tuple[Nature, ...] = ()

    def call(self, value: object, arguments: list[object]) -> object:
        """Run the method; faults for arguments of other types."""
        if len(arguments) != len(self.takes):
            raise Fault(f"the method takes {len(self.takes)} arguments, not {len(arguments)}")
        for argument, nature in zip(arguments, self.takes, strict=True):
            wanted = _TYPES[nature.kind]
            if not isinstance(argument, wanted) or isinstance(argument, bool):
                raise Fault(f"the method takes {nature}, not {described(argument)}")
        return self.run(value, *arguments)


def _part(duration: Duration, unit: int) -> float:
    whole = abs(duration.nanoseconds) // unit
    rest = abs(duration.nanoseconds) % unit
    value = float(whole) + float(rest) / float(unit)
    return -value if duration.nanoseconds < 0 else value


def _quotient(number: int, by: int) -> int:
    return -(-number // by) if number < 0 else number // by


def _round(duration: Duration, to: Duration) -> Duration:
    if to.nanoseconds <= 0:
        return duration
    rest = abs(duration.nanoseconds) % to.nanoseconds
    base = abs(duration.nanoseconds) - rest
    if rest * 2 >= to.nanoseconds:
        base += to.nanoseconds
    base = min(base, _MOST)
    return Duration(-base if duration.nanoseconds < 0 else base)


def _truncate(duration: Duration, to: Duration) -> Duration:
    if to.nanoseconds <= 0:
        return duration
    return Duration(_quotient(duration.nanoseconds, to.nanoseconds) * to.nanoseconds)


def _add_date(moment: datetime, years: int, months: int, days: int) -> datetime:
    if max(abs(years), abs(months), abs(days)) > 4_000_000:
        raise Fault("the moment is outside of the years 1 to 9999")
    carry, month = divmod(moment.month - 1 + months, 12)
    try:
        first = moment.replace(year=moment.year + years + carry, month=month + 1, day=1, tzinfo=UTC)
        local = first + timedelta(days=moment.day - 1 + days)
        return layouts.at_clock(local, moment.tzinfo or UTC)
    except (ValueError, OverflowError):
        raise Fault("the moment is outside of the years 1 to 9999") from None


def in_zone(moment: datetime, zone: tzinfo) -> datetime:
    """Return a moment as the clocks of a zone show it."""
    try:
        return moment.astimezone(zone)
    except (ValueError, OverflowError):
        raise Fault("the moment is outside of the years 1 to 9999") from None


def _compare(one: datetime, other: datetime) -> int:
    left, right = nanoseconds(one), nanoseconds(other)
    return (left > right) - (left < right)


METHODS: Final[dict[str, dict[str, Method]]] = {
    "time": {
        "Year": Method(lambda at: at.year, INT),
        "Month": Method(lambda at: Month(at.month), MONTH),
        "Day": Method(lambda at: at.day, INT),
        "YearDay": Method(lambda at: at.timetuple().tm_yday, INT),
        "Weekday": Method(lambda at: Weekday(layouts.day_of_week(at)), WEEKDAY),
        "Hour": Method(lambda at: at.hour, INT),
        "Minute": Method(lambda at: at.minute, INT),
        "Second": Method(lambda at: at.second, INT),
        "Nanosecond": Method(lambda at: at.microsecond * 1000, INT),
        "Unix": Method(lambda at: nanoseconds(at) // _SECOND, INT),
        "UnixMilli": Method(lambda at: nanoseconds(at) // 1_000_000, INT),
        "UnixMicro": Method(lambda at: nanoseconds(at) // 1_000, INT),
        "UnixNano": Method(lambda at: wrap(nanoseconds(at)), INT),
        "Format": Method(layouts.format_moment, STRING, (STRING,)),
        "String": Method(lambda at: layouts.format_moment(at, MOMENT), STRING),
        "Add": Method(later, TIME, (DURATION,)),
        "AddDate": Method(_add_date, TIME, (INT, INT, INT)),
        "Sub": Method(between, DURATION, (TIME,)),
        "Before": Method(lambda at, other: _compare(at, other) < 0, BOOL, (TIME,)),
        "After": Method(lambda at, other: _compare(at, other) > 0, BOOL, (TIME,)),
        "Equal": Method(lambda at, other: _compare(at, other) == 0, BOOL, (TIME,)),
        "Compare": Method(_compare, INT, (TIME,)),
        "IsZero": Method(lambda at: nanoseconds(at) == -62_135_596_800 * _SECOND, BOOL),
        "In": Method(in_zone, TIME, (LOCATION,)),
        "UTC": Method(lambda at: at.astimezone(UTC), TIME),
        "Location": Method(lambda at: at.tzinfo, LOCATION),
    },
    "duration": {
        "Hours": Method(lambda length: _part(length, _HOUR), FLOAT),
        "Minutes": Method(lambda length: _part(length, _MINUTE), FLOAT),
        "Seconds": Method(lambda length: _part(length, _SECOND), FLOAT),
        "Milliseconds": Method(lambda length: _quotient(length.nanoseconds, 1_000_000), INT),
        "Microseconds": Method(lambda length: _quotient(length.nanoseconds, 1_000), INT),
        "Nanoseconds": Method(lambda length: length.nanoseconds, INT),
        "Abs": Method(lambda length: Duration(min(abs(length.nanoseconds), _MOST)), DURATION),
        "Round": Method(_round, DURATION, (DURATION,)),
        "Truncate": Method(_truncate, DURATION, (DURATION,)),
        "String": Method(lambda length: layouts.format_duration(length.nanoseconds), STRING),
    },
    "month": {"String": Method(lambda month: layouts.month_name(month.number), STRING)},
    "weekday": {"String": Method(lambda day: layouts.weekday_name(day.number), STRING)},
    "location": {"String": Method(layouts.zone_text, STRING)},
}
"""The methods by the kind of their value, then by name."""

_KINDS: Final[dict[type, str]] = {datetime: "time", Duration: "duration", Month: "month", Weekday: "weekday"}


def method_of(value: object, name: object) -> Method | None:
    """Return the method with a name of a value that an expression has."""
    kind = _KINDS.get(type(value)) or ("location" if isinstance(value, tzinfo) else "")
    return METHODS[kind].get(name) if kind and isinstance(name, str) else None
