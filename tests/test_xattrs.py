"""What `ls -l` asks of each file, beyond the rules in `posix/xattrs.py`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.mounted import BINDINGS, mounted
from tests.vfs_rig import VfsRig

LABEL = b"security.selinux"


def error_of(rig: VfsRig, path: bytes, name: bytes) -> str:
    with pytest.raises(OSError) as caught:
        rig.vfs.getxattr(path, name)
    return os.strerror(caught.value.errno or 0)


def test_labels_are_unsupported_until_one_is_met(rig: VfsRig) -> None:
    rig.make(b"/plain")
    rig.make(b"/labelled")
    assert error_of(rig, b"/plain", LABEL) == "Operation not supported"
    assert error_of(rig, b"/plain", b"security.other") == "No data available"
    rig.vfs.setxattr(b"/labelled", LABEL, b"system_u:object_r:etc_t:s0", 0)
    assert rig.vfs.getxattr(b"/labelled", LABEL).startswith(b"system_u")
    assert error_of(rig, b"/plain", LABEL) == "No data available"
    rig.reopen()
    assert error_of(rig, b"/plain", LABEL) == "Operation not supported"
    assert rig.vfs.listxattr(b"/labelled") == [LABEL]
    assert rig.vfs.getxattr(b"/labelled", LABEL).startswith(b"system_u")
    assert error_of(rig, b"/plain", LABEL) == "No data available"


@pytest.mark.fuse
def test_ls_asks_once_and_not_for_each_file(tmp_path: Path) -> None:
    with mounted(tmp_path, BINDINGS[-1]) as mount:
        for number in range(50):
            (mount.path / f"{number}").touch()
        words = ["strace", "-f", "-e", "trace=getxattr,lgetxattr", "-o", tmp_path / "trace"]
        subprocess.run([*words, "ls", "-l", mount.path], check=True, capture_output=True)
        asked = (tmp_path / "trace").read_text().count("security.selinux")
        assert asked <= 1
