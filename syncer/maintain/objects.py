"""The remote's objects against what the metadata names.

Each block that contents name, now and in the past, must be there with the right length; with the
data read, right in every byte. What is not, and has a good local copy, is uploaded again. The
remote's listing and the names are compared in portions, by the first byte of the ids. Objects that
nobody names are counted, and left alone: another computer's may be on their way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from syncer import codec
from syncer.blocks.fetch import block_key
from syncer.blocks.store import Blocks
from syncer.errors import CorruptError, FormatError, MissingError
from syncer.exchange.recover import fetch_ahead
from syncer.exchange.wire import (
    MAX_OBJECT_BYTES,
    Manifest,
    chunk_key,
    decode_chunk,
    decode_manifest,
    decode_part,
    decode_segment,
    log_folder,
    manifest_key,
    parse_epoch,
    parse_span,
    part_key,
    segment_key,
)
from syncer.exchange.writers import Chain, RepositoryInfo, Writers
from syncer.maintain.findings import Progress, Report
from syncer.maintain.named import named_with
from syncer.metadata.connection import Reader
from syncer.metadata.db import Database
from syncer.remote.base import Remote

#: Objects looked into at once.
_THREADS = 8
#: Blocks that are looked at once more together, since that needs all names.
_SUSPECTS = 10_000


class RemoteBlocks:
    """One check of the blocks on the remote."""

    def __init__(
        self,
        db: Database,
        blocks: Blocks,
        remote: Remote,
        report: Report,
        still_named: Callable[[Collection[bytes]], set[bytes]],
        *,
        repairs: bool,
        reads_data: bool,
    ) -> None:
        """`still_named` tells which of some blocks something names by now."""
        self._db = db
        self._blocks = blocks
        self._remote = remote
        self._report = report
        self._still_named = still_named
        self._repairs = repairs
        self._reads_data = reads_data
        self._unnamed = 0
        #: Blocks that do not seem to be right, with the lengths of their places.
        self._suspects: dict[bytes, int] = {}
        self._lost: set[bytes] = set()

    def check(self, reader: Reader, progress: Progress) -> set[bytes]:
        """Compare; returns the blocks that are good neither there nor here. Raises OfflineError."""
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="syncer-fsck") as pool:
            for first_byte in range(256):
                progress("the server's blocks", first_byte, 256)
                self._check_part(first_byte, named_with(reader, first_byte), pool)
                if len(self._suspects) >= _SUSPECTS:
                    self._look_again(pool)
            self._look_again(pool)
        if self._unnamed:
            self._report.note(
                f"{self._unnamed} blocks on the server are named by nothing that this computer"
                " knows; they are left alone"
            )
        return self._lost

    def _check_part(
        self, first_byte: int, named: dict[bytes, tuple[bool, int]], pool: ThreadPoolExecutor
    ) -> None:
        listed = {
            entry.name: entry.size_bytes for entry in self._remote.list(f"blocks/{first_byte:02x}")
        }
        dirty = self._dirty(first_byte)
        checked = []
        for block_id, (_recent, length) in named.items():
            size_bytes = listed.pop(block_id.hex(), None)
            if block_id not in dirty:
                checked.append((block_id, size_bytes, length))
        self._unnamed += len(listed)
        for (block_id, _, length), wrong in zip(
            checked, pool.map(lambda item: self._wrong(*item), checked), strict=True
        ):
            if wrong:
                self._suspects[block_id] = length

    def _look_again(self, pool: ThreadPoolExecutor) -> None:
        """See which of the suspects are bad. While others work, one may have lost its last name
        since the check began, so that it was never uploaded, or is thrown away."""
        suspects, self._suspects = self._suspects, {}
        named = self._still_named(suspects) if suspects else set()
        left = [
            (block_id, length)
            for block_id, length in suspects.items()
            if block_id in named and not self._blocks.is_dirty(block_id)
        ]
        for (block_id, _), wrong in zip(
            left, pool.map(lambda item: self._wrong(item[0], None, item[1]), left), strict=True
        ):
            if wrong:
                self._heal(block_id, wrong)

    def _dirty(self, first_byte: int) -> set[bytes]:
        low = bytes([first_byte])
        return {
            row[0]
            for row in self._db.query(
                "SELECT id FROM block WHERE id BETWEEN ? AND ? AND dirty IS NOT NULL",
                (low, low + b"\xff" * 16),
            )
        }

    def _wrong(self, block_id: bytes, listed_bytes: int | None, length: int) -> str:
        """What is wrong with an object, in words; "" if nothing is."""
        usual = codec.header_bytes(length) + length
        if listed_bytes == usual and not self._reads_data:
            return ""
        try:
            if self._reads_data:
                stored = self._remote.get(block_key(block_id), 0, codec.MAX_OBJECT_BYTES + 1)
                codec.decode_block(stored, block_id, self._blocks.seed)
                return ""
            # A block may be shorter than its place in the file; its header tells.
            head = self._remote.get(block_key(block_id), 0, codec.MAX_HEADER_BYTES)
            found = codec.decode_header(head, block_id, self._blocks.seed)
            there = self._remote.stat(block_key(block_id)).size_bytes
            return "" if there == found.object_bytes else "its length is wrong"
        except MissingError:
            return "it is missing"
        except (CorruptError, FormatError) as error:
            return str(error)

    def _heal(self, block_id: bytes, wrong: str) -> None:
        content, where = self._blocks.read_whole(block_id), "the local copy is good"
        if content is None:
            content, where = self._in_trash(block_id), "its trash has it"
        if content is None:
            self._lost.add(block_id)
            return
        if self._repairs:
            self._remote.put(
                block_key(block_id), codec.encode_block(content, self._blocks.seed, block_id)
            )
        self._report.found(
            "bad block on the server",
            f"block {block_id.hex()}: {wrong}; {where}",
            is_repaired=self._repairs,
        )

    def _in_trash(self, block_id: bytes) -> bytes | None:
        """A block that was thrown away, and is named all the same: see `sweep`."""
        try:
            return bytes(self._blocks.fetcher.download(block_id, urgent=False))
        except (MissingError, CorruptError, FormatError):
            return None


# The history


@dataclass(frozen=True)
class _Source:
    remote: Remote
    info: RepositoryInfo
    report: Report


def check_log(
    remote: Remote,
    info: RepositoryInfo,
    position: int,
    report: Report,
    progress: Progress,
    *,
    reads_data: bool,
) -> None:
    """Look whether the remote's checkpoints and segments lead to `position`, the epoch up to which
    this database knows them."""
    source = _Source(remote, info, report)
    progress("the server's history", 0, 0)
    try:
        chain = Writers(remote, info).look()
    except (CorruptError, FormatError) as error:
        report.found("bad history on the server", str(error))
        return
    start = 0
    for machine in {link.machine for link in chain.links}:
        for epoch, manifest in _manifests(source, machine):
            link = chain.link_of(epoch)
            if link is None or link.machine != machine:
                continue
            if _is_whole(source, manifest, progress, reads_data=reads_data):
                start = max(start, epoch)
    _check_segments(source, chain, start, position, progress)


def _manifests(source: _Source, machine: int) -> Iterator[tuple[int, Manifest]]:
    for entry in source.remote.list(f"checkpoint/{machine:016x}"):
        epoch = parse_epoch(entry.name)
        if epoch is None:
            continue
        key = manifest_key(machine, epoch)
        try:
            data = source.remote.get(key, 0, MAX_OBJECT_BYTES + 1)
            yield epoch, decode_manifest(data, source.info.seed, key)
        except MissingError:
            # The writer has just deleted it in favour of a newer one.
            continue
        except (CorruptError, FormatError) as error:
            source.report.found("bad checkpoint on the server", str(error))


def _is_whole(source: _Source, manifest: Manifest, progress: Progress, *, reads_data: bool) -> bool:
    folder = f"checkpoint/{manifest.machine:016x}/chunks"
    listed = {entry.name for entry in source.remote.list(folder)}
    wanted = [
        (number, chunk_id)
        for number, ids in manifest.chunks.items()
        for chunk_id in codec.split_ids(ids)
    ]
    missing = [chunk_id for _number, chunk_id in wanted if chunk_id.hex() not in listed]
    if missing:
        source.report.found(
            "bad checkpoint on the server",
            f"{manifest_key(manifest.machine, manifest.epoch)} lacks {len(missing)} of its parts",
        )
        return False
    if not reads_data:
        return True
    keys = [chunk_key(manifest.machine, chunk_id) for _number, chunk_id in wanted]
    try:
        with contextlib.closing(fetch_ahead(source.remote, keys)) as fetched:
            for place, (_key, data) in enumerate(fetched):
                progress("the server's checkpoint", place, len(keys))
                decode_chunk(data, source.info.seed, manifest, *wanted[place])
    except (CorruptError, FormatError, MissingError) as error:
        source.report.found("bad checkpoint on the server", str(error))
        return False
    return True


def _check_segments(
    source: _Source, chain: Chain, start: int, position: int, progress: Progress
) -> None:
    """The segments behind epoch `start`, each naming the one before it."""
    at, before = start, ""
    for link in chain.links:
        end = position if link.end is None else min(position, link.end)
        names = (entry.name for entry in source.remote.list(log_folder(link.machine)))
        for first, last in sorted(span for name in names if (span := parse_span(name))):
            key = segment_key(link.machine, first, last)
            if link.end is None and first == position + 1:
                # One that a crash let its writer forget, most likely; or a follower is behind.
                _parent(source, key)
            if last <= at or first <= link.after or last > end:
                continue
            if first != at + 1:
                break
            progress("the server's log", last, position)
            parent = _parent(source, key)
            if parent is None:
                return
            if before and parent != before:
                source.report.found(
                    "bad history on the server", f"{key} does not continue {before}"
                )
                return
            at, before = last, key
    if at < position:
        source.report.found(
            "bad history on the server",
            f"it ends at epoch {at}, and this computer knows it up to {position}",
        )


def _parent(source: _Source, key: str) -> str | None:
    """What a segment says was before it; None if it can't be read."""
    try:
        data = source.remote.get(key, 0, MAX_OBJECT_BYTES + 1)
        segment = decode_segment(data, source.info.seed, key)
        for number in range(1, len(segment.parts) + 1):
            part = source.remote.get(part_key(key, number), 0, MAX_OBJECT_BYTES + 1)
            decode_part(part, source.info.seed, segment, number)
        return segment.parent
    except (CorruptError, FormatError, MissingError) as error:
        source.report.found("bad history on the server", str(error))
        return None
