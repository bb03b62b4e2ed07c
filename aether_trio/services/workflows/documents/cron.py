"""Enumerates the minutes that a cron expression names, by cronsim.

cronsim is given moments without a zone. Where an offset changes, model/workflows/timetables.py
decides: cronsim 2.8 passes over slots in Lord Howe, whose clocks change by half an hour, and in
Cairo, where they change at midnight.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from cronsim import CronSim, CronSimError

from aether_trio.model.workflows.compiling import ScheduleProblem
from aether_trio.model.workflows.timetables import TimetableError, read_timetable


def cron_matches(fields: str, after: datetime) -> Iterator[datetime]:
    """Give the minutes after a naive moment that match five fields (`CronMatches`).

    Raises ValueError for fields that no date has.
    """
    try:
        found = CronSim(fields, after)
    except CronSimError as error:
        raise ValueError(str(error)) from error
    try:
        yield from found
    except OverflowError:  # the calendar ends
        return


def check_schedule(schedule_type: str, expression: str, timezone: str) -> ScheduleProblem | None:
    """Return what is wrong with a schedule's type, expression and timezone."""
    try:
        read_timetable(schedule_type, expression, timezone=timezone, matches=cron_matches)
    except TimetableError as error:
        return ScheduleProblem(str(error), error.field, error.column)
    return None
