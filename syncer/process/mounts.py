"""What is mounted where, as the kernel tells it, and unmounting.

Nothing here looks into a mount unless it says so: a FUSE mount whose process is dead or stuck
answers with an error, late, or never.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from syncer.errors import MountError

_OWN_SUBTYPE = "syncer"
#: A source that says by itself that the mount is ours: with the moment of one that shows the past.
_SOURCE = re.compile(r"syncer(?:@([^:/]+))?:(/.*)", re.DOTALL)
_DEVICE = "/dev/fuse"
#: As much as one request can carry, and a block.
_READ_AHEAD_BYTES = 1 << 20
#: Of the memory that the kernel spends on what programs have written and no disk has: enough for a
#: burst, and not so much that one mount could hold up all others.
_DIRTY_PERCENT = 4
# Unmounting writes what the kernel still holds of files.
_UNMOUNT_SECONDS = 300.0


@dataclass(frozen=True)
class Mount:
    """One line of the kernel's list of mounts."""

    mountpoint: Path
    type: str
    source: str
    """Of our own mounts: see `source_of`."""
    device: int
    """The minor device number, which names the connection to the kernel as well."""
    owner: int | None
    """Of FUSE mounts: the user who mounted."""

    @property
    def is_ours(self) -> bool:
        """Whether syncer mounted it, for whichever user."""
        is_named = self.type.startswith("fuse.") and _SOURCE.fullmatch(self.source) is not None
        return is_named or self.type == f"fuse.{_OWN_SUBTYPE}"

    @property
    def data(self) -> Path:
        """The data directory of one of our mounts."""
        found = _SOURCE.fullmatch(self.source)
        return Path(found[2] if found else self.source)

    @property
    def at(self) -> str:
        """The moment that one of our mounts shows; "" if it shows the present."""
        found = _SOURCE.fullmatch(self.source)
        return found[1] or "" if found else ""


def source_of(data: Path, subtype: str, at: str = "") -> str:
    """What the list of mounts is to show as the source of a mount of ours.

    That is the data directory's absolute path, and where the type does not tell whose mount it is,
    or it shows the past, a text that does.
    """
    if at:
        return f"syncer@{at}:{data}"
    return str(data) if subtype == _OWN_SUBTYPE else f"syncer:{data}"


def mounts() -> list[Mount]:
    """All mounts that this process sees, in the order in which they were made."""
    return [_parse(line) for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]


def our_mounts(owner: int | None = None) -> list[Mount]:
    """The mounts of syncer: of one user, or of all."""
    return [
        mount for mount in mounts() if mount.is_ours and (owner is None or mount.owner == owner)
    ]


def mount_at(path: Path) -> Mount | None:
    """What is mounted exactly there: the uppermost, where several are."""
    path = real(path)
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == path), None)


def mount_around(path: Path) -> Mount | None:
    """The mount of ours that the path lies in; None if it lies in another or in none."""
    path = real(path)
    around = [
        mount for mount in mounts() if mount.mountpoint == path or mount.mountpoint in path.parents
    ]
    # The last of the longest: later mounts cover earlier ones.
    found = max(reversed(around), key=lambda mount: len(mount.mountpoint.parts), default=None)
    return found if found and found.is_ours else None


def real(path: Path) -> Path:
    """The absolute path without symlinks on the way to its last part."""
    # A symlink is itself meant where it lies in a mount, and what it leads to where that is a
    # directory: a mount point or data directory. These functions of os.path raise nothing, not even
    # for a dead mount.
    absolute = os.path.abspath(path)
    if os.path.islink(absolute) and not os.path.isdir(absolute):
        folder, name = os.path.split(absolute)
        return Path(os.path.realpath(folder), name)
    return Path(os.path.realpath(absolute))


def is_dead(mountpoint: Path) -> bool:
    """Whether the process behind a FUSE mount is gone. Asks the mount."""
    try:
        # Not stat: the kernel may answer that from its cache.
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def prepare_mountpoint(mountpoint: Path) -> None:
    """Check that something can be mounted there, and clear what a crashed process left mounted.

    Raises MountError that says what to do.
    """
    while (mount := mount_at(mountpoint)) and mount.is_ours:
        if not is_dead(mountpoint):
            raise MountError(f"{mountpoint} is mounted already, from {mount.data}")
        unmount(mountpoint, lazy=True)
    try:
        with os.scandir(mountpoint) as entries:
            is_empty = next(entries, None) is None
    except FileNotFoundError:
        raise MountError(f"{mountpoint} does not exist; make it: mkdir {mountpoint}") from None
    except NotADirectoryError:
        raise MountError(f"{mountpoint} is not a directory") from None
    except OSError as error:
        raise MountError(f"{mountpoint} can't be looked at: {error.strerror}") from error
    if not is_empty:
        raise MountError(f"{mountpoint} is not empty; mount at an empty directory")


def check_fuse(version: int) -> None:
    """Check that the machine can mount with that version of libfuse.

    Raises MountError that names what is missing.
    """
    if not os.path.exists(_DEVICE):
        raise MountError(
            f"there is no {_DEVICE}: load the kernel module (modprobe fuse), or give the container"
            " the device"
        )
    # Root needs no help to mount.
    program, package = {3: ("fusermount3", "fuse3"), 2: ("fusermount", "fuse")}[version]
    if os.geteuid() != 0 and not shutil.which(program):
        raise MountError(f"{program} is missing; install the package {package}")


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount, as root or as the user who mounted.

    What the kernel still holds of written files reaches the file system's process first. With
    `lazy`, programs that use the mount keep what they have open, and nobody else sees it any more.

    Raises MountError: somebody uses it, or it belongs to somebody else.
    """
    command = [*_unmounter(lazy), "--", os.fspath(mountpoint)]
    try:
        # Another process does it, because a call that waits for the mount can't be interrupted.
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_UNMOUNT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MountError(f"{mountpoint} can't be unmounted: its process does not answer") from None
    if done.returncode:
        said = " ".join(os.fsdecode(done.stderr).split())
        if "busy" in said:
            said = f"a program uses it (fuser -vm {mountpoint} tells which)"
        raise MountError(f"{mountpoint} can't be unmounted: {said}")


def _unmounter(lazy: bool) -> list[str]:
    # Each unmounts what the other has mounted. Where neither is there, root has mounted.
    for program in ("fusermount3", "fusermount"):
        if shutil.which(program):
            return [program, "-u", "-z"] if lazy else [program, "-u"]
    return ["umount", "-l"] if lazy else ["umount"]


def abort(device: int) -> bool:
    """End the kernel's connection to a FUSE process; what uses the mount gets ENOTCONN.

    False: the kernel's control files are not mounted, or belong to somebody else.
    """
    try:
        Path(f"/sys/fs/fuse/connections/{device}/abort").write_bytes(b"1")
    except OSError:
        return False
    return True


def tune(device: int) -> None:
    """Have the kernel move more at once through a mount, if it lets us: it lets root only.

    It reads files ahead of programs by whole blocks, 1 MiB; unasked by 128 KiB, whatever a FUSE
    process wants, which are eight requests in place of one. And it lets programs write on until it
    holds 4 %, unasked 1 %, of what it may hold for all file systems: from half of that on it makes
    them wait, however quick the disk is.
    """
    settings = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}")
    with contextlib.suppress(OSError):
        (settings / "read_ahead_kb").write_text(str(_READ_AHEAD_BYTES >> 10))
        (settings / "max_ratio").write_text(str(_DIRTY_PERCENT))


def sync_filesystem(mountpoint: Path, *, detach: bool = False) -> None:
    """Have the kernel hand over what it holds of written files. May wait for the mount's process.

    With `detach` it is unmounted lazily first, so that nobody else begins to use it.

    Raises MountError: it could not be detached. Raises OSError: something could not be written.
    ESTALE is none: libfuse gives it where the kernel wants to tell the times of a file that has
    been removed meanwhile.
    """
    syncfs: Callable[[int], int] = ctypes.CDLL(None, use_errno=True).syncfs
    descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if detach:
            unmount(mountpoint, lazy=True)
        if syncfs(descriptor):
            number = ctypes.get_errno()
            if number != errno.ESTALE:
                raise OSError(number, os.strerror(number), os.fspath(mountpoint))
    finally:
        os.close(descriptor)


def _parse(line: bytes) -> Mount:
    # proc(5): id, parent, major:minor, root, mount point, options, optional fields, a dash, type,
    # source, options of the super block.
    common, _, own = line.partition(b" - ")
    fields = common.split(b" ")
    kind, source, options = own.split(b" ", 2)
    owner = re.search(rb"(?:^|,)user_id=(\d+)", options)
    return Mount(
        mountpoint=Path(_unescaped(fields[4])),
        type=_unescaped(kind),
        source=_unescaped(source),
        device=int(fields[2].partition(b":")[2]),
        owner=int(owner[1]) if owner else None,
    )


def _unescaped(field: bytes) -> str:
    plain = re.sub(rb"\\([0-7]{3})", lambda escape: bytes([int(escape[1], 8)]), field)
    return os.fsdecode(plain)
