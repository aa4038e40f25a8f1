"""A past state at work: what `syncer mount --at` serves.

A process of its own reads the database and the block files of the data directory, and changes
nothing there. So it needs no lock, and works beside the process that has the present mounted and
without one; neither waits for the other. What it shows is over, and stays as it is; only pruning
takes it away.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from syncer.blocks.cache import Cache
from syncer.blocks.fetch import Fetcher
from syncer.blocks.reader import BlockReader
from syncer.config import Config
from syncer.errors import SyncerError
from syncer.exchange.writers import RepositoryInfo, is_description_of
from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.history import History
from syncer.metadata.moments import Moments
from syncer.metadata.tree import Tree
from syncer.mount import Operations
from syncer.process.folder import DataFolder
from syncer.process.repository import remote_of
from syncer.vfs.caller import Caller
from syncer.vfs.files import Files
from syncer.vfs.moment import MomentVfs
from syncer.vfs.states import States

#: Blocks that are fetched at once for readers, and how far ahead of them; both lie in memory.
_FETCH_THREADS = 6
_READ_AHEAD_BYTES = 16 << 20


class View:
    """One past state of a data directory. Safe for use from several threads."""

    def __init__(
        self, data: Path, config: Config, epoch: int, moment: str, *, mountpoint: str, fuse: int
    ) -> None:
        """`moment` is what the epoch is called."""
        folder = DataFolder(data)
        self._about = {
            "data": str(data),
            "mountpoint": mountpoint,
            "at": moment,
            "epoch": epoch,
            "fuse": fuse,
            "pid": os.getpid(),
        }
        self._db = Database(folder.database, read_only=True)
        self._remote = remote_of(config)
        seed: int = self._db.get_meta("seed")
        info = RepositoryInfo(self._db.get_meta("uuid"), seed)
        self._remote.expect(partial(is_description_of, info))
        cache = Cache(folder.blocks, config.limit_bytes, 0, is_owner=False)
        self._fetcher = Fetcher(
            self._remote, seed, bytes_per_second=config.download_bytes_per_second
        )
        self._blocks = BlockReader(self._db, cache, self._fetcher, seed)
        self._pool = ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="syncer-fetch")
        self.vfs = self._vfs(epoch)

    def _vfs(self, epoch: int) -> MomentVfs:
        epochs = Epochs(self._db)
        contents = Contents(self._db, epochs)
        tree = Tree(self._db, epochs, contents)
        files = Files(
            tree,
            contents,
            self._blocks,
            read_ahead=self._read_ahead,
            max_read_ahead_bytes=_READ_AHEAD_BYTES,
            inline_limit_bytes=0,
            inline_total_bytes=0,
            update_atime=False,
        )
        history = History(self._db)
        moments = Moments(self._db, epochs, tree, history)
        states = States(self._db, tree, contents, self._blocks, files, history)
        vfs = MomentVfs(tree, self._blocks, files, history, moments, states, epoch)
        vfs.read_only = "it is a past state"
        return vfs

    def _read_ahead(self, block_ids: Sequence[bytes], heads_only: bool = False) -> None:
        fetch = partial(self._blocks.fetch_head, urgent=False)
        for block_id in block_ids:
            # Whoever reads a block that could not be fetched learns of it.
            fetched = self._pool.submit(fetch if heads_only else self._blocks.prefetch, block_id)
            fetched.add_done_callback(_forget)

    # What serves it asks

    @property
    def is_writer(self) -> bool:
        """The kernel may keep what it has seen: nobody changes it."""
        return True

    def operations(self, caller: Callable[[], Caller]) -> Operations:
        """What libfuse is to call."""
        return Operations(self.vfs, self, caller)

    def status(self) -> dict[str, Any]:
        """What it is; the keys are among those of the present's."""
        return dict(self._about)

    def stop(self) -> None:
        """End the threads and close; there is nothing to be made safe."""
        self._remote.close()
        self._pool.shutdown(cancel_futures=True)
        self._db.close()

    # mount.Host

    def started(self) -> None:
        """See `mount.Host`."""

    def sync_metadata(self) -> None:
        """See `mount.Host`."""

    def set_abandoned_probe(self, is_abandoned: Callable[[], bool]) -> None:
        """See `mount.Host`."""
        self._fetcher.flights.is_abandoned = is_abandoned

    def remote_capacity(self) -> tuple[int, int] | None:
        """See `mount.Host`."""
        return None


def _forget(fetched: Future[None]) -> None:
    with contextlib.suppress(SyncerError):
        if not fetched.cancelled():
            fetched.result()
