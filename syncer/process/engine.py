"""One data directory at work: the parts, wired together, and the order in which they run.

The engine is the same whether a mount serves (`daemon`) or a command works on a data directory
that is not mounted. What it offers is what the control socket offers.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from syncer.blocks.cache import Cache
from syncer.blocks.fetch import Fetcher
from syncer.blocks.store import Blocks
from syncer.config import Config
from syncer.errors import CorruptError, SyncerError, TemporaryError, UsageError
from syncer.exchange.incoming import Touched
from syncer.exchange.journal import Journal
from syncer.exchange.loop import ExchangeLoop
from syncer.exchange.roles import Exchange
from syncer.exchange.stranded import keep_blocks
from syncer.maintain.prune import Pruner
from syncer.metadata.contents import Contents
from syncer.metadata.epochs import Epochs
from syncer.metadata.history import History
from syncer.metadata.moments import Moments
from syncer.metadata.outbox import Outbox
from syncer.metadata.schema import REBUILT
from syncer.metadata.tree import Tree
from syncer.mount import Operations
from syncer.process.capacity import Capacity
from syncer.process.committer import Committer
from syncer.process.ending import Ending
from syncer.process.flushing import Flusher
from syncer.process.folder import DataFolder, mending
from syncer.process.keeping import Keeping
from syncer.process.recovery import recover
from syncer.process.repository import open_database, remote_of
from syncer.process.stranded import Stranded
from syncer.process.timemachine import TimeMachine
from syncer.remote.base import STARTS_AFTER_SECONDS
from syncer.remote.retry import State
from syncer.transfer.keeper import PinKeeper
from syncer.transfer.threads import Transfer
from syncer.vfs.caller import Caller
from syncer.vfs.files import Files
from syncer.vfs.snapshots import SnapshotVfs
from syncer.vfs.states import States

if TYPE_CHECKING:
    from syncer.maintain.findings import Report
    from syncer.maintain.fsck import Options

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]

#: A segment whose blocks are on their way waits for them no longer than that, without its name.
_LAST_BLOCKS_SECONDS = 2.0
_PRUNER_ENDS_WITHIN_SECONDS = 5.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Engine:
    """The parts of one data directory. The caller holds the directory's lock.

    Safe for use from several threads after `start`.
    """

    def __init__(
        self,
        data: Path,
        config: Config,
        *,
        mountpoint: str = "",
        fuse: int = 0,
        update_atime: bool = True,
    ) -> None:
        """Open everything; no thread is started and the remote is not touched yet."""
        self.folder = DataFolder(data)
        self.config = config
        self._mountpoint = mountpoint
        self._fuse = fuse
        #: Whether a start is under way, which may have much to repair.
        self.is_starting = False
        self._started = False
        self._is_stopping = False
        #: Whether rows and block files are known to match, see `Ledger.sweep`.
        self._is_swept = False
        self._sweeper = threading.Thread(target=self._sweep, name="syncer-sweep", daemon=True)
        self._db = open_database(self.folder)
        self._db.standstill.on_begin(self._note_stop)
        try:
            self._journal = Journal(self._db, self.folder.segments)
        except CorruptError as error:
            self._db.close()
            raise CorruptError(f"{error}; {mending(self.folder)}") from error
        seed: int = self._db.get_meta("seed")
        was_far = bool(self._db.get_meta("far", 0))
        self._remote = remote_of(config, self.folder.path, was_far=was_far)
        self._cache = Cache(
            self.folder.blocks,
            config.limit_bytes,
            config.min_free_bytes,
            config.timeout_seconds,
        )
        self._fetcher = Fetcher(
            self._remote, seed, bytes_per_second=config.download_bytes_per_second
        )
        self._blocks = Blocks(self._db, self._cache, self._fetcher, seed)
        self._transfer = Transfer(self._blocks, self._remote, config)
        self._epochs = Epochs(self._db)
        self._contents = Contents(self._db, self._epochs)
        self._tree = Tree(self._db, self._epochs, self._contents)
        files = Files(
            self._tree,
            self._contents,
            self._blocks,
            read_ahead=self._transfer.read_ahead,
            max_read_ahead_bytes=config.read_ahead_bytes,
            inline_limit_bytes=config.inline_limit_bytes,
            inline_total_bytes=config.inline_total_bytes,
            update_atime=update_atime,
        )
        history = History(self._db)
        moments = Moments(self._db, self._epochs, self._tree, history)
        states = States(self._db, self._tree, self._contents, self._blocks, files, history)
        self.vfs = SnapshotVfs(self._tree, self._blocks, files, history, moments, states)
        self.vfs.is_listed = config.show_snapshots
        self._keeper = PinKeeper(self._tree, self._contents, self._blocks)
        self._transfer.on_short = self._keeper.hurry
        self.keeping = Keeping(self._tree, self._contents, self._blocks, self._keeper, states)
        self._committer = Committer(
            self._db,
            self._epochs,
            self._blocks,
            self.vfs,
            config.epoch_seconds,
            self._on_closed,
            self._journal.write,
        )
        self._exchange = Exchange(
            self._db,
            self._epochs,
            self._remote,
            socket.gethostname(),
            on_applied=self._on_applied,
            journaled=self._journal.newest,
            before_writing=self._blocks.forget_unnamed,
            note_marks=self._journal.note_marks,
            ready_objects=self._journal.objects,
            wait_uploaded=lambda: self._transfer.wait_uploaded(_LAST_BLOCKS_SECONDS),
            keep_stranded=self._keep_stranded,
            redo_blocks=self._blocks.redo,
        )
        self._loop = ExchangeLoop(self._exchange, after_step=self._note_role)
        self._outbox = Outbox(self._db)
        self._flusher = Flusher(
            self._outbox,
            self._epochs,
            files,
            self._blocks,
            self._transfer,
            self._committer,
            self._exchange,
            self._loop,
            self._remote.health,
            self.status,
        )
        self.pruner = Pruner(
            self._db,
            self._tree,
            history,
            moments,
            self._blocks,
            self._transfer.uploads,
            self._exchange,
            self._remote,
            config=lambda: self.config,
            close_epoch=self._close_epoch,
        )
        self.past = TimeMachine(
            self._db, self._tree, self._contents, self._blocks, history, moments,
            close_epoch=self._close_epoch, refusal=lambda: self.vfs.read_only,
        )  # fmt: skip
        self.stranded = Stranded(self._db, self._outbox, self._tree, files, self._close_epoch)
        self._capacity = Capacity(self._remote)
        self._note_role()

    # Life

    @property
    def is_writer(self) -> bool:
        """Whether this machine may change the repository."""
        return self._exchange.role == "writer"

    def take_over(self) -> None:
        """Make this machine the repository's writer; before `start`. Raises DisplacedError."""
        self._exchange.take_over()
        self._note_role()

    def operations(self, caller: Callable[[], Caller]) -> Operations:
        """What libfuse is to call."""
        return Operations(self.vfs, self, caller)

    def start(self) -> None:
        """Repair what an unclean end left behind, and start the threads. Not before a fork."""
        self.is_starting = True
        try:
            self._start()
        finally:
            self.is_starting = False

    def _start(self) -> None:
        boot, last_boot = _BOOT_ID.read_text().strip(), self._recover()
        # On the disk before any file is made: a power cut must not look like a clean end.
        self._db.set_meta("boot", boot)
        # All that there was before is power-safe by now.
        self._db.set_meta("durable", self._epochs.open - 1)
        self._db.sync()
        self.vfs.files.adopt()
        self._remote.prepare()
        # `ls`, `find` and `rm` begin with statfs, which asks for it.
        self._capacity.wait(STARTS_AFTER_SECONDS)
        if last_boot:
            # A copy that is gone may have been a pinned one.
            self._tree.pins.loosen()
        if self._is_stopping:
            raise TemporaryError("it is being unmounted")
        # From here on the end saves what there is, though not all of the threads may start.
        self._started = True
        self._transfer.start()
        self._keeper.start()
        self._committer.start()
        self._loop.start()
        self.pruner.start()
        self._is_swept = not last_boot
        self._sweeper.start()

    def _recover(self) -> str:
        """Repair what an unclean end left behind; returns the boot id of then, "" if it was clean.

        The one of a database that was rebuilt is none, so that its blocks are not swept yet.
        """
        last_boot: str = self._db.get_meta("boot", "")
        if last_boot and last_boot != REBUILT:
            boot = _BOOT_ID.read_text().strip()
            recover(self._db, self._blocks, self._tree, power_was_cut=last_boot != boot)
        self.vfs.hidden.recover()
        return "" if last_boot == REBUILT else last_boot

    def started(self) -> None:
        """libfuse is ready; see `mount.Host`."""
        self.start()

    def _sweep(self) -> None:
        if self._is_swept:
            return
        try:
            for block_id in self._blocks.sweep(lambda: self._is_stopping):
                log.error("the local copy of block %s is missing", block_id.hex())
            # A pinned copy that is gone may have been taken for one that is there until now.
            self._tree.pins.loosen()
            # Else the next start goes through them again.
            self._is_swept = not self._is_stopping
        except SyncerError as error:
            log.warning("the local blocks could not be checked: %s", error)

    def stop(self) -> None:
        """Make everything safe locally, end the threads and close.

        A step that fails keeps none of the others from its turn. Raises what the first of them
        raised: then not everything is safe, and the next start takes this end for an unclean one.
        """
        self._is_stopping = True
        self.vfs.read_only = "it is being unmounted"
        end = Ending()
        if self._started:
            end.take(self.vfs.hidden.stop)
            end.take(self._committer.stop)
            self.pruner.ask_to_stop()
            # What is under way may finish; then the remote's end breaks every wait for it.
            end.take(self._transfer.stop)
        is_far, is_near = self._remote.is_far, self._remote.is_near
        end.take(self._remote.close)
        if self._started:
            end.take(self._keeper.stop)
            end.take(lambda: self.pruner.stop(_PRUNER_ENDS_WITHIN_SECONDS))
            end.take(self._loop.stop)
            if self._sweeper.ident is not None:
                end.take(self._sweeper.join)
            if is_far or is_near:
                end.take(lambda: self._db.set_meta("far", int(is_far)))
            if self._is_swept and not end.failure:
                end.take(self._note_clean_end)
        end.take(self._db.close)
        reason = self._db.standstill.reason
        if end.failure and isinstance(reason, CorruptError):
            raise CorruptError(f"{reason}; {mending(self.folder)}") from end.failure
        if end.failure:
            raise end.failure

    def _note_clean_end(self) -> None:
        self._db.set_meta("boot", "")
        self._db.sync()

    def _close_epoch(self) -> None:
        self._committer.round(seal=True)

    def _on_closed(self) -> None:
        self._transfer.kick()
        self._loop.kick()

    def _on_applied(self, touched: Touched | None) -> None:
        """Another machine's changes are in the tables: these, or (None) perhaps all."""
        self._tree.forget()
        pins = self._tree.pins
        pins.forget()
        if pins.tops():
            for number in touched.nodes if touched else ():
                if pins.is_pinned(number):
                    pins.want(number)
            pins.loosen()
        self._epochs.restart()
        self.vfs.files.reload()
        self.pruner.kick()

    def _note_role(self) -> None:
        if self._is_stopping or self._db.standstill.reason is not None:
            return
        reasons = {
            "follower": "another machine is the repository's writer; see: syncer mount --take-over",
            "displaced": "another machine has become the repository's writer",
        }
        self.vfs.read_only = reasons.get(self._exchange.role)

        self._transfer.uploads.allow(self._exchange.role != "displaced")

    def _keep_stranded(self) -> None:
        self._transfer.uploads.allow(False)
        keep_blocks(self._db, self._blocks)

    def _note_stop(self) -> None:
        """The database can't go on: serve what can be read, and change nothing any more."""
        self.vfs.read_only = "its database can't be changed any more; see status"
        log.error("%s", self._stop_text())

    def _stop_text(self) -> str:
        """Why nothing is changed any more, and what to do; "" if all is well."""
        reason = self._db.standstill.reason
        if reason is None:
            return ""
        if isinstance(reason, CorruptError):
            return f"{reason}; unmount it, and {mending(self.folder)}"
        return f"{reason}; unmount it, look after the disk, and mount it again"

    # mount.Host

    def sync_metadata(self) -> None:
        """See `mount.Host`."""
        self._db.sync()

    def set_abandoned_probe(self, is_abandoned: Callable[[], bool]) -> None:
        """See `mount.Host`."""

        def may_leave() -> bool:
            return self._committer.is_out_of_patience() or is_abandoned()

        self._fetcher.flights.is_abandoned = self._cache.budget.is_abandoned = may_leave

    def remote_capacity(self) -> tuple[int, int] | None:
        """See `mount.Host`."""
        return self._capacity.known()

    # Commands

    def status(self) -> dict[str, Any]:
        """The state of things; the keys are documented in docs/commands.md and stable."""
        transfer = self._transfer.status()
        exchange = self._exchange.status()
        health = self._remote.health.report()
        nodes, file_bytes = self._tree.totals()
        oldest_epoch, unpublished = self._outbox.oldest(), self._outbox.count()
        # Small rewrites that an earlier process left belong to no open file yet.
        patched = len(self._contents.patched_nodes())
        buffered = max(self.vfs.files.unsaved_count(), patched)
        is_safe = oldest_epoch is None and not transfer.dirty_blocks and not buffered
        # Nobody knows where the server is that has it all.
        is_safe = is_safe and health.state is not State.FOREIGN and not self._exchange.setback
        return {
            "safe": is_safe,
            "dirty_bytes": transfer.dirty_bytes,
            "dirty_blocks": transfer.dirty_blocks,
            "dirty_files": max(unpublished.files, buffered),
            "oldest_dirty_seconds": self._age_seconds(oldest_epoch),
            "uploads_per_second": transfer.uploads.blocks_per_second,
            "upload_bytes_per_second": transfer.uploads.bytes_per_second,
            "uploaded_bytes": transfer.uploads.uploaded_bytes,
            "uploads_in_flight": transfer.uploads.in_flight,
            "cache_bytes": transfer.used_bytes,
            "cache_limit_bytes": transfer.limit_bytes,
            "cache_floor_bytes": self.config.min_free_bytes,
            "cache_blocks": transfer.local_blocks,
            "cache_hits": transfer.uses - transfer.misses,
            "cache_misses": transfer.misses,
            "fetched_blocks": transfer.fetched_blocks,
            "fetched_bytes": transfer.fetched_bytes,
            "evicted_blocks": transfer.evicted_blocks,
            **self.keeping.summary(),
            "waiting": transfer.waiting,
            "metadata_bytes": self._db.size_bytes(),
            "files": nodes,
            "file_bytes": file_bytes,
            "open_files": self.vfs.files.count(),
            "remote": {
                "location": self._remote.name,
                "state": health.state.value,
                "error": health.error or transfer.uploads.error or exchange.error,
            },
            "role": exchange.role,
            "generation": exchange.generation,
            "writer": exchange.writer,
            "published_epoch": exchange.published,
            "unpublished_epochs": exchange.unpublished,
            "stranded_changes": (unpublished.changes + patched) * (exchange.role == "displaced"),
            "damaged_blocks": [block_id.hex() for block_id, _ in transfer.uploads.damaged],
            "unreadable_files": self.vfs.files.unreadable_paths(),
            "errors": self._errors(transfer.last_worker_failure),
            "pid": os.getpid(),
            "data": str(self.folder.path),
            "mountpoint": self._mountpoint,
            "fuse": self._fuse,
        }

    def _errors(self, worker_failure: str) -> list[str]:
        stop = self._stop_text()
        of_threads = (worker_failure, self._loop.error, self.pruner.error)
        committer = "" if stop else self._committer.error
        found = (stop, committer, *of_threads, self._exchange.setback)
        return [text for text in found if text]

    def _age_seconds(self, epoch: int | None) -> float:
        row = self._db.query_one("SELECT time_ns FROM epoch WHERE seq = ?", (epoch,))
        return max(0.0, (time.time_ns() - row[0]) / 1e9) if row else 0.0

    def flush(self, timeout_seconds: float | None, progress: Progress) -> dict[str, Any]:
        """Wait until everything that was written so far is on the server; returns the status.

        Raises TemporaryError if that takes longer, or can't be while the server is away;
        DisplacedError if this machine may not publish any more; ForeignError: see `Flusher`.
        """
        return self._flusher.flush(timeout_seconds, progress)

    def fsck(self, options: Options, report: Report, progress: Progress) -> None:
        """Check everything, and repair it as far as that is safe now; see `maintain.fsck`."""
        # A mount need not wait for what few ever ask of it.
        from syncer.maintain.fsck import Fsck, Parts

        def tell(what: str, done: int, total: int) -> None:
            progress({"what": what, "done": done, "total": total})

        if options.repair and not self._started:
            self._recover()
        parts = Parts(
            self._db,
            self._epochs,
            self._contents,
            self._tree,
            self._blocks,
            self._remote,
            self._exchange,
            close_epoch=self._close_epoch,
            is_mounted=self._started,
        )
        Fsck(parts, options, report, tell).check()
        self._keeper.hurry()

    def set_config(self, key: str, text: str) -> None:
        """Change a setting; limits take effect at once, the rest with the next mount."""
        if key == "remote":
            raise UsageError("the remote of a data directory can't be changed; make a clone")
        self.config = self.config.with_value(key, text)
        self.config.save(self.folder.config)
        self._cache.budget.set_limits(self.config.limit_bytes, self.config.min_free_bytes)
        self._tree.pins.loosen()
        self._keeper.hurry()
        self.pruner.kick()
        self._fetcher.limit.set(self.config.download_bytes_per_second)
        self._transfer.uploads.limit.set(self.config.upload_bytes_per_second)
