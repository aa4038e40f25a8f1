"""The file system without FUSE: over a real database, real block files and a remote in memory.

rig = VfsRig(folder, limit_bytes=8_000_000)
handle = rig.vfs.create(b"/file", 0o644, os.O_RDWR, ME)
rig.round(seal=True)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from syncer.blocks.fetch import block_key
from syncer.codec import HOLE, split_ids
from syncer.metadata.contents import Contents
from syncer.metadata.epochs import Epochs
from syncer.metadata.node import node_base
from syncer.metadata.tree import Tree
from syncer.process.committer import Committer
from syncer.process.recovery import recover
from syncer.vfs.caller import Caller
from syncer.vfs.calls import Vfs
from syncer.vfs.files import Files
from tests.block_rig import Rig

ME = Caller(1000, 1000)
INLINE_BYTES = 4096
MACHINE = 5
_MEMORY_DISK = Path("/dev/shm")

#: Table -> what identifies a row and what it says; reading makes no history, so atime is left out.
_VERSIONED = {
    "node": "id, mode, uid, gid, rdev, nlink, size, mtime_ns, ctime_ns, btime_ns, target",
    "name": "parent, name, node",
    "content": "node, run, data",
    "xattr": "node, name, value",
}

State = dict[str, list[tuple[Any, ...]]]


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A temporary folder in memory where there is one: these tests sync thousands of times."""
    place = _MEMORY_DISK if _MEMORY_DISK.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as folder:
        yield Path(folder)


class VfsRig(Rig):
    """`vfs` and what it stands on. Nothing runs in the background: `round` and `upload_all` do."""

    def __init__(
        self,
        folder: Path,
        limit_bytes: int = 64_000_000,
        timeout_seconds: float = 30.0,
        inline_total_bytes: int = 10_000_000,
        *,
        read_ahead_bytes: int = 0,
        power_was_cut: bool | None = None,
    ) -> None:
        """With `power_was_cut`, the last process came to an unclean end, and that is recovered."""
        self._inline_total_bytes = inline_total_bytes
        self._read_ahead_bytes = read_ahead_bytes
        #: What readers are expected to read next: (ids, whether their beginnings will do).
        self.asked: list[tuple[list[bytes], bool]] = []
        self._power_was_cut = power_was_cut
        super().__init__(folder, limit_bytes, timeout_seconds)

    def _open(self) -> None:
        super()._open()
        if self.db.get_meta("machine") is None:
            self.db.set_meta("machine", MACHINE)
            self.db.set_meta("next_node", node_base(MACHINE) + 1)
        self.epochs = Epochs(self.db)
        self.contents = Contents(self.db, self.epochs)
        self.tree = Tree(self.db, self.epochs, self.contents)
        if self.tree.node(1) is None:
            self.tree.make_root(ME.uid, ME.gid)
        self.files_table = Files(
            self.tree,
            self.contents,
            self.blocks,
            read_ahead=lambda ids, heads_only: self.asked.append((list(ids), heads_only)),
            max_read_ahead_bytes=self._read_ahead_bytes,
            inline_limit_bytes=INLINE_BYTES,
            inline_total_bytes=self._inline_total_bytes,
        )
        self.vfs = Vfs(self.tree, self.blocks, self.files_table)
        self.committer = Committer(
            self.db, self.epochs, self.blocks, self.vfs, 3600.0, lambda: None
        )
        # As the engine does at its start.
        if self._power_was_cut is not None:
            recover(self.db, self.blocks, self.tree, power_was_cut=self._power_was_cut)
        self.vfs.hidden.recover()
        # Replaced files go at once, but in tests of that.
        self.vfs.hidden.linger_seconds = 0.0
        self.vfs.files.adopt()

    def close(self) -> None:
        self.vfs.hidden.stop()
        super().close()

    def reopen(self) -> None:
        for _, watch in self.vfs.hidden._provisional.values():
            watch.cancel()
        super().reopen()

    def restart(self) -> None:
        """kill -9, and the next start."""
        self._power_was_cut = False
        self.reopen()

    # What background threads would do

    def round(self, *, seal: bool = False) -> None:
        """The committer's round: all is safe, and the epoch closed."""
        self.committer.round(seal=seal)

    def upload_all(self) -> None:
        """All dirty blocks reach the remote."""
        while rows := self.blocks.dirty_queue(100):
            self.upload([block_id for block_id, _ in rows])

    def evict_all(self) -> None:
        """Free all local copies that may go."""
        self.blocks.evict(self.limit_bytes)

    # Shorter ways

    def make(self, path: bytes, content: bytes = b"") -> int:
        """A new file, closed again; returns its node's number."""
        handle = self.vfs.create(path, 0o644, 0, ME)
        if content:
            self.vfs.write(handle, memoryview(content), 0)
        self.vfs.files.flush(handle)
        self.vfs.release(handle)
        return self.vfs.getattr(path).id

    def read(self, target: bytes | int, size: int = 1 << 24, offset: int = 0) -> bytes:
        """Content by a path or a handle."""
        handle = self.vfs.open(target, 0) if isinstance(target, bytes) else target
        try:
            buffer = bytearray(min(size, self.vfs.getattr(handle).size + 1))
            count = self.vfs.files.read_into(handle, memoryview(buffer), offset)
            return bytes(buffer[:count])
        finally:
            if isinstance(target, bytes):
                self.vfs.release(handle)

    def list(self, path: bytes) -> list[bytes]:
        """The names in a directory."""
        handle = self.vfs.opendir(path)
        found: list[bytes] = []
        try:
            while rows := self.vfs.directories.read(handle, len(found), 7):
                found += [name for name, _ in rows]
                self.vfs.directories.delivered(handle, [name for name, _ in rows])
        finally:
            self.vfs.directories.release(handle)
        return found

    def check_blocks(self) -> None:
        """No block is kept for the remote that nothing names, and none is missing."""
        rows = self.db.query(
            "SELECT data FROM content WHERE run >= 0"
            " UNION ALL SELECT data FROM content_past WHERE run >= 0"
        )
        named = {block_id for row in rows for block_id in split_ids(row[0])} - {HOLE}
        dirty = {row[0] for row in self.db.query("SELECT id FROM block WHERE dirty IS NOT NULL")}
        assert dirty <= named, "what nothing names will be uploaded"
        stored = self.remote.objects
        assert all(key in self.files() or block_key(key) in stored for key in named)

    def check_usage(self) -> None:
        """What the tables count is what is there; nothing is open and nothing dirty."""
        nodes, file_bytes = self.tree.totals()
        assert (nodes,) == self.db.query_one("SELECT count(*) FROM node")
        is_file = f"mode & {0o170000} = {0o100000}"
        row = self.db.query_one(f"SELECT coalesce(sum(size), 0) FROM node WHERE {is_file}")
        assert (file_bytes,) == row
        inline = 0
        for table in ("content", "content_past"):
            row = self.db.query_one(
                f"SELECT coalesce(sum(length(data)), 0) FROM {table} WHERE run = -1"
            )
            inline += row[0] if row else 0
        assert self.contents.inline_bytes() == inline
        assert self.db.query("SELECT * FROM orphan") == []
        self.check_block_counts()

    def check_block_counts(self) -> None:
        """Each file's count of blocks is that of its rows."""
        counts = dict.fromkeys((row[0] for row in self.db.query("SELECT id FROM node")), 0)
        for node, run, data in self.db.query("SELECT node, run, data FROM content"):
            ids = split_ids(data) if run >= 0 else [data]
            counts[node] += sum(bool(block_id.strip(b"\0")) or run < 0 for block_id in ids if data)
        assert dict(self.db.query("SELECT id, blocks FROM node")) == counts
        for number, died, blocks in self.db.query(
            "SELECT id, died, blocks FROM node_past WHERE blocks IS NOT NULL"
        ):
            held = self.db.query(
                "SELECT run, data FROM content WHERE node = ?1 AND born < ?2 UNION ALL"
                " SELECT run, data FROM content_past"
                " WHERE node = ?1 AND born < ?2 AND died >= ?2",
                (number, died),
            )
            assert blocks == sum(
                bool(data) if run < 0 else sum(key != HOLE for key in split_ids(data))
                for run, data in held
            )

    # History

    def state(self) -> State:
        """All versioned rows as they are now."""
        return {
            table: sorted(self.db.query(f"SELECT {columns} FROM {table}"))
            for table, columns in _VERSIONED.items()
        }

    def state_at(self, epoch: int) -> State:
        """The same as of the end of an epoch, from the rows of then."""
        return {
            table: sorted(
                self.db.query(
                    f"SELECT {columns} FROM {table} WHERE born <= :epoch UNION ALL"
                    f" SELECT {columns} FROM {table}_past WHERE born <= :epoch AND died > :epoch",
                    {"epoch": epoch},
                )
            )
            for table, columns in _VERSIONED.items()
        }
