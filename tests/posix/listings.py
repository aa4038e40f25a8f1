"""Listing directories, also while they change."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
from collections import Counter
from pathlib import Path

from tests.posix.case import case, in_processes, libc

#: More than one call gets: 32 KiB, with names like these some 800.
_MANY = 2000


def _many(place: Path) -> set[str]:
    names = {f"{number:04d}" for number in range(_MANY)}
    for name in names:
        os.close(os.open(place / "dir" / name, os.O_CREAT))
    return names


def _all_once(place: Path) -> bool:
    names = _many(place)
    return Counter(os.listdir(place / "dir")) == Counter(names)


def _while_removed(place: Path) -> tuple[bool, list[str]]:
    names = _many(place)
    seen = []
    with os.scandir(place / "dir") as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry)
    return sorted(seen) == sorted(names), os.listdir(place / "dir")


def _while_made(place: Path) -> bool:
    """What was there from the start shows once; what comes meanwhile may show once."""
    names = _many(place)
    counts: Counter[str] = Counter()
    with os.scandir(place / "dir") as entries:
        for number, entry in enumerate(entries):
            counts[entry.name] += 1
            if number < _MANY:
                (place / "dir" / f"{number:04d}-new").touch()
    return max(counts.values()) == 1 and names <= set(counts)


def _while_others_go(place: Path) -> bool:
    """What stays shows, though names around it are removed."""
    names = sorted(_many(place))
    seen: Counter[str] = Counter()
    with os.scandir(place / "dir") as entries:
        for number, entry in enumerate(entries):
            seen[entry.name] += 1
            if number == 100:
                for name in names[::2]:
                    os.unlink(place / "dir" / name)
    return all(seen[name] == 1 for name in names[1::2]) and max(seen.values()) == 1


def _while_changed(place: Path) -> list[str]:
    """Which files are not shown as they are, after they changed between two parts of a listing."""
    # The first part ends somewhere among these; what comes next may have been read with it.
    names = sorted(_many(place))[700:1000]
    with os.scandir(place / "dir") as entries:
        next(entries)
        for name in names:
            (place / "dir" / name).write_bytes(b"new content")
            os.chmod(place / "dir" / name, 0o600)
        for _ in entries:
            pass
    # First their attributes, as the kernel knows them: opening a file may have it look again.
    found = {name: os.stat(place / "dir" / name) for name in names}
    return [
        name
        for name, shown in found.items()
        if (shown.st_size, stat.S_IMODE(shown.st_mode)) != (11, 0o600)
        or (place / "dir" / name).read_bytes() != b"new content"
    ]


def _kinds(place: Path) -> tuple[list[str], list[str], list[str]]:
    with os.scandir(place) as entries:
        found = list(entries)
    return (
        sorted(entry.name for entry in found if entry.is_dir(follow_symlinks=False)),
        sorted(entry.name for entry in found if entry.is_symlink()),
        sorted(entry.name for entry in found if entry.is_file(follow_symlinks=False)),
    )


def _numbers(place: Path) -> bool:
    with os.scandir(place) as entries:
        return all(entry.inode() == entry.stat(follow_symlinks=False).st_ino for entry in entries)


def _numbers_and_kinds_of_many(place: Path) -> bool:
    """The kernel asks for attributes with the first of them only."""
    for number in range(_MANY):
        path = place / "dir" / f"{number:04d}"
        (path.touch, path.mkdir, lambda path=path: path.symlink_to("nowhere"))[number % 3]()
    with os.scandir(place / "dir") as entries:
        found = [
            (
                entry.path,
                entry.inode(),
                entry.is_dir(follow_symlinks=False),
                entry.is_symlink(),
                entry.is_file(follow_symlinks=False),
            )
            for entry in entries
        ]
    return len(found) == _MANY and all(
        (number, *kinds)
        == (
            os.lstat(path).st_ino,
            stat.S_ISDIR(os.lstat(path).st_mode),
            stat.S_ISLNK(os.lstat(path).st_mode),
            stat.S_ISREG(os.lstat(path).st_mode),
        )
        for path, number, *kinds in found
    )


def _again(place: Path) -> tuple[list[str], list[str]]:
    descriptor = os.open(place / "dir", os.O_RDONLY)
    try:
        before = os.listdir(descriptor)
        (place / "dir/new").touch()
        return before, os.listdir(descriptor)
    finally:
        os.close(descriptor)


def _remove_tree(place: Path) -> bool:
    _many(place)
    (place / "dir/deep/deeper").mkdir(parents=True)
    shutil.rmtree(place / "dir")
    return (place / "dir").exists()


def _size_of_open(place: Path) -> int:
    """The attributes that come with a listing know of writes that are under way."""
    with open(place / "file", "ab", buffering=0) as file:
        file.write(b"!")
        with os.scandir(place) as entries:
            return next(entry.stat().st_size for entry in entries if entry.name == "file")


def _seeking(place: Path) -> bool:
    """telldir's places lead back to the same names, in any order, while others come and go."""
    names = _many(place)
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    stream = ctypes.c_void_p(libc.opendir(os.fsencode(place / "dir")))

    def following() -> bytes:
        entry = libc.readdir(stream)
        # struct dirent: the name stands after 19 bytes.
        return ctypes.string_at(entry + 19) if entry else b""

    def places_of_all() -> dict[bytes, ctypes.c_long]:
        places = {}
        while True:
            at = ctypes.c_long(libc.telldir(stream))
            name = following()
            if not name:
                return places
            places[name] = at

    def lead_back(places: dict[bytes, ctypes.c_long], wanted: list[bytes]) -> bool:
        found = []
        for name in wanted[::11] + wanted[5::17]:
            libc.seekdir(stream, places[name])
            found.append(following() == name)
        return bool(found) and all(found)

    places = places_of_all()
    for name in names:
        if name.endswith("7"):
            os.unlink(place / "dir" / name)
            (place / "dir" / f"{name}-new").touch()
            # Before all others: so each gets another number, counted from the beginning.
            (place / "dir" / f"+{name}").touch()
    # What is new may stand before those that end in 8, and before the first.
    wanted = [name for name in list(places)[:20:-1] if not name.endswith((b"7", b"8"))]
    results = [lead_back(places, wanted)]
    # Places that are told on a second way through what has changed are as good.
    libc.seekdir(stream, places[wanted[-20]])
    later = places_of_all()
    results += [
        all(name in later for name in wanted[:-20]),
        lead_back(later, list(later)),
        lead_back(places, wanted),
    ]
    libc.rewinddir(stream)
    again = set(iter(following, b"")) - {b".", b".."}
    libc.closedir(stream)
    return all(results) and again == {os.fsencode(name) for name in os.listdir(place / "dir")}


def _while_many_change_it(place: Path) -> bool:
    """Who lists sees all that stays once, whatever others create, remove and move meanwhile."""
    stays = _many(place)

    def work(number: int) -> None:
        if number % 2:
            for step in range(150):
                path = place / "dir" / f"{step * 3 % _MANY:04d}-{number}"
                path.touch()
                os.rename(path, place / "dir" / f"{step * 7 % _MANY:04d}+{number}")
                if step % 3:
                    os.unlink(place / "dir" / f"{step * 7 % _MANY:04d}+{number}")
            return
        for _ in range(10):
            found = Counter(os.listdir(place / "dir"))
            assert all(found[name] == 1 for name in stays)
            # What was moved meanwhile may show by both of its names, but each one once.
            assert max(found.values()) == 1

    in_processes(work)
    return stays <= set(os.listdir(place / "dir"))


CASES = [
    case("readdir: each name once", _all_once, True),
    case("readdir: nothing is missed while all is removed", _while_removed, (True, [])),
    case("readdir: nothing is missed or shown twice while more is made", _while_made, True),
    case("readdir: nothing is missed or shown twice while others go", _while_others_go, True),
    case("readdir: files that change meanwhile show as they are", _while_changed, []),
    case("readdir: the kinds of entries", _kinds,
         (["dir", "full"], ["dangling", "dirlink", "link", "loop"], ["file"])),
    case("readdir: the numbers of entries are those of stat", _numbers, True),
    case("readdir: numbers and kinds of many", _numbers_and_kinds_of_many, True),
    case("readdir: a second reading of one descriptor shows what has come", _again,
         ([], ["new"])),
    case("readdir: a tree can be removed", _remove_tree, False),
    case("telldir and seekdir: back and forth while names come and go", _seeking, True),
    case("readdir: many list while many change it", _while_many_change_it, True),
    case("readdir: an empty directory", lambda place: os.listdir(place / "dir"), []),
    case("readdir: the size of a file that is being written", _size_of_open, 8),
]  # fmt: skip
