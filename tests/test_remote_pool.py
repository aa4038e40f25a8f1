"""How many connections a remote opens, and when."""

from __future__ import annotations

from syncer.remote.pool import CALLERS, CROWD, CROWDED_SECONDS, QUICK_BYTES_PER_SECOND, Crowd

LONG_SECONDS = 2 * CROWDED_SECONDS


def test_a_crowd_that_lasts_and_is_slow_gets_one_more_connection() -> None:
    crowd = Crowd()
    assert not crowd.needs_more(CALLERS, 0, 0.0)
    assert not crowd.needs_more(CROWD, 1 << 20, CROWDED_SECONDS / 2)
    assert crowd.needs_more(CROWD, 2 << 20, LONG_SECONDS)
    assert not crowd.needs_more(CALLERS, 3 << 20, LONG_SECONDS + 0.1), "one at a time"
    assert crowd.needs_more(CALLERS, 4 << 20, 2 * LONG_SECONDS)


def test_a_crowd_that_moves_much_is_left_alone() -> None:
    """The processors or the line are busy: another connection would only cost more."""
    crowd = Crowd()
    per_step = int(QUICK_BYTES_PER_SECOND * LONG_SECONDS)
    for step in range(5):
        assert not crowd.needs_more(CALLERS, 7 + step * per_step, step * LONG_SECONDS)
    # What was moved long ago does not count.
    assert crowd.needs_more(CALLERS, 7 + 4 * per_step, 5 * LONG_SECONDS)


def test_a_crowd_that_ends_is_forgotten() -> None:
    crowd = Crowd()
    assert not crowd.needs_more(CROWD, 0, 0.0)
    assert not crowd.needs_more(CROWD - 1, 0, CROWDED_SECONDS)
    assert not crowd.needs_more(CROWD, 0, LONG_SECONDS)
