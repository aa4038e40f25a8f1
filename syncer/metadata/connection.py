"""Connections to the metadata database's file, and SQLite's errors as ours."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw

from syncer.errors import (
    AccessError,
    CorruptError,
    LocalFullError,
    PermanentError,
    SyncerError,
)

#: When the WAL begins anew, its file is cut to this.
_WAL_LIMIT_BYTES = 64 << 20
#: A transaction's pages stay in memory up to this, besides what is cached. So the transactions of a
#: group (`redo`) can be done again where the disk is full.
_SPILL_KIB = 64 << 10

_SYNCS = (apsw.SQLITE_IOERR_FSYNC, apsw.SQLITE_IOERR_DIR_FSYNC)

_COMMITTED_CACHE_KIB = 1024

#: With less than this, the disk has no room for what opening a database needs: the index of the WAL
#: grows by 32 KiB at once.
_FULL_BELOW_BYTES = 64 << 10
#: SQLite has no code of its own for a disk without room where these fail.
_NEED_ROOM = frozenset(
    {
        apsw.SQLITE_IOERR_WRITE,
        apsw.SQLITE_IOERR_TRUNCATE,
        apsw.SQLITE_IOERR_SHMOPEN,
        apsw.SQLITE_IOERR_SHMSIZE,
        apsw.SQLITE_IOERR_SHMMAP,
        apsw.SQLITE_CANTOPEN,
    }
)

Row = tuple[Any, ...]


class UnsyncedError(PermanentError):
    """The disk refused to sync, so what was written last may be lost, see `Database.sync`."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"the disk that holds {path} may have lost what was written ({reason})")


class Reader:
    """A read-only view of the database at one moment. For one thread."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def query(self, sql: str, bindings: Sequence[Any] = ()) -> Iterator[Row]:
        """The rows of a query, one by one."""
        return iter(self._connection.execute(sql, bindings))

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once per row; only temporary tables can be changed."""
        self._connection.executemany(sql, rows)


class CommittedRows:
    """Single rows as SQLite last committed them, which needs no lock of the `Database`'s.

    Safe for use from several threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        # The lock guards these.
        self._connection: apsw.Connection | None = None
        self._is_closed = False

    def query_one(self, sql: str, bindings: Sequence[Any]) -> Row | None:
        """The first row of a query, or None. Raises SyncerError."""
        with self._lock:
            if self._is_closed:
                raise SyncerError(f"the database {self._path} is closed")
            try:
                if self._connection is None:
                    self._connection = connect(self._path, apsw.SQLITE_OPEN_READONLY)
                    self._connection.execute(f"PRAGMA cache_size = -{_COMMITTED_CACHE_KIB}")
                # All of them: a query that has not ended would keep the WAL from beginning anew.
                rows = self._connection.execute(sql, bindings).fetchall()
            except apsw.Error as error:
                raise translate(self._path, error) from error
            return rows[0] if rows else None

    def close(self) -> None:
        """Before the database's own connection, which tidies up if it is the last one."""
        with self._lock:
            self._is_closed = True
            if self._connection is not None:
                self._connection.close()


def connect(
    path: Path, flags: int = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
) -> apsw.Connection:
    """A connection that never checkpoints by itself. Raises apsw.Error."""
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=200)
    connection.set_busy_timeout(10_000)
    # Else SQLite looks at what is bound to choose its way, and prepares many statements anew, for
    # 10 to 20 us, whenever that changes. No table here has statistics by which it could choose.
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
    connection.execute("PRAGMA cache_size = -16384")
    connection.execute(f"PRAGMA cache_spill = -{_SPILL_KIB}")
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def translate(path: Path, error: apsw.Error) -> SyncerError:
    """Our error for one of SQLite's about the database at `path`.

    Only what SQLite finds wrong in the file is damage. A disk that is full or fails says nothing
    about that, and a repair would put another database in the place of a good one.
    """
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
        return CorruptError(f"the database {path} is damaged ({error})")
    code = getattr(error, "extendedresult", 0)
    if code in _SYNCS:
        return UnsyncedError(path, error)
    if isinstance(error, apsw.FullError) or (code in _NEED_ROOM and _is_full(path)):
        return LocalFullError(f"the disk that holds {path} is full; free some space")
    if isinstance(error, (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError)):
        return AccessError(f"the database {path} can't be opened ({error}); check its permissions")
    if isinstance(error, apsw.IOError):
        return PermanentError(
            f"the disk that holds {path} fails ({error}); the system's log may tell why"
        )
    return SyncerError(f"the database {path}: {error}")


def _is_full(path: Path) -> bool:
    """Whether the disk has no room for another page, or for another file."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    # Some file systems count no files.
    has_no_names = bool(disk.f_files) and not disk.f_favail
    return has_no_names or disk.f_bavail * disk.f_frsize < _FULL_BELOW_BYTES
