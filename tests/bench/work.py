"""The work that is measured. Each piece of it checks that the system has done it.

A piece is a function of a system and a `Book`; it leaves nothing behind in the mount.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .systems import Syncer, System, WorkError

MIB = 1 << 20
BLOCK = 4096
HEAD_BYTES = 65536
#: A system that is slow at something is measured on fewer items.
LONGEST_SECONDS = 15.0
SETTLE_SECONDS = 2.0


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


class Stopwatch:
    """Measures from its making, or from `restart`."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def seconds(self) -> float:
        return max(1e-9, time.perf_counter() - self._since)


def drop_page_cache(entries_too: bool = True) -> None:
    """Have the kernel forget clean pages, and names and attributes. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3" if entries_too else "1")


def content(seed: object, size: int) -> bytes:
    """The same bytes for the same seed; they can't be compressed."""
    return random.Random(str(seed)).randbytes(size)


def check(is_right: bool, system: System, what: str) -> None:
    if not is_right:
        raise WorkError(f"{system.name}: {what}")


# Large files


def large_file(system: System, book: Book) -> None:
    """Write, read again, read at random, and read when the local disk has nothing of it."""
    size = book.sizes.large_bytes
    data = content("large", size)
    path = system.mountpoint / "large"
    os.sync()
    watch = Stopwatch()
    write_file(path, data, MIB)
    book.record("write-1m", size / 1e6 / watch.seconds())
    system.wait_uploaded()
    if system.has_server:
        book.record("upload", size / 1e6 / watch.seconds())
    if system.has_server and not system.has_cache:
        # What it reads "again" comes from the server as well.
        system.forget_local()
    drop_page_cache()
    watch = Stopwatch()
    found = read_file(path)
    book.record("read-again", size / 1e6 / watch.seconds())
    check(found == data, system, "the file that was read again differs")
    random_reads(system, book, path, data)
    if system.has_server:
        system.forget_local()
        drop_page_cache()
        watch = Stopwatch()
        found = read_file(path)
        book.record("cold-read", size / 1e6 / watch.seconds())
        check(found == data, system, "the file from the server differs")
    path.unlink()


def synced_file(system: System, book: Book) -> None:
    """Write a large file, to be power-safe before it is closed."""
    size = book.sizes.large_bytes
    data = content("synced", size)
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
        data = content(key, count * piece)
        os.sync()
        file = system.mountpoint / path
        watch = Stopwatch()
        written = write_file(file, data, piece, LONGEST_SECONDS)
        book.record(key, written / piece * scale / watch.seconds())
        check(read_file(file) == data[:written], system, f"{key}: the file differs")
        file.unlink()


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


# Many files


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


def small_upload(system: System, book: Book) -> None:
    """Make files of 4 KiB, and have them on the server."""
    make_small_files(system, book)
    shutil.rmtree(system.mountpoint / "small")


def make_small_files(system: System, book: Book) -> dict[Path, bytes]:
    """Returns what was made. Who is slow at it makes fewer, and is credited with their share."""
    folder = system.mountpoint / "small"
    folder.mkdir()
    contents = {
        folder / f"file{number:05}": content(f"file{number:05}", BLOCK)
        for number in range(small_file_count(system, book))
    }
    made: dict[Path, bytes] = {}
    os.sync()
    watch = Stopwatch()
    for path, data in contents.items():
        write_file(path, data, BLOCK)
        made[path] = data
        if watch.seconds() > LONGEST_SECONDS:
            break
    book.record("create-4k", len(made) / watch.seconds())
    system.wait_uploaded()
    if system.has_server:
        book.record("small-upload", watch.seconds() * book.sizes.files / len(made))
    return made


def small_file_count(system: System, book: Book) -> int:
    return book.sizes.files if system.uploads_small_files else book.sizes.files // 10


def small_files(system: System, book: Book) -> None:
    """Make, upload, look at, read, rename and remove files of 4 KiB."""
    contents = make_small_files(system, book)
    paths = list(contents)
    folder = paths[0].parent
    drop_page_cache()
    sizes: list[int] = []
    book.record("stat", per_second(paths, lambda path: sizes.append(os.stat(path).st_size)))
    check(set(sizes) == {BLOCK}, system, "stat tells a wrong size")
    drop_page_cache()
    found: list[bytes] = []
    book.record("read-small", per_second(paths, lambda path: found.append(read_file(path))))
    right = all(one == contents[path] for path, one in zip(paths, found, strict=False))
    check(right, system, "a small file differs")
    book.record("rename", per_second(paths, lambda path: os.rename(path, f"{path}.new")))
    names = sorted(os.listdir(folder))
    check(len(names) == len(paths) and names[0].endswith(".new"), system, "renaming failed")
    book.record("unlink", per_second(names, lambda name: os.unlink(folder / name)))
    shutil.rmtree(folder)


def empty_files(system: System, book: Book) -> None:
    """Make, list and remove a tree of empty files."""
    top = system.mountpoint / "tree"
    top.mkdir()
    count = book.sizes.empty_files
    folders = [top / f"{number:03}" for number in range(count // 100)]
    for folder in folders:
        folder.mkdir()
    paths = [str(folder / f"{number:03}") for folder in folders for number in range(100)]
    os.sync()
    watch = Stopwatch()
    for path in paths:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    book.record("create-empty", count / watch.seconds())
    if not system.uploads_small_files:
        shutil.rmtree(top)
        return
    entries = 1 + len(folders) + count
    for key, words, lines in (
        ("find", ["find", str(top), "-printf", "%p %s %T@ %m\n"], entries),
        # For each directory its name, "total", and an empty line but before the first.
        ("ls-lr", ["ls", "-lR", str(top)], entries - 1 + 3 * (len(folders) + 1) - 1),
    ):
        remount(system)
        watch = Stopwatch()
        out = subprocess.run(words, capture_output=True, check=True).stdout
        book.record(key, entries / watch.seconds())
        check(out.count(b"\n") == lines, system, f"{key} lists {out.count(10)} lines, not {lines}")
    remount(system)
    watch = Stopwatch()
    subprocess.run(["rm", "-rf", str(top)], check=True)
    book.record("rm-rf", entries / watch.seconds())
    check(not top.exists(), system, "rm -rf left something")


def remount(system: System) -> None:
    system.wait_uploaded()
    system.stop()
    drop_page_cache()
    system.start()


def photos(system: System, book: Book) -> None:
    """Photos that are only on the server: their first bytes, as for a thumbnail; then whole."""
    if not system.has_server:
        return
    folder = system.mountpoint / "photos"
    folder.mkdir()
    size = book.sizes.photo_bytes
    contents = {
        folder / f"IMG_{number:04}.jpg": content(number, size)
        for number in range(book.sizes.photos)
    }
    for path, data in contents.items():
        path.write_bytes(data)
    system.wait_uploaded()
    system.forget_local()
    drop_page_cache()
    found: list[bytes] = []
    book.record("photos-head", per_second(list(contents), lambda path: found.append(head(path))))
    right = all(
        one == data[:HEAD_BYTES] for one, data in zip(found, contents.values(), strict=False)
    )
    check(right, system, "the beginning of a photo differs")
    system.forget_local()
    drop_page_cache()
    found.clear()
    speed = per_second(list(contents), lambda path: found.append(read_file(path)))
    book.record("photos-whole", speed * size / 1e6)
    right = all(one == data for one, data in zip(found, contents.values(), strict=False))
    check(right, system, "a photo differs")
    shutil.rmtree(folder)


def head(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read(HEAD_BYTES)


def archive(system: System, book: Book) -> None:
    """Unpack the standard library, and pack it again."""
    packed = system.place.folder / "library.tar"
    if not packed.exists():
        library = Path(sysconfig.get_paths()["stdlib"])
        leave_out = ["--exclude=__pycache__", "--exclude=site-packages", "--exclude=config-*"]
        words = ["tar", "-C", str(library.parent), *leave_out, "-cf", str(packed), library.name]
        subprocess.run(words, check=True)
    folder = system.mountpoint / "unpacked"
    folder.mkdir()
    os.sync()
    watch = Stopwatch()
    subprocess.run(["tar", "-C", str(folder), "-xf", str(packed)], check=True)
    book.record("untar", watch.seconds())
    if system.uploads_small_files:
        system.wait_uploaded()
    drop_page_cache()
    watch = Stopwatch()
    # To a pipe: what goes to /dev/null tar doesn't even read.
    packing = ["sh", "-c", 'tar -C "$0" -cf - . | cat >/dev/null', str(folder)]
    # Of files that rclone has just uploaded, tar says that they changed meanwhile.
    subprocess.run(packing, stderr=subprocess.DEVNULL, check=True)
    book.record("tar", watch.seconds())
    words = ["tar", "-C", str(folder), "--compare", "-f", str(packed)]
    compared = subprocess.run(words, capture_output=True, text=True, check=False)
    # Not every system keeps modes and owners.
    wrong = [
        line
        for line in (compared.stdout + compared.stderr).splitlines()
        if line.endswith(("Contents differ", "Size differs")) or "Cannot" in line
    ]
    check(not wrong, system, f"tar finds differences: {wrong[:3]}")
    shutil.rmtree(folder)


# While others work


def latency(system: System, book: Book) -> None:
    """stat and small local reads, while one large file is written and another one fetched."""
    if not system.has_server or not system.has_cache:
        return
    mount = system.mountpoint
    cold, local, folder = mount / "cold", mount / "local", mount / "names"
    data = content("cold", book.sizes.large_bytes)
    cold.write_bytes(data)
    folder.mkdir()
    names = [folder / str(number) for number in range(small_file_count(system, book))]
    for name in names:
        name.touch()
    system.wait_uploaded()
    system.forget_local()
    near = content("local", book.sizes.large_bytes // 2)
    local.write_bytes(near)
    drop_page_cache()
    loads = [
        threading.Thread(target=write_file, args=(mount / "incoming", data, MIB)),
        threading.Thread(target=read_file, args=(cold,)),
    ]
    for load in loads:
        load.start()
    stats, reads = [], []
    dice = random.Random(3)
    file = os.open(local, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        for name in names:
            if not loads[1].is_alive():
                break
            watch = Stopwatch()
            os.stat(name)
            stats.append(watch.seconds())
            offset = BLOCK * dice.randrange(len(near) // BLOCK)
            watch = Stopwatch()
            piece = os.pread(file, BLOCK, offset)
            reads.append(watch.seconds())
            check(piece == near[offset : offset + BLOCK], system, "a local read differs")
    finally:
        os.close(file)
        for load in loads:
            load.join()
    book.record("latency-stat", percentile_99(stats) * 1e3)
    book.record("latency-read", percentile_99(reads) * 1e3)
    check((mount / "incoming").stat().st_size == len(data), system, "a write under load is short")
    system.wait_uploaded()
    for path in (cold, local, mount / "incoming"):
        path.unlink()
    shutil.rmtree(folder)


def percentile_99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * len(seconds))]


def first_listing(system: System, book: Book) -> None:
    """From the start of the mount to the end of `ls` in a folder of 100,000 files."""
    count = book.sizes.listed_files
    behind = system.remote_files
    if behind is None and not isinstance(system, Syncer):
        return  # Making them takes minutes.
    folder = (behind or system.mountpoint) / "many"
    folder.mkdir()
    for number in range(count):
        os.close(os.open(folder / f"IMG_{number:06}.jpg", os.O_WRONLY | os.O_CREAT, 0o644))
    system.wait_uploaded()
    system.stop()
    drop_page_cache()
    watch = Stopwatch()
    system.start()
    shown = subprocess.run(
        ["ls", str(system.mountpoint / "many")], capture_output=True, check=True
    ).stdout
    book.record("first-ls", watch.seconds())
    check(shown.count(b"\n") == count, system, "ls does not list all files")
    time.sleep(SETTLE_SECONDS)
    book.record("memory", system.memory_bytes() / 1e6)
    shutil.rmtree(folder)


def memory(system: System, book: Book) -> None:
    """What the process takes when all other work is done."""
    if system.has_server:
        time.sleep(SETTLE_SECONDS)
        book.record("memory-run", system.memory_bytes() / 1e6)
