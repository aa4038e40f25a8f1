"""The committer's thread: what it does at once, and what waits until programs are quiet."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from syncer.errors import LocalFullError, SyncerError
from syncer.process.committer import Committer
from tests.vfs_rig import ME, VfsRig

_SOON_SECONDS = 30.0
_INTERVAL_SECONDS = 0.05


class Busy:
    """A committer with a thread, and programs that are busy as long as the test says."""

    def __init__(self, rig: VfsRig, interval_seconds: float = _INTERVAL_SECONDS) -> None:
        self.is_busy = True
        self.asked = threading.Event()
        self.journaled: list[int] = []
        self.closed = threading.Event()
        self.committer = Committer(
            rig.db,
            rig.epochs,
            rig.blocks,
            rig.vfs,
            interval_seconds,
            self.closed.set,
            self.journaled.append,
        )
        self.committer._gives_way.waits = self._waits  # type: ignore[method-assign]

    def _waits(self, now: float) -> bool:
        self.asked.set()
        return self.is_busy


@pytest.fixture
def start(rig: VfsRig) -> Iterator[Callable[..., Busy]]:
    begun: list[Busy] = []

    def begin(interval_seconds: float) -> Busy:
        busy = Busy(rig, interval_seconds)
        begun.append(busy)
        rig.make(b"/file", b"content")
        busy.committer.start()
        return busy

    yield begin
    for busy in begun:
        busy.is_busy = False
        busy.committer.stop()


def test_while_programs_are_busy_all_is_safe_and_the_rest_waits(
    rig: VfsRig, start: Callable[..., Busy], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the longest that they are let pass ends within the test.
    monkeypatch.setattr("syncer.process.committer._LONGEST_PART", 1e6)
    epoch = rig.epochs.open
    busy = start(_INTERVAL_SECONDS)
    assert busy.asked.wait(_SOON_SECONDS)
    assert rig.db.get_meta("durable") == epoch
    assert rig.db._synced == rig.db.ended
    assert not busy.journaled and not busy.closed.is_set()
    busy.is_busy = False
    assert busy.closed.wait(_SOON_SECONDS)
    assert busy.journaled[0] == epoch


def test_who_asks_for_a_round_does_not_wait_for_programs_that_are_busy(
    rig: VfsRig, start: Callable[..., Busy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncer.process.committer._LONGEST_PART", 1e6)
    busy = start(_INTERVAL_SECONDS)
    assert busy.asked.wait(_SOON_SECONDS)
    rig.make(b"/other", b"content")
    epoch = rig.epochs.open
    busy.committer.round()
    assert busy.journaled == [epoch]
    assert busy.closed.is_set()


def test_small_rewrites_go_with_their_epoch_however_busy_programs_are(
    rig: VfsRig, start: Callable[..., Busy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncer.process.committer._LONGEST_PART", 1e6)
    rig.contents.add_patches(rig.make(b"/rewritten", b"content"), [(0, b"C")], 7, 1)
    busy = start(_INTERVAL_SECONDS)
    assert busy.closed.wait(_SOON_SECONDS)
    assert busy.journaled and not busy.asked.is_set()


def test_programs_that_are_always_busy_are_not_waited_for_for_ever(
    start: Callable[..., Busy],
) -> None:
    busy = start(_INTERVAL_SECONDS)
    assert busy.closed.wait(_SOON_SECONDS)
    assert busy.journaled and busy.is_busy


def test_the_end_does_not_wait_for_programs_that_are_busy(
    rig: VfsRig, start: Callable[..., Busy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncer.process.committer._LONGEST_PART", 1e6)
    busy = start(_INTERVAL_SECONDS)
    assert busy.asked.wait(_SOON_SECONDS)
    busy.committer.stop()
    assert busy.journaled


@pytest.mark.expects_warnings
@pytest.mark.parametrize("place", ["programs are let pass", "the round has ended"])
@pytest.mark.parametrize("error", [SyncerError("the database is locked"), ZeroDivisionError()])
def test_the_thread_outlives_an_error_wherever_it_comes(
    rig: VfsRig, place: str, error: Exception
) -> None:
    failures = 2
    told: list[str] = []
    is_over = threading.Event()

    def come_to(here: str) -> bool:
        nonlocal failures
        if here == place and failures:
            failures -= 1
            raise error
        if here == place:
            is_over.set()
        return False

    def let_pass(now: float) -> bool:
        told.append(committer.error)
        return come_to("programs are let pass")

    def close() -> None:
        come_to("the round has ended")

    committer = Committer(rig.db, rig.epochs, rig.blocks, rig.vfs, _INTERVAL_SECONDS, close)
    committer._gives_way.waits = let_pass  # type: ignore[method-assign]
    committer.start()
    try:
        assert is_over.wait(_SOON_SECONDS), "the thread has ended"
    finally:
        failures = 0
        committer.stop()
    # What `status` shows from the failure to the next round that goes well.
    assert told[:3] == ["", told[1], told[1]] and told[1]


@pytest.mark.expects_warnings
def test_a_round_that_fails_is_told_of_until_one_succeeds(
    rig: VfsRig, start: Callable[..., Busy], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise LocalFullError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(rig.blocks, "sync_all", fail)
        busy = start(_INTERVAL_SECONDS)
        busy.is_busy = False
        assert failed.wait(_SOON_SECONDS)
        failed.clear()
        assert failed.wait(_SOON_SECONDS), "the next round tries again"
        assert busy.committer.error == "the disk is full"
        assert not busy.journaled and not busy.closed.is_set()
    assert busy.closed.wait(_SOON_SECONDS)
    assert busy.committer.error == ""


@pytest.mark.expects_warnings
def test_at_the_end_all_else_is_safe_before_anybody_waits_for_room(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.make(b"/closed", b"content")
    handle = rig.vfs.create(b"/open", 0o644, os.O_RDWR, ME)
    rig.vfs.write(handle, memoryview(bytes(range(256)) * 400), 0)
    epoch = rig.epochs.open
    durable: list[int] = []
    flush_all = rig.vfs.files.flush_all

    def flush(*, seal: bool) -> dict[int, SyncerError]:
        if not hasattr(rig.committer._patience, "until"):
            durable.append(rig.db.get_meta("durable"))
        return flush_all(seal=seal)

    def refuse(size_bytes: int) -> None:
        raise LocalFullError("there is no room")

    monkeypatch.setattr(rig.vfs.files, "flush_all", flush)
    monkeypatch.setattr(rig.cache.budget, "reserve", refuse)
    with pytest.raises(
        LocalFullError, match=r"1 file could not be saved \(/open: there is no room"
    ):
        rig.committer.stop()
    assert durable == [epoch]


@pytest.mark.expects_warnings
def test_what_was_removed_need_not_be_saved_at_the_end(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = rig.vfs.create(b"/open", 0o644, os.O_RDWR, ME)
    rig.vfs.write(handle, memoryview(bytes(range(256)) * 400), 0)
    rig.vfs.unlink(b"/open")

    def refuse(size_bytes: int) -> None:
        raise LocalFullError("there is no room")

    with monkeypatch.context() as patch:
        patch.setattr(rig.cache.budget, "reserve", refuse)
        rig.committer.stop()
    rig.vfs.release(handle)
