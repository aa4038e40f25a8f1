"""What is local stays while it is needed, and what is fetched is right."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from syncer import codec
from syncer.blocks.fetch import block_key
from syncer.codec import BLOCK_BYTES, HOLE
from syncer.errors import CorruptError, LocalFullError, MissingError, OfflineError, SyncerError
from tests.block_rig import SEED, Rig, content
from tests.memory_remote import ERRORS


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


def run_all(works: Iterable[Callable[[], None]], timeout_seconds: float = 60) -> None:
    """Run these at once, each in a thread of its own, and raise the first of their errors."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout_seconds)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


# Putting, naming, dropping


def test_zeros_take_no_room(rig: Rig) -> None:
    assert rig.blocks.put(bytes(BLOCK_BYTES)) == rig.blocks.put(bytes(10)) == HOLE
    with rig.db.transaction():
        rig.blocks.name([HOLE])
        rig.blocks.unname([HOLE])
    rig.blocks.unhold([HOLE, HOLE])
    rig.check()
    assert not rig.files()


def test_what_is_local_and_will_be_read_is_brought_from_the_disk(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        asked.append((os.readlink(f"/proc/self/fd/{descriptor}"), advice))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    block_id = rig.write(content(1))
    rig.blocks.prefetch(block_id)
    assert asked == [(os.fspath(rig.path(block_id)), os.POSIX_FADV_WILLNEED)]
    assert rig.remote.calls["get"] == 0
    # What is fetched is in memory already; and what has just gone is nobody's fault.
    rig.blocks.prefetch(rig.store_remotely(content(2)))
    rig.blocks.cache.read_ahead(bytes(16))
    assert len(asked) == 1


def test_what_is_written_is_local_and_dirty(rig: Rig) -> None:
    block_id = rig.write(content(1))
    assert rig.blocks.is_local(block_id) and rig.blocks.is_dirty(block_id)
    assert rig.blocks.get(block_id) == content(1)
    assert rig.read_block(block_id, 100, 50) == content(1)[100:150]
    assert rig.read_block(block_id, 19_990, 50) == content(1)[19_990:]
    assert rig.remote.calls["get"] == 0
    rig.check()


def test_the_same_content_is_stored_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rig.write(content(1))
    monkeypatch.setattr(rig.cache, "add", None)
    assert rig.write(content(1)) == first
    rig.drop(first)
    rig.blocks.collect()
    assert rig.blocks.get(first) == content(1), "one file names it still"
    rig.drop(first)
    rig.blocks.collect()
    assert not rig.files()
    rig.check()


def test_content_that_the_remote_has_is_not_dirty_again_while_it_is_local(rig: Rig) -> None:
    block_id = rig.write_clean(content(1))
    rig.write(content(1))
    assert not rig.blocks.is_dirty(block_id)
    rig.check()


def test_what_nothing_names_goes_when_it_is_let_go(rig: Rig) -> None:
    block_id = rig.blocks.put(content(1))
    rig.blocks.put(content(1))
    rig.blocks.unhold([block_id])
    rig.blocks.collect()
    assert rig.files()
    rig.blocks.unhold([block_id])
    rig.blocks.collect()
    assert not rig.files()
    rig.check()


def recording(real: Callable[..., object], name: str, steps: list[str]) -> Callable[..., object]:
    def record(*arguments: object) -> object:
        steps.append(name)
        return real(*arguments)

    return record


def test_a_dropped_blocks_file_stays_until_its_replacement_is_safe(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    old = rig.write(content(1))
    rig.drop(old)
    assert rig.files()
    new = rig.write(content(2))
    for owner, name in ((rig.cache, "sync_all"), (rig.db, "sync"), (rig.cache, "remove")):
        monkeypatch.setattr(owner, name, recording(getattr(owner, name), name, steps))
    rig.blocks.collect()
    assert steps == ["sync_all", "sync", "remove"]
    assert rig.files().keys() == {new}


def test_a_transaction_that_fails_drops_nothing(rig: Rig) -> None:
    block_id = rig.write(content(1))
    with rig.undone_transaction():
        rig.blocks.unname([block_id])
    rig.blocks.collect()
    assert rig.blocks.get(block_id) == content(1)
    rig.check()


def test_a_transaction_that_fails_names_nothing(rig: Rig) -> None:
    block_id = rig.blocks.put(content(1))
    with rig.undone_transaction():
        rig.blocks.name([block_id])
    rig.blocks.unhold([block_id])
    rig.blocks.collect()
    assert not rig.files()
    rig.check()


def test_a_held_block_outlives_its_last_name(rig: Rig) -> None:
    block_id = rig.write(content(1))
    rig.blocks.put(content(1))
    rig.drop(block_id)
    rig.blocks.collect()
    assert rig.blocks.get(block_id) == content(1)
    with rig.db.transaction():
        rig.blocks.name([block_id])
    rig.blocks.unhold([block_id])
    assert rig.blocks.is_dirty(block_id)
    rig.check()


@pytest.mark.parametrize("restarted", [False, True])
def test_a_dropped_block_can_be_written_again_at_any_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    block_id = rig.write(content(1))
    if restarted:
        rig.reopen()
    rig.drop(block_id)
    # The old file may be what a durable row names: it is not to be overwritten.
    monkeypatch.setattr(rig.cache, "add", None)
    assert rig.write(content(1)) == block_id
    rig.blocks.collect()
    rig.check()
    assert rig.blocks.get(block_id) == content(1)


def test_who_writes_a_block_while_it_is_removed_gets_a_new_file(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_id = rig.write(content(1))
    rig.drop(block_id)
    at_removal, go_on = threading.Event(), threading.Event()
    real_remove = rig.cache.remove

    def remove(block_ids: Iterable[bytes]) -> None:
        at_removal.set()
        assert go_on.wait(10)
        real_remove(block_ids)

    monkeypatch.setattr(rig.cache, "remove", remove)

    def write() -> None:
        assert at_removal.wait(10)
        threading.Timer(0.05, go_on.set).start()
        rig.write(content(1))
        assert go_on.is_set()

    run_all([rig.blocks.collect, write])
    assert rig.blocks.get(block_id) == content(1)
    rig.check()


def test_a_disk_that_fills_up_while_writing_leaves_all_counts_right(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(block_id: bytes, data: bytes) -> None:
        raise LocalFullError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(rig.cache, "add", add)
        with pytest.raises(LocalFullError):
            rig.blocks.put(content(1))
    rig.blocks.collect()
    rig.check()
    rig.write(content(1))
    rig.check()


# Eviction


def test_dirty_blocks_are_never_evicted(rig: Rig) -> None:
    dirty = [rig.write(content(number)) for number in range(20)]
    clean = [rig.write_clean(content(number)) for number in range(20, 40)]
    rig.blocks.evict(10**12)
    assert rig.files().keys() == set(dirty)
    assert rig.blocks.evict(10**12) == 0
    assert rig.blocks.evicted_blocks == len(clean)
    rig.check()


def test_blocks_in_use_are_not_evicted(rig: Rig) -> None:
    rig.write_clean(content(1))
    block_id = rig.blocks.put(content(1))
    assert rig.blocks.evict(10**12) == 0
    rig.blocks.unhold([block_id])
    assert rig.blocks.evict(10**12) > 0
    rig.check()


def test_what_was_used_longest_ago_goes_first(rig: Rig) -> None:
    ids = [rig.write_clean(content(number, 4096)) for number in range(10)]
    for block_id in (ids[0], ids[3]):
        rig.read_block(block_id, 0, 1)
    assert rig.blocks.evict(5 * 4096) == 5 * 4096
    assert rig.files().keys() == {ids[0], ids[3], *ids[7:]}


def test_the_order_of_use_survives_a_restart(rig: Rig) -> None:
    ids = [rig.write_clean(content(number, 4096)) for number in range(10)]
    rig.read_block(ids[0], 0, 1)
    rig.blocks.save_order()
    rig.reopen()
    rig.read_block(ids[3], 0, 1)
    rig.blocks.evict(8 * 4096)
    assert rig.files().keys() == {ids[0], ids[3]}
    rig.check()


def test_the_order_of_many_uses_is_kept_in_bounded_memory(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncer.blocks.cache.FRONT_BLOCKS", 4)
    ids = [rig.write_clean(content(number, 4096)) for number in range(20)]
    for block_id in reversed(ids):
        rig.read_block(block_id, 0, 1)
    rig.blocks.evict(15 * 4096)
    assert rig.files().keys() == set(ids[:5])


def test_the_clean_mark_is_power_safe_before_the_file_goes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.write_clean(content(1))

    def sync() -> None:
        raise CorruptError("the disk fails")

    with monkeypatch.context() as patch:
        patch.setattr(rig.db, "sync", sync)
        with pytest.raises(CorruptError):
            rig.blocks.evict(10**12)
    assert rig.files()
    rig.blocks.collect()
    assert not rig.files()
    rig.check()


@pytest.mark.parametrize("function", ["sync", "remove"])
def test_a_process_that_dies_while_evicting_leaves_nothing_for_ever(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*arguments: object) -> None:
        raise Killed

    rig.write_clean(content(1))
    kept = rig.write(content(2))
    with monkeypatch.context() as patch:
        patch.setattr(rig.db if function == "sync" else rig.cache, function, die)
        with pytest.raises(Killed):
            rig.blocks.evict(10**12)
    rig.reopen()
    assert rig.blocks.sweep() == []
    assert rig.files().keys() == {kept}
    rig.check()


def test_eviction_of_many_blocks_reads_only_what_it_takes(rig: Rig) -> None:
    with rig.db.transaction():
        rig.db.execute_many(
            "INSERT INTO block VALUES(?, 4096, NULL, 0, 1, ?, 0)",
            [(number.to_bytes(16, "big"), number) for number in range(1, 100_001)],
        )
        rig.db.execute("UPDATE usage SET local_blocks = 100000, local_bytes = ?", (100_000 * 4096,))
    plan = rig.db.query(
        "EXPLAIN QUERY PLAN SELECT id, size FROM block WHERE dirty IS NULL AND pinned = 0"
        " ORDER BY used LIMIT 64"
    )
    assert "block_clean" in str(plan) and "TEMP B-TREE" not in str(plan)
    rig.reopen()
    assert rig.blocks.evict(10 * 4096) == 10 * 4096
    assert rig.blocks.usage().local_blocks == 99_990


# Fetching


def test_what_is_not_local_is_fetched_and_kept(rig: Rig) -> None:
    block_id = rig.store_remotely(content(1, BLOCK_BYTES))
    assert rig.read_block(block_id, 5, 10) == content(1, BLOCK_BYTES)[5:15]
    assert rig.blocks.get(block_id) == content(1, BLOCK_BYTES)
    assert rig.remote.calls["get"] == 1
    fetched = rig.fetcher.fetched
    assert (fetched.blocks, fetched.content_bytes) == (1, BLOCK_BYTES)
    assert not rig.blocks.is_dirty(block_id)
    rig.check()


def test_a_block_is_fetched_once_however_many_ask(rig: Rig) -> None:
    rig.remote.delay_seconds = 0.1
    block_id = rig.store_remotely(content(1))
    found: list[bytes] = []
    run_all([lambda: found.append(bytes(rig.blocks.get(block_id)))] * 20)
    assert found == [content(1)] * 20
    assert rig.remote.calls["get"] == 1
    rig.check()


def test_all_who_wait_for_a_fetch_share_its_failure(rig: Rig) -> None:
    block_id = rig.store_remotely(content(1))
    rig.remote.delay_seconds = 0.2
    rig.remote.fail("get", OfflineError("the line is down"))
    failures: list[OfflineError] = []

    def get() -> None:
        with pytest.raises(OfflineError, match="line is down") as caught:
            rig.blocks.get(block_id)
        failures.append(caught.value)

    run_all([get] * 5)
    assert len(set(map(id, failures))) == 5, "each has an exception of its own"
    assert rig.remote.calls["get"] == 1
    rig.remote.check()
    assert rig.blocks.get(block_id) == content(1), "and the next one tries again"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_block_that_can_not_be_fetched_is_an_error_and_fetched_later(
    rig: Rig, error: SyncerError
) -> None:
    block_id = rig.store_remotely(content(1))
    # The second place where it may be fails as well.
    rig.remote.fail("get", error, times=2)
    with pytest.raises(type(error), match=str(error)):
        rig.blocks.get(block_id)
    assert not rig.files()
    rig.remote.work_again()
    assert rig.blocks.get(block_id) == content(1)
    rig.check()


def test_a_damaged_remote_copy_is_an_error_and_is_not_kept(rig: Rig) -> None:
    block_id = rig.store_remotely(content(1))
    stored = bytearray(rig.remote.objects[block_key(block_id)])
    stored[-1] ^= 1
    rig.remote.damage(block_key(block_id), bytes(stored))
    with pytest.raises(CorruptError):
        rig.blocks.get(block_id)
    assert not rig.files()
    rig.check()


def test_a_block_that_is_nowhere_is_missing(rig: Rig) -> None:
    with pytest.raises(MissingError):
        rig.blocks.get(b"\1" * 16)


def test_a_damaged_local_copy_is_fetched_again_and_set_aside(rig: Rig) -> None:
    block_id = rig.write_clean(content(1))
    rig.damage(block_id)
    assert rig.read_block(block_id, 0, 100) == content(1)[:100]
    assert rig.path(block_id).read_bytes() == content(1)
    assert [path.name for path in (rig.folder / "blocks" / "damaged").iterdir()] == [block_id.hex()]
    rig.check()


def test_who_reads_a_damaged_copy_while_another_mends_it_gets_no_damaged_byte(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_id = rig.write_clean(content(1))
    rig.damage(block_id)
    read_file = rig.blocks._read_file

    def read_slowly(block_id: bytes) -> bytes | None:
        monkeypatch.undo()
        found = read_file(block_id)
        assert found != content(1)
        with ThreadPoolExecutor(1) as other:
            assert other.submit(rig.blocks.get, block_id).result(30) == content(1)
        return found

    monkeypatch.setattr(rig.blocks, "_read_file", read_slowly)
    assert rig.blocks.get(block_id) == content(1)
    rig.check()


@pytest.mark.parametrize("size_bytes", [0, 5, BLOCK_BYTES + 1])
def test_a_local_copy_of_the_wrong_length_is_fetched_again(rig: Rig, size_bytes: int) -> None:
    block_id = rig.write_clean(content(1))
    rig.path(block_id).write_bytes(content(1, size_bytes))
    rig.reopen()
    assert rig.blocks.get(block_id) == content(1)
    rig.check()


def test_a_local_copy_that_is_gone_is_fetched_again(rig: Rig) -> None:
    block_id = rig.write_clean(content(1))
    rig.path(block_id).unlink()
    assert rig.read_block(block_id, 0, 10) == content(1)[:10]
    rig.check()


@pytest.mark.expects_warnings
def test_a_damaged_dirty_block_is_an_error_until_it_is_written_again(rig: Rig) -> None:
    block_id = rig.write(content(1))
    rig.damage(block_id)
    for _ in range(2):
        with pytest.raises(CorruptError, match="only copy"):
            rig.blocks.get(block_id)
    assert rig.path(block_id).exists()
    rig.write(content(1))
    assert rig.blocks.get(block_id) == content(1)
    rig.check()


def test_a_local_file_is_verified_once_only(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    block_id = rig.write_clean(content(1))
    rig.reopen()
    hashed: list[str] = []
    monkeypatch.setattr(rig.blocks, "_matches", recording(rig.blocks._matches, "hash", hashed))
    for _ in range(3):
        rig.read_block(block_id, 0, 10)
    assert hashed == ["hash"]


def test_without_room_content_is_returned_but_not_kept_nor_fetched_for_every_read(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, limit_bytes=2 << 20)
    for number in range(2):
        rig.write(content(number, BLOCK_BYTES))
    block_id = rig.store_remotely(content(9, BLOCK_BYTES))
    for offset in range(0, BLOCK_BYTES, 131072):
        part = rig.read_block(block_id, offset, 131072)
        assert part == content(9, BLOCK_BYTES)[offset : offset + 131072]
    assert rig.remote.calls["get"] == 1
    assert len(rig.files()) == 2
    rig.check()
    rig.close()


def test_a_reader_makes_room_for_what_it_fetches(tmp_path: Path) -> None:
    rig = Rig(tmp_path, limit_bytes=4 << 20)
    ids = [rig.store_remotely(content(number, BLOCK_BYTES)) for number in range(10)]
    for number, block_id in enumerate(ids):
        assert rig.blocks.get(block_id) == content(number, BLOCK_BYTES)
        assert sum(rig.files().values()) <= 4 << 20
        assert rig.blocks.is_local(block_id)
    rig.check()
    rig.close()


# Power-safe


def unsynced(rig: Rig) -> set[bytes]:
    return {row[0] for row in rig.db.query("SELECT id FROM block WHERE synced = 0")}


def test_only_what_was_synced_counts_as_power_safe(rig: Rig) -> None:
    ids = [rig.write(content(number)) for number in range(3)]
    assert unsynced(rig) == set(ids)
    rig.sync([ids[0], HOLE])
    assert unsynced(rig) == set(ids[1:])
    rig.blocks.sync_all()
    assert not unsynced(rig)


def test_what_was_fetched_is_not_synced_with_what_was_written(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To sync the disk takes tenths of a second; the remote has it anyway."""
    fetched = rig.store_remotely(content(1))
    rig.blocks.get(fetched)
    syncs: list[int] = []
    monkeypatch.setattr(rig.cache, "sync_all", lambda: syncs.append(1))
    rig.blocks.sync_all()
    assert not syncs
    written = rig.write(content(2))
    rig.blocks.sync_all()
    assert syncs
    assert unsynced(rig) == {fetched}
    assert written not in unsynced(rig)


def test_a_block_may_be_synced_before_it_is_named(rig: Rig) -> None:
    ids = [rig.blocks.put(content(number)) for number in range(2)]
    rig.sync(ids[:1])
    with rig.db.transaction():
        rig.blocks.name(ids)
    rig.blocks.unhold(ids)
    assert unsynced(rig) == {ids[1]}


def test_a_block_written_anew_during_a_sync_is_not_taken_for_the_old_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_id = rig.write(content(1))
    real_sync = rig.cache.sync

    def sync(block_ids: Iterable[bytes]) -> list[bytes]:
        synced = real_sync(block_ids)
        rig.drop(block_id)
        rig.blocks.collect()
        rig.write(content(1))
        return synced

    monkeypatch.setattr(rig.cache, "sync", sync)
    rig.sync([block_id])
    assert unsynced(rig) == {block_id}


@pytest.mark.expects_warnings
def test_a_damaged_block_that_is_written_again_has_to_be_synced_again(rig: Rig) -> None:
    block_id = rig.write(content(1))
    rig.blocks.sync_all()
    rig.damage(block_id)
    rig.write(content(1))
    assert unsynced(rig) == {block_id}


# After a crash


@pytest.mark.expects_warnings
def test_a_sweep_makes_files_and_rows_match(rig: Rig) -> None:
    clean, gone_clean = (rig.write_clean(content(number)) for number in (1, 2))
    dirty, gone_dirty = (rig.write(content(number)) for number in (3, 4))
    rig.blocks.put(content(5))
    for block_id in (gone_clean, gone_dirty):
        rig.path(block_id).unlink()
    rig.reopen()
    held = rig.blocks.put(content(6))
    assert rig.blocks.sweep() == [gone_dirty]
    assert rig.files().keys() == {clean, dirty, held}
    rig.blocks.unhold([held])
    rig.write(content(4))
    rig.blocks.collect()
    rig.check()


def test_content_that_a_crash_left_behind_is_counted_when_it_is_used(rig: Rig) -> None:
    rig.blocks.put(content(1))
    rig.reopen()
    rig.write(content(1))
    rig.check()


# Many at once


class Storm:
    """What several threads do to a rig until `over` is set."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.over = threading.Event()

    def write(self, seed: int) -> None:
        dice = random.Random(seed)
        while not self.over.is_set():
            block_id = self.rig.write(content(dice.randrange(30), 30_000))
            if dice.random() < 0.5:
                self.rig.drop(block_id)

    def upload(self) -> None:
        while not self.over.is_set():
            for block_id, _ in self.rig.blocks.dirty_queue(3):
                data = self.rig.blocks.local(block_id)
                if data is not None:
                    self.rig.store_remotely(data)
                    self.rig.blocks.mark_clean([block_id])

    def read(self, seed: int) -> None:
        numbers = {codec.block_id(content(n, 30_000), SEED): n for n in range(30)}
        dice = random.Random(seed)
        while not self.over.is_set():
            block_id, number = dice.choice(list(numbers.items()))
            # It may have been dropped, and never uploaded.
            with contextlib.suppress(MissingError):
                assert self.rig.blocks.get(block_id) == content(number, 30_000)

    def evict(self) -> None:
        while not self.over.wait(0.001):
            self.rig.blocks.evict(200_000)
            self.rig.blocks.collect()

    def check_dirty(self) -> None:
        while not self.over.wait(0.001):
            for block_id, _ in self.rig.blocks.dirty_queue(30):
                gone = self.rig.blocks.local(block_id) is None
                assert not (gone and self.rig.blocks.is_dirty(block_id) and self._stays(block_id))

    def _stays(self, block_id: bytes) -> bool:
        """Dropped and written again, it may have had no file for a moment."""
        return not self.rig.path(block_id).exists() and self.rig.blocks.is_dirty(block_id)


def test_threads_that_write_drop_read_and_evict_lose_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path, limit_bytes=4 << 20)
    storm = Storm(rig)
    threading.Timer(3.0, storm.over.set).start()
    run_all(
        [
            *(functools.partial(storm.write, seed) for seed in range(3)),
            *(functools.partial(storm.read, seed) for seed in range(3)),
            storm.upload,
            storm.evict,
            storm.evict,
            storm.check_dirty,
        ]
    )
    rig.blocks.collect()
    rig.check()
    rig.close()


class BlockMachine(RuleBasedStateMachine):
    """Any order of operations, against a model: who names and holds what, and what was uploaded."""

    numbers = st.integers(0, 5)

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.rig = Rig(Path(self.folder.name))
        self.ids: dict[int, bytes] = {}
        self.held: dict[int, int] = {}
        self.dirty_names: dict[int, int] = {}
        self.uploaded: set[int] = set()

    def teardown(self) -> None:
        self.rig.close()
        self.folder.cleanup()

    @rule(number=numbers)
    def put(self, number: int) -> None:
        self.ids[number] = self.rig.blocks.put(content(number, 5000))
        self.held[number] = self.held.get(number, 0) + 1

    @precondition(lambda self: self.held)
    @rule(data=st.data(), rolls_back=st.booleans())
    def name(self, data: st.DataObject, rolls_back: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.held)))
        if rolls_back:
            with self.rig.undone_transaction():
                self.rig.blocks.name([self.ids[number]])
            return
        with self.rig.db.transaction():
            self.rig.blocks.name([self.ids[number]])
        if self.rig.blocks.is_dirty(self.ids[number]):
            self.dirty_names[number] = self.dirty_names.get(number, 0) + 1

    @precondition(lambda self: self.dirty_names)
    @rule(data=st.data(), rolls_back=st.booleans())
    def unname(self, data: st.DataObject, rolls_back: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.dirty_names)))
        if rolls_back:
            with self.rig.undone_transaction():
                self.rig.blocks.unname([self.ids[number]])
            return
        with self.rig.db.transaction():
            self.rig.blocks.unname([self.ids[number]])
        self.dirty_names[number] -= 1
        if not self.dirty_names[number]:
            del self.dirty_names[number]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def unhold(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.held)))
        self.rig.blocks.unhold([self.ids[number]])
        self.held[number] -= 1
        if not self.held[number]:
            del self.held[number]

    @precondition(lambda self: self.dirty_names)
    @rule()
    def upload(self) -> None:
        ((block_id, _),) = self.rig.blocks.dirty_queue(1)
        self.rig.upload([block_id])
        number = next(key for key, value in self.ids.items() if value == block_id)
        del self.dirty_names[number]
        self.uploaded.add(number)

    @rule(size_bytes=st.sampled_from([1, 10_000, 10**9]))
    def evict(self, size_bytes: int) -> None:
        self.rig.blocks.evict(size_bytes)

    @rule()
    def collect(self) -> None:
        self.rig.blocks.collect()

    @rule(number=numbers)
    def read(self, number: int) -> None:
        available = {*self.held, *self.dirty_names, *self.uploaded}
        if number in available:
            assert self.rig.blocks.get(self.ids[number]) == content(number, 5000)

    @rule(number=numbers)
    def damage(self, number: int) -> None:
        if number in self.uploaded and number not in self.held and number not in self.dirty_names:
            if self.rig.path(self.ids[number]).exists():
                self.rig.damage(self.ids[number])

    @rule()
    def crash(self) -> None:
        self.rig.reopen()
        self.held.clear()
        assert self.rig.blocks.sweep() == []
        self.rig.check()

    @invariant()
    def what_is_needed_is_there(self) -> None:
        for number in {*self.held, *self.dirty_names}:
            assert self.rig.path(self.ids[number]).exists()
        dirty = {self.ids[number] for number in self.dirty_names}
        assert {row[0] for row in self.rig.blocks.dirty_queue(100)} == dirty

    @invariant()
    def counts_are_right_at_rest(self) -> None:
        if not self.held:
            self.rig.blocks.collect()
            self.rig.check()


def test_any_order_of_operations_keeps_what_is_needed() -> None:
    run_state_machine_as_test(
        BlockMachine,
        settings=settings(max_examples=40, stateful_step_count=40, deadline=None, database=None),
    )
