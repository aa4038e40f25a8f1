"""Names: any bytes but a slash and NUL, up to 255 of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from tests.posix.case import Call, case

_NAMES = {
    "in Latin-1": b"caf\xe9",
    "in broken UTF-8": b"\xff\xfe\xc3(",
    "cut off in a UTF-8 character": "🙂".encode()[:3],
    "in UTF-8": "añ☃🙂".encode(),
    "in another form of Unicode": "n\u0303".encode(),
    "with control characters": b"\x01\t\n\r\x7f",
    "of a blank": b" ",
    "with quotes, backslashes and commas": b"'\"\\,%s*?",
    "of three dots": b"...",
    "that begins with a dash": b"-rf",
    "of 255 bytes": b"\x80" * 255,
    "that libfuse would give to a removed file": b".fuse_hidden",
}


def _through_its_life(name: bytes) -> Call:
    """Make, find, list, rename, link, remove."""

    def run(place: Path) -> tuple[bytes, list[bytes], bytes, bool]:
        folder = os.fsencode(place / "dir")
        path = folder + b"/" + name
        with open(path, "wb") as file:
            file.write(name)
        with open(path, "rb") as file:
            content = file.read()
        listed = os.listdir(folder)
        os.rename(path, folder + b"/x")
        os.rename(folder + b"/x", path)
        os.symlink(name, folder + b"/link")
        target = os.readlink(folder + b"/link")
        found = os.path.exists(folder + b"/link")
        os.unlink(path)
        return content, listed, target, found and not os.path.lexists(path)

    return run


def _directory(name: bytes) -> Call:
    def run(place: Path) -> list[bytes]:
        folder = os.fsencode(place) + b"/" + name
        os.mkdir(folder)
        with open(folder + b"/" + name, "wb"):
            pass
        return os.listdir(folder)

    return run


def _case_matters(place: Path) -> list[str]:
    for name in ("a", "A"):
        (place / "dir" / name).touch()
    return sorted(os.listdir(place / "dir"))


def _each_call(name: str) -> Call:
    """The calls that do not answer ENAMETOOLONG for a name."""

    def run(place: Path) -> list[str]:
        path = f"{place}/{name}"
        calls: dict[str, Callable[[], object]] = {
            "stat": lambda: os.stat(path),
            "lstat": lambda: os.lstat(path),
            "access": lambda: os.open(path, os.O_PATH),
            "chmod": lambda: os.chmod(path, 0o644),
            "chown": lambda: os.chown(path, -1, -1),
            "truncate": lambda: os.truncate(path, 0),
            "utimens": lambda: os.utime(path),
            "readlink": lambda: os.readlink(path),
            "symlink": lambda: os.symlink("x", path),
            "mkfifo": lambda: os.mkfifo(path),
            "rmdir": lambda: os.rmdir(path),
            "rename": lambda: os.rename(path, place / "new"),
            "link": lambda: os.link(path, place / "new"),
            "listdir": lambda: os.listdir(path),
            "getxattr": lambda: os.getxattr(path, "user.x"),
            "setxattr": lambda: os.setxattr(path, "user.x", b""),
            "statvfs": lambda: os.statvfs(path),
        }
        wrong = []
        for word, call in calls.items():
            try:
                call()
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    continue
            wrong.append(word)
        return wrong

    return run


CASES = [
    *(
        case(f"a file with a name {kind}", _through_its_life(name), (name, [name], name, True))
        for kind, name in _NAMES.items()
    ),
    *(
        case(f"a directory with a name {kind}", _directory(name), [name])
        for kind, name in _NAMES.items()
    ),
    case("ENAMETOOLONG for a name of 256 bytes, from each call", _each_call("n" * 256), []),
    case("ENAMETOOLONG for a path of 4096 bytes, from each call", _each_call("./" * 2048), []),
    case("names differ by case", _case_matters, ["A", "a"]),
]
