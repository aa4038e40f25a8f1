"""A clock that jumps, by hours or years, in both directions: a dead battery, a wrong zone."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from syncer.blocks.fetch import trash_key
from syncer.metadata.epochs import FileClock
from tests.block_rig import content
from tests.prune_rig import SECOND_NS, PruneRig, ids_of
from tests.vfs_rig import fast_folder

HOUR, DAY, YEAR = 3600, 86400, 365 * 86400


@pytest.fixture
def rig() -> Iterator[PruneRig]:
    with fast_folder() as folder:
        rig = PruneRig(folder)
        yield rig
        rig.close()


def moments(rig: PruneRig) -> int:
    return int(rig.db.query("SELECT count(*) FROM epoch")[0][0])


def days_of_work(rig: PruneRig, days: int) -> None:
    """A moment a day, each published."""
    for day in range(days):
        rig.write(b"/diary", content(day))
        rig.advance(DAY)
    rig.publish()


@pytest.mark.parametrize("seed", range(4))
def test_history_stays_in_order_and_every_moment_keeps_a_name(rig: PruneRig, seed: int) -> None:
    chance = random.Random(seed)
    snapshots = {}
    for step in range(30):
        rig.now_ns += chance.choice((1, -1)) * chance.choice((1, HOUR, DAY, 9 * YEAR)) * SECOND_NS
        # What the clock of a computer can show: from 1970 on.
        rig.now_ns = max(rig.now_ns, SECOND_NS)
        rig.write(b"/file", content(step))
        if chance.random() < 0.3:
            snapshots[f"number {step}"] = rig.snapshot(f"number {step}")
        rig.round(seal=True)
        listed = rig.moments.listed(0, 1000)
        assert [epoch for _, epoch in listed] == list(range(1, rig.moments.latest() + 1))
        for name, epoch in listed:
            assert rig.moments.find(name) == epoch
            assert rig.moments.find(rig.moments.written(epoch)) == epoch
    times = [row[0] for row in rig.db.query("SELECT time_ns FROM epoch ORDER BY seq")]
    assert times == sorted(set(times))
    rig.publish()
    for name, before in snapshots.items():
        assert rig.copy_of(name) == before


def test_a_clock_that_was_ahead_for_a_while_prunes_nothing_by_itself(rig: PruneRig) -> None:
    days_of_work(rig, 20)
    rig.policy = {"keep_within_seconds": 10 * DAY}
    rig.settle()
    rig.publish()
    rig.settle()
    kept = moments(rig)
    assert kept < 20, "the policy works where the clock is right"
    right_ns = rig.now_ns
    # The battery is empty, and somebody works and publishes before the time is set.
    rig.now_ns += 70 * YEAR * SECOND_NS
    rig.write(b"/diary", content(100))
    rig.advance(HOUR)
    rig.publish()
    rig.settle()
    assert moments(rig) == kept + 1
    # It is set; the wrong time stays in the history.
    rig.now_ns = right_ns
    days_of_work(rig, 3)
    rig.settle()
    assert moments(rig) == kept + 4


def test_after_a_long_holiday_pruning_begins_with_the_second_day(rig: PruneRig) -> None:
    days_of_work(rig, 20)
    rig.policy = {"keep_within_seconds": 10 * DAY}
    before = moments(rig)
    rig.now_ns += YEAR * SECOND_NS
    rig.write(b"/diary", content(100))
    rig.advance(HOUR)
    rig.publish()
    rig.settle()
    assert moments(rig) == before + 1
    days_of_work(rig, 3)
    for _ in range(2):
        rig.settle()
        rig.publish()
    assert moments(rig) < 10


def test_a_clock_that_is_ahead_does_not_empty_the_trash(rig: PruneRig) -> None:
    rig.grace_seconds = 7 * DAY
    rig.make(b"/file", content(1))
    rig.advance()
    rig.vfs.unlink(b"/file")
    rig.prune()
    (block_id,) = ids_of([content(1)])
    assert rig.stored("trash") == {block_id}
    right_ns = rig.now_ns
    rig.now_ns += 70 * YEAR * SECOND_NS
    rig.settle()
    rig.sweep()
    assert trash_key(block_id) in rig.remote.objects
    rig.now_ns = right_ns + 8 * DAY * SECOND_NS
    rig.settle()
    rig.sweep()
    assert trash_key(block_id) not in rig.remote.objects, "in time it goes"


def test_what_became_garbage_while_the_clock_was_ahead_goes_in_time(rig: PruneRig) -> None:
    rig.grace_seconds = 7 * DAY
    rig.make(b"/file", content(1))
    rig.advance()
    right_ns = rig.now_ns
    rig.now_ns += 70 * YEAR * SECOND_NS
    rig.vfs.unlink(b"/file")
    rig.prune()
    (block_id,) = ids_of([content(1)])
    assert rig.stored("trash") == {block_id}
    rig.now_ns = right_ns
    rig.settle()
    assert trash_key(block_id) in rig.remote.objects
    # The grace begins anew with the clock that is right, whatever was noted before.
    rig.now_ns += 6 * DAY * SECOND_NS
    rig.settle()
    assert trash_key(block_id) in rig.remote.objects
    rig.now_ns += 2 * DAY * SECOND_NS
    rig.settle()
    assert trash_key(block_id) not in rig.remote.objects


def test_files_get_the_time_of_a_clock_that_was_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FileClock()
    with monkeypatch.context() as ahead:
        wrong_ns = time.time_ns() + YEAR * SECOND_NS
        ahead.setattr(time, "time_ns", lambda: wrong_ns + SECOND_NS)
        clock.note(wrong_ns)
    assert abs(clock.now_ns() - time.time_ns()) < HOUR * SECOND_NS
