"""Extended attributes."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from tests.posix.case import Call, as_user, case

_CREATE = os.XATTR_CREATE
_REPLACE = os.XATTR_REPLACE
#: Version 2 of the format, and the entries of owner, group and others: tag, rights, id.
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
    case("listxattr: what is there", _list, ["user.a", "user.b"]),
    case("listxattr: nothing", lambda place: os.listxattr(place / "file"), []),
    case("removexattr: ENODATA", lambda place: os.removexattr(place / "file", "user.x"),
         fails=errno.ENODATA),
    case("xattrs stay through a rename", _moved, b"value"),
    case("xattrs of a descriptor", _of_a_descriptor, (b"value", ["user.x"])),
    case("POSIX ACLs are refused clearly", _set("system.posix_acl_access", _ACL),
         fails=errno.EOPNOTSUPP, unless={"ext4": "it has them"}),
]  # fmt: skip
