"""Blocks and pieces as bytes: how content is hashed, and how an object on the remote is laid out.

Pure: bytes in, bytes out. Nothing here knows of files, servers or databases.

A block is at most 1 MiB of one file's content, in pieces of 64 KiB. Each piece has an xxh3-128
digest under the repository's seed, and the block's id is the xxh3-128 of these digests in order,
with the block's length behind them. So the digests prove themselves against the id, and each
piece proves itself against its digest without the rest of the block.

A block's object on the remote, all numbers little-endian:

    offset  bytes  meaning
    0       4      magic "SYNB"
    4       1      format version, 1
    5       1      flags: how the pieces are encoded; 0 is "as they are", others are for later
    6       2      number of pieces n
    8       4      length of the block's content in bytes
    12      20 n   per piece: 16 bytes digest, 4 bytes stored length
    12+20n  8      xxh3-64 of everything before
    20+20n         the pieces, one after another

Every other object (segment, checkpoint, chunk) is an envelope: magic "SYNE", version, flags, four
letters that say what is inside, the stored and the plain length, an xxh3-128 of the plain
payload, and the payload, compressed with zlib.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_64_digest, xxh3_128, xxh3_128_digest

from syncer.errors import CorruptError, FormatError

BLOCK_BYTES = 1 << 20
PIECE_BYTES = 1 << 16
ID_BYTES = 16
MAX_PIECES = BLOCK_BYTES // PIECE_BYTES

#: The largest file: what every place that stores a size can hold.
MAX_FILE_BYTES = 1 << 62

#: In a list of block ids, this one stands for a hole: no block, reads as zeros.
HOLE = bytes(ID_BYTES)

Buffer = bytes | bytearray | memoryview

_VERSION = 1
_HEADER = struct.Struct("<4sBBHI")
_PIECE = struct.Struct("<16sI")
_CHECKSUM_BYTES = 8
_ENVELOPE = struct.Struct("<4sBB4sII16s")
_ZEROS = bytes(BLOCK_BYTES)
#: Of a large payload, to see whether it can be compressed to less than that share.
_SAMPLES = 16
_SAMPLE_BYTES = 2048
_WORTHWHILE = 0.9

#: The longest header a reader asks for; a block's first piece is behind it at the latest.
MAX_HEADER_BYTES = _HEADER.size + MAX_PIECES * _PIECE.size + _CHECKSUM_BYTES
MAX_OBJECT_BYTES = MAX_HEADER_BYTES + BLOCK_BYTES


def is_zero(data: Buffer) -> bool:
    """Whether `data` (at most one block) is all zeros, and so a hole."""
    if len(data) and data[-1]:
        return False
    if isinstance(data, memoryview):
        data = bytes(data)
    return data == (_ZEROS if len(data) == BLOCK_BYTES else _ZEROS[: len(data)])


def piece_digests(data: Buffer, seed: int) -> bytes:
    """The digests of the pieces of a block's content, one after another: 16 bytes each."""
    if len(data) <= PIECE_BYTES:
        return xxh3_128_digest(data, seed)
    view = memoryview(data)
    return b"".join(
        xxh3_128_digest(view[start : start + PIECE_BYTES], seed)
        for start in range(0, len(data), PIECE_BYTES)
    )


def id_of_digests(digests: bytes, length_bytes: int, seed: int) -> bytes:
    """The id of the block whose pieces have these digests: 16 bytes, never that of a hole."""
    state = xxh3_128(digests, seed)
    state.update(length_bytes.to_bytes(8, "little"))
    block_id = state.digest()
    # One in 2**128; but a block that took the hole's name would read as zeros.
    return block_id if block_id != HOLE else b"\1" + HOLE[1:]


def block_id(data: Buffer, seed: int) -> bytes:
    """The id of a block's content, 16 bytes."""
    return id_of_digests(piece_digests(data, seed), len(data), seed)


@dataclass(frozen=True)
class Header:
    """What the head of a block's object says, after it has proved itself against the id."""

    length_bytes: int
    digests: tuple[bytes, ...]
    stored_bytes: tuple[int, ...]
    flags: int
    header_bytes: int

    @property
    def object_bytes(self) -> int:
        return self.header_bytes + sum(self.stored_bytes)

    def piece_span(self, piece: int) -> tuple[int, int]:
        """Where piece `piece` lies in the object: (offset, length), in bytes."""
        return self.header_bytes + sum(self.stored_bytes[:piece]), self.stored_bytes[piece]


def header_bytes(content_bytes: int) -> int:
    """The length of the header of an object that holds `content_bytes` of content."""
    return _HEADER.size + _piece_count(content_bytes) * _PIECE.size + _CHECKSUM_BYTES


def _piece_count(content_bytes: int) -> int:
    return max(1, -(-content_bytes // PIECE_BYTES))


def _piece_bytes(content_bytes: int, piece: int) -> int:
    return min(PIECE_BYTES, content_bytes - piece * PIECE_BYTES)


def encode_block(data: Buffer, seed: int, expected_id: bytes) -> tuple[bytes, Buffer]:
    """The object of a block, as (header, body): two buffers, so that the content isn't copied.

    Raises CorruptError if `data` is not the content of the block `expected_id`: what is
    uploaded is verified first, so that a bad local copy never becomes the remote one.
    """
    digests = piece_digests(data, seed)
    if id_of_digests(digests, len(data), seed) != expected_id:
        raise CorruptError(f"the local copy of block {expected_id.hex()} is damaged")
    count = _piece_count(len(data))
    parts = [_HEADER.pack(b"SYNB", _VERSION, 0, count, len(data))]
    for piece in range(count):
        start = piece * ID_BYTES
        parts.append(_PIECE.pack(digests[start : start + ID_BYTES], _piece_bytes(len(data), piece)))
    head = b"".join(parts)
    return head + xxh3_64_digest(head), data


def decode_header(data: Buffer, expected_id: bytes, seed: int) -> Header:
    """Read and verify the header at the start of `data`; `data` may end behind it.

    Raises CorruptError if it is damaged or another block's, FormatError if it is newer.
    """
    name = expected_id.hex()
    view = memoryview(data)
    if len(view) < _HEADER.size:
        raise CorruptError(f"block {name}: its object ends within the header")
    magic, version, flags, count, length = _HEADER.unpack_from(view)
    if magic != b"SYNB":
        raise CorruptError(f"block {name}: its object is not a block")
    if length > BLOCK_BYTES or count != _piece_count(length):
        raise CorruptError(f"block {name}: its header has impossible lengths")
    end = _HEADER.size + count * _PIECE.size
    if len(view) < end + _CHECKSUM_BYTES:
        raise CorruptError(f"block {name}: its object ends within the header")
    if xxh3_64_digest(view[:end]) != view[end : end + _CHECKSUM_BYTES]:
        raise CorruptError(f"block {name}: its header is damaged")
    if version != _VERSION or flags:
        raise FormatError(f"block {name} was written by a newer syncer; install that version")
    digests, stored = zip(*_PIECE.iter_unpack(view[_HEADER.size : end]), strict=True)
    if any(size != _piece_bytes(length, piece) for piece, size in enumerate(stored)):
        raise CorruptError(f"block {name}: its header has impossible lengths")
    if id_of_digests(b"".join(digests), length, seed) != expected_id:
        raise CorruptError(f"block {name}: its object holds another block")
    return Header(length, digests, stored, flags, end + _CHECKSUM_BYTES)


def decode_piece(header: Header, piece: int, stored: Buffer, seed: int) -> Buffer:
    """The content of piece number `piece`, verified. Raises CorruptError."""
    if xxh3_128_digest(stored, seed) != header.digests[piece]:
        raise CorruptError(f"piece {piece} of a block is damaged on the remote")
    return stored


def decode_block(data: Buffer, expected_id: bytes, seed: int) -> memoryview:
    """The whole content of a block from its object, verified piece by piece.

    Raises CorruptError on any difference, FormatError if a newer syncer wrote it.
    """
    header = decode_header(data, expected_id, seed)
    if len(data) != header.object_bytes:
        raise CorruptError(f"block {expected_id.hex()}: its object has the wrong length")
    body = memoryview(data)[header.header_bytes :]
    for piece in range(len(header.digests)):
        start = piece * PIECE_BYTES
        decode_piece(header, piece, body[start : start + PIECE_BYTES], seed)
    return body


def encode_envelope(kind: bytes, payload: bytes, seed: int) -> bytes:
    """Wrap a payload that is not a block; `kind` is four letters, such as b"SEGM"."""
    stored = zlib.compress(payload, 6 if _shrinks(payload) else 0)
    digest = xxh3_128_digest(payload, seed)
    head = _ENVELOPE.pack(b"SYNE", _VERSION, 1, kind, len(stored), len(payload), digest)
    return head + stored


def _shrinks(payload: bytes) -> bool:
    """Whether compressing a payload is worth its time, as some samples of it show.

    It is not with the contents of small photos: 4 MB take a fifth of a second and stay 4 MB.
    """
    step = len(payload) // _SAMPLES
    if step <= _SAMPLE_BYTES:
        return True
    places = range(0, step * _SAMPLES, step)
    sample = b"".join(payload[place : place + _SAMPLE_BYTES] for place in places)
    return len(zlib.compress(sample, 1)) < _WORTHWHILE * len(sample)


def decode_envelope(kind: bytes, data: bytes, seed: int, max_bytes: int) -> bytes:
    """The payload of an envelope of this kind, of at most `max_bytes`. The sender is not trusted.

    Raises CorruptError if it is damaged, something else, or too large; FormatError if newer.
    """
    if len(data) < _ENVELOPE.size:
        raise CorruptError("an object ends within its header")
    magic, version, flags, found, stored_bytes, plain_bytes, digest = _ENVELOPE.unpack_from(data)
    if magic != b"SYNE" or found != kind:
        raise CorruptError(f"an object is not what its name says ({kind.decode()})")
    if version != _VERSION or flags != 1:
        raise FormatError("an object was written by a newer syncer; install that version")
    if plain_bytes > max_bytes or stored_bytes != len(data) - _ENVELOPE.size:
        raise CorruptError("an object has impossible lengths")
    try:
        # One byte more than promised, so that a longer stream is noticed and not inflated.
        payload = zlib.decompressobj().decompress(data[_ENVELOPE.size :], plain_bytes + 1)
    except zlib.error as error:
        raise CorruptError("an object can't be decompressed") from error
    if len(payload) != plain_bytes or xxh3_128_digest(payload, seed) != digest:
        raise CorruptError("an object does not match its digest")
    return payload


def split_ids(packed: bytes) -> Sequence[bytes]:
    """A packed run of block ids as a list of ids of 16 bytes."""
    return [packed[start : start + ID_BYTES] for start in range(0, len(packed), ID_BYTES)]
