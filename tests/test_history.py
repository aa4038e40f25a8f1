"""The tree of the past, against copies of the tree that were made when it was the present."""

from __future__ import annotations

import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.codec import BLOCK_BYTES, HOLE
from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.history import FOREVER, History
from syncer.metadata.node import ROOT, Node
from syncer.metadata.schema import WRONG_PAST_BLOCKS
from syncer.metadata.tree import Tree

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755
A, B = b"a" * 16, b"b" * 16

#: What there is to see: path -> (node but for its age and atime, content, xattrs).
Copy = dict[bytes, tuple[Any, ...]]


class Rig:
    """A tree whose clock goes on by a second with each epoch."""

    def __init__(self, path: Path) -> None:
        self.db = Database(path)
        if self.db.get_meta("machine") is None:
            self.db.set_meta("machine", 7)
            self.db.set_meta("next_node", 100)
        self.now_ns = 10**9
        self.epochs = Epochs(self.db, lambda: self.now_ns)
        self.contents = Contents(self.db, self.epochs)
        self.tree = Tree(self.db, self.epochs, self.contents)
        self.history = History(self.db)
        self.tree.make_root(1000, 1000)

    def close_epoch(self) -> int:
        """End the epoch; returns its number."""
        epoch = self.epochs.close()
        self.now_ns += 10**9
        return epoch

    def make(self, name: bytes, mode: int = FILE, parent: int = ROOT) -> Node:
        above = self.tree.node(parent)
        assert above is not None
        return self.tree.create(above, name, mode, 1000, 1000)

    def copy(self, directory: int = ROOT, path: bytes = b"") -> Copy:
        """The present."""
        copy: Copy = {}
        for name, node in self.tree.entries(directory, b"", 1000):
            xattrs = {key: self.tree.xattr(node.id, key) for key in self.tree.xattrs(node.id)}
            held = (self.contents.ids(node.id), self.contents.inline(node.id))
            copy[path + b"/" + name] = (node._replace(born=0, atime_ns=0), held, xattrs)
            if node.is_dir:
                copy |= self.copy(node.id, path + b"/" + name)
        return copy

    def copy_at(self, epoch: int, directory: int = ROOT, path: bytes = b"") -> Copy:
        """The same of an epoch, by all ways to ask for it."""
        copy: Copy = {}
        for name, node in self.history.walk(directory, epoch):
            assert self.history.lookup(directory, name, epoch) == node.id
            assert self.history.node(node.id, epoch) == node
            held = (self.history.ids(node.id, epoch), self.history.inline(node.id, epoch))
            xattrs = self.history.xattrs(node.id, epoch)
            copy[path + b"/" + name] = (node._replace(born=0, atime_ns=0), held, xattrs)
            if node.is_dir:
                copy |= self.copy_at(epoch, node.id, path + b"/" + name)
        return copy


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "meta.db")
    yield rig
    rig.db.close()


_NAMES = st.sampled_from([b"a", b"b", b"c"])
_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("make"), _NAMES, st.sampled_from([FILE, DIRECTORY])),
        st.tuples(st.just("remove"), _NAMES, st.just(b"")),
        st.tuples(st.just("rename"), _NAMES, _NAMES),
        st.tuples(st.just("link"), _NAMES, _NAMES),
        st.tuples(st.just("write"), _NAMES, st.sampled_from([A, B, HOLE])),
        st.tuples(st.just("inline"), _NAMES, st.sampled_from([b"", b"tiny"])),
        st.tuples(st.just("xattr"), _NAMES, st.sampled_from([None, b"1", b"2"])),
        st.tuples(st.just("close"), st.just(b""), st.just(b"")),
    ),
    max_size=40,
)


def _apply(rig: Rig, kind: str, name: bytes, value: Any) -> None:
    """One operation, where it is possible; in the first directory there is, if any."""
    directories = [node.id for _, node in rig.tree.entries(ROOT, b"", 9) if node.is_dir]
    parent = directories[0] if directories and kind in ("make", "write", "xattr") else ROOT
    number = rig.tree.lookup(parent, name)
    if kind == "make":
        if number is None:
            rig.make(name, value, parent)
        return
    node = rig.tree.node(number) if number is not None else None
    if node is None:
        return
    if kind == "xattr":
        rig.tree.set_xattr(node.id, b"user.x", value)
    elif kind == "remove" and not (node.is_dir and not rig.tree.is_empty(node.id)):
        rig.tree.unlink(parent, name, keep=False)
    elif kind in ("rename", "link") and rig.tree.lookup(parent, value) is None:
        if kind == "rename":
            rig.tree.rename(parent, name, parent, value)
        elif not node.is_dir:
            rig.tree.link(node.id, parent, value)
    elif kind == "write" and node.is_file:
        rig.contents.set_blocks(node.id, {0: value, 300: A})
        rig.tree.save(node.changed(size=301 * BLOCK_BYTES))
    elif kind == "inline" and node.is_file:
        rig.contents.set_inline(node.id, value)
        rig.tree.save(node.changed(size=len(value)))


@given(_OPERATIONS)
@settings(max_examples=60, deadline=None)
def test_each_epoch_stays_as_it_was(operations: list[tuple[str, bytes, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(Path(folder) / "meta.db")
        copies: dict[int, Copy] = {}
        for kind, name, value in operations:
            if kind == "close":
                copies[rig.close_epoch()] = rig.copy()
            else:
                _apply(rig, kind, name, value)
        for epoch, copy in copies.items():
            assert rig.copy_at(epoch) == copy
        assert rig.db.query(WRONG_PAST_BLOCKS) == []
        # As it is in a database from elsewhere.
        with rig.db.transaction():
            rig.db.execute("UPDATE node_past SET blocks = NULL")
        for epoch, copy in copies.items():
            assert rig.copy_at(epoch) == copy
        rig.db.close()


def test_a_directory_of_then_is_read_in_steps(rig: Rig) -> None:
    for number in range(10):
        rig.make(b"%d" % number)
    epoch = rig.close_epoch()
    for number in range(0, 10, 2):
        rig.tree.unlink(ROOT, b"%d" % number, keep=False)
    rig.make(b"11")
    rig.close_epoch()
    first = rig.history.entries(ROOT, b"", 4, epoch)
    assert [name for name, _ in first] == [b"0", b"1", b"2", b"3"]
    then = rig.history.entries(ROOT, b"3", 100, epoch)
    assert [name for name, _ in then] == [b"4", b"5", b"6", b"7", b"8", b"9"]


def test_a_path_of_then_is_found(rig: Rig) -> None:
    folder = rig.make(b"folder", DIRECTORY)
    file = rig.make(b"file", parent=folder.id)
    epoch = rig.close_epoch()
    rig.tree.rename(ROOT, b"folder", ROOT, b"moved")
    assert rig.history.find(b"/folder/file", epoch) == file
    assert rig.history.find(b"/moved/file", epoch) is None
    assert rig.history.find(b"/folder/file/below", epoch) is None
    assert rig.history.find(b"/", epoch) == rig.history.node(ROOT, epoch)


def test_a_node_is_shown_as_each_epoch_left_it(rig: Rig) -> None:
    node = rig.make(b"file")
    modes = {}
    for mode in (FILE, FILE | 0o11, FILE | 0o22, FILE | 0o33):
        rig.tree.save(node.changed(mode=mode))
        modes[rig.close_epoch()] = mode
    for epoch, mode in modes.items():
        then = rig.history.node(node.id, epoch)
        assert then is not None and then.mode == mode


def test_a_moment_is_the_newest_epoch_that_had_begun(rig: Rig) -> None:
    for number in range(20):
        rig.make(b"%d" % number)
        rig.close_epoch()
    assert rig.history.epoch_at(10**9 - 1) == 0
    for epoch in range(1, 21):
        began = rig.history.time_ns(epoch)
        assert rig.history.epoch_at(began - 1) == epoch - 1
        assert rig.history.epoch_at(began) == epoch
    assert rig.history.epoch_at(1 << 62) == 20
    assert [moment.epoch for moment in rig.history.moments(17, 3)] == [18, 19, 20]
    assert rig.history.time_ns(25) == rig.history.time_ns(20)


def test_an_empty_history_has_no_moments(tmp_path: Path) -> None:
    db = Database(tmp_path / "meta.db")
    history = History(db)
    assert (history.newest(), history.epoch_at(1 << 62), history.moments(0, 9)) == (0, 0, [])
    assert history.find(b"/", 0) is None
    db.close()


def test_versions_follow_the_node_and_lives_the_name(rig: Rig) -> None:
    old = rig.make(b"file")
    first = rig.close_epoch()
    rig.tree.rename(ROOT, b"file", ROOT, b"file~")
    new = rig.make(b"file")
    second = rig.close_epoch()
    rig.tree.unlink(ROOT, b"file~", keep=False)
    third = rig.close_epoch()
    spans = [(version.born, version.died) for version in rig.history.versions(old.id)]
    assert spans == [(first, second), (second, third)]
    assert [version.died for version in rig.history.versions(new.id)] == [FOREVER]
    assert rig.history.lives(ROOT, b"file") == [
        (old.id, first, second),
        (new.id, second, FOREVER),
    ]


def test_what_is_gone_is_listed_but_not_what_moved_or_was_replaced(rig: Rig) -> None:
    for name in (b"gone", b"moved", b"replaced", b"stays"):
        rig.make(name)
    epoch = rig.close_epoch()
    rig.tree.unlink(ROOT, b"gone", keep=False)
    rig.tree.unlink(ROOT, b"replaced", keep=False)
    rig.tree.rename(ROOT, b"moved", ROOT, b"replaced")
    rig.close_epoch()
    removed = rig.history.removed(ROOT)
    assert [(found.name, found.last) for found in removed] == [(b"gone", epoch)]


def test_no_question_reads_a_whole_table(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """All statements that the methods run, as SQLite plans them."""
    rig.make(b"a")
    epoch = rig.close_epoch()
    asked: set[str] = set()
    query, query_one = rig.db.query, rig.db.query_one

    def note_all(sql: str, bindings: Any = ()) -> Any:
        asked.add(sql)
        return query(sql, bindings)

    def note_one(sql: str, bindings: Any = ()) -> Any:
        asked.add(sql)
        return query_one(sql, bindings)

    monkeypatch.setattr(rig.db, "query", note_all)
    monkeypatch.setattr(rig.db, "query_one", note_one)
    history = rig.history
    # Of before the root was made, so that the past is asked as well.
    for then in (epoch, 0):
        history.node(ROOT, then)
        history.lookup(ROOT, b"a", then)
        history.entries(ROOT, b"", 10, then)
        history.run(ROOT, 0, then)
        history.runs(ROOT, then)
        history.run_from(ROOT, 0, then)
        history.inline(ROOT, then)
        history.xattrs(ROOT, then)
        history.epoch_at(then)
    history.moments(9, 9)
    history.versions(ROOT)
    history.lives(ROOT, b"a")
    history.removed(ROOT)
    assert len(asked) >= 14
    for sql in asked:
        numbers = [int(number) for number in re.findall(r"\?(\d)", sql)]
        bindings = [1] * (max(numbers) if numbers else sql.count("?"))
        for *_, step in query(f"EXPLAIN QUERY PLAN {sql}", bindings):
            # Of no table: what the statement has gathered itself, and places within one value.
            own = ("SCAN entry", "SCAN CONSTANT ROW", "SCAN place")
            is_walked = step.startswith("SCAN") and not step.startswith("SCAN epoch")
            assert not is_walked or step in own, f"{step}: {sql}"
