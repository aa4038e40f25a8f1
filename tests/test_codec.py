from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_digest, xxh3_128_digest

from syncer import codec
from syncer.codec import BLOCK_BYTES, HOLE, PIECE_BYTES
from syncer.errors import CorruptError, FormatError

SEED = 7
SIZES = [1, 100, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, BLOCK_BYTES]


def some(size_bytes: int) -> bytes:
    return (b"block content " * (size_bytes // 14 + 1))[:size_bytes]


def encoded(data: bytes) -> tuple[bytes, bytes]:
    block_id = codec.block_id(data, SEED)
    return block_id, b"".join(codec.encode_block(data, SEED, block_id))


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_block_survives_its_object(size_bytes: int) -> None:
    data = some(size_bytes)
    block_id, stored = encoded(data)
    assert codec.decode_block(stored, block_id, SEED) == data
    assert len(stored) == codec.header_bytes(size_bytes) + size_bytes <= codec.MAX_OBJECT_BYTES


@pytest.mark.parametrize("size_bytes", SIZES)
def test_each_piece_can_be_used_without_the_others(size_bytes: int) -> None:
    data = some(size_bytes)
    block_id, stored = encoded(data)
    header = codec.decode_header(stored[: codec.MAX_HEADER_BYTES], block_id, SEED)
    assert header.length_bytes == size_bytes and header.object_bytes == len(stored)
    found = b""
    for piece in range(len(header.digests)):
        offset, length = header.piece_span(piece)
        found += bytes(codec.decode_piece(header, piece, stored[offset : offset + length], SEED))
    assert found == data


@settings(max_examples=300)
@given(place=st.integers(0, 10**9), change=st.integers(1, 255))
def test_a_changed_byte_anywhere_is_noticed(place: int, change: int) -> None:
    block_id, stored = encoded(some(PIECE_BYTES + 100))
    # Half of the places are in the header.
    span = 60 if place % 2 else len(stored)
    broken = bytearray(stored)
    broken[place // 2 % span] ^= change
    with pytest.raises((CorruptError, FormatError)):
        codec.decode_block(broken, block_id, SEED)


@given(st.integers(0, PIECE_BYTES + 147))
def test_an_object_that_ends_early_or_late_is_noticed(length: int) -> None:
    block_id, stored = encoded(some(PIECE_BYTES + 100))
    assert length < len(stored)
    with pytest.raises(CorruptError):
        codec.decode_block(stored[:length], block_id, SEED)
    with pytest.raises(CorruptError):
        codec.decode_block(stored + b"x", block_id, SEED)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_decoders_fail_in_another_way(data: bytes) -> None:
    with pytest.raises((CorruptError, FormatError)):
        codec.decode_block(b"SYNB" + data, bytes(15) + b"\1", SEED)
    with pytest.raises((CorruptError, FormatError)):
        codec.decode_envelope(b"SEGM", b"SYNE" + data, SEED, 1000)


def test_another_blocks_object_is_not_taken() -> None:
    _, stored = encoded(some(100))
    other, _ = encoded(some(101))
    with pytest.raises(CorruptError, match="another block"):
        codec.decode_block(stored, other, SEED)


def test_a_newer_format_is_told_from_damage() -> None:
    block_id, stored = encoded(some(100))
    head = bytearray(stored[: codec.header_bytes(100) - 8])
    head[4] = 2
    newer = bytes(head) + xxh3_64_digest(bytes(head)) + stored[len(head) + 8 :]
    with pytest.raises(FormatError, match="newer"):
        codec.decode_block(newer, block_id, SEED)


def test_damaged_content_is_never_encoded() -> None:
    block_id = codec.block_id(some(100), SEED)
    with pytest.raises(CorruptError, match="damaged"):
        codec.encode_block(some(99) + b"x", SEED, block_id)


def test_ids_depend_on_content_length_and_seed() -> None:
    ids = {codec.block_id(some(size), seed) for size in SIZES for seed in (1, 2)}
    assert len(ids) == 2 * len(SIZES)
    assert codec.block_id(bytearray(some(100)), 1) == codec.block_id(memoryview(some(100)), 1)


def test_ids_and_objects_stay_as_they_are() -> None:
    """Whoever changes these can no longer read what is on the servers."""
    block_id, stored = encoded(some(PIECE_BYTES + 1))
    assert block_id.hex() == "173c91c33cc9958c25aedd888663a9ea"
    assert xxh3_128_digest(stored).hex() == "d38aa36f30cee7246d13862cfee448b6"
    envelope = bytes.fromhex(
        "53594e4501015345474d0f000000070000001480af6ae39d069edb72abfcf9b099e9"
        "789c2b48acccc94f4c01000bdd02eb"
    )
    assert codec.decode_envelope(b"SEGM", envelope, SEED, 7) == b"payload"


@pytest.mark.parametrize("size_bytes", SIZES)
def test_zeros_are_a_hole_and_nothing_else_is(size_bytes: int) -> None:
    zeros = bytes(size_bytes)
    assert codec.is_zero(zeros) and codec.is_zero(memoryview(zeros))
    for place in (0, size_bytes // 2, size_bytes - 1):
        other = bytearray(zeros)
        other[place] = 1
        assert not codec.is_zero(other) and not codec.is_zero(memoryview(other))
    assert codec.block_id(zeros, SEED) != HOLE


@given(st.binary(max_size=5000))
def test_an_envelope_gives_its_payload_back(payload: bytes) -> None:
    stored = codec.encode_envelope(b"SEGM", payload, SEED)
    assert codec.decode_envelope(b"SEGM", stored, SEED, 5000) == payload


def test_what_does_not_shrink_is_not_compressed_at_length(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noise = random.Random(5).randbytes(200_000)
    text = b"a row like the one before it, " * 10_000
    levels = []
    compress = zlib.compress

    def noting(payload: bytes, level: int) -> bytes:
        levels.append((len(payload) > 100_000, level))
        return compress(payload, level)

    monkeypatch.setattr(codec.zlib, "compress", noting)
    for payload, level in ((noise, 0), (text, 6), (noise + text, 6)):
        stored = codec.encode_envelope(b"SEGM", payload, SEED)
        assert codec.decode_envelope(b"SEGM", stored, SEED, len(payload)) == payload
        assert levels[-1] == (True, level)
        assert len(stored) < len(payload) + 200
    assert len(codec.encode_envelope(b"SEGM", text[:2000], SEED)) < 200, "a small one always is"


def test_a_changed_byte_of_an_envelope_is_noticed_or_makes_no_difference() -> None:
    """Some bits mean nothing in a compressed stream, or the same as their opposite."""
    payload = some(500)
    stored = codec.encode_envelope(b"SEGM", payload, SEED)
    unnoticed = 0
    for place in range(len(stored)):
        for change in range(1, 256):
            harmed = bytearray(stored)
            harmed[place] ^= change
            try:
                assert codec.decode_envelope(b"SEGM", bytes(harmed), SEED, 5000) == payload
                unnoticed += 1
            except (CorruptError, FormatError):
                continue
    assert unnoticed < len(stored) * 255 // 100


def test_an_envelope_of_another_kind_or_too_large_is_refused() -> None:
    stored = codec.encode_envelope(b"SEGM", bytes(5001), SEED)
    with pytest.raises(CorruptError):
        codec.decode_envelope(b"CHCK", stored, SEED, 10_000)
    with pytest.raises(CorruptError):
        codec.decode_envelope(b"SEGM", stored, SEED, 5000)


def test_an_envelope_that_inflates_to_more_than_it_says_is_refused() -> None:
    small = codec.encode_envelope(b"SEGM", bytes(10), SEED)
    bomb = codec.encode_envelope(b"SEGM", bytes(1_000_000), SEED)
    forged = bytearray(bomb)
    forged[14:18] = small[14:18]
    with pytest.raises(CorruptError, match="digest"):
        codec.decode_envelope(b"SEGM", bytes(forged), SEED, 5000)


def test_packed_ids_are_split() -> None:
    ids = [bytes([number]) * 16 for number in range(3)]
    assert list(codec.split_ids(b"".join(ids))) == ids
