"""SQLite's write-ahead log as a file: synced by one call, and read ahead of what overwrites it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import apsw

from syncer.metadata.connection import UnsyncedError

#: How much of the WAL behind its present end is to be in the page cache.
_AHEAD_BYTES = 2 << 20
_FRAME_HEADER_BYTES = 24


class Wal:
    """The WAL of an open database, which is there until the last connection ends."""

    def __init__(self, database: Path, connection: apsw.Connection) -> None:
        self._database = database
        self._file = os.open(f"{database}-wal", os.O_RDWR | os.O_CLOEXEC)
        self._frame_bytes = _FRAME_HEADER_BYTES + connection.pragma("page_size")
        self._read_at = 0
        connection.set_wal_hook(self._read_ahead)

    def _read_ahead(self, connection: apsw.Connection, name: str, frames: int) -> int:
        """After a commit: have the kernel read what will be overwritten next.

        A WAL that began anew is written over its former self, and no frame fills pages of the page
        cache exactly. Where these are no longer cached, the kernel reads each of them first, while
        the commit waits: it takes twenty times as long.
        """
        end = frames * self._frame_bytes
        if not self._read_at - _AHEAD_BYTES <= end < self._read_at:
            # It is advice only, and the commit is done: an error here would be taken for its own.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._file, end, _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
            self._read_at = end + _AHEAD_BYTES // 2
        return apsw.SQLITE_OK

    def begin_anew(self, connection: apsw.Connection) -> None:
        """Write what an earlier process has left to the database's file, and sync that.

        SQLite has verified it by its checksums when it opened the file. The earlier process may
        have ended because it could not sync the WAL: what is added behind a hole is lost in a power
        cut.
        """
        if self.size_bytes:
            # On a full disk it stays as it is.
            with contextlib.suppress(apsw.FullError):
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def sync(self) -> None:
        """Make what is in it power-safe. Raises UnsyncedError."""
        try:
            os.fdatasync(self._file)
        except OSError as error:
            raise UnsyncedError(self._database, error.strerror) from error

    def sync_name(self) -> None:
        """Make its name power-safe: SQLite makes a new WAL after each clean end.

        Raises UnsyncedError.
        """
        folder = os.open(self._database.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        except OSError as error:
            raise UnsyncedError(self._database, error.strerror) from error
        finally:
            os.close(folder)

    @property
    def size_bytes(self) -> int:
        """What it takes on the disk."""
        return os.fstat(self._file).st_size

    def close(self) -> None:
        os.close(self._file)
