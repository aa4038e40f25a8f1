"""Times of reading: shown at once, written with many others, and never at the cost of a change."""

from __future__ import annotations

import os

import pytest

from tests.vfs_rig import ME, VfsRig

_FILES = 450


def read(rig: VfsRig, path: bytes) -> None:
    """Read a file as the kernel does."""
    handle = rig.vfs.open(path, os.O_RDONLY, ME)
    rig.vfs.files.read_into(handle, memoryview(bytearray(1)), 0)
    rig.vfs.files.flush(handle)
    rig.vfs.release(handle)


def atime(rig: VfsRig, path: bytes) -> int:
    return rig.vfs.getattr(path).atime_ns


def listed_atime(rig: VfsRig, name: bytes) -> int:
    return dict(rig.tree.entries(1, b"", 1000))[name].atime_ns


def stored_atime(rig: VfsRig, number: int) -> int:
    row = rig.db.query_one("SELECT atime_ns FROM node WHERE id = ?", (number,))
    assert row is not None
    return int(row[0])


@pytest.fixture
def number(rig: VfsRig) -> int:
    """Of a file that nobody has read since it was written."""
    number = rig.make(b"/file", b"content")
    rig.vfs.utimens(b"/file", 1, 2)
    return number


def test_a_reading_shows_at_once_and_is_in_the_table_after_a_round(
    rig: VfsRig, number: int
) -> None:
    read(rig, b"/file")
    shown = atime(rig, b"/file")
    assert shown > rig.vfs.getattr(b"/file").mtime_ns
    assert listed_atime(rig, b"file") == shown
    # Whatever is not known any more is looked up in the table.
    rig.tree.forget()
    assert atime(rig, b"/file") == listed_atime(rig, b"file") == shown
    rig.round()
    assert stored_atime(rig, number) == shown
    rig.reopen()
    assert atime(rig, b"/file") == shown


def test_a_reading_is_no_transaction(
    rig: VfsRig, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin() -> None:
        raise AssertionError("who reads waits for the database")

    before = atime(rig, b"/file")
    with monkeypatch.context() as patch:
        patch.setattr(rig.db._transaction, "_begin", begin)
        read(rig, b"/file")
    assert atime(rig, b"/file") != before


def test_a_change_of_the_file_writes_the_reading_before_it(rig: VfsRig, number: int) -> None:
    read(rig, b"/file")
    shown = atime(rig, b"/file")
    rig.vfs.chmod(b"/file", 0o600)
    assert stored_atime(rig, number) == atime(rig, b"/file") == shown


def test_a_time_that_is_set_by_hand_counts_for_more_than_the_reading_before(
    rig: VfsRig, number: int
) -> None:
    read(rig, b"/file")
    rig.vfs.utimens(b"/file", 5, 7)
    assert atime(rig, b"/file") == listed_atime(rig, b"file") == 5
    rig.round()
    assert stored_atime(rig, number) == 5


def test_a_killed_process_leaves_the_time_of_the_reading_before(rig: VfsRig, number: int) -> None:
    read(rig, b"/file")
    rig.restart()
    assert atime(rig, b"/file") == 1
    read(rig, b"/file")
    assert atime(rig, b"/file") > 1, "it was not read since it was written, as far as is known"


def test_a_file_that_is_removed_after_a_reading_is_gone(rig: VfsRig, number: int) -> None:
    read(rig, b"/file")
    rig.vfs.unlink(b"/file")
    rig.round()
    assert rig.db.query("SELECT * FROM node WHERE id = ?", (number,)) == []


def test_many_readings_are_written_in_short_transactions(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [rig.make(b"/%d" % name, b"content") for name in range(_FILES)]
    for name, number in enumerate(numbers):
        rig.vfs.utimens(b"/%d" % name, number, number)
        read(rig, b"/%d" % name)
    shown = {number: atime(rig, b"/%d" % name) for name, number in enumerate(numbers)}
    transactions: list[int] = []
    end = rig.db._end

    def counted_end(failed: bool) -> None:
        transactions.append(len(rig.db._statements or ()))
        end(failed)

    monkeypatch.setattr(rig.db._transaction, "_end", counted_end)
    rig.tree.save_readings()
    assert sum(transactions) == _FILES and max(transactions) <= 200
    assert {number: stored_atime(rig, number) for number in numbers} == shown
    transactions.clear()
    rig.tree.save_readings()
    assert transactions == [], "all of them are written"


def test_readings_that_no_round_can_write_do_not_fill_the_memory(
    rig: VfsRig, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncer.metadata.readings._MOST", 1)
    other = rig.make(b"/other", b"content")
    rig.vfs.utimens(b"/other", 3, 4)
    read(rig, b"/file")
    read(rig, b"/other")
    assert atime(rig, b"/file") == 1
    assert atime(rig, b"/other") > 3
    rig.round()
    assert (stored_atime(rig, number), stored_atime(rig, other) > 3) == (1, True)
