"""`flush` waits for what is under way, and sleeps beside nothing."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from syncer.errors import AccessError, CorruptError, OfflineError, RemoteFullError, SyncerError
from syncer.process.engine import Engine
from syncer.process.flushing import _POLL_SECONDS
from syncer.remote.base import Entry, Payload, Placed
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
        wait_for = engine._loop.wait_for

        def waiting(number: int, timeout_seconds: float) -> None:
            waits.append(timeout_seconds)
            wait_for(number, 60)

        monkeypatch.setattr(engine._loop, "wait_for", waiting)
        monkeypatch.setattr("syncer.process.flushing.time.sleep", pytest.fail)
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


def test_far_away_the_segment_is_on_its_way_beside_the_last_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place.made_in(tmp_path)
    done: list[str] = []
    with place.engine() as engine:
        engine.flush(60, lambda state: None)
        put, place_object, list_objects = (
            engine._remote.put,
            engine._remote.place,
            engine._remote.list,
        )
        waits_for_its_name = threading.Event()

        def noting_put(key: str, data: Payload) -> bool:
            if key.startswith("blocks/"):
                # Nothing of this would come before the last block is there otherwise.
                assert waits_for_its_name.wait(10)
                done.append("block")
            return put(key, data)

        def noting_place(
            key: str, data: Payload, may_show: Callable[[], bool], look_for: Collection[str] = ()
        ) -> Placed | None:
            def noting_may_show() -> bool:
                waits_for_its_name.set()
                assert may_show()
                done.append("name")
                return True

            return place_object(key, data, noting_may_show, look_for)

        def noting_list(prefix: str) -> Iterator[Entry]:
            if prefix == "writers":
                done.append("look")
            return list_objects(prefix)

        monkeypatch.setattr("syncer.exchange.roles._LOOK_SECONDS", 3600.0)
        monkeypatch.setattr("syncer.exchange.roles._LOOK_HOLDS_SECONDS", 3600.0)
        monkeypatch.setattr(type(engine._remote), "is_far", True)
        monkeypatch.setattr(engine._remote, "put", noting_put)
        monkeypatch.setattr(engine._remote, "place", noting_place)
        monkeypatch.setattr(engine._remote, "list", noting_list)
        place.write(engine, b"/large", noise(7, 3 << 20))
        assert engine.flush(60, lambda state: None)["safe"]
    assert done == ["look", "block", "block", "block", "name"]


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
            monkeypatch.setattr("syncer.process.flushing._UPLOADS_FIRST_SECONDS", 0.3)
            engine.set_config("upload_limit", "10K")
        else:
            monkeypatch.setattr(engine._remote, "put", refuse)
        place.write(engine, b"/large", noise(7, 3 << 20))
        synced = dirty_at_own_syncs(engine, monkeypatch)
        written = engine._epochs.open
        with pytest.raises(SyncerError, match="are not on the server yet"):
            engine.flush(1, lambda state: None)
        assert synced and all(synced)
        assert durable_epochs(engine) >= written


def test_a_flush_ends_while_the_server_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place.made_in(tmp_path)
    place.remote_away()
    monkeypatch.setattr("syncer.process.flushing.PATIENCE_SECONDS", 0.1)
    with place.engine() as engine, pytest.raises(OfflineError, match=r"^200 kB are not on the"):
        engine.flush(60, lambda state: None)


def test_a_flush_goes_on_after_a_break(tmp_path: Path) -> None:
    place = Place.made_in(tmp_path)
    place.remote_away()

    def come_back(state: dict[str, Any]) -> None:
        if state["remote"]["state"] == "offline" and not place.remote.exists():
            place.remote_back()

    with place.engine() as engine:
        assert engine.flush(60, come_back)["safe"]
    assert place.remote.exists()


@pytest.mark.expects_warnings
def test_a_flush_ends_at_once_where_a_person_must_act(tmp_path: Path) -> None:
    place = Place.made_in(tmp_path)
    writers = place.remote / "writers"
    writers.rename(tmp_path / "writers")
    with place.engine() as engine:
        with pytest.raises(CorruptError, match=r"has lost who"):
            engine.flush(60, lambda state: None)
        # What was wrong the last time is tried once more.
        shutil.copytree(tmp_path / "writers", writers, dirs_exist_ok=True)
        assert engine.flush(60, lambda state: None)["safe"]


@pytest.mark.parametrize("kind", [AccessError, RemoteFullError])
@pytest.mark.parametrize("timeout_seconds", [0.5, 60.0])
def test_a_flush_ends_with_the_error_of_what_is_in_the_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[SyncerError],
    timeout_seconds: float,
) -> None:
    place = Place.made_in(tmp_path)
    if timeout_seconds > 1:
        monkeypatch.setattr("syncer.process.flushing.PATIENCE_SECONDS", 0.1)
    with place.engine() as engine:

        def refuse(*words: object) -> bool:
            raise kind("it does not store")

        monkeypatch.setattr(engine._remote, "put", refuse)
        place.write(engine, b"/more", noise(9, 300_000))
        with pytest.raises(kind, match="it does not store"):
            engine.flush(timeout_seconds, lambda state: None)


@pytest.mark.expects_warnings
def test_a_flush_ends_where_the_only_copy_of_a_block_is_damaged(tmp_path: Path) -> None:
    place = Place.made_in(tmp_path)
    place.remote_away()
    with place.engine() as engine:
        place.write(engine, b"/more", noise(9, 300_000))
    known = set(place.objects())
    place.remote_back()
    for path in place.blocks():
        if path.name not in {one.name for one in known | set(place.objects())}:
            path.unlink()
    with place.engine() as engine, pytest.raises(CorruptError, match="damaged or gone"):
        engine.flush(60, lambda state: None)
