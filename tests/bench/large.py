"""Work on large files: written and read in pieces of all sizes, near and far, and under load."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .measure import (
    BLOCK,
    LONGEST_SECONDS,
    MIB,
    Book,
    Record,
    Stopwatch,
    check,
    drop_page_cache,
    make_cold,
    per_second,
    read_file,
    read_into,
    small_file_count,
    write_file,
)
from .systems import Syncer, System

HEAD_BYTES = 65536
FLUSH_STARTS_WITHIN_SECONDS = 1.0
_COMING_PHOTOS, _COMING_EVERY_SECONDS = 70, 0.05


def large_file(system: System, book: Book) -> None:
    """Write, read again, read at random, and read when the local disk has nothing of it."""
    size = book.sizes.large_bytes
    data = book.content("large", size)
    path = system.mountpoint / "large"
    os.sync()
    watch = Stopwatch()
    write_file(path, data, MIB)
    book.record("write-1m", size / 1e6 / watch.seconds())
    system.wait_uploaded()
    if system.has_server:
        book.record("upload", size / 1e6 / watch.seconds())
        system.check_uploaded()
    if system.has_server and not system.has_cache:
        # What it reads "again" comes from the server as well.
        system.forget_local()
    room = bytearray(b"?" * size)
    drop_page_cache()
    watch = Stopwatch()
    count = read_into(path, room)
    book.record("read-again", count / 1e6 / watch.seconds())
    check(room == data, system, "the file that was read again differs")
    random_reads(system, book, path, data)
    if system.has_server:
        room = bytearray(b"?" * size)
        make_cold(system)
        watch = Stopwatch()
        count = read_into(path, room)
        book.record("cold-read", count / 1e6 / watch.seconds())
        check(room == data, system, "the file from the server differs")
    path.unlink()


def held_back_file(system: System, book: Book) -> None:
    """Upload a file that lies on the local disk already, which is where scp begins.

    The time goes from the command that lets uploads go until `flush`, which waits, returns.
    """
    if not isinstance(system, Syncer):
        return
    size = book.sizes.large_bytes
    path = system.mountpoint / "held back"
    system.hold_uploads()
    write_file(path, book.content("held back", size), MIB)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(system.wait_uploaded)
        time.sleep(FLUSH_STARTS_WITHIN_SECONDS)
        watch = Stopwatch()
        system.let_uploads_go()
        waiting.result()
    book.record("upload-local", size / 1e6 / watch.seconds())
    system.check_uploaded()
    system.forget_local()
    check(read_file(path) == book.content("held back", size), system, "the uploaded file differs")
    path.unlink()


def synced_file(system: System, book: Book) -> None:
    """Write a large file, to be power-safe before it is closed."""
    size = book.sizes.large_bytes
    data = book.content("synced", size)
    path = system.mountpoint / "synced"
    os.sync()
    watch = Stopwatch()
    write_file(path, data, MIB, sync=True)
    book.record("write-sync", size / 1e6 / watch.seconds())
    check(read_file(path) == data, system, "the synced file differs")
    path.unlink()


def random_reads(system: System, book: Book, path: Path, data: bytes) -> None:
    dice = random.Random(7)
    offsets = [BLOCK * dice.randrange(len(data) // BLOCK) for _ in range(book.sizes.random_reads)]
    drop_page_cache()
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        found = []
        speed = per_second(offsets, lambda offset: found.append(os.pread(file, BLOCK, offset)))
    finally:
        os.close(file)
    book.record("read-random", speed)
    right = all(
        piece == data[offset : offset + BLOCK]
        for offset, piece in zip(offsets, found, strict=False)
    )
    check(right, system, "a piece that was read at random differs")


def small_writes(system: System, book: Book) -> None:
    """Files written in small pieces, one write(2) each."""
    size = book.sizes.small_writes_bytes
    for key, path, count, piece, scale in (
        ("write-4k", "pieces", size // BLOCK, BLOCK, BLOCK / 1e6),
        ("write-128", "crumbs", book.sizes.tiny_writes, 128, 1e-3),
    ):
        data = book.content(key, count * piece)
        os.sync()
        file = system.mountpoint / path
        watch = Stopwatch()
        written = write_file(file, data, piece, LONGEST_SECONDS)
        book.record(key, written / piece * scale / watch.seconds())
        check(read_file(file) == data[:written], system, f"{key}: the file differs")
        file.unlink()


def photos(system: System, book: Book) -> None:
    """Photos that are only on the server: their first bytes, as for a thumbnail; then whole."""
    if not system.has_server:
        return
    folder = system.mountpoint / "photos"
    folder.mkdir()
    size = book.sizes.photo_bytes
    contents = {
        folder / f"IMG_{number:04}.jpg": book.content(number, size)
        for number in range(book.sizes.photos)
    }
    for path, data in contents.items():
        path.write_bytes(data)
    system.wait_uploaded()
    first_look(system, book, next(iter(contents)))
    make_cold(system)
    found: list[bytes] = []
    book.record("photos-head", per_second(list(contents), lambda path: found.append(head(path))))
    right = all(
        one == data[:HEAD_BYTES] for one, data in zip(found, contents.values(), strict=False)
    )
    check(right, system, "the beginning of a photo differs")
    make_cold(system)
    found.clear()
    speed = per_second(list(contents), lambda path: found.append(read_file(path)))
    book.record("photos-whole", speed * size / 1e6)
    right = all(one == data for one, data in zip(found, contents.values(), strict=False))
    check(right, system, "a photo differs")
    shutil.rmtree(folder)


def first_look(system: System, book: Book, path: Path) -> None:
    """From the start of the mount to the beginning of a file that only the server has."""
    system.forget_local()
    system.stop()
    drop_page_cache()
    watch = Stopwatch()
    system.start()
    head(path)
    book.record("first-look", watch.seconds())


def head(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(HEAD_BYTES)


class Waits:
    """Small calls on a mount, and how long each of them took."""

    def __init__(self, system: System, book: Book) -> None:
        self._system = system
        self._local, self._folder = system.mountpoint / "local", system.mountpoint / "names"
        self._near = book.content("local", book.sizes.large_bytes // 2)
        self._folder.mkdir()
        self.names = [
            self._folder / str(number) for number in range(small_file_count(system, book))
        ]
        for name in self.names:
            name.touch()
        self._dice = random.Random(3)
        self._stats: list[float] = []
        self._reads: list[float] = []

    def write(self) -> None:
        """What is read has just been written, and is local."""
        self._local.write_bytes(self._near)

    def open(self) -> None:
        self._file = os.open(self._local, os.O_RDONLY)
        os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_RANDOM)

    def call(self, name: Path) -> None:
        watch = Stopwatch()
        os.stat(name)
        self._stats.append(watch.seconds())
        offset = BLOCK * self._dice.randrange(len(self._near) // BLOCK)
        watch = Stopwatch()
        piece = os.pread(self._file, BLOCK, offset)
        self._reads.append(watch.seconds())
        right = piece == self._near[offset : offset + BLOCK]
        check(right, self._system, "a local read differs")

    def end(self, record: Record) -> None:
        os.close(self._file)
        record("latency-stat", percentile_99(self._stats) * 1e3)
        record("latency-read", percentile_99(self._reads) * 1e3)
        self._local.unlink()
        shutil.rmtree(self._folder)


def latency(system: System, book: Book) -> None:
    """stat and small local reads, while one large file is written and another one fetched.

    Photos have been coming for some seconds by then, so that no system puts off its uploads for the
    sake of who begins to write. What does the least that a system of syncer's kind can is called by
    turns with syncer: its calls wait for processors and the disk only.
    """
    if not system.has_server or not system.has_cache:
        return
    mount = system.mountpoint
    cold = mount / "cold"
    data = book.content("cold", book.sizes.large_bytes)
    cold.write_bytes(data)
    waits = Waits(system, book)
    beside = Waits(book.limit, book) if book.limit and isinstance(system, Syncer) else None
    called = [waits, beside] if beside else [waits]
    system.wait_uploaded()
    system.forget_local()
    for each in called:
        each.write()
    source = system.place.folder / "incoming"
    source.write_bytes(data)
    drop_page_cache()
    for each in called:
        each.open()
    coming = mount / "coming"
    coming.mkdir()
    for number in range(_COMING_PHOTOS):
        photo = book.content(("coming", number), MIB)
        (coming / str(number)).write_bytes(photo)
        time.sleep(_COMING_EVERY_SECONDS)
    # Programs of their own: threads of this one would keep each other waiting.
    writing = subprocess.Popen(["cp", source, mount / "incoming"])
    reading = subprocess.Popen(["cat", cold], stdout=subprocess.DEVNULL)
    try:
        for names in zip(*(each.names for each in called), strict=True):
            if reading.poll() is not None:
                break
            for each, name in zip(called, names, strict=True):
                each.call(name)
    finally:
        failed = writing.wait() or reading.wait()
    check(not failed, system, "cp or cat failed under load")
    waits.end(book.record)
    if beside:
        beside.end(book.record_limit)
    check((mount / "incoming").stat().st_size == len(data), system, "a write under load is short")
    system.wait_uploaded()
    for path in (cold, mount / "incoming", source):
        path.unlink()
    shutil.rmtree(coming)


def percentile_99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * len(seconds))]
