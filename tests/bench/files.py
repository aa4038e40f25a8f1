"""Work on many files: small ones, empty ones, a tree from an archive, and a long listing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

from .measure import (
    BLOCK,
    LONGEST_SECONDS,
    SETTLE_SECONDS,
    Book,
    Stopwatch,
    check,
    drop_page_cache,
    per_second,
    read_file,
    remount,
    small_file_count,
    write_file,
)
from .systems import Syncer, System


def small_upload(system: System, book: Book) -> None:
    """Make files of 4 KiB, and have them on the server."""
    make_small_files(system, book)
    shutil.rmtree(system.mountpoint / "small")


def make_small_files(system: System, book: Book) -> dict[Path, bytes]:
    """Returns what was made. Who is slow at it makes fewer, and is credited with their share."""
    folder = system.mountpoint / "small"
    folder.mkdir()
    contents = {
        folder / f"file{number:05}": book.content(f"file{number:05}", BLOCK)
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
        system.check_uploaded()
    return made


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
    if behind is not None:
        # It still knows the names of what went behind its back.
        system.stop()
        system.start()


def memory(system: System, book: Book) -> None:
    """What the process takes when all other work is done."""
    if system.has_server:
        time.sleep(SETTLE_SECONDS)
        book.record("memory-run", system.memory_bytes() / 1e6)
