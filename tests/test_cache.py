"""Block files, the budget, and the order of use."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syncer.blocks.budget import Budget, disk_bytes
from syncer.blocks.cache import FRONT_BLOCKS, Cache
from syncer.errors import AccessError, LocalFullError, MissingError, PermanentError

MB = 1_000_000
A, B, C = (bytes([number]) * 16 for number in (1, 2, 3))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "blocks", 64 * MB, 0)


def budget(tmp_path: Path, timeout_seconds: float = 30.0, min_free_bytes: int = 0) -> Budget:
    return Budget(tmp_path, 64 * MB, min_free_bytes, timeout_seconds)


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Files


def read_verified(cache: Cache, block_id: bytes, offset: int = 0) -> bytes | None:
    buffer = bytearray(7)
    count = cache.read_verified(block_id, offset, memoryview(buffer))
    return None if count is None else bytes(buffer[:count])


def add_verified(cache: Cache, block_id: bytes, content: bytes) -> None:
    cache.add(block_id, content)
    cache.set_verified(block_id, cache.stamp(block_id))


def open_block_files(cache: Cache) -> list[str]:
    """What this process has open in the cache, with " (deleted)" behind what is gone."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    return [target for target in targets if target.startswith(str(cache.folder))]


def test_what_is_added_can_be_read_whole_and_in_parts(cache: Cache) -> None:
    cache.add(A, b"some content")
    assert cache.has(A) and not cache.has(B)
    assert cache.read(A, 100) == b"some content" and cache.read(A, 4) == b"some"
    assert cache.ids(1) == [A] and cache.ids(2) == []


def test_only_the_owner_may_read_block_files(cache: Cache) -> None:
    cache.add(A, b"private")
    (path,) = cache.folder.glob("01/*")
    assert path.stat().st_mode & 0o77 == 0 == path.parent.stat().st_mode & 0o77


def test_a_file_that_is_not_there_is_a_miss(cache: Cache) -> None:
    with pytest.raises(MissingError):
        cache.read(A, 1)
    with pytest.raises(MissingError):
        cache.open(A)
    assert read_verified(cache, A) is None
    cache.remove([A])
    cache.set_aside(A)
    assert cache.sync([A]) == []


def test_only_what_is_verified_is_read_as_such(cache: Cache) -> None:
    cache.add(A, b"some content")
    assert read_verified(cache, A) is None
    cache.set_verified(A, cache.stamp(A))
    assert read_verified(cache, A, 5) == b"content"
    assert read_verified(cache, A, 100) == b""


def test_a_verified_file_that_somebody_writes_to_is_verified_no_more(cache: Cache) -> None:
    add_verified(cache, A, b"content")
    assert read_verified(cache, A) == b"content"
    (path,) = cache.folder.glob("01/*")
    with path.open("r+b") as file:
        file.write(b"damaged")
    assert read_verified(cache, A) is None
    add_verified(cache, A, b"another")
    assert read_verified(cache, A) == b"another"


def test_a_removed_file_is_not_kept_open(cache: Cache) -> None:
    add_verified(cache, A, b"content")
    add_verified(cache, B, b"content")
    assert read_verified(cache, A) == read_verified(cache, B) == b"content"
    assert len(open_block_files(cache)) == 2
    cache.remove([A])
    cache.set_aside(B)
    assert not open_block_files(cache)
    assert read_verified(cache, A) is None


def test_a_file_that_goes_while_it_is_opened_is_not_kept_open(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_verified(cache, A, b"content")
    real_open = os.open

    def open_and_remove(*arguments: Any) -> int:
        descriptor = real_open(*arguments)
        cache.remove([A])
        return descriptor

    monkeypatch.setattr(os, "open", open_and_remove)
    assert read_verified(cache, A) is None
    assert not open_block_files(cache)


def test_a_verified_file_that_is_gone_is_a_miss(cache: Cache) -> None:
    add_verified(cache, A, b"content")
    (path,) = cache.folder.glob("01/*")
    path.unlink()
    with pytest.raises(MissingError):
        read_verified(cache, A)


def test_few_files_stay_open(cache: Cache) -> None:
    for number in range(300):
        block_id = number.to_bytes(2, "big") * 8
        add_verified(cache, block_id, b"content")
        assert read_verified(cache, block_id) == b"content"
    assert len(open_block_files(cache)) == 256


def test_a_reader_keeps_what_it_opened_while_the_file_goes(cache: Cache) -> None:
    cache.add(A, b"content")
    descriptor = cache.open(A)
    cache.remove([A])
    assert os.read(descriptor, 100) == b"content"
    os.close(descriptor)


def test_what_a_crash_left_half_written_is_removed_at_the_start(cache: Cache) -> None:
    (cache.folder / "incoming" / "left-over").write_bytes(b"half")
    Cache(cache.folder, 64 * MB, 0)
    assert not list((cache.folder / "incoming").iterdir())


def test_a_full_disk_leaves_nothing_behind(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    written: list[int] = []

    def write(descriptor: int, data: memoryview) -> int:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(descriptor)
        return real_write(descriptor, data[:3])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(LocalFullError):
        cache.add(A, b"some content")
    assert not cache.has(A) and not list((cache.folder / "incoming").iterdir())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EDQUOT, LocalFullError),
        (errno.EACCES, AccessError),
        (errno.EROFS, AccessError),
        (errno.EIO, PermanentError),
    ],
)
def test_errors_of_the_disk_are_told_apart(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception]
) -> None:
    def rename(source: str, target: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(expected):
        cache.add(A, b"content")
    assert not list((cache.folder / "incoming").iterdir())


def test_threads_that_add_the_same_block_do_not_disturb_each_other(cache: Cache) -> None:
    data = os.urandom(1 << 20)
    threads = [in_thread(lambda: cache.add(A, data)) for _ in range(8)]
    for thread in threads:
        thread.join()
    assert cache.read(A, 1 << 21) == data


def test_few_files_are_synced_one_by_one_and_many_at_once(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    ids = [bytes([number]) * 16 for number in range(20)]
    for block_id in ids:
        cache.add(block_id, b"content")
    assert cache.sync(ids[:2]) == ids[:2]
    folder = cache.folder
    assert set(synced) == {
        str(folder / "00" / ids[0].hex()),
        str(folder / "00"),
        str(folder / "01" / ids[1].hex()),
        str(folder / "01"),
    }
    synced.clear()
    assert cache.sync([*ids, b"\xff" * 16]) == ids
    assert not synced


def test_a_failing_disk_is_no_successful_sync(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    cache.add(A, b"content")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(PermanentError, match="fails"):
        cache.sync([A])


def test_only_the_latest_damaged_files_are_kept(cache: Cache) -> None:
    for number in range(20):
        block_id = bytes([number]) * 16
        cache.add(block_id, b"damaged")
        os.utime(cache.folder / f"{number:02x}" / block_id.hex(), (number, number))
        cache.set_verified(block_id, cache.stamp(block_id))
        cache.set_aside(block_id)
        assert not cache.has(block_id) and not cache.is_verified(block_id)
    kept = {path.name[:2] for path in (cache.folder / "damaged").iterdir()}
    assert kept == {f"{number:02x}" for number in range(12, 20)}


def test_the_order_of_use_comes_out_oldest_first_and_once(cache: Cache) -> None:
    for block_id in (A, B, C, A):
        cache.touch(block_id)
    assert cache.take_order(2) == [B, C]
    assert cache.take_order(2) == [A] and cache.take_order(2) == []
    assert cache.uses == 4


def test_the_front_says_when_it_is_full(cache: Cache) -> None:
    uses = [cache.touch(number.to_bytes(16, "big")) for number in range(FRONT_BLOCKS + 1)]
    assert uses == [False] * FRONT_BLOCKS + [True]


# The budget


def test_room_is_counted_in_whole_pages() -> None:
    assert [disk_bytes(size) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]


def test_no_more_than_the_limit_is_ever_given_out(tmp_path: Path) -> None:
    room = budget(tmp_path)
    room.adopt(20 * MB)
    room.set_inline(4 * MB)
    assert room.try_reserve(40 * MB) and not room.try_reserve(1)
    room.cancel(10 * MB)
    room.keep(30 * MB)
    assert room.used_bytes == 54 * MB
    assert room.try_reserve(10 * MB) and not room.try_reserve(1)
    room.free(1 * MB)
    assert room.try_reserve(1 * MB)


class Disk:
    """Stands for os.statvfs."""

    f_frsize = 4096

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes
        self.looks = 0

    @property
    def f_bavail(self) -> int:
        return self.free_bytes // 4096

    def __call__(self, folder: Path) -> Disk:
        self.looks += 1
        return self


def test_the_floor_of_free_space_holds_though_others_use_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(100 * MB)
    monkeypatch.setattr(os, "statvfs", disk)
    room = budget(tmp_path, min_free_bytes=90 * MB)
    assert room.try_reserve(9 * MB) and not room.try_reserve(2 * MB)
    # What was reserved is written now, and someone else takes the rest.
    room.keep(9 * MB)
    disk.free_bytes = 90 * MB
    time.sleep(0.25)
    assert not room.try_reserve(4096)
    disk.free_bytes = 95 * MB
    wait_for(lambda: room.try_reserve(1 * MB))


def test_the_disk_is_looked_at_now_and_then_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(1000 * MB)
    monkeypatch.setattr(os, "statvfs", disk)
    monkeypatch.setattr(time, "monotonic", lambda: 1.0)
    room = budget(tmp_path)
    for _ in range(40):
        assert room.try_reserve(1 * MB)
    assert disk.looks == 3


def test_a_writer_waits_until_there_is_room(tmp_path: Path) -> None:
    room = budget(tmp_path)
    room.adopt(64 * MB)
    waiter = in_thread(lambda: room.reserve(1 * MB))
    wait_for(lambda: room.waiting == 1)
    assert room.wanted.is_set()
    room.free(1 * MB)
    waiter.join(5)
    assert not waiter.is_alive() and room.waiting == 0


def test_a_writer_gives_up_when_nothing_moves_for_too_long(tmp_path: Path) -> None:
    room = budget(tmp_path, timeout_seconds=0.3)
    room.adopt(64 * MB)
    began = time.monotonic()
    with pytest.raises(LocalFullError, match="limit of 64 MB is full"):
        room.reserve(1 * MB)
    assert 0.3 <= time.monotonic() - began < 2


def test_a_writer_goes_on_waiting_while_something_moves(tmp_path: Path) -> None:
    room = budget(tmp_path, timeout_seconds=0.3)
    room.adopt(64 * MB)
    waiter = in_thread(lambda: room.reserve(1 * MB))
    for _ in range(10):
        time.sleep(0.1)
        room.progress()
    assert waiter.is_alive()
    room.free(1 * MB)
    waiter.join(5)
    assert not waiter.is_alive()


def test_waiting_ends_with_the_process(tmp_path: Path) -> None:
    room = budget(tmp_path)
    room.adopt(64 * MB)
    failed = threading.Event()

    def wait() -> None:
        with pytest.raises(LocalFullError):
            room.reserve(1 * MB)
        failed.set()

    waiter = in_thread(wait)
    wait_for(lambda: room.waiting == 1)
    room.close()
    waiter.join(5)
    assert failed.is_set()


def test_a_full_disk_is_told_from_a_full_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", Disk(10 * MB))
    room = budget(tmp_path, timeout_seconds=0.1, min_free_bytes=20 * MB)
    with pytest.raises(LocalFullError, match="less than 20 MB free"):
        room.reserve(1 * MB)


def test_eviction_goes_from_the_high_to_the_low_mark(tmp_path: Path) -> None:
    room = Budget(tmp_path, 1000 * MB, 0)
    room.adopt(930 * MB)
    assert room.excess_bytes() == 0
    room.adopt(10 * MB)
    excess_bytes = room.excess_bytes()
    assert 50 * MB < excess_bytes < 100 * MB
    room.free(excess_bytes)
    assert room.excess_bytes() == 0


def test_a_lower_limit_is_worked_off(tmp_path: Path) -> None:
    room = Budget(tmp_path, 1000 * MB, 0)
    room.adopt(500 * MB)
    room.set_limits(100 * MB, 0)
    assert room.wanted.is_set() and room.excess_bytes() > 400 * MB
    assert room.limit_bytes == 100 * MB and not room.try_reserve(1)


@pytest.mark.parametrize("ask", [Budget.reserve, Budget.try_reserve])
def test_a_disk_that_can_not_be_looked_at_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Budget, int], object]
) -> None:
    def statvfs(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    room = budget(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", statvfs)
        with pytest.raises(PermanentError, match="the disk that holds"):
            ask(room, MB)
        with pytest.raises(PermanentError, match="the disk that holds"):
            room.excess_bytes()
    room.reserve(64 * MB)
