"""Who may do what: every combination of owners, groups and modes, against the rule in a line.

Each case makes many small scenes, has one user try them all, and returns those that went otherwise
than the rule says; so each must return nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.posix.case import (
    AT_FDCWD,
    NOBODY,
    STRANGER,
    Call,
    as_user,
    case,
    checked,
    errno_name,
    libc,
    permissions,
)

_ROOT = 0
_GROUPS = (NOBODY, 7001)
"""The groups of the user who tries: nobody's own, and a further one."""
_SUCCESS = ""


def _inside(call: Callable[[Path], list[str]]) -> Call:
    """A call in the folder itself: nobody could not walk to it from the root."""

    def run(place: Path) -> list[str]:
        with contextlib.chdir(place):
            return call(Path())

    return run


_KINDS: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.write_bytes(b"content"),
    "dir": lambda path: path.mkdir(),
    "fifo": lambda path: os.mkfifo(path),
    "symlink": lambda path: path.symlink_to("target"),
    "socket": lambda path: _bind(path),
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 3)),
}


def _bind(path: Path) -> None:
    # A socket's address holds 108 bytes only.
    with socket.socket(socket.AF_UNIX) as bound:
        descriptor = os.open(path.parent, os.O_PATH)
        try:
            bound.bind(f"/proc/self/fd/{descriptor}/{path.name}")
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class _Scene:
    """One try: what is tried, and what must come of it."""

    name: str
    call: Callable[[], object]
    expected: str
    """The name of an errno, or success."""


def _otherwise(place: Path, scenes: list[_Scene], groups: tuple[int, ...] = _GROUPS) -> list[str]:
    """The scenes that go otherwise when nobody tries them."""

    def try_all(_: Path) -> list[str]:
        return [_outcome(scene.call) for scene in scenes]

    place.chmod(0o777)
    found = as_user(place, try_all, NOBODY, groups)
    assert isinstance(found, list)
    return [
        f"{scene.name}: {outcome or 'success'}"
        for scene, outcome in zip(scenes, found, strict=True)
        if outcome != scene.expected
    ]


def _outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno_name(error.errno)
    return _SUCCESS


def _state(path: Path) -> tuple[int, ...]:
    """What a refused call must leave as it is."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return ()
    return (
        found.st_ino, found.st_mode, found.st_uid, found.st_gid, found.st_nlink, found.st_size,
        found.st_mtime_ns, found.st_ctime_ns,
    )  # fmt: skip


def _remove(thing: Path, mine: Path) -> None:
    if stat.S_ISDIR(thing.lstat().st_mode):
        os.rmdir(thing)
    else:
        os.unlink(thing)


def _take_away(thing: Path, mine: Path) -> None:
    os.rename(thing, mine.with_name("taken"))


def _replace(thing: Path, mine: Path) -> None:
    os.rename(mine, thing)


def _sticky_directories(place: Path) -> list[str]:
    """Of what lies in a sticky directory, its owner and the directory's may remove it, move it and
    replace it; without the sticky bit, who may write to the directory. To move a directory to
    another one, one must also be able to write to it, since its two dots change."""
    owners = (NOBODY, _ROOT, STRANGER)
    scenes, untouched, gone = [], [], []
    kinds = ("file", "dir", "symlink")
    combinations = itertools.product((0o1777, 0o777), owners, owners, kinds)
    for number, (mode, owner_of_directory, owner, kind) in enumerate(combinations):
        for action in (_remove, _take_away, _replace):
            box = place / f"{number}{action.__name__}"
            box.mkdir()
            thing, mine = box / "box/thing", box / "mine"
            thing.parent.mkdir()
            for path, uid in ((thing, owner), (mine, NOBODY)):
                _KINDS[kind](path)
                os.lchown(path, uid, uid)
            box.chmod(0o777)
            thing.parent.chmod(mode)
            os.chown(thing.parent, owner_of_directory, owner_of_directory)
            expected = _SUCCESS
            if mode & stat.S_ISVTX and NOBODY not in (owner_of_directory, owner):
                expected = errno_name(errno.EPERM)
            elif kind == "dir" and action is _take_away and owner != NOBODY:
                expected = errno_name(errno.EACCES)
            name = f"{action.__name__} {kind} of {owner} in {mode:o} of {owner_of_directory}"
            scenes.append(_Scene(name, lambda a=action, t=thing, m=mine: a(t, m), expected))
            if expected:
                untouched += [(path, _state(path)) for path in (thing.parent, thing, mine)]
            else:
                gone.append((thing, thing.lstat().st_ino))
    wrong = _otherwise(place, scenes)
    wrong += [f"changed: {path}" for path, state in untouched if _state(path) != state]
    return wrong + [
        f"still there: {path}" for path, number in gone if _state(path)[:1] == (number,)
    ]


def _chown_rules(place: Path) -> list[str]:
    """An owner may give a file to a group of its own, and nobody may give it to another user.
    Changing neither is allowed to all. Bits that lend rights go, but not a directory's."""
    scenes, results = [], []
    for kind, owner in itertools.product(_KINDS, (NOBODY, STRANGER)):
        for uid, gid in itertools.product((-1, NOBODY, STRANGER), (-1, *_GROUPS, STRANGER)):
            path = place / f"{kind}-{owner}-{uid}-{gid}"
            _KINDS[kind](path)
            os.lchown(path, owner, NOBODY)
            nothing = (uid, gid) == (-1, -1)
            mode = 0o777 if kind == "symlink" else 0o755 if nothing else 0o6755
            if kind != "symlink":
                path.chmod(mode)
            allowed = nothing or (owner == NOBODY and uid in (-1, NOBODY) and gid in (-1, *_GROUPS))
            expected = _SUCCESS if allowed else errno_name(errno.EPERM)
            call = lambda p=path, u=uid, g=gid: os.chown(p, u, g, follow_symlinks=False)  # noqa: E731
            scenes.append(_Scene(path.name, call, expected))
            if allowed and kind not in ("dir", "symlink"):
                mode = 0o755
            group = gid if allowed and gid != -1 else NOBODY
            results.append((path, (mode, owner, group)))
    wrong = _otherwise(place, scenes)
    for path, want in results:
        found = path.lstat()
        got = permissions(path), found.st_uid, found.st_gid
        if got != want:
            wrong.append(f"{path.name} is {got}")
    return wrong


def _chmod_rules(place: Path) -> list[str]:
    """Only the owner may; the set-group-id bit needs the group, but on directories too."""
    scenes, results = [], []
    for kind, owner, group in itertools.product(_KINDS, (NOBODY, STRANGER), (NOBODY, STRANGER)):
        if kind == "symlink":
            continue
        path = place / f"{kind}-{owner}-{group}"
        _KINDS[kind](path)
        path.chmod(0o755)
        os.chown(path, owner, group)
        allowed = owner == NOBODY
        expected = _SUCCESS if allowed else errno_name(errno.EPERM)
        scenes.append(_Scene(path.name, lambda p=path: p.chmod(0o3711), expected))
        mode = 0o3711 if group in _GROUPS else 0o1711
        results.append((path, mode if allowed else 0o755))
    wrong = _otherwise(place, scenes)
    return wrong + [f"{p.name} is {permissions(p):o}" for p, m in results if permissions(p) != m]


_IMPOSSIBLE = {("dir", "w"), ("dir", "rw"), ("dir", "rw+"), ("fifo", "w")}
"""Kinds that can't be opened so, whatever the rights."""


def _open_rules(place: Path) -> list[str]:
    """The owner's bits count for the owner, the group's for the group, and no others for them."""
    modes = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR, "rw+": os.O_RDONLY | os.O_TRUNC}
    scenes = []
    for shift, bits, kind in itertools.product((6, 3, 0), range(8), ("file", "dir", "fifo")):
        path = place / f"{kind}-{shift}-{bits}"
        _KINDS[kind](path)
        os.chown(path, NOBODY if shift == 6 else STRANGER, NOBODY if shift == 3 else STRANGER)
        path.chmod(0o777 & ~(7 << shift) | bits << shift)
        for words, flags in modes.items():
            if (kind, words) in _IMPOSSIBLE:
                continue
            needed = 4 * ("r" in words) | 2 * ("w" in words)
            expected = _SUCCESS if bits & needed == needed else errno_name(errno.EACCES)
            call = lambda p=path, f=flags: os.close(os.open(p, f | os.O_NONBLOCK))  # noqa: E731
            scenes.append(_Scene(f"{path.name} {words}", call, expected))
    return _otherwise(place, scenes)


def _utimens_rules(place: Path) -> list[str]:
    """The time of now may be set by all who may write; any other, or one alone, by the owner."""
    omit, now = (1 << 30) - 2, (1 << 30) - 1
    times = {"now": (now, now), "given": (5, 6), "one": (omit, now), "none": (omit, omit)}
    scenes = []
    for owner, mode, (name, pair) in itertools.product(
        (NOBODY, STRANGER), (0o444, 0o666, 0o600), times.items()
    ):
        path = place / f"{owner}-{mode:o}-{name}"
        path.touch()
        path.chmod(mode)
        os.chown(path, owner, owner)
        expected = _SUCCESS
        if owner != NOBODY and name == "now" and not mode & 2:
            expected = errno_name(errno.EACCES)
        elif owner != NOBODY and name in ("given", "one"):
            expected = errno_name(errno.EPERM)
        scenes.append(_Scene(path.name, lambda p=path, t=pair: _utimensat(p, *t), expected))
    return _otherwise(place, scenes)


def _utimensat(path: Path, atime_nsec: int, mtime_nsec: int) -> None:
    """utimensat(2) with the given nanoseconds, or UTIME_NOW, or UTIME_OMIT."""
    pair = (ctypes.c_long * 4)(0, atime_nsec, 0, mtime_nsec)
    checked(libc.utimensat(AT_FDCWD, os.fsencode(path), pair, 0))


def _places(place: Path, mode: int) -> Iterator[tuple[Path, Path, Path]]:
    """Directories of nobody's with a mode, that each hold a file, and a file beside each."""
    for number in range(20):
        folder, beside = place / f"{mode:o}-{number}", place / f"beside-{mode:o}-{number}"
        folder.mkdir()
        for path in (folder / "thing", beside):
            path.write_bytes(b"content")
            os.chown(path, NOBODY, NOBODY)
        os.chown(folder, NOBODY, NOBODY)
        folder.chmod(mode)
        yield folder, folder / "thing", beside


def _directory_rules(place: Path) -> list[str]:
    """Names can be used with the right to search, and changed with that to write as well."""
    looking: list[Callable[[Path, Path, Path], object]] = [
        lambda folder, thing, beside: thing.stat(),
        lambda folder, thing, beside: thing.chmod(0o600),
        lambda folder, thing, beside: os.chown(thing, -1, NOBODY),
        lambda folder, thing, beside: os.utime(thing),
        lambda folder, thing, beside: os.truncate(thing, 3),
        lambda folder, thing, beside: thing.read_bytes(),
        lambda folder, thing, beside: os.link(thing, beside.with_suffix(".link")),
        lambda folder, thing, beside: os.getxattr(thing, "user.x"),
    ]
    changing: list[Callable[[Path, Path, Path], object]] = [
        lambda folder, thing, beside: (folder / "new").touch(),
        lambda folder, thing, beside: (folder / "new").mkdir(),
        lambda folder, thing, beside: os.mkfifo(folder / "new"),
        lambda folder, thing, beside: (folder / "new").symlink_to("x"),
        lambda folder, thing, beside: os.link(beside, folder / "new"),
        lambda folder, thing, beside: os.rename(beside, folder / "new"),
        lambda folder, thing, beside: os.rename(beside, thing),
        lambda folder, thing, beside: os.rename(thing, beside.with_suffix(".moved")),
        lambda folder, thing, beside: os.unlink(thing),
    ]
    scenes = []
    for mode in (0o400, 0o500, 0o600, 0o700):
        places = _places(place, mode)
        for number, call in enumerate([*looking, *changing]):
            right = 0o100 if number < len(looking) else 0o300
            expected = _SUCCESS if mode & right == right else errno_name(errno.EACCES)
            if number == len(looking) - 1 and not expected:
                expected = errno_name(errno.ENODATA)
            scene = next(places)
            scenes.append(_Scene(f"{mode:o} {number}", lambda c=call, p=scene: c(*p), expected))
    return _otherwise(place, scenes)


def _new_owners(place: Path) -> list[str]:
    """What is made belongs to who makes it, with its mode less the umask; devices are root's."""
    (place / "made").mkdir()
    (place / "made").chmod(0o777)

    def make(_: Path) -> list[tuple[str, int, int, int, str]]:
        os.umask(0o026)
        found = []
        for kind in _KINDS:
            path = Path("made", kind)
            outcome = _outcome(lambda kind=kind, path=path: _KINDS[kind](path))
            if not outcome:
                status = path.lstat()
                found.append((kind, status.st_uid, status.st_gid, permissions(path), outcome))
            else:
                found.append((kind, 0, 0, 0, outcome))
        return found

    found = as_user(place, make, NOBODY, (STRANGER, NOBODY))
    modes = {"file": 0o640, "dir": 0o751, "fifo": 0o640, "symlink": 0o777, "socket": 0o751}
    want = [(kind, NOBODY, STRANGER, mode, "") for kind, mode in modes.items()]
    want.append(("device", 0, 0, 0, errno_name(errno.EPERM)))
    assert isinstance(found, list)
    return [str(line) for line in found if line not in want]


CASES = [
    case("who may remove, move and replace what is in a directory of many",
         _inside(_sticky_directories), [], as_root=True),
    case("who may change an owner and a group", _inside(_chown_rules), [], as_root=True),
    case("who may change a mode", _inside(_chmod_rules), [], as_root=True),
    case("who may open what", _inside(_open_rules), [], as_root=True),
    case("who may set which time", _inside(_utimens_rules), [], as_root=True),
    case("who may use and change the names in a directory",
         _inside(_directory_rules), [], as_root=True),
    case("whose is what is made", _inside(_new_owners), [], as_root=True),
]  # fmt: skip
