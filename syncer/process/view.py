"""A past state at work: what `syncer mount --at` serves.

A process of its own reads the database and the block files of the data directory, and changes
nothing there. So it needs no lock, and works beside the process that has the present mounted and
without one; neither waits for the other. What it shows is over, and stays as it is; only pruning
takes it away.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from syncer.blocks.cache import Cache
from syncer.blocks.fetch import Fetcher
from syncer.blocks.reader import KEPT_BLOCKS, BlockReader
from syncer.config import Config
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
from syncer.transfer.wishes import Wishes
from syncer.transfer.workers import Crew
from syncer.vfs.caller import Caller
from syncer.vfs.files import Files
from syncer.vfs.moment import MomentVfs
from syncer.vfs.states import States

#: Blocks that are fetched at once for readers, and how far ahead of them; both lie in memory.
_FETCH_THREADS = 6
_READ_AHEAD_BYTES = 16 << 20
_STOP_SECONDS = 5.0


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
        # More than is kept would push out what nobody has read yet.
        self._wishes = Wishes(self._blocks, KEPT_BLOCKS)
        self._crew = Crew()
        for number in range(_FETCH_THREADS):
            self._crew.add(f"readahead-{number + 1}", self._wishes.step)
        self.vfs = self._vfs(epoch)

    def _vfs(self, epoch: int) -> MomentVfs:
        epochs = Epochs(self._db)
        contents = Contents(self._db, epochs)
        tree = Tree(self._db, epochs, contents)
        files = Files(
            tree,
            contents,
            self._blocks,
            read_ahead=self._wishes.add,
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

    # What serves it asks

    @property
    def is_writer(self) -> bool:
        """The kernel may keep what it has seen: nobody changes it."""
        return True

    @property
    def is_starting(self) -> bool:
        """There is nothing to be started."""
        return False

    def operations(self, caller: Callable[[], Caller]) -> Operations:
        """What libfuse is to call."""
        return Operations(self.vfs, self, caller)

    def status(self) -> dict[str, Any]:
        """What it is; the keys are among those of the present's."""
        return dict(self._about)

    def stop(self) -> None:
        """End the threads and close; there is nothing to be made safe."""
        self._crew.stopping.set()
        self._wishes.end()
        # Breaks every wait for it.
        self._remote.close()
        self._crew.stop(_STOP_SECONDS)
        self._db.close()

    # mount.Host

    def started(self) -> None:
        """See `mount.Host`. Threads start now, after all forks."""
        self._crew.start()

    def sync_metadata(self) -> None:
        """See `mount.Host`."""

    def set_abandoned_probe(self, is_abandoned: Callable[[], bool]) -> None:
        """See `mount.Host`."""
        self._fetcher.flights.is_abandoned = is_abandoned

    def remote_capacity(self) -> tuple[int, int] | None:
        """See `mount.Host`."""
        return None
