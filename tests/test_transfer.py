"""Uploads, eviction and read-ahead, with their threads and a remote that fails on demand."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncer.blocks.fetch import block_key
from syncer.codec import BLOCK_BYTES, HOLE, Buffer
from syncer.config import Config
from syncer.errors import (
    AccessError,
    CorruptError,
    LocalFullError,
    RemoteFullError,
    SyncerError,
)
from syncer.rates import MovingRate, RateLimit
from syncer.transfer.threads import Transfer
from syncer.transfer.workers import Crew
from tests.block_rig import Rig, content
from tests.memory_remote import ERRORS


class Work(Rig):
    """A rig with its transfer."""

    def __init__(
        self,
        folder: Path,
        limit_bytes: int = 64_000_000,
        timeout_seconds: float = 30.0,
        settle_seconds: float = 30.0,
        upload_workers: int = 4,
    ) -> None:
        super().__init__(folder, limit_bytes, timeout_seconds)
        config = Config(remote="memory", limit_bytes=limit_bytes, upload_workers=upload_workers)
        self.transfer = Transfer(self.blocks, self.remote, config, settle_seconds=settle_seconds)

    def close(self) -> None:
        self.remote.close()
        assert self.transfer.stop()
        super().close()

    def check(self) -> None:
        """Ends the threads first: eviction may still be at work."""
        assert self.transfer.stop()
        self.blocks.collect()
        super().check()

    @property
    def errors(self) -> str:
        return self.transfer.status().uploads.error


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Work]:
    work = Work(tmp_path)
    yield work
    work.close()


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Uploads


def test_what_is_dirty_is_uploaded_and_counts_as_clean_after_that(work: Work) -> None:
    ids = [work.write(content(number)) for number in range(50)]
    work.transfer.start()
    assert work.transfer.flush(10)
    assert set(work.remote.objects) == {block_key(block_id) for block_id in ids}
    status = work.transfer.status()
    assert (status.dirty_blocks, status.dirty_bytes) == (0, 0)
    assert (status.uploads.uploaded_blocks, status.uploads.in_flight) == (50, 0)
    assert status.uploads.blocks_per_second > 0 and status.uploads.bytes_per_second > 0
    work.check()
    work.blocks.evict(10**12)
    assert not work.files()
    assert [work.blocks.get(block_id) for block_id in ids] == [content(n) for n in range(50)]


def test_what_is_written_while_uploads_run_is_uploaded_too(work: Work) -> None:
    work.transfer.start()
    for number in range(30):
        work.write(content(number))
        work.transfer.kick()
    assert work.transfer.flush(10)
    assert len(work.remote.objects) == 30


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has written a block counts as writing on for long."""
    monkeypatch.setattr("syncer.transfer.giveway._QUIET_SECONDS", 60.0)
    monkeypatch.setattr("syncer.transfer.giveway._LONGEST_SECONDS", 60.0)


@pytest.mark.usefixtures("patience")
def test_uploads_wait_while_a_program_writes_but_not_when_somebody_waits_for_them(
    work: Work,
) -> None:
    work.transfer.start()
    for number in range(20):
        work.write(content(number))
        work.transfer.kick()
        time.sleep(0.05)
    assert not work.remote.objects
    assert work.transfer.flush(10)
    assert len(work.remote.objects) == 20


@pytest.mark.usefixtures("patience")
def test_uploads_do_not_wait_where_room_is_short(tmp_path: Path) -> None:
    work = Work(tmp_path, limit_bytes=4_000_000)
    work.transfer.start()
    try:
        for number in range(80):
            work.write(content(number))
        time.sleep(0.5)
        assert not work.remote.objects
        for number in range(80, 120):
            work.write(content(number))
        wait_for(lambda: len(work.remote.objects) > 0)
    finally:
        work.close()


@pytest.mark.usefixtures("patience")
def test_uploads_to_a_far_server_do_not_wait(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(work.remote), "is_far", True)
    work.transfer.start()
    work.write(content(1))
    wait_for(lambda: len(work.remote.objects) > 0)


@pytest.mark.parametrize(
    ("is_near", "lead_blocks", "count"),
    [(False, 0, 4), (False, 3, 4), (False, 5, 5), (False, 100, 6), (True, 0, 2), (True, 100, 2)],
)
def test_as_many_blocks_are_under_way_as_the_line_carries_in_some_round_trips(
    work: Work, monkeypatch: pytest.MonkeyPatch, is_near: bool, lead_blocks: int, count: int
) -> None:
    """A near server needs fewer, and each takes memory."""
    monkeypatch.setattr(type(work.remote), "is_near", is_near)
    monkeypatch.setattr(type(work.remote), "sending_lead_bytes", lead_blocks * BLOCK_BYTES)
    work.remote.delay_seconds = 0.3
    for number in range(20):
        work.write(content(number))
    work.transfer.start()
    wait_for(lambda: work.transfer.uploads.status().in_flight == count)
    # Nor do those who come back for more, or look again, make it more.
    seen = set()
    while work.transfer.status().dirty_blocks > count:
        seen.add(work.transfer.uploads.status().in_flight)
        time.sleep(0.01)
    assert max(seen) == count
    assert work.transfer.flush(10)


def test_a_block_is_uploaded_as_soon_as_it_is_dirty(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncer.transfer.uploads._IDLE_SECONDS", 60.0)
    # To a near one they give way first.
    monkeypatch.setattr(type(work.remote), "is_far", True)
    work.transfer.start()
    for number in range(3):
        # They have looked, found nothing more, and wait.
        wait_for(lambda: work.transfer.uploads._is_watched)
        work.write(content(number))
        wait_for(lambda count=number + 1: len(work.remote.objects) == count, 5)
    assert work.transfer.flush(10)


def test_who_waits_for_what_was_dirty_does_not_wait_for_what_comes_later(work: Work) -> None:
    work.write(content(1))
    newest = work.blocks.newest_dirty
    work.transfer.start()
    assert work.transfer.send_most(10, newest)
    work.remote.fail("put", RemoteFullError("no room"), times=1000)
    work.write(content(2))
    assert work.transfer.send_most(10, newest)
    assert not work.transfer.send_most(0.3, work.blocks.newest_dirty)


def test_who_waits_is_told_when_the_last_block_is_under_way(work: Work) -> None:
    work.write(content(1))
    work.remote.delay_seconds = 2.0
    before = work.transfer.uploads.changes()
    work.transfer.start()
    work.transfer.uploads.wait_changed(before, 10)
    assert work.transfer.uploads.changes() > before
    assert work.blocks.usage().dirty_blocks, "not when it is clean only"


@pytest.mark.parametrize("is_far", [True, False])
def test_far_away_most_is_sent_when_the_last_blocks_are_under_way(
    work: Work, monkeypatch: pytest.MonkeyPatch, is_far: bool
) -> None:
    monkeypatch.setattr(type(work.remote), "is_far", is_far)
    monkeypatch.setattr(type(work.remote), "is_near", not is_far)
    work.remote.delay_seconds = 0.3
    for number in range(12):
        work.write(content(number))
    work.transfer.start()
    assert work.transfer.send_most(10, work.blocks.newest_dirty)
    under_way = work.transfer.uploads.under_way()
    dirty = {block_id for block_id, _ in work.blocks.dirty_queue(100)}
    assert bool(dirty) is is_far and dirty <= under_way
    assert work.transfer.wait_uploaded(10)
    assert not work.blocks.usage().dirty_blocks


def test_the_end_of_the_last_upload_is_not_missed(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come between a look whether all are there and the wait for the next one."""
    work.write(content(1))
    newest = work.blocks.newest_dirty
    monkeypatch.setattr("syncer.transfer.threads._EVICT_SECONDS", 60.0)
    wait_changed = work.transfer.uploads.wait_changed

    def late(changes: int, timeout_seconds: float) -> None:
        work.transfer.start()
        wait_for(lambda: not work.blocks.usage().dirty_blocks)
        wait_changed(changes, timeout_seconds)

    monkeypatch.setattr(work.transfer.uploads, "wait_changed", late)
    began = time.monotonic()
    assert work.transfer.send_most(60, newest)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("trouble", ["refuses", "can't sync"])
def test_nobody_waits_for_the_last_blocks_where_they_do_not_come_soon(
    work: Work, trouble: str
) -> None:
    if trouble == "refuses":
        work.remote.fail("put", RemoteFullError("no room"), times=1000)
    else:
        work.remote.is_durable = False
    work.write(content(1))
    work.transfer.start()
    wait_for(lambda: bool(work.errors or work.transfer.status().uploads.settling))
    assert not work.transfer.wait_uploaded(3600)


def test_the_oldest_go_first(tmp_path: Path) -> None:
    work = Work(tmp_path, upload_workers=1)
    ids = [work.write(content(number)) for number in range(30)]
    work.transfer.start()
    assert work.transfer.flush(10)
    assert list(work.remote.objects) == [block_key(block_id) for block_id in ids]
    work.close()


def test_many_completions_share_a_commit(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    real = work.blocks.mark_clean

    def mark_clean(block_ids: list[bytes]) -> None:
        time.sleep(0.05)
        commits.append(len(block_ids))
        real(block_ids)

    monkeypatch.setattr(work.blocks, "mark_clean", mark_clean)
    for number in range(60):
        work.write(content(number, 5000))
    work.transfer.start()
    assert work.transfer.flush(10)
    assert sum(commits) == 60 and len(commits) < 30


def test_a_block_that_was_dropped_is_not_uploaded(work: Work) -> None:
    work.drop(work.write(content(1)))
    kept = work.write(content(2))
    work.transfer.start()
    assert work.transfer.flush(10)
    assert set(work.remote.objects) == {block_key(kept)}


def test_uploads_resume_when_the_remote_is_back(work: Work) -> None:
    work.remote.go_offline()
    for number in range(10):
        work.write(content(number))
    work.transfer.start()
    wait_for(lambda: bool(work.errors))
    assert not work.transfer.flush(0.3)
    calls = work.remote.calls["put"]
    time.sleep(0.3)
    assert work.remote.calls["put"] - calls <= 1, "only the probe bothers a remote that is away"
    work.remote.go_online()
    assert work.transfer.flush(20)
    assert len(work.remote.objects) == 10 and not work.errors


@pytest.mark.parametrize("error", [RemoteFullError("no room"), AccessError("read-only")])
def test_a_remote_that_does_not_store_is_left_alone_for_a_while(
    work: Work, error: SyncerError
) -> None:
    work.remote.fail("put", error, times=4)
    for number in range(10):
        work.write(content(number))
    work.transfer.start()
    wait_for(lambda: work.errors == str(error))
    time.sleep(0.3)
    assert work.remote.calls["put"] <= 4, "each worker fails once at most"
    # Each attempt ends with the next failure, until none is left; a flush retries at its start.
    wait_for(lambda: work.transfer.flush(0.2))
    assert not work.errors


def test_a_worker_that_begins_to_wait_when_all_are_woken_ends_too(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer = work.transfer
    assert transfer.stop()
    for waits in (transfer.uploads._work, transfer._wishes._added):
        monkeypatch.setattr(waits, "wait", lambda _seconds: pytest.fail("it waits for nobody"))
    transfer.uploads.step()
    assert transfer._wishes.take() is None


@pytest.mark.expects_warnings
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_can_not_be_uploaded_stays_dirty_and_is_told(work: Work, error: SyncerError) -> None:
    ids = [work.write(content(number)) for number in range(5)]
    work.remote.fail("put", error, times=10_000)
    work.transfer.start()
    wait_for(lambda: bool(work.errors or work.transfer.status().uploads.damaged))
    told = [work.errors, *(text for _, text in work.transfer.status().uploads.damaged)]
    assert str(error) in told
    assert all(work.blocks.is_dirty(block_id) for block_id in ids)
    assert work.blocks.evict(1 << 30) == 0
    work.remote.work_again()
    assert work.transfer.flush(20)
    assert {block_key(block_id) for block_id in ids} == work.remote.objects.keys()
    assert not work.errors


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_can_not_be_confirmed_is_uploaded_again(tmp_path: Path, error: SyncerError) -> None:
    work = Work(tmp_path, settle_seconds=0.1)
    work.remote.is_durable = False
    work.remote.fail("stat", error, times=3)
    try:
        block_id = work.write(content(1))
        work.transfer.start()
        wait_for(lambda: work.remote.calls["stat"] >= 1)

        def is_uploaded() -> bool:
            # After an error of the login, all wait for long, unless somebody has them try again.
            work.remote.check()
            work.transfer.uploads.retry()
            return not work.blocks.is_dirty(block_id)

        wait_for(is_uploaded, 30)
        assert work.remote.calls["put"] >= 2
    finally:
        work.close()


@pytest.mark.expects_warnings
def test_a_damaged_block_is_put_aside_and_the_others_go_on(work: Work) -> None:
    ids = [work.write(content(number)) for number in range(10)]
    work.damage(ids[3])
    work.path(ids[5]).unlink()
    work.transfer.start()
    wait_for(lambda: work.blocks.usage().dirty_blocks == 2)
    wait_for(lambda: len(work.transfer.status().uploads.damaged) == 2)
    assert {block_id for block_id, _ in work.transfer.status().uploads.damaged} == {ids[3], ids[5]}
    assert block_key(ids[3]) not in work.remote.objects
    # Whoever writes the same content again repairs it.
    work.write(content(3))
    work.write(content(5))
    assert work.transfer.flush(10)
    assert len(work.remote.objects) == 10
    work.check()


@pytest.mark.expects_warnings
def test_a_file_that_rotted_after_it_was_verified_is_not_uploaded(work: Work) -> None:
    block_id = work.write(content(1))
    data = bytearray(content(1))
    data[0] ^= 1
    work.path(block_id).write_bytes(data)
    work.transfer.start()
    wait_for(lambda: bool(work.transfer.status().uploads.damaged))
    assert not work.remote.objects
    with pytest.raises(CorruptError):
        work.blocks.get(block_id)


@pytest.mark.expects_warnings
def test_a_worker_that_fails_unexpectedly_is_seen_and_goes_on(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = work.write(content(0))
    real = work.remote.put

    def put(key: str, data: bytes) -> bool:
        if key == block_key(bad):
            raise RuntimeError("a bug")
        return real(key, data)

    monkeypatch.setattr(work.remote, "put", put)
    for number in range(1, 10):
        work.write(content(number))
    work.transfer.start()
    wait_for(lambda: work.blocks.usage().dirty_blocks == 1)
    wait_for(lambda: work.transfer.status().worker_failures == 1)
    failure = work.transfer.status().last_worker_failure
    assert "a bug" in failure and "upload-" in failure


@pytest.mark.expects_warnings
def test_a_mark_that_fails_is_made_again(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    real = work.blocks.mark_clean
    failures = [LocalFullError("the disk is full")] * 2

    def mark_clean(block_ids: list[bytes]) -> None:
        if failures:
            raise failures.pop()
        real(block_ids)

    monkeypatch.setattr(work.blocks, "mark_clean", mark_clean)
    ids = [work.write(content(number)) for number in range(3)]
    work.transfer.start()
    assert work.transfer.flush(15)
    assert set(work.remote.objects) == {block_key(block_id) for block_id in ids}


def test_without_a_sync_on_the_remote_a_block_stays_dirty_until_it_settled(
    tmp_path: Path,
) -> None:
    work = Work(tmp_path, settle_seconds=0.5)
    work.remote.is_durable = False
    block_id = work.write(content(1))
    work.transfer.start()
    wait_for(lambda: block_key(block_id) in work.remote.objects)
    assert work.blocks.is_dirty(block_id)
    assert work.transfer.status().uploads.settling == 1
    assert work.transfer.flush(10)
    assert work.remote.calls["put"] == 1 and work.remote.calls["stat"] == 1
    work.close()


def test_what_did_not_survive_its_settling_is_uploaded_again(tmp_path: Path) -> None:
    work = Work(tmp_path, settle_seconds=0.5)
    work.remote.is_durable = False
    block_id = work.write(content(1))
    work.transfer.start()
    wait_for(lambda: block_key(block_id) in work.remote.objects)
    work.remote.damage(block_key(block_id), b"")
    assert work.transfer.flush(20)
    assert work.remote.calls["put"] == 2
    assert len(work.remote.objects[block_key(block_id)]) > 20_000
    work.close()


# Room


def test_the_limit_holds_while_many_write_and_uploads_are_slow(tmp_path: Path) -> None:
    limit_bytes = 24 << 20
    work = Work(tmp_path, limit_bytes=limit_bytes)
    work.remote.delay_seconds = 0.01
    work.transfer.start()
    peak, over = 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not over.is_set():
            peak = max(peak, disk_usage(tmp_path / "blocks"))

    def write(start: int) -> None:
        for number in range(start, start + 20):
            work.write(content(number, BLOCK_BYTES))

    sampler = threading.Thread(target=sample)
    sampler.start()
    writers = [threading.Thread(target=write, args=(start,)) for start in range(0, 80, 20)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert not writer.is_alive()
    assert work.transfer.flush(30)
    over.set()
    sampler.join()
    # A look takes time: it may count both what goes and what comes.
    assert peak <= limit_bytes + 2 * BLOCK_BYTES
    assert len(work.remote.objects) == 80 and work.transfer.status().evicted_blocks > 50
    work.check()
    work.close()


def disk_usage(folder: Path) -> int:
    """As du counts: each file once, though it may be renamed while we look."""
    found = {}
    for path in folder.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def fill(work: Work, limit_bytes: int) -> None:
    """Write dirty blocks until there is no room for another."""
    number = 1000
    while work.cache.budget.used_bytes + BLOCK_BYTES <= limit_bytes:
        work.write(content(number, BLOCK_BYTES))
        number += 1


def test_a_disk_without_room_is_told_before_somebody_waits(tmp_path: Path) -> None:
    work = Work(tmp_path)
    assert work.transfer.status().waiting == ""
    budget = work.cache.budget
    budget.set_limits(budget.limit_bytes, 1 << 60)
    told = work.transfer.status().waiting
    assert re.fullmatch("the local disk has less than [0-9]+ MB free; free some space", told)
    budget.set_limits(budget.limit_bytes, 0)
    assert work.transfer.status().waiting == ""


def test_a_writer_waits_for_uploads_and_is_told_why(tmp_path: Path) -> None:
    limit_bytes = 8 << 20
    work = Work(tmp_path, limit_bytes=limit_bytes)
    work.remote.go_offline()
    work.transfer.start()
    fill(work, limit_bytes)
    writer = threading.Thread(target=work.write, args=(content(1, BLOCK_BYTES),))
    writer.start()
    wait_for(lambda: bool(work.transfer.status().waiting))
    told = work.transfer.status().waiting
    assert told == "the limit of 8 MB is full of what is not uploaded yet"
    work.remote.go_online()
    writer.join(20)
    assert not writer.is_alive()
    assert not work.transfer.status().waiting
    assert work.transfer.flush(20)
    work.check()
    work.close()


def test_a_writer_gets_no_space_only_when_uploads_fail_for_too_long(tmp_path: Path) -> None:
    limit_bytes = 4 << 20
    work = Work(tmp_path, limit_bytes=limit_bytes, timeout_seconds=0.8)
    work.remote.go_offline()
    work.transfer.start()
    fill(work, limit_bytes)
    began = time.monotonic()
    with pytest.raises(LocalFullError, match="can't be uploaded"):
        work.write(content(1, BLOCK_BYTES))
    assert time.monotonic() - began >= 0.8
    work.blocks.collect()
    work.check()
    work.close()


def test_a_slow_upload_is_reason_enough_to_wait(tmp_path: Path) -> None:
    limit_bytes = 4 << 20
    work = Work(tmp_path, limit_bytes=limit_bytes, timeout_seconds=0.8)
    work.remote.delay_seconds = 2.5
    work.transfer.start()
    fill(work, limit_bytes)
    work.write(content(1, BLOCK_BYTES))
    work.remote.delay_seconds = 0
    assert work.transfer.flush(20)
    work.close()


def test_stopping_ends_every_wait(tmp_path: Path) -> None:
    limit_bytes, timeout_seconds = 4 << 20, 20.0
    work = Work(tmp_path, limit_bytes=limit_bytes, timeout_seconds=timeout_seconds)
    work.remote.go_offline()
    work.transfer.start()
    fill(work, limit_bytes)
    failed = threading.Event()

    def write() -> None:
        with pytest.raises(LocalFullError):
            work.write(content(1, BLOCK_BYTES))
        failed.set()

    writer = threading.Thread(target=write)
    writer.start()
    wait_for(lambda: work.cache.budget.waiting == 1)
    assert work.transfer.stop()
    writer.join(timeout_seconds / 2)
    assert failed.is_set()
    writer.join()
    work.close()


def test_room_is_made_before_anyone_needs_it(tmp_path: Path) -> None:
    limit_bytes = 16 << 20
    work = Work(tmp_path, limit_bytes=limit_bytes)
    for number in range(16):
        work.write_clean(content(number, BLOCK_BYTES))
    work.transfer.start()
    wait_for(lambda: work.cache.budget.used_bytes <= 0.9 * limit_bytes)
    work.check()
    work.close()


def test_inline_contents_count_against_the_limit(tmp_path: Path) -> None:
    work = Work(tmp_path, limit_bytes=16 << 20)
    for number in range(12):
        work.write_clean(content(number, BLOCK_BYTES))
    with work.db.transaction():
        work.db.execute("UPDATE usage SET inline_bytes = ?", (10 << 20,))
    work.transfer.start()
    wait_for(lambda: work.blocks.usage().local_bytes <= 6 << 20)
    work.close()


# Fetching ahead


def test_what_is_fetched_ahead_is_there_when_it_is_read(work: Work) -> None:
    ids = [work.store_remotely(content(number)) for number in range(20)]
    work.transfer.start()
    work.transfer.read_ahead([HOLE, *ids, *ids])
    wait_for(lambda: all(work.blocks.is_local(block_id) for block_id in ids))
    wait_for(lambda: work.blocks.usage().local_blocks == 20)
    calls = work.remote.calls["get"]
    assert calls == 20
    assert [work.blocks.get(block_id) for block_id in ids] == [content(n) for n in range(20)]
    status = work.transfer.status()
    assert work.remote.calls["get"] == 20 and status.misses == 0 and status.fetched_blocks == 20


def test_the_latest_wishes_count_when_there_are_too_many(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [work.store_remotely(content(number, 100)) for number in range(300)]
    work.transfer.read_ahead(ids)
    work.transfer.start()
    wait_for(lambda: all(work.blocks.is_local(block_id) for block_id in ids[-256:]))
    assert not any(work.blocks.is_local(block_id) for block_id in ids[:-256])


def test_local_blocks_are_read_ahead_by_one_worker(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that wake up for what takes no time keep the interpreter from those who read."""
    ids = [work.write(content(number)) for number in range(30)]
    advised: list[tuple[int, bytes]] = []
    read_ahead = work.cache.read_ahead

    def note(block_id: bytes) -> bool:
        advised.append((threading.get_ident(), block_id))
        return read_ahead(block_id)

    monkeypatch.setattr(work.cache, "read_ahead", note)
    work.transfer.start()
    wait_for(lambda: len(work.transfer._wishes._added._waiters) > 10)
    work.transfer.read_ahead(ids)
    wait_for(lambda: len(advised) == len(ids))
    assert [block_id for _, block_id in advised] == ids
    assert len({thread for thread, _ in advised}) == 1


def test_blocks_from_the_server_are_fetched_by_many_workers(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [work.store_remotely(content(number)) for number in range(10)]
    together = threading.Barrier(len(ids))
    download = work.blocks.fetcher.download

    def wait_for_the_others(block_id: bytes, *, urgent: bool) -> Buffer:
        # Sooner than those without work look up by themselves.
        together.wait(5)
        return download(block_id, urgent=urgent)

    monkeypatch.setattr(work.blocks.fetcher, "download", wait_for_the_others)
    work.transfer.start()
    work.transfer.read_ahead(ids)
    wait_for(lambda: all(work.blocks.is_local(block_id) for block_id in ids))
    assert not together.broken


def test_fetching_ahead_fails_in_silence(work: Work) -> None:
    work.remote.go_offline()
    work.transfer.start()
    work.transfer.read_ahead([b"\1" * 16])
    wait_for(lambda: work.remote.calls["get"] == 1)
    assert work.transfer.status().worker_failures == 0


# Rates and workers


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_a_limit_holds_on_average() -> None:
    clock = Clock()
    limit = RateLimit(1_000_000, clock)
    sent = 0
    while clock.seconds < 160:
        clock.seconds += limit.take(300_000)
        sent += 300_000
        clock.seconds += 0.01
    assert 59_000_000 < sent < 61_500_000


def test_idle_time_is_not_saved_up() -> None:
    clock = Clock()
    limit = RateLimit(1_000_000, clock)
    clock.seconds += 3600
    waits = [limit.take(100_000) for _ in range(5)]
    assert waits[0] == waits[1] == waits[2] == 0 and waits[4] > 0.1


def test_no_limit_and_a_changed_limit() -> None:
    clock = Clock()
    limit = RateLimit(0, clock)
    assert limit.take(10**12) == limit.take(10**12) == 0
    limit.set(1000)
    limit.take(10_000)
    assert limit.take(1) > 9
    limit.set(0)
    assert limit.take(1) == 0


@pytest.mark.parametrize("limit_bytes", [0, 10**9])
def test_a_changed_limit_counts_for_those_who_wait(limit_bytes: int) -> None:
    """Else a mount whose uploads were held back for a while would go on waiting for an hour."""
    limit = RateLimit(1)
    limit.take(1_000_000)
    waiters = [threading.Thread(target=limit.wait, args=(1_000_000,)) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    limit.set(limit_bytes)
    for waiter in waiters:
        waiter.join(60)
        assert not waiter.is_alive()


def test_who_is_not_wanted_any_more_waits_for_no_limit() -> None:
    limit = RateLimit(1)
    limit.take(1_000_000)
    stopping = threading.Event()
    waiter = threading.Thread(target=limit.wait, args=(1_000_000, stopping.is_set))
    waiter.start()
    stopping.set()
    waiter.join(60)
    assert not waiter.is_alive()


def test_a_moving_rate_forgets() -> None:
    clock = Clock()
    rate = MovingRate(5.0, clock)
    for _ in range(100):
        rate.add(10)
        clock.seconds += 0.05
    assert rate.per_second() == pytest.approx(200, rel=0.05)
    clock.seconds += 6
    assert rate.per_second() == 0


def test_a_crew_that_does_not_end_in_time_is_told() -> None:
    crew = Crew()
    stuck = threading.Event()

    def step() -> None:
        stuck.wait(10)

    crew.add("stuck", step)
    crew.start()
    assert not crew.stop(0.1)
    stuck.set()
    assert crew.stop(5)


def test_a_crew_that_never_started_stops() -> None:
    crew = Crew()
    crew.add("idle", lambda: None)
    assert crew.stop(0.1)
