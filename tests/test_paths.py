"""Paths and what they lead to, while folders move and go."""

from __future__ import annotations

import contextlib
import stat

import pytest

from syncer.vfs.calls import RENAME_EXCHANGE
from tests.vfs_rig import ME, VfsRig


def test_paths_lead_where_their_folders_are_now(rig: VfsRig) -> None:
    """Which folders paths led to is remembered; whatever moves or removes one is noticed."""
    vfs = rig.vfs
    for folder in (b"/a", b"/a/b", b"/a/b/c", b"/other"):
        vfs.mkdir(folder, 0o755, ME)
    rig.make(b"/a/b/c/file", b"first")
    number = vfs.getattr(b"/a/b/c/file").id

    def leads(path: bytes) -> int | None:
        with contextlib.suppress(FileNotFoundError):
            return vfs.getattr(path).id
        return None

    assert leads(b"/a/b/c/file") == number
    vfs.rename(b"/a/b", b"/other/b")
    assert (leads(b"/a/b/c/file"), leads(b"/other/b/c/file")) == (None, number)
    vfs.mkdir(b"/a/b", 0o755, ME)
    vfs.mkdir(b"/a/b/c", 0o755, ME)
    assert leads(b"/a/b/c/file") is None
    rig.make(b"/a/b/c/file", b"second")
    second = leads(b"/a/b/c/file")
    assert second not in (None, number)
    vfs.rename(b"/a", b"/other", RENAME_EXCHANGE)
    assert (leads(b"/a/b/c/file"), leads(b"/other/b/c/file")) == (number, second)
    vfs.unlink(b"/a/b/c/file")
    vfs.rmdir(b"/a/b/c")
    with pytest.raises(FileNotFoundError):
        vfs.mknod(b"/a/b/c/file", stat.S_IFREG | 0o644, 0, ME)
    rig.make(b"/a/b/c", b"no folder any more")
    with pytest.raises(NotADirectoryError):
        vfs.getattr(b"/a/b/c/file")
    with pytest.raises(NotADirectoryError):
        vfs.mknod(b"/a/b/c/file", stat.S_IFREG | 0o644, 0, ME)
    vfs.unlink(b"/a/b/c")
    with pytest.raises(FileNotFoundError):
        vfs.getattr(b"/a/b/c/file")


def test_a_folder_whose_making_failed_is_not_remembered(rig: VfsRig) -> None:
    with contextlib.suppress(KeyError), rig.tree.transaction():
        rig.vfs.mkdir(b"/a", 0o755, ME)
        rig.vfs.mkdir(b"/a/b", 0o755, ME)
        raise KeyError
    # It takes the number that the lost one had.
    rig.vfs.mkdir(b"/x", 0o755, ME)
    with pytest.raises(FileNotFoundError):
        rig.vfs.mkdir(b"/a/b", 0o755, ME)
