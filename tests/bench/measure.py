"""What all pieces of work share: how much there is, the clock, contents, and checks."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .systems import System, WorkError

MIB = 1 << 20
BLOCK = 4096
#: A system that is slow at something is measured on fewer items.
LONGEST_SECONDS = 15.0
SETTLE_SECONDS = 2.0
#: How long to wait for what systems still do by themselves, and how busy processors may be then.
QUIET_WITHIN_SECONDS = 10.0
QUIET_SHARE = 0.03
_LOOK_SECONDS = 0.5
_PIECE = 64 * MIB


@dataclass(frozen=True)
class Sizes:
    """How much work there is."""

    large_bytes: int = 128 * MIB
    small_writes_bytes: int = 32 * MIB
    tiny_writes: int = 100_000
    random_reads: int = 2000
    files: int = 2000
    empty_files: int = 5000
    photos: int = 32
    photo_bytes: int = 4_000_000
    listed_files: int = 100_000


#: Over the slow line. It carries 128 MiB in 1.4 s, of which the start of a program is a good part.
FAR = Sizes(large_bytes=256 * MIB)
QUICK = Sizes(
    large_bytes=32 * MIB,
    small_writes_bytes=4 * MIB,
    tiny_writes=10_000,
    random_reads=300,
    files=200,
    empty_files=500,
    photos=8,
    listed_files=5000,
)

Record = Callable[[str, float], None]


@dataclass(frozen=True)
class Book:
    """What a piece of work is given besides the system."""

    sizes: Sizes
    record: Record
    """Takes a row's key and a figure."""
    round_number: int = 0
    limit: System | None = None
    """The mounted system that does the least, and what takes its figures."""
    record_limit: Record = lambda key, value: None

    def content(self, name: object, size: int) -> bytes:
        """Bytes that no round before had: what a server has already is not uploaded again."""
        return content((self.round_number, name), size)


class Stopwatch:
    """Measures from when it is made."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def seconds(self) -> float:
        return max(1e-9, time.perf_counter() - self._since)


def drop_page_cache(entries_too: bool = True) -> None:
    """Have the kernel forget clean pages, and names and attributes. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3" if entries_too else "1")


def wait_for_quiet() -> None:
    """Let systems end what they do in the background, which would slow the next one's work."""
    deadline = time.monotonic() + QUIET_WITHIN_SECONDS
    busy, whole = _processor_ticks()
    while time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        busy_before, whole_before = busy, whole
        busy, whole = _processor_ticks()
        if busy - busy_before <= QUIET_SHARE * (whole - whole_before):
            return


def _processor_ticks() -> tuple[int, int]:
    """What all processors have worked since the start of the machine, and worked or waited."""
    line = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, idle, waiting, hard, soft = map(int, line.split()[1:8])
    busy = user + nice + system + hard + soft
    return busy, busy + idle + waiting


def content(seed: object, size: int) -> bytes:
    """The same bytes for the same seed; they can't be compressed."""
    dice = random.Random(str(seed))
    # It makes less than 256 MiB at a time.
    return b"".join(dice.randbytes(min(_PIECE, size - start)) for start in range(0, size, _PIECE))


def check(is_right: bool, system: System, what: str) -> None:
    if not is_right:
        raise WorkError(f"{system.name}: {what}")


def write_file(
    path: Path, data: bytes, piece: int, limit_seconds: float = 1e9, *, sync: bool = False
) -> int:
    """Write in pieces, for a limited time; returns the bytes written."""
    view = memoryview(data)
    deadline = time.perf_counter() + limit_seconds
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for start in range(0, len(data), piece):
            if start % (1024 * piece) == 0 and time.perf_counter() > deadline:
                return start
            os.write(file, view[start : start + piece])
        if sync:
            os.fsync(file)
    finally:
        os.close(file)
    return len(data)


def read_file(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        parts = []
        while part := file.read(MIB):
            parts.append(part)
    return b"".join(parts)


def read_into(path: Path, room: bytearray) -> int:
    """Read a large file into memory that is there already; returns the bytes read.

    To take fresh memory and put the pieces together lasts 0.1 s for 256 MiB, and once in a while
    0.7, which says nothing about the system.
    """
    view = memoryview(room)
    position = 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(view[position : position + MIB]):
            position += count
    return position


def per_second(items: Sequence[object], act: Callable[..., object]) -> float:
    """How many of the items are done in a second, one after another, for a limited time."""
    watch = Stopwatch()
    done = 0
    for item in items:
        act(item)
        done += 1
        if done % 16 == 0 and watch.seconds() > LONGEST_SECONDS:
            break
    return done / watch.seconds()


def small_file_count(system: System, book: Book) -> int:
    return book.sizes.files if system.uploads_small_files else book.sizes.files // 10


def make_cold(system: System) -> None:
    """Have the next reads come from the server, by a mount that has been there for a moment.

    Each logs in to the server at its start, which counts in the row "first-look" only.
    """
    system.forget_local()
    drop_page_cache()
    time.sleep(SETTLE_SECONDS)


def remount(system: System) -> None:
    system.wait_uploaded()
    system.stop()
    drop_page_cache()
    system.start()
