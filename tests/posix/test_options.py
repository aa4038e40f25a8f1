"""What the options of a mount change, and what stays the same after another mount."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, mounted
from tests.posix.case import (
    AT_FDCWD,
    CONTENT,
    NOBODY,
    as_user,
    checked,
    libc,
    populate,
)

pytestmark = [pytest.mark.fuse, pytest.mark.slow(6)]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def _rename_with(flags: int, place: Path, old: str, new: str) -> None:
    words = os.fsencode(place / old), os.fsencode(place / new)
    checked(libc.renameat2(AT_FDCWD, words[0], AT_FDCWD, words[1], flags))


_CHANGES: list[Callable[[Path], object]] = [
    lambda place: os.open(place / "file", os.O_WRONLY),
    lambda place: os.open(place / "file", os.O_RDWR),
    lambda place: os.open(place / "file", os.O_RDONLY | os.O_TRUNC),
    lambda place: os.open(place / "new", os.O_RDONLY | os.O_CREAT),
    lambda place: os.truncate(place / "file", 3),
    lambda place: os.mkdir(place / "new"),
    lambda place: os.mkfifo(place / "new"),
    lambda place: os.symlink("file", place / "new"),
    lambda place: os.link(place / "file", place / "new"),
    lambda place: os.rename(place / "file", place / "new"),
    lambda place: os.rename(place / "full/inside", place / "file"),
    lambda place: os.unlink(place / "file"),
    lambda place: os.rmdir(place / "dir"),
    lambda place: os.chmod(place / "file", 0o600),
    lambda place: os.chown(place / "file", NOBODY, NOBODY),
    lambda place: os.utime(place / "file"),
    lambda place: os.utime(place / "file", (1, 1)),
    lambda place: os.setxattr(place / "file", "user.new", b"x"),
    lambda place: os.removexattr(place / "file", "user.x"),
    lambda place: os.open(place / "new", os.O_RDWR | os.O_CREAT | os.O_EXCL),
    lambda place: os.open(place / "dangling", os.O_WRONLY | os.O_CREAT),
    lambda place: os.truncate(place / "file", len(CONTENT)),
    lambda place: os.mknod(place / "new", stat.S_IFREG),
    lambda place: os.mknod(place / "new", stat.S_IFSOCK),
    lambda place: os.link(place / "link", place / "new", follow_symlinks=False),
    lambda place: os.rename(place / "dir", place / "new"),
    lambda place: os.rename(place / "full", place / "dir"),
    lambda place: os.unlink(place / "link"),
    lambda place: os.unlink(place / "fifo"),
    lambda place: os.rmdir(place / "full"),
    lambda place: os.chmod(place / "dir", 0o700),
    lambda place: os.lchown(place / "link", NOBODY, NOBODY),
    lambda place: os.utime(place / "link", (1, 1), follow_symlinks=False),
    lambda place: os.setxattr(place / "dir", "user.new", b"x"),
]
#: What not every libfuse carries, so that the kernel must refuse it by itself.
_CHANGES_OF_SOME: list[Callable[[Path], object]] = [
    lambda place: os.open(place / "dir", os.O_RDWR | os.O_TMPFILE),
    lambda place: _rename_with(1, place, "file", "new"),
    lambda place: _rename_with(2, place, "file", "full"),
]


def _picture(place: Path) -> list[tuple[object, ...]]:
    """All names with all attributes that a mount may not change by itself."""
    found = []
    for path in [place, *sorted(place.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        # The mode, the number, links, user, group and size; the device is another one each time.
        fixed = status[:2] + status[3:7]
        found.append((path.name, *fixed, status.st_mtime_ns, status.st_ctime_ns, content))
    return found


def _outcomes(place: Path, changes: list[Callable[[Path], object]]) -> set[int | None]:
    """The numbers of the errors that changes end with."""
    found = set()
    for change in changes:
        with pytest.raises(OSError) as error:
            change(place)
        found.add(error.value.errno)
    return found


@pytest.mark.parametrize("fuse", BINDINGS)
def test_a_read_only_mount_refuses_every_change(tmp_path: Path, fuse: str) -> None:
    with mounted(tmp_path, fuse) as mount:
        place = mount.path / "place"
        populate(place)
        os.setxattr(place / "file", "user.x", b"x")
        # The writeback cache has a ctime of its own, some ms later, while it holds the file.
        mount.remount()
        before = _picture(place)
        mount.remount("-o", "ro")
        assert _outcomes(place, [*_CHANGES, *_CHANGES_OF_SOME]) == {errno.EROFS}
        assert not os.access(place / "file", os.W_OK)
        assert _picture(place) == before
        mount.remount()
        assert _picture(place) == before


@pytest.mark.parametrize("fuse", BINDINGS)
def test_reading_moves_atime_once_a_change_and_never_with_noatime(
    tmp_path: Path, fuse: str
) -> None:
    with mounted(tmp_path, fuse) as mount:
        file = mount.path / "file"
        file.write_bytes(CONTENT)
        os.utime(file, ns=(1, 2))

        def atime_before_reading(*options: str) -> int:
            """What the mount before has left; then the file is read."""
            mount.remount(*options)
            found = file.stat().st_atime_ns
            # What is read first after mounting, the kernel has to ask for.
            assert file.read_bytes() == CONTENT
            return found

        assert atime_before_reading("-o", "noatime") == 1
        assert atime_before_reading("-o", "ro") == 1
        assert atime_before_reading() == 1
        moved = atime_before_reading()
        assert moved > file.stat().st_mtime_ns
        assert atime_before_reading() == moved


def _numbers(place: Path) -> dict[str, tuple[int, ...]]:
    """Of each name what no mount may change: number, mode, links, size, blocks, device, times."""
    found = {}
    for path in [place, *sorted(place.rglob("*"))]:
        status = path.lstat()
        found[str(path.relative_to(place))] = (
            status.st_ino, status.st_mode, status.st_nlink, status.st_size, status.st_blocks,
            status.st_rdev, status.st_mtime_ns,
        )  # fmt: skip
    return found


@pytest.mark.parametrize("fuse", BINDINGS)
def test_numbers_counts_and_blocks_are_the_same_after_a_remount_and_in_a_clone(
    tmp_path: Path, fuse: str
) -> None:
    with mounted(tmp_path, fuse, settings={"writeback": "off"}) as mount:
        place = mount.path / "place"
        populate(place)
        os.link(place / "file", place / "dir/other")
        with open(place / "sparse", "wb") as file:
            os.pwrite(file.fileno(), b"x" * 1_500_000, 5 << 20)
            os.ftruncate(file.fileno(), 3 << 40)
        before = _numbers(place)
        assert len({numbers[0] for numbers in before.values()}) == len(before) - 1
        mount.remount()
        assert _numbers(place) == before
        mount.flush()
        with mounted(tmp_path, fuse, name="clone", clone=True) as clone:
            assert _numbers(clone.path / "place") == before
            # A clone follows the writer, and changes nothing itself.
            assert _outcomes(clone.path / "place", _CHANGES) == {errno.EROFS}
            assert _numbers(clone.path / "place") == before


@needs_root
@pytest.mark.parametrize("fuse", BINDINGS)
def test_suid_and_dev_allow_what_they_say(tmp_path: Path, fuse: str) -> None:
    def outcome(call: Callable[[Path], object]) -> object:
        try:
            return as_user(mount.path, call)
        except OSError as error:
            return error.errno

    with mounted(tmp_path, fuse, options=["allow_other"]) as mount:
        mount.path.chmod(0o755)
        shutil.copy(shutil.which("id") or "", mount.path / "id")
        (mount.path / "id").chmod(0o4755)
        os.mknod(mount.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        for options, expected in (
            ((), (NOBODY, errno.EACCES)),
            (("suid",), (0, errno.EACCES)),
            (("dev",), (NOBODY, b"")),
        ):
            mount.remount(*(word for option in options for word in ("-o", option)))
            found = outcome(_effective_user), outcome(lambda here: (here / "null").read_bytes())
            assert found == expected, options


def _effective_user(_: Path) -> int:
    return int(subprocess.run(["./id", "-u"], check=True, capture_output=True).stdout)
