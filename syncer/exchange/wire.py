"""The bytes of segments, checkpoints and their chunks. Pure; what is decoded is not trusted.

Each is an envelope (see `codec`) with a msgpack array, in which tables are as `rows` packs them:

    segment   [uuid, generation, machine, first, last, parent, digests of its parts,
               epochs, versions of node, name, content, xattr, ends of the same]
    part      [versions of node, name, content, xattr, ends of the same]
    chunk     [range, epochs, versions of node, name, content, xattr]
    manifest  [uuid, generation, machine, epoch, parent, table of (range, chunk ids)]

A segment whose rows are too many for one object has the rest of them in parts. They are written
before the segment itself, the head, which names them by their digests: so the segment is there
whole once its head is, and without it nobody looks at the parts.

Decoders raise CorruptError with the object's key for whatever no syncer would write, and
FormatError for what a newer one may have written; nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack  # type: ignore[import-untyped]
from xxhash import xxh3_128_digest

from syncer.codec import ID_BYTES, decode_envelope, encode_envelope
from syncer.errors import CorruptError, FormatError
from syncer.exchange.rows import (
    MAX_EPOCH,
    MAX_NUMBER,
    Rows,
    check_present,
    check_within,
    pack_ends,
    pack_table,
    pack_versions,
    unpack_ends,
    unpack_table,
    unpack_versions,
)

#: Writers begin another object when the rows of one reach this size.
TARGET_BYTES = 4 << 20
#: Readers refuse more; the longest row (an inline file or an xattr) still fits on top.
MAX_PAYLOAD_BYTES = 8 << 20
#: What a reader asks for: zlib makes what it can't compress longer by less than this.
MAX_OBJECT_BYTES = MAX_PAYLOAD_BYTES + (1 << 16)
MAX_PARTS = 4096
MAX_JSON_BYTES = 1 << 16

#: Nodes, and epochs, whose rows share the chunks of one range.
RANGE_NODES = 1 << 12
RANGE_EPOCHS = 1 << 16

_EPOCH_COLUMNS = ("seq", "machine", "counter", "time_ns")


@dataclass(frozen=True)
class Epoch:
    """A row of table `epoch`."""

    seq: int
    machine: int
    counter: int
    time_ns: int


@dataclass(frozen=True)
class Segment:
    """What began or ended in the epochs `first` to `last`, or the head of it."""

    uuid: str
    generation: int
    machine: int
    first: int
    last: int
    #: Key of the segment before it, "" for the repository's first.
    parent: str
    epochs: Sequence[Epoch]
    rows: Rows
    #: Digests of further objects with more rows; see `part_key`.
    parts: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A checkpoint: the chunks that together hold all rows as of an epoch."""

    uuid: str
    generation: int
    machine: int
    epoch: int
    #: Key of the segment that ends with `epoch`.
    parent: str
    #: Range -> ids of its chunks, 16 bytes each; see `range_of_node` and `range_of_epoch`.
    chunks: dict[int, bytes]


def range_of_node(node: int) -> int:
    """The range whose chunks hold a node and, of a directory, its entries."""
    return node // RANGE_NODES


def range_of_epoch(seq: int) -> int:
    """The range whose chunks hold an epoch's row: negative, to be told from those of nodes."""
    return -1 - seq // RANGE_EPOCHS


# Keys


def log_folder(machine: int) -> str:
    """Where a machine's segments are."""
    return f"log/{machine:016x}"


def segment_key(machine: int, first: int, last: int) -> str:
    return f"{log_folder(machine)}/{first:016x}-{last:016x}"


def part_key(key: str, part: int) -> str:
    """Key of a segment's part, counted from 1."""
    return f"{key}.{part}"


def manifest_key(machine: int, epoch: int) -> str:
    return f"checkpoint/{machine:016x}/{epoch:016x}"


def chunk_key(machine: int, chunk_id: bytes) -> str:
    return f"checkpoint/{machine:016x}/chunks/{chunk_id.hex()}"


def parse_span(name: str) -> tuple[int, int] | None:
    """(first, last) from the last part of a segment's key; None for anything else, as parts."""
    match = re.fullmatch(r"([0-9a-f]{16})-([0-9a-f]{16})", name)
    if match is None:
        return None
    first, last = int(match[1], 16), int(match[2], 16)
    return (first, last) if 0 < first <= last <= MAX_EPOCH else None


def parse_epoch(name: str) -> int | None:
    """The epoch from the last part of a manifest's key; None for anything else."""
    epoch = int(name, 16) if re.fullmatch(r"[0-9a-f]{16}", name) else 0
    return epoch if 0 < epoch <= MAX_EPOCH else None


def _pack_epochs(epochs: Sequence[Epoch]) -> list[Any]:
    rows = [(epoch.seq, epoch.machine, epoch.counter, epoch.time_ns) for epoch in epochs]
    return pack_table(_EPOCH_COLUMNS, frozenset(), rows)


def _unpack_epochs(packed: Any, first: int, last: int) -> list[Epoch]:
    columns = unpack_table(_EPOCH_COLUMNS, frozenset(), packed)
    seqs, machines, counters, _times = columns
    if any(one >= other for one, other in itertools.pairwise(seqs)):
        raise CorruptError("its epochs are out of order")
    check_within("epoch", seqs, first, last)
    check_within("machine", machines, 0, MAX_NUMBER)
    check_within("count of epochs", counters, 1, MAX_NUMBER)
    return [Epoch(*row) for row in zip(*columns, strict=True)]


# Objects


def digest(payload: bytes, seed: int) -> bytes:
    """The digest of a part's or chunk's payload; the latter's id."""
    return xxh3_128_digest(payload, seed)


def encode_segment(segment: Segment, seed: int) -> bytes:
    fields = [
        segment.uuid, segment.generation, segment.machine, segment.first, segment.last,
        segment.parent, b"".join(segment.parts), _pack_epochs(segment.epochs),
        *pack_versions(segment.rows), *pack_ends(segment.rows),
    ]  # fmt: skip
    return encode_envelope(b"SEGM", msgpack.packb(fields), seed)


def decode_segment(data: bytes, seed: int, key: str) -> Segment:
    """The segment, or the head of one, that lies under `key`."""
    with _naming(key):
        fields = _open_envelope(b"SEGM", data, seed, 16)
        first, last = (_number("epoch", value, MAX_EPOCH) for value in fields[3:5])
        machine = _number("machine", fields[2], MAX_NUMBER)
        if not 0 < first <= last or segment_key(machine, first, last) != key:
            raise CorruptError("it holds another segment")
        parts = _split_digests(fields[6])
        if len(parts) > MAX_PARTS:
            raise CorruptError("it has too many parts")
        epochs = _unpack_epochs(fields[7], first, last)
        if len(epochs) != last - first + 1:
            raise CorruptError("some of its epochs are missing")
        rows = Rows()
        unpack_versions(fields[8:12], rows, first, last)
        unpack_ends(fields[12:16], rows, first, last)
        return Segment(
            _text("repository", fields[0]),
            _number("generation", fields[1], MAX_NUMBER),
            machine, first, last, _text("parent", fields[5]), epochs, rows, parts,
        )  # fmt: skip


def with_parent(
    data: bytes, seed: int, begin: Sequence[object], parent: str
) -> tuple[bytes, tuple[bytes, ...]]:
    """A segment whose first fields are `begin` as it is behind another parent, and its digests.

    Its rows are not looked at.
    """
    fields = _open_envelope(b"SEGM", data, seed, 16)
    if fields[:5] != list(begin):
        raise CorruptError("it is another segment")
    fields[5] = parent
    return encode_envelope(b"SEGM", msgpack.packb(fields), seed), _split_digests(fields[6])


def check_part(data: bytes, seed: int, expected: bytes) -> None:
    """Raise CorruptError if this is not the part with that digest."""
    _open_envelope(b"SEGP", data, seed, 8, expected)


def encode_part(rows: Rows, seed: int) -> tuple[bytes, bytes]:
    """(digest, object) of a part of a segment."""
    payload: bytes = msgpack.packb([*pack_versions(rows), *pack_ends(rows)])
    return digest(payload, seed), encode_envelope(b"SEGP", payload, seed)


def decode_part(data: bytes, seed: int, segment: Segment, part: int) -> Rows:
    """The rows of part number `part`, counted from 1, of a segment whose head is `segment`."""
    key = part_key(segment_key(segment.machine, segment.first, segment.last), part)
    with _naming(key):
        fields = _open_envelope(b"SEGP", data, seed, 8, segment.parts[part - 1])
        rows = Rows()
        unpack_versions(fields[:4], rows, segment.first, segment.last)
        unpack_ends(fields[4:], rows, segment.first, segment.last)
        return rows


def encode_chunk(
    number: int, epochs: Sequence[Epoch], rows: Rows, seed: int
) -> tuple[bytes, bytes]:
    """(id, object) of one chunk of range `number`."""
    payload: bytes = msgpack.packb([number, _pack_epochs(epochs), *pack_versions(rows)])
    return digest(payload, seed), encode_envelope(b"CHNK", payload, seed)


def decode_chunk(
    data: bytes, seed: int, manifest: Manifest, number: int, chunk_id: bytes
) -> tuple[list[Epoch], Rows]:
    """The epochs and rows of the chunk `chunk_id`, one of those that `manifest` has for a range."""
    with _naming(chunk_key(manifest.machine, chunk_id)):
        fields = _open_envelope(b"CHNK", data, seed, 6, chunk_id)
        if fields[0] != number:
            raise CorruptError("it holds another range")
        epochs = _unpack_epochs(fields[1], 1, manifest.epoch)
        rows = Rows()
        unpack_versions(fields[2:], rows, 1, manifest.epoch)
        _check_range(number, epochs, rows)
        return epochs, rows


def _check_range(number: int, epochs: Sequence[Epoch], rows: Rows) -> None:
    if any(range_of_epoch(epoch.seq) != number for epoch in (*epochs[:1], *epochs[-1:])):
        raise CorruptError("it has epochs of another range")
    for versions in rows.versions.values():
        nodes = [version[0] for version in versions]
        if nodes and not number == range_of_node(min(nodes)) == range_of_node(max(nodes)):
            raise CorruptError("it has nodes of another range")


def encode_manifest(manifest: Manifest, seed: int) -> bytes:
    fields = [
        manifest.uuid, manifest.generation, manifest.machine, manifest.epoch, manifest.parent,
        pack_table(("range", "ids"), frozenset({"ids"}), sorted(manifest.chunks.items())),
    ]  # fmt: skip
    return encode_envelope(b"CKPT", msgpack.packb(fields), seed)


def decode_manifest(data: bytes, seed: int, key: str) -> Manifest:
    """The checkpoint that lies under `key`."""
    with _naming(key):
        fields = _open_envelope(b"CKPT", data, seed, 6)
        machine = _number("machine", fields[2], MAX_NUMBER)
        epoch = _number("epoch", fields[3], MAX_EPOCH)
        if manifest_key(machine, epoch) != key:
            raise CorruptError("it holds another checkpoint")
        ranges, ids = unpack_table(("range", "ids"), frozenset({"ids"}), fields[5])
        check_within("range", ranges, range_of_epoch(MAX_EPOCH), range_of_node(MAX_NUMBER))
        check_present("list of chunks", ids)
        chunks = dict(zip(ranges, ids, strict=True))
        if len(chunks) != len(ranges) or any(len(packed) % ID_BYTES for packed in ids):
            raise CorruptError("impossible list of chunks")
        return Manifest(
            _text("repository", fields[0]), _number("generation", fields[1], MAX_NUMBER),
            machine, epoch, _text("parent", fields[4]), chunks,
        )  # fmt: skip


def _open_envelope(
    kind: bytes, data: bytes, seed: int, count: int, expected: bytes | None = None
) -> list[Any]:
    payload = decode_envelope(kind, data, seed, MAX_PAYLOAD_BYTES)
    if expected is not None and digest(payload, seed) != expected:
        raise CorruptError("it is not the one that was asked for")
    try:
        # Columns are bytes, so the longest array is the outermost or a table.
        fields = msgpack.unpackb(payload, max_array_len=16, max_map_len=0, max_ext_len=0)
    except (ValueError, TypeError) as error:
        raise CorruptError("its payload is not msgpack") from error
    if not isinstance(fields, list) or len(fields) != count:
        raise CorruptError("it has the wrong number of fields")
    return fields


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """Let errors begin with the object's key."""
    try:
        yield
    except CorruptError as error:
        raise CorruptError(f"{key} is damaged: {error}") from error
    except FormatError as error:
        raise FormatError(f"{key}: {error}") from error


def _split_digests(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, bytes) or len(value) % ID_BYTES:
        raise CorruptError("impossible list of parts")
    return tuple(value[start : start + ID_BYTES] for start in range(0, len(value), ID_BYTES))


# The small objects that people may read as well


def encode_json(**fields: int | str) -> bytes:
    """A JSON object of these fields, for people to read as well."""
    return json.dumps({"version": 1, **fields}, indent=2).encode() + b"\n"


def decode_json(data: bytes, key: str, numbers: Sequence[str], texts: Sequence[str]) -> list[Any]:
    """The fields `numbers` and `texts` of the JSON object under `key`, in this order."""
    with _naming(key):
        if len(data) > MAX_JSON_BYTES:
            raise CorruptError("it is too long")
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CorruptError("it is not JSON") from error
        if not isinstance(fields, dict):
            raise CorruptError("it is not a JSON object")
        if _number("version", fields.get("version"), MAX_NUMBER) != 1:
            raise FormatError("it was written by a newer syncer; install that version")
        return [_number(name, fields.get(name), MAX_NUMBER) for name in numbers] + [
            _text(name, fields.get(name)) for name in texts
        ]


def _number(what: str, value: Any, high: int) -> int:
    # bool is an int to isinstance, and no number here.
    if type(value) is not int or not 0 <= value <= high:
        raise CorruptError(f"impossible {what}")
    return value


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 255 or not value.isprintable():
        raise CorruptError(f"impossible {what}")
    return value
