"""One open file: what its handles share between a write and its way into blocks.

Writes gather in buffers of one block each. A buffer is *sealed* - hashed, put into a local block
file and named by the metadata, in this order - when it is full, when the file is flushed
(close, fsync, the committer's round) or when the buffers of all files together grow past a bound.

Rules that keep a crash from showing anything but old or new content per block:

- The committed size never covers a buffer that is not sealed: buffers are sealed from the front.
- A block is never longer than its part of the file, so growing a file again shows zeros. It may be
  shorter; what is missing reads as zeros.
- Shrinking, the cut of the last block and the new size are one transaction.
- Small rewrites may be safe as patches (see `patchlog`) while their blocks are not sealed. A
  block's patches go in the transaction that seals it, so none ever lies over newer content.
"""

from __future__ import annotations

from collections.abc import Callable

from syncer.blocks.store import Blocks
from syncer.codec import BLOCK_BYTES, HOLE
from syncer.errors import MissingError
from syncer.metadata.contents import RUN_BLOCKS, Contents
from syncer.metadata.node import Node
from syncer.metadata.tree import Tree
from syncer.vfs.buffers import Buffer, Buffers, Shared
from syncer.vfs.filelock import FileLock
from syncer.vfs.patchlog import MAX_PATCH_BYTES, PatchLog
from syncer.vfs.pinning import note_content
from syncer.vfs.runs import Runs
from syncer.vfs.writetimes import WriteTimes

#: What the buffers of all open files may take before a writer seals its own.
MAX_BUFFERED_BYTES = 32 << 20
_Source = Contents | None
#: No setting allows larger files in the database; above it, nobody has to look there.
_MAX_INLINE_BYTES = 65536


class OpenFile:
    """The shared state of all handles of one file. Safe for use from several threads.

    `lock` guards its content and may be held across local I/O and, for writes into a block that is
    not local, across its fetch: then only this file's users wait. It is taken before the database's
    lock, never after. `handles` and `cached_handles` are guarded by that of `Files`; `size`,
    `times` and `dirty_since_ns` are also read without any, see `overlay`.
    """

    def __init__(
        self, node: Node, tree: Tree, contents: Contents, blocks: Blocks, shared: Shared
    ) -> None:
        self.node_id = node.id
        self.lock = FileLock(lambda: blocks.fetcher.flights.is_abandoned())
        self.handles = 0
        #: Of these, those whose pages the kernel keeps.
        self.cached_handles = 0
        self.has_taken_pages = False  # the file's other names need not show them yet
        self.size = node.size
        self._tree = tree
        self._contents = contents
        self._blocks = blocks
        self._shared = shared
        self._buffers = Buffers(shared)
        self._runs = Runs(node, contents)
        self._inline = self._load_inline(node)
        self._log = PatchLog()
        #: Patches of an earlier process that are not laid over the blocks yet.
        self._found: list[tuple[int, bytes]] = []
        self.times = WriteTimes(node.id, tree)
        self.dirty_since_ns: int | None = None

    def _load_inline(self, node: Node) -> bytes | None:
        return self._contents.inline(node.id) if 0 < node.size <= _MAX_INLINE_BYTES else None

    # Attributes

    def overlay(self, node: Node) -> Node:
        """The node as a caller must see it: with what is only buffered so far.

        Takes no lock: a writer may hold it while it waits for room, and `ls` must not.
        """
        if self.dirty_since_ns is None:
            return node
        new = sum(buffer.is_new for buffer in list(self._buffers.values()))
        return self.times.put_on(node.changed(size=self.size, blocks=node.blocks + new))

    @property
    def has_unsaved(self) -> bool:
        """Whether a flush by the kernel has anything to do."""
        return self.dirty_since_ns is not None or self.times.has_saved_guess

    @property
    def has_buffers(self) -> bool:
        """Whether it takes memory that counts for all open files."""
        return bool(self._buffers)

    def forget_write_time(self) -> None:
        """The caller sets the file's times itself: what was written before does not count."""
        if self._log.logged_bytes:
            self.flush(seal=True)
        self.times.forget()

    def note_write_time(self, mtime_ns: int) -> None:
        """The kernel tells when it took the writes that it sent, or has yet to send."""
        with self.lock:
            self.times.tell(mtime_ns, is_dirty=self.dirty_since_ns is not None)

    # Reading

    def read_into(self, target: memoryview, offset: int) -> int:
        """Fill `target` from the file at `offset`; returns the bytes read, short at the end.

        Raises what `Blocks.read_into` raises.
        """
        with self.lock:
            self._lay_found()
            length = max(0, min(len(target), self.size - offset))
        done = 0
        while done < length:
            index, start = divmod(offset + done, BLOCK_BYTES)
            part = target[done : done + min(BLOCK_BYTES - start, length - done)]
            self._read_block(part, index, start)
            done += len(part)
        return length

    def _read_block(self, part: memoryview, index: int, start: int) -> None:
        """Fill `part` from block `index` at `start`, zeros where nothing was written."""
        while True:
            with self.lock:
                if self._read_buffered(part, index, start):
                    return
                block_id = self.block_id(index)
            if block_id == HOLE:
                part[:] = bytes(len(part))
                return
            try:
                count = self._blocks.read_into(block_id, start, part)
            except MissingError:
                # Replaced between the look and the reading: the old block is gone for good.
                with self.lock:
                    if self.block_id(index) == block_id and index not in self._buffers:
                        raise
                continue
            if count < len(part):
                part[count:] = bytes(len(part) - count)
            return

    def _read_buffered(self, part: memoryview, index: int, start: int) -> bool:
        """Fill `part` from memory, if the block is there. The caller holds `lock`."""
        if self._inline is not None:
            data: bytes | bytearray = self._inline
        else:
            buffer = self._buffers.get(index)
            if buffer is None:
                return False
            if not buffer.covers(start, start + len(part)):
                self._load(buffer)
            data = buffer.data
        piece = data[start : start + len(part)]
        part[: len(piece)] = piece
        if len(piece) < len(part):
            part[len(piece) :] = bytes(len(part) - len(piece))
        return True

    def block_id(self, index: int) -> bytes:
        """The id of the block at `index` as it is committed, or HOLE."""
        with self.lock:
            return self._runs.block_id(index)

    def block_ids(self, first: int, last: int) -> list[bytes]:
        """The committed ids of blocks `first` to `last` that exist."""
        last = min(last, (self.size - 1) // BLOCK_BYTES)
        ids = (self.block_id(index) for index in range(first, last + 1))
        return [block_id for block_id in ids if block_id != HOLE]

    @property
    def is_inline(self) -> bool:
        """Whether the bytes lie in the database, so that there is no block to share."""
        return self._inline is not None

    def next_data(self, first: int) -> int | None:
        """The first block from `first` on that is not a hole, or None. The caller holds `lock`."""
        if self._inline is not None:
            return 0 if first == 0 else None
        buffered = min((index for index in self._buffers if index >= first), default=None)
        placed = self._contents.next_data(self.node_id, first)
        found = [index for index in (buffered, placed) if index is not None]
        return min(found) if found and min(found) * BLOCK_BYTES < self.size else None

    # Writing

    def write(self, data: memoryview, offset: int, *, gathered: bool = False) -> None:
        """Write `data` at `offset`. Raises LocalFullError, or what a fetch raises.

        `gathered`: the kernel kept it, and tells later when it was written.
        """
        with self.lock:
            self._lay_found()
            self._leave_inline()
            now = self._tree.now_ns()
            (self.times.took_pages if gathered else self.times.wrote)(now)
            done = 0
            while done < len(data):
                index, start = divmod(offset + done, BLOCK_BYTES)
                part = data[done : done + BLOCK_BYTES - start]
                if len(part) == BLOCK_BYTES:
                    self._write_whole(index, part, now)
                else:
                    buffer = self._taking(index, start, start + len(part))
                    # Not before: bytes that could not be written must not come with a crash.
                    before = buffer.known(start, len(part)) if len(part) <= MAX_PATCH_BYTES else b""
                    self._log.note(offset + done, part, before)
                    self._write_part(index, buffer, start, part, now)
                done += len(part)
                # After the bytes, so that a failed write does not leave a longer file.
                self.size = max(self.size, offset + done)
            if self._shared.buffered_bytes > MAX_BUFFERED_BYTES:
                self._seal(self._buffers.lowest())

    def note_write(self, now_ns: int) -> None:
        """The file was written to; its times come with the next flush."""
        self.times.wrote(now_ns)
        self._note_dirty(now_ns)

    def _note_dirty(self, now_ns: int) -> None:
        self.dirty_since_ns = self.dirty_since_ns or now_ns

    def _write_whole(self, index: int, data: memoryview, now_ns: int) -> None:
        """A whole block at once needs no buffer, and is not copied."""
        self._seal([other for other in self._buffers if other < index])
        self._note_dirty(now_ns)
        end = (index + 1) * BLOCK_BYTES
        self._place({index: self._blocks.put(data)}, max(self._committed_size(), end))
        # Not before: a write that fails for want of room takes nothing away.
        self._buffers.drop(index)

    def _taking(self, index: int, start: int, end: int) -> Buffer:
        """The buffer of a block, able to take these bytes: it may have to be loaded first."""
        buffer = self._buffers.get(index)
        if buffer is None:
            base = self.block_id(index)
            below = None if base == HOLE else base
            buffer = self._buffers[index] = Buffer(bytearray(), below, start, start, not below)
        if not buffer.takes(start, end):
            self._load(buffer)
        return buffer

    def _write_part(
        self, index: int, buffer: Buffer, start: int, data: memoryview, now_ns: int
    ) -> None:
        end, was_whole = start + len(data), buffer.is_whole
        self._shared.count(buffer.write(start, data))
        self._note_dirty(now_ns)
        if buffer.is_whole and (end == BLOCK_BYTES or not was_whole):
            # Not those behind one that is not whole yet: the kernel hands over what it gathered in
            # pieces that end within blocks, and not in order.
            self.size = max(self.size, (index + 1) * BLOCK_BYTES)
            self._seal(self._buffers.whole_front())

    def _load(self, buffer: Buffer) -> None:
        """Complete a buffer that knows only what was written, from the block below it."""
        assert buffer.base is not None
        self._shared.count(buffer.complete(bytearray(self._blocks.get(buffer.base))))

    def _leave_inline(self) -> None:
        """Turn inline content into a buffer; the row stays until the buffer is sealed."""
        if self._inline is not None:
            self._buffers[0] = Buffer(bytearray(self._inline), None, 0, len(self._inline))
            self._shared.count(len(self._inline))
            self._inline = None

    # Sealing

    def flush(self, *, seal: bool = False, by_kernel: bool = False) -> None:
        """Bring everything that is buffered into the database or local blocks.

        Small rewrites may become patches and stay buffered, but not with `seal`.
        `by_kernel`: it wants that, and has handed over all that it kept.
        """
        with self.lock:
            if by_kernel:
                self.times.settle(is_dirty=self.dirty_since_ns is not None)
            if self.dirty_since_ns is None or (not seal and self._log_patches()):
                return
            self._lay_found()
            if not self._seal_inline():
                self._seal(list(self._buffers))
                with self._tree.transaction():
                    self.times.save(size=self.size)
                    self._contents.drop_patches(self.node_id)
            # In this order: `overlay` takes no lock, and who finds the file clean after it looks
            # at the node again.
            self.dirty_since_ns = None
            self.times.saved()
            self._log = PatchLog()

    def is_due(self, age_ns: int) -> bool:
        """Whether the oldest patch is older than that, so that the file should be sealed."""
        return self._log.is_older_than(age_ns, self._tree.now_ns())

    def _log_patches(self) -> bool:
        """Make what is not safe yet into patches, if that pays; False: it has to be sealed."""
        log = self._log
        if not self._buffers or self._fits_inline(self.size):
            return False
        has_hole = any(self.block_id(index) == HOLE for index in self._buffers)
        if has_hole or not log.pays(sum(self._length(index) for index in self._buffers)):
            return False
        if log.unlogged:
            with self._tree.transaction():
                if (node := self._tree.node(self.node_id)) is None:
                    return False
                mtime_ns = self.times.put_on(node).mtime_ns
                self._contents.add_patches(self.node_id, log.unlogged, self.size, mtime_ns)
            log.logged(self._tree.now_ns())
        return True

    def adopt_patches(self) -> None:
        """Take up what an earlier process left as patches; reading and sealing lay them over."""
        patches = self._contents.patches(self.node_id)
        with self.lock:
            self._found = [(offset, data) for offset, data, _, _ in patches]
            _, _, self.size, mtime_ns = patches[-1]
            self.times.wrote(mtime_ns)
            self.dirty_since_ns = self._tree.now_ns()
            self._log.logged_bytes = sum(len(data) for _, data in self._found)

    def _lay_found(self) -> None:
        while self._found:
            offset, data = self._found[0]
            index, start = divmod(offset, BLOCK_BYTES)
            buffer = self._taking(index, start, start + len(data))
            self._write_part(index, buffer, start, memoryview(data), self._tree.now_ns())
            del self._found[0]

    def _seal_inline(self) -> bool:
        """Commit a tiny file into the database; False if it is not tiny, or there are too many."""
        if not self._buffers or not self._fits_inline(self.size):
            return False
        buffer = self._buffers[0]
        if buffer.base is not None:
            self._load(buffer)
        self._place_inline(bytes(buffer.data[: self.size]), self.size)
        return True

    def _fits_inline(self, size: int) -> bool:
        return self._shared.fits_inline(size, self._contents.inline_bytes)

    def _place_inline(self, data: bytes, size: int) -> None:
        """Commit the bytes of a tiny file, zeros behind `data`, in place of all its blocks."""
        data += bytes(size - len(data))
        with self._tree.transaction():
            self._blocks.undo.keep_blocks(self.node_id)
            if self.times.save(size=size):
                self._blocks.unname(self._contents.set_inline(self.node_id, data))
                note_content(self._tree, self._blocks, self.node_id, (), replaces=True)
                self._contents.drop_patches(self.node_id)
        self._buffers.drop(0)
        self._runs.clear()
        self._inline = data

    def _seal(self, indexes: list[int]) -> None:
        """Put buffers into blocks and commit them, lowest first."""
        for index in sorted(indexes):
            buffer = self._buffers[index]
            length = self._length(index)
            if not buffer.covers(0, length):
                self._load(buffer)
            with memoryview(buffer.data) as whole:
                block_id = self._blocks.put(whole[:length]) if length else HOLE
            self._place({index: block_id}, max(self._committed_size(), self._end(index)))
            self._buffers.drop(index)

    def _length(self, index: int) -> int:
        """How many bytes of the file block `index` covers."""
        return max(0, min(BLOCK_BYTES, self.size - index * BLOCK_BYTES))

    def _end(self, index: int) -> int:
        return min(self.size, (index + 1) * BLOCK_BYTES)

    def _committed_size(self) -> int:
        node = self._tree.node(self.node_id)
        return node.size if node else 0

    def _place(
        self, blocks: dict[int, bytes], size: int, cut: int | None = None, of: _Source = None
    ) -> None:
        """Commit new blocks, which `put` holds, or other contents (`of`) name; and the file's size.

        With `cut`, the file first loses its blocks from that index on.
        """
        try:
            with self._tree.transaction():
                replaces = cut is not None or any(self.block_id(n) != HOLE for n in blocks)
                (of or self._contents).check()
                runs = {index // RUN_BLOCKS for index in blocks}
                cut_run = None if cut is None else cut // RUN_BLOCKS
                self._blocks.undo.keep(self.node_id, runs, cut_run)
                if not self.times.save(size=size):
                    return
                dropped = []
                if cut is not None:
                    dropped = self._contents.cut(self.node_id, cut)
                    # Those of lower blocks went when these were sealed.
                    self._contents.drop_patches(self.node_id)
                placed, replaced = self._contents.set_blocks(self.node_id, blocks)
                self._blocks.name(placed)
                self._blocks.undo.placed(self.node_id, placed)
                self._blocks.unname(dropped + replaced)
                note_content(self._tree, self._blocks, self.node_id, placed, replaces=replaces)
                for index in blocks:
                    self._contents.drop_patches(self.node_id, index)
            for index in blocks:
                self._log.forget_block(index)
        finally:
            self._runs.clear()
            if of is None:
                self._blocks.unhold(blocks.values())

    def sync(self, sync_metadata: Callable[[], None]) -> None:
        """fsync: flush, then make this file's own blocks power-safe, then the metadata.

        Others may read and write the file while this waits for the disk.
        """
        with self.lock:
            self.flush(by_kernel=True)
            begun = self._blocks.begin_sync(self.node_id)
        self._blocks.finish_sync(begun)
        sync_metadata()

    def replace_blocks(self, blocks: dict[int, bytes], size: int, of: OpenFile | None) -> None:
        """Put blocks of another file, or (None) holes, in place of what is there and buffered."""
        with self.lock:
            self._lay_found()
            self._leave_inline()
            self.note_write(self._tree.now_ns())
            self._seal(list(self._buffers))
            self._place(blocks, max(size, self._committed_size()), of=of._contents if of else None)
            self.size = max(self.size, size)
            self.flush(seal=True)

    # Truncating

    def truncate(self, size: int) -> None:
        """Set the size. Raises LocalFullError, or what a fetch of the last block raises."""
        with self.lock:
            self._lay_found()
            self._leave_inline()
            if size < self.size:
                self._shrink(size)
            else:
                self.note_write(self._tree.now_ns())
                self.size = size
            self.flush(seal=True)

    def _shrink(self, size: int) -> None:
        """Cut the file. What may fail, for want of room or of a block, comes before any change."""
        keep, rest = divmod(size, BLOCK_BYTES)
        self._seal([index for index in self._buffers if index < keep])
        kept = self._head(keep, rest)
        if (kept or self._buffers) and self._fits_inline(size):
            self.note_write(self._tree.now_ns())
            self._place_inline(kept, size)
        else:
            blocks = {keep: self._blocks.put(kept)} if kept else {}
            self.note_write(self._tree.now_ns())
            self._place(blocks, size, keep + bool(rest))
        for index in [index for index in self._buffers if index >= keep]:
            self._buffers.drop(index)
        self.size = size

    def _head(self, index: int, length: int) -> bytes:
        """The first bytes of a block, as far as it has so many."""
        buffer = self._buffers.get(index)
        if buffer is not None:
            if not buffer.covers(0, length):
                self._load(buffer)
            return bytes(buffer.data[:length])
        block_id = self.block_id(index) if length else HOLE
        return b"" if block_id == HOLE else bytes(self._blocks.get(block_id)[:length])

    # The end

    def reload(self, node: Node) -> None:
        """The tables were changed by others: a follower has caught up."""
        with self.lock:
            self.size = node.size
            self._runs.clear()
            self._inline = self._load_inline(node)

    def discard(self) -> None:
        """Forget what is buffered: the file has no name and no handle any more."""
        with self.lock:
            for index in list(self._buffers):
                self._buffers.drop(index)
            self.dirty_since_ns = None
