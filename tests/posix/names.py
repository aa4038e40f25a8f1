"""Names: any bytes but a slash and NUL, up to 255 of them."""

from __future__ import annotations

import os
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


CASES = [
    *(
        case(f"a file with a name {kind}", _through_its_life(name), (name, [name], name, True))
        for kind, name in _NAMES.items()
    ),
    *(
        case(f"a directory with a name {kind}", _directory(name), [name])
        for kind, name in _NAMES.items()
    ),
    case("names differ by case", _case_matters, ["A", "a"]),
]
