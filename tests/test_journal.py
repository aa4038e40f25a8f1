"""Local segment files: what is not published, once more, few files and all of it."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer.errors import CorruptError, PermanentError
from syncer.exchange import journal, outgoing
from syncer.exchange.incoming import insert_epochs, insert_rows
from syncer.exchange.journal import Journal, read_rows, spans
from syncer.exchange.outgoing import Identity, segment_objects
from syncer.exchange.rows import TABLES, Rows, changed_keys, trim
from syncer.exchange.writers import RepositoryInfo, set_up_database
from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.node import ROOT
from syncer.metadata.tree import Tree
from tests.vfs_rig import fast_folder

_SEED = 7
_UUID = "11111111-1111-1111-1111-111111111111"
_STATE = (
    "SELECT parent, name, node, born, 0 FROM name UNION ALL"
    " SELECT parent, name, node, born, died FROM name_past ORDER BY 1, 2, 4"
)


class Writer:
    """A machine that is away from the server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segments = folder / "segments"
        self.db = Database(folder / "metadata.db")
        if self.db.get_meta("uuid") is None:
            set_up_database(self.db, RepositoryInfo(_UUID, _SEED), 5)
        self.epochs = Epochs(self.db)
        self.contents = Contents(self.db, self.epochs)
        self.tree = Tree(self.db, self.epochs, self.contents)
        if self.tree.node(ROOT) is None:
            self.tree.make_root(0, 0)
        self.journal = Journal(self.db, self.segments)

    def epoch(self, number: int) -> int:
        """One more epoch: a new file, and the one before the last loses its name."""
        root = self.tree.node(ROOT)
        assert root is not None
        self.tree.create(root, b"file-%d" % number, 0o100644, 0, 0)
        if self.tree.lookup(ROOT, b"file-%d" % (number - 2)) is not None:
            self.tree.unlink(ROOT, b"file-%d" % (number - 2), keep=False)
        return self.epochs.close()

    def published(self, epoch: int) -> None:
        with self.db.transaction():
            self.db.execute("DELETE FROM outbox WHERE epoch <= ?", (epoch,))
            self.db.set_meta("published", epoch)


@pytest.fixture
def writer() -> Iterator[Writer]:
    with fast_folder() as folder:
        writer = Writer(folder)
        yield writer
        writer.db.close()


def _replayed(writer: Writer, position: int, base: Path) -> tuple[list[object], list[object]]:
    """(rows, outbox) of a database that knew the history up to `position`, and took the rest."""
    with contextlib.closing(Database(base)) as db:
        set_up_database(db, RepositoryInfo(_UUID, _SEED), 5)
        for first, last in spans(writer.segments):
            if last <= position:
                continue
            path = writer.segments / f"{first:016x}-{last:016x}"
            segment, parts = read_rows(path, _SEED)
            with db.transaction():
                insert_epochs(db, [one for one in segment.epochs if one.seq > position])
                for part in parts:
                    rows = trim(part, position)
                    insert_rows(db, rows)
                    db.execute_many(
                        "INSERT OR IGNORE INTO outbox VALUES(?, ?, ?)", changed_keys(rows)
                    )
            position = last
        return db.query(_STATE), db.query("SELECT * FROM outbox ORDER BY 1, 2, 3")


def test_files_of_a_generation_that_is_over_do_not_make_a_database_an_old_one(
    writer: Writer,
) -> None:
    writer.journal.write(writer.epoch(1))
    writer.journal.write(writer.epoch(2))
    with writer.db.transaction():
        writer.db.execute("DELETE FROM epoch WHERE seq = 2")
    with pytest.raises(CorruptError, match="older"):
        Journal(writer.db, writer.segments)
    # It has started over as another writer's follower, which has published less.
    writer.db.set_meta("generation", writer.db.get_meta("generation") + 1)
    Journal(writer.db, writer.segments).write(1)
    assert [last for _first, last in spans(writer.segments)] == [1]


def test_all_that_is_not_published_is_in_few_files(writer: Writer, tmp_path: Path) -> None:
    for number in range(100):
        closed = writer.epoch(number)
        writer.journal.write(closed)
        assert writer.journal.newest() == closed
    files = spans(writer.segments)
    assert len(files) < 50, "a week without the server must not be a file for each epoch"
    assert files[0][0] == 1 and files[-1][1] == 100
    rows, outbox = _replayed(writer, 0, tmp_path / "base.db")
    assert rows == writer.db.query(_STATE)
    assert outbox == writer.db.query("SELECT * FROM outbox ORDER BY 1, 2, 3")


def _made_anew(writer: Writer, identity: Identity, last: int, parent: str) -> object:
    with writer.db.snapshot() as reader:
        return segment_objects(reader, identity, 1, last, parent, _SEED)


def test_a_segment_is_made_without_all_its_rows_in_memory(writer: Writer) -> None:
    files, size_bytes = 2000, 50_000
    root = writer.tree.node(ROOT)
    assert root is not None
    with writer.db.transaction():
        for number in range(files):
            node = writer.tree.create(root, b"file-%d" % number, 0o100644, 0, 0)
            writer.contents.set_inline(node.id, b"%6d" % number * (size_bytes // 6))
    closed = writer.epochs.close()
    tracemalloc.start()
    try:
        writer.journal.write(closed)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A part is 4 MiB, which come in a batch of 256 files, and are packed and compressed.
    assert peak_bytes < 0.5 * files * size_bytes


def test_a_file_spares_making_a_segment_once_more(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "TARGET_BYTES", 300)
    for number in range(10):
        closed = writer.epoch(number)
    writer.journal.write(closed)
    # What comes later changes nothing of it.
    writer.epoch(10)
    identity = Identity(_UUID, writer.db.get_meta("generation"), writer.db.get_meta("machine"))
    expected = _made_anew(writer, identity, closed, "the parent")
    assert writer.journal.objects(identity, 1, closed, "the parent") == expected
    assert isinstance(expected, list) and len(expected) > 2, "it has parts"


def test_only_what_is_wanted_and_whole_is_taken_from_a_file(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "TARGET_BYTES", 300)
    for number in range(10):
        closed = writer.epoch(number)
    writer.journal.write(closed)
    identity = Identity(_UUID, writer.db.get_meta("generation"), writer.db.get_meta("machine"))
    assert writer.journal.objects(identity, 1, closed, "")
    assert not writer.journal.objects(identity, 2, closed, "")
    assert not writer.journal.objects(identity, 1, closed - 1, "")
    assert not writer.journal.objects(identity._replace(generation=7), 1, closed, "")
    name = f"{1:016x}-{closed:016x}"
    for path in (writer.segments / f"{name}.1", writer.segments / name):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert not writer.journal.objects(identity, 1, closed, "")
        path.write_bytes(whole)
    other = (writer.segments / f"{name}.2").read_bytes()
    (writer.segments / f"{name}.1").write_bytes(other)
    assert not writer.journal.objects(identity, 1, closed, ""), "another part in its place"
    (writer.segments / f"{name}.1").unlink()
    assert not writer.journal.objects(identity, 1, closed, "")


@pytest.mark.parametrize("place", [4, 5, 8, -1])
def test_a_changed_file_stops_nothing_and_is_made_anew(writer: Writer, place: int) -> None:
    """Its version as well, which is that of a newer syncer then."""
    for number in range(3):
        closed = writer.epoch(number)
        writer.journal.write(closed)
    identity = Identity(_UUID, writer.db.get_meta("generation"), writer.db.get_meta("machine"))
    path = writer.segments / f"{closed:016x}-{closed:016x}"
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[place] ^= 1
    path.write_bytes(changed)
    assert not writer.journal.objects(identity, closed, closed, "")
    writer.journal.write(writer.epoch(3))
    # A start finds it as the newest one.
    (writer.segments / f"{closed + 1:016x}-{closed + 1:016x}").unlink()
    again = Journal(writer.db, writer.segments)
    assert not again.objects(identity, closed, closed, "")
    again.write(closed + 1)
    assert spans(writer.segments) == [(1, closed + 1)]
    rows = [read_rows(found, _SEED) for found in writer.segments.glob("*-*")]
    assert [len(segment.epochs) for segment, _ in rows] == [closed + 1]


def test_a_file_that_is_published_in_part_adds_the_rest(writer: Writer, tmp_path: Path) -> None:
    for number in range(10):
        closed = writer.epoch(number)
    writer.journal.write(closed)
    assert spans(writer.segments) == [(1, 10)]
    path = writer.segments / f"{1:016x}-{10:016x}"
    segment, parts = read_rows(path, _SEED)
    with contextlib.closing(Database(tmp_path / "reader.db")) as db:
        set_up_database(db, RepositoryInfo(_UUID, _SEED), 5)
        # What a reader has after the first six epochs: the same rows, as of then.
        for part in parts:
            with db.transaction():
                insert_epochs(db, [one for one in segment.epochs if one.seq <= 6])
                insert_rows(db, _as_of(part, 6))
        _, parts = read_rows(path, _SEED)
        with db.transaction():
            insert_epochs(db, [one for one in segment.epochs if one.seq > 6])
            for part in parts:
                insert_rows(db, trim(part, 6))
        assert db.query(_STATE) == writer.db.query(_STATE)


def _as_of(rows: Rows, last: int) -> Rows:
    early = Rows()
    for table in TABLES:
        width = len(table.key)
        for row in rows.versions[table.name]:
            born, died = row[width], row[width + 1]
            if born <= last:
                early.versions[table.name].append(
                    (*row[: width + 1], died if died <= last else 0, *row[width + 2 :])
                )
    return early


def test_published_files_go_but_for_the_newest(writer: Writer) -> None:
    for number in range(5):
        writer.journal.write(writer.epoch(number))
    writer.published(4)
    writer.journal.write(writer.epoch(5))
    kept = spans(writer.segments)
    assert (5, 5) in kept and (6, 6) in kept, "what is not published stays"
    assert (4, 4) in kept, "and so does the proof of whose history it is"
    assert (1, 1) not in kept and (2, 2) not in kept


def test_a_crash_leaves_litter_that_goes_and_what_is_missing_is_made_up_for(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.journal.write(writer.epoch(0))

    class CrashError(Exception):
        pass

    def crash(source: object, target: object) -> None:
        raise CrashError

    closed = writer.epoch(1)
    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "rename", crash)
        with pytest.raises(CrashError):
            writer.journal.write(closed)
    assert list(writer.segments.glob("*.tmp"))
    # The disk is full, perhaps: the remote is the better copy, and publishing goes on.
    assert writer.journal.newest() > closed
    again = Journal(writer.db, writer.segments)
    assert not list(writer.segments.glob("*.tmp"))
    assert again.newest() == 1
    again.write(closed)
    assert again.newest() == closed


def test_a_database_behind_its_files_is_refused(writer: Writer) -> None:
    writer.journal.write(writer.epoch(0))
    closed = writer.epoch(1)
    writer.journal.write(closed)
    with writer.db.transaction():
        writer.db.execute("DELETE FROM epoch WHERE seq = ?", (closed,))
    with pytest.raises(CorruptError, match="older than"):
        Journal(writer.db, writer.segments)


def test_nothing_is_written_while_nothing_changes(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = writer.epoch(0)
    writer.journal.write(closed)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a round without a change touches the disk")

    monkeypatch.setattr(journal.os, "open", fail)
    monkeypatch.setattr(writer.db, "snapshot", fail)
    writer.journal.write(closed)


def test_small_rewrites_of_a_round_that_was_cut_short_are_not_laid_over_the_one_before(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go to the disk first, beside those of the round before."""
    contents = Contents(writer.db, writer.epochs)

    def rewrite(data: bytes) -> int:
        contents.drop_patches(7)
        contents.add_patches(7, [(0, data)], 100, 1)
        return writer.epoch(len(data))

    def kept(newest: int) -> list[bytes]:
        return [row[3] for row in journal.read_patches(writer.segments, _SEED, newest)]

    with writer.db.transaction():
        first = rewrite(b"1")
    writer.journal.write(first)
    assert kept(first) == [b"1"]
    with writer.db.transaction():
        second = rewrite(b"two")

    def cut(*arguments: object) -> None:
        raise OSError(5, "cut")

    with monkeypatch.context() as patch:
        patch.setattr(writer.journal, "_write_epochs", cut)
        with pytest.raises(PermanentError):
            writer.journal.write(second)
    assert spans(writer.segments)[-1][1] == first
    assert (kept(first), kept(second)) == ([b"1"], [b"two"])
    writer.journal.write(second)
    assert kept(second) == [b"two"]
