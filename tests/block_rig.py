"""A data directory's blocks over a remote in memory, and what must be true of them at any rest."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from syncer import codec
from syncer.blocks.budget import disk_bytes
from syncer.blocks.cache import Cache
from syncer.blocks.fetch import Fetcher, block_key
from syncer.blocks.store import Blocks
from syncer.metadata.db import Database
from tests.memory_remote import MemoryRemote

SEED = 7
LIMIT_BYTES = 64_000_000
_NODE = 77


def content(number: int, size_bytes: int = 20_000) -> bytes:
    """Content that is different for every number, and the same every time."""
    return random.Random(number).randbytes(size_bytes)


class _UndoneError(Exception):
    pass


class Rig:
    """`blocks` and what it stands on; `reopen` is a restart of the process."""

    def __init__(
        self, folder: Path, limit_bytes: int = LIMIT_BYTES, timeout_seconds: float = 30.0
    ) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.timeout_seconds = timeout_seconds
        self.remote = MemoryRemote()
        self._open()

    def _open(self) -> None:
        self.db = Database(self.folder / "metadata.db")
        self.cache = Cache(self.folder / "blocks", self.limit_bytes, 0, self.timeout_seconds)
        self.fetcher = Fetcher(self.remote, SEED)
        self.blocks = Blocks(self.db, self.cache, self.fetcher, SEED)

    def close(self) -> None:
        self.db.close()

    def reopen(self) -> None:
        """As after kill -9: nothing is written down first."""
        self.db.close()
        self._open()

    def write(self, data: bytes) -> bytes:
        """What a file's flush does: put, name, let go."""
        block_id = self.blocks.put(data)
        with self.db.transaction():
            self.blocks.name([block_id])
        self.blocks.unhold([block_id])
        return block_id

    def sync(self, block_ids: Iterable[bytes]) -> None:
        """What a file's fsync does with its blocks."""
        with self.db.lock:
            self.blocks.undo.placed(_NODE, block_ids)
        self.blocks.finish_sync(self.blocks.begin_sync(_NODE))

    def drop(self, block_id: bytes) -> None:
        with self.db.transaction():
            self.blocks.unname([block_id])

    @contextlib.contextmanager
    def undone_transaction(self) -> Iterator[None]:
        """What happens inside is rolled back."""
        with contextlib.suppress(_UndoneError), self.db.transaction():
            yield
            raise _UndoneError

    def upload(self, block_ids: Iterable[bytes]) -> None:
        """What an upload worker does, at once."""
        for block_id in block_ids:
            data = self.blocks.local(block_id)
            assert data is not None
            self.store_remotely(data)
            self.blocks.mark_clean([block_id])

    def write_clean(self, data: bytes) -> bytes:
        block_id = self.write(data)
        self.upload([block_id])
        return block_id

    def store_remotely(self, data: bytes) -> bytes:
        """Have the remote know content that was never local."""
        block_id = codec.block_id(data, SEED)
        self.remote.put(block_key(block_id), codec.encode_block(data, SEED, block_id))
        return block_id

    def read_block(self, block_id: bytes, offset: int, length: int) -> bytes:
        """As `Blocks.read_into`, as bytes."""
        buffer = bytearray(length)
        count = self.blocks.read_into(block_id, offset, memoryview(buffer))
        return bytes(buffer[:count])

    def path(self, block_id: bytes) -> Path:
        name = block_id.hex()
        return self.folder / "blocks" / name[:2] / name

    def files(self) -> dict[bytes, int]:
        """The block files: id -> bytes."""
        return {
            bytes.fromhex(path.name): path.stat().st_size
            for path in (self.folder / "blocks").glob("[0-9a-f][0-9a-f]/*")
        }

    def damage(self, block_id: bytes) -> None:
        path = self.path(block_id)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        self.blocks.distrust(block_id)

    def check(self) -> None:
        """What holds whenever nobody is at work and nothing is held or waits for removal."""
        rows = self.db.query("SELECT id, size, dirty, refs FROM block")
        files = self.files()
        for block_id, size_bytes, dirty, refs in rows:
            assert (refs >= 1) == (dirty is not None)
            if dirty is not None:
                assert files[block_id] == size_bytes, "a dirty block is not local"
        assert files.keys() == {row[0] for row in rows}
        usage = self.blocks.usage()
        on_disk = sum(disk_bytes(size) for size in files.values())
        assert usage.local_blocks == len(rows)
        assert usage.local_bytes == on_disk
        assert usage.dirty_blocks == sum(row[2] is not None for row in rows)
        assert usage.dirty_bytes == sum(row[1] for row in rows if row[2] is not None)
        assert self.cache.budget.used_bytes == on_disk
        assert not list((self.folder / "blocks" / "incoming").iterdir())
