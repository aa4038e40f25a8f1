"""The redo log: what transactions did since SQLite's last commit, in a file beside the database.

A commit of SQLite writes some ten pages, and costs a file operation more than all else that it
does. So many transactions share one commit: a *group*. Until then each of them, before its call
returns, appends the statements that it ran to this log by one write(2), which survives the death of
the process as a commit does. After one, the statements of the log are run once more.

    metadata.db + WAL           the state at the last commit; `meta` has its key and sequence
    metadata.db-redo            transactions sequence + 1, sequence + 2, ... under that key

A record is a checksum under the key, its length, how many rows it changed, its sequence number, and
the statements. The log begins anew with each group, over its former self: records of older groups
have lower numbers, and those of other processes another key, so neither is taken for what follows
the database's state. What is torn ends the log. What a kill or cut after each step leaves:

1. statements run in SQLite's open transaction     nothing of them
2. the record is written, the call returns         kill: all of it. cut: it, or what was before it,
                                                   since the log is never synced by itself
3. SQLite commits the group, with the sequence     the same; the log's records are behind it
   number of its newest transaction
4. the WAL is synced (`Database.sync`)             all of it, whatever becomes of the log

A statement must do the same again: it depends on the tables and on its values alone. That it did
shows in the number of rows that it changed.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]
import xxhash

from syncer.errors import AccessError, LocalFullError, SyncerError

Statement = tuple[str, Sequence[Any]]
"""SQL, and the values for its places."""

#: A longer transaction is better committed at once: what it changes is more than a commit costs.
MAX_STATEMENTS = 1000
_MAX_RECORD_BYTES = 256 << 10
#: A group ends when its records are longer than this: some thousand calls. A commit of so many
#: takes some milliseconds, for which others wait.
_GROUP_BYTES = 512 << 10

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHECKSUM = struct.Struct("<Q")
_HEAD = struct.Struct("<IIQ")  # length of what follows, rows changed, sequence number


class Record(NamedTuple):
    """One transaction."""

    sequence: int
    changes: int
    """How many rows it changed."""
    statements: list[Statement]


class RedoLog:
    """The log of one open database. The caller's lock guards it."""

    def __init__(self, path: Path, key: int, sequence: int) -> None:
        """Begin behind transaction number `sequence`, over what is there. Raises OSError."""
        self._path = path
        self._key = key
        #: Of the newest transaction.
        self.sequence = sequence
        self._end = 0
        #: A statement's text stands in the log once per group; then it has a number.
        self._numbers: dict[str, int] = {}
        # One for all: each new one takes memory for its output first.
        self._pack = msgpack.Packer().pack
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added since `restart`."""
        return not self._end

    @property
    def is_long(self) -> bool:
        """Whether the group should end."""
        return self._end > _GROUP_BYTES

    def append(self, statements: Sequence[Statement], changes: int) -> bool:
        """Add a transaction; False: it is too long for that. Raises OSError, and adds nothing."""
        texts: list[str] = []
        is_added = False
        try:
            record = self._record(statements, changes, texts)
            length = len(record)
            if length <= _MAX_RECORD_BYTES:
                if os.pwrite(self._file, record, self._end) != length:
                    # As on a disk that has room for a part of it only.
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                # A signal's handler, which may raise, runs where something is called: not between
                # these.
                self._end += length
                self.sequence += 1
                is_added = True
        finally:
            if not is_added:
                self._forget(texts)
        return is_added

    def _record(self, statements: Sequence[Statement], changes: int, texts: list[str]) -> bytes:
        """The next record; adds to `texts` what it has that is new to the group."""
        sqls, values = zip(*statements, strict=True)
        texts += {sql: None for sql in sqls if sql not in self._numbers}
        for sql in texts:
            self._numbers[sql] = len(self._numbers)
        numbers = map(self._numbers.__getitem__, sqls)
        calls = list(itertools.chain.from_iterable(zip(numbers, values, strict=True)))
        body: bytes = self._pack((texts, calls))
        record = _HEAD.pack(len(body), changes, self.sequence + 1) + body
        return _CHECKSUM.pack(xxhash.xxh3_64_intdigest(record, self._key)) + record

    def _forget(self, texts: list[str]) -> None:
        for sql in texts:
            del self._numbers[sql]

    def restart(self) -> None:
        """SQLite has committed the group; the next one begins."""
        self._end = 0
        self._numbers.clear()

    def group(self, sequence: int) -> Iterator[Record]:
        """The transactions of the present group that follow number `sequence`, from the file.

        Not one whose `append` was interrupted. Raises OSError.
        """
        return read(self._path, self._key, sequence, self._end)

    def close(self, *, remove: bool) -> None:
        """Close it. With `remove`, SQLite has all of it: the file goes."""
        os.close(self._file)
        if remove:
            self._path.unlink(missing_ok=True)


def failure(path: Path, error: OSError) -> SyncerError:
    """Our error for one that writing the log at `path` met."""
    if error.errno in _FULL:
        return LocalFullError(f"{path} can't be written ({error.strerror}); free some space")
    return AccessError(f"{path} can't be written: {error.strerror or error}")


def read(path: Path, key: int, sequence: int, end: int | None = None) -> Iterator[Record]:
    """The transactions that follow number `sequence`, up to the first record that is none of them.

    With `end`, of that many bytes. None if there is no such file. Raises OSError.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    view = memoryview(data)[:end]
    texts: list[str] = []
    start = 0
    while len(view) - start >= _CHECKSUM.size + _HEAD.size:
        (checksum,) = _CHECKSUM.unpack_from(view, start)
        head = start + _CHECKSUM.size
        length, changes, number = _HEAD.unpack_from(view, head)
        start = head + _HEAD.size + length
        # A length that is none reaches beyond the end, or the checksum tells.
        if xxhash.xxh3_64_intdigest(view[head:start], key) != checksum:
            return
        new_texts, calls = msgpack.unpackb(view[head + _HEAD.size : start])
        texts += new_texts
        if number > sequence + 1:
            return
        if number == sequence + 1:
            sequence = number
            pairs = zip(calls[::2], calls[1::2], strict=True)
            yield Record(number, changes, [(texts[place], values) for place, values in pairs])
