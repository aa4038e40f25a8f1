"""Extended attributes."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

from tests.posix.case import NOBODY, Call, as_user, case, checked, libc

_CREATE = os.XATTR_CREATE
_REPLACE = os.XATTR_REPLACE
#: Version 2 of the format, and the entries of owner, group and others: tag, rights, id.
_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
_ACL = struct.pack("<I HHi HHi HHi", 2, 1, 6, -1, 4, 4, -1, 32, 4, -1)


def _set(name: str, value: bytes = b"value", flags: int = 0, file: str = "file") -> Call:
    def run(place: Path) -> bytes:
        os.setxattr(place / file, name, value, flags, follow_symlinks=False)
        return os.getxattr(place / file, name, follow_symlinks=False)

    return run


def _twice(flags: int) -> Call:
    def run(place: Path) -> bytes:
        os.setxattr(place / "file", "user.x", b"before")
        return bytes(_set("user.x", b"after", flags)(place))  # type: ignore[call-overload]

    return run


def _list(place: Path) -> list[str]:
    for name in ("user.b", "user.a", "user.c"):
        os.setxattr(place / "file", name, b"")
    os.removexattr(place / "file", "user.c")
    return sorted(os.listxattr(place / "file"))


def _moved(place: Path) -> bytes:
    os.setxattr(place / "file", "user.x", b"value")
    os.rename(place / "file", place / "new")
    return os.getxattr(place / "new", "user.x")


def _of_a_descriptor(place: Path) -> tuple[bytes, list[str]]:
    with open(place / "file") as file:
        os.setxattr(file.fileno(), "user.x", b"value")
        return os.getxattr(file.fileno(), "user.x"), os.listxattr(file.fileno())


def _unreadable(place: Path) -> None:
    (place / "file").chmod(0o600)
    as_user(place, lambda here: os.getxattr(here / "file", "user.x"))


def _into(size: int) -> Call:
    """What getxattr(2) returns for a value of 5 bytes and room for so many."""

    def run(place: Path) -> int:
        os.setxattr(place / "file", "user.x", b"value")
        room = ctypes.create_string_buffer(max(size, 1))
        path = os.fsencode(place / "file")
        return checked(libc.getxattr(path, b"user.x", room, ctypes.c_size_t(size)))

    return run


def _list_into(size: int) -> Call:
    """The same for listxattr(2), of one name of 6 bytes and its end."""

    def run(place: Path) -> int:
        os.setxattr(place / "file", "user.x", b"value")
        room = ctypes.create_string_buffer(max(size, 1))
        return checked(libc.listxattr(os.fsencode(place / "file"), room, ctypes.c_size_t(size)))

    return run


def _trusted_are_hidden(place: Path) -> tuple[object, object]:
    for name in ("trusted.x", "user.x"):
        os.setxattr(place / "file", name, b"value")
    return os.listxattr(place / "file"), as_user(place, lambda here: os.listxattr(here / "file"))


def _capabilities_after(call: Call, uid: int) -> Call:
    """Whether a program has its capabilities yet after somebody did this to it."""

    def run(place: Path) -> bool:
        os.setxattr(place / "file", "security.capability", _CAPABILITY)
        (place / "file").chmod(0o777)
        as_user(place, call, uid) if uid else call(place)
        return "security.capability" in os.listxattr(place / "file")

    return run


def _write(place: Path) -> None:
    with open(place / "file", "r+b") as file:
        file.write(b"x")


def _of_a_sticky_directory(place: Path) -> None:
    (place / "dir").chmod(0o1777)
    as_user(place, _set("user.x", file="dir"))


def _by_both_names(place: Path) -> tuple[bytes, list[str]]:
    os.link(place / "file", place / "other")
    os.setxattr(place / "file", "user.x", b"value")
    value = os.getxattr(place / "other", "user.x")
    os.removexattr(place / "other", "user.x")
    return value, os.listxattr(place / "file")


CASES = [
    case("setxattr sets", _set("user.x"), b"value"),
    case("setxattr replaces", _twice(0), b"after"),
    case("setxattr: an empty value", _set("user.x", b""), b""),
    case("setxattr: any bytes", _set("user.\xe9\u2603", bytes(range(256))), bytes(range(256))),
    case("setxattr of a directory", _set("user.x", file="dir"), b"value"),
    case("setxattr: 64 KiB", _set("user.x", b"v" * 65536), b"v" * 65536,
         unless={"ext4": "it keeps one block of them"}),
    case("setxattr: E2BIG beyond 64 KiB", _set("user.x", b"v" * 65537), fails=errno.E2BIG),
    case("setxattr: ERANGE for a name of 256 bytes", _set("user." + "n" * 251),
         fails=errno.ERANGE),
    case("setxattr: a name of 255 bytes", _set("user." + "n" * 250), b"value"),
    case("XATTR_CREATE sets a new one", _set("user.x", flags=_CREATE), b"value"),
    case("XATTR_CREATE: EEXIST", _twice(_CREATE), fails=errno.EEXIST),
    case("XATTR_REPLACE replaces", _twice(_REPLACE), b"after"),
    case("XATTR_REPLACE: ENODATA", _set("user.x", flags=_REPLACE), fails=errno.ENODATA),
    case("setxattr: EOPNOTSUPP for a namespace that nobody knows", _set("nobody.x"),
         fails=errno.EOPNOTSUPP),
    case("setxattr: EOPNOTSUPP without a namespace", _set("x"), fails=errno.EOPNOTSUPP),
    case("setxattr: EPERM for a symlink", _set("user.x", file="link"), fails=errno.EPERM),
    case("setxattr: EPERM for a fifo", _set("user.x", file="fifo"), fails=errno.EPERM),
    case("setxattr: EINVAL for a namespace without a name", _set("user."), fails=errno.EINVAL),
    case("setxattr: ENOENT", _set("user.x", file="nothing"), fails=errno.ENOENT),
    case("setxattr: the trusted namespace", _set("trusted.x"), b"value", as_root=True),
    case("setxattr: the trusted namespace of a symlink", _set("trusted.x", file="link"), b"value",
         as_root=True),
    case("setxattr: the security namespace", _set("security.x"), b"value", as_root=True),
    case("setxattr: EPERM in the trusted namespace, if not root",
         lambda place: as_user(place, _set("trusted.x")), fails=errno.EPERM, as_root=True),
    case("getxattr: ENODATA", lambda place: os.getxattr(place / "file", "user.x"),
         fails=errno.ENODATA),
    case("getxattr: EACCES where one may not read", _unreadable, fails=errno.EACCES,
         as_root=True),
    case("getxattr: the size of a value", _into(0), 5),
    case("getxattr: ERANGE for too little room", _into(4), fails=errno.ERANGE),
    case("listxattr: the size of the list", _list_into(0), 7),
    case("listxattr: ERANGE for too little room", _list_into(6), fails=errno.ERANGE),
    case("listxattr: only root sees the trusted namespace", _trusted_are_hidden,
         (["trusted.x", "user.x"], ["user.x"]), as_root=True),
    case("getxattr: ENODATA in the trusted namespace, if not root",
         lambda place: (os.setxattr(place / "file", "trusted.x", b""),
                        as_user(place, lambda here: os.getxattr(here / "file", "trusted.x"))),
         fails=errno.ENODATA, as_root=True),
    case("setxattr: EPERM for another's sticky directory", _of_a_sticky_directory,
         fails=errno.EPERM, as_root=True),
    case("xattrs are the same by all names of a file", _by_both_names, (b"value", [])),
    case("a program that another writes to loses its capabilities",
         _capabilities_after(_write, NOBODY), False, as_root=True),
    case("a program that root writes to loses its capabilities",
         _capabilities_after(_write, 0), False, as_root=True),
    case("a program that is truncated loses its capabilities",
         _capabilities_after(lambda p: os.truncate(p / "file", 3), 0), False, as_root=True),
    case("a program that is emptied loses its capabilities",
         _capabilities_after(lambda p: os.close(os.open(p / "file", os.O_WRONLY | os.O_TRUNC)), 0),
         False, as_root=True),
    case("a program that changes its owner loses its capabilities",
         _capabilities_after(lambda p: os.chown(p / "file", NOBODY, -1), 0), False, as_root=True),
    case("a program that changes its mode keeps its capabilities",
         _capabilities_after(lambda p: (p / "file").chmod(0o755), 0), True, as_root=True),
    case("listxattr: what is there", _list, ["user.a", "user.b"]),
    case("listxattr: nothing", lambda place: os.listxattr(place / "file"), []),
    case("removexattr: ENODATA", lambda place: os.removexattr(place / "file", "user.x"),
         fails=errno.ENODATA),
    case("xattrs stay through a rename", _moved, b"value"),
    case("xattrs of a descriptor", _of_a_descriptor, (b"value", ["user.x"])),
    case("POSIX ACLs are refused clearly", _set("system.posix_acl_access", _ACL),
         fails=errno.EOPNOTSUPP, unless={"ext4": "it has them"}),
]  # fmt: skip
