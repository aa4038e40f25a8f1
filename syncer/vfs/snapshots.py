"""The folder `.snapshots` in the mount's root: the whole tree as it was, read-only.

    .snapshots/before-sorting               a named snapshot
    .snapshots/2026-11-22T10-05-00+0100     any moment by its time with its offset
    .snapshots/latest, .snapshots/2 hours ago, .snapshots/4711
                                            other words, as symlinks to the moment's time

`.snapshots` itself is in no listing unless someone wants it, so that `find` and backups of the
mount don't walk through all of history. Its own listing has `latest`, the named snapshots, and each
moment that is kept, in the order of time. Where a collection has a folder of that name of its own,
that one counts.

What is in such a folder never changes, so the kernel may keep it. That is why a time that is still
to come, or within the epoch that is still open, is a symlink as well; and why what is no moment is
EINVAL: the kernel would remember ENOENT for an hour, and a snapshot may get that name meanwhile.

The nodes of then have numbers of their own, above those of now: a file and its past are different
files to `tar` or `cp`, and hard links among them are still seen.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

from xxhash import xxh3_64_intdigest

from syncer import when
from syncer.blocks.store import Blocks
from syncer.errors import MissingError, UsageError
from syncer.metadata.history import History, PastContents
from syncer.metadata.moments import Moments
from syncer.metadata.node import ROOT, Node
from syncer.metadata.tree import Tree
from syncer.vfs import xattrs
from syncer.vfs.caller import SUPERUSER, Caller
from syncer.vfs.calls import Caching, Target, Vfs
from syncer.vfs.files import Files
from syncer.vfs.states import PREFIX, States

NAME = b".snapshots"
_PATH = b"/" + NAME
_BELOW_PATH = _PATH + b"/"
#: Numbers of nodes of the present have 63 bits.
_PAST = 1 << 63
_NUMBER = struct.Struct("<QQ")
_MAX_FIXED = 1000
#: Twice as many at most. `find` reads 10,000 names before it looks at the first of them.
_MAX_KNOWN = 10_000
_LINK_MODE = stat.S_IFLNK | 0o777
_FOLDER_MODE = stat.S_IFDIR | 0o555


@dataclass(frozen=True)
class Place:
    """What a path in `.snapshots` leads to."""

    node: Node
    """As it was; of `.snapshots` and its symlinks, one made up."""
    epoch: int = 0
    """0: it is no node of then."""

    @property
    def shown(self) -> Node:
        """The node as callers see it."""
        return _shown(self.node, self.epoch)


def _shown(node: Node, epoch: int) -> Node:
    """A node of then, with a number that no node of another moment has.

    A hash in place of a table: two of ten million nodes have the same number in one case of
    hundred thousand, and then `du` counts one file less.
    """
    number = _PAST | xxh3_64_intdigest(_NUMBER.pack(node.id, epoch))
    # As node.changed(id=number), which costs a listing as much as all the rest.
    return Node._make((number, *node[1:]))


class SnapshotVfs(Vfs):
    """The file system with `.snapshots`."""

    def __init__(
        self,
        tree: Tree,
        blocks: Blocks,
        files: Files,
        history: History,
        moments: Moments,
        states: States,
    ) -> None:
        super().__init__(tree, blocks, files)
        self._history = history
        self._moments = moments
        self._states = states
        #: Whether the root's listing has `.snapshots`.
        self.is_listed = False
        #: Epochs of moments that are folders; every path below one asks for it.
        self._fixed: dict[bytes, int] = {}
        #: Nodes of then that were met lately: (epoch, folder) -> name -> node. What was found stays
        #: true.
        self._known: dict[tuple[int, int], dict[bytes, Node]] = {}
        self._known_count = 0
        #: Those met before them.
        self._known_before: dict[tuple[int, int], dict[bytes, Node]] = {}
        #: Whether the collection has a `.snapshots` of its own, as of a count of changes.
        self._is_hidden = (-1, False)

    # Paths

    def _is_past(self, target: Target) -> bool:
        if isinstance(target, int):
            return self.files.past_node(target) is not None
        if not target.startswith(_PATH):
            return False  # nearly all
        is_below = target == _PATH or target.startswith(_BELOW_PATH)
        return is_below and not self._is_name_taken()

    def _is_name_taken(self) -> bool:
        changes, is_taken = self._is_hidden
        if changes != self._tree.changes:
            # Before the look, so that a change after it is noticed.
            changes = self._tree.changes
            is_taken = self._tree.lookup(ROOT, NAME) is not None
            self._is_hidden = changes, is_taken
        return is_taken

    def _place(self, path: bytes) -> Place:
        """What a path in `.snapshots` leads to; ENOENT, ENOTDIR, EINVAL."""
        _, *words = (part for part in path.split(b"/") if part)
        if not words:
            return Place(self._made_up(_FOLDER_MODE, None))
        if len(words) == 1:
            return self._moment(words[0])
        # The kernel follows a symlink itself, but knows a moment's name for an hour as what it was.
        return self._descend(words[1:], self._epoch(words[0]))

    def _descend(self, words: Sequence[bytes], epoch: int) -> Place:
        """What these names led to, from the root of then on."""
        node = self._recall(epoch, 0, b"") or self._met(epoch, 0, b"", ROOT)
        for word in words:
            found = self._recall(epoch, node.id, word)
            if found is None:
                number = self._history.lookup(node.id, word, epoch)
                if number is None:
                    raise _error(errno.ENOENT if node.is_dir else errno.ENOTDIR)
                found = self._met(epoch, node.id, word, number)
            node = found
        return Place(node, epoch)

    def _recall(self, epoch: int, folder: int, name: bytes) -> Node | None:
        for known in (self._known, self._known_before):
            entries = known.get((epoch, folder))
            if entries is not None and (node := entries.get(name)) is not None:
                return node
        return None

    def _met(self, epoch: int, folder: int, name: bytes, number: int) -> Node:
        node = self._history.node(number, epoch)
        if node is None:
            raise _error(errno.ENOENT)
        self._remember(epoch, folder, [(name, node)])
        return node

    def _remember(self, epoch: int, folder: int, entries: Sequence[tuple[bytes, Node]]) -> None:
        # The kernel asks again for the names in a listing, for most of them one by one.
        if self._known_count >= _MAX_KNOWN:
            self._known_before, self._known, self._known_count = self._known, {}, 0
        self._known.setdefault((epoch, folder), {}).update(entries)
        self._known_count += len(entries)

    def _moment(self, word: bytes) -> Place:
        """The top folder of then, or the symlink to its time."""
        epoch = self._epoch(word)
        if word not in self._fixed:
            return Place(self._made_up(_LINK_MODE, self._moments.written(epoch).encode()))
        root = self._history.node(ROOT, epoch)
        if root is None:
            raise _error(errno.EINVAL)
        return Place(root, epoch)

    def _epoch(self, word: bytes) -> int:
        if (known := self._fixed.get(word)) is not None:
            return known
        text = os.fsdecode(word)
        try:
            epoch = self._moments.find(text)
            if self._moments.is_fixed(text):
                if len(self._fixed) >= _MAX_FIXED:
                    self._fixed = {}
                self._fixed[word] = epoch
            return epoch
        except (UsageError, MissingError) as error:
            raise _error(errno.EINVAL) from error

    def _made_up(self, mode: int, target: bytes | None) -> Node:
        root = self._node(ROOT)
        size = len(target) if target is not None else 0
        nlink = 2 if stat.S_ISDIR(mode) else 1
        number = zlib.crc32(target or b"")
        return root._replace(id=number, mode=mode, nlink=nlink, size=size, target=target)

    def _walk(self, path: bytes) -> Node:
        return self._place(path).shown if self._is_past(path) else super()._walk(path)

    def _find(self, target: Target) -> Node:
        past = self.files.past_node(target) if isinstance(target, int) else None
        return past or super()._find(target)

    # Reading

    def opendir(self, path: bytes) -> int:
        if not self._is_past(path):
            if self.is_listed and not path.strip(b"/"):
                return self.directories.open(ROOT, self._root_entries)
            return super().opendir(path)
        place = self._place(path)
        if not place.node.is_dir:
            raise _error(errno.ENOTDIR)

        def entries(after: bytes, limit: int) -> Sequence[tuple[bytes, Node]]:
            if not place.epoch:
                return self._moment_entries(after, limit)
            found = self._history.entries(place.node.id, after, limit, place.epoch)
            self._remember(place.epoch, place.node.id, found)
            return [(name, _shown(node, place.epoch)) for name, node in found]

        return self.directories.open_past(entries, place.shown)

    def _moment_entries(self, after: bytes, limit: int) -> list[tuple[bytes, Node]]:
        found: list[tuple[bytes, Node]] = []
        seen = 0
        # A snapshot can't have the name of a time, so the last name tells where to go on.
        if when.is_written(os.fsdecode(after)):
            seen = self._moments.find(os.fsdecode(after))
        else:
            names = [b"latest", *(os.fsencode(named.name) for named in self._moments.named())]
            wanted = sorted(name for name in names if name > after)[:limit]
            found = [(name, self._moment(name).shown) for name in wanted]
        while len(found) < limit:
            listed = self._moments.listed(seen, limit - len(found))
            if not listed:
                break
            for text, seen in listed:
                root = self._history.node(ROOT, seen)
                # It may have been pruned just now.
                if root is not None:
                    found.append((text.encode(), Place(root, seen).shown))
        return found

    def _root_entries(self, after: bytes, limit: int) -> Sequence[tuple[bytes, Node]]:
        rows = self._tree.entries(ROOT, after, limit)
        is_here = after < NAME and (len(rows) < limit or NAME < rows[-1][0])
        if not is_here or self._is_name_taken():
            return rows
        return sorted([*rows, (NAME, self._place(_PATH).shown)], key=itemgetter(0))[:limit]

    def open(self, path: bytes, flags: int, caller: Caller = SUPERUSER) -> int:
        if not self._is_past(path):
            return super().open(path, flags, caller)
        self.hidden.settle()
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise _error(errno.EROFS)
        place = self._place(path)
        if not place.node.is_file:
            raise _error(errno.EISDIR if place.node.is_dir else errno.ELOOP)
        contents = PastContents(self._history, place.epoch)
        return self.files.open_past(place.node, place.shown, contents)

    def caching(self, handle: int) -> Caching:
        return Caching.KEEP if self._is_past(handle) else super().caching(handle)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        if not self._is_past(path):
            if name.startswith(PREFIX):
                return self._states.get(path, self._walk(path), name)
            return super().getxattr(path, name)
        value = self._past_xattrs(path).get(name)
        if value is None:
            raise self._xattrs.absent(name)
        return value

    def listxattr(self, path: bytes, caller: Caller = SUPERUSER) -> list[bytes]:
        if not self._is_past(path):
            return super().listxattr(path, caller)
        return xattrs.shown(list(self._past_xattrs(path)), caller)

    def _past_xattrs(self, path: bytes) -> dict[bytes, bytes]:
        place = self._place(path)
        return self._history.xattrs(place.node.id, place.epoch) if place.epoch else {}

    # Changing: nothing of the past

    def _refuse_past(self, *targets: Target) -> None:
        if any(map(self._is_past, targets)):
            raise _error(errno.EROFS)

    def _parent(self, path: bytes) -> tuple[Node, bytes]:
        # Of all calls that make, move or remove a name.
        self._refuse_past(path)
        return super()._parent(path)

    def chmod(self, target: Target, mode: int) -> None:
        self._refuse_past(target)
        super().chmod(target, mode)

    def chown(self, target: Target, uid: int, gid: int) -> None:
        self._refuse_past(target)
        super().chown(target, uid, gid)

    def utimens(self, target: Target, atime_ns: int | None, mtime_ns: int | None) -> None:
        self._refuse_past(target)
        super().utimens(target, atime_ns, mtime_ns)

    def link(self, old: bytes, new: bytes) -> None:
        self._refuse_past(old)
        super().link(old, new)

    def truncate(self, target: Target, size: int, caller: Caller = SUPERUSER) -> None:
        self._refuse_past(target)
        super().truncate(target, size, caller)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        self._refuse_past(path)
        if name.startswith(PREFIX):
            # A pin is this machine's own business, so it may be set on a follower, too.
            self._states.set(self._walk(path), name, value, flags)
        else:
            super().setxattr(path, name, value, flags)

    def removexattr(self, path: bytes, name: bytes) -> None:
        self._refuse_past(path)
        if name.startswith(PREFIX):
            self._states.remove(self._walk(path), name)
        else:
            super().removexattr(path, name)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
