"""Slots of expressions against minutes counted one by one, and their mistakes."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.workflows.timetables import (
    TimetableError,
    latest,
    next_after,
    read_moment,
    read_timetable,
    read_zone,
    slots_between,
)
from aether_trio.services.workflows.documents.cron import cron_matches
from tests.model.workflows.naive_cron import slots_of_year

ZONES = ("Europe/Berlin", "Australia/Lord_Howe", "Africa/Cairo")
YEAR = 2026
EXPRESSIONS = (
    "0 * * * *",
    "30 2 * * *",
    "0,30 2,3 * * *",
    "*/15 0-4,22-23 * * *",
    "*/10 0-3 * * *",
    "*/7 23 * * 4",
    "*/20 0 * * FRI",
    "15 */2 * * *",
    "45 1 * * *",
    "10-20/5 2 * * *",
    "0 0 * * *",
    "59 23 * * *",
    "5 0 1-7 * MON",
    "0 12 1 JAN,APR,OCT *",
    "0 3 */2 * SUN",
    "30 23 * 4,10 4-7",
    "0 0 31 * *",
    "20 1/6 * * *",
)


def ms(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def at(slot_ms: int) -> str:
    return datetime.fromtimestamp(slot_ms / 1000, UTC).strftime("%m-%dT%H:%M")


def slots(expression: str, begin: str, end: str, zone: str = "UTC") -> list[str]:
    table = read_timetable("cron", expression, timezone=zone, matches=cron_matches)
    found = slots_between(table, read_moment(begin), read_moment(end), 0, 100)
    return [datetime.fromtimestamp(one / 1000, read_zone(zone)).isoformat() for one in found]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_year_has_the_slots_that_counting_minutes_finds(expression: str, zone: str) -> None:
    wanted = slots_of_year(expression, zone, YEAR)
    # A day less at each end: a slot of the edge belongs to the year of the zone's clocks.
    begin, end = ms(datetime(YEAR, 1, 2, tzinfo=UTC)), ms(datetime(YEAR, 12, 31, tzinfo=UTC))
    table = read_timetable("cron", expression, timezone=zone, matches=cron_matches)
    found = list(takewhile(lambda slot: slot < end, table.after(begin - 1, 0)))
    wanted = [one for one in wanted if begin <= one < end]
    # Slots that differ are easier to read than numbers.
    assert list(map(at, sorted(set(found) ^ set(wanted)))) == []
    assert found == wanted


@pytest.mark.parametrize(
    ("zone", "changes"), list(zip(ZONES, [("03-29", "10-25"), ("04-05", "10-04"), ("04-24", "10-30")], strict=True))
)
def test_each_minute_of_the_days_with_changes(zone: str, changes: tuple[str, str]) -> None:
    for expression in ("* * * * *", "1-59/2 0-3,23 * * *"):
        wanted = slots_of_year(expression, zone, YEAR)
        table = read_timetable("cron", expression, timezone=zone, matches=cron_matches)
        for change in changes:
            begin = read_moment(f"{YEAR}-{change}T00:00:00Z") - 43_200_000
            end = begin + 86_400_000
            assert slots_between(table, begin, end, 0, 10_000) == [one for one in wanted if begin <= one < end]


@pytest.mark.parametrize("zone", ZONES)
@given(
    expression=st.sampled_from(EXPRESSIONS),
    minute=st.integers(1440, 363 * 1440),
    odd_ms=st.sampled_from((-1, 0, 1, 30_000)),
)
def test_from_any_moment_the_next_slot_is_the_next_one(zone: str, expression: str, minute: int, odd_ms: int) -> None:
    wanted = slots_of_year(expression, zone, YEAR)
    moment = ms(datetime(YEAR, 1, 1, tzinfo=UTC)) + minute * 60_000 + odd_ms
    table = read_timetable("cron", expression, timezone=zone, matches=cron_matches)
    later = next((one for one in wanted if one > moment), None)
    if later is not None:
        assert at(next_after(table, moment, 0)) == at(later)


def test_a_skipped_time_is_the_end_of_the_gap_and_a_repeated_one_counts_once() -> None:
    spring = slots("30 2 * * *", "2026-03-28T00:00:00Z", "2026-03-30T12:00:00Z", "Europe/Berlin")
    assert spring == ["2026-03-28T02:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]
    autumn = slots("30 2 * * *", "2026-10-24T12:00:00Z", "2026-10-26T12:00:00Z", "Europe/Berlin")
    assert autumn == ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]


def test_stars_follow_the_clock_as_it_is_shown() -> None:
    half_an_hour = slots("*/10 2 * * *", "2026-10-03T15:00:00Z", "2026-10-03T16:00:00Z", "Australia/Lord_Howe")
    assert [one[11:16] for one in half_an_hour] == ["02:30", "02:40", "02:50"]
    after_the_gap = slots("*/20 3 * * *", "2026-10-03T15:00:00Z", "2026-10-03T17:00:00Z", "Australia/Lord_Howe")
    assert [one[11:16] for one in after_the_gap] == ["03:00", "03:20", "03:40"]
    repeated = slots("*/30 23 * * 4", "2026-10-29T19:00:00Z", "2026-10-30T00:00:00Z", "Africa/Cairo")
    assert [one[11:22] for one in repeated] == ["23:00:00+03", "23:30:00+03", "23:00:00+02", "23:30:00+02"]
    no_midnight = slots("*/20 0 * * 5", "2026-04-23T12:00:00Z", "2026-04-24T12:00:00Z", "Africa/Cairo")
    assert no_midnight == []


def test_a_zone_that_skips_a_day() -> None:
    found = slots("0 12 * * *", "2011-12-29T00:00:00Z", "2011-12-31T00:00:00Z", "Pacific/Apia")
    # The time of 30 December is the beginning of the 31st.
    assert [one[:16] for one in found] == ["2011-12-29T12:00", "2011-12-31T00:00", "2011-12-31T12:00"]


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * SUN"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("TZ=Europe/Berlin 0 9 * * mon-fri", "CRON_TZ=Europe/Berlin 0 9 ? * 1-5"),
    ],
)
def test_short_forms(expression: str, same: str) -> None:
    begin = read_moment("2026-01-15T00:00:00Z")
    one, other = (read_timetable("cron", text, matches=cron_matches) for text in (expression, same))
    assert slots_between(one, begin, begin + 400 * 86_400_000, 0, 50) == slots_between(
        other, begin, begin + 400 * 86_400_000, 0, 50
    )


def test_last_and_numbered_days() -> None:
    assert [one[:10] for one in slots("0 0 L 1-3 *", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z")] == [
        "2026-01-31", "2026-02-28", "2026-03-31",
    ]  # fmt: skip
    assert [one[:10] for one in slots("0 0 * 1 MON#2,FRIL", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z")] == [
        "2026-01-12", "2026-01-30",
    ]  # fmt: skip


def test_intervals_count_from_the_creation() -> None:
    for schedule_type, expression in (("interval", "90s"), ("cron", "@every 1m30s"), ("cron", "TZ=UTC @every 1.5m")):
        table = read_timetable(schedule_type, expression, matches=cron_matches)
        assert slots_between(table, 1_000_000, 1_300_000, 1_000_500, 10) == [1_000_500, 1_090_500, 1_180_500, 1_270_500]
        assert next_after(table, 1_090_500, 1_000_500) == 1_180_500


def test_once_is_one_slot() -> None:
    table = read_timetable("once", "2026-07-01T12:00:00.250+02:00", matches=cron_matches)
    slot = read_moment("2026-07-01T10:00:00Z") + 250
    assert (next_after(table, slot - 1, 0), next_after(table, slot, 0)) == (slot, 0)


@given(st.integers(0, 5_000), st.integers(0, 5_000), st.integers(1, 40))
def test_the_latest_slots_are_the_end_of_all(after_s: int, length_s: int, most: int) -> None:
    table = read_timetable("interval", "7s", matches=cron_matches)
    every = [slot for slot in range(7_000, 20_000_000, 7_000) if after_s * 1000 < slot <= (after_s + length_s) * 1000]
    assert latest(table, after_s * 1000, (after_s + length_s) * 1000, 0, most) == every[-most:]


def test_the_latest_slots_before_a_long_time_are_found_without_walking_it() -> None:
    begin, now = read_moment("1990-01-01T00:00:00Z"), read_moment("2026-01-01T00:00:00Z")
    table = read_timetable("cron", "* * * * *", timezone="Europe/Berlin", matches=cron_matches)
    assert latest(table, begin, now, 0, 3) == [now - 120_000, now - 60_000, now]


@pytest.mark.parametrize(
    ("schedule_type", "expression", "timezone", "place", "words"),
    [
        ("cron", "", "", ("schedule_expr", 1), "the expression is empty"),
        ("cron", "* * * *", "", ("schedule_expr", 8), "has 4 fields"),
        ("cron", "* * * * * *", "", ("schedule_expr", 11), "there are no seconds"),
        ("cron", "61 * * * *", "", ("schedule_expr", 1), "'61' is not a minute: it is 0 to 59"),
        ("cron", "0 1,24 * * *", "", ("schedule_expr", 5), "'24' is not a hour"),
        ("cron", "0 0 * * MOM", "", ("schedule_expr", 9), "did you mean MON?"),
        ("cron", "0 0 * JAM *", "", ("schedule_expr", 7), "did you mean JAN?"),
        ("cron", "0 0 * * 9-10", "", ("schedule_expr", 9), "0 to 7 or SUN to SAT"),
        ("cron", "1,,2 * * * *", "", ("schedule_expr", 3), "a minute is missing here"),
        ("cron", "*/0 * * * *", "", ("schedule_expr", 3), "the step '0'"),
        ("cron", "*/x * * * *", "", ("schedule_expr", 3), "the step 'X'"),
        ("cron", "50-10 * * * *", "", ("schedule_expr", 1), "write 50-59,0-10"),
        ("cron", "0 0 * * FRI-MON", "", ("schedule_expr", 9), "write FRI-6,0-MON"),
        ("cron", "0 0 * * SAT-SUN", "", ("schedule_expr", 9), "write SAT-7"),
        ("cron", "0 0 * * MON#6", "", ("schedule_expr", 13), "'6' is not a week of the month"),
        ("cron", "0 0 30 2 *", "", ("schedule_expr", 1), "no day"),
        ("cron", "0 0 */20 * MON#2", "", ("schedule_expr", 1), "no day"),
        ("cron", "\x00 * * * *", "", ("schedule_expr", 1), "the character '\\x00'"),
        ("cron", "0 0 * * MO\u202e", "", ("schedule_expr", 11), "the character '\\u202e'"),
        ("cron", "0 " * 200, "", ("schedule_expr", 257), "more than 256 characters"),
        ("cron", "@weekley", "", ("schedule_expr", 1), "did you mean @weekly?"),
        ("cron", "@reboot", "", ("schedule_expr", 1), "there are @yearly"),
        ("cron", "@daily 5", "", ("schedule_expr", 8), "nothing may follow @daily"),
        ("cron", "@every", "", ("schedule_expr", 1), "@every needs one duration"),
        ("cron", "@every 5", "", ("schedule_expr", 9), "the number 5 has no unit"),
        ("cron", "@every 5mn", "", ("schedule_expr", 9), "the unit 'mn' is unknown"),
        ("cron", "@every 10ms", "", ("schedule_expr", 8), "shorter than a second"),
        ("cron", "TZ=Europe/Berln @daily", "", ("schedule_expr", 4), "did you mean Europe/Berlin?"),
        ("cron", "CRON_TZ=berlin @daily", "", ("schedule_expr", 9), "did you mean Europe/Berlin?"),
        ("cron", "TZ=Africa/Cairo @daily", "Europe/Berlin", ("schedule_expr", 1), "in `timezone`"),
        ("cron", "TZ=../../etc/passwd @daily", "", ("schedule_expr", 4), "is unknown"),
        ("cron", "@daily", "Mars/Olympus", ("timezone", 1), "names are those of the IANA"),
        ("interval", "", "", ("schedule_expr", 1), "a duration is empty"),
        ("interval", "soon", "", ("schedule_expr", 1), "is not a duration such as 90s"),
        ("interval", "-5s", "", ("schedule_expr", 1), "is not a duration"),
        ("interval", "1h30", "", ("schedule_expr", 5), "the number 30 has no unit"),
        ("interval", "99999999h", "", ("schedule_expr", 1), "longer than a hundred years"),
        ("once", "tomorrow", "", ("schedule_expr", 1), "is not a moment such as 2026-07-01T12:00:00Z"),
        ("once", "2026-02-30T00:00:00Z", "", ("schedule_expr", 1), "day is out of range"),
        ("once", "2026-07-01T12:00:00", "", ("schedule_expr", 1), "RFC 3339"),
        ("event_delayed", "later", "", ("schedule_expr", 1), "is not a duration"),
        ("crn", "* * * * *", "", ("schedule_type", 1), "did you mean cron?"),
        ("", "* * * * *", "", ("schedule_type", 1), "there are cron, interval, once, event_delayed"),
    ],
)
def test_a_mistake_is_shown_with_its_place(
    schedule_type: str, expression: str, timezone: str, place: tuple[str, int], words: str
) -> None:
    with pytest.raises(TimetableError) as caught:
        read_timetable(schedule_type, expression, timezone=timezone, matches=cron_matches)
    assert words in str(caught.value)
    assert (caught.value.field, caught.value.column) == place


@given(st.text(max_size=40), st.sampled_from(("cron", "interval", "once", "event_delayed")))
def test_any_text_is_an_expression_or_an_error(text: str, schedule_type: str) -> None:
    column = 1
    try:
        assert next_after(read_timetable(schedule_type, text, matches=cron_matches), 0, 0) >= 0
    except TimetableError as error:
        column = error.column
    assert 1 <= column <= len(text) + 1


@given(st.lists(st.from_regex(r"[*?0-9A-Z,/#L-]{1,8}", fullmatch=True), min_size=5, max_size=5))
def test_what_the_check_lets_through_cronsim_takes(fields: list[str]) -> None:
    with suppress(TimetableError):
        read_timetable("cron", " ".join(fields), matches=cron_matches)
