"""The times of written files: after a remount what the kernel showed before it."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, Mount, mounted
from tests.vfs_rig import ME, VfsRig

_TICKS_SECONDS = 0.02
"""Several ticks of the clock that gives files their times."""
_SYNC_FILE_RANGE_WRITE_AND_WAIT = 7


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """With libfuse 2 the kernel keeps nothing that was written."""
    if "3" not in BINDINGS:
        pytest.skip("libfuse 3 is not installed")
    with mounted(tmp_path, "3") as found:
        yield found


def close_late(fd: int) -> None:
    time.sleep(_TICKS_SECONDS)


def hand_pages_over(fd: int) -> None:
    """The kernel hands over what was written, but tells no time."""
    time.sleep(_TICKS_SECONDS)
    libc = ctypes.CDLL(None, use_errno=True)
    length = ctypes.c_int64(0)
    assert libc.sync_file_range(fd, ctypes.c_int64(0), length, _SYNC_FILE_RANGE_WRITE_AND_WAIT) == 0


def write_more(fd: int) -> None:
    hand_pages_over(fd)
    os.write(fd, b"more")
    time.sleep(_TICKS_SECONDS)


def sync_and_write_more(fd: int) -> None:
    time.sleep(_TICKS_SECONDS)
    os.fsync(fd)
    os.write(fd, b"more")
    time.sleep(_TICKS_SECONDS)


WAYS = [
    close_late,
    hand_pages_over,
    write_more,
    sync_and_write_more,
]


@pytest.mark.fuse
@pytest.mark.parametrize("before_closing", WAYS, ids=lambda way: str(way.__name__))
@pytest.mark.parametrize("size_bytes", [3, 2 << 20])
def test_a_file_written_in_the_tick_that_made_it_keeps_its_times(
    mount: Mount, before_closing: Callable[[int], None], size_bytes: int
) -> None:
    """The kernel tells when a file was written, but not if it had that time from its making."""
    in_one_tick = 0
    shown = {}
    for number in range(40):
        path = mount.path / f"{number}"
        fd = os.open(path, os.O_CREAT | os.O_RDWR)
        made = os.fstat(fd).st_mtime_ns
        os.write(fd, b"x" * size_bytes)
        in_one_tick += os.fstat(fd).st_mtime_ns == made
        before_closing(fd)
        os.close(fd)
        shown[path] = (path.stat().st_mtime_ns, path.stat().st_ctime_ns)
        if in_one_tick == 3:
            break
    assert in_one_tick
    mount.remount()
    for path, times in shown.items():
        assert (path.stat().st_mtime_ns, path.stat().st_ctime_ns) == times


# Without a kernel, step by step


def made_and_written(rig: VfsRig, content: bytes = b"content") -> tuple[int, int]:
    """A new file of which the kernel has handed over pages a while later: (handle, its time)."""
    handle = rig.vfs.create(b"/file", 0o644, 0, ME)
    made_ns = rig.vfs.getattr(handle).mtime_ns
    time.sleep(_TICKS_SECONDS)
    rig.vfs.write(handle, memoryview(content), 0, gathered=True)
    return handle, made_ns


def times_after_restart(rig: VfsRig) -> tuple[int, int]:
    rig.restart()
    node = rig.vfs.getattr(b"/file")
    return node.mtime_ns, node.ctime_ns


@pytest.mark.parametrize("content", [b"content", b"x" * 70_000], ids=["tiny", "block"])
@pytest.mark.parametrize("is_saved", [False, True], ids=["buffered", "saved before"])
def test_what_the_kernel_tells_no_time_of_has_its_time_already(
    rig: VfsRig, content: bytes, is_saved: bool
) -> None:
    handle, made_ns = made_and_written(rig, content)
    if is_saved:
        rig.round(seal=True)
        assert rig.tree.node(rig.vfs.getattr(handle).id).mtime_ns > made_ns
    rig.vfs.files.flush(handle)
    assert times_after_restart(rig) == (made_ns, made_ns)
    assert rig.read(b"/file") == content


@pytest.mark.parametrize("is_saved", [False, True], ids=["buffered", "saved before"])
def test_what_the_kernel_tells_is_the_time(rig: VfsRig, is_saved: bool) -> None:
    handle, made_ns = made_and_written(rig)
    if is_saved:
        rig.round(seal=True)
    rig.vfs.utimens(handle, None, made_ns + 5)
    rig.vfs.files.flush(handle)
    assert times_after_restart(rig) == (made_ns + 5, made_ns + 5)


def test_content_that_has_changed_never_has_the_old_time_after_a_crash(rig: VfsRig) -> None:
    """The kernel would have told, but did not come to it."""
    _, made_ns = made_and_written(rig)
    rig.round(seal=True)
    mtime_ns, ctime_ns = times_after_restart(rig)
    assert mtime_ns > made_ns
    assert ctime_ns == mtime_ns


def test_by_another_name_more_may_have_come_than_is_flushed(rig: VfsRig) -> None:
    handle, made_ns = made_and_written(rig)
    rig.vfs.link(b"/file", b"/name")
    rig.vfs.files.flush(handle)
    assert times_after_restart(rig)[0] > made_ns


def test_a_time_set_by_hand_stays(rig: VfsRig) -> None:
    handle, _ = made_and_written(rig)
    rig.round(seal=True)
    rig.vfs.utimens(b"/file", None, 12345)
    rig.vfs.files.flush(handle)
    assert times_after_restart(rig)[0] == 12345


def test_a_mode_set_after_the_writes_keeps_the_time_of_that(rig: VfsRig) -> None:
    """The kernel hands over what it kept, and when it was written, before it sets the mode."""
    handle, made_ns = made_and_written(rig)
    rig.vfs.utimens(handle, None, made_ns + 5)
    rig.vfs.chmod(b"/file", 0o600)
    changed_ns = rig.tree.node(rig.vfs.getattr(handle).id).ctime_ns
    assert changed_ns > made_ns + 5
    rig.vfs.files.flush(handle)
    assert times_after_restart(rig) == (made_ns + 5, changed_ns)


def test_small_rewrites_in_one_tick_stay_patches(rig: VfsRig) -> None:
    """Of the second the kernel tells no time; it has that of the first."""
    rig.make(b"/file", b"x" * 900_000)
    time.sleep(_TICKS_SECONDS)
    handle = rig.vfs.open(b"/file", os.O_RDWR)
    told_ns = rig.tree.now_ns()
    for number in range(3):
        rig.vfs.write(handle, memoryview(b"%d" % number), 1000 * number, gathered=True)
        if number == 0:
            rig.vfs.utimens(handle, None, told_ns)
        time.sleep(_TICKS_SECONDS)
        rig.vfs.files.flush(handle)
    rows = rig.contents.patches(rig.vfs.getattr(handle).id)
    assert [mtime_ns for _, _, _, mtime_ns in rows] == [told_ns] * 3
    rig.round(seal=True)
    assert times_after_restart(rig) == (told_ns, told_ns)


def test_no_guess_is_taken_for_what_was_there_before_another(rig: VfsRig) -> None:
    """The first is saved with its block, and the second one only noted with a small rewrite."""
    rig.make(b"/file", b"x" * 900_000)
    made = rig.vfs.getattr(b"/file")
    handle = rig.vfs.open(b"/file", os.O_RDWR)
    for number, seal in enumerate([True, False]):
        time.sleep(_TICKS_SECONDS)
        rig.vfs.write(handle, memoryview(b"%d" % number), 1000 * number, gathered=True)
        rig.round(seal=seal)
    assert rig.contents.patches(made.id)
    assert rig.vfs.getattr(handle).mtime_ns > made.mtime_ns
    rig.vfs.files.flush(handle)
    rig.round(seal=True)
    assert times_after_restart(rig) == (made.mtime_ns, made.ctime_ns)
