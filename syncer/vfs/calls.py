"""What each file system call means: POSIX semantics over the tree and the open files.

Paths are bytes from the mount's root, handles are small integers. A call that fails raises
OSError with the errno that Linux gives for it, or a SyncerError from below, which `mount`
translates. Permissions are the kernel's business (mount option default_permissions).
"""

from __future__ import annotations

import enum
import errno
import os
import stat
from collections.abc import Callable

from syncer.blocks.store import Blocks
from syncer.codec import MAX_FILE_BYTES
from syncer.metadata.node import ROOT, Node
from syncer.metadata.tree import Tree
from syncer.vfs import privileges, xattrs
from syncer.vfs.caller import SUPERUSER, Caller
from syncer.vfs.directories import Directories
from syncer.vfs.files import Files
from syncer.vfs.hidden import HiddenFiles
from syncer.vfs.paths import Paths
from syncer.vfs.xattrs import Xattrs

PATH_MAX_BYTES = 4096
LINK_MAX = 65000
_MAX_TIME_NS = (1 << 63) - 1
#: rename flags of Linux
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class Caching(enum.Enum):
    """The kernel's page cache of one open file."""

    KEEP = enum.auto()
    """What it has is true: all changes pass through the kernel."""
    FRESH = enum.auto()
    """Another machine may have changed the file since; begin anew with each open."""
    NONE = enum.auto()
    """The file has several names, which are separate files, with caches of their own, to it."""


#: What a call is about: a path, or the handle of an open file.
Target = bytes | int


class Vfs:
    """The file system. All methods may be called from many threads.

    `files.lock` is taken before the database's lock, and neither is held while a call waits.
    """

    def __init__(self, tree: Tree, blocks: Blocks, files: Files) -> None:
        self._tree = tree
        self._blocks = blocks
        self.files = files
        self.directories = Directories(tree, files)
        self.hidden = HiddenFiles(tree, blocks, files)
        self._paths = Paths(tree, self.hidden)
        self._xattrs = Xattrs(tree)
        #: A reason why nothing can be changed; None: everything can.
        self.read_only: str | None = None

    # Paths

    def _walk(self, path: bytes) -> Node:
        """The node at `path`; ENOENT, ENOTDIR."""
        return self._paths.walk(path)

    def _node(self, number: int) -> Node:
        return self._paths.node(number)

    def _parent(self, path: bytes) -> tuple[Node, bytes]:
        """The directory that holds the last part of `path`, and that part."""
        return self._paths.parent(path)

    def _free_place(self, path: bytes) -> tuple[Node, bytes]:
        """As `_parent`, where the name must be free."""
        parent, name = self._parent(path)
        if self._tree.lookup(parent.id, name) is not None:
            raise _error(errno.EEXIST)
        return parent, name

    def _begin_change(self) -> None:
        self.hidden.settle()
        if self.read_only is not None:
            raise _error(errno.EROFS)

    # Attributes

    def _find(self, target: Target) -> Node:
        """The node of a path, or of a handle."""
        if isinstance(target, int):
            return self._node(self.files.node_id(target))
        return self._walk(target)

    def getattr(self, target: Target) -> Node:
        """The attributes, with what is only buffered so far."""
        self.hidden.replacing.looked_up(target)
        node = self.files.overlaid(self._find(target))
        if node.nlink and self.hidden.is_counted(target, node.id):
            node = node.changed(nlink=node.nlink + 1)
        return node

    def chmod(self, target: Target, mode: int) -> None:
        self._begin_change()
        self._set(target, lambda node: {"mode": stat.S_IFMT(node.mode) | stat.S_IMODE(mode)})

    def chown(self, target: Target, uid: int, gid: int) -> None:
        """Change owner and group; -1 leaves one as it is."""
        self._begin_change()
        self._set(
            target,
            lambda node: {
                "mode": node.mode if node.is_dir else privileges.without_privileges(node.mode),
                "uid": node.uid if uid == -1 else uid,
                "gid": node.gid if gid == -1 else gid,
            },
        )

    def utimens(self, target: Target, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set times in ns since 1970; None leaves one as it is. The year 2262 is the last."""
        self._begin_change()
        atime_ns, mtime_ns = _storable(atime_ns), _storable(mtime_ns)
        # Only the kernel's write-back names a handle here: it is part of the writes.
        if isinstance(target, int) and atime_ns is None and mtime_ns is not None:
            self.files.note_write_time(target, mtime_ns)
            return

        def times(node: Node) -> dict[str, int]:
            return {
                "atime_ns": node.atime_ns if atime_ns is None else atime_ns,
                "mtime_ns": node.mtime_ns if mtime_ns is None else mtime_ns,
            }

        if mtime_ns is not None:
            self.files.forget_write_time(self._find(target).id)
        # Not before: that may have written times. After each rename, the kernel tells times that
        # are true already: no transaction for those.
        node = self._find(target)
        if self._changed(node, times) != node:
            self._set(target, times)

    def _set(self, target: Target, values: Callable[[Node], dict[str, int]]) -> None:
        """Change attributes, and with them ctime."""
        with self._tree.transaction():
            node = self._find(target)
            changed = self._changed(node, values)
            if changed != node:
                self._tree.save(changed)

    def _changed(self, node: Node, values: Callable[[Node], dict[str, int]]) -> Node:
        return node.changed(ctime_ns=self._tree.now_ns(), **values(node))

    # Making and removing

    def _owner(self, parent: Node, caller: Caller, mode: int) -> tuple[int, int]:
        """Group and mode of a new node: a directory's set-group-id bit is handed on."""
        if parent.mode & stat.S_ISGID:
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
            return parent.gid, mode
        return caller.gid, mode

    def mknod(self, path: bytes, mode: int, rdev: int, caller: Caller) -> Node:
        """Make a file, fifo, socket or device."""
        self._begin_change()
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            raise _error(errno.EINVAL)
        with self._tree.transaction():
            parent, name = self._free_place(path)
            gid, mode = self._owner(parent, caller, mode)
            node = self._tree.create(parent, name, mode, caller.uid, gid, rdev=rdev)
            self._blocks.undo.note_new(node.id)
            return node

    def mkdir(self, path: bytes, mode: int, caller: Caller) -> None:
        self._begin_change()
        with self._tree.transaction():
            parent, name = self._free_place(path)
            if parent.nlink >= LINK_MAX:
                raise _error(errno.EMLINK)
            gid, mode = self._owner(parent, caller, stat.S_IFDIR | stat.S_IMODE(mode))
            self._tree.create(parent, name, mode, caller.uid, gid)

    def symlink(self, target: bytes, path: bytes, caller: Caller) -> None:
        self._begin_change()
        if not target:
            raise _error(errno.ENOENT)
        if len(target) >= PATH_MAX_BYTES:
            raise _error(errno.ENAMETOOLONG)
        with self._tree.transaction():
            parent, name = self._free_place(path)
            gid, mode = self._owner(parent, caller, stat.S_IFLNK | 0o777)
            self._tree.create(parent, name, mode, caller.uid, gid, target=target)

    def readlink(self, path: bytes) -> bytes:
        target = self._walk(path).target
        if target is None:
            raise _error(errno.EINVAL)
        return target

    def link(self, old: bytes, new: bytes) -> None:
        """Give a file a second name."""
        self._begin_change()
        with self._tree.transaction():
            node = self._walk(old)
            if node.is_dir:
                raise _error(errno.EPERM)
            if node.nlink >= LINK_MAX:
                raise _error(errno.EMLINK)
            parent, name = self._free_place(new)
            self._tree.link(node.id, parent.id, name)

    def unlink(self, path: bytes) -> None:
        self._begin_change()
        parent, name = self._parent(path)
        if self.hidden.reveal(parent.id, name):
            return
        with self.files.lock, self._tree.transaction():
            node = self._existing(parent, name)
            if node.is_dir:
                raise _error(errno.EISDIR)
            self._drop_name(parent, name, node)
        self.files.forget(node.id)

    def rmdir(self, path: bytes) -> None:
        self._begin_change()
        with self._tree.transaction():
            parent, name = self._parent(path)
            node = self._existing(parent, name)
            if not node.is_dir:
                raise _error(errno.ENOTDIR)
            if not self._tree.is_empty(node.id):
                raise _error(errno.ENOTEMPTY)
            self._tree.unlink(parent.id, name, keep=False)

    def _existing(self, parent: Node, name: bytes) -> Node:
        number = self._tree.lookup(parent.id, name)
        if number is None:
            raise _error(errno.ENOENT)
        return self._node(number)

    def _drop_name(self, parent: Node, name: bytes, node: Node) -> None:
        """Take a name away; the file stays as an orphan while it is open. Holds `_lock`."""
        is_open = self.files.is_open(node.id)
        self._blocks.unname(self._tree.unlink(parent.id, name, keep=is_open))

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        """Move a name, replacing what is in its new place, in one step."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == 3:
            raise _error(errno.EINVAL)
        if not flags and self.hidden.is_hiding(old, new) and self._hide(old, new):
            return
        if self.read_only is not None:
            raise _error(errno.EROFS)
        if not flags:
            self._before_rename(old, new)
        with self.files.lock, self._tree.transaction():
            # In the same transaction as the rename whose first half it is.
            self.hidden.settle_removal()
            old_parent, old_name = self._parent(old)
            new_parent, new_name = self._parent(new)
            node = self._existing(old_parent, old_name)
            if node.is_dir and self._is_within(new_parent.id, node.id):
                raise _error(errno.EINVAL)
            number = self._tree.lookup(new_parent.id, new_name)
            if flags & RENAME_EXCHANGE:
                self._check_exchange(old_parent, node, number)
                if number != node.id:
                    self._tree.exchange(old_parent.id, old_name, new_parent.id, new_name)
                return
            if number is not None:
                if flags & RENAME_NOREPLACE:
                    raise _error(errno.EEXIST)
                if number == node.id:
                    return
                self._make_way(new_parent, new_name, node, self._node(number))
            self._tree.rename(old_parent.id, old_name, new_parent.id, new_name)
        self.hidden.renamed(new)
        if number is not None:
            self.files.forget(number)

    def _before_rename(self, old: bytes, new: bytes) -> None:
        try:
            place = self._parent(new)
        except OSError:
            return  # The rename itself tells what is wrong, with the old name first.
        if self.hidden.may_replace(place, new):
            self.hidden.before_rename(self._parent(old), place)

    def _check_exchange(self, old_parent: Node, node: Node, number: int | None) -> None:
        """Whether a name of `node` may be swapped with one of node `number`."""
        if number is None:
            raise _error(errno.ENOENT)
        if self._node(number).is_dir and self._is_within(old_parent.id, number):
            raise _error(errno.EINVAL)

    def _hide(self, old: bytes, hidden: bytes) -> bool:
        """libfuse removes or replaces an open file; see `hidden`. False: it isn't open."""
        self._begin_change()
        with self.files.lock, self._tree.transaction():
            parent, name = self._parent(old)
            node = self._existing(parent, name)
            if not self.hidden.is_open(node.id):
                return False
            hidden_parent, hidden_name = self._parent(hidden)
            self.hidden.hide(node, (parent.id, name), (hidden_parent.id, hidden_name))
            return True

    def _make_way(self, parent: Node, name: bytes, node: Node, target: Node) -> None:
        """Remove what a rename replaces, if it may."""
        if target.is_dir:
            if not node.is_dir:
                raise _error(errno.EISDIR)
            if not self._tree.is_empty(target.id):
                raise _error(errno.ENOTEMPTY)
            self._tree.unlink(parent.id, name, keep=False)
            return
        if node.is_dir:
            raise _error(errno.ENOTDIR)
        self._drop_name(parent, name, target)

    def _is_within(self, directory: int, ancestor: int) -> bool:
        """Whether `directory` is `ancestor` or lies below it."""
        while directory != ancestor:
            if directory == ROOT:
                return False
            names = self._tree.names_of(directory)
            if not names:
                return False
            directory = names[0][0]
        return True

    # Directories

    def opendir(self, path: bytes) -> int:
        """Open a directory; returns a handle for `directories`."""
        node = self._walk(path)
        if not node.is_dir:
            raise _error(errno.ENOTDIR)
        return self.directories.open(node.id)

    # Opening, closing

    def create(self, path: bytes, mode: int, flags: int, caller: Caller) -> int:
        """Make a file and open it. A path that exists meanwhile is opened, as O_CREAT does."""
        try:
            node = self.mknod(path, stat.S_IFREG | stat.S_IMODE(mode), 0, caller)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            return self.open(path, flags, caller)
        return self.files.open(node, writable=True)

    def open(self, path: bytes, flags: int, caller: Caller = SUPERUSER) -> int:
        """Open a file; returns a handle for `files`."""
        self.hidden.settle()
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if (writable or flags & os.O_TRUNC) and self.read_only is not None:
            raise _error(errno.EROFS)
        with self.files.lock:
            node = self._walk(path)
            if node.is_dir:
                raise _error(errno.EISDIR)
            handle = self.files.open(node, writable=writable)
        self.hidden.replacing.opened()
        if flags & os.O_TRUNC:
            try:
                self._drop_privileges(node.id, caller)
                self.files.truncate(handle, 0)
            except BaseException:
                # Nobody else knows the handle.
                self.release(handle)
                raise
        return handle

    def caching(self, handle: int) -> Caching:
        """What the kernel may do with its cache of a file that was just opened."""
        if self.files.is_known_twice(handle):
            self.files.make_direct(handle)
            return Caching.NONE
        return Caching.KEEP if self.read_only is None else Caching.FRESH

    def write(
        self,
        handle: int,
        data: memoryview,
        offset: int,
        caller: Callable[[], Caller] = lambda: SUPERUSER,
        *,
        appends: bool = False,
        gathered: bool = False,
    ) -> int:
        """Write to an open file; returns len(data). For `gathered` see `Files.write`."""
        if self.read_only is not None:
            raise _error(errno.EROFS)
        if offset + len(data) > MAX_FILE_BYTES:
            raise _error(errno.EFBIG)
        begins, number = self.files.begins_writing(handle), self.files.node_id(handle)
        if begins or privileges.lends(self._tree.node(number)):
            self._drop_privileges(number, caller())
        return self.files.write(handle, data, offset, appends=appends, gathered=gathered)

    def _drop_privileges(self, number: int, caller: Caller) -> None:
        privileges.drop(self._tree, self._xattrs, number, caller)

    def truncate(self, target: Target, size: int, caller: Caller = SUPERUSER) -> None:
        self._begin_change()
        if size > MAX_FILE_BYTES:
            raise _error(errno.EFBIG)
        self._drop_privileges(self._find(target).id, caller)
        if isinstance(target, int):
            self.files.truncate(target, size)
            return
        handle = self.open(target, os.O_WRONLY, caller)
        try:
            self.files.truncate(handle, size)
        finally:
            self.release(handle)

    def allocate(
        self, handle: int, mode: int, offset: int, length: int, caller: Caller = SUPERUSER
    ) -> None:
        """fallocate(2)."""
        self._begin_change()
        if offset + length > MAX_FILE_BYTES:
            raise _error(errno.EFBIG)
        self._drop_privileges(self.files.node_id(handle), caller)
        self.files.allocate(handle, mode, offset, length)

    def copy(
        self, source: int, offset: int, target: int, position: int, length: int, caller: Caller
    ) -> int:
        """copy_file_range(2); returns how many bytes were copied."""
        self._begin_change()
        if position + length > MAX_FILE_BYTES:
            raise _error(errno.EFBIG)
        self._drop_privileges(self.files.node_id(target), caller)
        return self.files.copy(source, offset, target, position, length)

    def release(self, handle: int) -> None:
        """The last descriptor of a handle is closed."""
        number = self.files.node_id(handle)
        if self.files.release(handle):
            self.hidden.closed(number)

    # Extended attributes

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        return self._xattrs.get(self._walk(path), name)

    def listxattr(self, path: bytes, caller: Caller = SUPERUSER) -> list[bytes]:
        return xattrs.shown(self._xattrs.names(self._walk(path)), caller)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        self._begin_change()
        with self._tree.transaction():
            self._xattrs.set(self._walk(path), name, value, flags)

    def removexattr(self, path: bytes, name: bytes) -> None:
        self._begin_change()
        with self._tree.transaction():
            self._xattrs.remove(self._walk(path), name)

    # The whole

    def take_stale_paths(self) -> list[bytes]:
        """Paths under which the kernel knows something that is no longer true."""
        return self._tree.take_stale_paths()

    def totals(self) -> tuple[int, int]:
        """(nodes, bytes of files)."""
        return self._tree.totals()


def _storable(time_ns: int | None) -> int | None:
    """A time as the database can hold it: 64 bits of nanoseconds."""
    return None if time_ns is None else max(-_MAX_TIME_NS, min(time_ns, _MAX_TIME_NS))


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
