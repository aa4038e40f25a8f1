from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from syncer.blocks.budget import disk_bytes
from syncer.blocks.fetch import block_key
from syncer.codec import BLOCK_BYTES
from syncer.errors import LocalFullError, OfflineError
from syncer.vfs.openfile import MAX_BUFFERED_BYTES, OpenFile
from tests.vfs_rig import INLINE_BYTES, ME, VfsRig, fast_folder


def noise(size_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


@pytest.fixture
def rig() -> Iterator[VfsRig]:
    with fast_folder() as folder:
        rig = VfsRig(folder, limit_bytes=40_000_000, timeout_seconds=0.1)
        yield rig
        rig.close()


def opened(rig: VfsRig, content: bytes = b"") -> int:
    """A handle of /file, which holds sealed content."""
    rig.make(b"/file", content)
    rig.round(seal=True)
    return rig.vfs.open(b"/file", os.O_RDWR)


def write(rig: VfsRig, handle: int, data: bytes, offset: int = 0) -> None:
    rig.vfs.write(handle, memoryview(data), offset)


@contextlib.contextmanager
def no_room(rig: VfsRig) -> Iterator[None]:
    """All room is taken, for a while."""
    taken = 0
    while rig.cache.budget.try_reserve(4096):
        taken += 4096
    yield
    rig.cache.budget.cancel(taken)


# Reading and writing


def test_a_tiny_file_needs_no_block_and_a_longer_one_does(rig: VfsRig) -> None:
    handle = opened(rig, b"x" * INLINE_BYTES)
    assert not rig.files()
    write(rig, handle, b"y", INLINE_BYTES)
    rig.round(seal=True)
    assert len(rig.files()) == 1
    assert rig.blocks.usage().inline_bytes == INLINE_BYTES, "the past still has the tiny one"
    rig.vfs.truncate(handle, 10)
    assert rig.read(handle) == b"x" * 10
    assert rig.contents.inline(rig.vfs.getattr(handle).id) == b"x" * 10


def test_tiny_files_become_blocks_when_there_are_too_many_the_larger_ones_first() -> None:
    with fast_folder() as folder:
        # Room for two, until a 512th of what is left is less than one of them takes.
        rig = VfsRig(folder, inline_total_bytes=INLINE_BYTES * 512 + 2 * INLINE_BYTES - 1)
        for number in range(5):
            rig.make(b"/%d" % number, noise(INLINE_BYTES, number))
        assert rig.blocks.usage().inline_bytes == 2 * INLINE_BYTES
        assert len(rig.files()) == 3
        rig.make(b"/smaller", noise(INLINE_BYTES // 2))
        assert len(rig.files()) == 3, "smaller ones still find room"
        assert all(rig.read(b"/%d" % n) == noise(INLINE_BYTES, n) for n in range(5))
        rig.close()


def test_writing_a_whole_block_fetches_nothing_of_what_it_replaces(rig: VfsRig) -> None:
    handle = opened(rig, noise(2 * BLOCK_BYTES))
    rig.upload_all()
    rig.evict_all()
    write(rig, handle, noise(BLOCK_BYTES, 1), BLOCK_BYTES)
    rig.round(seal=True)
    assert not rig.remote.calls["get"]
    assert rig.read(handle) == noise(2 * BLOCK_BYTES)[:BLOCK_BYTES] + noise(BLOCK_BYTES, 1)


def test_writing_all_of_a_block_in_parts_fetches_nothing(rig: VfsRig) -> None:
    handle = opened(rig, noise(BLOCK_BYTES))
    rig.upload_all()
    rig.evict_all()
    for start in range(0, BLOCK_BYTES, 131072):
        write(rig, handle, noise(131072, start), start)
    rig.round(seal=True)
    assert not rig.remote.calls["get"]


@pytest.mark.expects_warnings
def test_a_part_of_a_block_that_is_away_can_be_written_and_synced(rig: VfsRig) -> None:
    content = noise(2 * BLOCK_BYTES)
    handle = opened(rig, content)
    rig.upload_all()
    rig.evict_all()
    rig.remote.go_offline()
    write(rig, handle, b"new", 100)
    with pytest.raises(OfflineError):
        rig.read(handle, 50, 0)
    rig.vfs.files.fsync(handle, rig.db.sync)
    rig.round(seal=True)
    assert rig.read(handle, 3, 100) == b"new"
    rig.reopen()
    rig.remote.go_online()
    rig.remote.check()
    assert rig.read(b"/file") == content[:100] + b"new" + content[103:]


def test_zeros_take_no_room(rig: VfsRig) -> None:
    handle = opened(rig, noise(BLOCK_BYTES))
    write(rig, handle, bytes(BLOCK_BYTES), 0)
    write(rig, handle, b"end", 5 * BLOCK_BYTES)
    rig.round(seal=True)
    rig.round()
    assert len(rig.contents.ids(rig.vfs.getattr(handle).id)) == 1
    assert rig.read(handle) == bytes(5 * BLOCK_BYTES) + b"end"


def test_buffers_of_all_files_together_are_bounded(rig: VfsRig) -> None:
    for number in range(MAX_BUFFERED_BYTES // BLOCK_BYTES + 4):
        handle = rig.vfs.create(b"/%d" % number, 0o644, 0, ME)
        write(rig, handle, noise(BLOCK_BYTES - 1, number), 0)
    assert rig.vfs.files._shared.buffered_bytes <= MAX_BUFFERED_BYTES + BLOCK_BYTES


@pytest.mark.parametrize("is_new", [True, False])
def test_pieces_that_come_out_of_order_are_stored_once(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    """As the kernel hands over what it gathered once it has caught up with the writer."""
    size = 12 * BLOCK_BYTES
    content, first = noise(size, 1), 700_000
    handle = opened(rig, b"" if is_new else noise(size, 2))
    stored: list[int] = []
    put = rig.blocks.put
    monkeypatch.setattr(rig.blocks, "put", lambda data: stored.append(len(data)) or put(data))
    starts = [0, *range(first, size, BLOCK_BYTES)]
    pieces = list(zip(starts, [*starts[1:], size], strict=True))
    for number in (1, 4, 3, 0, 2, 7, 6, 5, 8, 12, 11, 10, 9):
        start, end = pieces[number]
        write(rig, handle, content[start:end], start)
        assert rig.read(handle, end - start, start) == content[start:end]
    assert not rig.vfs.files._shared.buffered_bytes, "each block was sealed as soon as it could be"
    rig.vfs.release(handle)
    assert stored == [BLOCK_BYTES] * 12
    assert rig.read(b"/file", len(content)) == content


def test_a_block_that_is_never_whole_does_not_hold_up_those_behind_it(rig: VfsRig) -> None:
    handle = opened(rig)
    content = bytearray(noise(36 * BLOCK_BYTES))
    content[1000:BLOCK_BYTES] = bytes(BLOCK_BYTES - 1000)
    for start in (0, *range(BLOCK_BYTES, len(content), 1 << 18)):
        end = 1000 if start == 0 else start + (1 << 18)
        write(rig, handle, bytes(content[start:end]), start)
        assert rig.vfs.files._shared.buffered_bytes <= MAX_BUFFERED_BYTES
    rig.vfs.release(handle)
    assert rig.read(b"/file", len(content)) == content


def test_each_descriptor_reads_what_another_has_just_written(rig: VfsRig) -> None:
    one = opened(rig, noise(10_000))
    two = rig.vfs.open(b"/file", os.O_RDONLY)
    write(rig, one, b"new", 9_999)
    assert rig.read(two, 10, 9_998) == noise(10_000)[9_998:9_999] + b"new"
    assert rig.vfs.getattr(b"/file").size == 10_002


# A crash


def test_what_was_closed_survives_a_kill(rig: VfsRig) -> None:
    rig.make(b"/file", noise(3 * BLOCK_BYTES + 9))
    rig.reopen()
    assert rig.read(b"/file") == noise(3 * BLOCK_BYTES + 9)


def test_the_size_after_a_kill_never_covers_what_was_not_sealed(rig: VfsRig) -> None:
    """Blocks behind a hole of unsealed bytes don't make the file longer."""
    handle = opened(rig)
    write(rig, handle, noise(BLOCK_BYTES - 1), 1)
    write(rig, handle, noise(BLOCK_BYTES, 1), 2 * BLOCK_BYTES)
    rig.reopen()
    content = rig.read(b"/file")
    want = b"\0" + noise(BLOCK_BYTES - 1) + bytes(BLOCK_BYTES) + noise(BLOCK_BYTES, 1)
    assert content == want[: len(content)]


def test_small_synced_changes_survive_a_kill_without_a_new_block(rig: VfsRig) -> None:
    content = bytearray(noise(900_000))
    handle = opened(rig, content)
    before = rig.files().keys()
    for number in range(50):
        change = noise(128, number)
        content[number * 17_000 : number * 17_000 + 128] = change
        write(rig, handle, change, number * 17_000)
        rig.vfs.files.fsync(handle, rig.db.sync)
    assert rig.files().keys() == before
    for _ in range(2):
        rig.reopen()
        assert rig.read(b"/file", len(content)) == content
    rig.round(seal=True)
    assert len(rig.files()) == 2, "the present and the past"
    rig.reopen()
    assert rig.read(b"/file", len(content)) == content
    assert not rig.contents.patched_nodes()


def test_small_synced_appends_survive_a_kill(rig: VfsRig) -> None:
    content = noise(100_000)
    handle = opened(rig, content)
    for number in range(20):
        write(rig, handle, b"%05d\n" % number, len(content))
        content += b"%05d\n" % number
        rig.vfs.files.fsync(handle, rig.db.sync)
    size = rig.vfs.getattr(b"/file").size
    rig.reopen()
    assert rig.vfs.getattr(b"/file").size == size == len(content)
    assert rig.read(b"/file", len(content)) == content


def test_truncating_after_small_synced_changes_brings_nothing_back(rig: VfsRig) -> None:
    content = noise(900_000)
    handle = opened(rig, content)
    write(rig, handle, b"changed", 800_000)
    rig.vfs.files.fsync(handle, rig.db.sync)
    rig.vfs.truncate(handle, 1000)
    rig.reopen()
    rig.vfs.truncate(b"/file", 900_000)
    assert rig.read(b"/file") == content[:1000] + bytes(899_000)


def test_a_kill_amid_truncating_does_not_bring_small_changes_back(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = noise(900_000)
    handle = opened(rig, content)
    write(rig, handle, b"changed", 800_000)
    rig.vfs.files.fsync(handle, rig.db.sync)
    # What follows the cut does not happen any more.
    monkeypatch.setattr(OpenFile, "flush", lambda self, seal=False: None)
    rig.vfs.truncate(handle, 10_000)
    monkeypatch.undo()
    rig.reopen()
    assert rig.read(b"/file") == content[:10_000]


def test_a_file_removed_after_small_synced_changes_stays_removed(rig: VfsRig) -> None:
    handle = opened(rig, noise(900_000))
    write(rig, handle, b"changed", 800_000)
    rig.vfs.files.fsync(handle, rig.db.sync)
    rig.vfs.release(handle)
    rig.vfs.unlink(b"/file")
    rig.round(seal=True)
    rig.reopen()
    assert rig.list(b"/") == []
    assert rig.vfs.files.unsaved_count() == 0


# No room


def test_a_write_that_finds_no_room_leaves_the_file_as_it_was(rig: VfsRig) -> None:
    content = noise(BLOCK_BYTES)
    handle = opened(rig, content)
    with no_room(rig):
        for place in (0, BLOCK_BYTES):
            with pytest.raises(LocalFullError):
                write(rig, handle, noise(BLOCK_BYTES, 1), place)
    assert rig.vfs.getattr(handle).size == BLOCK_BYTES
    assert rig.read(handle) == content


def test_a_file_that_finds_no_room_when_it_is_closed_is_saved_later(rig: VfsRig) -> None:
    handle = opened(rig)
    write(rig, handle, noise(100_000))
    with no_room(rig), pytest.raises(LocalFullError):
        rig.vfs.files.flush(handle)
    rig.vfs.release(handle)
    rig.round(seal=True)
    rig.reopen()
    assert rig.read(b"/file") == noise(100_000)


class Clock:
    """The time that a budget sees, which passes only while somebody waits for room."""

    def __init__(self, rig: VfsRig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = time.monotonic()
        #: Called after each wait.
        self.after_wait: Callable[[], None] = lambda: None
        ours = SimpleNamespace(monotonic=lambda: self.seconds)
        monkeypatch.setattr("syncer.blocks.budget.time", ours)
        monkeypatch.setattr(rig.cache.budget._changed, "wait", self._wait)

    def _wait(self, seconds: float) -> None:
        self.seconds += seconds
        self.after_wait()


def six_written(rig: VfsRig) -> None:
    """Six open files with writes that wait to be saved."""
    for number in range(6):
        handle = rig.vfs.create(b"/%d" % number, 0o644, os.O_RDWR, ME)
        write(rig, handle, noise(100_000, number))


@pytest.mark.expects_warnings
def test_one_who_saves_all_files_waits_in_vain_for_room_as_long_as_for_one(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    six_written(rig)
    with no_room(rig):
        clock = Clock(rig, monkeypatch)
        began = clock.seconds
        rig.vfs.files.flush_all(seal=False)
        assert clock.seconds - began == pytest.approx(rig.timeout_seconds)
        # The next time begins anew.
        rig.vfs.files.flush_all(seal=False)
        assert clock.seconds - began == pytest.approx(2 * rig.timeout_seconds)
        assert rig.vfs.files.unsaved_count() == 6
    rig.vfs.files.flush_all(seal=False)
    assert rig.vfs.files.unsaved_count() == 0


def test_one_who_saves_all_files_waits_as_long_as_room_comes_about(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    six_written(rig)
    budget = rig.cache.budget
    each_bytes = disk_bytes(100_000)
    while budget.try_reserve(each_bytes):
        pass
    clock = Clock(rig, monkeypatch)
    began = moved = clock.seconds

    def make_room_late() -> None:
        nonlocal moved
        if clock.seconds - moved >= 0.9 * rig.timeout_seconds:
            moved = clock.seconds
            budget.cancel(each_bytes)
            budget.progress()

    clock.after_wait = make_room_late
    monkeypatch.setattr("syncer.blocks.budget._WAIT_SECONDS", 0.1 * rig.timeout_seconds)
    rig.vfs.files.flush_all(seal=False)
    assert rig.vfs.files.unsaved_count() == 0
    assert clock.seconds - began > 5 * rig.timeout_seconds


@pytest.mark.parametrize("size", [BLOCK_BYTES + 5, 5000])
def test_a_truncate_that_finds_no_room_changes_nothing(rig: VfsRig, size: int) -> None:
    content = noise(3 * BLOCK_BYTES)
    handle = opened(rig, content)
    with no_room(rig), pytest.raises(LocalFullError):
        rig.vfs.truncate(handle, size)
    assert rig.read(handle) == content
    rig.round(seal=True)
    rig.reopen()
    assert rig.read(b"/file", len(content)) == content
    rig.vfs.truncate(b"/file", size)
    rig.vfs.truncate(b"/file", 3 * BLOCK_BYTES)
    assert rig.read(b"/file") == content[:size] + bytes(3 * BLOCK_BYTES - size)


def offline(rig: VfsRig, content: bytes) -> int:
    """A handle of /file, whose blocks only the server has, which is away."""
    handle = opened(rig, content)
    rig.upload_all()
    rig.evict_all()
    rig.remote.go_offline()
    return handle


def online_again(rig: VfsRig) -> None:
    rig.remote.go_online()
    rig.remote.check()


def test_a_truncate_that_misses_a_block_changes_nothing(rig: VfsRig) -> None:
    content = noise(BLOCK_BYTES + 500_000)
    handle = offline(rig, content)
    before = rig.vfs.getattr(handle)
    with pytest.raises(OfflineError):
        rig.vfs.truncate(handle, BLOCK_BYTES + 1000)
    assert rig.vfs.getattr(handle) == before
    assert not rig.vfs.files.unsaved_count(), "nobody is told that something is to be saved"
    rig.vfs.release(handle)
    online_again(rig)
    rig.round(seal=True)
    rig.reopen()
    assert rig.vfs.getattr(b"/file") == before
    assert rig.read(b"/file") == content
    rig.vfs.truncate(b"/file", BLOCK_BYTES + 1000)
    assert rig.read(b"/file") == content[: BLOCK_BYTES + 1000]


def test_what_failed_to_be_written_does_not_come_with_a_crash(rig: VfsRig) -> None:
    content = noise(900_000)
    handle = offline(rig, content)
    write(rig, handle, bytes(100), 1000)
    with pytest.raises(OfflineError):
        write(rig, handle, bytes(100), 500_000)
    rig.vfs.files.flush(handle)
    rig.restart()
    online_again(rig)
    assert rig.read(b"/file") == content[:1000] + bytes(100) + content[1100:]


@pytest.mark.parametrize(
    ("size", "change"),
    [
        (INLINE_BYTES, lambda rig, handle: write(rig, handle, noise(BLOCK_BYTES), BLOCK_BYTES)),
        (2 * BLOCK_BYTES, lambda rig, handle: rig.vfs.truncate(handle, 700_000)),
    ],
)
def test_what_fails_for_want_of_room_leaves_no_buffer_behind(
    rig: VfsRig, size: int, change: Callable[[VfsRig, int], None]
) -> None:
    """The bound of all buffers together would count it for ever."""
    handle = opened(rig, noise(size))
    with no_room(rig), pytest.raises(LocalFullError):
        change(rig, handle)
    rig.round(seal=True)
    rig.vfs.release(handle)
    assert not rig.vfs.files._shared.buffered_bytes
    assert rig.read(b"/file", size) == noise(size)


def test_a_damaged_copy_on_the_remote_names_the_file(rig: VfsRig) -> None:
    handle = opened(rig, noise(100_000))
    (block_id,) = rig.files()
    rig.upload_all()
    rig.evict_all()
    rig.remote.damage(block_key(block_id), b"nonsense")
    with pytest.raises(Exception, match="/file: "):
        rig.read(handle)


def test_a_flush_that_fails_half_way_leaves_no_zeros_that_nobody_wrote(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers are sealed from the front, so the committed size covers only what is sealed."""
    handle = opened(rig)
    # Without the end of the first block, or that would be sealed as soon as it is whole.
    content = noise(BLOCK_BYTES - 10) + bytes(10) + noise(5000)
    write(rig, handle, content[: BLOCK_BYTES - 10])
    write(rig, handle, content[BLOCK_BYTES:], BLOCK_BYTES)
    put, calls = rig.blocks.put, []

    def fail_at_the_second(data: memoryview) -> bytes:
        calls.append(len(data))
        if len(calls) > 1:
            raise LocalFullError("full")
        return put(data)

    with monkeypatch.context() as patch:
        patch.setattr(rig.blocks, "put", fail_at_the_second)
        with pytest.raises(LocalFullError):
            rig.vfs.files.flush(handle)
    rig.reopen()
    found = rig.read(b"/file")
    assert len(calls) == 2 and found and content.startswith(found)


def test_a_write_without_room_takes_nothing_of_what_was_written_before(rig: VfsRig) -> None:
    handle = opened(rig, noise(2 * BLOCK_BYTES))
    write(rig, handle, b"before", 100)
    expected = noise(2 * BLOCK_BYTES)[:100] + b"before" + noise(2 * BLOCK_BYTES)[106:]
    with no_room(rig), pytest.raises(LocalFullError):
        write(rig, handle, noise(BLOCK_BYTES, 1))
    assert rig.read(handle) == expected
    with no_room(rig), pytest.raises(LocalFullError):
        # The hole's place is written first: what it replaces may be needed again.
        rig.vfs.files.allocate(handle, 3, 0, BLOCK_BYTES)
    assert rig.read(handle) == expected
    write(rig, handle, noise(BLOCK_BYTES, 1))
    assert rig.read(handle) == noise(BLOCK_BYTES, 1) + noise(2 * BLOCK_BYTES)[BLOCK_BYTES:]
