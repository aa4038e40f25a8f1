"""The file system's calls: single rules, and random sequences against a plain model in memory."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from syncer.codec import BLOCK_BYTES
from syncer.errors import LocalFullError
from syncer.vfs import hidden
from syncer.vfs.caller import Caller, Request
from syncer.vfs.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, Caching
from syncer.vfs.openfile import OpenFile
from tests.remote_contract import eventually
from tests.vfs_rig import INLINE_BYTES, ME, State, VfsRig, fast_folder


def fails(number: int, call: object, *arguments: object) -> None:
    """The call gives this errno."""
    with pytest.raises(OSError) as caught:
        call(*arguments)  # type: ignore[operator]
    assert caught.value.errno == number, os.strerror(caught.value.errno or 0)


# Single rules: what a mount can't show. The others stand in tests/posix.


def test_a_read_only_file_system_refuses_each_change(rig: VfsRig) -> None:
    rig.make(b"/file", b"content")
    handle = rig.vfs.open(b"/file", os.O_RDWR)
    rig.vfs.read_only = "another machine writes"
    vfs = rig.vfs
    for call, *arguments in (
        (vfs.chmod, b"/file", 0o600),
        (vfs.chown, b"/file", 1, 1),
        (vfs.utimens, b"/file", 1, 1),
        (vfs.mknod, b"/new", stat.S_IFREG, 0, ME),
        (vfs.mkdir, b"/new", 0o755, ME),
        (vfs.symlink, b"file", b"/new", ME),
        (vfs.link, b"/file", b"/new"),
        (vfs.unlink, b"/file"),
        (vfs.rmdir, b"/file"),
        (vfs.rename, b"/file", b"/new"),
        (vfs.create, b"/new", 0o644, 0, ME),
        (vfs.open, b"/file", os.O_WRONLY),
        (vfs.open, b"/file", os.O_RDONLY | os.O_TRUNC),
        (vfs.write, handle, memoryview(b"x"), 0),
        (vfs.truncate, b"/file", 0),
        (vfs.truncate, handle, 0),
        (vfs.setxattr, b"/file", b"user.x", b"", 0),
        (vfs.removexattr, b"/file", b"user.x"),
    ):
        fails(errno.EROFS, call, *arguments)
    assert rig.read(b"/file") == b"content"


def test_the_kernel_keeps_pages_only_of_what_has_one_name_and_one_writer(rig: VfsRig) -> None:
    rig.make(b"/file", b"content")
    handle = rig.vfs.open(b"/file", os.O_RDONLY)
    assert rig.vfs.caching(handle) is Caching.KEEP
    rig.vfs.read_only = "another machine writes"
    assert rig.vfs.caching(handle) is Caching.FRESH
    rig.vfs.read_only = None
    rig.vfs.link(b"/file", b"/other")
    assert rig.vfs.caching(handle) is Caching.NONE


def test_an_open_that_can_not_truncate_leaves_no_handle(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.make(b"/file", b"content")

    def fail(*_: object) -> None:
        raise LocalFullError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(rig.vfs.files, "truncate", fail)
        with pytest.raises(LocalFullError):
            rig.vfs.open(b"/file", os.O_WRONLY | os.O_TRUNC)
    assert not rig.vfs.files.count()


def test_who_changes_a_file_with_two_names_is_told_of_both(rig: VfsRig) -> None:
    rig.make(b"/file", b"content")
    rig.vfs.mkdir(b"/d", 0o755, ME)
    rig.vfs.link(b"/file", b"/d/other")
    rig.vfs.take_stale_paths()
    rig.vfs.chmod(b"/file", 0o600)
    assert sorted(rig.vfs.take_stale_paths()) == [b"/d/other", b"/file"]
    assert rig.vfs.take_stale_paths() == []


def test_attributes_that_are_as_they_were_a_moment_ago_cost_no_transaction(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel tells them after each rename."""
    now = 1_700_000_000_000_000_000
    rig.epochs.now_ns = lambda: now
    rig.vfs.release(rig.vfs.create(b"/a", 0o644, os.O_RDWR, ME))
    rig.vfs.rename(b"/a", b"/b")
    node = rig.vfs.getattr(b"/b")
    with monkeypatch.context() as patch:
        patch.setattr(rig.db, "execute", None)
        rig.vfs.utimens(b"/b", None, node.mtime_ns)
        rig.vfs.chmod(b"/b", 0o644)
        rig.vfs.chown(b"/b", -1, ME.gid)
    # But ctime tells that somebody set them, even to the same.
    now += 1
    rig.vfs.chmod(b"/b", 0o644)
    assert rig.vfs.getattr(b"/b") == node.changed(ctime_ns=now)
    now += 1
    rig.vfs.utimens(b"/b", None, node.mtime_ns)
    assert rig.vfs.getattr(b"/b") == node.changed(ctime_ns=now)


def test_a_time_that_was_true_before_a_write_is_set_after_it(rig: VfsRig) -> None:
    """All within one tick of the clock; of the write only a patch is saved so far."""
    now = 1_700_000_000_000_000_000
    rig.epochs.now_ns = lambda: now
    rig.make(b"/a", b"x" * BLOCK_BYTES)
    before_ns = rig.vfs.getattr(b"/a").mtime_ns
    rig.round(seal=True)
    now += 4_000_000
    rig.vfs.rename(b"/a", b"/b")
    handle = rig.vfs.open(b"/b", os.O_RDWR)
    rig.vfs.write(handle, memoryview(b"new"), 7)
    rig.vfs.files.flush(handle)
    assert rig.db.query("SELECT 1 FROM patch")
    rig.vfs.utimens(b"/b", None, before_ns)
    rig.vfs.release(handle)
    assert rig.vfs.getattr(b"/b").mtime_ns == before_ns


def test_a_rename_tells_what_is_wrong_with_the_old_name_first(rig: VfsRig) -> None:
    rig.make(b"/file", b"")
    with pytest.raises(FileNotFoundError):
        rig.vfs.rename(b"/missing/name", b"/file/name")
    with pytest.raises(NotADirectoryError):
        rig.vfs.rename(b"/file", b"/file/name")


def test_new_files_belong_to_the_caller_or_to_the_group_of_their_directory(rig: VfsRig) -> None:
    rig.vfs.mkdir(b"/d", 0o2777, Caller(1, 2))
    rig.vfs.chmod(b"/d", 0o2777)
    rig.vfs.mkdir(b"/d/e", 0o755, Caller(3, 4))
    found = rig.vfs.getattr(b"/d/e")
    assert (found.uid, found.gid, stat.S_IMODE(found.mode)) == (3, 2, 0o2755)


# Removed while open


def hide(rig: VfsRig, path: bytes) -> bytes:
    """What libfuse does with an open file that is to lose its name; returns the hidden name."""
    hidden = path.rpartition(b"/")[0] + b"/.fuse_hidden0000002a00000001"
    rig.vfs.rename(path, hidden)
    return hidden


def test_a_hidden_file_is_in_no_listing_and_in_no_way(rig: VfsRig) -> None:
    rig.vfs.mkdir(b"/d", 0o755, ME)
    rig.make(b"/d/file", b"content")
    handle = rig.vfs.open(b"/d/file", os.O_RDWR)
    hidden = hide(rig, b"/d/file")
    assert rig.list(b"/d") == []
    assert rig.vfs.getattr(hidden).nlink == 0
    rig.vfs.rmdir(b"/d")
    assert rig.read(handle) == b"content"
    rig.vfs.release(handle)


@pytest.mark.parametrize("replace", [False, True])
def test_a_hidden_file_goes_though_its_directory_is_gone(rig: VfsRig, replace: bool) -> None:
    """libfuse can't remove the hidden name then."""
    rig.vfs.mkdir(b"/d", 0o755, ME)
    rig.vfs.mkdir(b"/e", 0o755, ME)
    rig.make(b"/d/open", b"content")
    rig.make(b"/d/closing", b"content")
    handle = rig.vfs.open(b"/d/open", os.O_RDWR)
    rig.vfs.rename(b"/d/open", b"/d/.fuse_hidden0000000100000001")
    rig.vfs.rename(b"/d/closing", b"/d/.fuse_hidden0000000200000002")
    if replace:
        rig.vfs.rename(b"/e", b"/d")
    else:
        rig.vfs.rmdir(b"/d")
    assert rig.read(handle) == b"content"
    rig.vfs.release(handle)
    assert rig.tree.orphans() == []
    assert rig.vfs.totals()[0] == 2


def test_a_hidden_file_goes_with_its_last_handle(rig: VfsRig) -> None:
    rig.make(b"/file", os.urandom(10_000))
    handle = rig.vfs.open(b"/file", os.O_RDWR)
    hidden = hide(rig, b"/file")
    rig.vfs.mkdir(b"/d", 0o755, ME)
    rig.vfs.rmdir(b"/d")
    assert rig.vfs.getattr(hidden).nlink == 0
    rig.vfs.release(handle)
    fails(errno.ESTALE, rig.vfs.getattr, hidden)
    # libfuse's own removal comes late, and it does not mind.
    fails(errno.ENOENT, rig.vfs.unlink, hidden)
    rig.round(seal=True)
    assert rig.tree.orphans() == []
    assert not rig.files()
    assert rig.vfs.totals() == (1, 0)


def test_libfuse_may_ask_by_a_hidden_name_for_what_it_removed(rig: VfsRig) -> None:
    """As when a program opens a file while it is replaced: it must not be told ENOENT."""
    hidden = b"/.fuse_hidden0000000100000001"
    rig.make(b"/file", b"content")
    first = rig.vfs.open(b"/file", os.O_RDONLY)
    rig.vfs.rename(b"/file", hidden)
    second = rig.vfs.open(hidden, os.O_RDONLY)
    rig.vfs.unlink(hidden)
    rig.vfs.release(first)
    assert rig.vfs.getattr(hidden).nlink == 0
    assert rig.read(second) == b"content"
    rig.vfs.release(second)
    for call in (rig.vfs.getattr, lambda path: rig.vfs.open(path, os.O_RDONLY)):
        fails(errno.ESTALE, call, hidden)
    # libfuse looks here before it takes a name, and wants to hear that it is free.
    fails(errno.ENOENT, rig.vfs.getattr, b"/.fuse_hidden0000000100000002")
    assert rig.tree.orphans() == []


def test_a_crash_between_the_halves_of_a_rename_brings_the_target_back(rig: VfsRig) -> None:
    rig.make(b"/target", b"old")
    rig.make(b"/new", b"new")
    rig.vfs.open(b"/target", os.O_RDONLY)
    rig.vfs.hidden.asked = lambda: Request.RENAME
    hide(rig, b"/target")
    rig.reopen()
    assert rig.list(b"/") == [b"new", b"target"]
    assert rig.read(b"/target") == b"old"


def test_a_crash_between_the_halves_brings_one_of_several_names_back(rig: VfsRig) -> None:
    rig.make(b"/target", b"old")
    rig.vfs.link(b"/target", b"/other")
    rig.vfs.open(b"/target", os.O_RDONLY)
    rig.vfs.hidden.asked = lambda: Request.RENAME
    hide(rig, b"/target")
    rig.reopen()
    assert rig.list(b"/") == [b"other", b"target"]
    assert rig.vfs.getattr(b"/target") == rig.vfs.getattr(b"/other")
    assert rig.vfs.getattr(b"/target").nlink == 2


def test_while_a_program_waits_its_rename_may_still_follow(rig: VfsRig) -> None:
    rig.make(b"/target", b"old")
    rig.vfs.open(b"/target", os.O_RDONLY)
    rig.vfs.hidden.sleeps = lambda _: 7
    hide(rig, b"/target")
    time.sleep(0.1)
    rig.reopen()
    assert rig.read(b"/target") == b"old"


def test_once_a_program_has_gone_on_what_it_removed_stays_removed(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hidden, "_PROVISIONAL_SECONDS", 3600.0)
    rig.make(b"/file", b"content")
    rig.vfs.open(b"/file", os.O_RDONLY)
    seen: list[int | None] = [7, 7, None]
    rig.vfs.hidden.sleeps = lambda _: seen.pop(0)
    hide(rig, b"/file")
    eventually(lambda: not rig.tree.provisional.names())
    assert not seen
    rig.reopen()
    assert rig.list(b"/") == []


def test_a_name_that_was_taken_for_good_does_not_come_back(rig: VfsRig) -> None:
    rig.make(b"/file", b"content")
    rig.vfs.link(b"/file", b"/other")
    rig.vfs.open(b"/file", os.O_RDONLY)
    hide(rig, b"/file")
    # This thread's next call shows that no rename follows.
    rig.vfs.mkdir(b"/d", 0o755, ME)
    rig.reopen()
    assert rig.list(b"/") == [b"d", b"other"]
    assert rig.vfs.getattr(b"/other").nlink == 1


def test_a_crash_after_a_rename_over_an_open_file_keeps_the_new_one(rig: VfsRig) -> None:
    rig.make(b"/target", b"old")
    rig.make(b"/new", b"new")
    rig.vfs.open(b"/target", os.O_RDONLY)
    hide(rig, b"/target")
    rig.vfs.rename(b"/new", b"/target")
    rig.reopen()
    assert rig.list(b"/") == [b"target"]
    assert rig.read(b"/target") == b"new"
    assert rig.vfs.totals()[0] == 2


def test_a_crash_after_the_removal_of_an_open_file_leaves_it_removed(rig: VfsRig) -> None:
    rig.make(b"/file", b"content")
    rig.vfs.open(b"/file", os.O_RDONLY)
    hide(rig, b"/file")
    # This thread's next call shows that no rename follows.
    rig.vfs.mkdir(b"/d", 0o755, ME)
    rig.reopen()
    assert rig.list(b"/") == [b"d"]
    assert rig.vfs.totals()[0] == 2


def test_what_takes_the_place_of_an_open_file_with_several_names_is_synced_first(
    rig: VfsRig,
) -> None:
    rig.make(b"/target", b"old")
    rig.vfs.link(b"/target", b"/other")
    rig.vfs.open(b"/target", os.O_RDONLY)
    rig.make(b"/new", os.urandom(10_000))
    assert rig.db.query("SELECT * FROM block WHERE synced = 0")
    hide(rig, b"/target")
    rig.vfs.rename(b"/new", b"/target")
    assert not rig.db.query("SELECT * FROM block WHERE synced = 0")


def test_a_file_that_libfuse_forgets_to_remove_goes_with_its_last_handle(rig: VfsRig) -> None:
    """libfuse hides what is being closed meanwhile, and may never ask to remove the hidden name."""
    rig.make(b"/file", os.urandom(10_000))
    rig.make(b"/one", b"content")
    rig.vfs.link(b"/one", b"/two")
    handles = rig.vfs.open(b"/file", os.O_RDWR), rig.vfs.open(b"/one", os.O_RDWR)
    hide(rig, b"/file")
    hide(rig, b"/one")
    for handle in handles:
        rig.vfs.release(handle)
    # Its other name is one that counts.
    handle = rig.vfs.open(b"/two", os.O_RDWR)
    assert rig.vfs.getattr(handle).nlink == 1
    rig.vfs.release(handle)
    rig.round(seal=True)
    assert rig.list(b"/") == [b"two"]
    assert rig.tree.orphans() == []
    assert rig.vfs.totals() == (2, 7)


def replace_open(rig: VfsRig, path: bytes) -> tuple[int, bytes]:
    """What libfuse does for a rename of /new over an open file: its first call. Returns a handle of
    the file, and its hidden name."""
    rig.vfs.hidden.asked = lambda: Request.RENAME
    rig.vfs.hidden.linger_seconds = 3600.0
    handle = rig.vfs.open(path, os.O_RDWR)
    return handle, hide(rig, path)


def test_a_replaced_file_can_be_opened_for_a_moment_by_who_found_it_before(rig: VfsRig) -> None:
    rig.make(b"/file", os.urandom(300_000))
    old, new = rig.read(b"/file"), b"new"
    rig.make(b"/new", new)
    handle, hidden = replace_open(rig, b"/file")
    # Kept as a patch; nobody has it open between the two.
    rig.vfs.write(handle, memoryview(b"patch"), 1000)
    rig.vfs.rename(b"/new", b"/file")
    rig.vfs.release(handle)
    assert rig.read(b"/file") == new
    assert rig.read(hidden) == old[:1000] + b"patch" + old[1005:]
    assert rig.vfs.getattr(hidden).nlink == 0
    rig.round(seal=True)
    assert rig.read(hidden) == old[:1000] + b"patch" + old[1005:]
    late = rig.vfs.open(hidden, os.O_RDONLY)
    rig.vfs.hidden.let_go(at_once=True)
    assert rig.vfs.files.read_into(late, memoryview(bytearray(5)), 1000) == 5
    rig.vfs.release(late)
    fails(errno.ESTALE, rig.vfs.open, hidden, os.O_RDONLY)
    rig.round(seal=True)
    assert rig.vfs.totals() == (2, len(new))
    assert rig.vfs.files.unsaved_count() == 0


def test_a_replaced_file_that_lingers_goes_in_the_round_and_at_the_end(rig: VfsRig) -> None:
    for number, ending in enumerate((rig.round, rig.vfs.hidden.stop)):
        rig.make(b"/file", b"old" * 100_000)
        rig.make(b"/new", b"new")
        handle, _ = replace_open(rig, b"/file")
        rig.vfs.rename(b"/new", b"/file")
        rig.vfs.release(handle)
        assert rig.vfs.totals()[0] == 3
        if not number:
            rig.vfs.hidden._lingering = dict.fromkeys(rig.vfs.hidden._lingering, 0.0)
        ending()
        assert rig.vfs.totals() == (2, 3)
        rig.vfs.unlink(b"/file")


def test_a_kill_takes_replaced_files_that_linger(rig: VfsRig) -> None:
    rig.make(b"/file", b"old" * 100_000)
    rig.make(b"/new", b"new")
    handle, _ = replace_open(rig, b"/file")
    rig.vfs.rename(b"/new", b"/file")
    rig.vfs.release(handle)
    rig.restart()
    assert rig.vfs.totals() == (2, 3)
    assert rig.read(b"/file") == b"new"


def test_between_the_two_calls_of_a_rename_the_target_is_still_there(rig: VfsRig) -> None:
    rig.make(b"/file", b"old")
    rig.make(b"/new", b"new")
    handle, _ = replace_open(rig, b"/file")
    # Of other threads: one's own next call would be the second one.
    seen = []
    other = threading.Thread(
        target=lambda: seen.extend((rig.vfs.getattr(b"/file").size, rig.read(b"/file")))
    )
    other.start()
    other.join()
    assert seen == [3, b"old"]
    rig.vfs.rename(b"/new", b"/file")
    assert rig.read(b"/file") == b"new"
    rig.vfs.release(handle)
    rig.vfs.unlink(b"/file")
    fails(errno.ENOENT, rig.vfs.getattr, b"/file")


def test_what_was_to_be_saved_of_a_removed_file_goes_with_it(rig: VfsRig) -> None:
    """Its patches wait to be made into blocks; libfuse still takes it for open, and hides it."""
    rig.make(b"/file", os.urandom(300_000))
    handle = rig.vfs.open(b"/file", os.O_RDWR)
    rig.vfs.write(handle, memoryview(b"patch"), 1000)
    rig.vfs.files.flush(handle)
    rig.vfs.release(handle)
    assert rig.vfs.files.unsaved_count() == 1
    rig.vfs.hidden.asked = lambda: Request.REMOVAL
    hide(rig, b"/file")
    rig.blocks.collect()
    rig.round(seal=True)
    assert rig.vfs.files.unsaved_count() == 0
    assert not rig.files()


def test_a_file_that_was_just_closed_can_be_hidden(rig: VfsRig) -> None:
    """libfuse notices a file's closing late. It may remove the hidden name afterwards, or not."""
    for number in range(2):
        rig.make(b"/file", os.urandom(10_000))
        hidden = hide(rig, b"/file")
        assert rig.list(b"/") == []
        if number:
            fails(errno.ENOENT, rig.vfs.unlink, hidden)
        rig.vfs.hidden.settle()
        assert rig.tree.orphans() == []
    rig.round(seal=True)
    assert not rig.files()
    assert rig.vfs.totals() == (1, 0)


def test_a_target_that_was_just_closed_can_be_hidden_and_comes_back(rig: VfsRig) -> None:
    rig.make(b"/target", b"old")
    rig.make(b"/new", b"new")
    hide(rig, b"/target")
    rig.reopen()
    assert rig.list(b"/") == [b"new", b"target"]
    assert rig.read(b"/target") == b"old"


def test_the_closing_of_a_target_does_not_end_the_chance_to_bring_it_back(rig: VfsRig) -> None:
    rig.make(b"/target", b"old")
    handle = rig.vfs.open(b"/target", os.O_RDONLY)
    hidden = hide(rig, b"/target")
    # Other threads of libfuse's.
    for call in (lambda: rig.vfs.release(handle), lambda: rig.vfs.hidden.reveal(1, hidden[1:])):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    rig.reopen()
    assert rig.read(b"/target") == b"old"


def test_a_programs_own_rename_to_such_a_name_keeps_the_file(rig: VfsRig) -> None:
    rig.make(b"/file", b"content")
    rig.make(b"/open", b"content")
    rig.reopen()
    hidden = hide(rig, b"/file")
    handle = rig.vfs.open(b"/open", os.O_RDONLY)
    rig.vfs.rename(b"/open", b"/.fuse_hidden_by_hand")
    rig.vfs.release(handle)
    rig.reopen()
    assert rig.read(hidden) == rig.read(b"/.fuse_hidden_by_hand") == b"content"


# Listings


def test_a_listing_goes_on_where_it_was_while_names_come_and_go(rig: VfsRig) -> None:
    for number in range(300):
        rig.make(b"/%03d" % number)
    handle = rig.vfs.opendir(b"/")
    shown: list[bytes] = []
    step = 0
    while rows := rig.vfs.directories.read(handle, len(shown), 10):
        names = [name for name, _ in rows][:7]
        rig.vfs.directories.delivered(handle, names)
        shown += names
        rig.vfs.unlink(b"/" + names[0])
        rig.make(b"/000-%d" % step)
        step += 1
    assert shown == [b"%03d" % number for number in range(300)]
    # Going back shows what is there now.
    assert rig.vfs.directories.read(handle, 0, 1)[0][0] == b"000-0"
    rig.vfs.directories.release(handle)


@pytest.mark.parametrize("closed", [False, True])
def test_a_file_that_is_saved_during_a_look_shows_as_it_is(rig: VfsRig, closed: bool) -> None:
    """Who has the row of before, and no buffer any more, would tell the kernel an old size."""
    number = rig.make(b"/file", b"old")
    before = rig.tree.node(number)
    assert before is not None
    handle = rig.vfs.open(b"/file", os.O_WRONLY)
    rig.vfs.write(handle, memoryview(b"new content"), 0)
    rig.vfs.files.flush(handle)
    if closed:
        rig.vfs.release(handle)
    shown = rig.vfs.files.overlaid(before)
    [(_, listed)] = rig.vfs.files.all_overlaid([(b"file", before)])
    assert shown == listed == rig.tree.node(number)
    assert shown.size == len(b"new content")
    if not closed:
        rig.vfs.release(handle)


@pytest.mark.parametrize("change", [False, True])
def test_a_place_in_a_listing_can_be_returned_to(rig: VfsRig, change: bool) -> None:
    """seekdir: back and forth, also after names came and went."""
    names = [b"%03d" % number for number in range(300)]
    for name in names:
        rig.make(b"/" + name)
    handle = rig.vfs.opendir(b"/")
    directories = rig.vfs.directories

    def read(offset: int, count: int) -> tuple[list[bytes], int]:
        """`count` names from after number `offset` on, and the number of what comes next."""
        found: list[bytes] = []
        while len(found) < count and (rows := directories.read(handle, offset, 20)):
            offset = directories.number(handle) + len(rows)
            directories.delivered(handle, [name for name, _ in rows])
            found += [name for name, _ in rows]
        return found[:count], offset

    assert read(0, 1000)[0] == names
    if change:
        rig.vfs.unlink(b"/105")
        rig.make(b"/105-new")
        names[105] = b"105-new"
    for start in (100, 250, 40, 280, 120):
        assert read(start, 20)[0] == names[start : start + 20]
    # And on from where that ended.
    found, after = read(90, 40)
    assert found + read(after, 1000)[0] == names[90:]
    directories.release(handle)


# Many threads


def test_threads_that_write_read_and_rename_at_once_lose_nothing(rig: VfsRig) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(15):
                content = bytes([number, step]) * 4000
                rig.make(b"/new-%d" % number, content)
                rig.vfs.rename(b"/new-%d" % number, b"/file-%d" % number)
                assert rig.read(b"/file-%d" % number) == content
                if number == 0:
                    rig.round()
                    rig.upload_all()
                    rig.evict_all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert rig.list(b"/") == [b"file-%d" % number for number in range(4)]


def test_a_file_that_is_opened_anew_while_it_is_saved_stays_one(
    rig: VfsRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = rig.make(b"/file")
    handle = rig.vfs.open(b"/file", os.O_RDWR)
    rig.vfs.write(handle, memoryview(b"content"), 0)
    again: list[int] = []
    save = OpenFile.flush

    def save_and_reopen(file: OpenFile, *, seal: bool = False) -> None:
        save(file, seal=seal)
        if not again:
            again.append(0)
            rig.vfs.release(handle)
            again[0] = rig.vfs.open(b"/file", os.O_RDWR)

    monkeypatch.setattr(OpenFile, "flush", save_and_reopen)
    rig.round()
    assert rig.vfs.files.is_open(number)
    rig.vfs.release(again[0])


# The model


@dataclass
class Thing:
    """A node of the model: what it is, and for a file its content."""

    kind: int
    mode: int = 0o644
    content: bytearray = field(default_factory=bytearray)
    entries: dict[bytes, Thing] = field(default_factory=dict)
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    mtime_ns: int = 0


_NAMES = st.sampled_from([b"a", b"b", b"caf\xe9"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=2).map(lambda names: b"/" + b"/".join(names))
_EDGES = (0, 1, 100, INLINE_BYTES - 1, INLINE_BYTES + 1, 70_000, BLOCK_BYTES - 3, BLOCK_BYTES)
_OFFSETS = st.tuples(st.integers(0, 2), st.sampled_from(_EDGES)).map(
    lambda place: place[0] * BLOCK_BYTES + place[1]
)
_LENGTHS = st.sampled_from((1, 7, 128, 5000, 131_072, BLOCK_BYTES, BLOCK_BYTES + 9))
#: So little that eviction has to make room again and again.
_LIMIT_BYTES = 12 * BLOCK_BYTES
_FLAGS = st.sampled_from((0, RENAME_NOREPLACE, RENAME_EXCHANGE))


class Machine(RuleBasedStateMachine):
    """Random calls on open files, and on a tree of plain objects; both must give the same.

    In between the committer's round, uploads, evictions, a restart and a kill, which must show
    nowhere; and each closed epoch must be reproducible from the rows of the past.
    """

    @initialize()
    def start(self) -> None:
        self._folder = fast_folder()
        self.rig = VfsRig(self._folder.__enter__(), limit_bytes=_LIMIT_BYTES)
        self.root = Thing(stat.S_IFDIR, 0o755)
        self.handles: list[tuple[int, Thing]] = []
        self.history: dict[int, State] = {}
        self.stamp = 0

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        try:
            self.close_epoch(seal=True)
            for epoch, state in self.history.items():
                assert self.rig.state_at(epoch) == state, f"epoch {epoch}"
            self.restart(killed=False)
            self.rig.upload_all()
            self.rig.check_usage()
        finally:
            self.rig.close()
            self._folder.__exit__(None, None, None)

    def _handle(self, number: int) -> tuple[int, Thing]:
        return self.handles[number % len(self.handles)]

    @precondition(lambda self: self.handles)
    @rule(number=st.integers(0, 9), offset=_OFFSETS, length=_LENGTHS)
    def write(self, number: int, offset: int, length: int) -> None:
        handle, thing = self._handle(number)
        self.stamp += 1
        data = (b"%07d|" % self.stamp) * (length // 8 + 1)
        self.make_room()
        self.rig.vfs.write(handle, memoryview(data)[:length], offset)
        content = thing.content
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + length] = data[:length]

    @precondition(lambda self: self.handles)
    @rule(number=st.integers(0, 9), size=_OFFSETS)
    def truncate(self, number: int, size: int) -> None:
        handle, thing = self._handle(number)
        self.make_room()
        self.rig.vfs.truncate(handle, size)
        del thing.content[size:]
        thing.content.extend(bytes(size - len(thing.content)))

    @precondition(lambda self: self.handles)
    @rule(number=st.integers(0, 9), offset=_OFFSETS, length=_LENGTHS)
    def read(self, number: int, offset: int, length: int) -> None:
        handle, thing = self._handle(number)
        assert self.rig.read(handle, length, offset) == thing.content[offset : offset + length]

    @precondition(lambda self: self.handles)
    @rule(number=st.integers(0, 9))
    def fsync(self, number: int) -> None:
        self.make_room()
        self.rig.vfs.files.fsync(self._handle(number)[0], self.rig.db.sync)

    @precondition(lambda self: self.handles)
    @rule(number=st.integers(0, 9))
    def close(self, number: int) -> None:
        self.make_room()
        handle, _ = self.handles.pop(number % len(self.handles))
        self.rig.vfs.files.flush(handle)
        self.rig.vfs.release(handle)

    # What must not show

    def make_room(self) -> None:
        """What uploads and eviction would do by themselves."""
        if self.rig.cache.budget.used_bytes > _LIMIT_BYTES // 2:
            self.rig.upload_all()
            self.rig.evict_all()

    @rule(seal=st.booleans())
    def close_epoch(self, seal: bool) -> None:
        """Rows change until the epoch is closed, and never after."""
        self.rig.round(seal=seal)
        self.rig.check_blocks()
        self.history[self.rig.epochs.open - 1] = self.rig.state()

    @rule()
    def evict(self) -> None:
        self.rig.upload_all()
        self.rig.blocks.collect()
        self.rig.evict_all()

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        """In an orderly way, or by a kill right after all was flushed."""
        for handle, _ in self.handles:
            self.make_room()
            self.rig.vfs.files.flush(handle)
            if not killed:
                self.rig.vfs.release(handle)
        if not killed:
            self.close_epoch(seal=False)
        self.handles.clear()
        self.rig.reopen()

    def same_file(self, path: bytes, thing: Thing) -> None:
        """What a path shows of a file."""
        assert self.rig.vfs.getattr(path).size == len(thing.content)
        if not any(other is thing for _, other in self.handles):
            assert self.rig.read(path) == thing.content


class Contents(Machine):
    """Two files, and what is written to them."""

    @initialize()
    def start(self) -> None:
        super().start()
        for name in (b"a", b"b"):
            self.root.entries[name] = Thing(stat.S_IFREG)
            self.rig.make(b"/" + name)

    @rule(name=st.sampled_from((b"a", b"b")), truncate=st.booleans())
    def open(self, name: bytes, truncate: bool) -> None:
        self.make_room()
        thing = self.root.entries[name]
        flags = os.O_RDWR | (os.O_TRUNC if truncate else 0)
        self.handles.append((self.rig.vfs.open(b"/" + name, flags), thing))
        if truncate:
            thing.content.clear()

    @rule(name=st.sampled_from((b"a", b"b")))
    def replace(self, name: bytes) -> None:
        self.rig.vfs.unlink(b"/" + name)
        self.rig.make(b"/" + name)
        self.root.entries[name] = Thing(stat.S_IFREG)

    @invariant()
    def same(self) -> None:
        if hasattr(self, "rig"):
            for name, thing in self.root.entries.items():
                self.same_file(b"/" + name, thing)


class Names(Machine):
    """A tree of all kinds of nodes."""

    def find(self, path: bytes) -> Thing:
        thing = self.root
        for part in path.split(b"/"):
            if part:
                if thing.kind != stat.S_IFDIR:
                    raise OSError(errno.ENOTDIR, "")
                if part not in thing.entries:
                    raise OSError(errno.ENOENT, "")
                thing = thing.entries[part]
        return thing

    def parent(self, path: bytes) -> tuple[Thing, bytes]:
        head, _, name = path.rpartition(b"/")
        parent = self.find(head)
        if parent.kind != stat.S_IFDIR:
            raise OSError(errno.ENOTDIR, "")
        return parent, name

    def place(self, path: bytes, thing: Thing) -> None:
        parent, name = self.parent(path)
        if name in parent.entries:
            raise OSError(errno.EEXIST, "")
        parent.entries[name] = thing

    def both(self, real: object, model: object) -> bool:
        """Make a call on both; whether it succeeded. Both give the same errno, or none."""
        outcomes: list[int] = []
        for call in (model, real):
            try:
                call()  # type: ignore[operator]
                outcomes.append(0)
            except OSError as error:
                outcomes.append(error.errno or -1)
        names = [errno.errorcode.get(number) for number in outcomes]
        assert outcomes[0] == outcomes[1], f"model and file system: {names}"
        return not outcomes[0]

    # Names

    @rule(path=_PATHS)
    def mkdir(self, path: bytes) -> None:
        thing = Thing(stat.S_IFDIR, 0o755)
        self.both(lambda: self.rig.vfs.mkdir(path, 0o755, ME), lambda: self.place(path, thing))

    @rule(path=_PATHS, leads_to=st.sampled_from([b"a", b"../\xff"]))
    def symlink(self, path: bytes, leads_to: bytes) -> None:
        thing = Thing(stat.S_IFLNK, 0o777, target=leads_to)
        self.both(lambda: self.rig.vfs.symlink(leads_to, path, ME), lambda: self.place(path, thing))

    @rule(path=_PATHS)
    def create(self, path: bytes) -> None:
        thing = Thing(stat.S_IFREG)
        found: list[int] = []
        if self.both(
            lambda: found.append(self.rig.vfs.create(path, 0o644, os.O_EXCL, ME)),
            lambda: self.place(path, thing),
        ):
            self.handles.append((found[0], thing))

    @rule(old=_PATHS, new=_PATHS)
    def link(self, old: bytes, new: bytes) -> None:
        def model() -> None:
            thing = self.find(old)
            if thing.kind == stat.S_IFDIR:
                raise OSError(errno.EPERM, "")
            self.place(new, thing)

        self.both(lambda: self.rig.vfs.link(old, new), model)

    @rule(path=_PATHS)
    def unlink(self, path: bytes) -> None:
        def model() -> None:
            parent, name = self.parent(path)
            if self.find(path).kind == stat.S_IFDIR:
                raise OSError(errno.EISDIR, "")
            del parent.entries[name]

        self.both(lambda: self.rig.vfs.unlink(path), model)

    @rule(path=_PATHS)
    def rmdir(self, path: bytes) -> None:
        def model() -> None:
            parent, name = self.parent(path)
            thing = self.find(path)
            if thing.kind != stat.S_IFDIR:
                raise OSError(errno.ENOTDIR, "")
            if thing.entries:
                raise OSError(errno.ENOTEMPTY, "")
            del parent.entries[name]

        self.both(lambda: self.rig.vfs.rmdir(path), model)

    @rule(old=_PATHS, new=_PATHS, flags=_FLAGS)
    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self.both(
            lambda: self.rig.vfs.rename(old, new, flags),
            lambda: self.model_rename(old, new, flags),
        )

    def model_rename(self, old: bytes, new: bytes, flags: int) -> None:
        old_parent, old_name = self.parent(old)
        new_parent, new_name = self.parent(new)
        thing = self.find(old)
        if new.startswith(old + b"/"):
            raise OSError(errno.EINVAL, "")
        target = new_parent.entries.get(new_name)
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise OSError(errno.ENOENT, "")
            if old.startswith(new + b"/"):
                raise OSError(errno.EINVAL, "")
            old_parent.entries[old_name], new_parent.entries[new_name] = target, thing
            return
        if target is not None:
            if flags & RENAME_NOREPLACE:
                raise OSError(errno.EEXIST, "")
            if target is thing:
                return
            if target.kind == stat.S_IFDIR and thing.kind != stat.S_IFDIR:
                raise OSError(errno.EISDIR, "")
            if target.entries:
                raise OSError(errno.ENOTEMPTY, "")
            if target.kind != stat.S_IFDIR and thing.kind == stat.S_IFDIR:
                raise OSError(errno.ENOTDIR, "")
        del old_parent.entries[old_name]
        new_parent.entries[new_name] = thing

    # Attributes

    @rule(path=_PATHS, mode=st.sampled_from((0o600, 0o4755, 0o1777)))
    def chmod(self, path: bytes, mode: int) -> None:
        self.both(
            lambda: self.rig.vfs.chmod(path, mode),
            lambda: setattr(self.find(path), "mode", mode),
        )

    @rule(path=_PATHS, time_ns=st.sampled_from((-1, 1, 10**18 + 1)))
    def utimens(self, path: bytes, time_ns: int) -> None:
        if self.both(lambda: self.rig.vfs.utimens(path, None, time_ns), lambda: self.find(path)):
            assert self.rig.vfs.getattr(path).mtime_ns == time_ns

    @rule(path=_PATHS, name=st.sampled_from([b"user.x", b"trusted.y"]), value=st.binary(max_size=9))
    def setxattr(self, path: bytes, name: bytes, value: bytes) -> None:
        def model() -> None:
            thing = self.find(path)
            if name.startswith(b"user.") and thing.kind == stat.S_IFLNK:
                raise OSError(errno.EPERM, "")
            thing.xattrs[name] = value

        self.both(lambda: self.rig.vfs.setxattr(path, name, value, 0), model)

    @rule(path=_PATHS, name=st.sampled_from([b"user.x", b"trusted.y"]))
    def removexattr(self, path: bytes, name: bytes) -> None:
        def model() -> None:
            if self.find(path).xattrs.pop(name, None) is None:
                raise OSError(errno.ENODATA, "")

        self.both(lambda: self.rig.vfs.removexattr(path, name), model)

    # Open files

    @rule(path=_PATHS, truncate=st.booleans())
    def open(self, path: bytes, truncate: bool) -> None:
        def model() -> None:
            thing = self.find(path)
            if thing.kind == stat.S_IFDIR:
                raise OSError(errno.EISDIR, "")
            things.append(thing)

        things: list[Thing] = []
        if self._is_symlink(path):
            return  # which the kernel never asks for
        found: list[int] = []
        flags = os.O_RDWR | (os.O_TRUNC if truncate else 0)
        if self.both(lambda: found.append(self.rig.vfs.open(path, flags)), model):
            self.handles.append((found[0], things[0]))
            if truncate:
                things[0].content.clear()

    def _is_symlink(self, path: bytes) -> bool:
        try:
            return self.find(path).kind == stat.S_IFLNK
        except OSError:
            return False

    @invariant()
    def same(self) -> None:
        if hasattr(self, "rig"):
            self._compare(b"", self.root)

    def _compare(self, path: bytes, thing: Thing) -> None:
        node = self.rig.vfs.getattr(path or b"/")
        assert stat.S_IFMT(node.mode) == thing.kind
        assert stat.S_IMODE(node.mode) == thing.mode
        found = self.rig.vfs.listxattr(path or b"/")
        assert {n: self.rig.vfs.getxattr(path or b"/", n) for n in found} == thing.xattrs
        if thing.kind == stat.S_IFREG:
            assert node.nlink == self._names(self.root, thing)
            self.same_file(path, thing)
        elif thing.kind == stat.S_IFLNK:
            assert self.rig.vfs.readlink(path) == thing.target
        else:
            assert self.rig.list(path or b"/") == sorted(thing.entries)
            below = [entry for entry in thing.entries.values() if entry.kind == stat.S_IFDIR]
            assert node.nlink == 2 + len(below)
            for name, entry in thing.entries.items():
                self._compare(path + b"/" + name, entry)

    def _names(self, directory: Thing, thing: Thing) -> int:
        return sum(
            (entry is thing) + self._names(entry, thing) for entry in directory.entries.values()
        )


_SETTINGS = settings(
    max_examples=80,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
# Making a failing sequence short takes some minutes.
TestContents = pytest.mark.timeout(600)(Contents.TestCase)
TestContents.settings = _SETTINGS
TestNames = pytest.mark.timeout(600)(Names.TestCase)
TestNames.settings = _SETTINGS
