"""Who looks at what a transaction has not touched does not wait for it; who looks at the rest does.

And who looks a path up while its file is replaced finds one of the two.
"""

from __future__ import annotations

import contextlib
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from syncer.metadata import known
from syncer.metadata.node import ROOT, Node
from tests.vfs_rig import ME, VfsRig

DIRECTORY = stat.S_IFDIR | 0o755
#: Long enough for a thread that does not wait for the lock.
_AT_ONCE_SECONDS = 10.0
#: Who still waits after it waits for the lock.
_WAITS_SECONDS = 0.05
_Result = TypeVar("_Result")


class Stage:
    """This thread is in the middle of a transaction; another one looks."""

    def __init__(self, rig: VfsRig, other: ThreadPoolExecutor) -> None:
        self._rig = rig
        self._other = other

    def sees(self, look: Callable[[], _Result]) -> _Result:
        """What the other thread sees, which it must without waiting."""
        return self._other.submit(look).result(_AT_ONCE_SECONDS)

    def waits(self, look: Callable[[], _Result]) -> Future[_Result]:
        """The other thread must wait; what it sees in the end."""
        begun = threading.Event()

        def begin() -> _Result:
            begun.set()
            return look()

        future = self._other.submit(begin)
        assert begun.wait(_AT_ONCE_SECONDS)
        with pytest.raises(futures.TimeoutError):
            future.result(_WAITS_SECONDS)
        return future


@pytest.fixture
def stage(rig: VfsRig) -> Iterator[Stage]:
    with ThreadPoolExecutor(4) as other:
        yield Stage(rig, other)


def number_of(rig: VfsRig, name: bytes, parent: int = ROOT) -> int:
    number = rig.tree.lookup(parent, name)
    assert number is not None
    return number


def node_of(rig: VfsRig, number: int) -> Node:
    node = rig.tree.node(number)
    assert node is not None
    return node


def test_what_a_transaction_leaves_alone_is_seen_at_once(rig: VfsRig, stage: Stage) -> None:
    rig.make(b"/kept")
    rig.make(b"/changed")
    kept, changed = number_of(rig, b"kept"), number_of(rig, b"changed")
    before = node_of(rig, kept)
    assert rig.tree.lookup(ROOT, b"missing") is None
    with rig.tree.transaction():
        rig.tree.save(node_of(rig, changed).changed(mode=stat.S_IFREG | 0o600))
        assert stage.sees(lambda: rig.tree.lookup(ROOT, b"kept")) == kept
        assert stage.sees(lambda: rig.tree.lookup(ROOT, b"missing")) is None
        assert stage.sees(lambda: rig.tree.node(kept)) == before
        assert stage.sees(lambda: rig.vfs.getattr(b"/kept")) == before


def test_what_a_transaction_has_changed_is_seen_when_it_has_ended(
    rig: VfsRig, stage: Stage
) -> None:
    rig.make(b"/file")
    number, before = number_of(rig, b"file"), node_of(rig, number_of(rig, b"file"))
    root = node_of(rig, ROOT)
    with rig.tree.transaction():
        rig.tree.save(before.changed(mode=stat.S_IFREG | 0o600))
        assert node_of(rig, number).mode == stat.S_IFREG | 0o600, "its own thread sees it"
        waits = stage.waits(lambda: node_of(rig, number))
        new = rig.tree.create(root, b"new", DIRECTORY, 1, 2)
        parent = stage.waits(lambda: node_of(rig, ROOT))
        named = stage.waits(lambda: rig.tree.lookup(ROOT, b"new"))
    assert waits.result(_AT_ONCE_SECONDS).mode == stat.S_IFREG | 0o600
    assert parent.result(_AT_ONCE_SECONDS).nlink == root.nlink + 1
    assert named.result(_AT_ONCE_SECONDS) == new.id


def test_who_looks_at_what_is_about_to_be_changed_waits(
    rig: VfsRig, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first statement on, which is long before the last."""
    rig.make(b"/file")
    number, looks = number_of(rig, b"file"), []
    execute = rig.db.execute

    def look_before(sql: str, bindings: Sequence[Any] = ()) -> None:
        if not looks:
            looks.append(stage.waits(lambda: node_of(rig, number)))
        execute(sql, bindings)

    monkeypatch.setattr(rig.db, "execute", look_before)
    rig.tree.note_reading(number, 7)
    for change in (
        rig.tree.save_readings,
        lambda: rig.tree.save(node_of(rig, number).changed(uid=7)),
    ):
        looks.clear()
        change()
        assert looks[0].result(_AT_ONCE_SECONDS) == rig.tree.node(number)


def test_what_a_transaction_did_not_do_after_all_was_seen_by_nobody(
    rig: VfsRig, stage: Stage
) -> None:
    rig.make(b"/file")
    number, before = number_of(rig, b"file"), node_of(rig, number_of(rig, b"file"))
    with rig.undone_transaction():
        rig.tree.unlink(ROOT, b"file", keep=False)
        assert rig.tree.node(number) is None and rig.tree.lookup(ROOT, b"file") is None
        gone = stage.waits(lambda: rig.tree.node(number))
        unnamed = stage.waits(lambda: rig.tree.lookup(ROOT, b"file"))
    assert gone.result(_AT_ONCE_SECONDS) == before == rig.tree.node(number)
    assert unnamed.result(_AT_ONCE_SECONDS) == number == rig.tree.lookup(ROOT, b"file")


def test_a_transaction_that_changes_nothing_leaves_what_is_known(rig: VfsRig) -> None:
    rig.make(b"/file")
    before = node_of(rig, number_of(rig, b"file"))
    rig.tree.forget()
    with contextlib.suppress(FileExistsError):
        rig.vfs.mknod(b"/file", stat.S_IFREG, 0, ME)
    rig.vfs.chmod(b"/file", 0o600)
    assert rig.vfs.getattr(b"/file").mode == stat.S_IFREG | 0o600 != before.mode


def forget_names(rig: VfsRig) -> None:
    """As if others had been looked for since; all that has ended is committed."""
    rig.tree.forget()
    rig.db.sync()
    with rig.tree.transaction():
        rig.tree.touch_directory(ROOT, rig.tree.now_ns())
    rig.db.sync()


def test_what_is_not_known_is_learned_without_waiting(rig: VfsRig, stage: Stage) -> None:
    rig.make(b"/file")
    number, before = number_of(rig, b"file"), node_of(rig, number_of(rig, b"file"))
    forget_names(rig)
    with rig.tree.transaction():
        rig.tree.touch_directory(ROOT, rig.tree.now_ns())
        assert stage.sees(lambda: rig.tree.lookup(ROOT, b"file")) == number
        assert stage.sees(lambda: rig.tree.node(number)) == before
        assert stage.sees(lambda: rig.tree.lookup(ROOT, b"missing")) is None


def test_what_was_changed_since_the_last_commit_is_not_learned(rig: VfsRig, stage: Stage) -> None:
    for name in (b"/gone", b"/changed", b"/moved"):
        rig.make(name)
    changed, moved = number_of(rig, b"changed"), number_of(rig, b"moved")
    forget_names(rig)
    rig.vfs.unlink(b"/gone")
    # By its number: not by its name, which a call would have looked for.
    rig.tree.save(node_of(rig, changed).changed(mode=stat.S_IFREG | 0o600))
    rig.vfs.rename(b"/moved", b"/new")
    new = rig.tree.create(node_of(rig, ROOT), b"made", DIRECTORY, 1, 2).id
    # As if so many others had been looked for that these are not remembered.
    rig.tree._known._nodes.clear()
    rig.tree._known._names.clear()
    with rig.tree.transaction():
        rig.tree.touch_directory(ROOT, rig.tree.now_ns())
        names = (b"gone", b"changed", b"moved", b"new")
        looks = [stage.waits(lambda name=name: rig.tree.lookup(ROOT, name)) for name in names]
    assert [look.result(_AT_ONCE_SECONDS) for look in looks] == [None, changed, None, moved]
    assert node_of(rig, changed).mode == stat.S_IFREG | 0o600
    assert rig.tree.lookup(ROOT, b"made") == new


def test_what_others_have_changed_is_not_learned_before_it_is_committed(
    rig: VfsRig, stage: Stage
) -> None:
    """A follower writes into the tables what it has read."""
    rig.make(b"/file")
    number = number_of(rig, b"file")
    forget_names(rig)
    with rig.tree.transaction():
        rig.db.execute("DELETE FROM name WHERE node = ?", (number,))
    rig.tree.forget()
    with rig.tree.transaction():
        look = stage.waits(lambda: rig.tree.lookup(ROOT, b"file"))
    assert look.result(_AT_ONCE_SECONDS) is None


@pytest.mark.parametrize("is_committed", [True, False])
def test_what_changes_while_it_is_read_is_not_learned(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    rig.make(b"/file")
    forget_names(rig)
    read = rig.db.committed.query_one

    def change_after_reading(sql: str, bindings: Sequence[Any]) -> Any:
        row = read(sql, bindings)
        rig.vfs.chmod(b"/file", 0o600)
        rig.tree._known._nodes.clear()
        rig.tree._known._names.clear()
        if is_committed:
            rig.db.sync()
        return row

    monkeypatch.setattr(rig.db.committed, "query_one", change_after_reading)
    assert rig.tree._known.learn((ROOT, b"file")) is None
    assert rig.vfs.getattr(b"/file").mode == stat.S_IFREG | 0o600


def test_of_a_new_folder_is_known_what_it_lacks(
    rig: VfsRig, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs look each name up before they make it: nobody looks into the table for these."""
    rig.vfs.mkdir(b"/new", 0o755, ME)
    rig.make(b"/new/file")
    folder = number_of(rig, b"new")
    number = number_of(rig, b"file", folder)
    queries: list[Sequence[Any]] = []
    monkeypatch.setattr(rig.db, "query_one", lambda sql, values=(): queries.append(values))
    with rig.tree.transaction():
        rig.tree.touch_directory(folder, rig.tree.now_ns())
        assert stage.sees(lambda: rig.tree.lookup(folder, b"missing")) is None
        assert stage.sees(lambda: rig.tree.lookup(folder, b"file")) == number
        assert rig.tree.lookup(folder, b"other") is None
    assert not queries


def test_more_names_than_are_remembered_are_found(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_MAX_CACHED", 8)
    for folder in (b"/one", b"/other"):
        rig.vfs.mkdir(folder, 0o755, ME)
    paths = [b"/%s/%d" % (folder, each) for each in range(9) for folder in (b"one", b"other")]
    for path in paths:
        rig.make(path)
    assert all(rig.vfs.getattr(path).is_file for path in paths)
    assert len(rig.tree._known._names) == len(rig.tree._known._nodes) == 8


def test_what_stayed_in_a_new_folder_after_all_is_found(rig: VfsRig) -> None:
    rig.vfs.mkdir(b"/new", 0o755, ME)
    rig.make(b"/new/file")
    folder = number_of(rig, b"new")
    number = number_of(rig, b"file", folder)
    with rig.undone_transaction():
        rig.tree.unlink(folder, b"file", keep=False)
    assert rig.tree.lookup(folder, b"file") == number


def test_of_so_many_new_folders_is_remembered_that_all_is_known(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_MAX_CACHED", 8)
    for each in range(20):
        rig.vfs.mkdir(b"/%d" % each, 0o755, ME)
        rig.make(b"/%d/file" % each)
    assert len(rig.tree._known._whole) <= 8
    assert all(rig.vfs.getattr(b"/%d/file" % each).is_file for each in range(20))


def test_who_walks_through_a_folder_that_is_being_moved_does_not_remember_the_old_way(
    rig: VfsRig, stage: Stage
) -> None:
    rig.vfs.mkdir(b"/old", 0o755, ME)
    rig.make(b"/old/file")
    folder = number_of(rig, b"old")
    assert rig.vfs.getattr(b"/old/file")
    with rig.tree.transaction():
        rig.tree.rename(ROOT, b"old", ROOT, b"new")
        walks = stage.waits(lambda: rig.vfs.getattr(b"/old/file"))
        other = rig.tree.create(node_of(rig, ROOT), b"old", DIRECTORY, 1, 2)
        rig.tree.create(other, b"file", stat.S_IFREG, 1, 2)
    assert walks.result(_AT_ONCE_SECONDS).id == number_of(rig, b"file", other.id)
    assert rig.vfs.getattr(b"/new/file").id == number_of(rig, b"file", folder)
    assert rig.vfs.getattr(b"/old/file").id == number_of(rig, b"file", other.id)


def test_what_is_known_is_changed_by_one_thread_at_a_time(rig: VfsRig, stage: Stage) -> None:
    rig.make(b"/file")
    number = number_of(rig, b"file")
    forget_names(rig)
    # As another thread does that has learned something without the database's lock.
    with rig.tree._known._lock:
        node = stage.waits(lambda: rig.tree.node(number))
    assert node.result(_AT_ONCE_SECONDS) == rig.tree.node(number)
    with rig.tree._known._lock:
        missing = stage.waits(lambda: rig.tree.lookup(ROOT, b"missing"))
    assert missing.result(_AT_ONCE_SECONDS) is None


def test_a_name_is_never_missing_while_it_is_replaced_again_and_again(rig: VfsRig) -> None:
    rig.make(b"/file")
    stop = threading.Event()

    def look() -> int:
        missing = 0
        while not stop.is_set():
            try:
                rig.vfs.getattr(b"/file")
            except FileNotFoundError:
                missing += 1
        return missing

    with ThreadPoolExecutor(2) as threads:
        looks = [threads.submit(look) for _ in range(2)]
        try:
            for _ in range(300):
                rig.make(b"/new")
                rig.vfs.rename(b"/new", b"/file")
        finally:
            stop.set()
        assert [each.result() for each in looks] == [0, 0]
