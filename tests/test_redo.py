"""Many transactions share one commit of SQLite's; what has ended is there after a kill.

A kill leaves the files as they are at that moment: a copy of them is what the next process finds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import apsw
import pytest

from syncer.errors import CorruptError, LocalFullError, PermanentError, SyncerError
from syncer.metadata import redo
from syncer.metadata.db import FILE_ENDS, Database

Rows = list[tuple[bytes, int]]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "metadata.db")
    yield database
    database.close()


def add(db: Database, *numbers: int, name: str = "") -> None:
    """Rows of one transaction, in a table that nothing else needs here."""
    with db.transaction():
        for number in numbers:
            db.execute("INSERT INTO garbage VALUES(?, ?)", (f"{name}{number}".encode(), number))


def rows(db: Database) -> Rows:
    return db.query("SELECT id, since_ns FROM garbage ORDER BY since_ns, id")


def numbers(db: Database) -> list[int]:
    return [number for _, number in rows(db)]


def killed(db: Database, folder: Path) -> Path:
    """A copy of what a kill would leave now; returns the database's path."""
    folder.mkdir()
    target = folder / db.path.name
    for end in FILE_ENDS:
        # The next process makes the index of the WAL anew.
        if end != "-shm" and os.path.exists(f"{db.path}{end}"):
            shutil.copy(f"{db.path}{end}", f"{target}{end}")
    return target


def found(path: Path) -> list[int]:
    """What the next process has, which then comes to a clean end."""
    with contextlib.closing(Database(path)) as db:
        return numbers(db)


def test_what_has_ended_is_there_after_a_kill(db: Database, tmp_path: Path) -> None:
    for number in range(100):
        add(db, number)
        if number % 10 == 3:
            path = killed(db, tmp_path / f"after {number}")
            assert found(path) == list(range(number + 1))
            # Nor does it go when that one has ended.
            assert not os.path.exists(f"{path}-redo")
            assert found(path) == list(range(number + 1))


def test_calls_share_a_commit(db: Database) -> None:
    """The point of it: a commit writes some ten pages."""
    add(db, 0)
    db.sync()
    before = db.wal_bytes()
    for number in range(1, 200):
        add(db, number)
    assert db.wal_bytes() == before
    db.sync()
    assert db.wal_bytes() > before


def test_a_kill_in_mid_transaction_leaves_nothing_of_it(db: Database, tmp_path: Path) -> None:
    add(db, 1)
    with db.transaction():
        db.execute("INSERT INTO garbage VALUES(x'02', 2)")
        path = killed(db, tmp_path / "killed")
    assert found(path) == [1]


def test_a_log_that_is_torn_anywhere_gives_the_transactions_before(
    db: Database, tmp_path: Path
) -> None:
    add(db, 0)
    db.sync()
    ends = []
    for number in range(1, 8):
        add(db, number, 100 + number)
        ends.append(os.path.getsize(f"{db.path}-redo"))
    log = Path(f"{db.path}-redo").read_bytes()
    for length in {*range(0, len(log), 37), *ends, *(end - 1 for end in ends)}:
        path = killed(db, tmp_path / f"cut at {length}")
        Path(f"{path}-redo").write_bytes(log[:length])
        whole = sum(end <= length for end in ends)
        expected = [*range(whole + 1), *(100 + number for number in range(1, whole + 1))]
        assert found(path) == expected
        damaged = bytearray(log)
        damaged[min(length, len(log) - 1)] ^= 0x10
        path = killed(db, tmp_path / f"damaged at {length}")
        Path(f"{path}-redo").write_bytes(damaged)
        whole = sum(end <= min(length, len(log) - 1) for end in ends)
        assert found(path) == [*range(whole + 1), *(100 + n for n in range(1, whole + 1))]


def test_a_log_that_is_behind_the_database_does_nothing(db: Database, tmp_path: Path) -> None:
    """A kill between SQLite's commit and the next record."""
    for number in range(5):
        add(db, number)
    db.sync()
    path = killed(db, tmp_path / "killed")
    assert os.path.getsize(f"{path}-redo")
    assert found(path) == [0, 1, 2, 3, 4]


def test_records_of_a_former_group_are_no_part_of_the_next(db: Database, tmp_path: Path) -> None:
    for number in range(20):
        add(db, number)
    db.sync()
    # Shorter than what it overwrites, and of the same form.
    add(db, 20)
    path = killed(db, tmp_path / "killed")
    assert found(path) == list(range(21))


def test_the_log_of_another_database_does_nothing(db: Database, tmp_path: Path) -> None:
    """As when somebody puts back a database of before, or copies one in use."""
    add(db, 1)
    db.sync()
    copy = killed(db, tmp_path / "copy")
    with contextlib.closing(Database(copy)) as other:
        add(other, 30)
        add(other, 31)
        foreign = Path(f"{copy}-redo").read_bytes()
    add(db, 3)
    path = killed(db, tmp_path / "killed")
    Path(f"{path}-redo").write_bytes(foreign)
    assert found(path) == [1]


def remove_all_but_fail(db: Database) -> None:
    with db.transaction():
        db.execute("DELETE FROM garbage")
        assert numbers(db) == []
        raise RuntimeError("in its middle")


def test_who_fails_undoes_nothing_of_others(db: Database, tmp_path: Path) -> None:
    told: list[list[int]] = []
    db.on_rollback(lambda: told.append(numbers(db)))
    for number in range(10):
        add(db, number)
    with pytest.raises(RuntimeError, match="in its middle"):
        remove_all_but_fail(db)
    assert numbers(db) == list(range(10))
    assert told == [list(range(10))], "caches are told, when all is as before"
    add(db, 10)
    assert found(killed(db, tmp_path / "killed")) == list(range(11))


def test_who_finds_something_else_than_expected_rolls_nothing_back(db: Database) -> None:
    """Most calls that fail have changed nothing: then the caches stay."""
    told: list[int] = []
    db.on_rollback(lambda: told.append(1))
    add(db, 1)
    with pytest.raises(FileNotFoundError), db.transaction():
        os.stat(f"{db.path}-none")
    assert not told
    with pytest.raises(Exception, match="UNIQUE"), db.transaction():
        db.execute("INSERT INTO garbage VALUES(x'31', 1)")
    assert told, "something in memory may be ahead of the statement that failed"


def test_what_the_log_can_not_hold_is_undone(db: Database, tmp_path: Path) -> None:
    """SQLite knows values that the log does not."""
    add(db, 1)
    add(db, 2)
    with pytest.raises(TypeError), db.transaction():
        db.execute("INSERT INTO garbage VALUES(?, 77)", (apsw.zeroblob(4),))
    assert numbers(db) == [1, 2]
    with db.transaction():
        db.execute("INSERT INTO garbage VALUES(?, 3)", (b"3",))
    with db.transaction():
        db.execute("INSERT INTO garbage VALUES(?, 77)", (b"4",))
    assert found(killed(db, tmp_path / "killed")) == [1, 2, 3, 77]


def test_others_see_what_has_ended(db: Database) -> None:
    add(db, 1)
    add(db, 2)
    with db.snapshot() as reader:
        add(db, 3)
        assert list(reader.query("SELECT since_ns FROM garbage")) == [(1,), (2,)]
    with contextlib.closing(Database(db.path, read_only=True)) as other:
        assert numbers(other) == [1, 2]
    db.sync()
    with contextlib.closing(Database(db.path, read_only=True)) as other:
        assert numbers(other) == [1, 2, 3]


def test_who_looks_from_outside_in_a_transaction_does_not_count_towards_it(
    db: Database, tmp_path: Path
) -> None:
    add(db, 1)
    add(db, 2)
    with db.transaction():
        with db.snapshot() as reader:
            assert list(reader.query("SELECT since_ns FROM garbage")) == [(1,), (2,)]
        add(db, 3)
    assert found(killed(db, tmp_path / "killed")) == [1, 2, 3]


def test_a_checkpoint_has_what_has_ended(db: Database, tmp_path: Path) -> None:
    add(db, 1)
    add(db, 2)
    db.checkpoint()
    alone = tmp_path / "alone" / "metadata.db"
    alone.parent.mkdir()
    shutil.copy(db.path, alone)
    assert found(alone) == [1, 2]


def test_a_long_transaction_is_committed_at_once(db: Database, tmp_path: Path) -> None:
    """Its statements are worth more memory and time than a commit."""
    add(db, -1)
    before = db.wal_bytes()
    add(db, *range(redo.MAX_STATEMENTS + 1))
    assert db.wal_bytes() > before
    path = killed(db, tmp_path / "many")
    assert len(found(path)) == redo.MAX_STATEMENTS + 2
    with db.transaction():
        db.execute("INSERT INTO garbage VALUES(?, -2)", (bytes(1 << 20),))
    assert -2 in found(killed(db, tmp_path / "large"))
    add(db, -3)
    assert {-1, -2, -3} < set(found(killed(db, tmp_path / "after both")))


def test_any_order_of_what_may_happen_loses_nothing(db: Database, tmp_path: Path) -> None:
    dice = random.Random(1)
    expected: dict[int, int] = {}
    for step in range(600):
        what = dice.random()
        if what < 0.7:
            place, value = dice.randrange(50), dice.randrange(1000)
            with db.transaction():
                db.execute("INSERT OR REPLACE INTO chunk VALUES(?, ?)", (place, value))
            expected[place] = value
        elif what < 0.8:
            with contextlib.suppress(KeyError), db.transaction():
                db.execute("UPDATE chunk SET object = 0")
                raise KeyError
        elif what < 0.9:
            with db.transaction():
                db.execute("DELETE FROM chunk WHERE range >= ?", (step % 50,))
            expected = {place: value for place, value in expected.items() if place < step % 50}
        else:
            dice.choice([db.sync, db.checkpoint])()
        assert dict(db.query("SELECT * FROM chunk")) == expected
        if not step % 20:
            path = killed(db, tmp_path / str(step))
            with contextlib.closing(Database(path)) as other:
                assert dict(other.query("SELECT * FROM chunk")) == expected


def test_a_log_that_does_not_fit_is_an_error_and_no_guess(db: Database, tmp_path: Path) -> None:
    add(db, 0)
    db.sync()
    path = killed(db, tmp_path / "killed")
    with contextlib.closing(Database(path, read_only=True)) as other:
        key, sequence = other.get_meta("redo_key"), other.get_meta("redo_sequence")
    for sql in (
        "INSERT INTO garbage VALUES(x'30', 0)",  # a row that is there already
        "DELETE FROM garbage WHERE since_ns = 77",  # one that is not
    ):
        os.unlink(f"{path}-redo")
        log = redo.RedoLog(Path(f"{path}-redo"), key, sequence)
        log.append([(sql, ())], 1)
        log.close(remove=False)
        with pytest.raises(CorruptError, match="redo log"):
            found(path)


@contextlib.contextmanager
def files_end_at(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond that, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_refuses_and_loses_nothing(db: Database, tmp_path: Path) -> None:
    for number in range(10):
        add(db, number)
    with files_end_at(os.path.getsize(f"{db.path}-redo")):
        # The log can't have it.
        with pytest.raises(LocalFullError, match="redo"):
            add(db, 10)
        assert numbers(db) == list(range(10))
        # Nor the WAL the group.
        with pytest.raises(Exception, match=r"full|fails"):
            db.sync()
        assert numbers(db) == list(range(10))
        assert found_elsewhere(db, tmp_path / "killed") == list(range(10))
    add(db, 11)
    db.sync()
    assert numbers(db) == [*range(10), 11]
    assert found(killed(db, tmp_path / "after")) == [*range(10), 11]


def test_a_full_disk_undoes_no_group_that_is_larger_than_the_cache(
    db: Database, tmp_path: Path
) -> None:
    """What was done again needs no room: the group has all of it in memory."""
    add(db, 0)
    db.sync()
    with db.transaction():
        db._connection.execute("PRAGMA cache_size = 20")
    with files_end_at(max(db.wal_bytes(), 200_000)):
        done = [0]
        # The limit is an error of its own to SQLite, unlike a full disk.
        with contextlib.suppress(LocalFullError, PermanentError):
            for number in range(1, 5000):
                add(db, number, name="x" * 300)
                done.append(number)
        assert (db.standstill.reason, numbers(db)) == (None, done)
        assert len(done) > 300
        with pytest.raises(Exception, match=r"full|fails"):
            db.sync()
        assert numbers(db) == done
    add(db, 5000)
    db.sync()
    assert found(killed(db, tmp_path / "after")) == [*done, 5000]


def count(db: Database) -> int:
    row = db.query_one("SELECT nodes FROM usage")
    assert row is not None
    return int(row[0])


def count_one(db: Database) -> None:
    """To do it twice shows, unlike a row that has a key."""
    with db.transaction():
        db.execute("UPDATE usage SET nodes = nodes + 1")


def counted_elsewhere(db: Database, folder: Path) -> int:
    """What the next process has after a kill."""
    with contextlib.closing(Database(killed(db, folder))) as other:
        return count(other)


def begin_counting(db: Database) -> None:
    with db.transaction():
        db.execute("UPDATE usage SET nodes = 0")
    db.sync()


@pytest.fixture
def counting(db: Database) -> Database:
    begin_counting(db)
    return db


class _InterruptedCommit:
    """A connection during whose COMMIT somebody types Ctrl-C."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, *bindings: Any) -> Any:
        result = self._connection.execute(sql, *bindings)
        if sql == "COMMIT":
            # What Python's handler of the signal does, once the call is over.
            raise KeyboardInterrupt
        return result


def test_an_interrupt_during_a_commit_does_nothing_twice(
    counting: Database, tmp_path: Path
) -> None:
    for _ in range(3):
        count_one(counting)
    connection = counting._connection
    counting._connection = _InterruptedCommit(connection)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        counting.sync()
    counting._connection = connection
    assert count(counting) == 3
    count_one(counting)
    counting.sync()
    assert count(counting) == counted_elsewhere(counting, tmp_path / "killed") == 4


def test_an_error_in_what_a_commit_reads_ahead_is_none(
    counting: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for _ in range(3):
        count_one(counting)
    monkeypatch.setattr(os, "posix_fadvise", refuse)
    assert counting._wal is not None
    counting._wal._read_at = 0
    counting.sync()
    assert count(counting) == 3


#: What ends a transaction or a group, or undoes it.
_ENDS = ("_commit", "_roll_back", "_open_group", "_begin_group", "do_again", "append", "read")


def interrupt_at(event: int) -> Callable[..., None]:
    """For sys.setprofile: raise KeyboardInterrupt behind the `event`th C call while something ends.

    There Python runs a signal's handler.
    """
    left = event

    def look(frame: FrameType, what: str, argument: object) -> None:
        nonlocal left
        if what == "c_return" and frame.f_code.co_name in _ENDS:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    return look


def fail(db: Database) -> None:
    with contextlib.suppress(RuntimeError), db.transaction():
        db.execute("UPDATE usage SET nodes = 1000")
        raise RuntimeError


@pytest.mark.expects_warnings
def test_an_interrupt_while_something_ends_does_nothing_twice_and_loses_nothing(
    tmp_path: Path,
) -> None:
    steps = [count_one, count_one, fail, count_one, Database.sync, count_one]
    is_over = False
    event = 0
    while not is_over:
        event += 1
        folder = tmp_path / str(event)
        folder.mkdir()
        db = Database(folder / "metadata.db")
        begin_counting(db)
        done = 0
        sys.setprofile(interrupt_at(event))
        try:
            for step in steps:
                step(db)
                done += step is count_one
            is_over = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        # One that was interrupted may have happened.
        found = counted_elsewhere(db, folder / "killed")
        assert found in (done, done + 1), event
        if db.standstill.reason is None:
            assert count(db) in (done, found), event
            before = count(db)
            count_one(db)
            db.sync()
            assert count(db) == before + 1, event
            assert counted_elsewhere(db, folder / "later") == before + 1, event
        db.close()
    assert event > 20


def found_elsewhere(db: Database, folder: Path) -> list[int]:
    """As `found`, in a process without this one's limits."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit[1], limit[1]))
    try:
        return found(killed(db, folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_who_fails_as_the_first_of_a_process_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log begins with the first transaction, and SQLite may refuse that."""
    path = tmp_path / "metadata.db"
    Database(path).close()
    with contextlib.closing(Database(path)) as db:
        with monkeypatch.context() as patch:
            patch.setattr("syncer.metadata.db._BEGIN_LOG", "INSERT INTO nothing VALUES(?, ?)")
            with pytest.raises(SyncerError, match="nothing"):
                add(db, 1)
        assert numbers(db) == []
        add(db, 2)
        db.sync()
        assert numbers(db) == [2]
    assert found(path) == [2]
