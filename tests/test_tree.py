"""The metadata tree: what is true now, and the rows that tell what was true before."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable

import pytest

from syncer.codec import BLOCK_BYTES
from syncer.metadata import schema
from syncer.metadata.contents import INLINE_RUN, RUN_BLOCKS
from syncer.metadata.epochs import FileClock
from syncer.metadata.node import ROOT, Node, node_base
from syncer.metadata.tree import Tree
from tests.vfs_rig import MACHINE, VfsRig

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755


def root(tree: Tree) -> Node:
    found = tree.node(ROOT)
    assert found is not None
    return found


def create(rig: VfsRig, name: bytes, mode: int = FILE, parent: Node | None = None) -> Node:
    return rig.tree.create(parent or root(rig.tree), name, mode, 1, 2)


def close(rig: VfsRig) -> int:
    """End the open epoch; returns its number."""
    return rig.epochs.close()


def past_rows(rig: VfsRig, table: str) -> int:
    row = rig.db.query_one(f"SELECT count(*) FROM {table}_past")
    assert row is not None
    return int(row[0])


# Now


def test_a_node_has_the_number_that_it_was_given_for_good(rig: VfsRig) -> None:
    first = create(rig, b"a").id
    assert first > node_base(MACHINE)
    rig.tree.unlink(ROOT, b"a", keep=False)
    assert create(rig, b"a").id != first
    rig.reopen()
    assert create(rig, b"b").id > first


def test_numbers_that_a_rolled_back_transaction_took_name_no_two_nodes(rig: VfsRig) -> None:
    with rig.undone_transaction():
        create(rig, b"a")
    numbers = {create(rig, b"%d" % number).id for number in range(3)}
    assert len(numbers) == 3
    assert rig.tree.lookup(ROOT, b"a") is None
    assert rig.tree.totals()[0] == 4


def test_what_was_rolled_back_is_in_no_cache(rig: VfsRig) -> None:
    node = create(rig, b"a")
    with rig.undone_transaction():
        rig.tree.save(node.changed(mode=FILE | 0o111, size=5))
        rig.tree.rename(ROOT, b"a", ROOT, b"b")
    assert rig.tree.node(node.id) == node
    assert rig.tree.lookup(ROOT, b"a") == node.id
    assert rig.tree.lookup(ROOT, b"b") is None
    assert rig.tree.totals() == (2, 0)


def test_entries_come_in_the_order_of_their_bytes_page_by_page(rig: VfsRig) -> None:
    names = [b"\xff", b"a", b"\x01", "é".encode(), b"A" * 255]
    for name in names:
        create(rig, name)
    first = rig.tree.entries(ROOT, b"", 3)
    rest = rig.tree.entries(ROOT, first[-1][0], 3)
    assert [name for name, _ in first + rest] == sorted(names)
    assert all(rig.tree.lookup(ROOT, name) == node.id for name, node in first + rest)


def test_a_path_is_found_from_its_end(rig: VfsRig) -> None:
    one = create(rig, b"one", DIRECTORY)
    two = create(rig, b"two", DIRECTORY, one)
    assert rig.tree.path_of(create(rig, b"\xff", FILE, two).id) == b"/one/two/\xff"
    assert rig.tree.path_of(ROOT) == b"/"
    assert rig.tree.path_of(12345) == b"?"


def test_exchanging_moves_the_link_counts_of_directories_along(rig: VfsRig) -> None:
    one, two = create(rig, b"one", DIRECTORY), create(rig, b"two", DIRECTORY)
    create(rig, b"file", FILE, one)
    create(rig, b"folder", DIRECTORY, two)
    rig.tree.exchange(one.id, b"file", two.id, b"folder")
    counts = [node.nlink for node in (rig.tree.node(one.id), rig.tree.node(two.id)) if node]
    assert counts == [3, 2]


def test_the_totals_follow_each_change(rig: VfsRig) -> None:
    node = create(rig, b"a")
    rig.tree.save(node.changed(size=1000))
    rig.tree.link(node.id, ROOT, b"b")
    rig.tree.unlink(ROOT, b"a", keep=False)
    assert rig.tree.totals() == (2, 1000)
    rig.tree.unlink(ROOT, b"b", keep=True)
    assert rig.tree.totals() == (2, 1000), "it is open"
    rig.tree.remove_orphan(node.id)
    assert rig.tree.totals() == (1, 0)


def undo(rig: VfsRig, change: Callable[[], object]) -> None:
    """Make a change in a transaction that then fails, in which its names are looked up."""

    def fail() -> None:
        with rig.tree.transaction():
            change()
            rig.tree.lookup(ROOT, b"a")
            rig.tree.lookup(ROOT, b"b")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_a_name_that_was_looked_up_in_vain_is_found_once_it_is_there(rig: VfsRig) -> None:
    assert rig.tree.lookup(ROOT, b"a") is None
    undo(rig, lambda: create(rig, b"a"))
    assert rig.tree.lookup(ROOT, b"a") is None
    node = create(rig, b"a")
    assert rig.tree.lookup(ROOT, b"a") == node.id
    assert rig.tree.lookup(ROOT, b"b") is None
    rig.tree.rename(ROOT, b"a", ROOT, b"b")
    assert rig.tree.lookup(ROOT, b"a") is None
    assert rig.tree.lookup(ROOT, b"b") == node.id
    undo(rig, lambda: rig.tree.unlink(ROOT, b"b", keep=False))
    assert rig.tree.lookup(ROOT, b"b") == node.id


def test_names_to_put_back_come_along_from_a_database_of_before_their_table() -> None:
    """The table that the upgrade touches, as it was in version 4."""
    old = sqlite3.connect(":memory:", isolation_level=None)
    old.executescript(
        "CREATE TABLE orphan(node INTEGER PRIMARY KEY, parent INTEGER, name BLOB);"
        "INSERT INTO orphan VALUES(5, 1, x'61'), (6, NULL, NULL);"
    )
    old.executescript(schema.UPGRADES[4])
    assert old.execute("SELECT * FROM provisional").fetchall() == [(1, b"a", 5)]
    assert old.execute("SELECT * FROM orphan").fetchall() == [(5,), (6,)]
    old.close()


def test_an_orphan_that_gets_a_name_back_is_whole_again(rig: VfsRig) -> None:
    node = create(rig, b"a")
    rig.tree.unlink(ROOT, b"a", keep=True)
    assert rig.tree.orphans() == [node.id]
    rig.tree.restore_name(ROOT, b"a", node.id)
    found = rig.tree.node(node.id)
    assert found is not None and found.nlink == 1
    assert rig.tree.orphans() == []


# Then


def test_changes_within_one_epoch_overwrite_each_other(rig: VfsRig) -> None:
    node = create(rig, b"a")
    close(rig)
    for size in range(1, 5):
        rig.tree.save(node.changed(size=size))
        rig.tree.set_xattr(node.id, b"user.x", b"%d" % size)
    assert past_rows(rig, "node") == 1
    assert past_rows(rig, "xattr") == 0


def test_what_begins_and_ends_within_one_epoch_leaves_no_trace(rig: VfsRig) -> None:
    close(rig)
    before = rig.state()["name"], past_rows(rig, "name"), past_rows(rig, "node")
    node = create(rig, b"a")
    rig.contents.set_inline(node.id, b"content")
    rig.tree.set_xattr(node.id, b"user.x", b"x")
    rig.tree.unlink(ROOT, b"a", keep=False)
    assert rig.contents.inline_bytes() == 0
    # All but the root's times.
    assert (rig.state()["name"], past_rows(rig, "name"), past_rows(rig, "node") - 1) == before
    assert past_rows(rig, "content") == past_rows(rig, "xattr") == 0


def test_reading_makes_no_history(rig: VfsRig) -> None:
    node = create(rig, b"a")
    close(rig)
    rig.tree.note_reading(node.id, 5)
    rig.tree.save_readings()
    assert past_rows(rig, "node") == 0
    assert close(rig) == close(rig), "nothing changed, so no epoch ended"


def test_each_epoch_can_be_told_from_the_rows_of_the_past(rig: VfsRig) -> None:
    history = {}

    def end_epoch() -> None:
        epoch = close(rig)
        history[epoch] = rig.state()

    node = create(rig, b"a")
    rig.contents.set_inline(node.id, b"tiny")
    end_epoch()
    rig.contents.set_blocks(node.id, {0: b"x" * 16, RUN_BLOCKS + 1: b"y" * 16})
    rig.tree.set_xattr(node.id, b"user.x", b"1")
    end_epoch()
    rig.contents.set_blocks(node.id, {0: b"z" * 16})
    rig.tree.set_xattr(node.id, b"user.x", b"2")
    rig.tree.rename(ROOT, b"a", ROOT, b"b")
    end_epoch()
    rig.contents.cut(node.id, 1)
    rig.tree.set_xattr(node.id, b"user.x", None)
    rig.tree.rename(ROOT, b"b", ROOT, b"a")
    end_epoch()
    rig.tree.unlink(ROOT, b"a", keep=False)
    create(rig, b"a", DIRECTORY)
    end_epoch()
    rig.reopen()
    create(rig, b"later")
    assert len(history) == 5
    for epoch, state in history.items():
        assert rig.state_at(epoch) == state


def test_the_outbox_names_what_changed_in_each_epoch(rig: VfsRig) -> None:
    node = create(rig, b"a")
    first = close(rig)
    rig.tree.save(node.changed(size=1))
    second = close(rig)
    changed = rig.db.query("SELECT epoch, node, name FROM outbox")
    assert (first, ROOT, b"a") in changed
    assert (first, node.id, b"") in changed
    assert [row[1:] for row in changed if row[0] == second] == [(node.id, b"")]


def test_the_clock_follows_the_kernels_but_no_time_that_a_program_chose() -> None:
    clock = FileClock()
    told = time.time_ns()
    clock.note(told)
    assert clock.now_ns() >= told
    clock.note(told - 10**12)
    clock.note(told + 10**15)
    assert told <= clock.now_ns() <= time.time_ns()


def test_time_never_goes_back_from_epoch_to_epoch(rig: VfsRig) -> None:
    now = 2_000_000_000_000_000_000
    rig.epochs.now_ns = lambda: now
    create(rig, b"a")
    close(rig)
    now -= 10**12
    create(rig, b"b")
    close(rig)
    times = [row[0] for row in rig.db.query("SELECT time_ns FROM epoch ORDER BY seq")]
    assert times == sorted(set(times))


# Contents


def test_dropped_ids_are_those_that_never_became_history(rig: VfsRig) -> None:
    node = create(rig, b"a")
    one, two, three = (bytes([number]) * 16 for number in (1, 2, 3))
    assert rig.contents.set_blocks(node.id, {0: one}) == ([one], [])
    assert rig.contents.set_blocks(node.id, {0: two}) == ([two], [one])
    assert rig.contents.set_blocks(node.id, {0: two}) == ([], [])
    close(rig)
    assert rig.contents.set_blocks(node.id, {0: three, 1: one}) == ([three, one], [])
    assert sorted(rig.contents.cut(node.id, 0)) == [one, three]
    assert rig.contents.ids(node.id) == []


def test_holes_and_long_files_lie_in_the_runs_of_their_blocks(rig: VfsRig) -> None:
    node = create(rig, b"a")
    far = 10 * RUN_BLOCKS + 3
    rig.contents.set_blocks(node.id, {far: b"x" * 16})
    assert rig.contents.run(node.id, 10) == bytes(3 * 16) + b"x" * 16
    assert rig.contents.run(node.id, 0) == b""
    assert rig.contents.cut(node.id, far) == [b"x" * 16]
    rows = rig.db.query("SELECT run FROM content WHERE node = ?", (node.id,))
    assert INLINE_RUN not in [row[0] for row in rows]


# The schema


def test_a_database_without_them_gets_its_counts_of_blocks(rig: VfsRig) -> None:
    rig.make(b"/tiny", b"content")
    rig.make(b"/large", b"x" * (2 * BLOCK_BYTES + 5))
    rig.make(b"/empty")
    number = rig.make(b"/sparse", b"x" * BLOCK_BYTES)
    rig.vfs.truncate(b"/sparse", 3000 * BLOCK_BYTES)
    handle = rig.vfs.open(b"/sparse", os.O_RDWR)
    rig.vfs.write(handle, memoryview(b"y" * BLOCK_BYTES), 1000 * BLOCK_BYTES)
    rig.vfs.release(handle)
    before = rig.db.query("SELECT * FROM node ORDER BY id")
    with rig.db.transaction():
        rig.db.execute("ALTER TABLE node DROP COLUMN blocks")
        # What came later.
        rig.db.execute("ALTER TABLE node_past DROP COLUMN blocks")
        rig.db.execute("DROP TABLE garbage; DROP TABLE provisional")
        rig.db.execute("ALTER TABLE orphan ADD COLUMN parent; ALTER TABLE orphan ADD COLUMN name")
        rig.db.set_meta("schema_version", 2)
    rig.reopen()
    assert rig.db.query("SELECT * FROM node ORDER BY id") == before
    found = rig.tree.node(number)
    assert found is not None
    assert found.stored_bytes == 2 * BLOCK_BYTES
