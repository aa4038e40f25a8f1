"""Beginnings of files, and files that follow others in their folder, are fetched as they should."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer import codec
from syncer.blocks.fetch import block_key
from syncer.blocks.heads import HEAD_BYTES
from syncer.codec import BLOCK_BYTES
from syncer.errors import CorruptError, OfflineError
from tests.vfs_rig import ME, VfsRig

PHOTO_BYTES = BLOCK_BYTES + 1000
HEADER_BYTES = codec.MAX_HEADER_BYTES


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[VfsRig]:
    rig = VfsRig(tmp_path, read_ahead_bytes=16 * BLOCK_BYTES)
    yield rig
    rig.close()


def photo(number: int, size_bytes: int = PHOTO_BYTES) -> bytes:
    return random.Random(number).randbytes(size_bytes)


def make_cold(rig: VfsRig, count: int, size_bytes: int = PHOTO_BYTES) -> list[bytes]:
    """Photos that only the remote has; returns their paths, in order."""
    paths = [b"/IMG_%04d.jpg" % number for number in range(count)]
    for number, path in enumerate(paths):
        rig.make(path, photo(number, size_bytes))
        if number % 16 == 15:
            make_all_cold(rig)
    make_all_cold(rig)
    return paths


def make_all_cold(rig: VfsRig) -> None:
    rig.round(seal=True)
    rig.upload_all()
    rig.evict_all()


def read(rig: VfsRig, path: bytes, *spans: tuple[int, int]) -> bytes:
    """Read these (offset, length) through one handle."""
    handle = rig.vfs.open(path, os.O_RDONLY)
    found = b""
    for offset, length in spans:
        buffer = bytearray(length)
        count = rig.files_table.read_into(handle, memoryview(buffer), offset)
        found += buffer[:count]
    rig.vfs.release(handle)
    return found


HEAD = (0, HEAD_BYTES)
ALL = (HEAD, (HEAD_BYTES, PHOTO_BYTES))


def ids_of(rig: VfsRig, path: bytes) -> list[bytes]:
    return rig.contents.ids(rig.vfs.getattr(path).id)


# Beginnings


def test_a_look_at_a_photo_fetches_its_first_pieces_only(rig: VfsRig) -> None:
    (path,) = make_cold(rig, 1)
    assert read(rig, path, HEAD) == photo(0)[:HEAD_BYTES]
    assert rig.fetcher.fetched.content_bytes == HEAD_BYTES
    assert not rig.cache.has(ids_of(rig, path)[0])
    # Once more, without the remote.
    rig.remote.go_offline()
    assert read(rig, path, (100, 1000)) == photo(0)[100:1100]


def test_reading_on_gives_the_whole_file(rig: VfsRig) -> None:
    (path,) = make_cold(rig, 1)
    assert read(rig, path, *ALL) == photo(0)
    assert rig.fetcher.fetched.content_bytes == HEAD_BYTES + PHOTO_BYTES
    assert read(rig, path, (HEAD_BYTES - 10, 20)) == photo(0)[HEAD_BYTES - 10 : HEAD_BYTES + 10]


def test_a_small_file_is_fetched_whole_at_once(rig: VfsRig) -> None:
    (path,) = make_cold(rig, 1, 2 * HEAD_BYTES)
    assert read(rig, path, HEAD) == photo(0, 2 * HEAD_BYTES)[:HEAD_BYTES]
    assert rig.cache.has(ids_of(rig, path)[0])


def test_a_block_that_is_shorter_than_its_part_of_the_file_reads_as_zeros(rig: VfsRig) -> None:
    rig.make(b"/sparse", photo(0, 5000))
    handle = rig.vfs.open(b"/sparse", os.O_RDWR)
    rig.vfs.truncate(b"/sparse", PHOTO_BYTES)
    rig.vfs.release(handle)
    make_all_cold(rig)
    assert read(rig, b"/sparse", HEAD) == photo(0, 5000) + bytes(HEAD_BYTES - 5000)


@pytest.mark.parametrize("place", [2, 30, HEADER_BYTES + 5, HEADER_BYTES + HEAD_BYTES - 5])
def test_a_damaged_beginning_is_an_error_that_names_the_file(rig: VfsRig, place: int) -> None:
    (path,) = make_cold(rig, 1)
    key = block_key(ids_of(rig, path)[0])
    damaged = bytearray(rig.remote.objects[key])
    damaged[place] ^= 1
    rig.remote.damage(key, bytes(damaged))
    with pytest.raises(CorruptError, match="IMG_0000"):
        read(rig, path, HEAD)


@pytest.mark.parametrize(
    "length", [0, 5, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + HEAD_BYTES // 2]
)
def test_an_object_that_was_cut_short_is_an_error(rig: VfsRig, length: int) -> None:
    (path,) = make_cold(rig, 1)
    key = block_key(ids_of(rig, path)[0])
    rig.remote.damage(key, rig.remote.objects[key][:length])
    with pytest.raises(CorruptError):
        read(rig, path, HEAD)


def test_damage_behind_the_beginning_does_not_keep_anyone_from_it(rig: VfsRig) -> None:
    (path,) = make_cold(rig, 1)
    key = block_key(ids_of(rig, path)[0])
    damaged = bytearray(rig.remote.objects[key])
    damaged[-1] ^= 1
    rig.remote.damage(key, bytes(damaged))
    assert read(rig, path, HEAD) == photo(0)[:HEAD_BYTES]
    with pytest.raises(CorruptError):
        read(rig, path, *ALL)


def test_another_blocks_object_in_its_place_is_noticed(rig: VfsRig) -> None:
    paths = make_cold(rig, 2)
    keys = [block_key(ids_of(rig, path)[0]) for path in paths]
    rig.remote.damage(keys[0], rig.remote.objects[keys[1]])
    with pytest.raises(CorruptError):
        read(rig, paths[0], HEAD)


def test_without_the_remote_a_look_fails_once_and_at_once(rig: VfsRig) -> None:
    (path,) = make_cold(rig, 1)
    rig.remote.go_offline()
    with pytest.raises(OfflineError):
        read(rig, path, HEAD)


# Files that follow


def test_photos_looked_at_in_order_foretell_the_beginnings_of_the_next(rig: VfsRig) -> None:
    paths = make_cold(rig, 12)
    read(rig, paths[0], HEAD)
    assert not rig.asked
    read(rig, paths[1], HEAD)
    assert rig.asked == [([ids_of(rig, path)[0] for path in paths[2:6]], True)]


@pytest.mark.parametrize(("lead_bytes", "count"), [(0, 4), (HEAD_BYTES, 4), (20 * HEAD_BYTES, 20)])
def test_over_a_long_line_as_many_beginnings_are_foretold_as_keep_it_busy(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch, lead_bytes: int, count: int
) -> None:
    paths = make_cold(rig, 25)
    monkeypatch.setattr(type(rig.remote), "lead_bytes", lead_bytes)
    read(rig, paths[0], HEAD)
    read(rig, paths[1], HEAD)
    assert rig.asked == [([ids_of(rig, path)[0] for path in paths[2 : 2 + count]], True)]


def test_photos_read_in_order_foretell_the_next_ones_whole(rig: VfsRig) -> None:
    paths = make_cold(rig, 12)
    read(rig, paths[0], *ALL)
    rig.asked.clear()
    read(rig, paths[1], HEAD)
    expected = [block_id for path in paths[2:6] for block_id in ids_of(rig, path)]
    assert rig.asked == [(expected, False)]


def test_what_was_foretold_as_a_beginning_is_asked_for_whole_when_readers_go_on(
    rig: VfsRig,
) -> None:
    paths = make_cold(rig, 12)
    read(rig, paths[0], HEAD)
    read(rig, paths[1], HEAD)
    rig.asked.clear()
    handle = rig.vfs.open(paths[2], os.O_RDONLY)
    rig.files_table.read_into(handle, memoryview(bytearray(HEAD_BYTES)), 0)
    rig.asked.clear()
    rig.files_table.read_into(handle, memoryview(bytearray(HEAD_BYTES)), HEAD_BYTES)
    rig.vfs.release(handle)
    whole = [ids for ids, heads_only in rig.asked if not heads_only]
    assert ids_of(rig, paths[3])[-1] in whole[0]
    assert ids_of(rig, paths[5])[-1] in whole[0]


def test_a_series_goes_on_through_files_that_are_local_by_now(rig: VfsRig) -> None:
    paths = make_cold(rig, 60)
    told: set[bytes] = set()
    for path in paths:
        read(rig, path, HEAD)
        for ids, heads_only in rig.asked:
            assert heads_only
            for block_id in ids:
                assert block_id not in told, "asked for twice"
                told.add(block_id)
                rig.blocks.fetch_head(block_id, urgent=False)
        rig.asked.clear()
    # All but the two that began the series.
    assert told == {ids_of(rig, path)[0] for path in paths[2:]}
    assert rig.fetcher.fetched.content_bytes == 60 * HEAD_BYTES


@pytest.mark.parametrize("order", [[0, 11], [5, 3], [7, 7], [4, 20]])
def test_no_order_no_foretelling(rig: VfsRig, order: list[int]) -> None:
    paths = make_cold(rig, 30)
    for number in order:
        read(rig, paths[number], HEAD)
    assert not rig.asked


def test_a_leap_ends_a_series(rig: VfsRig) -> None:
    paths = make_cold(rig, 60)
    for number in (0, 1, 2):
        read(rig, paths[number], HEAD)
    rig.asked.clear()
    read(rig, paths[50], HEAD)
    assert not rig.asked
    read(rig, paths[51], HEAD)
    assert rig.asked[0][0][0] == ids_of(rig, paths[52])[0]


def test_local_files_cost_no_foretelling(rig: VfsRig) -> None:
    paths = make_cold(rig, 6)
    for path in paths:
        read(rig, path, *ALL)
    rig.asked.clear()
    for path in paths:
        read(rig, path, HEAD)
    assert not rig.asked


def test_no_more_is_asked_for_at_once_than_the_setting_allows(rig: VfsRig) -> None:
    paths = make_cold(rig, 20)
    read(rig, paths[0], *ALL)
    read(rig, paths[1], *ALL)
    read(rig, paths[2], *ALL)
    limit = 16 + PHOTO_BYTES // BLOCK_BYTES + 1
    assert all(len(ids) <= limit for ids, heads_only in rig.asked if not heads_only)


def test_many_folders_at_once_are_forgotten_in_turn(rig: VfsRig) -> None:
    for number in range(40):
        rig.vfs.mkdir(b"/%d" % number, 0o755, ME)
        rig.make(b"/%d/a" % number, photo(number, 300_000))
        rig.make(b"/%d/b" % number, photo(1000 + number, 300_000))
    make_all_cold(rig)
    for number in range(40):
        read(rig, b"/%d/a" % number, HEAD)
    foretelling = rig.files_table._foretelling
    assert len(foretelling._series) <= 16
    assert set(foretelling._folders.values()) == set(foretelling._series)


def test_files_that_vanish_do_no_harm(rig: VfsRig) -> None:
    paths = make_cold(rig, 12)
    read(rig, paths[0], HEAD)
    read(rig, paths[1], HEAD)
    rig.vfs.unlink(paths[2])
    rig.vfs.rename(paths[3], b"/a-other-name", 0)
    rig.asked.clear()
    assert read(rig, b"/a-other-name", HEAD) == photo(3)[:HEAD_BYTES]
    assert read(rig, paths[4], *ALL) == photo(4)
    assert read(rig, paths[5], *ALL) == photo(5)


def test_a_photo_that_was_moved_into_another_series_is_in_nobodys_way(rig: VfsRig) -> None:
    for folder in (b"/a", b"/b"):
        rig.vfs.mkdir(folder, 0o755, ME)
        for number in range(8):
            rig.make(folder + b"/%02d.jpg" % number, photo(number))
    make_all_cold(rig)
    for path in (b"/a/00.jpg", b"/a/01.jpg"):
        read(rig, path, (0, 1000))
    rig.vfs.rename(b"/a/03.jpg", b"/b/03-moved.jpg")
    # The other folder's series has it next, and is then given up.
    for path in (b"/b/01.jpg", b"/b/02.jpg", b"/b/00.jpg"):
        read(rig, path, (0, 1000))
        make_all_cold(rig)
    for number in (2, 4, 5):
        assert read(rig, b"/a/%02d.jpg" % number, (0, 1000)) == photo(number)[:1000]
