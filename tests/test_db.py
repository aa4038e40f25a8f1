"""The database file and its log, as the kernel sees them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from syncer.metadata.db import Database
from syncer.metadata.known import NAMED_NODE


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "metadata.db")
    yield database
    database.close()


def write(db: Database, count: int) -> None:
    for number in range(count):
        with db.transaction():
            row = (number.to_bytes(4000, "big"), number)
            db.execute("INSERT OR REPLACE INTO garbage VALUES(?, ?)", row)


def is_cached(file: int, offset: int) -> bool:
    """Whether a page of a file is in the page cache; to read it would bring it there."""
    found = ctypes.c_ubyte()
    with mmap.mmap(file, 0) as view:
        first = ctypes.c_char.from_buffer(view)
        address = ctypes.c_void_p(ctypes.addressof(first) + offset - offset % mmap.PAGESIZE)
        assert ctypes.CDLL(None).mincore(address, mmap.PAGESIZE, ctypes.byref(found)) == 0
        del first
    return bool(found.value & 1)


def await_cached(file: int, offset: int) -> None:
    deadline = time.monotonic() + 60
    while not is_cached(file, offset):
        assert time.monotonic() < deadline, "it was not read"
        time.sleep(0.01)


def test_what_the_log_overwrites_next_is_read_ahead(db: Database) -> None:
    """Else each commit would wait for the disk, once the kernel has dropped the log's pages."""
    write(db, 1500)
    db.sync()
    size = db.wal_bytes()
    assert size > 6 << 20
    db.checkpoint()
    file = os.open(f"{db.path}-wal", os.O_RDWR)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        if is_cached(file, 1 << 20):
            pytest.skip("this file system is in memory")
        write(db, 1)
        db.sync()
        await_cached(file, 1 << 20)
        assert not is_cached(file, size - 4096), "all of the log was read"
        # And so on, while it grows.
        write(db, 600)
        db.sync()
        end = os.fstat(file).st_size
        assert end == size, "the log did not begin anew"
        await_cached(file, 3 << 20)
    finally:
        os.close(file)


def test_closing_it_twice_closes_no_file_of_others(db: Database, tmp_path: Path) -> None:
    write(db, 1)
    db.close()
    # They get the numbers that its own files had.
    with contextlib.ExitStack() as files:
        others = [files.enter_context(open(tmp_path / f"{n}", "wb")) for n in range(4)]
        db.close()
        for other in others:
            os.fstat(other.fileno())


def test_a_statement_is_not_prepared_anew_for_other_values(db: Database) -> None:
    """SQLite would do that to see whether another way is better for them."""
    asked: list[int] = []

    def authorize(action: int, *about: str | None) -> int:
        asked.append(action)
        return apsw.SQLITE_OK

    db._connection.authorizer = authorize
    db.query(NAMED_NODE, (1, b"a"))
    assert asked, "what it may do is asked when it is prepared"
    asked.clear()
    for number in range(3):
        db.query(NAMED_NODE, (number, b"%d" % number))
    assert not asked
