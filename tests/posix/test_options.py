"""What the options of a mount change: read-only, and the times of reading."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, mounted
from tests.posix.case import CONTENT, NOBODY, populate

pytestmark = pytest.mark.fuse

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
        outcomes = []
        for change in _CHANGES:
            with pytest.raises(OSError) as error:
                change(place)
            outcomes.append(error.value.errno)
        assert outcomes == [errno.EROFS] * len(_CHANGES)
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

        def atime_after_reading(*options: str) -> int:
            # What is read first after mounting, the kernel has to ask for.
            mount.remount(*options)
            assert file.read_bytes() == CONTENT
            mount.remount()
            return file.stat().st_atime_ns

        assert atime_after_reading("-o", "noatime") == 1
        assert atime_after_reading("-o", "ro") == 1
        moved = atime_after_reading()
        assert moved > file.stat().st_mtime_ns
        assert atime_after_reading() == moved
