"""A tree with all that files can be, and a description of trees to compare them by."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

SPARSE_BYTES = 20 << 20


def make_tree(root: Path) -> None:
    """Make files of many kinds, names, modes, times and attributes below a new folder."""
    root.mkdir()
    for number in range(40):
        folder = root / f"folder {number % 4}/below"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}").write_bytes(b"%d\n" % number * number * 50)
    (root / "large").write_bytes(os.urandom((3 << 20) + 5))
    (root / "empty").touch()
    (root / "empty folder").mkdir(mode=0o700)
    with open(root / "sparse", "wb") as file:
        file.write(b"begin")
        file.seek(SPARSE_BYTES // 2)
        file.write(b"middle")
        file.truncate(SPARSE_BYTES)
    os.link(root / "folder 1/below/1", root / "folder 2/1 too")
    (root / "link").symlink_to("folder 1/below/1")
    (root / "dangling").symlink_to("no such thing \udcff")
    os.mkfifo(root / "fifo", 0o640)
    for name in (b"caf\xe9", "größer 写真 🙂".encode(), b"new\nline", b"\x80" * 255):
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(name)
    os.setxattr(root / "large", "user.mime_type", b"image/raw")
    os.setxattr(root / "folder 1", "user.empty", b"")
    os.setxattr(root / "empty", "user.long", bytes(range(1, 256)) * 8)
    modes = {"large": 0o4755, "empty": 0o000, "folder 2": 0o2775, "folder 3": 0o1777}
    for name, mode in modes.items():
        (root / name).chmod(mode)
    if os.geteuid() == 0:
        os.chown(root / "sparse", 1234, 4321)
        os.chown(root / "link", 1234, 4321, follow_symlinks=False)
    # Last: what else is done in a folder moves its times.
    for number, path in enumerate(sorted(root.rglob("*"), key=os.fsencode)):
        time_ns = 1_000_000_000_000_000_000 + number * 1_111_111_111
        os.utime(path, ns=(time_ns, time_ns + 7), follow_symlinks=False)
    os.utime(root, ns=(1, 981_173_106_123_456_789))


def described(root: Path) -> dict[str, object]:
    """All that programs copy of a tree, by path. Names of one file share their description."""
    found: dict[str, object] = {}
    first_names: dict[int, str] = {}
    for path in sorted([root, *root.rglob("*")], key=os.fsencode):
        name = str(path.relative_to(root))
        status = path.lstat()
        first_name = first_names.setdefault(status.st_ino, name)
        kind = stat.S_IFMT(status.st_mode)
        content = ""
        if kind == stat.S_IFREG:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        elif kind == stat.S_IFLNK:
            content = os.readlink(path)
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
        }
        found[name] = {
            "same as": first_name,
            "mode": oct(status.st_mode),
            "owner": (status.st_uid, status.st_gid),
            "links": status.st_nlink,
            "size": status.st_size if kind == stat.S_IFREG else None,
            "mtime": status.st_mtime_ns,
            "content": content,
            "xattrs": xattrs,
        }
    return found
