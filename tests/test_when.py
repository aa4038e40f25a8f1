"""Words for moments: each case is a row of a table."""

from __future__ import annotations

from datetime import datetime, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest

from syncer import when
from syncer.errors import UsageError

#: The clocks were set back on 25 October, at 3:00.
BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 22, 10, 5, 30, 250_000, BERLIN)


def ns(moment: datetime) -> int:
    return int(moment.replace(microsecond=0).timestamp()) * 10**9 + moment.microsecond * 1000


def berlin(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=BERLIN)  # type: ignore[arg-type,misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T10-05-00+0100", berlin(2026, 11, 22, 10, 5)),
        ("2026-11-22T10:05:00+01:00", berlin(2026, 11, 22, 10, 5)),
        ("2026-11-22T09:05:00Z", berlin(2026, 11, 22, 10, 5)),
        ("2026-11-22T10-05-00.250+0100", berlin(2026, 11, 22, 10, 5, 0, 250_000)),
        ("2026-11-22 10:05", berlin(2026, 11, 22, 10, 5)),
        ("  2026-11-22   10:05:07 ", berlin(2026, 11, 22, 10, 5, 7)),
        ("2026-11-22", berlin(2026, 11, 22)),
        ("2026-07-01 12:00", berlin(2026, 7, 1, 12)),
        ("18:00", berlin(2026, 11, 22, 18)),
        ("today 9:30", berlin(2026, 11, 22, 9, 30)),
        ("yesterday", berlin(2026, 11, 21, 10, 5, 30, 250_000)),
        ("yesterday 18:00", berlin(2026, 11, 21, 18)),
        ("Yesterday at 18:00:05", berlin(2026, 11, 21, 18, 0, 5)),
        ("2 hours ago", berlin(2026, 11, 22, 8, 5, 30, 250_000)),
        ("an hour ago", berlin(2026, 11, 22, 9, 5, 30, 250_000)),
        ("90 seconds ago", berlin(2026, 11, 22, 10, 4, 0, 250_000)),
        ("1 minute ago", berlin(2026, 11, 22, 10, 4, 30, 250_000)),
        ("2 weeks ago", berlin(2026, 11, 8, 10, 5, 30, 250_000)),
        ("35 days ago", berlin(2026, 10, 18, 10, 5, 30, 250_000)),
        ("a month ago", berlin(2026, 10, 22, 10, 5, 30, 250_000)),
        ("9 months ago", berlin(2026, 2, 22, 10, 5, 30, 250_000)),
        ("11 months ago", berlin(2025, 12, 22, 10, 5, 30, 250_000)),
        ("a year ago", berlin(2025, 11, 22, 10, 5, 30, 250_000)),
    ],
)
def test_a_time_is_understood(text: str, expected: datetime) -> None:
    assert when.parse(text, ns(NOW), BERLIN) == when.When(time_ns=ns(expected))


def test_a_month_ago_is_its_last_day_where_it_is_too_short() -> None:
    now = ns(berlin(2026, 3, 31, 12))
    assert when.parse("a month ago", now, BERLIN).time_ns == ns(berlin(2026, 2, 28, 12))


@pytest.mark.parametrize("text", ["latest", "now", "Latest"])
def test_latest_is_neither_time_nor_epoch(text: str) -> None:
    assert when.parse(text, ns(NOW), BERLIN) == when.When()


def test_a_number_is_an_epoch() -> None:
    assert when.parse("4711", ns(NOW), BERLIN) == when.When(epoch=4711)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "before the holidays",
        "2026-13-01",
        "2026-02-30 10:00",
        "yesterday 25:00",
        "hours ago",
        "999999999 years ago",
        "999999999 weeks ago",
        "2026-11-22T10-05-00+9999",
        "-3 hours ago",
        "1234567890123456789",
    ],
)
def test_what_is_no_moment_is_a_mistake(text: str) -> None:
    with pytest.raises(UsageError):
        when.parse(text, ns(NOW), BERLIN)


@pytest.mark.parametrize("zone", [BERLIN, timezone.utc, None])
@pytest.mark.parametrize("digits", [3, 6, 9])
def test_a_written_time_is_read_back(zone: tzinfo | None, digits: int) -> None:
    time_ns = ns(NOW) + 1_234_567
    name = when.written(time_ns, zone, digits)
    unit = 10 ** (9 - digits)
    assert when.parse(name, 0, zone).time_ns == time_ns // unit * unit


def test_a_time_is_written_with_its_offset() -> None:
    assert when.written(ns(NOW), BERLIN) == "2026-11-22T10-05-30+0100"
    assert when.written(ns(berlin(2026, 7, 1)), BERLIN) == "2026-07-01T00-00-00+0200"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T10-05-30+0100", True),
        ("2026-11-22T10-05-30.250+0100", True),
        ("2026-11-22T10-05-30", False),
        ("2026-11-22T10:05:30+0100", False),
        ("yesterday", False),
    ],
)
def test_only_a_time_with_its_offset_is_a_written_one(text: str, expected: bool) -> None:
    assert when.is_written(text) == expected


@pytest.mark.parametrize(
    ("until_ns", "name"),
    [
        (10**9, "2026-11-22T10-05-31+0100"),
        (10**7, "2026-11-22T10-05-30.251+0100"),
        (10**4, "2026-11-22T10-05-30.250002+0100"),
        (1, "2026-11-22T10-05-30.250001500+0100"),
    ],
)
def test_the_shortest_name_is_one_that_means_the_same(until_ns: int, name: str) -> None:
    time_ns = ns(NOW) + 1500
    found = when.shortest(time_ns, lambda other: other < time_ns + until_ns, BERLIN)
    assert found == name
