"""The database file and its log, as the kernel sees them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest

from syncer.errors import AccessError, CorruptError, LocalFullError, PermanentError, SyncerError
from syncer.metadata import connection
from syncer.metadata.connection import connect, translate
from syncer.metadata.db import Database
from syncer.metadata.known import NAMED_NODE
from syncer.metadata.soundness import integrity_faults

#: The index of the WAL begins with this, and a copy of it.
_INDEX_HEADER_BYTES = 48


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


class _BadDisk(apsw.VFS):
    """A disk on which some calls fail, once `fails` names them with SQLite's code for that."""

    def __init__(self) -> None:
        super().__init__("bad-disk", "unix")
        self.fails: dict[str, int] = {}

    def look(self, call: str) -> None:
        if call in self.fails:
            raise apsw.exception_for(self.fails[call])

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _BadFile(self, name, flags)


class _BadFile(apsw.VFSFile):
    def __init__(self, disk: _BadDisk, name: Any, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._disk = disk

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        self._disk.look("read")
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._disk.look("write")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._disk.look("sync")
        super().xSync(flags)


@pytest.fixture
def bad_disk() -> Iterator[_BadDisk]:
    disk = _BadDisk()
    apsw.set_default_vfs("bad-disk")
    try:
        yield disk
    finally:
        apsw.set_default_vfs("unix")
        disk.unregister()


def test_a_disk_that_fails_is_not_taken_for_a_damaged_database(
    bad_disk: _BadDisk, tmp_path: Path
) -> None:
    path = tmp_path / "metadata.db"
    with contextlib.closing(Database(path)) as db:
        write(db, 300)
        db.checkpoint()
        db._connection.execute("PRAGMA shrink_memory")
        bad_disk.fails = {"read": apsw.SQLITE_IOERR_READ}
        with pytest.raises(PermanentError, match="the disk that holds"):
            db.query("SELECT * FROM garbage")
        assert db.standstill.reason is None
        bad_disk.fails = {}
        assert len(db.query("SELECT * FROM garbage")) == 300
    bad_disk.fails = {"read": apsw.SQLITE_IOERR_READ}
    with pytest.raises(PermanentError, match="the disk that holds"):
        Database(path)
    bad_disk.fails = {}
    Database(path).close()


@pytest.mark.parametrize(
    ("code", "is_full", "expected"),
    [
        (apsw.SQLITE_FULL, False, LocalFullError),
        (apsw.SQLITE_IOERR_WRITE, True, LocalFullError),
        (apsw.SQLITE_IOERR_SHMSIZE, True, LocalFullError),
        (apsw.SQLITE_CANTOPEN, True, LocalFullError),
        (apsw.SQLITE_IOERR_WRITE, False, PermanentError),
        (apsw.SQLITE_IOERR_READ, True, PermanentError),
        (apsw.SQLITE_CANTOPEN, False, AccessError),
        (apsw.SQLITE_READONLY, True, AccessError),
        (apsw.SQLITE_CORRUPT_INDEX, True, CorruptError),
        (apsw.SQLITE_NOTADB, True, CorruptError),
        (apsw.SQLITE_BUSY, True, SyncerError),
    ],
)
def test_errors_of_sqlite_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    code: int,
    is_full: bool,
    expected: type[SyncerError],
) -> None:
    monkeypatch.setattr(connection, "_is_full", lambda path: is_full)
    assert type(translate(tmp_path / "metadata.db", apsw.exception_for(code))) is expected


def test_a_disk_without_room_for_a_file_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def disk(**given: int) -> None:
        usual = {"f_frsize": 4096, "f_bavail": 1000, "f_files": 100, "f_favail": 50}
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**usual | given))

    disk()
    assert not connection._is_full(Path("/any/file"))
    disk(f_bavail=8)
    assert connection._is_full(Path("/any/file"))
    disk(f_favail=0)
    assert connection._is_full(Path("/any/file"))
    disk(f_files=0, f_favail=0)
    assert not connection._is_full(Path("/any/file")), "this one counts no files"


def test_a_checkpoint_goes_on_while_another_thread_commits(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who commits writes the header of the WAL's index twice; in between, SQLite says "busy"."""
    write(db, 10)
    db.sync()
    write(db, 10)

    def connect_and_tear(path: Path) -> apsw.Connection:
        made = connect(path)
        with open(f"{path}-shm", "r+b") as index:
            index.seek(_INDEX_HEADER_BYTES)
            index.write(bytes(_INDEX_HEADER_BYTES))
        torn.append(path)
        return made

    torn: list[Path] = []
    monkeypatch.setattr("syncer.metadata.db.connect", connect_and_tear)
    db.checkpoint()
    assert torn
    assert len(db.query("SELECT * FROM garbage")) == 10


def refuse_to_sync_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux does: it tells of an error in writing once, and not of what became of the pages."""
    real_fdatasync = os.fdatasync

    def fdatasync(file: int) -> None:
        monkeypatch.setattr(os, "fdatasync", real_fdatasync)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fdatasync)


def row_count(db: Database) -> int:
    return len(db.query("SELECT * FROM garbage"))


@pytest.mark.expects_warnings
def test_after_a_sync_that_failed_nothing_is_called_safe(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(db, 10)
    db.sync()
    write(db, 20)
    refuse_to_sync_once(monkeypatch)
    told: list[object] = []
    db.standstill.on_begin(lambda: told.append(db.standstill.reason))
    for _ in range(3):
        with pytest.raises(PermanentError, match="may have lost"):
            db.sync()
    assert len(told) == 1
    for change in (lambda: write(db, 1), db.checkpoint):
        with pytest.raises(PermanentError, match="may have lost"):
            change()
    assert row_count(db) == 20, "what can be read is read"
    db.close()
    # Of what the next process finds, all is in the file itself, which is synced.
    with contextlib.closing(Database(db.path)) as again:
        assert row_count(again) == 20
        assert not again.wal_bytes()
        write(again, 30)
        again.sync()
    with contextlib.closing(Database(db.path)) as again:
        assert row_count(again) == 30


@pytest.mark.expects_warnings
@pytest.mark.parametrize(("has_log", "expected"), [(False, 10), (True, 20)])
def test_what_the_kernel_has_thrown_away_does_not_get_into_the_file(
    db: Database, monkeypatch: pytest.MonkeyPatch, has_log: bool, expected: int
) -> None:
    write(db, 10)
    db.sync()
    safe = db.wal_bytes()
    write(db, 20)
    refuse_to_sync_once(monkeypatch)
    with pytest.raises(PermanentError, match="may have lost"):
        db.sync()
    size = db.wal_bytes()
    assert size > safe
    with open(f"{db.path}-wal", "r+b") as file:
        file.seek(safe)
        file.write(bytes(size - safe))
    db.close()
    if not has_log:
        os.unlink(f"{db.path}-redo")
    with contextlib.closing(Database(db.path)) as again:
        # The redo log of the lost commit may be there still.
        assert row_count(again) == expected
        assert not integrity_faults(again, 10)


@pytest.mark.expects_warnings
def test_a_sync_of_sqlite_that_fails_counts_as_well(bad_disk: _BadDisk, tmp_path: Path) -> None:
    db = Database(tmp_path / "metadata.db")
    write(db, 10)
    bad_disk.fails = {"sync": apsw.SQLITE_IOERR_FSYNC}
    with pytest.raises(PermanentError, match="may have lost"):
        db.checkpoint()
    bad_disk.fails = {}
    with pytest.raises(PermanentError, match="may have lost"):
        write(db, 20)
    assert row_count(db) == 10
    db.close()
    with contextlib.closing(Database(db.path)) as again:
        assert row_count(again) == 10


def test_what_a_killed_process_left_in_the_log_is_in_the_file_at_the_next_start(
    db: Database, tmp_path: Path
) -> None:
    """It may have been killed after a sync that failed."""
    write(db, 20)
    db.sync()
    copy, alone = tmp_path / "killed.db", tmp_path / "alone.db"
    for end in ("", "-wal"):
        shutil.copy(f"{db.path}{end}", f"{copy}{end}")
    with contextlib.closing(Database(copy)) as again:
        assert not again.wal_bytes()
        shutil.copy(copy, alone)
    with contextlib.closing(Database(alone)) as other:
        assert row_count(other) == 20
