"""Open files: the table of handles, and what reading, writing, flushing and closing mean."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from syncer.blocks.heads import HEAD_BYTES
from syncer.blocks.store import Blocks
from syncer.codec import BLOCK_BYTES, HOLE
from syncer.errors import AbandonedError, CorruptError, MissingError, SyncerError
from syncer.metadata.contents import Contents
from syncer.metadata.node import Node
from syncer.metadata.tree import Tree
from syncer.vfs import ranges
from syncer.vfs.buffers import Shared
from syncer.vfs.closings import Closings
from syncer.vfs.foretell import Ask, Foretelling
from syncer.vfs.openfile import OpenFile
from syncer.vfs.readahead import ReadAhead

log = logging.getLogger(__name__)

_DAY_NS = 86_400 * 10**9
#: Patches become blocks when they are older than this.
_PATCH_NS = 10 * 10**9
#: Files without a good copy that are told of.
_UNREADABLE_FILES = 100


@dataclass
class _Handle:
    file: OpenFile
    read_ahead: ReadAhead
    #: Of a file of another moment: its node, as callers see it. The file is then this handle's own.
    past: Node | None = None
    is_writable: bool = False
    was_read: bool = False
    was_written: bool = False
    is_direct: bool = False
    """The kernel passes each read and write on, and keeps nothing of them."""


class Files:
    """All open files. Safe for use from several threads.

    `lock` guards the tables of files and handles, and is taken before the database's lock. An
    OpenFile's own lock, which may be held across a fetch, is never taken under it.
    """

    def __init__(
        self,
        tree: Tree,
        contents: Contents,
        blocks: Blocks,
        *,
        read_ahead: Ask,
        max_read_ahead_bytes: int,
        inline_limit_bytes: int,
        inline_total_bytes: int,
        update_atime: bool = True,
    ) -> None:
        self._tree = tree
        self._contents = contents
        self._blocks = blocks
        self._read_ahead = read_ahead
        self._lead_bytes: Callable[[], int] = lambda: blocks.fetcher.lead_bytes
        self._foretelling = Foretelling(
            tree, contents, read_ahead, max_read_ahead_bytes, self._lead_bytes
        )
        self._max_read_ahead_blocks = max(1, max_read_ahead_bytes // BLOCK_BYTES)
        self.update_atime = update_atime
        #: Has the kernel write back and forget what it keeps of these paths, and tells whether it
        #: did so in time; set by the binding.
        self.drop_caches: Callable[[list[bytes]], bool] = lambda paths: True
        #: node -> (path, offset) of files with content that could be had nowhere when it was read.
        self.unreadable: dict[int, tuple[str, int]] = {}
        self.lock = threading.RLock()
        self._shared = Shared(inline_limit_bytes, inline_total_bytes)
        self._files: dict[int, OpenFile] = {}
        self._handles: dict[int, _Handle] = {}
        self._numbers = itertools.count(1)
        self._closings = Closings()

    def unreadable_paths(self) -> list[str]:
        """The files with content that could be had nowhere when it was read."""
        return sorted(path for path, _ in list(self.unreadable.values()))

    def is_open(self, number: int) -> bool:
        """Whether any handle leads to this node."""
        file = self._files.get(number)
        return file is not None and file.handles > 0

    def was_open(self, number: int, seconds: float) -> bool:
        """Whether a handle leads to this node, or did within so many seconds."""
        return self.is_open(number) or self._closings.since_seconds(number) < seconds

    def forget(self, number: int) -> None:
        """Drop a file that waits to be saved, if it has no handle and its node was removed.

        The caller holds no lock: the file's own may be held across a fetch.
        """
        with self.lock:
            file = self._files.get(number)
            if file is None or file.handles or self._tree.node(number) is not None:
                return
            del self._files[number]
        file.discard()

    def adopt(self) -> None:
        """Take up what an earlier process had noted of open files but not sealed."""
        for number in self._contents.patched_nodes():
            node = self._tree.node(number)
            if node is not None:
                with self.lock:
                    file = OpenFile(node, self._tree, self._contents, self._blocks, self._shared)
                    self._files[number] = file
                file.adopt_patches()

    def count(self) -> int:
        """How many handles there are."""
        return len(self._handles)

    def unsaved_count(self) -> int:
        """How many files have writes that are not in the metadata yet."""
        with self.lock:
            return sum(file.dirty_since_ns is not None for file in self._files.values())

    def is_unsaved(self, number: int) -> bool:
        """Whether a file has writes that are not in the metadata yet."""
        file = self._files.get(number)
        return file is not None and file.dirty_since_ns is not None

    def overlaid(self, node: Node) -> Node:
        """The node as a caller must see it: with what is only buffered so far.

        Since the caller looked at the node, its file may have been saved, and closed.
        """
        file = self._files.get(node.id)
        if file is not None:
            shown = file.overlay(node)
            # Else what was buffered may be in the node meanwhile, if not in the caller's.
            if file.dirty_since_ns is not None:
                return shown
        elif node.id not in self._closings:
            return node
        return self._tree.node(node.id) or node

    def all_overlaid(self, entries: Sequence[tuple[bytes, Node]]) -> Sequence[tuple[bytes, Node]]:
        """The same of a directory's entries."""
        opened, closed = self._files, self._closings
        if not opened and not closed:
            return entries
        return [
            (name, self.overlaid(node) if node.id in opened or node.id in closed else node)
            for name, node in entries
        ]

    def now_ns(self) -> int:
        """The time that a file gets which is changed now."""
        return self._tree.now_ns()

    def note_time(self, time_ns: int) -> None:
        """The kernel told the time of a file; see `FileClock`."""
        self._tree.note_time(time_ns)

    def node_id(self, handle: int) -> int:
        """The node that a handle leads to; EBADF."""
        return self._handle(handle).file.node_id

    def forget_write_time(self, number: int) -> None:
        """The times of a file are set by hand: those of buffered writes no longer count."""
        file = self._files.get(number)
        if file is not None:
            file.forget_write_time()

    def note_write_time(self, handle: int, mtime_ns: int) -> None:
        """The kernel tells when it took the writes that it sent."""
        self._handle(handle).file.note_write_time(mtime_ns)

    def open(self, node: Node, *, writable: bool = False) -> int:
        """Open a file; returns a handle for the other methods."""
        with self.lock:
            file = self._files.get(node.id)
            if file is None:
                file = OpenFile(node, self._tree, self._contents, self._blocks, self._shared)
                self._files[node.id] = file
            file.handles += 1
            file.cached_handles += 1
            handle = next(self._numbers)
            read_ahead = ReadAhead(self._max_read_ahead_blocks)
            self._handles[handle] = _Handle(file, read_ahead, is_writable=writable)
            return handle

    def open_past(self, node: Node, shown: Node, contents: Contents) -> int:
        """Open a file as it was, for reading; `shown` is what callers are to see of it."""
        file = OpenFile(node, self._tree, contents, self._blocks, self._shared)
        with self.lock:
            handle = next(self._numbers)
            read_ahead = ReadAhead(self._max_read_ahead_blocks)
            self._handles[handle] = _Handle(file, read_ahead, past=shown)
            return handle

    def past_node(self, handle: int) -> Node | None:
        """What a handle of `open_past` leads to; None for any other."""
        opened = self._handles.get(handle)
        return opened.past if opened else None

    def _handle(self, handle: int) -> _Handle:
        found = self._handles.get(handle)
        if found is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return found

    def is_known_twice(self, handle: int) -> bool:
        """Whether the kernel may know something else of an open file by one of its names."""
        node = self._tree.node(self._handle(handle).file.node_id)
        return node is not None and self._tree.aliases.is_known_twice(node.id, node.nlink)

    def make_direct(self, handle: int) -> None:
        """The file has several names: the kernel is told to keep nothing of this handle's."""
        opened = self._handle(handle)
        with self.lock:
            opened.is_direct = True
            opened.file.cached_handles -= 1
        self._see_others(opened)

    def _see_others(self, opened: _Handle) -> None:
        """Have the kernel hand over what it keeps of the file under another name.

        Else it would hand it over later, in whole pages, and lay old bytes over newer ones. Not
        for a call during which the kernel holds pages of this name: it would wait for us, too.
        """
        if opened.is_direct and opened.file.cached_handles:
            paths = self._tree.paths_of(opened.file.node_id)
            if not self.drop_caches(paths):
                log.error("the kernel does not hand over what it keeps of %r", paths)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def read_into(
        self, handle: int, target: memoryview, offset: int, *, pages: bool = False
    ) -> int:
        """Fill `target` from an open file; returns the bytes read, fewer only at its end.

        With `pages` it is for the kernel's cache, as for a map: that holds what was handed over
        when the handle was opened.
        """
        opened = self._handle(handle)
        is_first, opened.was_read = not opened.was_read, True
        if not pages:
            self._see_others(opened)
        file = opened.file
        try:
            if file.size and not file.is_inline:
                self._foresee(opened, offset, len(target), is_first)
            count = file.read_into(target, offset)
        except (CorruptError, MissingError) as error:
            path = os.fsdecode(self._tree.path_of(file.node_id))
            if len(self.unreadable) < _UNREADABLE_FILES:
                self.unreadable[file.node_id] = path, offset
            raise type(error)(f"{path}: {error}") from error
        if self.unreadable:
            _, failed = self.unreadable.get(file.node_id, ("", -1))
            if offset <= failed < offset + count:
                self.unreadable.pop(file.node_id, None)
        return count

    def _foresee(self, opened: _Handle, offset: int, size: int, is_first: bool) -> None:
        """Ask for what will be read next, and for no more than its beginning of what may not."""
        file = opened.file
        is_beginning = offset + size <= HEAD_BYTES
        if is_first and not opened.past:
            self._foretelling.begin(file.node_id, lambda: self._is_begun(file))
        elif not is_beginning and not opened.past:
            self._foretelling.go_beyond(file.node_id)
        if is_first and is_beginning and file.size > 2 * HEAD_BYTES:
            block_id = file.block_id(0)
            if block_id != HOLE:
                # What is wrong with it will show, and may be mended, when it is read.
                with contextlib.suppress(MissingError, CorruptError):
                    self._blocks.fetch_head(block_id, urgent=True)
        if file.size > BLOCK_BYTES:
            span = opened.read_ahead.wanted(offset, size, self._lead_bytes())
            ids = file.block_ids(*span) if span else []
            if ids:
                self._read_ahead(ids, False)

    def _is_begun(self, file: OpenFile) -> bool:
        """Whether the first block of a file is local."""
        block_id = file.block_id(0)
        return block_id == HOLE or self._blocks.is_local(block_id)

    def begins_writing(self, handle: int) -> bool:
        """Whether nothing has been written through this handle before."""
        opened = self._handle(handle)
        begins, opened.was_written = not opened.was_written, True
        return begins

    def write(
        self,
        handle: int,
        data: memoryview,
        offset: int,
        *,
        appends: bool = False,
        gathered: bool = False,
    ) -> int:
        """Write to an open file; returns len(data).

        With `appends` the offset is where the kernel takes the end to be. Of a file with several
        names it knows one for each of them, so what others wrote would be lost.

        `gathered` are pages that the kernel kept. They come by any handle of the same name, also by
        one of which it keeps nothing; and whoever has asked for them waits for this call.
        """
        opened = self._handle(handle)
        file = opened.file
        if gathered:
            file.has_taken_pages = True
        else:
            self._see_others(opened)
        with file.lock:
            at = file.size if appends and opened.is_direct else offset
            file.write(data, at, gathered=gathered)
        self._note_change(file)
        return len(data)

    def _note_change(self, file: OpenFile) -> None:
        """What a file holds has changed, if only in a buffer as yet."""
        node = self._tree.node(file.node_id)
        if node is not None:
            self._tree.aliases.note(node.id, node.nlink, content=True)

    def truncate(self, handle: int, size: int) -> None:
        """Set the size of an open file."""
        opened = self._handle(handle)
        # Others' pages are not asked for: during a truncation the kernel writes none of the
        # file's own, so both would wait for each other.
        opened.file.truncate(size)
        self._note_change(opened.file)

    def allocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2); see `ranges`."""
        opened = self._handle(handle)
        self._see_others(opened)
        with opened.file.lock:
            ranges.allocate(opened.file, mode, offset, length)
            # Also where nothing was to be done.
            opened.file.note_write(self._tree.now_ns())
        self._note_change(opened.file)

    def seek(self, handle: int, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE; see `ranges`."""
        file = self._handle(handle).file
        with self.lock:
            may_be_dirty = any(
                each.is_writable and each.file is file for each in self._handles.values()
            )
        if may_be_dirty:
            # What the kernel has not handed over yet is data, too, wherever it lies.
            paths = self._tree.paths_of(file.node_id)
            if not paths or not self.drop_caches(paths):
                # Who asks reads everything then.
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return ranges.seek(file, offset, whence)

    def copy(self, source: int, offset: int, target: int, position: int, length: int) -> int:
        """copy_file_range(2); see `ranges`."""
        files = self._handle(source).file, self._handle(target).file
        for handle in (source, target):
            self._see_others(self._handle(handle))
        count = ranges.copy(files[0], offset, files[1], position, length)
        self._note_change(files[1])
        return count

    def flush(self, handle: int) -> None:
        """A descriptor of the file is closed: what was written must survive our death.

        Who only read does not wait for those who write.
        """
        opened = self._handle(handle)
        file = opened.file
        if opened.is_writable and file.has_unsaved:
            file.flush(by_kernel=True)
        self._tell_of_pages(file)

    def fsync(self, handle: int, sync_metadata: Callable[[], None]) -> None:
        """Make a file power-safe, with the names that lead to it."""
        file = self._handle(handle).file
        file.sync(sync_metadata)
        self._tell_of_pages(file)

    def _tell_of_pages(self, file: OpenFile) -> None:
        """By its other names the file may not show yet what the kernel kept and has handed over."""
        if file.has_taken_pages:
            file.has_taken_pages = False
            self._note_change(file)

    def release(self, handle: int) -> bool:
        """The last descriptor of a handle is closed; returns whether it was the file's last
        handle."""
        opened = self._handle(handle)
        file = opened.file
        if opened.past:
            with self.lock:
                del self._handles[handle]
            return False
        is_gone = False
        try:
            if opened.is_writable and file.has_unsaved:
                file.flush(by_kernel=True)
        finally:
            with self.lock:
                del self._handles[handle]
                file.handles -= 1
                file.cached_handles -= not opened.is_direct
                is_last = not file.handles
                if is_last:
                    self._closings.note(file.node_id)
                node = self._tree.node(file.node_id)
                # One that has only lost its name may be opened again: see `hidden`.
                is_gone = is_last and node is None
                is_dropped = is_last and (is_gone or file.dirty_since_ns is None)
                if is_dropped:
                    del self._files[file.node_id]
            # A write or truncation that failed may have left a buffer in a file that is clean.
            if is_gone or (is_dropped and file.has_buffers):
                file.discard()
        if opened.was_read and self.update_atime and node is not None and node.nlink:
            self._note_reading(node)
        return is_last

    def _note_reading(self, node: Node) -> None:
        """relatime: the time of reading moves once after a change, else once a day."""
        now = self._tree.now_ns()
        if node.atime_ns <= max(node.mtime_ns, node.ctime_ns) or node.atime_ns < now - _DAY_NS:
            self._tree.note_reading(node.id, now)

    def save_readings(self) -> None:
        """Have the metadata note when files were read, as far as it was only remembered."""
        self._tree.save_readings()

    def flush_all(self, *, seal: bool) -> dict[int, SyncerError]:
        """Commit what open files hold in buffers. A file that can't be committed now stays, and so
        does one for which the calling thread has waited long enough: where there is no room for
        one, the others do not wait for it as long again.

        Without `seal`, small rewrites become patches, and blocks only after a while.

        Returns why the files that stay do so, by their nodes.
        """
        with self.lock:
            files = [file for file in self._files.values() if file.dirty_since_ns is not None]
        with self._blocks.cache.budget.one_limit():
            return self._flush_each(files, seal=seal)

    def _flush_each(self, files: list[OpenFile], *, seal: bool) -> dict[int, SyncerError]:
        left: dict[int, SyncerError] = {}
        for file in files:
            # One that was removed has nothing to be saved, and perhaps no block to load.
            self.forget(file.node_id)
            try:
                file.flush(seal=seal or file.is_due(_PATCH_NS))
            except AbandonedError as error:
                left[file.node_id] = error
                log.debug("an open file (node %d) is left to a later round", file.node_id)
            except SyncerError as error:
                left[file.node_id] = error
                log.warning("an open file (node %d) is not saved yet: %s", file.node_id, error)
            with self.lock:
                # Closed and opened anew meanwhile, the node has another one.
                is_listed = self._files.get(file.node_id) is file
                if is_listed and file.handles == 0 and file.dirty_since_ns is None:
                    del self._files[file.node_id]
        return left

    def path_of(self, number: int) -> bytes | None:
        """A path of a file, for messages; None if it has no name any more."""
        path = self._tree.path_of(number)
        return None if path == b"?" else path

    def reload(self) -> None:
        """Others changed the tables (a follower caught up): open files look again."""
        with self.lock:
            files = list(self._files.values())
        for file in files:
            node = self._tree.node(file.node_id)
            if node is not None:
                file.reload(node)
