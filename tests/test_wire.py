"""What the remote sends is either what a syncer wrote, or an error that names the object."""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.codec import encode_envelope
from syncer.errors import CorruptError, FormatError
from syncer.exchange import wire
from syncer.exchange.rows import CONTENT, NAME, NODE, TABLES, XATTR, Rows
from syncer.exchange.wire import (
    MAX_PAYLOAD_BYTES,
    Epoch,
    Manifest,
    Segment,
    chunk_key,
    decode_chunk,
    decode_json,
    decode_manifest,
    decode_part,
    decode_segment,
    encode_chunk,
    encode_json,
    encode_manifest,
    encode_part,
    encode_segment,
    manifest_key,
    parse_epoch,
    parse_span,
    part_key,
    range_of_epoch,
    range_of_node,
    segment_key,
)

SEED = 7
MACHINE = 0x1234
LAST = 9

FILE = (5, 3, 0, stat.S_IFREG | 0o644, 1000, 1000, 0, 1, 42, -1, 2, 3, 4, None)
LINK = (6, 3, 9, stat.S_IFLNK | 0o777, 0, 0, 0, 1, 3, 1, 2, 3, 4, b"a/b")


def some_rows() -> Rows:
    rows = Rows()
    rows.versions["node"] += [FILE, LINK]
    rows.versions["name"] += [(1, b"\xff a", 3, 0, 5), (1, b"link", 3, 9, 6)]
    rows.versions["content"] += [
        (5, 0, 3, 7, b"x" * 32),
        (5, 0, 7, 0, bytes(16)),
        (6, -1, 3, 9, b""),
    ]
    rows.versions["xattr"] += [(5, b"user.a", 4, 0, b"")]
    return rows


def with_ends(rows: Rows) -> Rows:
    rows.ends["node"].append((8, 4))
    rows.ends["name"].append((1, b"old", 3))
    rows.ends["content"].append((5, 1, 9))
    rows.ends["xattr"].append((5, b"user.b", 9))
    return rows


EPOCHS = [Epoch(seq, MACHINE, seq, 10**18 + seq) for seq in range(3, LAST + 1)]
DIGEST, PART = encode_part(with_ends(some_rows()), SEED)
SEGMENT = Segment("uuid", 1, MACHINE, 3, LAST, "log/a", EPOCHS, with_ends(some_rows()), (DIGEST,))
SEGMENT_KEY = segment_key(MACHINE, 3, LAST)
CHUNK_ID, CHUNK = encode_chunk(0, [], some_rows(), SEED)
EPOCHS_ID, EPOCHS_CHUNK = encode_chunk(-1, EPOCHS, Rows(), SEED)
MANIFEST = Manifest("uuid", 1, MACHINE, LAST, "log/a", {-1: EPOCHS_ID, 0: CHUNK_ID})
MANIFEST_KEY = manifest_key(MACHINE, LAST)

DECODERS: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "segment": (
        encode_segment(SEGMENT, SEED),
        lambda data: decode_segment(data, SEED, SEGMENT_KEY),
    ),
    "part": (PART, lambda data: decode_part(data, SEED, SEGMENT, 1)),
    "chunk": (CHUNK, lambda data: decode_chunk(data, SEED, MANIFEST, 0, CHUNK_ID)),
    "epochs": (EPOCHS_CHUNK, lambda data: decode_chunk(data, SEED, MANIFEST, -1, EPOCHS_ID)),
    "manifest": (
        encode_manifest(MANIFEST, SEED),
        lambda data: decode_manifest(data, SEED, MANIFEST_KEY),
    ),
    "json": (
        encode_json(uuid="uuid", machine=5, name="laptop"),
        lambda data: decode_json(data, "writers/1", ("machine",), ("uuid", "name")),
    ),
}


def test_what_is_written_is_read() -> None:
    assert DECODERS["segment"][1](DECODERS["segment"][0]) == SEGMENT
    assert DECODERS["part"][1](PART) == SEGMENT.rows
    assert DECODERS["chunk"][1](CHUNK) == ([], some_rows())
    assert DECODERS["epochs"][1](EPOCHS_CHUNK) == (EPOCHS, Rows())
    assert DECODERS["manifest"][1](DECODERS["manifest"][0]) == MANIFEST
    assert DECODERS["json"][1](DECODERS["json"][0]) == [5, "uuid", "laptop"]


def test_keys_sort_and_parse() -> None:
    assert SEGMENT_KEY == "log/0000000000001234/0000000000000003-0000000000000009"
    assert parse_span(SEGMENT_KEY.rpartition("/")[2]) == (3, LAST)
    assert parse_epoch(MANIFEST_KEY.rpartition("/")[2]) == LAST
    for name in (
        part_key(SEGMENT_KEY, 1).rpartition("/")[2],
        "0000000000000009-0000000000000003",
        "0000000000000000-0000000000000003",
        "000000000000000a-ffffffffffffffff",
        "chunks",
        "",
        "0000000000000003-0000000000000009\n",
    ):
        assert parse_span(name) is None
    assert parse_epoch("0000000000000000") is None
    assert chunk_key(MACHINE, CHUNK_ID).endswith(CHUNK_ID.hex())
    assert [range_of_node(node) for node in (1, 4095, 4096)] == [0, 0, 1]
    assert [range_of_epoch(seq) for seq in (1, 65535, 65536)] == [-1, -1, -2]


# Damage


@pytest.mark.parametrize("kind", DECODERS)
@given(data=st.data())
def test_any_damage_is_an_error_or_no_difference(kind: str, data: st.DataObject) -> None:
    """Of the bytes as they lie on the remote."""
    good, decode = DECODERS[kind]
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(bad)))
        bad[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    expected = decode(good)
    try:
        found = decode(bytes(bad))
    except (CorruptError, FormatError):
        return
    # JSON has no digest, so it may well say something else.
    assert found == expected or kind == "json"


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind != "json"])
@given(data=st.data())
def test_any_payload_is_an_error_or_possible(kind: str, data: st.DataObject) -> None:
    """Of the payload, in an envelope that is in order: a sender who knows the format."""
    good, decode = DECODERS[kind]
    letters = good[6:10]
    fields = msgpack.unpackb(wire.decode_envelope(letters, good, SEED, MAX_PAYLOAD_BYTES))
    for _ in range(data.draw(st.integers(1, 3))):
        place = fields
        while True:
            at = data.draw(st.integers(0, len(place) - 1))
            if not isinstance(place[at], list) or not place[at] or data.draw(st.booleans()):
                break
            place = place[at]
        place[at] = data.draw(_spoiled(place[at]))
    payload: bytes = msgpack.packb(fields)
    with pytest.MonkeyPatch.context() as patched:
        # What is named by its digest is checked by it first; here is what comes behind.
        patched.setattr(wire, "digest", lambda payload, seed: _AnyDigest())
        try:
            found = decode(encode_envelope(letters, payload, SEED))
        except (CorruptError, FormatError):
            return
    assert_possible(found)


class _AnyDigest(bytes):
    def __ne__(self, other: object) -> bool:
        return False


def _spoiled(value: Any) -> st.SearchStrategy[Any]:
    anything: st.SearchStrategy[Any] = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.binary(max_size=40),
        st.text(max_size=20),
        st.lists(st.integers(-1, 9), max_size=4),
        st.just({}),
        st.just([[[[[]]]]]),
        st.builds(msgpack.ExtType, st.integers(0, 9), st.binary(max_size=9)),
    )
    if isinstance(value, bytes) and len(value) >= 8:
        numbers = st.sampled_from([0, -1, 1, 4, 16, 1 << 31, (1 << 63) - 1, -(1 << 63)])
        at = st.integers(0, len(value) // 8 - 1)
        return anything | st.builds(
            lambda at, number: value[: 8 * at] + struct.pack("<q", number) + value[8 * at + 8 :],
            at,
            numbers,
        )
    return anything


def assert_possible(found: Any) -> None:
    """Whatever is let through can't hurt a file system."""
    rows = next((part for part in _parts(found) if isinstance(part, Rows)), Rows())
    for table in TABLES:
        for version in rows.versions[table.name]:
            born, died = version[len(table.key) : len(table.key) + 2]
            assert 0 < born <= LAST
            assert died == 0 or born < died <= LAST
            assert version[0] > 0
    for node in rows.versions["node"]:
        assert stat.S_IFMT(node[3]) in (
            stat.S_IFREG,
            stat.S_IFDIR,
            stat.S_IFLNK,
            stat.S_IFIFO,
            stat.S_IFSOCK,
            stat.S_IFCHR,
            stat.S_IFBLK,
        )
        assert 0 <= node[8] <= 1 << 62
        assert (node[13] is not None) == stat.S_ISLNK(node[3])
    for _parent, name, *_rest in rows.versions["name"]:
        assert 0 < len(name) <= 255
        assert name not in (b".", b"..")
        assert not {0, ord("/")} & set(name)
    for _node, run, _born, _died, data in rows.versions["content"]:
        assert run >= -1
        assert run == -1 or (len(data) % 16 == 0 and 0 < len(data) <= 4096)


def _parts(found: Any) -> list[Any]:
    if isinstance(found, Segment):
        return [found.rows]
    return list(found) if isinstance(found, tuple) else [found]


# What a syncer never writes


def changed(table: str, row: tuple[Any, ...], **values: Any) -> tuple[Any, ...]:
    columns = next(each for each in TABLES if each.name == table).columns
    return tuple(values.get(column, value) for column, value in zip(columns, row, strict=True))


NAMED = (1, b"a", 3, 0, 5)
PLACED = (5, 0, 3, 0, b"x" * 16)
TAGGED = (5, b"user.a", 3, 0, b"1")


@pytest.mark.parametrize(
    ("table", "row"),
    [
        *(("name", changed("name", NAMED, name=name)) for name in (
            b"", b".", b"..", b"a/b", b"/", b"a\0", b"a" * 256, None,
        )),
        ("name", changed("name", NAMED, node=0)),
        ("name", changed("name", NAMED, parent=-1)),
        ("node", changed("node", FILE, id=0)),
        ("node", changed("node", FILE, mode=0o644)),
        ("node", changed("node", FILE, mode=stat.S_IFREG | (1 << 20))),
        ("node", changed("node", FILE, mode=-1)),
        ("node", changed("node", FILE, uid=-1)),
        ("node", changed("node", FILE, gid=1 << 32)),
        ("node", changed("node", FILE, rdev=-1)),
        ("node", changed("node", FILE, nlink=0)),
        ("node", changed("node", FILE, size=-1)),
        ("node", changed("node", FILE, size=(1 << 62) + 1)),
        ("node", changed("node", FILE, target=b"a")),
        ("node", changed("node", LINK, target=None)),
        ("node", changed("node", LINK, target=b"")),
        ("node", changed("node", LINK, target=b"a\0")),
        ("node", changed("node", LINK, target=b"a" * 4096)),
        ("node", changed("node", FILE, born=2)),
        ("node", changed("node", FILE, born=10)),
        ("node", changed("node", FILE, died=3)),
        ("node", changed("node", FILE, died=10)),
        ("node", changed("node", FILE, died=-1)),
        ("content", changed("content", PLACED, run=-2)),
        ("content", changed("content", PLACED, run=1 << 35)),
        ("content", changed("content", PLACED, data=b"x" * 15)),
        ("content", changed("content", PLACED, data=b"")),
        ("content", changed("content", PLACED, data=b"x" * 4112)),
        ("content", changed("content", PLACED, data=None)),
        ("content", changed("content", PLACED, run=-1, data=b"x" * ((1 << 20) + 1))),
        ("xattr", changed("xattr", TAGGED, name=b"")),
        ("xattr", changed("xattr", TAGGED, name=b"a\0")),
        ("xattr", changed("xattr", TAGGED, value=None)),
        ("xattr", changed("xattr", TAGGED, value=b"x" * 65537)),
    ],
)  # fmt: skip
def test_impossible_rows_are_refused(table: str, row: tuple[Any, ...]) -> None:
    rows = Rows()
    rows.versions[table].append(row)
    data = encode_segment(replace(SEGMENT, rows=rows, parts=()), SEED)
    with pytest.raises(CorruptError, match=SEGMENT_KEY):
        decode_segment(data, SEED, SEGMENT_KEY)


def test_an_object_under_another_name_is_refused() -> None:
    data = encode_segment(SEGMENT, SEED)
    for key in (segment_key(MACHINE, 3, 8), segment_key(MACHINE + 1, 3, LAST)):
        with pytest.raises(CorruptError, match=key):
            decode_segment(data, SEED, key)
    with pytest.raises(CorruptError):
        decode_manifest(encode_manifest(MANIFEST, SEED), SEED, manifest_key(MACHINE, 8))
    with pytest.raises(CorruptError):
        decode_chunk(CHUNK, SEED, MANIFEST, 0, EPOCHS_ID)
    with pytest.raises(CorruptError):
        decode_chunk(CHUNK, SEED, MANIFEST, 1, CHUNK_ID)
    with pytest.raises(CorruptError):
        decode_part(CHUNK, SEED, SEGMENT, 1)


def test_a_chunk_has_only_what_belongs_to_its_range() -> None:
    chunk_id, data = encode_chunk(1, [], some_rows(), SEED)
    with pytest.raises(CorruptError, match="another range"):
        decode_chunk(data, SEED, MANIFEST, 1, chunk_id)
    chunk_id, data = encode_chunk(-2, EPOCHS, Rows(), SEED)
    with pytest.raises(CorruptError, match="another range"):
        decode_chunk(data, SEED, MANIFEST, -2, chunk_id)


def test_a_chunk_has_nothing_newer_than_its_checkpoint() -> None:
    with pytest.raises(CorruptError, match="epoch"):
        decode_chunk(CHUNK, SEED, replace(MANIFEST, epoch=2), 0, CHUNK_ID)


def test_a_segment_has_all_of_its_epochs() -> None:
    for epochs in (EPOCHS[1:], [*EPOCHS[:3], *EPOCHS[2:]], EPOCHS[::-1]):
        data = encode_segment(replace(SEGMENT, epochs=epochs), SEED)
        with pytest.raises(CorruptError):
            decode_segment(data, SEED, SEGMENT_KEY)


def test_a_count_that_is_a_lie_costs_nothing() -> None:
    fields = msgpack.unpackb(wire.decode_envelope(b"CHNK", CHUNK, SEED, MAX_PAYLOAD_BYTES))
    fields[2][0] = (1 << 24) - 1
    payload: bytes = msgpack.packb(fields)
    data = encode_envelope(b"CHNK", payload, SEED)
    with pytest.raises(CorruptError, match="wrong length"):
        decode_chunk(data, SEED, MANIFEST, 0, wire.digest(payload, SEED))


def test_an_object_that_inflates_without_end_is_refused() -> None:
    data = encode_envelope(b"SEGM", bytes(MAX_PAYLOAD_BYTES + 1), SEED)
    assert len(data) < 100_000
    with pytest.raises(CorruptError):
        decode_segment(data, SEED, SEGMENT_KEY)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b'{"version": 2, "n": 1}', FormatError),
        (b'{"version": 1}', CorruptError),
        (b'{"version": 1, "n": true}', CorruptError),
        (b'{"version": 1, "n": 1.5}', CorruptError),
        (b'{"version": 1, "n": -1}', CorruptError),
        (b'{"version": 1, "n": 1' + b"0" * 5000 + b"}", CorruptError),
        (b"[" * 60_000, CorruptError),
        (b" " * 70_000, CorruptError),
        (b"\xff", CorruptError),
        (b"null", CorruptError),
        (b"", CorruptError),
    ],
)
def test_json_that_can_not_be_is_refused(text: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match="machines/a"):
        decode_json(text, "machines/a", ("n",), ())


def test_every_column_is_on_the_wire() -> None:
    """The tables here are those of the database, column by column."""
    assert [table.columns for table in (NODE, NAME, CONTENT, XATTR)] == [
        (
            "id", "born", "died", "mode", "uid", "gid", "rdev", "nlink", "size",
            "atime_ns", "mtime_ns", "ctime_ns", "btime_ns", "target",
        ),
        ("parent", "name", "born", "died", "node"),
        ("node", "run", "born", "died", "data"),
        ("node", "name", "born", "died", "value"),
    ]  # fmt: skip
