"""Local block files against table `block`, and both against what contents name.

It may run while the collection is mounted: what looks wrong is looked at once more, as it is then.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from syncer.blocks.fetch import block_key
from syncer.blocks.store import Blocks
from syncer.codec import MAX_OBJECT_BYTES, decode_block
from syncer.errors import CorruptError, FormatError, MissingError
from syncer.maintain.findings import Progress, Report
from syncer.maintain.named import named_with, still_named
from syncer.metadata.connection import Reader
from syncer.metadata.db import Database
from syncer.remote.base import Remote


@dataclass
class Outcome:
    """What the next steps are for."""

    lost: set[bytes] = field(default_factory=set)
    """Blocks that only this machine had, and that are gone."""
    unnamed: list[tuple[bytes, int]] = field(default_factory=list)
    """Whole blocks, with their lengths, that nothing names and nobody has had the time to drop."""


class LocalFiles:
    """One check of the local blocks."""

    def __init__(
        self,
        db: Database,
        blocks: Blocks,
        remote: Remote,
        report: Report,
        *,
        repairs: bool,
        reads_data: bool,
        is_mounted: bool,
        uses_remote: bool,
        keeps_strays: bool = False,
        is_unclean: bool = False,
    ) -> None:
        """`keeps_strays`: after a rebuilding, a file that nothing names may be someone's content,
        not the litter of a crash. `is_unclean`: such litter is to be expected, and goes with the
        next mount."""
        self._db = db
        self._blocks = blocks
        self._remote = remote
        self._report = report
        self._repairs = repairs
        self._reads_data = reads_data
        self._is_mounted = is_mounted
        self._uses_remote = uses_remote or repairs
        self._keeps_strays = keeps_strays
        self._is_unclean = is_unclean
        self._outcome = Outcome()
        #: Files without a row, of blocks that were named when the check began.
        self._rowless: list[bytes] = []
        #: Parts whose rows and files do not match.
        self._unswept: set[int] = set()

    def check(self, reader: Reader, progress: Progress) -> Outcome:
        """Look at all rows and files; `reader` has table `named`."""
        for first_byte in range(256):
            progress("local blocks", first_byte, 256)
            self._check_part(first_byte, named_with(reader, first_byte))
            for path in self._blocks.cache.foreign(first_byte):
                self._report.note(f"{path} is no block file; it is left alone")
        self._take_in()
        return self._outcome

    def sweep(self) -> bool:
        """Make rows and files match. After `Outcome.unnamed` is seen to: it unlinks strays.

        Returns whether there was something to do, so that local copies may have gone.
        """
        for first_byte in self._unswept:
            self._blocks.sweep_part(first_byte)
        return bool(self._unswept)

    def _rows(self, first_byte: int) -> dict[bytes, tuple[int, int | None, int]]:
        low = bytes([first_byte])
        rows = self._db.query(
            "SELECT id, size, dirty, refs FROM block WHERE id BETWEEN ? AND ?",
            (low, low + b"\xff" * 16),
        )
        return {row[0]: row[1:] for row in rows}

    def _check_part(self, first_byte: int, named: dict[bytes, tuple[bool, int]]) -> None:
        rows = self._rows(first_byte)
        files = set(self._blocks.cache.ids(first_byte))
        is_swept = False
        for block_id in rows:
            is_swept |= self._check_row(block_id, named)
        # Named ones first: the sweep removes what has no row.
        for block_id in files - rows.keys():
            is_swept |= self._check_stray(block_id, named)
        if is_swept:
            self._unswept.add(first_byte)

    def _check_row(self, block_id: bytes, named: dict[bytes, tuple[bool, int]]) -> bool:
        """Whether a sweep has to follow."""
        wrong = self._wrong(block_id)
        row = self._row(block_id)
        if row is None:
            return False
        size_bytes, dirty, refs = row
        if wrong == "row":
            self._found("wrong block row", f"block {block_id.hex()}: {size_bytes} bytes in its row")
            if self._repairs:
                self._set_size(block_id)
        elif wrong and dirty is None:
            self._found("bad local copy", f"block {block_id.hex()}: its file is {wrong}")
            self._drop_file(block_id)
            return True
        elif wrong:
            self._lose(block_id, wrong)
            return True
        elif dirty is not None and not self._is_mounted and block_id not in named:
            self._found(
                "unnamed block", f"block {block_id.hex()} waits for its upload, and has no name"
            )
            self._outcome.unnamed.append((block_id, size_bytes))
        if (refs < 1) != (dirty is None):
            self._found("wrong block row", f"block {block_id.hex()}: {refs} references")
            self._change("UPDATE block SET refs = (dirty IS NOT NULL) WHERE id = ?", block_id)
        return False

    def _row(self, block_id: bytes) -> tuple[int, int | None, int] | None:
        row = self._db.query_one("SELECT size, dirty, refs FROM block WHERE id = ?", (block_id,))
        return None if row is None else (row[0], row[1], row[2])

    def _wrong(self, block_id: bytes) -> str:
        """What is wrong with a row's file, in a word; "row" if the row is what is wrong."""
        for _ in range(2):
            row = self._row(block_id)
            if row is None:
                return ""
            length = self._blocks.cache.size_bytes(block_id)
            if length == row[0] and not self._reads_data:
                return ""
            content = self._blocks.read_whole(block_id) if length else None
            if content is not None:
                return "row" if len(content) != row[0] else ""
        return "damaged" if self._blocks.cache.has(block_id) else "missing"

    def _set_size(self, block_id: bytes) -> None:
        content = self._blocks.read_whole(block_id)
        if content is not None:
            self._blocks.correct_size(block_id, len(content))

    def _drop_file(self, block_id: bytes) -> None:
        """Set the file of a clean block aside, if it is there; it is fetched when it is read."""
        if self._repairs:
            self._blocks.distrust(block_id)
            self._blocks.local(block_id)

    def _lose(self, block_id: bytes, wrong: str) -> None:
        """The file of a block that was not uploaded is bad: perhaps the remote has it all the
        same, from another file or another computer."""
        # Whoever puts the content once more is to look at the file.
        self._blocks.distrust(block_id)
        content = self._fetched(block_id) if self._uses_remote else None
        if content is None:
            self._outcome.lost.add(block_id)
            return
        self._found(
            "bad local copy", f"block {block_id.hex()}: its file is {wrong}; the server has it"
        )
        if self._repairs:
            self._blocks.set_aside(block_id, is_lost=True)
            self._blocks.cache.add(block_id, content)
            self._blocks.cache.sync([block_id])
            self._blocks.mark_clean([block_id])

    def _fetched(self, block_id: bytes) -> bytes | None:
        try:
            stored = self._remote.get(block_key(block_id), 0, MAX_OBJECT_BYTES + 1)
            return bytes(decode_block(stored, block_id, self._blocks.seed))
        except (MissingError, CorruptError, FormatError):
            return None

    def _check_stray(self, block_id: bytes, named: dict[bytes, tuple[bool, int]]) -> bool:
        """A file without a row, as a crash leaves it. Whether a sweep has to follow."""
        if self._row(block_id) is not None or not self._blocks.cache.has(block_id):
            return False
        if self._is_mounted and block_id not in named:
            # It may be somebody's who has just written it; the sweep knows better.
            return False
        content = self._blocks.read_whole(block_id)
        if block_id not in named and content is not None and self._keeps_strays:
            self._found("unnamed block", f"block file {block_id.hex()} has no name")
            self._outcome.unnamed.append((block_id, len(content)))
            return False
        if self._is_unclean and not self._repairs and block_id not in named:
            return False
        if block_id not in named or content is None:
            self._found("leftover file", f"block file {block_id.hex()} belongs to nothing")
            return True
        self._rowless.append(block_id)
        return False

    def _take_in(self) -> None:
        """Give rows to files that something names. While programs work, a file may have lost its
        row since the check began, as its block lost its last name, or to eviction."""
        if not self._rowless:
            return
        with self._db.snapshot() as reader:
            named = still_named(reader, self._rowless)
        for block_id in self._rowless:
            # Twice, for the time between one look's questions.
            if block_id not in named or not all(self._is_rowless(block_id) for _ in range(2)):
                continue
            self._found("block without a row", f"block {block_id.hex()} is there, and not noted")
            if self._repairs:
                # As one that the server lacks: another upload does no harm.
                with self._db.transaction():
                    self._blocks.take_back([block_id])

    def _is_rowless(self, block_id: bytes) -> bool:
        # In this order: a file that is about to go may be gone by the last question.
        return (
            self._row(block_id) is None
            and not self._blocks.is_passing(block_id)
            and self._blocks.cache.has(block_id)
        )

    def _found(self, kind: str, text: str) -> None:
        self._report.found(kind, text, is_repaired=self._repairs)

    def _change(self, sql: str, block_id: bytes) -> None:
        if self._repairs:
            with self._db.transaction():
                self._db.execute(sql, (block_id,))
