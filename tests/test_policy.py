"""Which moments a policy keeps."""

from __future__ import annotations

from bisect import bisect_right
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from syncer.maintain.policy import Policy
from syncer.metadata.history import Moment

UTC = timezone.utc
_NS = 10**9


def moments(*times: datetime) -> list[Moment]:
    """Epochs 1, 2, ... at these times, which ascend."""
    return [Moment(n, int(time.timestamp()) * _NS) for n, time in enumerate(times, 1)]


def kept(policy: Policy, found: list[Moment], zone: timezone | ZoneInfo = UTC) -> set[int]:
    """The epochs that stay."""
    times = [moment.time_ns for moment in found]

    def at(time_ns: int) -> Moment | None:
        place = bisect_right(times, time_ns)
        return found[place - 1] if place else None

    border, chosen = policy.select(found[-1], at, zone)
    assert all(epoch <= border for epoch in chosen)
    return chosen | {moment.epoch for moment in found if moment.epoch > border}


def every(step: timedelta, count: int, end: datetime) -> list[Moment]:
    return moments(*(end - step * n for n in reversed(range(count))))


END = datetime(2026, 11, 22, 18, 30, tzinfo=UTC)


def test_within_counts_from_the_newest_moment_and_not_from_now() -> None:
    found = every(timedelta(hours=1), 100, END)
    assert kept(Policy(within_seconds=3600 * 5), found) == set(range(96, 101))
    assert kept(Policy(within_seconds=10**9), found) == set(range(1, 101))


def test_of_each_period_the_last_moment_stays() -> None:
    found = every(timedelta(minutes=20), 24 * 3 * 3, END)
    by_epoch = {moment.epoch: datetime.fromtimestamp(moment.time_ns / _NS, UTC) for moment in found}
    hours = [by_epoch[epoch] for epoch in sorted(kept(Policy(hourly=4), found))]
    assert [(time.hour, time.minute) for time in hours] == [(15, 50), (16, 50), (17, 50), (18, 30)]
    days = [by_epoch[epoch] for epoch in sorted(kept(Policy(daily=3), found))]
    assert [(time.day, time.hour, time.minute) for time in days] == [
        (20, 23, 50), (21, 23, 50), (22, 18, 30)
    ]  # fmt: skip


def test_weeks_begin_on_monday_and_months_and_years_on_their_first() -> None:
    found = every(timedelta(days=1), 1000, END)
    by_epoch = {moment.epoch: datetime.fromtimestamp(moment.time_ns / _NS, UTC) for moment in found}

    def dates(policy: Policy) -> list[str]:
        return [f"{by_epoch[epoch]:%Y-%m-%d}" for epoch in sorted(kept(policy, found))]

    assert dates(Policy(weekly=3)) == ["2026-11-08", "2026-11-15", "2026-11-22"]
    assert dates(Policy(monthly=3)) == ["2026-09-30", "2026-10-31", "2026-11-22"]
    assert dates(Policy(yearly=9)) == ["2024-12-31", "2025-12-31", "2026-11-22"]


def test_a_period_without_a_change_takes_no_place() -> None:
    found = moments(*(END - timedelta(days=days) for days in (400, 90, 30, 2, 0)))
    assert kept(Policy(daily=3), found) == {3, 4, 5}
    assert kept(Policy(daily=3, yearly=5), found) == {1, 3, 4, 5}


def test_whatever_one_rule_keeps_stays() -> None:
    found = every(timedelta(hours=1), 500, END)
    each = [Policy(within_seconds=7200), Policy(hourly=5), Policy(daily=4), Policy(monthly=2)]
    together = Policy(within_seconds=7200, hourly=5, daily=4, monthly=2)
    assert kept(together, found) == set().union(*(kept(policy, found) for policy in each))


def test_the_newest_moment_always_stays() -> None:
    found = every(timedelta(seconds=4), 50, END)
    assert kept(Policy(within_seconds=1), found) == {50}
    assert kept(Policy(yearly=1), found) == {50}
    assert kept(Policy(hourly=2000), found[:1]) == {1}


@pytest.mark.parametrize("day", [datetime(2026, 3, 29, 12), datetime(2026, 10, 25, 12)])
def test_days_are_those_of_the_calendar_when_the_clocks_change(day: datetime) -> None:
    zone = ZoneInfo("Europe/Berlin")
    end = (day + timedelta(days=2)).replace(tzinfo=zone).astimezone(UTC)
    found = every(timedelta(minutes=30), 24 * 2 * 5, end)
    stay = sorted(kept(Policy(daily=5), found, zone))
    times = [datetime.fromtimestamp(found[epoch - 1].time_ns / _NS, zone) for epoch in stay]
    assert [time.day for time in times] == [(day + timedelta(days=n)).day for n in range(-2, 3)]
    assert {(time.hour, time.minute) for time in times[:-1]} == {(23, 30)}
    assert len(kept(Policy(hourly=60), found, zone)) == 60
