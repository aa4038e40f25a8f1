"""The metadata database: SQLite in the data directory, and transactions.

This module knows how to make a commit durable; what the rows mean to a file system is `tree`'s
and its neighbours' business.

Durability. What a transaction did survives the death of the process when it has ended, not that of
the power: it is in the redo log, or SQLite has committed it to its WAL (synchronous=NORMAL). Many
transactions share one commit of SQLite's, see `redo`; whoever looks at the database through another
connection comes after one. `sync` makes everything power-safe that has ended, by a commit and one
fdatasync of the WAL; callers that come while one is under way share the next. Checkpoints (the
copying of the WAL into the database file) are taken by a background thread, never by a commit, so
that no file operation waits for them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw

from syncer.errors import CorruptError, PermanentError, SyncerError
from syncer.metadata import redo
from syncer.metadata.connection import (
    CommittedRows,
    Reader,
    Row,
    UnsyncedError,
    connect,
    translate,
)
from syncer.metadata.redo import MAX_STATEMENTS
from syncer.metadata.replay import do_again
from syncer.metadata.schema import META_KEYS, SCHEMA, SCHEMA_VERSION
from syncer.metadata.standstill import Standstill
from syncer.metadata.transaction import Transaction
from syncer.metadata.versions import check_version, upgrade
from syncer.metadata.wal import Wal

#: A change of a name writes some seven pages to the WAL. Small pages halve that against 4096
#: bytes, and cost no time; smaller ones would make chains of the longer rows.
_PAGE_BYTES = 2048

#: What is behind the path of a database in the names of its files.
FILE_ENDS = ("", "-wal", "-shm", "-redo")

_BEGIN_LOG = "INSERT OR REPLACE INTO meta VALUES('redo_key', ?), ('redo_sequence', ?)"
_NOTE_SEQUENCE = "UPDATE meta SET value = ? WHERE key = 'redo_sequence'"

log = logging.getLogger(__name__)


class Database:
    """One writing connection, shared by all threads through `transaction` and `query`.

    Safe for use from several threads. Nothing slow (network, fsync) may happen inside a
    transaction: every file operation waits for the lock it holds.
    """

    def __init__(self, path: Path, *, must_exist: bool = False, read_only: bool = False) -> None:
        """Open the database at `path`, or (unless it `must_exist`) make one.

        With `read_only`, one that another process may have open, for queries only.

        Raises FormatError if it is newer than this program; CorruptError if it is none, if it is
        damaged as far as that shows at once, or missing though it must exist.
        """
        self.path = path
        self.standstill = Standstill()
        #: Guards the connection and whatever in-memory state mirrors its rows.
        self.lock = threading.RLock()
        #: The thread whose transaction is in progress, or None.
        self.owner: int | None = None
        self._depth = 0
        self._is_closed = False
        #: None: every transaction is committed at once.
        self._log: redo.RedoLog | None = None
        #: What the transaction in progress ran; None: too much for the log.
        self._statements: list[redo.Statement] | None = []
        self._changes_before = 0
        #: What statements do depends on another database as well, so the log can't have them.
        self._is_attached = False
        #: How many transactions have ended well; it only grows.
        self.ended = 0
        #: Guards _synced and the order of syncs; never taken while holding `lock`.
        self._sync_lock = threading.Lock()
        self._synced = 0
        self._wal: Wal | None = None
        self._rollback_hooks: list[Callable[[], None]] = []
        self._end_hooks: list[Callable[[bool], None]] = []
        self._commit_hooks: list[Callable[[], None]] = []
        self.committed = CommittedRows(path)
        self._transaction = Transaction(self._begin, self._end)
        if read_only:
            with self._translated():
                self._connection = connect(path, apsw.SQLITE_OPEN_READONLY)
                check_version(self._connection, path, may_upgrade=False)
            return
        is_new = not path.exists()
        if is_new and must_exist:
            raise CorruptError(f"the database {path} is missing")
        with self._translated():
            self._connection = connect(path)
            try:
                if is_new:
                    self._make()
                check_version(self._connection, path, may_upgrade=True)
                self._wal = Wal(path, self._connection)
                self._wal.begin_anew(self._connection)
                self._take_up_log()
                upgrade(self._connection, path)
                if is_new:
                    self.sync()
                self._wal.sync_name()
            except BaseException:
                self.close()
                raise

    def _make(self) -> None:
        os.chmod(self.path, 0o600)
        self._connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        self._connection.execute("PRAGMA journal_mode = WAL")
        with self.transaction():
            self._connection.execute(SCHEMA)
            self.set_meta("schema_version", SCHEMA_VERSION)

    @property
    def _log_path(self) -> Path:
        return Path(f"{self.path}-redo")

    def _take_up_log(self) -> None:
        """Do again what the last process had not committed when it was killed."""
        key, sequence = self.get_meta("redo_key", 0), self.get_meta("redo_sequence", 0)
        if key and (records := list(redo.read(self._log_path, key, sequence))):
            with self.transaction():
                self.set_meta("redo_sequence", do_again(self._connection, self.path, records))
            # The next log begins over this one.
            self.sync()

    def _begin_log(self) -> None:
        """Have the transactions after the one in progress, which is the first, go to a log."""
        key, sequence = secrets.randbits(63), self.get_meta("redo_sequence", 0)
        try:
            begun = redo.RedoLog(self._log_path, key, sequence)
        except OSError as error:
            self._roll_back()
            raise redo.failure(self._log_path, error) from error
        try:
            with self._translated():
                self._connection.execute(_BEGIN_LOG, (key, sequence))
            self._commit()
        except BaseException:
            self._roll_back()
            begun.close(remove=False)
            raise
        self._log = begun

    def _failure(self, error: apsw.Error) -> SyncerError:
        """Our error for one of SQLite's."""
        failure = translate(self.path, error)
        if isinstance(failure, (CorruptError, UnsyncedError)):
            self.standstill.begin(failure)
        return failure

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns SQLite's errors into ours."""
        try:
            yield
        except apsw.Error as error:
            raise self._failure(error) from error

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """All statements inside become visible and crash-safe together, or none of them.

        May be nested: the outermost one commits. On an error it rolls back, tells the hooks
        (caches of rows are then void) and lets the error pass. Holds `lock`.
        """
        return self._transaction

    def _begin(self) -> None:
        self.lock.acquire()
        try:
            self.standstill.refuse()
            if not self._depth:
                # A failure of this commit concerns nobody whose call has returned.
                if self._log is not None and self._log.is_long:
                    self._commit()
                if not self._connection.in_transaction:
                    self._open_group()
                self._changes_before = self._connection.total_changes()
                self.owner = threading.get_ident()
            self._depth += 1
        except BaseException:
            self.lock.release()
            raise

    def _end(self, failed: bool) -> None:
        self._depth -= 1
        if self._depth:
            self.lock.release()
            return
        try:
            if failed:
                # Most that fail find something that is not as they want it, before any change.
                if self._statements != [] or not self._connection.in_transaction:
                    self._roll_back()
            elif self._statements != []:
                self._keep()
                self.ended += 1
            for hook in self._end_hooks:
                hook(not failed)
        finally:
            self._statements = []
            self.owner = None
            self.lock.release()

    def _open_group(self) -> None:
        """Begin SQLite's transaction, with all that has ended and is not committed."""
        if self._log is None or self._log.is_empty:
            self._begin_group()
            return
        try:
            self._begin_group()
            # By what the table says: who was interrupted after a commit has not noted it.
            records = self._log.group(self.get_meta("redo_sequence", 0))
            with self._translated():
                do_again(self._connection, self.path, records)
        except BaseException as error:
            self._abandon_group()
            # The log has all that has ended; the next process begins with that.
            reason = str(error) or "interrupted"
            kind = CorruptError if isinstance(error, CorruptError) else PermanentError
            self.standstill.begin(kind(f"the database {self.path} can't go on ({reason})"))
            raise

    def _begin_group(self) -> None:
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")

    def _keep(self) -> None:
        """Make what the transaction did survive the process; or undo it, and raise."""
        if self._statements is None or self._is_attached:
            self._commit()
        elif self._log is None:
            self._begin_log()
        else:
            changes = self._connection.total_changes() - self._changes_before
            try:
                is_kept = self._log.append(self._statements, changes)
            except BaseException as error:
                self._roll_back()
                if not isinstance(error, OSError):
                    raise
                raise redo.failure(self._log_path, error) from error
            if not is_kept:
                self._commit()

    def _commit(self) -> None:
        """End the group: SQLite commits it. Where it can't, the group is in the log as before."""
        is_open = self._connection.in_transaction
        if not is_open and (self._log is None or self._log.is_empty):
            return
        self.standstill.refuse()
        if not is_open:
            # SQLite gave the group up, as after an error in reading.
            self._open_group()
        try:
            with self._translated():
                if self._log is not None:
                    self._connection.execute(_NOTE_SEQUENCE, (self._log.sequence,))
                self._connection.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        for hook in self._commit_hooks:
            hook()
        if self._log is not None:
            self._log.restart()

    def _roll_back(self) -> None:
        """Undo the transaction in progress, with its group, of which the others are done again.

        Those that SQLite has committed stay, also if the error came after that.
        """
        try:
            self._abandon_group()
            if self._log is not None and not self._log.is_empty:
                with contextlib.suppress(SyncerError, OSError):
                    self._open_group()
        finally:
            for hook in self._rollback_hooks:
                hook()

    def _abandon_group(self) -> None:
        with contextlib.suppress(apsw.Error):
            self._connection.execute("ROLLBACK")

    def on_rollback(self, hook: Callable[[], None]) -> None:
        """Have `hook` called, under `lock`, whenever a transaction did not happen after all."""
        self._rollback_hooks.append(hook)

    def on_end(self, hook: Callable[[bool], None]) -> None:
        """Have `hook` called, under `lock`, when a transaction ends: with False if it failed, and
        True if what it did survives."""
        self._end_hooks.append(hook)

    def on_commit(self, hook: Callable[[], None]) -> None:
        """Have `hook` called, under `lock`, when SQLite has committed all that has ended."""
        self._commit_hooks.append(hook)

    def execute(self, sql: str, bindings: Sequence[Any] = ()) -> None:
        """Run a statement that returns no rows. The caller holds a transaction."""
        # A failed one belongs there as well: what is in memory may be ahead of it.
        statements = self._statements
        if statements is not None:
            statements.append((sql, bindings))
            if len(statements) > MAX_STATEMENTS:
                self._statements = None
        try:
            self._connection.execute(sql, bindings)
        except apsw.Error as error:
            raise self._failure(error) from error

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once per row. The caller holds a transaction."""
        for row in rows:
            self.execute(sql, row)

    def changes(self) -> int:
        """How many rows the last statement changed. The caller holds a transaction."""
        return self._connection.changes()

    def query(self, sql: str, bindings: Sequence[Any] = ()) -> list[Row]:
        """All rows of a short query, as of now (inside a transaction: with its changes)."""
        with self.lock:
            try:
                return self._connection.execute(sql, bindings).fetchall()
            except apsw.Error as error:
                raise self._failure(error) from error

    def query_one(self, sql: str, bindings: Sequence[Any] = ()) -> Row | None:
        """The first row of a query, or None."""
        with self.lock:
            try:
                return self._connection.execute(sql, bindings).fetchone()
            except apsw.Error as error:
                raise self._failure(error) from error

    @contextlib.contextmanager
    def snapshot(self, *, spills: bool = False) -> Iterator[Reader]:
        """A consistent view for long queries, on a connection of its own.

        File operations go on meanwhile. Keep it short all the same: the WAL grows as long. With
        `spills`, its temporary tables may be larger than the memory.
        """
        self._commit_all()
        with self._translated():
            connection = connect(self.path, apsw.SQLITE_OPEN_READONLY)
            try:
                if spills:
                    connection.execute("PRAGMA temp_store = FILE")
                connection.execute("BEGIN")
                yield Reader(connection)
            finally:
                connection.close()

    def get_meta(self, key: str, default: Any = None) -> Any:
        """The single value called `key` (one of META_KEYS)."""
        row = self.query_one("SELECT value FROM meta WHERE key = ?", (key,))
        return default if row is None else row[0]

    def set_meta(self, key: str, value: Any) -> None:
        """Set a single value; within a transaction of the caller's or in one of its own."""
        if key not in META_KEYS:
            raise KeyError(key)
        with self.transaction():
            self.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (key, value))

    def sync(self) -> None:
        """Make everything power-safe that was committed before the call.

        Waits for the disk; many callers at once share one fdatasync. Never call it inside a
        transaction.

        A disk that refused once has perhaps thrown away what it was to sync, and says nothing of
        that when it is asked again. So this is no success ever again: this process stops, and the
        next one writes all of the WAL that it can read to the database's file before it goes on.
        """
        wanted = self.ended
        with self._sync_lock:
            if self._synced >= wanted:
                return
            self.standstill.refuse()
            covered = self._commit_all()
            if self._wal is not None:
                try:
                    self._wal.sync()
                except UnsyncedError as error:
                    self.standstill.begin(error)
                    raise
            self._synced = covered

    def _commit_all(self) -> int:
        """For whoever looks from outside; returns how many transactions have ended by now."""
        with self.lock:
            assert self._statements == [], "it would end a transaction in its middle"
            self._commit()
            if self._depth:
                self._open_group()
                self._changes_before = self._connection.total_changes()
            return self.ended

    @contextlib.contextmanager
    def attached(self, path: Path, name: str) -> Iterator[None]:
        """Have the tables of another database as `name`.table. Holds `lock`."""
        with self.lock:
            self._commit_all()
            with self._translated():
                self._connection.execute(f"ATTACH ? AS {name}", (str(path),))
                self._is_attached = True
                try:
                    yield
                finally:
                    self._is_attached = False
                    self._connection.execute(f"DETACH {name}")

    def checkpoint(self) -> None:
        """Copy what the WAL holds into the database file, so that the WAL begins anew.

        Most of it is copied while others go on; only what they added meanwhile under the lock,
        since as long as a single frame is left the WAL only grows.
        """
        self.standstill.refuse()
        with self._translated():
            connection = connect(self.path)
            try:
                # SQLite is busy at once if it looks while another thread has its commit half noted
                # in the index of the WAL. The part under the lock takes all then.
                with contextlib.suppress(apsw.BusyError):
                    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                with self.lock:
                    self._commit_all()
                    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            finally:
                connection.close()

    def wal_bytes(self) -> int:
        """What the WAL takes on the disk."""
        return self._wal.size_bytes if self._wal else 0

    def size_bytes(self) -> int:
        """What database and WAL take on the disk."""
        return sum(
            os.stat(name).st_size
            for name in (self.path, f"{self.path}-wal", self._log_path)
            if os.path.exists(name)
        )

    def close(self) -> None:
        """Commit and close; once more does nothing. The database must not be used afterwards."""
        with self.lock:
            if self._is_closed:
                return
            self._is_closed = True
            is_committed = False
            try:
                self._commit()
                is_committed = True
            except SyncerError as error:
                log.warning("what was not committed stays in %s: %s", self._log_path, error)
            if self._log is not None:
                self._log.close(remove=is_committed and self.standstill.reason is None)
                self._log = None
            if self._wal is not None:
                self._wal.close()
                self._wal = None
            self.committed.close()
            if self.standstill.reason is not None:
                # What can be read of the WAL here may not be what was written to it.
                self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self._connection.close()
