"""All checks of a data directory in their order, and the repairs.

1. the history's rows                what the history itself has wrong is mended by new versions
2. counts, notes, leftovers          set right
3. local block files                 set aside, taken in, or dropped: they are fetched again
4. blocks on the remote              uploaded again where the local copy is good
5. the remote's log, checkpoints     a new checkpoint

Each repair stands for itself and is done before the next is begun, so that a run which is cut off
has done a part, and the next one does the rest. What is damaged in this database alone, or in the
file of the database, is not repaired here, but by `rebuild`, before this.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from syncer.blocks.store import Blocks
from syncer.errors import CorruptError, FormatError, MissingError
from syncer.exchange.roles import Exchange
from syncer.exchange.writers import RepositoryInfo
from syncer.maintain.findings import Progress, Report
from syncer.maintain.invariants import (
    HISTORY,
    LEFTOVERS,
    LINKS,
    PAST,
    check_history,
    check_local,
    missing_from_outbox,
    newest_number,
)
from syncer.maintain.localfiles import LocalFiles
from syncer.maintain.lost import known_lost, note_lost, tell_lost
from syncer.maintain.mending import Mender, keep_block, mend_past
from syncer.maintain.named import note_named, still_named
from syncer.maintain.objects import RemoteBlocks, check_log
from syncer.maintain.totals import recount
from syncer.metadata.connection import Reader
from syncer.metadata.contents import Contents
from syncer.metadata.db import Database
from syncer.metadata.epochs import Epochs
from syncer.metadata.pruning import prune
from syncer.metadata.schema import REBUILT
from syncer.metadata.tree import Tree
from syncer.remote.base import Remote

_LOST = "lost block"
_LINK_KINDS = frozenset(check.kind for check in LINKS)
#: Damage that a new database is built for.
REBUILT_KINDS = tuple({check.kind for check in HISTORY} - _LINK_KINDS)
_LOG_KINDS = ("bad history on the server", "bad checkpoint on the server")


@dataclass(frozen=True)
class Options:
    """What is asked for."""

    repair: bool = False
    remote: bool = False
    read_data: bool = False


@dataclass(frozen=True)
class Parts:
    """What is looked at."""

    db: Database
    epochs: Epochs
    contents: Contents
    tree: Tree
    blocks: Blocks
    remote: Remote
    exchange: Exchange
    #: Makes everything power-safe, and closes the epoch.
    close_epoch: Callable[[], None]
    is_mounted: bool


class Fsck:
    """One run. `check` is called once."""

    def __init__(self, parts: Parts, options: Options, report: Report, progress: Progress) -> None:
        self._parts = parts
        self._options = options
        self._report = report
        self._progress = progress
        self._is_writer = parts.exchange.role == "writer"

    def check(self) -> None:
        """Raises what reaching the remote raises, if it is asked for; all else is reported."""
        self._check_metadata()
        with self._parts.db.snapshot(spills=True) as reader:
            published: int = self._parts.db.get_meta("published")
            note_named(reader, published, lambda count: self._progress("contents", count, 0))
            self._check_blocks(reader)
        if self._options.remote:
            self._check_log()
        if self._options.repair:
            self._parts.close_epoch()

    # Metadata

    def _check_metadata(self) -> None:
        report, db = self._report, self._parts.db
        with db.snapshot(spills=True) as reader:
            check_history(reader, report, self._progress)
            check_local(reader, report, self._progress)
        if not self._options.repair or report.result()["state"] == "clean":
            return
        if self._parts.is_mounted:
            report.note("metadata is repaired only while it is not mounted: unmount it first")
            return
        if report.has(*(check.kind for check in HISTORY)):
            self._mend()
        self._set_right()

    def _mend(self) -> None:
        if not self._is_writer:
            self._report.note("only the computer that writes can repair the history")
            return
        parts = self._parts
        if self._report.has(*(check.kind for check in PAST)):
            mend_past(parts.db)
            parts.epochs.restart()
        Mender(parts.db, parts.epochs).mend(self._progress)
        parts.tree.forget()
        again = Report()
        with parts.db.snapshot(spills=True) as reader:
            check_history(reader, again, self._progress)
        for check in HISTORY:
            if not again.has(check.kind):
                self._report.repaired(check.kind)

    def _set_right(self) -> None:
        db = self._parts.db
        with db.transaction():
            for leftover in LEFTOVERS:
                db.execute(leftover.repair)
                self._report.repaired(leftover.kind)
            published: int = db.get_meta("published")
            if self._parts.exchange.role != "follower":
                db.execute(f"INSERT OR IGNORE INTO outbox {missing_from_outbox(published)}")
            recount(db)
        with db.snapshot() as reader:
            newest = newest_number(reader, db.get_meta("machine"))
        if db.get_meta("next_node") <= newest:
            db.set_meta("next_node", newest + 1)
        self._parts.tree.forget()
        for kind in ("wrong total", "change outside the outbox", "node number twice"):
            self._report.repaired(kind)

    # Blocks

    def _check_blocks(self, reader: Reader) -> None:
        parts, options = self._parts, self._options
        self._check_garbage(reader)
        boot: str = parts.db.get_meta("boot", "")
        is_rebuilt = boot == REBUILT
        is_unclean = bool(boot) and not is_rebuilt and not parts.is_mounted
        if is_unclean and not options.repair:
            self._report.note("it was not ended in order; the next mount sees to what that left")
        files = LocalFiles(
            parts.db, parts.blocks, parts.remote, self._report, repairs=options.repair,
            reads_data=options.read_data, is_mounted=parts.is_mounted,
            uses_remote=options.remote, keeps_strays=is_rebuilt and self._is_writer,
            is_unclean=is_unclean,
        )  # fmt: skip
        outcome = files.check(reader, self._progress)
        can_note = options.repair and self._is_writer
        if can_note:
            self._keep(outcome.unnamed)
        known = known_lost(reader)
        if can_note:
            lost = self._give_up(outcome.lost)
        else:
            lost = {block_id for block_id in outcome.lost if parts.blocks.is_gone(block_id)}
        tell_lost(reader, self._report, _LOST, lost, is_noted=can_note)
        if options.repair:
            if files.sweep():
                # A copy that went may have been a pinned one.
                parts.tree.pins.loosen()
            if is_rebuilt:
                parts.db.set_meta("boot", "")
        if options.remote:
            self._check_remote_blocks(reader, known | lost, can_note=can_note)
        elif known:
            self._report.note(f"{len(known)} blocks are noted as lost")

    def _check_garbage(self, reader: Reader) -> None:
        """What is named must not be noted as to be thrown away."""
        db = self._parts.db
        for (block_id,) in reader.query("SELECT garbage.id FROM garbage JOIN named USING(id)"):
            if db.query_one("SELECT 1 FROM garbage WHERE id = ?", (block_id,)) is None:
                continue
            self._report.found(
                "named garbage",
                f"block {block_id.hex()} is to be thrown away, and is named",
                is_repaired=self._options.repair,
            )
            if self._options.repair:
                with db.transaction():
                    db.execute("DELETE FROM garbage WHERE id = ?", (block_id,))

    def _keep(self, unnamed: list[tuple[bytes, int]]) -> None:
        """Give blocks that nothing names a file each, in lost+found."""
        parts = self._parts
        for block_id, size_bytes in unnamed:
            with parts.db.transaction():
                placed = keep_block(parts.tree, parts.contents, block_id, size_bytes)
                if parts.blocks.is_dirty(block_id):
                    parts.blocks.name(placed)
                else:
                    parts.blocks.take_back(placed)

    def _give_up(self, block_ids: Iterable[bytes]) -> set[bytes]:
        """Let go of blocks that are gone, so that their epochs can be published, and note it.

        Returns those that were gone: since they were found, somebody may have copied a file in
        once more, and by that brought them back.
        """
        parts = self._parts
        for block_id in block_ids:
            parts.blocks.set_aside(block_id, is_lost=True)
        given_up: set[bytes] = set()
        for block_id in block_ids:
            with parts.db.transaction():
                if parts.blocks.is_gone(block_id):
                    note_lost(parts.tree, [block_id])
                    parts.blocks.give_up([block_id])
                    given_up.add(block_id)
        parts.blocks.collect()
        return given_up

    def _check_remote_blocks(self, reader: Reader, known: set[bytes], *, can_note: bool) -> None:
        parts, options = self._parts, self._options
        objects = RemoteBlocks(
            parts.db, parts.blocks, parts.remote, self._report, self._still_named,
            repairs=options.repair, reads_data=options.read_data,
        )  # fmt: skip
        nowhere = objects.check(reader, self._progress)
        fresh, still = nowhere - known, nowhere & known
        tell_lost(reader, self._report, "block lost on the server", fresh, is_noted=can_note)
        if can_note:
            note_lost(parts.tree, fresh)
            note_lost(parts.tree, known - nowhere, are_lost=False)
        if still:
            self._report.note(f"{len(still)} blocks are noted as lost")

    def _still_named(self, block_ids: Collection[bytes]) -> set[bytes]:
        """Those of these blocks that something names by now.

        A follower knows a past that the writer may have pruned, so it catches up before.
        """
        parts = self._parts
        if parts.exchange.role == "follower":
            try:
                parts.exchange.follow()
                prune(parts.db)
            except (CorruptError, FormatError, MissingError) as error:
                self._report.note(f"what the writer did since could not be taken over: {error}")
        with parts.db.snapshot() as reader:
            return still_named(reader, block_ids)

    def _check_log(self) -> None:
        parts, db = self._parts, self._parts.db
        info = RepositoryInfo(db.get_meta("uuid"), db.get_meta("seed"))
        position: int = db.get_meta("published")
        check_log(
            parts.remote, info, position, self._report, self._progress,
            reads_data=self._options.read_data,
        )  # fmt: skip
        if self._options.repair and self._report.has(*_LOG_KINDS):
            if not self._is_writer:
                self._report.note("only the computer that writes can make a new checkpoint")
                return
            parts.exchange.renew_checkpoint()
            for kind in _LOG_KINDS:
                self._report.repaired(kind)
