"""`flush` waits for what is under way, and sleeps beside nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from syncer.errors import SyncerError, TemporaryError
from syncer.process.engine import _POLL_SECONDS, Engine
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


def dirty_at_own_syncs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks the remote lacks when the calling thread has block files synced."""
    found: list[int] = []
    cache = engine._blocks.cache
    caller = threading.current_thread()

    def noting(real: Callable[..., object]) -> Callable[..., object]:
        def sync(*words: object) -> object:
            if threading.current_thread() is caller:
                found.append(engine._blocks.usage().dirty_blocks)
            return real(*words)

        return sync

    monkeypatch.setattr(cache, "sync_all", noting(cache.sync_all))
    monkeypatch.setattr(cache, "sync", noting(cache.sync))
    return found


def durable_epochs(engine: Engine) -> int:
    return int(engine._db.get_meta("durable"))


def test_flush_syncs_no_block_here_that_the_remote_has_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place.made_in(tmp_path)
    with place.engine() as engine:
        place.write(engine, b"/large", noise(7, 20 << 20))
        synced = dirty_at_own_syncs(engine, monkeypatch)
        assert engine.flush(60, lambda state: None)["safe"]
        assert not synced


@pytest.mark.parametrize("obstacle", ["slow", "refuses"])
def test_flush_makes_all_power_safe_here_where_the_remote_does_not_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    place = Place.made_in(tmp_path)
    with place.engine() as engine:
        engine.flush(60, lambda state: None)

        def refuse(*words: object) -> bool:
            raise SyncerError("not now")

        if obstacle == "slow":
            monkeypatch.setattr("syncer.process.engine._UPLOADS_FIRST_SECONDS", 0.3)
            engine.set_config("upload_limit", "10K")
        else:
            monkeypatch.setattr(engine._remote, "put", refuse)
        place.write(engine, b"/large", noise(7, 3 << 20))
        synced = dirty_at_own_syncs(engine, monkeypatch)
        written = engine._epochs.open
        began = time.monotonic()
        with pytest.raises(TemporaryError):
            engine.flush(1, lambda state: None)
        assert time.monotonic() - began < 3
        assert synced and all(synced)
        assert durable_epochs(engine) >= written
