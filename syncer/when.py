"""What a person calls a moment of the past, as a time or an epoch's number; and a time's name.

Pure: the present and the time zone come from the caller. Names of snapshots are not known here.

    latest                          the newest state
    4711                            an epoch
    2026-11-22T10-05-00+0100        as syncer writes it; `:` and a blank for `T` are as good,
    2026-11-22 10:05                the offset, the seconds or all but the date may be missing
    18:00, today 18:00              of today
    yesterday, yesterday 18:00      this time yesterday, or that
    90 seconds ago, 2 hours ago     also minutes, days, weeks, months, years; "an hour ago"

Days and longer are those of the calendar: "2 days ago" is at this time of day, also across a
change of the clocks.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from syncer.errors import UsageError

_EXAMPLES = "'2 hours ago', 'yesterday 18:00', '2026-11-22 10:05', a snapshot's name or 'latest'"
_SECOND_NS = 10**9

_CLOCK = r"(\d{1,2})[:-](\d{2})(?:[:-](\d{2})(?:\.(\d{1,9}))?)?"
_DATE_TIME = re.compile(
    rf"(\d{{4}})-(\d{{2}})-(\d{{2}})(?:[T ]{_CLOCK}\s*(Z|[+-]\d{{2}}:?\d{{2}})?)?"
)
_WRITTEN = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}(\.\d{1,9})?[+-]\d{4}")
_DAY_TIME = re.compile(rf"(today|yesterday)?\s*(?:(?:at\s+)?{_CLOCK})?")
_AGO = re.compile(r"(\d{1,9}|an?)\s+(second|minute|hour|day|week|month|year)s?\s+ago")
_FIXED_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


@dataclass(frozen=True)
class When:
    """A moment: an epoch's number, or a time in ns since 1970, or (neither) the newest state."""

    epoch: int | None = None
    time_ns: int | None = None


def parse(text: str, now_ns: int, zone: tzinfo | None = None) -> When:
    """The moment that is meant. `zone` None: the local one. Raises UsageError."""
    words = " ".join(text.split())
    if words.lower() in ("latest", "now"):
        return When()
    if re.fullmatch(r"\d{1,18}", words):
        return When(epoch=int(words))
    now = _from_ns(now_ns, zone)
    for read in (_read_date_time, _read_day_time, _read_ago):
        try:
            time_ns = read(words, now, zone)
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{text!r} is no time that there was: {error}") from error
        if time_ns is not None:
            return When(time_ns=time_ns)
    raise UsageError(f"{text!r} is no moment that syncer knows; write {_EXAMPLES}")


def _read_date_time(words: str, now: datetime, zone: tzinfo | None) -> int | None:
    match = _DATE_TIME.fullmatch(words)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    moment = datetime(
        int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0)
    )
    if offset:
        moment = datetime.strptime(f"{moment.isoformat()}{offset}", "%Y-%m-%dT%H:%M:%S%z")
    return _to_ns(moment, zone) + _fraction_ns(fraction)


def _read_day_time(words: str, now: datetime, zone: tzinfo | None) -> int | None:
    match = _DAY_TIME.fullmatch(words.lower())
    if match is None or not match[0]:
        return None
    day, hour, minute, second, fraction = match.groups()
    moment = _days_before(now, 1 if day == "yesterday" else 0)
    if hour is not None:
        moment = moment.replace(
            hour=int(hour), minute=int(minute), second=int(second or 0), microsecond=0
        )
    return _to_ns(moment, zone) + _fraction_ns(fraction)


def _read_ago(words: str, now: datetime, zone: tzinfo | None) -> int | None:
    match = _AGO.fullmatch(words.lower())
    if match is None:
        return None
    count, unit = 1 if match[1].startswith("a") else int(match[1]), match[2]
    if unit in _FIXED_SECONDS:
        return _to_ns(now - timedelta(seconds=count * _FIXED_SECONDS[unit]), zone)
    if unit in ("day", "week"):
        return _to_ns(_days_before(now, count * (7 if unit == "week" else 1)), zone)
    return _to_ns(_months_before(now, count * (12 if unit == "year" else 1)), zone)


def _days_before(now: datetime, days: int) -> datetime:
    """The same time of day; naive, so that the offset is that of then."""
    return now.replace(tzinfo=None) - timedelta(days=days)


def _months_before(now: datetime, months: int) -> datetime:
    """The same day of an earlier month, or its last day if it is too short."""
    year, month = divmod(now.year * 12 + now.month - 1 - months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return now.replace(tzinfo=None, year=year, month=month + 1, day=min(now.day, last))


def _from_ns(time_ns: int, zone: tzinfo | None) -> datetime:
    """A time with its offset, cut to microseconds."""
    seconds, rest_ns = divmod(time_ns, _SECOND_NS)
    return datetime.fromtimestamp(seconds, zone).astimezone(zone).replace(
        microsecond=rest_ns // 1000
    )  # fmt: skip


def _to_ns(moment: datetime, zone: tzinfo | None) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone) if zone else moment.astimezone()
    seconds = int(moment.replace(microsecond=0).timestamp())
    return seconds * _SECOND_NS + moment.microsecond * 1000


def _fraction_ns(digits: str | None) -> int:
    return int((digits or "").ljust(9, "0"))


def written(time_ns: int, zone: tzinfo | None = None, digits: int = 0) -> str:
    """A time's name, which `parse` reads back, with `digits` (0 to 9) of the fraction."""
    moment = _from_ns(time_ns, zone)
    fraction = f".{time_ns % _SECOND_NS:09d}"[: digits + 1] if digits else ""
    return f"{moment:%Y-%m-%dT%H-%M-%S}{fraction}{moment:%z}"


def is_written(text: str) -> bool:
    """Whether a text is a time as `written` makes it, whose meaning hangs on no clock and zone."""
    return _WRITTEN.fullmatch(text) is not None


def shortest(time_ns: int, is_same: Callable[[int], bool], zone: tzinfo | None = None) -> str:
    """The shortest name of a time at or soon after `time_ns` for which `is_same` holds.

    It must hold for `time_ns` itself, of which the longest name is made if need be.
    """
    for digits in (0, 3, 6):
        unit = 10 ** (9 - digits)
        rounded = -(-time_ns // unit) * unit
        if is_same(rounded):
            return written(rounded, zone, digits)
    return written(time_ns, zone, 9)
