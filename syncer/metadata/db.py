"""The metadata database: SQLite in the data directory, its schema, and transactions.

This module knows the schema and how to make a commit durable; what the rows mean to a file
system is `tree`'s and its neighbours' business.

Durability. The database is in WAL mode with synchronous=NORMAL, so a commit is one write() and
survives the death of the process, not that of the power. `sync` makes everything that is
committed power-safe by one fdatasync of the WAL; callers that come while one is under way share
the next. Checkpoints (the copying of the WAL into the database file) are taken by a background
thread, never by a commit, so that no file operation waits for them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw

from syncer.errors import AccessError, CorruptError, FormatError, LocalFullError, SyncerError

SCHEMA_VERSION = 1

#: A change of a name writes some seven pages to the WAL. Small pages halve that against 4096
#: bytes, and cost no time; smaller ones would make chains of the longer rows.
_PAGE_BYTES = 2048
#: When the WAL begins anew, its file is cut to this.
_WAL_LIMIT_BYTES = 64 << 20

Row = tuple[Any, ...]

_SCHEMA = """
-- Time. Every versioned row carries the epoch in which it became true (born). Tables without
-- "_past" hold what is true now; their "_past" twins hold what was true for born <= e < died.
-- Within one epoch a change overwrites; the first change of a row in a later epoch first copies
-- it to the past. A row whose life would begin and end in the same epoch leaves no trace.

CREATE TABLE meta(             -- single values, by name; see Database.get_meta
  key TEXT PRIMARY KEY,
  value ANY                    -- text, integer or bytes
) WITHOUT ROWID;

CREATE TABLE epoch(            -- the units of history; the open one is the newest
  seq INTEGER PRIMARY KEY,     -- total order within the repository
  machine INTEGER NOT NULL,    -- the machine that made it, 63 bits
  counter INTEGER NOT NULL,    -- that machine's own count of epochs
  time_ns INTEGER NOT NULL     -- when it was opened, since 1970; never goes back
);

CREATE TABLE node(             -- a file, directory, symlink, fifo, socket or device
  id INTEGER PRIMARY KEY,      -- machine tag << 40 | counter; 1 is the root; never reused
  born INTEGER NOT NULL,
  mode INTEGER NOT NULL,       -- type and permission bits, as in st_mode
  uid INTEGER NOT NULL,
  gid INTEGER NOT NULL,
  rdev INTEGER NOT NULL,       -- of devices, else 0
  nlink INTEGER NOT NULL,      -- names; of a directory: 2 + its subdirectories; 0: see orphan
  size INTEGER NOT NULL,       -- bytes; of a symlink: its target's length; of a directory: 0
  atime_ns INTEGER NOT NULL,   -- changed in place: reading makes no history
  mtime_ns INTEGER NOT NULL,
  ctime_ns INTEGER NOT NULL,
  btime_ns INTEGER NOT NULL,   -- birth
  target BLOB                  -- of a symlink, else NULL
);
CREATE TABLE node_past(
  id INTEGER NOT NULL, born INTEGER NOT NULL, died INTEGER NOT NULL,
  mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, rdev INTEGER NOT NULL,
  nlink INTEGER NOT NULL, size INTEGER NOT NULL, atime_ns INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, btime_ns INTEGER NOT NULL, target BLOB,
  PRIMARY KEY(id, died)
) WITHOUT ROWID;

CREATE TABLE name(             -- an entry of a directory
  parent INTEGER NOT NULL,
  name BLOB NOT NULL,          -- any bytes but "/" and NUL, 1 to 255 of them
  node INTEGER NOT NULL,
  born INTEGER NOT NULL,
  PRIMARY KEY(parent, name)
) WITHOUT ROWID;
CREATE INDEX name_of_node ON name(node);
CREATE TABLE name_past(
  parent INTEGER NOT NULL, name BLOB NOT NULL, node INTEGER NOT NULL,
  born INTEGER NOT NULL, died INTEGER NOT NULL,
  PRIMARY KEY(parent, name, died)
) WITHOUT ROWID;
CREATE INDEX name_past_of_node ON name_past(node);

CREATE TABLE content(          -- what a file holds
  node INTEGER NOT NULL,
  run INTEGER NOT NULL,        -- blocks 256 run .. 256 run + 255; or -1: see data
  born INTEGER NOT NULL,
  data BLOB NOT NULL,          -- block ids, 16 bytes each, zeros for a hole; what lies behind
                               -- the last id is a hole. Of run -1: the bytes of a tiny file
                               -- themselves; it then has no other run
  PRIMARY KEY(node, run)
) WITHOUT ROWID;
CREATE TABLE content_past(
  node INTEGER NOT NULL, run INTEGER NOT NULL, born INTEGER NOT NULL, died INTEGER NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY(node, run, died)
) WITHOUT ROWID;

CREATE TABLE xattr(
  node INTEGER NOT NULL,
  name BLOB NOT NULL,          -- with its namespace: user.comment
  born INTEGER NOT NULL,
  value BLOB NOT NULL,
  PRIMARY KEY(node, name)
) WITHOUT ROWID;
CREATE TABLE xattr_past(
  node INTEGER NOT NULL, name BLOB NOT NULL, born INTEGER NOT NULL, died INTEGER NOT NULL,
  value BLOB NOT NULL,
  PRIMARY KEY(node, name, died)
) WITHOUT ROWID;

CREATE TABLE patch(            -- small fsynced writes that are not yet folded into a block
  node INTEGER NOT NULL,
  seq INTEGER NOT NULL,        -- order of application
  offset INTEGER NOT NULL,     -- in the file, bytes; a patch lies within one block
  data BLOB NOT NULL,
  size INTEGER NOT NULL,       -- of the file with this patch
  mtime_ns INTEGER NOT NULL,   -- and when it was written
  PRIMARY KEY(node, seq)
) WITHOUT ROWID;

-- How files were before changes that a power cut may still take: see `undo`. Emptied by each
-- sync of all blocks, so they hold what changed within seconds.

CREATE TABLE undo_file(
  node INTEGER NOT NULL,
  turn INTEGER NOT NULL,       -- the time between two syncs in which it changed first
  size INTEGER NOT NULL,       -- as in the node's row before that
  mtime_ns INTEGER NOT NULL,
  PRIMARY KEY(node, turn)
) WITHOUT ROWID;
CREATE TABLE undo_run(
  node INTEGER NOT NULL, turn INTEGER NOT NULL, run INTEGER NOT NULL,
  data BLOB,                   -- of table content; NULL: it had no such row
  PRIMARY KEY(node, turn, run)
) WITHOUT ROWID;
CREATE TABLE undo_patch(       -- all patches that it had
  node INTEGER NOT NULL, turn INTEGER NOT NULL, seq INTEGER NOT NULL,
  offset INTEGER NOT NULL, data BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  PRIMARY KEY(node, turn, seq)
) WITHOUT ROWID;

CREATE TABLE orphan(           -- files without a name that were open; removed at the next start
  node INTEGER PRIMARY KEY,
  parent INTEGER,              -- where its name was, while the removal is provisional (the first
  name BLOB                    -- half of a rename over an open file): a crash puts it back
);

CREATE TABLE block(            -- blocks with a local copy, and only these
  id BLOB PRIMARY KEY,         -- 16 bytes
  size INTEGER NOT NULL,       -- bytes of content, 1 .. 1 MiB
  dirty INTEGER,               -- order of upload, oldest first, while the remote lacks it; or NULL
  refs INTEGER NOT NULL,       -- of a dirty block: how often content (now and past) names it;
                               -- at 0 it is dropped without an upload. Of a clean one: 0, unused
  synced INTEGER NOT NULL,     -- 1: the local file is power-safe
  used INTEGER NOT NULL        -- order of last use; the smallest is evicted first
) WITHOUT ROWID;
CREATE INDEX block_dirty ON block(dirty) WHERE dirty IS NOT NULL;
CREATE INDEX block_clean ON block(used) WHERE dirty IS NULL;
CREATE INDEX block_unsynced ON block(synced) WHERE synced = 0;

CREATE TABLE usage(            -- one row; kept by the transactions that change what it counts
  local_bytes INTEGER NOT NULL,    -- sum of block.size, each in whole pages of 4 KiB
  local_blocks INTEGER NOT NULL,
  dirty_bytes INTEGER NOT NULL,    -- of these, dirty
  dirty_blocks INTEGER NOT NULL,
  inline_bytes INTEGER NOT NULL,   -- sum of the lengths of content with run -1, now and past
  nodes INTEGER NOT NULL,          -- nodes that are there now
  file_bytes INTEGER NOT NULL      -- sum of the sizes of files that are there now
);
INSERT INTO usage VALUES(0, 0, 0, 0, 0, 0, 0);

CREATE TABLE outbox(           -- what changed in epochs that are not yet published
  epoch INTEGER NOT NULL,
  node INTEGER NOT NULL,       -- with name x'': the node's row, content and xattrs;
  name BLOB NOT NULL,          -- else the entry of this name in directory `node`
  PRIMARY KEY(epoch, node, name)
) WITHOUT ROWID;

CREATE TABLE chunk(            -- checkpoint chunks: nodes of one range of 4096 numbers each
  range INTEGER PRIMARY KEY,   -- node id >> 12; negative ones are of epochs: -1 - seq // 65536
  object BLOB                  -- ids (16 bytes each) of its objects on the remote; NULL: changed
);
"""

#: The values that `meta` may hold.
META_KEYS = frozenset(
    {
        "schema_version",  # integer
        "uuid",  # the repository's, text
        "seed",  # of all hashes, integer
        "machine",  # this data directory's machine id, 63 bits
        "next_node",  # the next node number this machine hands out
        "generation",  # of the writer whose history this database holds
        "writer",  # that writer's machine id
        "role",  # "writer", "follower" or "displaced"
        "published",  # the newest epoch that is in a segment on the remote
        "durable",  # the newest epoch of which everything is power-safe
        "boot",  # the machine's boot id while a process has this open; "" after a clean end
        "checkpoint",  # the newest epoch that is in a checkpoint on the remote
        "parent_segment",  # key of the newest segment, which the next one names as its parent
    }
)


class Database:
    """One writing connection, shared by all threads through `transaction` and `query`.

    Safe for use from several threads. Nothing slow (network, fsync) may happen inside a
    transaction: every file operation waits for the lock it holds.
    """

    def __init__(self, path: Path) -> None:
        """Open the database at `path`, or make one with the current schema.

        Raises FormatError if it is newer than this program, CorruptError if it is none.
        """
        self.path = path
        #: Guards the connection and whatever in-memory state mirrors its rows.
        self.lock = threading.RLock()
        self._depth = 0
        self._commits = 0
        #: Guards _synced_commits and the order of syncs; never taken while holding `lock`.
        self._sync_lock = threading.Lock()
        self._synced_commits = 0
        self._wal_fd = -1
        self._rollback_hooks: list[Callable[[], None]] = []
        self._transaction = _Transaction(self._begin, self._end)
        is_new = not path.exists()
        with _translated(path):
            self._connection = _connect(path)
            if is_new:
                os.chmod(path, 0o600)
                self._connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
                self._connection.execute("PRAGMA journal_mode = WAL")
            with self.transaction():
                if is_new:
                    self._connection.execute(_SCHEMA)
                    self.set_meta("schema_version", SCHEMA_VERSION)
            self._check_version()
        self._wal_fd = os.open(f"{path}-wal", os.O_RDWR | os.O_CLOEXEC)
        if is_new:
            self.sync()
        # SQLite makes a new WAL after each clean end; `sync` counts on its name as well.
        _sync_folder(path.parent)

    def _check_version(self) -> None:
        version = self.get_meta("schema_version")
        if not isinstance(version, int):
            raise CorruptError(f"{self.path} is not a syncer database")
        if version > SCHEMA_VERSION:
            raise FormatError(f"{self.path} was written by a newer syncer; install that version")

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """All statements inside become visible and crash-safe together, or none of them.

        May be nested: the outermost one commits. On an error it rolls back, tells the hooks
        (caches of rows are then void) and lets the error pass. Holds `lock`.
        """
        return self._transaction

    def _begin(self) -> None:
        self.lock.acquire()
        try:
            if not self._depth:
                self.execute("BEGIN IMMEDIATE")
            self._depth += 1
        except BaseException:
            self.lock.release()
            raise

    def _end(self, failed: bool) -> None:
        try:
            self._depth -= 1
            if self._depth:
                return
            if not failed:
                try:
                    self.execute("COMMIT")
                    self._commits += 1
                    return
                except BaseException:
                    self._roll_back()
                    raise
            self._roll_back()
        finally:
            self.lock.release()

    def _roll_back(self) -> None:
        with contextlib.suppress(apsw.Error):
            self._connection.execute("ROLLBACK")
        for hook in self._rollback_hooks:
            hook()

    def on_rollback(self, hook: Callable[[], None]) -> None:
        """Have `hook` called, under `lock`, whenever a transaction did not happen after all."""
        self._rollback_hooks.append(hook)

    def execute(self, sql: str, bindings: Sequence[Any] = ()) -> None:
        """Run a statement that returns no rows. The caller holds a transaction."""
        try:
            self._connection.execute(sql, bindings)
        except apsw.Error as error:
            raise _translate(self.path, error) from error

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once per row. The caller holds a transaction."""
        with _translated(self.path):
            self._connection.executemany(sql, rows)

    def changes(self) -> int:
        """How many rows the last statement changed. The caller holds a transaction."""
        return self._connection.changes()

    def query(self, sql: str, bindings: Sequence[Any] = ()) -> list[Row]:
        """All rows of a short query, as of now (inside a transaction: with its changes)."""
        with self.lock:
            try:
                return self._connection.execute(sql, bindings).fetchall()
            except apsw.Error as error:
                raise _translate(self.path, error) from error

    def query_one(self, sql: str, bindings: Sequence[Any] = ()) -> Row | None:
        """The first row of a query, or None."""
        with self.lock:
            try:
                return self._connection.execute(sql, bindings).fetchone()
            except apsw.Error as error:
                raise _translate(self.path, error) from error

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Reader]:
        """A consistent view for long queries, on a connection of its own.

        File operations go on meanwhile. Keep it short all the same: the WAL grows as long.
        """
        with _translated(self.path):
            connection = _connect(self.path, apsw.SQLITE_OPEN_READONLY)
            try:
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
        """
        wanted = self._commits
        with self._sync_lock:
            if self._synced_commits >= wanted:
                return
            covered = self._commits
            os.fdatasync(self._wal_fd)
            self._synced_commits = covered

    def checkpoint(self) -> None:
        """Copy what the WAL holds into the database file, so that the WAL begins anew.

        Most of it is copied while others go on; only what they added meanwhile under the lock,
        since as long as a single frame is left the WAL only grows.
        """
        with _translated(self.path):
            connection = _connect(self.path)
            try:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                with self.lock:
                    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            finally:
                connection.close()

    def wal_bytes(self) -> int:
        """What the WAL takes on the disk."""
        return os.fstat(self._wal_fd).st_size

    def size_bytes(self) -> int:
        """What database and WAL take on the disk."""
        return sum(
            os.stat(name).st_size
            for name in (self.path, f"{self.path}-wal")
            if os.path.exists(name)
        )

    def close(self) -> None:
        """Checkpoint and close. The database must not be used afterwards."""
        with self.lock:
            if self._wal_fd >= 0:
                os.close(self._wal_fd)
                self._wal_fd = -1
            self._connection.close()


class Reader:
    """A read-only view of the database at one moment. For one thread."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def query(self, sql: str, bindings: Sequence[Any] = ()) -> Iterator[Row]:
        """The rows of a query, one by one."""
        return iter(self._connection.execute(sql, bindings))


def _connect(
    path: Path, flags: int = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=200)
    connection.set_busy_timeout(10_000)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
    connection.execute("PRAGMA cache_size = -16384")
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Transaction(contextlib.AbstractContextManager[None]):
    """What `with db.transaction()` enters and leaves: one object for all, since every file
    operation does so several times."""

    def __init__(self, begin: Callable[[], None], end: Callable[[bool], None]) -> None:
        self._begin = begin
        self._end = end

    def __enter__(self) -> None:
        self._begin()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._end(error is not None)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into ours."""
    try:
        yield
    except apsw.Error as error:
        raise _translate(path, error) from error


def _translate(path: Path, error: apsw.Error) -> SyncerError:
    if isinstance(error, apsw.FullError):
        return LocalFullError(f"the disk that holds {path} is full; free some space")
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
        return CorruptError(f"the database {path} is damaged ({error})")
    if isinstance(error, (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError)):
        return AccessError(f"the database {path} can't be opened ({error}); check its permissions")
    if isinstance(error, apsw.IOError):
        return CorruptError(f"the disk that holds {path} fails ({error})")
    return SyncerError(f"the database {path}: {error}")
