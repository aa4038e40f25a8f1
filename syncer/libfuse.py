"""Which versions of libfuse this machine has."""

from __future__ import annotations

import ctypes

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
