"""Which versions of libfuse this machine has, and how a mount by one of them is made."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from syncer.errors import MountError


def available_versions() -> list[int]:
    """The versions of libfuse that this machine has: some of 3, 2."""
    return [version for version in (3, 2) if library_of(version)]


def library_of(version: int) -> str | None:
    """The name of the shared library, if it can be loaded."""
    name = {3: "libfuse3.so.3", 2: "libfuse.so.2"}[version]
    try:
        ctypes.CDLL(name)
    except OSError:
        return None
    return name


def choose_version(wanted: str) -> int:
    """The libfuse version for `--fuse auto|2|3`. Raises MountError that names the package."""
    versions = available_versions()
    if wanted == "auto":
        if not versions:
            raise MountError("libfuse is missing; install the package fuse3")
        return versions[0]
    if int(wanted) not in versions:
        package = {"3": "fuse3", "2": "libfuse2"}[wanted]
        raise MountError(f"libfuse {wanted} is missing; install the package {package}")
    return int(wanted)


@dataclass(frozen=True)
class MountOptions:
    """How a mount is made."""

    source: str
    """What the list of mounts shows; see `mounts.source_of`."""
    subtype: str = "syncer"
    """The type that the list of mounts shows, behind "fuse."."""
    is_writer: bool = True
    """False: another machine may change what is shown, so the kernel may keep it for 1 s only."""
    writeback: bool = True
    """Let the kernel gather small writes (libfuse 3)."""
    extra: tuple[str, ...] = ()
    """Options of the mount command's -o."""
