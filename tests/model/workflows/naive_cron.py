"""The slots of a cron expression in one year, found minute by minute.

A separate reading of the fields and of Debian's rules for changes of the clock: every minute of the
year in UTC is looked at, and what the clocks of the zone show then.
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

NAMES = {name: number for number, name in enumerate(["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"])} | {
    name: number
    for number, name in enumerate(
        ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"], 1
    )
}
LEAST_AND_MOST = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def numbers(text: str, least: int, most: int) -> set[int]:
    found: set[int] = set()
    for term in text.split(","):
        base, _, step = term.partition("/")
        if base == "*":
            low, high = least, most
        else:
            ends = [NAMES.get(one.upper(), -1) if one.isalpha() else int(one) for one in base.split("-")]
            low = ends[0]
            high = ends[1] if len(ends) > 1 else (most if step else low)
        found |= set(range(low, high + 1, int(step or 1)))
    return found


@lru_cache
def shown_minutes(zone: str, year: int) -> list[int]:
    """What clocks show at each minute of the year in UTC, as minutes since the year 1."""
    info = ZoneInfo(zone)
    first = datetime(year, 1, 1, tzinfo=UTC)
    minutes: list[int] = []
    for number in range((366 if calendar.isleap(year) else 365) * 1440):
        shown = (first + timedelta(minutes=number)).astimezone(info)
        minutes.append((shown.toordinal() * 24 + shown.hour) * 60 + shown.minute)
    return minutes


@lru_cache
def first_shown(zone: str, year: int) -> dict[int, int]:
    """At which minute of the year (UTC) clocks show something for the first time."""
    first: dict[int, int] = {}
    for number, shown in enumerate(shown_minutes(zone, year)):
        first.setdefault(shown, number)
    return first


def named_minutes(expression: str, year: int) -> set[int]:
    """What clocks show when the fields match, as minutes since the year 1."""
    fields = expression.split()
    minutes, hours, days, months, weekdays = (
        numbers(one, *bounds) for one, bounds in zip(fields, LEAST_AND_MOST, strict=True)
    )
    both = fields[2].startswith("*") or fields[4].startswith("*")
    found: set[int] = set()
    for day in range(datetime(year, 1, 1).toordinal() - 1, datetime(year, 12, 31).toordinal() + 2):  # noqa: DTZ001
        date = datetime.fromordinal(day)
        of_month = date.day in days
        of_week = date.isoweekday() % 7 in weekdays or date.isoweekday() in weekdays
        if date.month in months and ((of_month and of_week) if both else (of_month or of_week)):
            found |= {(day * 24 + hour) * 60 + minute for hour in hours for minute in minutes}
    return found


@lru_cache
def slots_of_year(expression: str, zone: str, year: int) -> list[int]:
    """All slots of the year (Unix ms), but for those moved from the year before."""
    fields = expression.split()
    named = named_minutes(expression, year)
    if fields[0].startswith("*") or fields[1].startswith("*"):
        found = [number for number, shown in enumerate(shown_minutes(zone, year)) if shown in named]
    else:
        table = first_shown(zone, year)
        begin, last = min(table), max(table)
        slots: set[int] = set()
        for wall in sorted(named):
            later = wall
            while later not in table and begin < later < last:
                later += 1
            if later in table:
                slots.add(table[later])
        found = sorted(slots)
    begin_ms = int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1000
    return [begin_ms + number * 60_000 for number in found]
