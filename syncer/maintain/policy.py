"""Which moments a person wants to keep: the newest of each hour, day and so on, for a while.

Pure, but for the time zone. Times are counted back from the newest moment and not from now, and a
period in which nothing changed takes no place. So neither a clock that is wrong nor a year without
a change prunes anything by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, tzinfo
from itertools import islice

from syncer.metadata.history import Moment

_SECOND_NS = 10**9

#: The newest moment that had begun by a time in ns since 1970, or None.
At = Callable[[int], Moment | None]


@dataclass(frozen=True)
class Policy:
    """How much is kept; 0 is none. Whatever one of them keeps stays."""

    within_seconds: float = 0.0
    """All moments that are younger than this before the newest."""
    hourly: int = 0
    """Of so many hours in which something changed, the newest moment of each; likewise below."""
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return any(getattr(self, field.name) for field in fields(self))

    def select(self, newest: Moment, at: At, zone: tzinfo | None = None) -> tuple[int, set[int]]:
        """(b, kept): all epochs behind b are kept, and of those up to b the ones in `kept`.

        `zone` None: the local one.
        """
        before = at(newest.time_ns - int(self.within_seconds * _SECOND_NS))
        border = 0 if before is None else min(before.epoch, newest.epoch - 1)
        kept: set[int] = set()
        for count, begin in (
            (self.hourly, _hour),
            (self.daily, _day),
            (self.weekly, _week),
            (self.monthly, _month),
            (self.yearly, _year),
        ):
            moments = islice(_newest_of_each(begin, newest, at, zone), count)
            kept.update(moment.epoch for moment in moments if moment.epoch <= border)
        return border, kept


def _newest_of_each(
    begin: Callable[[datetime], datetime], newest: Moment, at: At, zone: tzinfo | None
) -> Iterator[Moment]:
    moment: Moment | None = newest
    while moment is not None:
        yield moment
        start = begin(datetime.fromtimestamp(moment.time_ns // _SECOND_NS, zone))
        # At a change of the clocks a period may seem to begin later than it does.
        start_ns = min(int(start.timestamp()) * _SECOND_NS, moment.time_ns)
        moment = at(start_ns - 1)


def _hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0)


def _day(time: datetime) -> datetime:
    return time.replace(hour=0, minute=0, second=0, fold=0)


def _week(time: datetime) -> datetime:
    return _day(time) - timedelta(days=time.weekday())


def _month(time: datetime) -> datetime:
    return _day(time).replace(day=1)


def _year(time: datetime) -> datetime:
    return _month(time).replace(month=1)
