"""SQLite databases in a mount, under several processes at once."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, mounted
from tests.programs import sqlite_worker
from tests.programs.conftest import PROGRAM_SECONDS, Place
from tests.programs.sqlite_worker import ROWS

pytestmark = pytest.mark.fuse

WORKER = Path(sqlite_worker.__file__)
TRANSACTIONS = 40
KILLED_AFTER = 15
JOURNAL_MODES = pytest.mark.parametrize("journal_mode", ["wal", "delete"])


@contextlib.contextmanager
def worker(*words: str | Path | int) -> Iterator[subprocess.Popen[str]]:
    """A process that writes or watches; it does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, str(WORKER), *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said_by(process: subprocess.Popen[str]) -> list[int]:
    """Wait for a process's good end, and return the numbers that it printed."""
    said, errors = process.communicate(timeout=PROGRAM_SECONDS)
    assert process.returncode == 0, errors
    return [int(line) for line in said.split()]


def await_commits(writer: subprocess.Popen[str]) -> None:
    """Wait for its first few transactions."""
    assert writer.stdout is not None
    for number in range(KILLED_AFTER):
        assert writer.stdout.readline() == f"{number}\n"


def last_commits(writer: subprocess.Popen[str]) -> int:
    """How many more it tells of until its end."""
    assert writer.stdout is not None
    return len(writer.stdout.read().splitlines())


def rows_by_writer(database: Path) -> dict[int, int]:
    """How many rows there are. Fails unless SQLite finds the database in order."""
    db = sqlite_worker.open_database(str(database))
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return Counter(writer for (writer,) in db.execute("SELECT writer FROM entry"))
    finally:
        db.close()


@JOURNAL_MODES
def test_two_writers_and_a_reader_share_a_database(each: Place, journal_mode: str) -> None:
    """No row is lost or doubled, and no look at it shows half a transaction."""
    database = each.path / "database"
    sqlite_worker.create(str(database), journal_mode)
    with (
        worker("watch", database) as reader,
        worker("write", database, 1, TRANSACTIONS) as one,
        worker("write", database, 2, TRANSACTIONS) as two,
    ):
        assert said_by(one) == said_by(two) == list(range(TRANSACTIONS))
        assert said_by(reader) == [2 * TRANSACTIONS * ROWS]
    want = {1: TRANSACTIONS * ROWS, 2: TRANSACTIONS * ROWS}
    assert rows_by_writer(database) == want
    each.mount.remount()
    assert rows_by_writer(database) == want


@JOURNAL_MODES
def test_a_writer_that_is_killed_leaves_whole_transactions(place: Place, journal_mode: str) -> None:
    """Locks go with their process, and the others go on from what it had committed."""
    database = place.path / "database"
    sqlite_worker.create(str(database), journal_mode)
    with (
        worker("watch", database) as reader,
        worker("write", database, 1, 1_000_000) as killed,
        worker("write", database, 2, TRANSACTIONS) as other,
    ):
        await_commits(killed)
        killed.kill()
        committed = KILLED_AFTER + last_commits(killed)
        assert said_by(other) == list(range(TRANSACTIONS))
        (seen,) = said_by(reader)
    found = rows_by_writer(database)
    assert found[2] == TRANSACTIONS * ROWS
    # The last commit may have been done, and not yet told.
    assert found[1] in (committed * ROWS, (committed + 1) * ROWS)
    assert seen == found[1] + found[2]
    place.mount.remount()
    assert rows_by_writer(database) == found


@JOURNAL_MODES
def test_what_sqlite_committed_outlives_the_mounts_process(
    tmp_path: Path, journal_mode: str
) -> None:
    """It syncs before it says so, and what it synced is there after the mount was killed."""
    with mounted(tmp_path, BINDINGS[-1]) as mount:
        database = mount.path / "database"
        sqlite_worker.create(str(database), journal_mode)
        with worker("write", database, 1, 1_000_000) as writer:
            await_commits(writer)
            mount.kill()
            committed = KILLED_AFTER + last_commits(writer)
            assert writer.wait() != 0, "the writer did not notice"
        mount.remount()
        assert rows_by_writer(database)[1] in (committed * ROWS, (committed + 1) * ROWS)
