"""Which blocks the metadata names, now, in the past, and in what a power cut would bring back.

There is no index from a block to the files that name it: it would double the metadata, for a
question that is asked once a day. So whoever asks reads all runs. The ids of a large collection are
too many to hold at once; they are told in passes, each of those whose first byte lies in a range.
"""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterable, Iterator

from syncer.codec import HOLE, ID_BYTES
from syncer.metadata.connection import Reader, Row

#: Ids in memory at once take some 100 bytes each.
_PASS_IDS = 1 << 20
#: Rows between two chances for other threads, which wait for the interpreter meanwhile.
_BREATH_ROWS = 256
_ID = struct.Struct(f"{ID_BYTES}s")

_RUNS = (
    "SELECT data FROM content WHERE run >= 0",
    "SELECT data FROM content_past WHERE run >= 0",
    "SELECT data FROM undo_run WHERE run >= 0 AND data IS NOT NULL",
)


def passes(reader: Reader) -> list[range]:
    """Ranges of first bytes, so that each has about as many named ids as fit into memory."""
    ((size_bytes,),) = reader.query(
        "SELECT (SELECT total(length(data)) FROM content WHERE run >= 0)"
        " + (SELECT total(length(data)) FROM content_past WHERE run >= 0)"
    )
    count = min(256, 1 + int(size_bytes) // ID_BYTES // _PASS_IDS)
    borders = [number * 256 // count for number in range(count + 1)]
    return [range(*pair) for pair in itertools.pairwise(borders)]


def named(reader: Reader, first_bytes: range) -> set[bytes]:
    """The ids of all blocks that are named, of those whose first byte lies in the range."""
    found: set[bytes] = set()
    for sql in _RUNS:
        for row in breathing(reader.query(sql)):
            found.update(ids_in(row[0], first_bytes))
    return found


def ids_in(data: bytes, first_bytes: range) -> Iterator[bytes]:
    """The ids in a packed run whose first byte lies in the range."""
    for (block_id,) in _ID.iter_unpack(data):
        if block_id != HOLE and block_id[0] in first_bytes:
            yield block_id


def breathing(rows: Iterable[Row]) -> Iterator[Row]:
    """The same rows, letting other threads run now and then."""
    for number, row in enumerate(rows):
        if number % _BREATH_ROWS == 0:
            time.sleep(0)
        yield row
