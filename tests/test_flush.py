"""`flush` waits for what is under way, and sleeps beside nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncer.process.engine import _POLL_SECONDS
from tests.damage import Place, noise


def test_flush_waits_for_a_publication_that_takes_several_round_trips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that took longer than a look at it, the end was not noticed before the next look."""
    place = Place.made_in(tmp_path)
    waits: list[float] = []
    with place.engine() as engine:
        engine.flush(60, lambda state: None)
        place.write(engine, b"/later", noise(7, 10_000))
        step_now = engine._loop.step_now

        def waiting(timeout_seconds: float) -> None:
            waits.append(timeout_seconds)
            step_now(60)

        monkeypatch.setattr(engine._loop, "step_now", waiting)
        monkeypatch.setattr("syncer.process.engine.time.sleep", pytest.fail)
        assert engine.flush(60, lambda state: None)["safe"]
        assert waits == [pytest.approx(2.0)]
        # Who has no more time does not wait longer for it.
        place.write(engine, b"/last", noise(8, 10_000))
        engine.flush(0, lambda state: None)
        assert waits[1:] == [_POLL_SECONDS]
