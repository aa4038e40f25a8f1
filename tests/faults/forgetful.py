"""A disk in memory that forgets at a power cut what was not synced, mounted for real servers.

    python -m tests.faults.forgetful MOUNTPOINT

is the mounted file system, in a process of its own; `ForgetfulDisk` starts it and tells it what to
do, by extended attributes of its root. What survives a cut, chosen by a seeded generator:

- of a file whose content was not synced since it was written: all, what was synced before, a part,
  nothing, or zeros from some point on;
- each change of names in a folder that was not synced since: done or not done, independently of the
  others and so in any order. A rename is one change, of two folders perhaps: the sync of either one
  makes it safe. The sync of a file makes its name no safer.

While the power is off, every call fails with EIO.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import mfusepy

_FOREVER = 1 << 60
_START_SECONDS = 30.0


@dataclass(eq=False)
class _Node:
    """A file or a folder, as it is now and as it is on the disk."""

    is_folder: bool
    data: bytearray = field(default_factory=bytearray)
    synced_data: bytes | None = b""
    """None: never, so the file may hold anything that it ever was a part of."""
    names: dict[str, _Node] = field(default_factory=dict)
    synced_names: dict[str, tuple[int, _Node | None]] = field(default_factory=dict)
    """With the number of the change that the name had last."""
    mtime_ns: int = field(default_factory=time.time_ns)


_Entry = tuple[_Node, str, _Node | None]
"""A folder, a name in it, and what it leads to from now on."""


class Disk:
    """The file system's state. For one thread."""

    def __init__(self) -> None:
        self.root = _Node(is_folder=True)
        self.effects_left = _FOREVER
        self.effects = 0
        self._pending: list[tuple[int, list[_Entry]]] = []
        self._numbers = itertools.count(1)

    @property
    def is_off(self) -> bool:
        return self.effects_left < 0

    def effect(self) -> None:
        """Before each change and each sync."""
        self.effects += 1
        self.effects_left -= 1
        self.require_power()

    def require_power(self) -> None:
        if self.is_off:
            raise OSError(errno.EIO, "the power is off")

    def find(self, path: str) -> _Node:
        self.require_power()
        node = self.root
        for name in filter(None, path.split("/")):
            if name not in node.names:
                raise OSError(errno.ENOENT, path)
            node = node.names[name]
        return node

    def place(self, path: str) -> tuple[_Node, str]:
        folder, _, name = path.rpartition("/")
        return self.find(folder), name

    def change(self, *entries: _Entry) -> None:
        """Change names, as one step."""
        self.effect()
        for folder, name, node in entries:
            if node is None:
                del folder.names[name]
            else:
                folder.names[name] = node
        self._pending.append((next(self._numbers), list(entries)))

    def sync_file(self, node: _Node) -> None:
        self.effect()
        node.synced_data = bytes(node.data)

    def sync_folder(self, folder: _Node) -> None:
        self.effect()
        self._make_safe(lambda entries: any(entry[0] is folder for entry in entries))

    def _make_safe(self, is_chosen: Callable[[list[_Entry]], bool]) -> None:
        rest = []
        for number, entries in self._pending:
            if not is_chosen(entries):
                rest.append((number, entries))
                continue
            for folder, name, node in entries:
                if folder.synced_names.get(name, (0, None))[0] < number:
                    folder.synced_names[name] = number, node
        self._pending = rest

    def settle(self) -> None:
        """What the operating system does by itself after a while: all is safe."""
        self.require_power()
        self._make_safe(lambda entries: True)
        for node in _all_below(self.root, set()):
            node.synced_data = bytes(node.data)

    def cut(self, seed: int) -> None:
        """The power goes and comes back: from now on it is what the disk had."""
        chance = random.Random(seed)
        share = chance.choice([0.0, 0.2, 0.5, 0.8])
        self._make_safe(lambda entries: chance.random() < share)
        self._pending = []
        self.effects_left = _FOREVER
        _restore(self.root, chance, set())


def _all_below(node: _Node, seen: set[int]) -> list[_Node]:
    if id(node) in seen:
        return []
    seen.add(id(node))
    return [node, *(one for child in node.names.values() for one in _all_below(child, seen))]


def _restore(node: _Node, chance: random.Random, seen: set[int]) -> None:
    """Have a node, and those below it, be what the disk has of them."""
    if id(node) in seen:
        return
    seen.add(id(node))
    node.names = {name: child for name, (_, child) in node.synced_names.items() if child}
    node.synced_names = {name: (0, child) for name, child in node.names.items()}
    if node.synced_data is None or node.synced_data != node.data:
        node.data = bytearray(_torn(bytes(node.data), node.synced_data, chance))
    node.synced_data = bytes(node.data)
    for child in node.names.values():
        _restore(child, chance, seen)


def _torn(content: bytes, synced: bytes | None, chance: random.Random) -> bytes:
    length = chance.randrange(len(content) + 1)
    part = content[:length]
    return chance.choice([content, synced or b"", part, part.ljust(len(content), b"\0")])


class _FileSystem(mfusepy.Operations):  # type: ignore[misc]
    """The disk as libfuse calls it: one call at a time."""

    use_ns = True

    def __init__(self) -> None:
        self._disk = Disk()
        self._syncs_folders = True
        self._open: dict[int, _Node] = {}
        self._handles = itertools.count(1)

    def _opened(self, node: _Node) -> int:
        handle = next(self._handles)
        self._open[handle] = node
        return handle

    # What the tests tell it

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        if name == "user.power-for":
            self._disk.effects_left = int(value)
        elif name == "user.cut":
            self._disk.cut(int(value))
        elif name == "user.settle":
            self._disk.settle()
        elif name == "user.syncs-folders":
            self._syncs_folders = bool(int(value))
        elif name == "user.empty":
            self._disk = Disk()
        else:
            raise OSError(errno.ENOTSUP, name)
        return 0

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        if name == "user.is-off":
            return b"%d" % self._disk.is_off
        if name == "user.effects":
            return b"%d" % self._disk.effects
        raise OSError(errno.ENODATA, name)

    # What programs ask for

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            # The tests reach it while the power is off as well.
            node = self._disk.root
        else:
            node = self._open[fh] if fh is not None else self._disk.find(path)
        mode = stat.S_IFDIR | 0o777 if node.is_folder else stat.S_IFREG | 0o666
        return {
            "st_mode": mode, "st_size": len(node.data), "st_nlink": 1, "st_mtime": node.mtime_ns,
            "st_uid": os.getuid(), "st_gid": os.getgid(),
        }  # fmt: skip

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self._disk.find(path).names]

    def opendir(self, path: str) -> int:
        return self._opened(self._disk.find(path))

    def releasedir(self, path: str, fh: int) -> int:
        return self.release(path, fh)

    def mkdir(self, path: str, mode: int) -> int:
        self._disk.change((*self._disk.place(path), _Node(is_folder=True)))
        return 0

    def rmdir(self, path: str) -> int:
        if self._disk.find(path).names:
            raise OSError(errno.ENOTEMPTY, path)
        return self.unlink(path)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        node = _Node(is_folder=False, synced_data=None)
        self._disk.change((*self._disk.place(path), node))
        return self._opened(node)

    def open(self, path: str, flags: int) -> int:
        return self._opened(self._disk.find(path))

    def release(self, path: str, fh: int) -> int:
        del self._open[fh]
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._disk.require_power()
        return bytes(self._open[fh].data[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._disk.effect()
        node = self._open[fh]
        node.data[offset : offset + len(data)] = data
        node.mtime_ns = time.time_ns()
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._disk.effect()
        node = self._open[fh] if fh is not None else self._disk.find(path)
        node.data = bytearray(node.data[:length].ljust(length, b"\0"))
        return 0

    def link(self, target: str, source: str) -> int:
        folder, name = self._disk.place(target)
        if name in folder.names:
            raise OSError(errno.EEXIST, target)
        self._disk.change((folder, name, self._disk.find(source)))
        return 0

    def unlink(self, path: str) -> int:
        self._disk.find(path)
        self._disk.change((*self._disk.place(path), None))
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        node, source, target = self._disk.find(old), self._disk.place(old), self._disk.place(new)
        if source != target:
            self._disk.change((*target, node), (*source, None))
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._disk.sync_file(self._open[fh])
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        if not self._syncs_folders:
            raise OSError(errno.EINVAL, path)
        self._disk.sync_folder(self._open[fh])
        return 0

    def chmod(self, path: str, mode: int) -> int:
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        self._disk.require_power()
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 20, "f_bavail": 1 << 19,
                "f_bfree": 1 << 19, "f_files": 1 << 20, "f_ffree": 1 << 19}  # fmt: skip


class ForgetfulDisk:
    """The mounted disk, from the outside: `with ForgetfulDisk(mountpoint) as disk`."""

    def __init__(self, mountpoint: Path) -> None:
        self.path = mountpoint

    def __enter__(self) -> ForgetfulDisk:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forgetful", str(self.path)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self.path.is_mount():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                raise RuntimeError("the forgetful disk was not mounted")
            time.sleep(0.02)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        subprocess.run(["fusermount3", "-u", "-z", str(self.path)], check=True)
        try:
            self._process.wait(_START_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()

    def _tell(self, name: str, value: int) -> None:
        os.setxattr(self.path, f"user.{name}", b"%d" % value)

    def power_for(self, effects: int) -> None:
        """The power goes after so many more changes and syncs."""
        self._tell("power-for", effects)

    def cut(self, seed: int) -> None:
        """The power goes now, if it has not gone yet, and comes back."""
        self._tell("cut", seed)

    def settle(self) -> None:
        self._tell("settle", 1)

    def empty(self, *, syncs_folders: bool = True) -> None:
        """Begin anew, with a disk that can sync folders or not."""
        self._tell("empty", 1)
        self._tell("syncs-folders", syncs_folders)

    @property
    def is_off(self) -> bool:
        return os.getxattr(self.path, "user.is-off") == b"1"

    @property
    def effects(self) -> int:
        return int(os.getxattr(self.path, "user.effects"))


if __name__ == "__main__":
    mfusepy.FUSE(
        _FileSystem(), sys.argv[1], foreground=True, nothreads=True, hard_remove=True,
        direct_io=True, attr_timeout=0, entry_timeout=0, negative_timeout=0,
    )  # fmt: skip
