"""A data directory that publishes, keeps history and prunes, over a remote in memory.

Nothing runs in the background: `settle` does what the threads would. The clock is the rig's own.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from syncer import codec
from syncer.blocks.fetch import block_key, trash_key
from syncer.codec import HOLE, split_ids
from syncer.config import Config
from syncer.exchange.recover import clone
from syncer.exchange.roles import Exchange
from syncer.exchange.writers import init_repository, set_up_database
from syncer.maintain.policy import Policy
from syncer.maintain.prune import Pruner
from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.history import History
from syncer.metadata.moments import Moments
from syncer.metadata.tree import Tree
from syncer.process.committer import Committer
from syncer.transfer.giveway import GiveWay
from syncer.transfer.uploads import Uploads
from syncer.vfs.snapshots import SnapshotVfs
from syncer.vfs.states import States
from tests.block_rig import SEED
from tests.memory_remote import MemoryRemote
from tests.vfs_rig import MACHINE, VfsRig

SECOND_NS = 10**9
#: Keeps the newest moment and what has a name.
NEWEST = Policy(yearly=1)

Copy = dict[bytes, tuple[Any, ...]]


class PruneRig(VfsRig):
    """`folder` is a new one; with `remote`, a clone of what is there."""

    def __init__(self, folder: Path, remote: MemoryRemote | None = None) -> None:
        self.now_ns = 1_700_000_000 * SECOND_NS
        self.grace_seconds = 0
        #: Settings that say what to keep without a command.
        self.policy: dict[str, int] = {}
        self._shared = remote
        super().__init__(folder)

    def _open(self) -> None:
        path = self.folder / "metadata.db"
        if self._shared is not None:
            self.remote = self._shared
            if not path.exists():
                clone(self.remote, path, "clone")
        elif not path.exists():
            info = init_repository(self.remote, MACHINE, "rig")
            with closing(Database(path)) as db:
                set_up_database(db, info, MACHINE)
                epochs = Epochs(db, self.clock_ns)
                Tree(db, epochs, Contents(db, epochs)).make_root(1000, 1000)
        super()._open()
        self.epochs.now_ns = self.clock_ns
        self.history = History(self.db)
        self.moments = Moments(self.db, self.epochs, self.tree, self.history, self.clock_ns)
        files = self.files_table
        states = States(self.db, self.tree, self.contents, self.blocks, files, self.history)
        self.vfs: SnapshotVfs = SnapshotVfs(
            self.tree, self.blocks, files, self.history, self.moments, states
        )
        self.committer = Committer(
            self.db, self.epochs, self.blocks, self.vfs, 3600.0, lambda: None
        )
        self.exchange = Exchange(
            self.db,
            self.epochs,
            self.remote,
            "rig",
            on_applied=lambda touched: self.tree.forget(),
            before_writing=self.blocks.forget_unnamed,
            redo_blocks=self.blocks.redo,
        )
        never = GiveWay(lambda: 0, lambda: False)
        self.uploads = Uploads(
            self.blocks, self.remote, threading.Event(), at_once=4, gives_way=never
        )
        self.pruner = Pruner(
            self.db,
            self.tree,
            self.history,
            self.moments,
            self.blocks,
            self.uploads,
            self.exchange,
            self.remote,
            config=lambda: Config(
                remote="memory",
                limit_bytes=self.limit_bytes,
                grace_seconds=self.grace_seconds,
                **self.policy,
            ),
            close_epoch=lambda: self.round(seal=True),
            clock_ns=self.clock_ns,
        )

    def clock_ns(self) -> int:
        return self.now_ns

    # What threads would do

    def advance(self, seconds: float = 10.0) -> int:
        """End the epoch, and let time pass; returns the newest closed epoch."""
        self.round(seal=True)
        self.now_ns += int(seconds * SECOND_NS)
        return self.moments.latest()

    def publish(self) -> None:
        """All that was written is on the remote."""
        self.round(seal=True)
        self.upload_all()
        while self.exchange.publish_once():
            pass
        if self.exchange.setback:
            # What the remote has lost comes first.
            self.upload_all()
            while self.exchange.step():
                pass

    def settle(self) -> None:
        """All that is decided is done."""
        while not self.pruner._work():
            self.publish()

    def prune(self, policy: Policy = NEWEST) -> None:
        """As the command does."""
        self.publish()
        self.pruner._decide(policy)
        self.publish()
        self.settle()

    def sweep(self) -> None:
        """Search the remote for garbage."""
        self.publish()
        self.db.set_meta("sweep_ns", 1)
        self.settle()

    def snapshot(self, name: str) -> Copy:
        """Name the state of now; returns a copy of it."""
        self.round(seal=True)
        self.moments.take(name)
        self.round(seal=True)
        return self.copy()

    def write(self, path: bytes, data: bytes) -> None:  # type: ignore[override]
        """Make a file, or give one another content."""
        if self.tree.lookup(1, path[1:]) is not None:
            self.vfs.unlink(path)
        self.make(path, data)

    # What there is

    def copy(self, top: bytes = b"") -> Copy:
        """All below a folder: path -> its kind, mode, size and times, content, xattrs."""
        found: Copy = {}
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            for name in self.list(folder or b"/"):
                path = folder + b"/" + name
                node = self.vfs.getattr(path)
                held: object = node.target
                if stat.S_ISREG(node.mode):
                    held = self.read(path)
                elif stat.S_ISDIR(node.mode):
                    waiting.append(path)
                xattrs = {key: self.vfs.getxattr(path, key) for key in self.vfs.listxattr(path)}
                found[path[len(top) :]] = (node.mode, node.nlink, node.mtime_ns, held, xattrs)
        return found

    def copy_of(self, name: str) -> Copy:
        """The same of a snapshot."""
        return self.copy(b"/.snapshots/" + name.encode())

    def named(self) -> set[bytes]:
        """The blocks that the metadata names."""
        rows = self.db.query(
            "SELECT data FROM content WHERE run >= 0"
            " UNION ALL SELECT data FROM content_past WHERE run >= 0"
        )
        return {block_id for row in rows for block_id in split_ids(row[0])} - {HOLE}

    def stored(self, folder: str = "blocks") -> set[bytes]:
        """The blocks that have an object on the remote; those under `trash` with that."""
        return {
            bytes.fromhex(key.rpartition("/")[2])
            for key in self.remote.objects
            if key.startswith(f"{folder}/")
        }

    def check_kept(self) -> None:
        """Whatever is named can be had, whole: from the remote, or here and to be uploaded."""
        objects = self.remote.objects
        for block_id in self.named():
            if self.blocks.is_dirty(block_id):
                assert self.blocks.local(block_id) is not None
                continue
            data = objects.get(block_key(block_id)) or objects.get(trash_key(block_id))
            assert data is not None, f"block {block_id.hex()} is lost"
            codec.decode_block(data, block_id, SEED)

    def forget_locally(self) -> None:
        """Nothing is local any more but what the remote lacks."""
        self.publish()
        self.blocks.collect()
        self.evict_all()


class Interrupted(BaseException):
    """The process dies here. Not an Exception: nobody may catch it."""


class Effects:
    """Counts what a rig does to its remote and its database, and acts before one of these.

    While it is entered. `action` is called once, before effect number `at`, counted from 0.
    """

    def __init__(self, rig: PruneRig, at: int, action: Callable[[], None]) -> None:
        self._rig = rig
        self._at = at
        self._action = action
        self._lock = threading.Lock()
        self._lists = 0
        self.count = 0

    def _effect(self) -> None:
        with self._lock:
            is_due = self.count == self._at
            self.count += 1
        if is_due:
            self._action()

    def __enter__(self) -> Effects:
        self._perform, self._begin = self._rig.remote._perform, self._rig.db._transaction._begin
        depth = threading.local()

        def perform(method: str, action: Callable[[], Any], **options: Any) -> Any:
            # A sweep lists 256 folders; a few of these moments will do.
            self._lists += method == "list"
            if method != "list" or self._lists % 40 == 0:
                self._effect()
            return self._perform(method, action, **options)

        def begin() -> None:
            # Outside of any transaction, where this thread may be interrupted or do other work.
            if not self._rig.db._depth and not getattr(depth, "busy", False):
                depth.busy = True
                try:
                    self._effect()
                finally:
                    depth.busy = False
            self._begin()

        self._rig.remote._perform = perform  # type: ignore[method-assign]
        self._rig.db._transaction._begin = begin
        return self

    def __exit__(self, *_: object) -> None:
        self._rig.remote._perform = self._perform  # type: ignore[method-assign]
        self._rig.db._transaction._begin = self._begin


def ids_of(contents: Iterable[bytes]) -> set[bytes]:
    """The ids of the blocks that hold these contents."""
    return {codec.block_id(data, SEED) for data in contents}
