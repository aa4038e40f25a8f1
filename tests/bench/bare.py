"""What Python behind libfuse costs at least: `python -m tests.bench.bare FOLDER MOUNTPOINT`.

A file system through the same binding and with the same mount options as syncer's, which does the
least that its kind can. Names and attributes are objects in memory; so are small contents, and
large ones a local file each. Each change goes to a log by one write(2), so that a killed process
would lose nothing; nobody reads it, but what is unmounted in order is there again. There is no
history, nothing is hashed or checked, nothing has a limit, and nobody uploads. So no file system in
Python through this binding is much quicker, and what of a goal lies beyond it is out of reach.
"""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import resource
import stat
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syncer.binding import serve
from syncer.codec import BLOCK_BYTES
from syncer.libfuse import MountOptions
from syncer.metadata.node import ROOT, Node
from syncer.mount import CODEC, Operations
from syncer.process import memory, mounts
from syncer.vfs.calls import Caching

#: As many bytes of a file are kept in memory: what syncer may at most keep in its database.
_SMALL_BYTES = 1 << 16
_POLL_SECONDS = 0.01


@dataclass(slots=True)
class _File:
    """A file or directory; `names` are a directory's, `content` a file's while it is small."""

    node: Node
    names: dict[bytes, _File] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)
    #: The local file of a large content.
    place: str = ""
    descriptor: int = -1
    #: Written to since the last `flush`.
    is_dirty: bool = False

    def __getstate__(self) -> tuple[Any, ...]:
        return self.node, self.names, self.content, self.place

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.node, self.names, self.content, self.place = state
        self.descriptor = os.open(self.place, os.O_RDWR) if self.place else -1
        self.is_dirty = False


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Bare(Operations):
    """Files and directories without hard links, symlinks or attributes of users' own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(time.time_ns())
        self._state = folder / "state"
        if self._state.exists():
            self._root: _File = pickle.loads(self._state.read_bytes())
        else:
            self._root = self._new(stat.S_IFDIR | 0o755, ROOT)
        self._open: dict[int, _File] = {}
        self._listings: dict[int, list[tuple[bytes, _File]]] = {}
        self._lock = threading.Lock()
        self._log = os.open(folder / "changes", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def save(self) -> None:
        """Keep everything for the next mount."""
        self._state.write_bytes(pickle.dumps(self._root))

    def _note(self, *change: object) -> None:
        os.write(self._log, pickle.dumps(change))

    def _ignore(self, *arguments: Any) -> None:
        pass

    set_cache_dropper = set_abandoned_probe = set_asked = start = _ignore
    rewind = delivered = fsyncdir = _ignore

    def stale_paths(self) -> list[bytes]:
        return []

    def now_ns(self) -> int:
        return time.time_ns()

    def _new(self, mode: int, number: int) -> _File:
        now = time.time_ns()
        nlink = 2 if stat.S_ISDIR(mode) else 1
        return _File(Node(number, 1, mode, 0, 0, 0, nlink, 0, now, now, now, now, None))

    def _find(self, target: bytes | int) -> _File:
        if isinstance(target, int):
            return self._open[target]
        found = self._root
        try:
            for part in target.split(b"/"):
                if part:
                    found = found.names[part]
        except KeyError:
            raise _error(errno.ENOENT) from None
        return found

    def _parent(self, path: bytes) -> tuple[_File, bytes]:
        folder, _, name = path.rpartition(b"/")
        return self._find(folder), name

    def _add(self, path: bytes, mode: int) -> tuple[int, _File]:
        folder, name = self._parent(path)
        number = next(self._numbers)
        folder.names[name] = file = self._new(mode, number)
        self._note("add", path, file.node)
        return number, file

    def attributes(self, target: bytes | int) -> Node:
        return self._find(target).node

    def create_file(self, path: bytes, mode: int, flags: int) -> int:
        number, self._open[number] = self._add(path, mode)
        return number

    def mkdir(self, path: str, mode: int) -> None:
        self._add(path.encode(CODEC), stat.S_IFDIR | mode)

    def open_file(self, path: bytes, flags: int) -> tuple[int, Caching]:
        handle = next(self._numbers)
        self._open[handle] = self._find(path)
        return handle, Caching.KEEP

    def flush(self, path: str | None, handle: int) -> None:
        file = self._open[handle]
        if file.is_dirty:
            file.is_dirty = False
            self._note("write", file.node, bytes(file.content))

    def release(self, path: str | None, handle: int) -> None:
        del self._open[handle]

    def fsync(self, path: str | None, datasync: int, handle: int) -> None:
        file = self._open[handle]
        if file.descriptor >= 0:
            os.fsync(file.descriptor)

    def read_into(self, handle: int, target: memoryview, offset: int) -> int:
        file = self._open[handle]
        if file.descriptor >= 0:
            return os.preadv(file.descriptor, [target], offset)
        piece = file.content[offset : offset + len(target)]
        target[: len(piece)] = piece
        return len(piece)

    read_pages = read_into

    def write_from(self, handle: int, data: memoryview, offset: int, appends: bool) -> int:
        return self.take_pages(handle, data, offset)

    def take_pages(self, handle: int, data: memoryview, offset: int) -> int:
        file = self._open[handle]
        end = offset + len(data)
        # The kernel hands over several pieces of a file at once.
        with self._lock:
            file.is_dirty = True
            if end > file.node.size:
                self._resize(file, end)
            if file.descriptor < 0 and end > _SMALL_BYTES:
                self._move_to_disk(file)
            if file.descriptor < 0:
                file.content.extend(bytes(max(0, offset - len(file.content))))
                file.content[offset:end] = data
                return len(data)
        return os.pwrite(file.descriptor, data, offset)

    def _move_to_disk(self, file: _File) -> None:
        file.place = str(self._folder / f"{file.node.id:x}")
        file.descriptor = os.open(file.place, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.pwrite(file.descriptor, file.content, 0)
        file.content.clear()

    def _resize(self, file: _File, size: int) -> None:
        file.node = file.node._replace(size=size, blocks=-(-size // BLOCK_BYTES))

    def set_size(self, target: bytes | int, size: int) -> None:
        file = self._find(target)
        if file.descriptor >= 0:
            os.ftruncate(file.descriptor, size)
        else:
            file.content[size:] = bytes(max(0, size - len(file.content)))
        self._resize(file, size)
        self._note("resize", file.node)

    def set_mode(self, target: bytes | int, mode: int) -> None:
        file = self._find(target)
        file.node = file.node._replace(mode=stat.S_IFMT(file.node.mode) | stat.S_IMODE(mode))
        self._note("change", file.node)

    def set_owner(self, target: bytes | int, uid: int, gid: int) -> None:
        pass  # Everything is root's, who runs the bench.

    def set_times(self, target: bytes | int, atime_ns: int | None, mtime_ns: int | None) -> None:
        file = self._find(target)
        node = file.node
        file.node = node._replace(
            atime_ns=node.atime_ns if atime_ns is None else atime_ns,
            mtime_ns=node.mtime_ns if mtime_ns is None else mtime_ns,
        )
        self._note("change", file.node)

    def move(self, old: bytes, new: bytes, flags: int) -> None:
        source, name = self._parent(old)
        target, new_name = self._parent(new)
        target.names[new_name] = source.names.pop(name)
        self._note("move", old, new)

    def unlink(self, path: str) -> None:
        folder, name = self._parent(path.encode(CODEC))
        file = folder.names.pop(name)
        self._note("remove", path)
        if file.descriptor >= 0:
            os.close(file.descriptor)
            os.unlink(file.place)

    def rmdir(self, path: str) -> None:
        folder, name = self._parent(path.encode(CODEC))
        if folder.names[name].names:
            raise _error(errno.ENOTEMPTY)
        del folder.names[name]
        self._note("remove", path)

    def opendir(self, path: str) -> int:
        handle = next(self._numbers)
        self._listings[handle] = list(self._find(path.encode(CODEC)).names.items())
        return handle

    def releasedir(self, path: str | None, handle: int) -> None:
        del self._listings[handle]

    def is_looked_at(self, handle: int, looks: int) -> bool:
        return False

    def entries(self, handle: int, offset: int, limit: int) -> tuple[int, list[tuple[bytes, Node]]]:
        listing = self._listings[handle]
        return offset, [(name, file.node) for name, file in listing[offset : offset + limit]]

    def dot_entries(self, handle: int) -> tuple[Node, Node]:
        return self._root.node, self._root.node

    def _has_none(self, *arguments: Any) -> Any:
        # The kernel then does not ask again.
        raise _error(errno.EOPNOTSUPP)

    getxattr = setxattr = removexattr = listxattr = _has_none
    readlink = symlink = link = mknod = seek = copy = allocate = _has_none

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 30, "f_bfree": 1 << 30}


def main() -> None:
    folder, mountpoint = Path(sys.argv[1]), sys.argv[2]
    # A descriptor for each large file.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    memory.keep_freed_memory()
    bare = Bare(folder)
    options = MountOptions("bare", subtype="bare")
    # libfuse runs in a thread, as in syncer's process.
    thread = threading.Thread(target=serve, args=(3, lambda caller: bare, mountpoint, options))
    thread.start()
    while thread.is_alive() and not os.path.ismount(mountpoint):
        time.sleep(_POLL_SECONDS)
    mounts.tune(os.stat(mountpoint).st_dev)
    thread.join()
    bare.save()


if __name__ == "__main__":
    main()
